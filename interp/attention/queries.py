"""What every patch attends to: the weights of one layer per model, for the page on which a patch is pointed at.

Where queries or keys are pooled (PVT v2, arXiv 2106.13797; MViT v2, 2112.01526; LeViT, 2104.01136) the patches that ask stand on
one grid and what they attend to on another; both cover the whole image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from interp.attention.attend import check_fields
from interp.attention.capture import Captured, by_pieces, capture
from interp.attention.geometry import Geometry
from interp.attention.layout import DERIVED, ONE, SIGNED, attention_layers, has_attention, reason_without, unread
from interp.attention.maps import channel_rows, query_rows
from interp.models.model import Model, check_some, model_coords
from interp.result import Result, described
from interp.types import Batch, InputError, pixels

UNEVEN = (*SIGNED, "halo", "outlook")  # kinds whose rows over the grid sum to any number: of any sign, partly padding, sums
MOST = 1024**2  # weights of one image, queries × keys, that the page holds


@dataclass(frozen=True)
class Queries:
    """layer: a name, of all models that have it; by default each model's last in which patches ask. chunk: images per pass."""

    layer: str | None = None
    chunk: int = field(default=8, metadata={"cost": True})

    def __post_init__(self) -> None:
        check_fields(self)


WORDS = {
    "asks": ("rows and columns of the grid of queries, 0 where the model was not read", "positions"),
    "size": ("rows and columns of the grid of keys, 0 where the model was not read", "positions"),
    "rows": ("weight of a key ÷ the largest of its query's row × 255", "1/255 of the row's largest"),
    "peak": ("largest weight of a query × number of keys", "× uniform"),
    "seen": ("whether a key is in a window, or other group, of the query's", ""),
    "covers": ("rows and columns of pixels that the queries cover", "px"),
    "own": ("which layer it is and how it was read, or why none was", ""),
}


class _Read(NamedTuple):
    """Weights (image, query, key) of one model, mean over heads, where they stand, and in words what they are."""

    rows: Tensor
    geometry: Geometry
    words: str


def attention_queries(models: Sequence[Model], batch: Batch, params: Queries = Queries()) -> Result:
    """Record what every position of every model's grid attends to, mean over heads.

    asks, size (model, axis): rows and columns of the grid of the queries and of that of the keys, 0 where a model was not read;
    they differ where either is pooled. covers (model, axis): rows and columns of pixels that they cover, more than the image has
    where patches were padded. rows (model, image, query, key) uint8: the weights of a query on all keys, each row by row
    over its grid, 255 the largest of the row; peak (model, image, query): that largest weight × keys, so 1 is attention spread
    evenly over the whole grid; rows of UNEVEN kinds are divided by their sum first, and `own` says so. seen (model, query, key):
    whether the key is in a window, or other group, of the query's. own (model): which layer it is, or why none was read. Channel
    attention has no weights of tokens: what stands there for it is derived, and `own` says so. Raises InputError where no model
    can be read.
    """
    started = time.perf_counter()
    check_some(models)
    image = tuple(batch.images.shape[-2:])
    read: list[_Read | None] = []
    own: list[str] = []
    for model in tqdm(models, desc="queries", leave=False):
        model.check_images(batch.images.shape)
        try:
            shown = _one(model, batch, params)
            read, own = [*read, shown], [*own, shown.words]
        except InputError as reason:
            read, own = [*read, None], [*own, f"not read: {reason}"]
    if not any(read):
        raise InputError(f"no model has a layer in which patches ask: {'; '.join(dict.fromkeys(own))}")
    most = [max(found.rows.shape[axis] for found in read if found) for axis in (1, 2)]
    table = np.zeros((len(models), len(batch), *most), np.uint8)
    peak = np.zeros((len(models), len(batch), most[0]), np.float32)
    seen = np.zeros((len(models), *most), bool)
    for m, found in enumerate(read):
        if found:
            _, queries, keys = found.rows.shape
            largest = found.rows.amax(-1, keepdim=True)
            table[m, :, :queries, :keys] = (found.rows / largest.clamp_min(1e-30) * 255).round().to(torch.uint8).numpy()
            peak[m, :, :queries] = (largest[..., 0] * keys).numpy()
            seen[m, :queries, :keys] = _seen(found.geometry)
    data = xr.Dataset(
        {
            "asks": (("model", "axis"), [found.geometry.queries.size if found else (0, 0) for found in read]),
            "size": (("model", "axis"), [found.geometry.size if found else (0, 0) for found in read]),
            "rows": (("model", "image", "query", "key"), table),
            "peak": (("model", "image", "query"), peak),
            "seen": (("model", "query", "key"), seen),
            "covers": (("model", "axis"), [(found and found.geometry.queries.extent) or image for found in read]),
            "own": ("model", own),
            "original": (("image", "y", "x", "channel"), pixels(batch.images)),
            "truth": ("image", batch.labels.numpy()),
        },
        coords=model_coords(models) | {"image": list(batch.ids)},
    )
    data = described(data, WORDS)
    title = "What each patch attends to"
    return Result.of("attention_queries", title, data, params=params, models=models, batch=batch, started=started)


def _one(model: Model, batch: Batch, params: Queries) -> _Read:
    """What the page shows of one model; raises InputError where no patch asks, or for more weights than the page holds."""
    name = _layer(model, params.layer)
    parts = by_pieces(lambda piece: _part(model, name, batch[piece]), len(batch), params.chunk)
    left = unread(model)
    words = parts[0].words + (f"; not captured: {left}" if left else "")
    return _Read(torch.cat([part.rows for part in parts]), parts[0].geometry, words)


def _part(model: Model, name: str, batch: Batch) -> _Read:
    with torch.no_grad(), capture(model, layers=[name]) as recorder:
        model(batch.images.to(model.mean))
    layer, geometry = recorder.layers[0], recorder.layers[0].geometry
    if geometry is None:
        raise InputError(f"layer {name} has tokens of no known grid")
    size, asks = geometry.size, geometry.queries.size
    if math.prod(asks) * math.prod(size) > MOST:
        raise InputError(
            f"layer {name} has {asks[0]} × {asks[1]} queries on {size[0]} × {size[1]} keys; the page holds at most {MOST} "
            "weights of an image, as many as 32 × 32 queries on 32 × 32 keys. Name another layer, or ask for one query at a time"
        )
    rows, words = _rows(layer, geometry)
    return _Read(rows.cpu(), geometry, words)


def _seen(geometry: Geometry) -> np.ndarray:
    """Whether a query (row) and a key (column) are in a group together."""
    seen = np.zeros((geometry.queries.positions, geometry.positions), bool)
    for queries, keys in zip(geometry.queries.places.numpy(), geometry.places.numpy(), strict=True):
        seen[np.ix_(queries[queries >= 0], keys[keys >= 0])] = True
    return seen


def _layer(model: Model, asked: str | None) -> str:
    """The layer to read: the last in which patches ask, else the last of channels."""
    if not has_attention(model):
        raise InputError(reason_without(model))
    kinds = attention_layers(model)
    if asked is not None and asked not in kinds:
        raise InputError(f"it has no layer {asked}")
    if asked is not None and kinds[asked] in ONE:
        raise InputError(f"the only query of layer {asked} is {ONE[kinds[asked]]}: no patch asks")
    patches = [name for name, kind in kinds.items() if kind not in (*ONE, "channel")]
    left = patches or [name for name, kind in kinds.items() if kind == "channel"]
    if asked is None and not left:
        raise InputError("; ".join(f"the only query of layer {name} is {ONE[kind]}" for name, kind in kinds.items()))
    return asked or left[-1]


def _rows(layer: Captured, geometry: Geometry) -> tuple[Tensor, str]:
    """Weights (image, query, key), mean over heads, and in words what they are."""
    at = f"mean over heads, at layer {layer.name}"
    if layer.kind == "channel":
        rows = channel_rows(layer.weights, layer.values, geometry)
        return rows, f"derived from attention between channels: those that stand out at the query, {at}"
    at = f"derived from its {DERIVED[layer.kind]}, {at}" if layer.kind in DERIVED else at
    at = f"each row divided by its sum, {at}" if layer.kind in UNEVEN else at
    rows = query_rows(layer.weights.abs() if layer.kind in SIGNED else layer.weights, geometry)
    rows = rows / rows.sum(-1, keepdim=True).clamp_min(1e-30) if layer.kind in UNEVEN else rows
    if layer.kind in SIGNED:
        return rows, f"attention (absolute: {SIGNED[layer.kind]}), {at}"
    return rows, f"{_reach(layer, geometry)}{_pooled(geometry)}, {at}"


def _reach(layer: Captured, geometry: Geometry) -> str:
    """What the weights are, and beyond which places no query sees."""
    within = ", among the positions of {} window or grid" if geometry.groups > 1 else ""
    words = {
        "unfold": "attention, each position to those of the same place in other patches",
        "halo": "attention, among the positions of its block and a halo around it",
        "outlook": "attention, added up over the windows that the position is in",
        "global-query": "attention of a query of the whole image, the same in every window" + within.format("a"),
        "context": "context scores, the same for all queries of a place in its patch",
    }
    return words.get(layer.kind, "attention" + within.format("its"))


def _pooled(geometry: Geometry) -> str:
    """In words that queries and keys stand on grids of their own, where they do."""
    if geometry.one_grid:
        return ""
    (down, across), (rows, columns) = geometry.queries.size, geometry.size
    return f", of {down} × {across} queries to {rows} × {columns} keys"
