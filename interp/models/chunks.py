"""How many images go through a model at once: measured where that pays, halved where memory runs out.

The fastest size depends on model and machine (MobileViT-XS at 256 pixels takes 3.5 times longer per image in chunks of 32 than
of 4 on two processor cores, while a GPU wants hundreds), so it is timed once and remembered in a file.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from interp.types import InputError

log = logging.getLogger(__name__)
T = TypeVar("T")
DEFAULT = 16  # where nothing was measured
RUNS = 3  # of each size: one to warm up, two timed
SHARE = 10  # measuring may cost one part in so many of the work
GAIN = 1.02  # a larger size has to be faster by so much to be taken
MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
_remembered: dict[str, tuple[int, int]] = {}  # chunk, and the largest size it is known for; 0: any


def in_chunks(run: Callable[[slice], T], n: int, chunk: int) -> Iterator[tuple[slice, T]]:
    """Yield (piece, run(piece)) over consecutive pieces of at most `chunk` of n samples, in order.

    Where memory runs out the chunk is halved and the same piece begun again, so run must not keep half a piece; finished pieces
    stay finished. Raises InputError where chunk < 1, and where one sample does not fit into memory. Limit: chunk ≥ n is one
    call of run(slice(0, n)).
    """
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; expected at least 1 sample at a time, or none to have it measured")
    return _pieces(run, n, chunk)


def _pieces(run: Callable[[slice], T], n: int, chunk: int) -> Iterator[tuple[slice, T]]:
    start, warned = 0, False
    while start < n:
        piece = slice(start, min(start + chunk, n))
        try:
            result = run(piece)
        except RuntimeError as error:
            size = piece.stop - start
            if not out_of_memory(error):
                raise
            if size == 1:
                raise InputError(
                    f"memory ran out on sample {start} alone; expected room for one sample at a time. Take smaller images, a "
                    f"smaller model or a device with more memory, or close what else uses it ({error})"
                ) from error
            chunk = size // 2
        else:
            yield piece, result
            del result
            start = piece.stop
            continue
        free()  # here, where the error no longer holds the frames and their tensors
        if not warned:
            log.warning("memory ran out with %d samples at once; going on with %d, and fewer where that fails", size, chunk)
            warned = True


def tuned(step: Callable[[Tensor], Any], example: Tensor, *, n: int, passes: int, key: str) -> int:
    """The fastest chunk size up to n for `step`, one forward and backward pass on a batch shaped like `example`.

    example (k, …), k ≥ 1: sizes 1, 2, 4, … are timed on its samples, repeated where there are fewer, best of two runs after
    a warm one, until two sizes in a row are no faster per sample by 2 % or memory runs out. passes: sample-passes that the
    caller is about to run; where timing up to 4 samples would cost more than a tenth of them, or n ≤ 2, nothing is timed.
    The answer is kept in memory and in `chunks.json` (folder INTERP_CACHE, else interp/ in XDG_CACHE_HOME or ~/.cache)
    under key, device, threads, dtype, shape and torch version; without one it is 16. Returns 1 ≤ chunk ≤ n.
    """
    if n < 1:
        raise InputError(f"there are {n} samples to choose a chunk size for; expected at least 1")
    name = _name(key, example)
    chunk, known = _recall(name)
    if n <= 2 or (chunk and (known == 0 or n <= known)):
        return min(chunk or DEFAULT, n)
    sizes = _affordable(n, passes)
    if sizes[-1] <= known or sizes[-1] < (4 if n >= 4 else 2):
        return min(chunk or DEFAULT, n)
    chunk, conclusive = _fastest(step, example, sizes)
    if chunk:
        _keep(name, chunk, 0 if conclusive else sizes[-1])
    return max(chunk, 1)


def _affordable(n: int, passes: int) -> list[int]:
    """Powers of two up to n that can be timed in a tenth of the passes; at least 1."""
    sizes, cost = [1], RUNS
    while sizes[-1] * 2 <= n and (cost := cost + RUNS * sizes[-1] * 2) * SHARE <= passes:
        sizes.append(sizes[-1] * 2)
    return sizes


def _fastest(step: Callable[[Tensor], Any], example: Tensor, sizes: list[int]) -> tuple[int, bool]:
    """The size of least time per sample, 0 where not even one fits; and whether sizes beyond those given are ruled out."""
    best, least, worse = 0, float("inf"), 0
    for size in sizes:
        try:
            seconds = _seconds(step, example[torch.arange(size, device=example.device) % len(example)]) / size
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            seconds = float("inf")
        if seconds == float("inf"):
            free()
            return best, True
        if seconds * GAIN < least:
            best, least, worse = size, seconds, 0
        elif (worse := worse + 1) == 2:
            return best, True
    return best, False


def _seconds(step: Callable[[Tensor], Any], batch: Tensor) -> float:
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        step(batch)
        if batch.device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error is torch's way to say that memory ran out, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or any(m in str(error) for m in MESSAGES)


def free() -> None:
    """Give back what torch holds and nothing uses."""
    gc.collect()
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _name(key: str, example: Tensor) -> str:
    shape = "x".join(map(str, example.shape[1:]))
    device = f"{_device(example.device)}|{torch.get_num_threads()} threads"
    return f"{key}|{device}|{str(example.dtype).removeprefix('torch.')}|{shape}|torch {torch.__version__}"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.machine()
    return f"{device.type} {platform.machine()}"


def _file() -> Path:
    if given := os.environ.get("INTERP_CACHE"):
        return Path(given) / "chunks.json"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "interp" / "chunks.json"


def _stored() -> dict[str, list[int]]:
    """What the file holds, without entries that are not two numbers; nothing where it cannot be read."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, RecursionError):  # RuntimeError: there is no home
        return {}
    return {k: v for k, v in found.items() if _valid(v)} if isinstance(found, dict) else {}


def _valid(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 2 or not all(type(v) is int for v in entry):
        return False
    return entry[0] >= 1 and (entry[1] == 0 or entry[1] >= entry[0])


def _recall(name: str) -> tuple[int, int]:
    """Chunk and the largest size it is known for; 0 and 0 where nothing is remembered."""
    if name not in _remembered and (entry := _stored().get(name)):
        _remembered[name] = entry[0], entry[1]
    return _remembered.get(name, (0, 0))


def _keep(name: str, chunk: int, known: int) -> None:
    _remembered[name] = chunk, known
    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(_stored() | {name: [chunk, known]}, indent=1), encoding="utf-8")
        part.replace(file)
    except (OSError, RuntimeError) as error:
        log.debug("the chunk size is remembered in this process only: %s", error)
