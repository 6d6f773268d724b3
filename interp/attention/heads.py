"""Every head of one model: what each looks at in the image, and for channel attention the matrices of channels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr

from interp.attention.attend import as_names, check_fields
from interp.attention.capture import Captured, by_pieces, capture
from interp.attention.layout import SIGNED, attention_layers
from interp.attention.maps import enlarge
from interp.attention.readings import Query, check_query, head_maps
from interp.models.model import Model, check_some, model_coords
from interp.result import Result, described
from interp.types import Batch, InputError, pixels


@dataclass(frozen=True)
class Heads:
    """layers: names to show, or one, all by default. query: a pixel (y, x) whose attention is shown. chunk: images per pass."""

    layers: tuple[str, ...] = ()
    query: Query | None = None
    chunk: int = field(default=16, metadata={"cost": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", as_names(self.layers))
        check_fields(self)


WORDS = {
    "head": ("what a head looks at ÷ its mean over the image", "× mean"),
    "kind": ("kind of attention of the layer", ""),
    "how": ("how its heads were read, or why not", ""),
    "channels": ("weight of a channel (column) for a channel (row)", "share of its row"),
}


def attention_heads(models: Sequence[Model], batch: Batch, params: Heads = Heads()) -> Result:
    """Read every head of every layer of one model.

    head (layer, head, image, y, x): maps at image size divided by their own mean, NaN where a layer has fewer heads or cannot
    answer the query; kind, how (layer): what the layer is and how it was read. channels (channel_layer, head, image, row,
    column): weights of attention between channels, which has no place in the image, where the model has it. Raises InputError
    for more than one model, for one without attention, and for unknown layers.
    """
    started = time.perf_counter()
    check_some(models)
    if len(models) != 1:
        raise InputError(f"{len(models)} models were given; heads are shown of one model at a time")
    model = models[0]
    model.check_images(batch.images.shape)
    check_query(params.query, batch.images)
    kinds = attention_layers(model)
    chosen = list(params.layers or kinds)
    parts = by_pieces(lambda piece: _read(model, batch[piece], chosen, params.query), len(batch), params.chunk)
    blocks = {name: np.concatenate([part[name][0] for part in parts]) for name in kinds if name in chosen}
    most = max(block.shape[1] for block in blocks.values())
    drawn, matrices = ([n for n in blocks if (kinds[n] == "channel") == between] for between in (False, True))
    data = xr.Dataset(
        {"original": (("image", "y", "x", "channel"), pixels(batch.images)), "truth": ("image", batch.labels.numpy())},
        coords=model_coords(models) | {"image": list(batch.ids)},
    )
    if drawn:
        maps = _stacked([blocks[name] for name in drawn], most)
        data["head"] = (("layer", "head", "image", "y", "x"), maps)
        data["kind"] = ("layer", [str(kinds[name]) for name in drawn])
        data["how"] = ("layer", [parts[0][name][1] for name in drawn])
        data = data.assign_coords(layer=drawn)
    if matrices:
        weights = _stacked([blocks[name] for name in matrices], most)
        data["channels"] = (("channel_layer", "head", "image", "row", "column"), weights)
        data = data.assign_coords(channel_layer=matrices)
    data = described(data, WORDS)
    if params.query is not None:
        data.attrs["query"] = f"{params.query[0]},{params.query[1]}"
    title = f"Heads of {model.card.id}"
    return Result.of("attention_heads", title, data, params=params, models=models, batch=batch, started=started)


def _read(model: Model, part: Batch, layers: list[str], query: Query | None) -> dict[str, tuple[np.ndarray, str]]:
    """By layer, maps or matrices (image, head, …) and how they were read."""
    size = (int(part.images.shape[2]), int(part.images.shape[3]))
    found: dict[str, tuple[np.ndarray, str]] = {}

    def consume(layer: Captured) -> None:
        if layer.kind == "channel":
            found[layer.name] = (layer.weights.cpu().numpy(), "")
            return
        try:
            maps, words = head_maps(layer, query=query, image=size)
        except InputError as reason:
            found[layer.name] = (np.full((len(part), layer.weights.shape[1], *size), np.nan, np.float32), f"not read: {reason}")
            return
        large = enlarge(maps, size, extent=layer.extent)
        relative = large / large.mean((2, 3), keepdim=True).clamp_min(1e-12)
        signed = " (absolute)" if layer.kind in SIGNED else ""
        found[layer.name] = (relative.cpu().numpy(), words + signed)

    with torch.no_grad(), capture(model, layers=layers, consume=consume):
        model(part.images.to(model.mean))
    return found


def _stacked(blocks: list[np.ndarray], heads: int) -> np.ndarray:
    """Blocks (image, head, a, b) of different sizes as one (layer, head, image, a, b), padded with NaN."""
    sides = [max(block.shape[axis] for block in blocks) for axis in (2, 3)]
    out = np.full((len(blocks), heads, len(blocks[0]), *sides), np.nan, np.float32)
    for into, block in zip(out, blocks, strict=True):
        into[: block.shape[1], :, : block.shape[2], : block.shape[3]] = block.swapaxes(0, 1)
    return out
