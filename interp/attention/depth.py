"""Attention in numbers, layer by layer: how far it reaches, how spread it is, how much heads differ, what it finds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from interp.attention.attend import check_fields
from interp.attention.capture import Captured, by_pieces, capture
from interp.attention.layout import has_attention, reason_without
from interp.attention.maps import enlarge
from interp.attention.readings import head_maps
from interp.attention.statistics import distance, diversity, entropy, focus, thinned
from interp.models.model import Model, check_some, model_coords
from interp.result import Measure, Result, described, with_interval
from interp.stats import bootstrap
from interp.types import Batch, InputError, Masks

MEASURES = (
    Measure(
        "distance",
        "mean attention distance",
        "Σ_k A[q, k]·‖p_q − p_k‖, mean over patch queries and heads",
        "arXiv 2010.11929, appendix D.7",
        "px",
        "none",
    ),
    Measure(
        "entropy",
        "entropy of attention",
        "−Σ_k A[q, k]·ln A[q, k] / ln keys, mean over queries and heads",
        "Shannon entropy, 1 for uniform attention",
        "share of its maximum",
        "none",
    ),
    Measure(
        "diversity",
        "difference of heads",
        "Jensen–Shannon divergence between the rows of two heads, mean over pairs and queries",
        "Lin 1991, doi 10.1109/18.61115",
        "bits",
        "none",
    ),
    Measure(
        "focus",
        "share inside the object",
        "share of the map, mean over heads, inside the object's mask",
        "relevance mass accuracy, arXiv 2003.07258, eq. 1",
        "share",
        "higher",
    ),
)


@dataclass(frozen=True)
class ByLayer:
    """chunk: images per forward pass; fewer where a layer whose weights are derived would have too many."""

    chunk: int = field(default=16, metadata={"cost": True})

    def __post_init__(self) -> None:
        check_fields(self)


WORDS = {
    "layer": ("name of the layer, '' behind the model's last", ""),
    "kind": ("kind of attention of the layer, '' behind the last", ""),
    "unread": ("why no layer was measured, '' where some were", ""),
    "distance_uniform": ("distance that uniform attention reaches", "px"),
    "focus_area": ("share of the image in the object's mask, what a uniform map has inside", "share"),
} | {f"values_{m.name}": (f"{m.title}, image by image", m.unit) for m in MEASURES}


def attention_by_layer(models: Sequence[Model], batch: Batch, params: ByLayer = ByLayer()) -> Result:
    """Measure every attention layer of every model, one layer's weights in memory at a time.

    Measures (model, depth), see MEASURES: means over images with 95 % bootstrap intervals, layers in the order in which they
    run, NaN behind a model's last; values_NAME (model, depth, image). distance_uniform (model, depth): what uniform attention
    on the layer's grid reaches, beside which a distance has to be seen. layer, kind (model, depth): names and kinds, '' behind
    the last; unread (model): why a model has no layers, '' where it has some. Channel attention has no distance and no focus,
    attention of one query without a place (class token, pool) no distance, one head no diversity: NaN. focus, with focus_area
    (image), the masks' share of the image, which is what a uniform map scores, only where the batch has masks; images without an
    object are left out of it. diversity of a layer of more than 2²² weights per image is that of every k-th query (see thinned).
    Raises InputError, with the reasons, where no model has attention.
    """
    started = time.perf_counter()
    check_some(models)
    for model in models:
        model.check_images(batch.images.shape)
    found = [_one(model, batch, params.chunk) for model in tqdm(models, desc="attention by layer", leave=False)]
    most = max(len(layers) for layers in found)
    if not most:
        reasons = "; ".join(f"{m.card.id}: {reason_without(m)}" for m in models)
        raise InputError(f"no model has attention whose layers could be measured: {reasons}")
    unread = ["" if layers else reason_without(model) for model, layers in zip(models, found, strict=True)]
    masked = batch.masks is not None
    values = {m.name: np.full((len(models), most, len(batch)), np.nan) for m in MEASURES if masked or m.name != "focus"}
    names, kinds = (np.full((len(models), most), "", object) for _ in range(2))
    uniform = np.full((len(models), most), np.nan)
    for m, layers in enumerate(found):
        for k, layer in enumerate(layers):
            names[m, k], kinds[m, k], uniform[m, k] = layer.name, layer.kind, layer.values["uniform"][0]
            for name, block in values.items():
                block[m, k] = layer.values[name]
    data = xr.Dataset(
        {
            "layer": (("model", "depth"), names.astype(str)),
            "kind": (("model", "depth"), kinds.astype(str)),
            "unread": ("model", unread),
        },
        coords=model_coords(models) | {"image": list(batch.ids)},
    )
    for measure in (m for m in MEASURES if m.name in values):
        block = values[measure.name]
        intervals = [bootstrap(v) for v in block.reshape(-1, len(batch))]
        attrs = {"unit": measure.unit, "better": measure.better, "n": len(batch), "long_name": measure.title}
        data = data.assign(with_interval(measure.name, ("model", "depth"), intervals, block.shape[:2], **attrs))
        data[f"values_{measure.name}"] = (("model", "depth", "image"), block.astype(np.float32))
    data["distance_uniform"] = (("model", "depth"), uniform)
    if batch.masks is not None:
        data["focus_area"] = ("image", batch.masks.float().mean((1, 2)).numpy())
    title = "Attention by layer"
    data = described(data, WORDS)
    return Result.of("attention_layers", title, data, params=params, models=models, batch=batch, started=started)


@dataclass(frozen=True)
class _Layer:
    name: str
    kind: str
    values: dict[str, np.ndarray]  # (image,) each


def _one(model: Model, batch: Batch, chunk: int) -> list[_Layer]:
    """All layers of one model, in order; none where it has no attention."""
    if not has_attention(model):
        return []
    kinds: dict[str, str] = {}

    def run(piece: slice) -> dict[str, dict[str, Tensor]]:
        part, seen = batch[piece], dict[str, dict[str, Tensor]]()

        def consume(layer: Captured) -> None:
            kinds[layer.name], seen[layer.name] = layer.kind, _numbers(layer, part)

        with torch.no_grad(), capture(model, consume=consume):
            model(part.images.to(model.mean))
        return seen

    parts = by_pieces(run, len(batch), chunk)
    return [
        _Layer(name, kinds[name], {key: torch.cat([part[name][key] for part in parts]).cpu().numpy() for key in first})
        for name, first in parts[0].items()
    ]


def _numbers(layer: Captured, part: Batch) -> dict[str, Tensor]:
    """The measures of one layer, (image,) each."""
    geometry = None if layer.kind == "channel" else layer.geometry
    size = (int(part.images.shape[2]), int(part.images.shape[3]))
    unknown = torch.full((len(part),), math.nan)
    even = torch.ones_like(layer.weights[: geometry.groups if geometry else 1, :1])  # the same for all images and heads
    return {
        "uniform": unknown if geometry is None else distance(even, geometry, size)[0].expand(len(part)),
        "distance": unknown if geometry is None else distance(layer.weights, geometry, size).nanmean(1),
        "entropy": entropy(layer.weights, geometry).nanmean(1),
        "diversity": diversity(*thinned(layer.weights, geometry)),
        "focus": unknown if geometry is None or part.masks is None else _focus(layer, part.masks, size),
    }


def _focus(layer: Captured, masks: Masks, size: tuple[int, int]) -> Tensor:
    maps = enlarge(head_maps(layer)[0].mean(1), size, extent=layer.extent).cpu()
    found, there = torch.full((len(maps),), math.nan), masks.flatten(1).any(1)
    if bool(there.any()):
        found[there] = focus(maps[there], masks[there])
    return found
