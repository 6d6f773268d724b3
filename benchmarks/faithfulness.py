"""What judging maps costs beside quantus: pixel flipping, region perturbation, and model parameter randomisation.

Both get the same maps (random numbers: the time does not depend on them), the same baseline (0) and the same points, and their
values are compared. interp is `deletion` on the network that it makes of a model (batch norms folded, channels_last), with
images × points in passes of the size that is fastest of 1, 2, 4, … 64 (at 224 pixels 16). quantus has the model as any other
library loads it, and once more the network that interp makes of it; it takes all images at once, one pass per point. Both do
the same passes, one per image and point, interp one more for the untouched image: what can be gained is how they are batched,
the network, and what is done around it. Randomisation compares `by_layer` with quantus' MPRT, both with gradients of the plain
model: there only copies, correlations and bookkeeping differ.

"at most" is the ratio of a program that does nothing but these passes, at the speed at which this machine multiplies large
matrices: quantus' time ÷ (passes × floating-point operations of one ÷ that speed).

Run: python benchmarks/faithfulness.py [--quick] [--device cpu|cuda] [--threads N] [--rounds N] [--only NAME]
Writes faithfulness.json and the tables in README.md; --table only prints them; --quick writes nothing here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import (
    HERE,
    Columns,
    Record,
    Subject,
    arguments,
    clock_of,
    devices,
    fastest,
    machine,
    product_rate,
    publish,
    ratio,
    rounds,
    sizes_to,
    subject,
    times_text,
)
from torch import Tensor, nn

from interp.faithfulness.curves import Flips, deletion
from interp.faithfulness.randomisation import by_layer
from interp.models.engine import engine
from interp.models.model import macs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import quantus

PIXELS = {"resnet50": 224, "xcit_nano_d6w64_cifar10_linf": 0, "resnet50_w16_cifar10_linf": 0}  # 0: shipped
PATCH = {224: 28, 32: 4}  # 64 regions
STEPS = 48  # of pixel flipping: whole numbers of channel values at 32 and at 224 pixels
RANDOMISED = "resnet50_w16_cifar10_linf"  # its layers are those that quantus knows: convolutions, batch norms, a linear one
SAME = 1e-4  # of probabilities and correlations


def ours(of: Subject, maps: Tensor, measure: str, chunk: int) -> np.ndarray:
    if measure == "randomisation":
        found = by_layer(plain_gradient, of.plain, of.x, of.y, seed=43, apart=False)
        return np.stack([values.cpu().numpy() for _, values in found])
    regions = measure == "region perturbation"
    how = Flips(64 if regions else STEPS, PATCH[of.x.shape[-1]] if regions else 1, ties="argsort", chunk=chunk)
    scores = deletion(of.model, of.x, of.y, maps, baseline="black", how=how).scores
    return (scores[:, :1] - scores[:, 1:] if regions else scores[:, 1:]).cpu().numpy()


def by_quantus(of: Subject, maps: Tensor, measure: str, net: nn.Module) -> np.ndarray:
    """quantus on a network; its baseline 'black' is the least value of an image as it is by then, so it is given 0."""
    arrays = {"x_batch": of.x.cpu().numpy(), "y_batch": of.y.cpu().numpy(), "device": of.x.device}
    common = {"normalise": False, "disable_warnings": True}
    if measure == "randomisation":
        scores = quantus.MPRT(seed=42, **common)(net, explain_func=explained, **arrays)
        return np.stack([values for name, values in scores.items() if name != "original"])
    side = of.x.shape[-1]
    if measure == "region perturbation":
        test = quantus.RegionPerturbation(patch_size=PATCH[side], regions_evaluation=64, perturb_baseline=0.0, **common)
    else:
        test = quantus.PixelFlipping(features_in_step=3 * side**2 // STEPS, perturb_baseline=0.0, **common)
    return np.asarray(test(net, a_batch=maps[:, None].cpu().numpy(), softmax=True, **arrays))


def plain_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_(True)
    (g,) = torch.autograd.grad(model(x).gather(1, y[:, None]).sum(), x)
    return g.abs().sum(1)


def explained(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, device: Any = None, **_: Any) -> np.ndarray:
    x, y = (torch.as_tensor(v, device=device) for v in (inputs, targets))
    return plain_gradient(model, x, y)[:, None].cpu().numpy()


def chunk_for(of: Subject) -> int:
    """The size of fastest forward passes."""
    net = engine(of.model, tuple(of.x.shape)).reader
    at = lambda size: torch.arange(size, device=of.x.device) % len(of.x)  # noqa: E731
    run = torch.no_grad()(lambda size: net(of.x[at(size)]))
    return fastest(run, sizes_to(64 if of.x.shape[-1] <= 64 else 16), of.x.device)[0]


def row(of: Subject, measure: str, images: int, chunk: int, times: int, rate: float) -> dict[str, Any]:
    """Both on one measure: medians, ratio, and how far their values are apart."""
    of = of.first(images)
    maps = torch.rand(len(of.x), *of.x.shape[2:], generator=torch.Generator().manual_seed(0)).to(of.x.device)
    peers: dict[str, Callable[[], np.ndarray]] = {
        "interp": lambda: ours(of, maps, measure, chunk),
        "quantus": lambda: by_quantus(of, maps, measure, of.plain),
    }
    if measure != "randomisation":
        ready = engine(of.model, tuple(of.x.shape)).reader
        peers["quantus, interp's network"] = lambda: by_quantus(of, maps, measure, ready)
    seconds, made = rounds(peers, times, of.x.device)
    apart = max(float(np.abs(made["interp"] - found).max()) for found in made.values())
    points = made["interp"].shape[0 if measure == "randomisation" else 1]
    least = images * points * 2 * macs(of.plain) / rate
    return {
        "rows": "cost",
        "model": of.name,
        "px": of.x.shape[-1],
        "measure": measure,
        "images": images,
        "points": points,
        "chunk": chunk,
        "clock": clock_of(of.x.device),
        "rounds": times,
        "seconds": {name: round(statistics.median(taken), 3) for name, taken in seconds.items()},
        "slower": {name: ratio(taken, seconds["interp"]) for name, taken in seconds.items() if name != "interp"},
        "most": round(statistics.median(seconds["quantus"]) / least, 2) if measure != "randomisation" else None,
        "apart": apart,
        "agree": apart <= SAME,
    }


def measure(name: str, device: torch.device, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one model; of a large one on a processor, where each takes minutes, one row measured once."""
    slow = bool(PIXELS[name]) and device.type == "cpu"
    counts = (1,) if given.quick else (4,) if slow else (1, 16)
    of = subject(name, max(counts), device, px=PIXELS[name])
    chunk, times, rate = chunk_for(of), 1 if given.quick or slow else given.rounds, product_rate(device)
    for n in counts:
        for what in ("pixel flipping",) if slow else ("pixel flipping", "region perturbation"):
            yield row(of, what, n, chunk, times, rate)
    if name == RANDOMISED:
        yield row(of, "randomisation", min(max(counts), 4), chunk, times, rate)


TABLES: dict[str, Columns] = {
    "cost": {
        "model": lambda row: f"{row['model']}, {row['px']} px",
        "measure": lambda row: row["measure"],
        "images × points": lambda row: f"{row['images']} × {row['points']}",
        "chunk": lambda row: row["chunk"],
        "interp": lambda row: f"{row['seconds']['interp']:.2f} s",
        "quantus": lambda row: times_text(row["slower"]["quantus"]),
        "quantus, interp's network": lambda row: times_text(row["slower"].get("quantus, interp's network")),
        "at most": lambda row: f"{row['most']:.1f}" if row.get("most") else "–",
        "largest difference": lambda row: f"{row['apart']:.0e}",
    },
}


def main() -> None:
    given = arguments(__doc__).parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        key = ("rows", "model", "measure", "images", "points")
        record = Record(Path(folder) / "faithfulness.json" if given.quick else HERE / "faithfulness.json", key)
        for device in devices(given):
            for name in (name for name in PIXELS if given.only in name):
                for found in measure(name, device, given):
                    record.add(machine(device), found)
        publish(record, TABLES, given)


if __name__ == "__main__":
    main()
