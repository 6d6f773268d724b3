"""What a training step costs beside its own forward and backward passes, and which share of it the images take.

Each shipped architecture, PGD-k from a random start, batch 64, random 32×32 images. `interp` is `Trainer.step` fed by
`Feed.batches`: padding, flip, crafting, AdamW, clipping, averaged weights. The peer is a bare loop over a copy of the network
and one batch: k passes to the input in eval mode, one to the weights in train mode, and nothing else. Both take turns, a step
each, in one process after a warm-up; the ratio is the median of the rounds' ratios. The share of images is that of fetching and
augmenting in further steps, all in this process, as they are and with RandAugment, Random Erasing, MixUp and CutMix. A GPU is
waited for wherever the clock is read.

Run: python benchmarks/training.py [--device cuda] [--precision bf16] [--threads N] [--rounds N] [--steps N]
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import Clock, processor
from torch import Tensor, nn

from interp.data.source import Pixels
from interp.training.feed import Batch8, Feed
from interp.training.recipe import Recipe
from interp.training.trainer import Trainer
from interp.types import Labels, Preprocess

HERE = Path(__file__).parent
CIFAR10 = Preprocess(32, 32, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "xcit_p4": {"embed_dim": 64, "depth": 6},
    "mobilevit_32": {"variant": "mobilevit_xs", "strides": [1, 2, 2, 2, 1, 1]},
    "resnet50_32": {"width": 16, "stem_stride": 2, "output_stride": 16},
}
HEAVY: dict[str, Any] = {"randaugment": "rand-m9-mstd0.5-inc1", "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0}


def random_images(n: int = 2048) -> Pixels:
    """Noise in place of a data set."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), generator=g, dtype=torch.uint8)
    return Pixels(pixels, torch.randint(0, 10, (n,), generator=g), tuple(map(str, range(n))), ())


class Ours:
    """A training run that goes on step by step."""

    def __init__(self, recipe: Recipe, data: Pixels, device: torch.device) -> None:
        feed = Feed(recipe, [data])
        self.device = device
        self.trainer = Trainer(recipe, total=feed.total, per_epoch=feed.per_epoch, device=device)
        self.batches: Iterator[Batch8] = feed.batches(0, device)

    def run(self, steps: int) -> float:
        """Seconds that some steps take."""
        clock = Clock(self.device)
        for _ in range(steps):
            self.trainer.step(*next(self.batches))
        return clock.total()

    def data_share(self, steps: int) -> float:
        """Share of some steps' time that fetching and augmenting their images takes."""
        clock, prepare = Clock(self.device), self.trainer._prepare
        self.trainer._prepare = clock.around(prepare)  # type: ignore[method-assign]
        fetch = clock.around(lambda: next(self.batches))
        for _ in range(steps):
            self.trainer.step(*fetch())
        self.trainer._prepare = prepare  # type: ignore[method-assign]
        return clock.inside / clock.total()


class Bare:
    """The passes of a step of PGD-k alone."""

    def __init__(self, net: nn.Module, x: Tensor, y: Labels, recipe: Recipe) -> None:
        self.net, self.x, self.y, self.recipe = net, x, y, recipe
        self.weights = list(net.parameters())

    def run(self, steps: int) -> float:
        """Seconds that some steps take."""
        clock = Clock(self.x.device)
        for _ in range(steps):
            self._step()
        return clock.total()

    def _step(self) -> None:
        self.net.eval()
        for _ in range(self.recipe.steps):
            x = self.x.detach().requires_grad_(True)
            torch.autograd.grad(self._loss(x), x)
        self.net.train()
        for weight in self.weights:
            weight.grad = None
        self._loss(self.x).backward()

    def _loss(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            return F.cross_entropy(self.net(x), self.y)


def turns(ours: Ours, bare: Bare, steps: int) -> tuple[float, float]:
    """Seconds of some steps of each, a step at a time, so that what else the machine does hits both."""
    own = theirs = 0.0
    for number in range(steps):
        if number % 2:
            theirs += bare.run(1)
        own += ours.run(1)
        if not number % 2:
            theirs += bare.run(1)
    return own, theirs


def measured(recipe: Recipe, data: Pixels, device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Both rates in images per second, the median of their ratios round by round, and the data's shares in per cent."""
    ours = Ours(recipe, data, device)
    n = recipe.batch_size
    x = data.pixels[:n].to(device).float().div(255).contiguous(memory_format=torch.channels_last)
    bare = Bare(copy.deepcopy(ours.trainer.model), x, data.labels[:n].to(device), recipe)
    heavy = Ours(dataclasses.replace(recipe, **HEAVY), data, device)
    for warm in (ours, bare, heavy):
        warm.run(2)
    taken = [turns(ours, bare, steps) for _ in range(rounds)]
    rates = {
        name: round(n * steps / statistics.median(column), 1)
        for name, column in zip(("interp", "bare"), zip(*taken, strict=True), strict=True)
    }
    ratios = [theirs / own for own, theirs in taken]
    return {
        "arch": recipe.arch,
        "k": recipe.steps,
        **{f"{name}_images_per_s": rate for name, rate in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
        "data_percent": round(100 * ours.data_share(steps), 1),
        "data_heavy_percent": round(100 * heavy.data_share(steps), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of each loop in a round")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device, data, rows = torch.device(given.device), random_images(), []
    for arch, args in ARCHITECTURES.items():
        for k in (1, 2):
            recipe = Recipe(
                arch, arch, args, preprocess=CIFAR10, objective="pgd", eps=8 / 255, steps=k, epochs=1000,
                batch_size=given.batch, precision=given.precision,
            )  # fmt: skip
            rows.append(measured(recipe, data, device, given.rounds, given.steps))
            print(rows[-1], flush=True)
    made = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": given.precision,
        "batch": given.batch,
        "rounds": given.rounds,
        "steps": given.steps,
    }
    (HERE / "training.json").write_text(json.dumps({"made": made, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
