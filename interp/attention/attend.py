"""What each model looks at, per image: the readings of one or several methods, on a scale that can be shared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from interp.attention.readings import METHODS, How, Query, check_query, read
from interp.models.model import Model, model_coords
from interp.result import Result
from interp.types import Batch, InputError, pixels


@dataclass(frozen=True)
class Attend:
    """methods: how to read, see readings.py. layer, head, query, residual: as `How` has them. chunk: images per forward pass."""

    methods: tuple[str, ...] = ("auto",)
    layer: str | None = None
    head: str | int = "mean"
    query: Query | None = None
    residual: float = 0.5
    chunk: int = field(default=16, metadata={"cost": True})

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError(
                f"methods are {', '.join(self.methods) or 'none'}; expected one or more of {', '.join(METHODS)}, each once"
            )


def attend(models: Sequence[Model], batch: Batch, params: Attend = Attend()) -> Result:
    """Read what each model looks at in every image, by every method; gradients are of the model's own prediction.

    map (model, method, image, y, x): the reading divided by its own mean over the image, so 1 is what a uniform map has; how
    (model, method): in words how it was read. The readings of different families and methods differ in kind; their shared unit
    does not make them the same quantity. Where a method does not apply to a model its maps are NaN, and `how` gives the reason;
    raises InputError where none applies to any.
    """
    started = time.perf_counter()
    size = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    check_query(params.query, batch.images)
    maps = np.full((len(models), len(params.methods), len(batch), *size), np.nan, np.float32)
    words = np.full(maps.shape[:2], "", object)
    choices = How(params.layer, params.head, params.query, params.residual)
    for m, model in enumerate(tqdm(models, desc="attention", leave=False)):
        model.check_images(batch.images.shape)
        for k, method in enumerate(params.methods):
            try:
                maps[m, k], words[m, k] = _relative(model, batch, method, choices, params.chunk)
            except InputError as reason:
                words[m, k] = f"not read: {reason}"
    if np.isnan(maps).all():
        reasons = dict.fromkeys(word.removeprefix("not read: ") for word in words.ravel().tolist())
        raise InputError(f"no method could read any model: {'; '.join(reasons)}")
    data = xr.Dataset(
        {
            "map": (("model", "method", "image", "y", "x"), maps, {"unit": "× mean"}),
            "how": (("model", "method"), words.astype(str)),
            "original": (("image", "y", "x", "channel"), pixels(batch.images)),
            "truth": ("image", batch.labels.numpy()),
        },
        coords=model_coords(models) | {"image": list(batch.ids), "method": list(params.methods)},
    )
    if params.query is not None:
        data.attrs["query"] = f"{params.query[0]},{params.query[1]}"
    return Result.of("attention", "Attention", data, params=params, models=models, batch=batch, started=started)


def _relative(model: Model, batch: Batch, method: str, how: How, chunk: int) -> tuple[np.ndarray, str]:
    """Maps (image, y, x) at image size, each divided by its mean, and how they were read."""
    size = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    found, words = [], ""
    for part in batch.chunks(chunk):
        reading = read(model, part.images.to(model.mean), method=method, how=how)
        large, words = reading.on_image(size), reading.how
        if not large.isfinite().all():
            raise InputError("its maps are not finite: weights, values or gradients of this model overflow")
        found.append((large / large.mean((1, 2), keepdim=True).clamp_min(1e-12)).cpu())
    return torch.cat(found).numpy(), words
