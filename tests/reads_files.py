"""Run as a script: reads every file of a folder under an audit hook and a memory limit, and prints what came of it as JSON.

python reads_files.py FOLDER [MUTATIONS SEED]; with the last two it reads mutations of the files instead.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import pickle
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from interp.errors import InputError
from interp.loading.detect import detect
from interp.loading.formats import unwrap
from interp.loading.inert import Limits, Stub
from interp.loading.read import Contents, read

LIMITS = Limits(
    max_bytes=64 << 20, max_tensors=1000, max_objects=64 << 20, max_entries=200_000, max_header=1 << 20, spare=8 << 20
)
ROOM = 512 << 20  # address space beyond what the imports take
NEVER = (
    "os.",
    "subprocess.",
    "exec",
    "compile",
    "pickle.",
    "socket.",
    "shutil.",
    "import",
    "ctypes.",
    "pty.",
    "webbrowser.",
    "code.",
)
events: list[str] = []
watching = False
peak = 0


def watch(event: str, args: tuple[Any, ...]) -> None:
    if not watching:
        return
    writes = event == "open" and (
        (isinstance(args[1], str) and args[1] not in ("r", "rb")) or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
    )
    if writes or (event.startswith(NEVER) and event not in ("os.listdir", "os.scandir")):
        events.append(f"{event} {args!r}"[:200])


def tensors(node: Any) -> Iterator[torch.Tensor]:
    if isinstance(node, torch.Tensor):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from tensors(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from tensors(value)


def digest(tensor: torch.Tensor) -> str:
    """sha256 of the bytes of a tensor."""
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def outcome(path: Path, *, carry: bool = False) -> dict[str, Any]:
    """What reading one file gives: the words of its refusal, or what was found. carry: unwrap and detect what was read."""
    global watching, peak
    events.clear()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = memory("VmRSS"), time.perf_counter()
    watching, stage = True, "refused"
    try:
        contents: Contents | InputError = read(path, limits=LIMITS)
        if carry:
            stage = "no state dict"
            weights = unwrap(contents.root, metadata=contents.metadata)  # type: ignore[union-attr]
            stage = "detected" if detect(weights.tensors) else "unwrapped"
    except InputError as error:
        contents = error
    finally:
        watching = False
    most, peak = memory("VmHWM"), max(peak, memory("VmHWM"))
    found: dict[str, Any] = {"events": list(events), "seconds": time.perf_counter() - start}
    found |= {"stage": stage, "grown": most - before, "size": path.stat().st_size}
    if isinstance(contents, InputError):
        return found | {"error": str(contents)}
    total = sum(float(torch.nan_to_num(t.to(torch.float64)).sum()) for t in tensors(contents.root) if not t.is_complex())
    w = contents.root.get("w") if isinstance(contents.root, dict) else None
    return found | {
        "error": None,
        "container": contents.container,
        "reader": contents.reader,
        "refused": contents.refused,
        "w": digest(w) if isinstance(w, torch.Tensor) else None,
        "x": isinstance(contents.root.get("x"), Stub) if isinstance(contents.root, dict) else None,
        "total": total,
    }


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


def check_the_watch() -> list[str]:
    """The events of things that must be seen, so that seeing none means something."""
    global watching
    events.clear()
    watching = True
    os.system("true")
    exec("1")
    Path("written").write_text("x")
    pickle.loads(b"cos\nsystem\n.")
    watching = False
    return [event.split()[0] for event in events]


def main(folder: Path, mutations: int = 0, seed: int = 0) -> None:
    global peak
    files = sorted(p for p in folder.iterdir() if p.is_file())
    for path in files:
        if path.name.startswith("good"):
            outcome(path, carry=bool(mutations))  # all lazy imports
    os.chdir(folder)
    peak = 0
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    sys.addaudithook(watch)
    before = memory("VmRSS")
    if mutations:
        from tests.mutate import mutated

        counts: collections.Counter[str] = collections.Counter()
        problems: list[str] = []
        target = folder / "mutated"
        for name, data in mutated({p.name: p.read_bytes() for p in files}, mutations, seed):
            target.write_bytes(data)
            try:
                found = outcome(target, carry=True)
            except BaseException as error:  # noqa: BLE001 – any other exception is what is looked for
                found = {"events": [], "error": "", "seconds": 0.0, "stage": "problem"}
                problems.append(f"{name}: {type(error).__name__}: {error}")
                target.rename(folder.parent / f"problem_{len(problems)}")
            if found["events"] or found["seconds"] > 10 or "this machine's memory" in (found["error"] or ""):
                problems.append(f"{name}: {found}")
            counts[found["stage"] if found["error"] is not None else f"{found['stage']}, {found['reader']}"] += 1
        result: dict[str, Any] = {"counts": counts, "problems": problems}
    else:
        result = {path.name: outcome(path) for path in files}
    grown = peak - before
    report = {"files": result, "grown": grown, "canary": Path("canary").exists(), "seen": check_the_watch()}
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
