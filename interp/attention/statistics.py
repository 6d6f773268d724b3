"""Numbers of attention: how far it reaches, how spread it is, how heads differ, how it changes. Pure functions of weights.

weights (n·groups, heads, queries, keys) as `capture` records them. Rows that can be negative, as of talking heads, enter by their
absolute value divided by their sum; softmax rows are left as they are. Where windows overlap, a position asks in several: it
counts by the mean over these. Padding that a layer attends to is a key like others. Rows of zeros, which linear attention has
where no key meets a query, have no distance and no entropy: means leave them out, and are NaN where there is no other.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from interp.attention.geometry import Geometry, Grid
from interp.attention.maps import grouped
from interp.types import InputError, Maps, Masks

SOME = 2**22  # weights of one layer and image that measures of pairs, of heads or of passes, go through


def _rows(weights: Tensor) -> Tensor:
    positive = weights.abs()
    return positive / positive.sum(-1, keepdim=True).clamp_min(1e-12)


def _over_queries(values: Tensor, geometry: Geometry | None, live: Tensor | None = None) -> Tensor:
    """Values of queries (n·groups, heads, queries) → mean over the queries of an image that are no padding, (n, heads).

    live: which of them to take, likewise, where not all.
    """
    if live is not None:
        part = _over_queries(live.to(values), geometry)
        return torch.where(part > 0, _over_queries(values * live, geometry) / part, math.nan)
    if geometry is None:
        return values.mean(-1)
    split = values.unflatten(0, (-1, geometry.groups))  # (n, groups, heads, queries)
    asking = geometry.queries
    share = asking.share.to(values)
    if split.shape[-1] == 1:  # one row of scores for all queries of its group, or a class token
        share = share.sum(1)[:, None, None]
    else:
        share = torch.cat([share.new_ones(asking.groups, asking.prefix), share], 1)[:, None]
    return (split * share).sum((1, 3)) / share.expand(-1, 1, split.shape[-1]).sum()


def distance(weights: Tensor, geometry: Geometry, image: Grid) -> Tensor:
    """Mean attention distance in pixels, (n, heads): Σ_k A[q, k]·‖p_q − p_k‖ over patch keys, mean over patch queries.

    Dosovitskiy et al., arXiv 2010.11929, appendix D.7. Rows without the prefix tokens are divided by their sum. image: rows and
    columns of the image in pixels; p are the centres of positions, also where keys are pooled to larger ones. Rows without weight
    on patches are left out; NaN where the only query has no place, as of class attention. Limit: attention of every position to
    itself gives 0.
    """
    rows = grouped(_rows(weights), geometry)
    if rows.shape[-2] == 1 and geometry.placeless:
        return weights.new_full((rows.shape[0], rows.shape[2]), math.nan)
    asking = geometry.queries
    share, real = asking.share.to(weights), (geometry.places >= 0).to(weights)
    apart = (_centres(asking, image, weights)[:, :, None] - _centres(geometry, image, weights)[:, None]).pow(2).sum(-1).sqrt()
    if rows.shape[-2] == 1:
        kept = rows[..., geometry.prefix :].expand(*rows.shape[:3], asking.places.shape[1], -1)
    else:
        kept = rows[..., asking.prefix :, geometry.prefix :]
    kept = kept if bool(real.all()) else kept * real[:, None, None]
    total = kept.sum(-1)
    reach = torch.einsum("nghqk,gqk->nghq", kept, apart) / total.clamp_min(1e-12)
    counted = share[:, None] * (total > 0)
    return (reach * counted).sum((1, 3)) / counted.sum((1, 3))  # 0 / 0 is NaN


def _centres(geometry: Geometry, image: Grid, like: Tensor) -> Tensor:
    """The middle of every token's position in pixels, (groups, tokens, 2)."""
    places, (rows, columns) = geometry.places.to(like.device), geometry.size
    height, width = geometry.extent or image
    pixel = like.new_tensor([height / rows, width / columns])
    return (torch.stack([places // columns, places % columns], -1) + 0.5) * pixel


def entropy(weights: Tensor, geometry: Geometry | None = None) -> Tensor:
    """Entropy of the rows as a share of the largest there can be, ln keys: (n, heads), 1 for uniform attention, 0 for one key."""
    rows = _rows(weights)
    bits = -torch.special.xlogy(rows, rows).sum(-1) / math.log(max(rows.shape[-1], 2))
    return _over_queries(bits, geometry, rows.sum(-1) > 0)


def divergence(a: Tensor, b: Tensor, geometry: Geometry | None = None) -> Tensor:
    """Jensen–Shannon divergence between the rows of two tensors of weights, in bits, 0 to 1: (n, heads)."""
    if a.shape != b.shape:
        raise InputError(f"attention weights have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected the same layer twice")
    return _over_queries(_jensen_shannon(_rows(a), _rows(b)), geometry)


def diversity(weights: Tensor, geometry: Geometry | None = None) -> Tensor:
    """How much heads differ: Jensen–Shannon divergence between the rows of two heads, mean over all pairs, in bits: (n,).

    0 where all heads attend alike, 1 where no two share a key; NaN for a single head.
    """
    heads = weights.shape[1]
    if heads == 1:
        return _over_queries(weights[..., 0], geometry)[:, 0] * math.nan
    rows = _rows(weights)
    apart = [_over_queries(_jensen_shannon(rows[:, k : k + 1], rows[:, k + 1 :]), geometry) for k in range(heads - 1)]
    return torch.cat(apart, 1).mean(1)


def thinned(weights: Tensor, geometry: Geometry | None, *, most: int = SOME) -> tuple[Tensor, Geometry | None]:
    """The weights of so few queries that at most about `most` numbers of an image are left, and their geometry.

    Every k-th query of a group with the least k that does, and that has no factor in common with the columns of their grid, so
    that all columns take part; prefix tokens stay. Limit: weights of at most `most` numbers stay as they are.
    """
    groups = 1 if geometry is None else geometry.groups
    step = -(-weights[:groups].numel() // most)
    if step <= 1 or weights.shape[-2] == 1:
        return weights, geometry
    if geometry is None:
        return weights[..., ::step, :], None
    asking = geometry.queries
    while math.gcd(step, asking.size[1]) > 1:
        step += 1
    prefix, places = asking.prefix, asking.places[:, ::step]
    kept = torch.cat([weights[..., :prefix, :], weights[..., prefix::step, :]], -2)
    return kept, replace(geometry, asking=replace(asking, places=places))


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    middle = (p + q) / 2
    nats = torch.special.xlogy(p, p / middle.clamp_min(1e-30)) + torch.special.xlogy(q, q / middle.clamp_min(1e-30))
    return (nats.sum(-1) / (2 * math.log(2))).clamp(0, 1)


def focus(maps: Maps, masks: Masks) -> Tensor:
    """Share of each map inside the object mask, (n,) in [0, 1]; a uniform map scores the mask's share of the area.

    Relevance mass accuracy (Arras et al., arXiv 2003.07258, eq. 1). Raises InputError where a mask is empty, a map negative, or
    its sum 0.
    """
    if maps.shape != masks.shape:
        raise InputError(f"maps have shape {tuple(maps.shape)} and masks {tuple(masks.shape)}; expected the same (n, h, w)")
    if not masks.flatten(1).any(1).all() or (maps < 0).any() or not (maps.flatten(1).sum(1) > 0).all():
        raise InputError("focus needs maps ≥ 0 of a sum above 0 and masks that are not empty")
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2))
