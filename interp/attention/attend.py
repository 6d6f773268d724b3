"""What each model looks at, per image: by one or several methods of reading, on a scale that can be shared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from interp.attention.readings import METHODS, How, Query, check_query, read
from interp.attention.rollout import HEADS
from interp.models.model import Model, check_some, model_coords
from interp.result import Result, described
from interp.types import Batch, InputError, pixels

FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "head": (lambda v: v in HEADS or type(v) is int, f"{', '.join(HEADS)}, or the number of a head"),
    "query": (
        lambda v: v is None or (isinstance(v, (tuple, list)) and [type(part) for part in v] == [int, int]),
        "a pixel (y, x), two whole numbers, or None",
    ),
    "residual": (lambda v: isinstance(v, (int, float)) and 0 <= v <= 1, "a share from 0 to 1"),
    "chunk": (lambda v: type(v) is int and v >= 1, "at least 1 image per pass"),
}
"""What the parameters of these analyses take, by the names of their fields."""


def check_fields(params: Any) -> None:
    """Raise InputError where a field of FIELDS that the parameters have holds what it does not take; numbers become Python's."""
    for name, (takes, expected) in FIELDS.items():
        if hasattr(params, name):
            value = _plain(getattr(params, name))
            if not takes(value):
                raise InputError(f"{name} is {value!r}; expected {expected}")
            object.__setattr__(params, name, value)


def _plain(value: Any) -> Any:
    """Without NumPy's types, which results cannot be looked up by."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def as_names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Several names, or a single one that was given alone."""
    return (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True)
class Attend:
    """How to read what models look at.

    methods: names, or one, of "auto" (own attention, else Grad-CAM), "raw" (weights of one layer), "channels" (derived from
    attention between channels), "weighted" (weights × their gradients), "rollout", "chefer" (gradient × attention), "gradcam",
    "gradcam++", "layercam", "scorecam"; what each is says interp/attention/readings.py. layer: a name, as
    `interp.attention_by_layer` lists them; by default the last on the image. head: "mean", "max" or "min" over heads, or the
    number of one from 0. query: a pixel (y, x) of the images; what is shown is then what it attends to. residual: share of the
    skip connection in a roll-out, 0 to 1. chunk: images per forward pass, which changes no value.
    """

    methods: tuple[str, ...] = ("auto",)
    layer: str | None = None
    head: str | int = "mean"
    query: Query | None = None
    residual: float = 0.5
    chunk: int = field(default=16, metadata={"cost": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", as_names(self.methods))
        check_fields(self)
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError(
                f"methods are {', '.join(self.methods) or 'none'}; expected one or more of {', '.join(METHODS)}, each once"
            )


def attend(models: Sequence[Model], batch: Batch, params: Attend = Attend()) -> Result:
    """Read what each model looks at in every image, by every method; gradients are of the model's own prediction.

    models: a list of models, as interp.load gives them. batch: images of the models' size, as interp.images gives them; labels
    are kept and not used. params: interp.Attend(methods, layer, head, query, residual, chunk); methods are "auto", "raw",
    "channels", "weighted", "rollout", "chefer", "gradcam", "gradcam++", "layercam" and "scorecam".

    Returns a Result with map (model, reading, image, y, x), what was read by each of the methods divided by its own mean over
    the image, so 1 is what a uniform map has; how (model, reading), in words how it was read; prediction (model, image), the
    class that each model reads. One map: `result.data["map"].sel(model=ID, reading="raw")[0]`. The readings of different
    families and methods differ in kind; their shared unit does not make them the same quantity. Where a method does not apply
    to a model its maps are NaN, and `how` gives the reason; raises InputError where none applies to any.
    """
    started = time.perf_counter()
    check_some(models)
    size = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    check_query(params.query, batch.images)
    maps = np.full((len(models), len(params.methods), len(batch), *size), np.nan, np.float32)
    words = np.full(maps.shape[:2], "", object)
    predicted = np.zeros((len(models), len(batch)), np.int64)
    choices = How(params.layer, params.head, params.query, params.residual)
    for model in models:
        model.check_images(batch.images.shape)
    with tqdm(total=math.prod(maps.shape[:3]), desc="attention", unit="map", leave=False) as bar:
        for m, model in enumerate(models):
            predicted[m] = model.read(batch.images, chunk=params.chunk).argmax(1).numpy()
            for k, method in enumerate(params.methods):
                try:
                    maps[m, k], words[m, k] = _relative(model, batch, method, choices, params.chunk, bar)
                except InputError as reason:
                    words[m, k] = f"not read: {reason}"
                bar.update((m * len(params.methods) + k + 1) * len(batch) - bar.n)  # also past what was not read
    if np.isnan(maps).all():
        reasons = dict.fromkeys(word.removeprefix("not read: ") for word in words.ravel().tolist())
        raise InputError(f"no method could read any model: {'; '.join(reasons)}")
    data = xr.Dataset(
        {
            "map": (("model", "reading", "image", "y", "x"), maps),
            "how": (("model", "reading"), words.astype(str)),
            "prediction": (("model", "image"), predicted),
            "original": (("image", "y", "x", "channel"), pixels(batch.images)),
            "truth": ("image", batch.labels.numpy()),
        },
        coords=model_coords(models) | {"image": list(batch.ids), "reading": list(params.methods)},
    )
    data = described(data, WORDS)
    if params.query is not None:
        data.attrs["query"] = f"{params.query[0]},{params.query[1]}"
    return Result.of("attention", "Attention", data, params=params, models=models, batch=batch, started=started)


WORDS = {
    "map": ("what is looked at ÷ its mean over the image", "× mean"),
    "how": ("how it was read, or why not", ""),
    "prediction": ("class that the model reads in the image", "class index"),
}


def _relative(model: Model, batch: Batch, method: str, how: How, chunk: int, bar: tqdm) -> tuple[np.ndarray, str]:
    """Maps (image, y, x) at image size, each divided by its mean, and how they were read; the bar counts images."""
    size = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    found, words = [], ""
    for part in batch.chunks(chunk):
        reading = read(model, part.images.to(model.mean), method=method, how=how)
        large, words = reading.on_image(size), reading.how
        if not large.isfinite().all():
            raise InputError("its maps are not finite: weights, values or gradients of this model overflow")
        found.append((large / large.mean((1, 2), keepdim=True).clamp_min(1e-12)).cpu())
        bar.update(len(part))
    return torch.cat(found).numpy(), words
