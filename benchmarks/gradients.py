"""What averaged input gradients cost beside a bare loop and captum: SmoothGrad and integrated gradients, time and memory.

Every peer takes the gradient of the label's logit at 50 points per image (x + N(0, 0.1²), or the Gauss–Legendre nodes of the
path from grey) and averages. interp runs what `accumulate` runs, `fold` over `sources` on the folded network, which gives
variance, mean absolute value, agreement of signs and neighbouring cosines as well. The bare loop adds up gradients of the model
as timm gives it, in torch's own layout, at the same points. captum runs on that model, once as it does by default, all points
at once, and once in batches. interp chooses its chunk itself; the peers get the batch of fastest passes of 1, 2, 4, … 16 (small
images 64, on a GPU 256).

Memory is by how much the peak resident size of a fresh process grows beyond what it held before, its model loaded and idle; on a
GPU what torch's allocator says. A peer that would take more than 6 GB (more than a GPU has) is stopped there, and not timed.
interp's includes making the folded copy.

Run: python benchmarks/gradients.py [--quick] [--device cpu|cuda] [--threads N] [--rounds N] [--only NAME] [--skip time|memory]
Writes gradients.json and the tables in README.md; --table only prints them; --quick writes nothing here.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from side_by_side import (
    HERE,
    Columns,
    Record,
    Subject,
    arguments,
    chunk_of,
    clock_of,
    devices,
    fastest,
    machine,
    passed,
    publish,
    ratio,
    rounds,
    sizes_to,
    subject,
    times_text,
)
from torch import Tensor

from interp.gradients import sources
from interp.gradients.fold import fold
from interp.models.chunks import in_chunks
from interp.models.engine import engine
from interp.stats import cosine

PIXELS = {"resnet50": 224, "xcit_nano_12_p16_224": 224, "mobilevit_xs": 256, "xcit_nano_d6w64_cifar10_linf": 0}  # 0: shipped
IMAGES = {"cpu": (1, 4), "cuda": (1, 16), "quick": (1, 2)}
FEWER = {("cpu", name): (1,) for name in ("resnet50", "xcit_nano_12_p16_224", "mobilevit_xs")}  # at half a second a pass
FLAT, COUNTS = "resnet50_w16_cifar10_linf", (10, 100, 1000, 10000)  # the model and numbers of draws that memory is followed over
METHODS = {"noise": "SmoothGrad", "path": "integrated gradients"}
DRAWS, SIGMA, GREY = 50, 0.1, 0.5
PEERS = ("interp", "bare", "captum", "captum in batches")
LIMIT = 6 * 1024**3
SAME = 0.999  # cosine of two peers' maps from the same points; float32 in another order leaves it at 0.99999


def draws(method: str, x: Tensor, n: int) -> Iterator[sources.Draw]:
    return sources.noisy(x, n=n, sigma=SIGMA) if method == "noise" else sources.along(x, n=n, baseline=torch.full_like(x, GREY))


def ours(of: Subject, method: str, n: int, chunk: int) -> Tensor:
    net = engine(of.model, tuple(of.x.shape), passes=n * len(of.x)).steps
    images = -(-len(of.x) // -(-len(of.x) // chunk))  # at once, in pieces of even size

    def run(rows: slice) -> Tensor:
        points = draws(method, of.x[rows], n)
        blocks = sources.blocks(net, points, of.y[rows], loss="logit", chunk=chunk // images * images)
        folded = fold(blocks)
        return -(folded.running.mean if folded.attribution is None else folded.attribution)  # the loss is minus the logit

    return torch.cat([found for _, found in in_chunks(run, len(of.x), images)])


def bare(of: Subject, method: str, n: int, size: int) -> Tensor:
    """A pass, a sum, and nothing else; the points are interp's."""
    found = []
    for part, labels in zip(of.x.split(size), of.y.split(size), strict=True):
        points, total = draws(method, part, n), torch.zeros_like(part)
        while group := list(islice(points, size // len(part))):
            x = torch.stack([d.x for d in group]).requires_grad_(True)
            logits = of.plain(x.flatten(0, 1)).gather(1, labels.repeat(len(group))[:, None])
            (g,) = torch.autograd.grad(logits.sum(), x)
            total += sum(d.weight * v for d, v in zip(group, g, strict=True))
        found.append(total / n if method == "noise" else total * (part - GREY))
    return torch.cat(found)


def by_captum(of: Subject, method: str, n: int, size: int | None) -> Tensor:
    if method == "noise":
        batches = None if size is None else max(1, size // len(of.x))
        tunnel, more = NoiseTunnel(Saliency(of.plain)), {"target": of.y, "abs": False}
        return tunnel.attribute(of.x, nt_type="smoothgrad", nt_samples=n, nt_samples_batch_size=batches, stdevs=SIGMA, **more)
    batch = None if size is None else max(size, len(of.x))
    path = IntegratedGradients(of.plain)
    return path.attribute(of.x, baselines=GREY, target=of.y, n_steps=n, method="gausslegendre", internal_batch_size=batch)


def peer(name: str, of: Subject, job: dict[str, Any]) -> Callable[[], Tensor]:
    """What a peer does for a job: method, draws, chunk (interp's) and batch (the peers')."""
    method, n = job["method"], job["draws"]
    return {
        "interp": lambda: ours(of, method, n, job["chunk"]),
        "bare": lambda: bare(of, method, n, job["batch"]),
        "captum": lambda: by_captum(of, method, n, None),
        "captum in batches": lambda: by_captum(of, method, n, job["batch"]),
    }[name]


def timed(of: Subject, job: dict[str, Any], names: list[str], times: int) -> dict[str, Any]:
    """Median seconds, ratios to interp's, and how far the maps are interp's where the points are."""
    seconds, made = rounds({name: peer(name, of, job) for name in names}, times, of.x.device)
    alike = [name for name in names[1:] if name == "bare" or job["method"] == "path"]  # captum draws noise of its own
    cosines = {name: round(float(cosine(made["interp"].double(), made[name].double()).min()), 6) for name in alike}
    return {
        "clock": clock_of(of.x.device),
        "rounds": times,
        "seconds": {name: round(statistics.median(taken), 3) for name, taken in seconds.items()},
        "slower": {name: ratio(taken, seconds["interp"]) for name, taken in seconds.items() if name != "interp"},
        "cosine": cosines,
        "agree": min(cosines.values()) >= SAME,
    }


def megabytes(of: Subject, jobs: list[dict[str, Any]], threads: int) -> list[dict[str, int | None]]:
    """The extra memory of each peer in each job, None where it is beyond the limit."""
    if of.x.device.type == "cuda":
        return [{name: _on_cuda(of.first(job["images"]), job, name) for name in PEERS} for job in jobs]
    told = {"name": of.name, "threads": threads, "jobs": [job | {"peer": name} for job in jobs for name in PEERS]}
    ran = subprocess.run([sys.executable, __file__, "--alone", json.dumps(told)], stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, int | None]] = [dict.fromkeys(PEERS) for _ in jobs]
    for number, used in map(json.loads, ran.stdout.splitlines()):
        found[number // len(PEERS)][PEERS[number % len(PEERS)]] = used
    return found


def _on_cuda(of: Subject, job: dict[str, Any], name: str) -> int | None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        peer(name, of, job)()
    except torch.OutOfMemoryError:
        return None
    return (torch.cuda.max_memory_allocated() - before) // 2**20


def alone(told: dict[str, Any]) -> None:
    """The fresh process: it loads the model, then lets a fork of itself do each job, and prints number and megabytes."""
    torch.set_num_threads(1)  # no threads that a fork would lack
    most = max(job["images"] for job in told["jobs"])
    of = subject(told["name"], most, torch.device("cpu"), px=PIXELS.get(told["name"], 0))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # a fork's peak begins at what its parent holds: free heap would hide the job's
    for number, job in enumerate(told["jobs"]):
        if child := os.fork():
            os.waitpid(child, 0)
            continue
        try:
            torch.set_num_threads(told["threads"])
            print(json.dumps([number, _used(of.first(job["images"]), job)]), flush=True)
        finally:
            os._exit(0)


def _used(of: Subject, job: dict[str, Any]) -> int | None:
    """Megabytes by which this process' peak grows over one job, None beyond the limit."""
    before = _status("VmRSS")
    allowed = _status("VmData") * 1024 + LIMIT
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    try:
        peer(job["peer"], of, job)()
    except (RuntimeError, MemoryError):  # the allocator's, at the limit
        return None
    return (_status("VmHWM") - before) // 1024


def _status(name: str) -> int:
    """A line of /proc/self/status in kB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{name}:")[2].split()[0])


def chosen(of: Subject, n: int) -> dict[str, Any]:
    """For n gradients: interp's chunk and the seconds it took to find; the peers' batch, milliseconds per image at each tried."""
    chunk, tuning = chunk_of(engine(of.model, tuple(of.x.shape)), of, n)
    largest = 256 if of.x.device.type == "cuda" else 64 if of.x.shape[-1] <= 64 else 16
    sizes = sizes_to(min(n, largest))
    many = lambda size: torch.arange(size, device=of.x.device) % len(of.x)  # noqa: E731
    batch, taken = fastest(lambda size: passed(of.plain, of.x[many(size)], of.y[many(size)]), sizes, of.x.device)
    return {"chunk": chunk, "tuning_s": tuning, "batch": batch, "peer_ms_by_batch": taken}


def measure(name: str, device: torch.device, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one model: each method on one image and on several."""
    counts = IMAGES["quick"] if given.quick else FEWER.get((device.type, name), IMAGES[device.type])
    of = subject(name, max(counts), device, px=PIXELS[name])
    n = 4 if given.quick else DRAWS
    sizes = chosen(of, n * len(of.x))
    jobs: list[dict[str, Any]] = [
        sizes | {"method": method, "images": count, "draws": n} for count in counts for method in METHODS
    ]
    used = [dict.fromkeys(PEERS, 0) for _ in jobs] if given.skip == "memory" else megabytes(of, jobs, given.threads)
    for job, extra in zip(jobs, used, strict=True):
        names = [peer for peer in PEERS if extra[peer] is not None]
        found = {} if given.skip == "time" else timed(of.first(job["images"]), job, names, 2 if given.quick else given.rounds)
        told = {} if given.skip == "memory" else {"extra_mb": extra}
        yield {"rows": "cost", "model": name, "px": of.x.shape[-1], **job, **told, **found}


def flat(device: torch.device, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Memory of SmoothGrad on one image as its draws grow."""
    of = subject(FLAT, 1, device)
    counts = COUNTS[:2] if given.quick else COUNTS
    sizes = chosen(of, DRAWS)
    jobs: list[dict[str, Any]] = [sizes | {"method": "noise", "images": 1, "draws": count} for count in counts]
    for job, extra in zip(jobs, megabytes(of, jobs, given.threads), strict=True):
        yield {"rows": "memory", "model": FLAT, "px": of.x.shape[-1], **job, "extra_mb": extra}


def mb_text(name: str) -> Callable[[dict[str, Any]], str]:
    def text(row: dict[str, Any]) -> str:
        used = row.get("extra_mb", {}).get(name, 0)
        return "too much" if used is None else f"{used:,}"

    return text


TABLES: dict[str, Columns] = {
    "cost": {
        "model": lambda row: f"{row['model']}, {row['px']} px",
        "method": lambda row: METHODS[row["method"]],
        "images × draws": lambda row: f"{row['images']} × {row['draws']}",
        "chunk, peers' batch": lambda row: f"{row['chunk']}, {row['batch']}",
        **{name: lambda row, name=name: times_text(row.get("slower", {}).get(name)) for name in PEERS[1:]},  # type: ignore[misc]
        "extra MB: interp / bare / captum / in batches": lambda row: " / ".join(mb_text(name)(row) for name in PEERS),
        "least cosine": lambda row: min(row.get("cosine", {"": "–"}).values()),
    },
    "memory": {
        "draws, one image, 32 px": lambda row: f"{row['draws']:,}",
        **{f"{name}, MB": mb_text(name) for name in PEERS},
    },
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--skip", choices=("time", "memory"), help="leave out one of the two measurements")
    parser.add_argument("--alone", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        alone(given.alone)
        return
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INTERP_CACHE"] = folder  # so that chunk sizes are measured here and now
        key = ("rows", "model", "method", "images", "draws")
        record = Record(Path(folder) / "gradients.json" if given.quick else HERE / "gradients.json", key)
        for device in devices(given):
            for name in (name for name in PIXELS if given.only in name):
                for row in measure(name, device, given):
                    record.add(machine(device), row)
            if given.only in FLAT and given.skip != "memory":
                for row in flat(device, given):
                    record.add(machine(device), row)
        publish(record, TABLES, given)


if __name__ == "__main__":
    main()
