"""What every patch attends to: the weights of one layer per model, for the page on which a patch is pointed at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from interp.attention.capture import Captured, capture
from interp.attention.layout import attention_layers, has_attention, reason_without, unread
from interp.attention.maps import channel_rows, query_rows
from interp.models.model import Model, model_coords
from interp.result import Result
from interp.types import Batch, InputError, pixels

MOST = 1024  # positions of a grid: the page holds their square


@dataclass(frozen=True)
class Queries:
    """layer: a name, of all models that have it; by default each model's last in which patches ask. chunk: images per pass."""

    layer: str | None = None
    chunk: int = field(default=8, metadata={"cost": True})


def attention_queries(models: Sequence[Model], batch: Batch, params: Queries = Queries()) -> Result:
    """Record what every position of every model's grid attends to, mean over heads.

    size (model, axis): rows and columns of the grid, 0 where a model was not read. rows (model, image, query, key) uint8: the
    weights of a query on all keys, both row by row over the grid, 255 the largest of the row; peak (model, image, query): that
    largest weight × positions, so 1 is attention spread evenly over the whole grid. own (model): which layer it is, or why none
    was read. Channel attention has no weights of tokens: what stands there for it is derived, and `own` says so. Raises
    InputError where no model can be read.
    """
    started = time.perf_counter()
    read: list[tuple[Tensor, tuple[int, int]] | None] = []
    own = []
    for model in tqdm(models, desc="queries", leave=False):
        model.check_images(batch.images.shape)
        try:
            rows, size, words = _one(model, batch, params)
            read.append((rows, size))
        except InputError as reason:
            read.append(None)
            words = f"not read: {reason}"
        own.append(words)
    if not any(read):
        raise InputError(f"no model has a layer in which patches ask: {'; '.join(dict.fromkeys(own))}")
    most = max(found[0].shape[-1] for found in read if found)
    table = np.zeros((len(models), len(batch), most, most), np.uint8)
    peak = np.zeros((len(models), len(batch), most), np.float32)
    for m, found in enumerate(read):
        if found:
            rows, n = found[0], found[0].shape[-1]
            largest = rows.amax(-1, keepdim=True)
            table[m, :, :n, :n] = (rows / largest.clamp_min(1e-30) * 255).round().to(torch.uint8).numpy()
            peak[m, :, :n] = (largest[..., 0] * n).numpy()
    data = xr.Dataset(
        {
            "size": (("model", "axis"), [found[1] if found else (0, 0) for found in read]),
            "rows": (("model", "image", "query", "key"), table),
            "peak": (("model", "image", "query"), peak, {"unit": "× uniform"}),
            "own": ("model", own),
            "original": (("image", "y", "x", "channel"), pixels(batch.images)),
            "truth": ("image", batch.labels.numpy()),
        },
        coords=model_coords(models) | {"image": list(batch.ids)},
    )
    title = "What each patch attends to"
    return Result.of("attention_queries", title, data, params=params, models=models, batch=batch, started=started)


def _one(model: Model, batch: Batch, params: Queries) -> tuple[Tensor, tuple[int, int], str]:
    """Weights (image, query, key), mean over heads, the grid, and in words what they are."""
    name, parts, size = _layer(model, params.layer), [], (0, 0)
    words = ""
    for part in batch.chunks(params.chunk):
        with torch.no_grad(), capture(model, layers=[name]) as recorder:
            model(part.images.to(model.mean))
        layer = recorder.layers[0]
        if layer.geometry is None:
            raise InputError(f"layer {name} has tokens of no known grid")
        size = layer.geometry.size
        if layer.geometry.positions > MOST:
            raise InputError(f"layer {name} has a grid of {size[0]} × {size[1]}; the page holds at most {MOST} positions")
        rows, words = _rows(layer)
        parts.append(rows.cpu())
    left = unread(model)
    return torch.cat(parts), size, words + (f"; not captured: {left}" if left else "")


def _layer(model: Model, asked: str | None) -> str:
    """The layer to read: the last in which patches ask, else the last of channels."""
    if not has_attention(model):
        raise InputError(reason_without(model))
    kinds = attention_layers(model)
    if asked is not None and asked not in kinds:
        raise InputError(f"it has no layer {asked}")
    if asked is not None and kinds[asked] == "class":
        raise InputError(f"the only query of layer {asked} is the class token: no patch asks")
    patches = [name for name, kind in kinds.items() if kind not in ("class", "channel")]
    return asked or (patches or [name for name, kind in kinds.items() if kind == "channel"])[-1]


def _rows(layer: Captured) -> tuple[Tensor, str]:
    assert layer.geometry is not None
    at = f"mean over heads, at layer {layer.name}"
    if layer.kind == "channel":
        rows = channel_rows(layer.weights, layer.values, layer.geometry)
        return rows, f"derived from attention between channels: those that stand out at the query, {at}"
    if layer.kind == "talking":
        return query_rows(
            layer.weights.abs(), layer.geometry
        ), f"attention (absolute: talking heads mix weights to any sign), {at}"
    words = {
        "unfold": "attention, each position to those of the same place in other patches",
        "window": "attention, among the positions of its window or grid",
        "global-query": "attention of a query of the whole image, the same in every window, among the positions of a window",
        "context": "context scores, the same for all queries of a place in its patch",
    }
    return query_rows(layer.weights, layer.geometry), f"{words.get(layer.kind, 'attention')}, {at}"
