"""What each model looks at, per image: one spatial reading per family, on a scale that can be shared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from tqdm import tqdm

from interp.attention.layout import LAYOUTS
from interp.attention.read import spatial_attention
from interp.models.model import Model, model_coords
from interp.result import Result
from interp.types import Batch, pixels


@dataclass(frozen=True)
class Attend:
    """chunk: images per forward pass."""

    chunk: int = 16


def attend(models: Sequence[Model], batch: Batch, params: Attend = Attend()) -> Result:
    """Read each model's attention (Grad-CAM where it has none) for every image.

    map (model, image, y, x): the reading divided by its own mean over the image, so 1 is what a uniform map has; method
    (model): in words how it was read. The readings of different families differ in kind; their shared unit does not make
    them the same quantity. A model of a family without a row in `layout` has NaN maps, and its method says so.
    """
    started = time.perf_counter()
    maps = np.zeros((len(models), len(batch), *batch.images.shape[2:]), np.float32)
    methods = []
    for m, model in enumerate(tqdm(models, desc="attention", leave=False)):
        model.check_images(batch.images.shape)
        if model.family not in LAYOUTS:
            maps[m] = np.nan
            methods.append(f"not read: no row for the family {model.family} in interp/attention/layout.py")
            continue
        first = 0
        for part in batch.chunks(params.chunk):
            reading = spatial_attention(model, part.images)
            relative = reading.maps / reading.maps.mean((1, 2), keepdim=True).clamp_min(1e-12)
            maps[m, first : first + len(part)] = relative.numpy()
            first += len(part)
        methods.append(reading.method)
    data = xr.Dataset(
        {
            "map": (("model", "image", "y", "x"), maps, {"unit": "× mean"}),
            "method": ("model", methods),
            "original": (("image", "y", "x", "channel"), pixels(batch.images)),
            "truth": ("image", batch.labels.numpy()),
        },
        coords=model_coords(models) | {"image": list(batch.ids)},
    )
    return Result.of("attention", "Attention", data, params=params, models=models, batch=batch, started=started)
