"""Accumulated input gradients of robust and standard models, side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from interp.attacks.pgd import PGD
from interp.attacks.sweep import labels_for
from interp.gradients.sources import over_noise, over_path, over_steps
from interp.models.model import Model, model_coords
from interp.result import Result, with_interval
from interp.stats import Running, bootstrap, cosine
from interp.types import Batch, InputError, Labels, pixels


@dataclass(frozen=True)
class Accumulate:
    """over: 'steps' (of `attack`), 'noise' (n samples of width sigma) or 'path' (n points from grey 0.5)."""

    over: str = "steps"
    attack: PGD = PGD(8 / 255, steps=50)
    n: int = 50
    sigma: float = 0.1
    chunk: int = 16

    def __post_init__(self) -> None:
        if self.over not in ("steps", "noise", "path"):
            raise InputError(f"over is {self.over!r}; expected steps, noise or path")
        if self.n < 1 or self.sigma < 0:
            raise InputError(f"n is {self.n} and sigma {self.sigma}; expected n ≥ 1 and sigma ≥ 0")

    def source(self, model: Model, part: Batch, labels: Labels, first: int) -> Iterator[Tensor]:
        """The gradients of one chunk."""
        if self.over == "steps":
            return over_steps(model, part.images, labels, self.attack, first=first)
        if self.over == "noise":
            return over_noise(model, part.images, labels, n=self.n, sigma=self.sigma, seed=self.attack.seed + first)
        grey = torch.full_like(part.images, 0.5)
        return over_path(model, part.images, labels, n=self.n, baseline=grey)


def accumulate(models: Sequence[Model], batch: Batch, params: Accumulate = Accumulate()) -> Result:
    """Fold the gradients of every image in constant memory.

    mean (model, image, y, x, channel): mean gradient of the loss. agreement (…, y, x): share of samples that agree in sign,
    mean over channels. size (model, image): root mean square of `mean`. Measure cosine (model): mean cosine between
    consecutive gradients, high where the loss is smooth.
    """
    started = time.perf_counter()
    n, h, w = len(batch), *batch.images.shape[2:]
    mean, agreement = np.zeros((len(models), n, h, w, 3), np.float32), np.zeros((len(models), n, h, w), np.float32)
    turns = np.zeros((len(models), n))
    for m, model in enumerate(tqdm(models, desc=f"gradients over {params.over}", leave=False)):
        model.check_images(batch.images.shape)
        labels, first = labels_for(model, batch), 0
        for part in batch.chunks(params.chunk):
            rows = slice(first, first + len(part))
            running, cosines = fold(params.source(model, part, labels[rows], first))
            mean[m, rows], agreement[m, rows] = pixels(running.mean), running.agreement.mean(1).numpy()
            turns[m, rows] = cosines.numpy()
            first += len(part)
    dims = ("model", "image")
    data = xr.Dataset(
        {
            "mean": ((*dims, "y", "x", "channel"), mean),
            "agreement": ((*dims, "y", "x"), agreement),
            "size": (dims, np.sqrt((mean**2).mean((2, 3, 4)))),
            "original": (("image", "y", "x", "channel"), pixels(batch.images)),
            "truth": ("image", batch.labels.numpy()),
        },
        coords=model_coords(models) | {"image": list(batch.ids)},
    )
    smooth = [bootstrap(v) for v in turns]
    data = data.assign(with_interval("cosine", ("model",), smooth, (len(models),), unit="cosine", better="none", n=n))
    return Result.of(
        "gradients",
        f"Input gradients accumulated over {params.over}",
        data,
        params=params,
        models=models,
        batch=batch,
        started=started,
    )


def fold(gradients: Iterator[Tensor]) -> tuple[Running, Tensor]:
    """Running statistics of a stream of gradients (n, 3, h, w) and each image's mean cosine between neighbours (n,)."""
    running, previous, total, pairs = Running(), None, torch.zeros(()), 0
    for g in gradients:
        running.update(g[None])
        if previous is not None:
            total = total + cosine(previous, g)
            pairs += 1
        previous = g
    return running, total.expand(len(running.mean)) / pairs if pairs else torch.full((len(running.mean),), torch.nan)
