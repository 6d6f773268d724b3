"""One map per image of what a model looks at, by any of the methods below; each says in words how it was read.

auto         the model's own attention (raw) where it has any on the image; else, and for a query that only a class token could
             answer, the attention between channels (channels) where it has that; else Grad-CAM
raw          weights of one layer, the last on the image by default: the class token's row where the head reads it, that of the
             one query of an attention pool (a learnt latent or the mean of the patches), else the attention received, the mean
             over queries; with a query, that position's row in the last layer in which patches ask
channels     derived from attention between channels (XCA), which has no place in the image: the energy of the value channels that
             channels attend to, the mean over channels; with a query, of the channel of each head that stands out there
weighted     the same as raw of E_h[(∇A ⊙ A)⁺], the part of the weights that speaks for the class (arXiv 2103.15679, eq. 5)
rollout      attention roll-out over the last stage (arXiv 2005.00928)
chefer       relevance by gradient × attention over the last stage (arXiv 2103.15679, eq. 5 and 6); without a class token the
             sum over queries of R − I, whose gradients already say which queries matter
gradcam, gradcam++, layercam, scorecam    class activation maps (see cam.py)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.attention.cam import cam, check_targets
from interp.attention.capture import Captured, by_pieces, capture
from interp.attention.geometry import Geometry, Grid
from interp.attention.layout import (
    DERIVED,
    LAYOUTS,
    ONE,
    SIGNED,
    attention_layers,
    has_attention,
    map_layer,
    reason_without,
    unchained,
    unread,
)
from interp.attention.maps import channel_readout, channel_rows, class_map, enlarge, query_map, received_map
from interp.attention.rollout import gradient_weighted, last_stage, reduce_heads, relevance, rollout
from interp.result import READINGS
from interp.types import Images, InputError, Labels, Maps

if TYPE_CHECKING:
    from interp.models.model import Model

CAMS = ("gradcam", "gradcam++", "layercam", "scorecam")
Query = tuple[int, int]  # a pixel of the image, (y, x)


@dataclass(frozen=True, eq=False)
class Reading:
    """Maps (n, h, w) ≥ 0 at the resolution of the layer, on its own scale, and in words how they were read off the model.

    extent: rows and columns of pixels that the maps cover, where padded patches go beyond the image. Class activation maps are
    stretched over the image, as their papers do.
    """

    maps: Maps
    how: str
    extent: Grid | None = None

    def on_image(self, size: Grid) -> Maps:
        """The maps bilinearly at the size of the image, (n, *size)."""
        return enlarge(self.maps.to(torch.promote_types(self.maps.dtype, torch.float32)), size, extent=self.extent)


@dataclass(frozen=True)
class How:
    """Choices that methods read: layer (a name; the family's by default), head ("mean", "max", "min" or a number), query (a
    pixel (y, x)), residual (share of the skip connection in a roll-out)."""

    layer: str | None = None
    head: str | int = "mean"
    query: Query | None = None
    residual: float = 0.5


def check_query(query: Query | None, images: Images) -> None:
    """Raise InputError where a query is outside the images."""
    height, width = images.shape[-2:]
    if query is not None and not (0 <= query[0] < height and 0 <= query[1] < width):
        raise InputError(f"query is the pixel (y, x) = {query}; expected one of the images' {height} × {width} pixels")


def spatial_layers(model: Model) -> list[str]:
    """Names of the attention layers that can be drawn on the image, in order: all but channel attention."""
    return [name for name, kind in attention_layers(model).items() if kind != "channel"]


def _default(model: Model, query: Query | None) -> str:
    """The last layer on the image; with a query, the last in which patches ask, where there is one.

    Raises InputError where all attention is between channels.
    """
    drawn, kinds = spatial_layers(model), attention_layers(model)
    if not drawn:
        raise InputError("its attention is between channels and cannot be drawn on the image; take channels, derived from it")
    asking = [name for name in drawn if kinds[name] not in ONE] if query is not None else []
    return (asking or drawn)[-1]


def head_maps(layer: Captured, *, query: Query | None = None, image: tuple[int, int] = (0, 0)) -> tuple[Tensor, str]:
    """The maps of every head of one captured layer, (n, heads, rows, columns), and in words which reading they are.

    query: a pixel of an image of the given size. Weights that can be negative enter by their absolute value, before any mean.
    Raises InputError for channel attention, which has no place in the image.
    """
    positive = replace(layer, weights=layer.weights.abs()) if layer.kind in SIGNED else layer
    maps, words = _unbounded(positive, query, image)
    return maps, f"{words}{_bounds(layer)}"


_BOUNDS = {
    "window": "only within its window or grid",
    "halo": "only of its block and a halo around it",
    "outlook": "only within windows, added up where these overlap",
}


_ASKED = {
    "unfold": ", only to the same place in other patches",
    "context": ", whose scores are those of all queries of its place in a patch",
}


def _bounds(layer: Captured) -> str:
    """In words, beyond which places no query of a layer sees, and what is special about its queries."""
    cut = layer.kind in (*_BOUNDS, "global-query", "pooled") and layer.geometry is not None and layer.geometry.groups > 1
    words = f", {_BOUNDS.get(layer.kind, _BOUNDS['window'])}" if cut else ""
    words += f", derived from its {DERIVED[layer.kind]}" if layer.kind in DERIVED else ""
    return words + (", by queries of the whole image, the same in every window" if layer.kind == "global-query" else "")


def _unbounded(layer: Captured, query: Query | None, image: tuple[int, int]) -> tuple[Tensor, str]:
    """The maps of every head and which reading they are, not yet how far a query sees."""
    if layer.geometry is None or layer.kind == "channel":
        raise InputError(f"layer {layer.name} is {layer.kind} attention and cannot be drawn on the image; choose another layer")
    if query is not None:
        _check_asked(layer)
        y, x = layer.geometry.at(*query, image)
        words = f"attention of {_patch(layer.geometry, y, x)}"
        keys = "" if layer.geometry.one_grid else f" to keys on {_times(layer.geometry.size)}"
        return query_map(layer.weights, layer.geometry, y=y, x=x), f"{words}{keys}{_ASKED.get(layer.kind, '')}"
    if layer.kind == "latent":
        return received_map(layer.weights, layer.geometry), f"attention from {ONE['latent']} to the patches"
    if layer.geometry.class_token:
        return class_map(layer.weights, layer.geometry), f"attention from {ONE.get(layer.kind, ONE['class'])} to the patches"
    if layer.kind == "context":
        return received_map(layer.weights, layer.geometry), "context scores, one for each position"
    return received_map(layer.weights, layer.geometry), "attention received, mean over queries"


def _patch(geometry: Geometry, y: int, x: int) -> str:
    """In words, a position of the queries' grid."""
    return f"the patch in row {y + 1}, column {x + 1} of {_times(geometry.queries.size)}"


def _asked(query: Query | None, layer: Captured, x: Images) -> str:
    """In words, whose row is read, "" without a query."""
    return f", from {_patch(_geometry(layer), *_geometry(layer).at(*query, (x.shape[-2], x.shape[-1])))}" if query else ""


def _logit(targets: Labels | None) -> str:
    return "the predicted class's logit" if targets is None else "the target's logit"


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _of_heads(head: str | int) -> str:
    return f"head {head}" if isinstance(head, int) else f"{head} over heads"


def _raw(model: Model, x: Images, _targets: Labels | None, how: How) -> Reading:
    name = how.layer or _default(model, how.query)
    with torch.no_grad(), capture(model, layers=[name]) as recorder:
        model(x)
    maps, words = head_maps(recorder.layers[0], query=how.query, image=(x.shape[-2], x.shape[-1]))
    words = f"{words}{_signed(recorder.layers)}, {_of_heads(how.head)}, at layer {name}"
    return Reading(reduce_heads(maps, how.head), words, recorder.layers[0].extent)


def _signed(layers: Sequence[Captured]) -> str:
    """In words why weights are read by their absolute value, "" where none can be negative."""
    why = dict.fromkeys(SIGNED[layer.kind] for layer in layers if layer.kind in SIGNED)
    return f" (absolute: {'; '.join(why)})" if why else ""


def _check_asked(layer: Captured) -> None:
    """Raise InputError where a query is asked of a layer in which no position asks."""
    if layer.kind in ONE:
        instead = ", or where the model attends between channels (XCiT) take channels" if layer.kind == "class" else ""
        raise InputError(
            f"the only query of layer {layer.name} is {ONE[layer.kind]}: no other position asks. Leave the query out{instead}"
        )


def _channels(model: Model, x: Images, _targets: Labels | None, how: How) -> Reading:
    named = [name for name, kind in attention_layers(model).items() if kind == "channel"]
    if not named or (how.layer is not None and how.layer not in named):
        raise InputError("it has no attention between channels there" if named else "it has no attention between channels")
    name = how.layer or named[-1]
    with torch.no_grad(), capture(model, layers=[name]) as recorder:
        model(x)
    layer = recorder.layers[0]
    geometry = _geometry(layer)
    if how.query is None:
        maps = reduce_heads(channel_readout(layer.weights, layer.values, geometry), how.head)
        words = f"derived: energy of the channels attended to, {_of_heads(how.head)}, at layer {name}"
        return Reading(maps, words, geometry.extent)
    if how.head != "mean":
        raise InputError("the reading of a query from channel attention is the mean over heads")
    y, column = geometry.at(*how.query, (x.shape[-2], x.shape[-1]))
    rows = channel_rows(layer.weights, layer.values, geometry)[:, y * geometry.size[1] + column]
    words = f"derived: energy of the channels that those standing out at the query attend to, mean over heads, at layer {name}"
    return Reading(rows.unflatten(1, geometry.size), words, geometry.extent)


def _with_gradient(model: Model, x: Images, targets: Labels | None, layers: list[str] | None) -> tuple[list[Captured], Tensor]:
    """The captured layers of one pass and the sum of the targets' logits, in one graph."""
    with torch.enable_grad(), capture(model, layers=layers, gradients=True) as recorder:
        logits = model(x.detach().clone().requires_grad_(True))
        chosen = logits.argmax(1) if targets is None else targets.to(logits.device)
        check_targets(chosen, len(x), logits.shape[-1])
        score = logits.gather(1, chosen[:, None]).sum()
    return recorder.layers, score


def _weighted(model: Model, x: Images, targets: Labels | None, how: How) -> Reading:
    name = how.layer or _default(model, how.query)
    layers, score = _with_gradient(model, x, targets, [name])
    if layers[0].kind in ("channel", "context"):
        raise InputError(f"layer {name} is {layers[0].kind} attention: it has no weights of tokens on tokens")
    geometry, matrix = _geometry(layers[0]), gradient_weighted(layers, score, head=how.head)[0]
    _check_asking(matrix[:, geometry.queries.prefix :], layers[0], how.query, "an earlier layer")
    reduced = replace(layers[0], weights=matrix[:, None])
    maps = _unbounded(reduced, how.query, (x.shape[-2], x.shape[-1]))[0][:, 0]
    if how.query is None and not geometry.placeless:
        maps = maps * geometry.queries.positions  # the sum over queries, whose gradients already say which matter
    words = f"(∇A ⊙ A)⁺ of {_logit(targets)}{_asked(how.query, layers[0], x)}{_bounds(layers[0])}, {_of_heads(how.head)}"
    return Reading(maps, f"{words}, at layer {name}", geometry.extent)


def _rollout(model: Model, x: Images, _targets: Labels | None, how: How) -> Reading:
    with torch.no_grad(), capture(model, layers=_chained(model)) as recorder:
        model(x)
    layers = last_stage(recorder.layers)
    flow = rollout(layers, head=how.head, residual=how.residual)
    words = f"roll-out{_asked(how.query, layers[-1], x)}{_signed(layers)}, residual {how.residual:g}"
    words += f", {_of_heads(how.head)}, {_over(layers, recorder.layers)}"
    return Reading(_read_out(flow, layers[-1], how.query, x, mean=True), words, layers[-1].extent)


def _chefer(model: Model, x: Images, targets: Labels | None, how: How) -> Reading:
    captured, score = _with_gradient(model, x, targets, _chained(model))
    layers = last_stage(captured)
    found = relevance(layers, gradient_weighted(layers, score, head=how.head))
    _check_asking(found[:, found.shape[-1] - _geometry(layers[-1]).positions :], layers[-1], how.query, "rollout")
    words = f"relevance by gradient × attention for {_logit(targets)}{_asked(how.query, layers[-1], x)}"
    words += f", {_of_heads(how.head)}, {_over(layers, captured)}"
    return Reading(_read_out(found, layers[-1], how.query, x), words, layers[-1].extent)


def _chained(model: Model) -> list[str]:
    """Layers that weigh tokens by tokens; raises InputError with the reason where roll-out is undefined."""
    if reason := unchained(model):
        raise InputError(f"its layers cannot be multiplied with one another: {reason}")
    names = [name for name, kind in attention_layers(model).items() if kind not in ("channel", "context")]
    if not names:
        kinds = ", ".join(dict.fromkeys(attention_layers(model).values()))
        raise InputError(f"its attention ({kinds}) has no weights of tokens on tokens that layers could be chained by")
    return names


def _over(layers: list[Captured], of: list[Captured]) -> str:
    rest = "all blocks" if len(layers) == len(of) else "one resolution"
    one = {
        "class": "class attention",
        "mean": "its attention pool",
        "unfold": "one block",
        "window": "one resolution",
        "global-query": "one resolution",
    }
    only = one.get(layers[0].kind, rest)
    return f"over {len(layers)} layer{'s' * (len(layers) > 1)} ({only}): {layers[0].name} to {layers[-1].name}"


def _geometry(layer: Captured) -> Geometry:
    if layer.geometry is None:
        raise InputError(f"layer {layer.name} has tokens of no known grid")
    return layer.geometry


def _check_asking(rows: Tensor, last: Captured, query: Query | None, instead: str) -> None:
    """Raise InputError where a query was given and no row of any patch takes part in the logit."""
    if query is not None and last.kind not in ONE and not rows.any():
        reads = "behind it the head reads the class token alone, so that " if _geometry(last).class_token else ""
        raise InputError(
            f"{reads}no row of a patch at layer {last.name} takes part in the target's logit; leave the query out, or "
            f"take raw or {instead}"
        )


def _read_out(matrix: Tensor, last: Captured, query: Query | None, x: Images, *, mean: bool = False) -> Maps:
    """The row of the class token, of a query, or the sum (mean) over positions of a matrix over all tokens, on the grid."""
    geometry = _geometry(last)
    prefix = matrix.shape[-1] - geometry.positions
    if query is not None:
        _check_asked(last)
        y, column = geometry.at(*query, (x.shape[-2], x.shape[-1]))
        row = matrix[:, prefix + y * geometry.size[1] + column, prefix:]
    elif geometry.placeless:
        row = matrix[:, 0, prefix:]
    else:
        rows = matrix[:, prefix:, prefix:]
        row = rows.mean(1) if mean else rows.sum(1)
    return row.unflatten(1, geometry.size).detach()


def _cam(model: Model, x: Images, targets: Labels | None, how: How, *, method: str) -> Reading:
    if how.query is not None:
        raise InputError("a class activation map has no queries")
    named = how.layer if how.layer is not None and how.layer not in _attention_or_none(model) else None
    maps = cam(model, x, model.read(x).argmax(1) if targets is None else targets, method=method, layer=named)
    return Reading(maps, f"{READINGS[method]} of {_logit(targets)} at layer {named or map_layer(model)}")


def _attention_or_none(model: Model) -> list[str]:
    return list(attention_layers(model)) if has_attention(model) else []


def _auto(model: Model, x: Images, targets: Labels | None, how: How) -> Reading:
    if has_attention(model):
        kinds = set(attention_layers(model).values())
        unasked = how.query is not None and how.layer is None and kinds == {"class", "channel"}
        return (_channels if unasked or kinds == {"channel"} else _raw)(model, x, targets, how)
    return _cam(model, x, targets, how, method="gradcam")


Method = Callable[["Model", Images, Labels | None, How], Reading]
METHODS: dict[str, Method] = {
    "auto": _auto,
    "raw": _raw,
    "channels": _channels,
    "weighted": _weighted,
    "rollout": _rollout,
    "chefer": _chefer,
    **{name: partial(_cam, method=name) for name in CAMS},
}


def read(model: Model, x: Images, targets: Labels | None = None, *, method: str = "auto", how: How = How()) -> Reading:
    """What the model looks at in each image (n, 3, h, w): maps at the layer's resolution, ≥ 0, not normalised.

    targets (n,): the class that methods with gradients explain; by default the predicted one. Every image is read on its own.
    Raises InputError, with the reason, where the method does not apply to the model.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; expected {', '.join(METHODS)}")
    if method not in ("auto", *CAMS) and not has_attention(model):
        layer = "" if model.family in LAYOUTS else " and name its layer"
        raise InputError(f"{reason_without(model)}; take a class activation map (Grad-CAM){layer}")

    def run(piece: slice) -> Reading:
        return METHODS[method](model, x[piece], None if targets is None else targets[piece], how)

    parts = by_pieces(run, len(x), max(len(x), 1))
    reading = replace(parts[0], maps=torch.cat([part.maps for part in parts]))
    left = unread(model) if method not in CAMS and has_attention(model) else ""
    return replace(reading, how=f"{reading.how}; not captured: {left}") if left else reading
