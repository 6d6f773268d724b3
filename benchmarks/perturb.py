"""What a large perturbation costs beside torchattacks, foolbox and a bare loop: the same steps, start, images and weights.

Every peer is timed until its images are made and read: the steps of PGD from the images themselves, then one forward pass that
gives loss and success. torchattacks, foolbox and the bare loop run on the model as timm gives it, in torch's own layout, in
batches of the size at which torchattacks is fastest of 1, 2, 4, … up to all images. interp runs in the chunks that it finds
fastest itself; finding them, once per model and machine, is not in the times but given as seconds.

exact  `interp.attack` in float32; "own passes" is the bare loop over the network that it really runs, in its chunks
fast   precision="fast" at an ε that fools about half of the images; where the device has no bfloat16 and fast is float32, what
       a search with bfloat16 gradients fools is measured all the same, untimed
stop   only whether an adversarial image exists: a sample ends at its first success, torchattacks runs all its steps
small  exact on one batch of 64 images of 32 pixels, where a GPU waits for its kernels to be launched; by default on GPUs alone

Run: python benchmarks/perturb.py [--quick] [--device cpu|cuda] [--threads N] [--rounds N] [--rows exact fast stop small]
[--only NAME] [--images parquet:PATH]. Writes perturb.json and the tables in README.md; --table only prints them; --quick writes
nothing here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import foolbox
import torch
import torch.nn.functional as F
import torchattacks
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
from torch import Tensor, nn

import interp
from interp.models.engine import engine
from interp.types import Images, Labels

RANDOM = {"resnet50": 224, "xcit_nano_12_p16_224": 224, "mobilevit_xs": 256}  # timm's architectures and their pixels
ROBUST = ("resnet50_w16_cifar10_linf", "xcit_nano_d6w64_cifar10_linf", "mobilevit_xs_cifar10_linf")
STANDARD = tuple(name.replace("_linf", "_standard") for name in ROBUST)
SHIPPED = {"exact": (32, 10), "fast": (256, 5), "stop": (32, 20), "small": (64, 20)}
WORK = {  # images × steps on the random models, and by the kind of row on the shipped ones
    "cpu": {"resnet50": (4, 3), "xcit_nano_12_p16_224": (8, 3), "mobilevit_xs": (32, 1), **SHIPPED},
    "cuda": {**dict.fromkeys(RANDOM, (128, 20)), **dict.fromkeys(SHIPPED, (512, 20)), "small": (64, 20)},
    "quick": {**dict.fromkeys((*RANDOM, *SHIPPED), (4, 2)), "resnet50": (2, 1)},
}
EPS = 8 / 255
CLOSE = 0.02  # two exact runs may differ by so much of the loss, and of the images or by one of them: sign() is chaotic near 0
Outcome = tuple[Images, Tensor]  # images and their logits


def batches(of: Subject, size: int) -> Iterator[tuple[Images, Labels]]:
    return zip(of.x.split(size), of.y.split(size), strict=True)


def read(net: nn.Module, parts: Iterator[Images]) -> Outcome:
    """Images and, as each batch is made, its logits."""
    made, logits = [], []
    for part in parts:
        with torch.no_grad():
            logits.append(net(part))
        made.append(part)
    return torch.cat(made), torch.cat(logits)


def ours(of: Subject, pgd: interp.PGD, *, chunk: int | None = None, precision: str = "float32") -> Outcome:
    found = interp.attack(of.model, of.x, of.y, pgd, chunk=chunk, precision=precision)
    return found.x, found.logits


def by_torchattacks(of: Subject, pgd: interp.PGD, *, size: int) -> Outcome:
    attack = torchattacks.PGD(of.plain, eps=pgd.eps, alpha=pgd.alpha, steps=pgd.steps, random_start=False)
    return read(of.plain, (attack(x, y) for x, y in batches(of, size)))


def by_foolbox(of: Subject, pgd: interp.PGD, *, size: int) -> Outcome:
    model = foolbox.PyTorchModel(of.plain, bounds=(0, 1), device=of.x.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=pgd.alpha, steps=pgd.steps, random_start=False)
    return read(of.plain, (attack.run(model, x, y, epsilon=pgd.eps) for x, y in batches(of, size)))


def bare(of: Subject, pgd: interp.PGD, *, net: nn.Module, size: int) -> Outcome:
    """PGD in as few lines as it takes."""

    def attacked(x: Images, y: Labels) -> Images:
        moved = x
        for _ in range(pgd.steps):
            moved = moved + pgd.alpha * passed(net, moved, y).sign()
            moved = (x + (moved - x).clamp(-pgd.eps, pgd.eps)).clamp(0, 1)
        return moved

    return read(net, (attacked(x, y) for x, y in batches(of, size)))


def timed(of: Subject, peers: dict[str, Callable[[], Outcome]], times: int) -> tuple[dict[str, Any], dict[str, Outcome]]:
    """Median seconds, ratios to the first peer's, loss and success of all peers."""
    seconds, made = rounds(peers, times, of.x.device)
    own = next(iter(peers))
    found = {
        "clock": clock_of(of.x.device),
        "rounds": times,
        "seconds": {name: round(statistics.median(taken), 3) for name, taken in seconds.items()},
        "slower": {name: ratio(taken, seconds[own]) for name, taken in seconds.items() if name != own},
        "loss": {name: round(float(F.cross_entropy(logits, of.y)), 5) for name, (_, logits) in made.items()},
        "success": {name: round(float((logits.argmax(1) != of.y).float().mean()), 4) for name, (_, logits) in made.items()},
    }
    return found, made


def agrees(found: dict[str, Any], n: int, *, loss: bool = True) -> bool:
    """Whether all peers come to one loss and one success, within the tolerance."""
    spread = {name: max(found[name].values()) - min(found[name].values()) for name in ("loss", "success")}
    near = spread["loss"] <= CLOSE * max(found["loss"].values()) or not loss
    return near and spread["success"] <= max(CLOSE, 1 / n) + 1e-9


def peer_batch(of: Subject, pgd: interp.PGD) -> tuple[int, dict[str, float]]:
    """The batch size at which one step of torchattacks takes least time per image."""
    once = replace(pgd, steps=1)
    return fastest(lambda size: by_torchattacks(of.first(size), once, size=size), sizes_to(len(of.x)), of.x.device)


def exact(of: Subject, steps: int, times: int) -> dict[str, Any]:
    n, pgd = len(of.x), interp.PGD(EPS, steps=steps, random_start=False)
    runner = engine(of.model, tuple(of.x.shape), passes=n * steps)
    chunk, tuning = chunk_of(runner, of, n)
    size, milliseconds = peer_batch(of, pgd)
    peers: dict[str, Callable[[], Outcome]] = {
        "interp": partial(ours, of, pgd, chunk=chunk),
        "torchattacks": partial(by_torchattacks, of, pgd, size=size),
        "foolbox": partial(by_foolbox, of, pgd, size=size),
        "bare": partial(bare, of, pgd, net=of.plain, size=size),
        "own passes": partial(bare, of, pgd, net=runner.steps, size=chunk),
    }
    if of.name == "mobilevit_xs" and n >= 32 and size != 32:
        peers["torchattacks, batch 32"] = partial(by_torchattacks, of, pgd, size=32)
    found, _ = timed(of, peers, times)
    chosen = {"chunk": chunk, "tuning_s": tuning, "peer_batch": size, "peer_ms_by_batch": milliseconds}
    return {"eps": EPS, "words": runner.words, **chosen, **found, "agree": agrees(found, n)}


def fast(of: Subject, steps: int, times: int) -> dict[str, Any]:
    n, pgd = len(of.x), interp.PGD(EPS, steps=steps, random_start=False)
    pgd = replace(pgd, eps=partial_eps(of, pgd))
    runners = {name: engine(of.model, tuple(of.x.shape), precision=name, passes=n * steps) for name in ("fast", "float32")}
    chunks = {name: chunk_of(runner, of, n)[0] for name, runner in runners.items()}
    size, _ = peer_batch(of, pgd)
    peers: dict[str, Callable[[], Outcome]] = {
        "interp, fast": partial(ours, of, pgd, chunk=chunks["fast"], precision="fast"),
        "interp": partial(ours, of, pgd, chunk=chunks["float32"]),
        "torchattacks": partial(by_torchattacks, of, pgd, size=size),
    }
    found, made = timed(of, peers, times)
    fooled = {name: made[name][1].argmax(1) != of.y for name in ("interp, fast", "interp")}
    low = by_bfloat16(of, pgd, chunks["fast"]) if runners["fast"].exact else fooled["interp, fast"]
    told = {"eps": pgd.eps, "words": runners["fast"].words, "chunk": chunks["fast"], "peer_batch": size}
    shares = {"bfloat16_success": low, "bfloat16_same": low == fooled["interp"]}
    return told | found | {name: round(float(v.float().mean()), 4) for name, v in shares.items()} | {"agree": agrees(found, n)}


def by_bfloat16(of: Subject, pgd: interp.PGD, size: int) -> Tensor:
    """Which images (n,) a search with bfloat16 gradients fools, read in float32: as slow as it is where the device lacks them."""

    def low(x: Images) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return of.model(x).float()

    results = [last for x, y in batches(of, size) for *_, last in [interp.pgd_steps(low, x, y, pgd, reader=of.model)]]  # type: ignore[arg-type]
    return torch.cat([last.logits.argmax(1) for last in results]) != of.y


def partial_eps(of: Subject, pgd: interp.PGD) -> float:
    """Of 2⁻⁴/255 to 2⁵/255, the ε that fools nearest to half of the first 16 images."""
    few, grid = of.first(16), torch.tensor([2.0**k / 255 for k in range(-4, 6)])
    n, m = len(few.x), len(grid)
    wide = replace(pgd, eps=float(grid.max()))
    found = interp.attack(few.model, few.x.repeat(m, 1, 1, 1), few.y.repeat(m), wide, eps=grid.repeat_interleave(n), chunk=8)
    share = found.success.view(m, n).float().mean(1)
    return float(grid[(share.cpu() - 0.5).abs().argmin()])


def stop(of: Subject, steps: int, times: int) -> dict[str, Any]:
    n, pgd = len(of.x), interp.PGD(EPS, steps=steps, random_start=False)
    runner = engine(of.model, tuple(of.x.shape), passes=n * steps)
    chunk, _ = chunk_of(runner, of, n)
    size, _ = peer_batch(of, pgd)
    ends = replace(pgd, stop=True)
    peers: dict[str, Callable[[], Outcome]] = {
        "interp, stop": partial(ours, of, ends, chunk=chunk),
        "interp": partial(ours, of, pgd, chunk=chunk),
        "torchattacks": partial(by_torchattacks, of, pgd, size=size),
    }
    found, _ = timed(of, peers, times)
    passes = interp.attack(of.model, of.x, of.y, ends, chunk=chunk).passes.float().mean()
    chosen = {"eps": EPS, "chunk": chunk, "peer_batch": size, "passes": round(float(passes), 2)}
    return {**chosen, **found, "agree": agrees(found, n, loss=False)}


ROWS: dict[str, Callable[[Subject, int, int], dict[str, Any]]] = {
    "exact": exact,
    "fast": fast,
    "stop": stop,
    "small": exact,
}


def models_of(rows: str, device: torch.device) -> list[str]:
    """Which models a set of rows measures; bfloat16 on processors only on small ones, since most of them are slow at it."""
    random = () if rows in ("stop", "small") or (rows == "fast" and device.type == "cpu") else RANDOM
    shipped = {"exact": (*ROBUST, STANDARD[0]), "fast": ROBUST, "stop": (*STANDARD, ROBUST[0]), "small": ROBUST}
    return [*random, *shipped[rows]]


def slower(peer: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: times_text(row["slower"].get(peer))


def both(what: str, *peers: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: " / ".join(f"{row[what][peer]:.3g}" for peer in peers)


EXACT: Columns = {
    "exact": lambda row: f"{row['model']}, {row['px']} px",
    "images × steps": lambda row: f"{row['n']} × {row['steps']}",
    "chunk, peers' batch": lambda row: f"{row['chunk']}, {row['peer_batch']}",
    "torchattacks": slower("torchattacks"),
    "in batches of 32": slower("torchattacks, batch 32"),
    "foolbox": slower("foolbox"),
    "bare loop": slower("bare"),
    "own passes": slower("own passes"),
    "loss, interp / torchattacks": both("loss", "interp", "torchattacks"),
    "success": both("success", "interp", "torchattacks"),
    "tuning": lambda row: f"{row['tuning_s']} s",
}
TABLES: dict[str, Columns] = {
    "exact": EXACT,
    "small": {"one batch of 64": EXACT["exact"], **{name: of for name, of in EXACT.items() if name != "exact"}},
    "fast": {
        "fast": lambda row: f"{row['model']}, {row['px']} px",
        "images × steps": lambda row: f"{row['n']} × {row['steps']}",
        "ε·255": lambda row: f"{255 * row['eps']:.3g}",
        "what fast is here": lambda row: row["words"],
        "torchattacks": slower("torchattacks"),
        "interp in float32": slower("interp"),
        "success, fast / float32 / torchattacks": both("success", "interp, fast", "interp", "torchattacks"),
        "with bfloat16 gradients": lambda row: f"{row['bfloat16_success']:.3g}",
        "same images as float32": lambda row: f"{row['bfloat16_same']:.1%}",
    },
    "stop": {
        "stop": lambda row: f"{row['model']}, {row['px']} px",
        "images × steps": lambda row: f"{row['n']} × {row['steps']}",
        "torchattacks": slower("torchattacks"),
        "interp, all steps": slower("interp"),
        "gradients per image": lambda row: row["passes"],
        "success, stop / torchattacks": both("success", "interp, stop", "torchattacks"),
    },
}


def measured(rows: str, name: str, device: torch.device, given: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    work = WORK["quick" if given.quick else device.type]
    n, steps = work[name if name in RANDOM else rows]
    of = subject(name, n, device, px=RANDOM.get(name, 0), images=given.images)
    told = {"rows": rows, "model": name, "px": of.x.shape[-1], "n": n, "steps": steps}
    return {**told, **ROWS[rows](of, steps, 2 if given.quick else given.rounds)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS))
    parser.add_argument("--images", default="samples:cifar10", help="images for the shipped models")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INTERP_CACHE"] = folder  # so that chunk sizes are measured here and now
        record = Record(Path(folder) / "perturb.json" if given.quick else HERE / "perturb.json", ("rows", "model"))
        for device in devices(given):
            kinds = given.rows or [rows for rows in ROWS if rows != "small" or device.type == "cuda"]
            chosen = [(rows, name) for rows in kinds for name in models_of(rows, device) if given.only in name]
            for rows, name in chosen:
                record.add(machine(device), measured(rows, name, device, given))
        publish(record, TABLES, given)


if __name__ == "__main__":
    main()
