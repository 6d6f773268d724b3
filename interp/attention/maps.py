"""From attention weights and their geometry to maps on the grid: pure functions of tensors.

weights are (n·groups, heads, queries, keys), keys = geometry.prefix + tokens of a group, as `capture` records them. A softmax row
sums to 1 over the keys; maps leave the prefix tokens out, so they sum to 1 minus the share of these. Maps lie on the grid of the
keys; where keys are pooled this is coarser than that of the queries, and a position's map is the same cells enlarged. Where
windows overlap, what a position gets or gives in each of them is added up, as these layers add it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.attention.geometry import Geometry, Grid
from interp.types import InputError


def grouped(weights: Tensor, geometry: Geometry) -> Tensor:
    """Weights as (n, groups, heads, queries, keys); raises InputError where they do not fit the geometry."""
    if weights.ndim != 4 or not geometry.fits(weights, len(weights) // geometry.groups):
        keys, asking = geometry.prefix + geometry.places.shape[1], geometry.queries
        queries = asking.prefix + asking.places.shape[1]
        raise InputError(
            f"attention weights have shape {tuple(weights.shape)}; expected (n·{geometry.groups}, heads, 1 or {queries}, {keys}) "
            f"for a grid of {geometry.size} with {geometry.prefix} prefix tokens. Cross-covariance (channel) weights have no "
            "place in the image: see channel_readout"
        )
    return weights.unflatten(0, (-1, geometry.groups))


def place(rows: Tensor, geometry: Geometry) -> Tensor:
    """Values of tokens (n, groups, heads, tokens) on the grid, (n, heads, rows, columns), summed where several share a place."""
    n, _, heads, _ = rows.shape
    places = geometry.places.to(rows.device).flatten()
    out = rows.new_zeros(n, heads, geometry.positions)
    out.index_add_(2, places[places >= 0], rows.transpose(1, 2).flatten(2)[..., places >= 0])
    return out.unflatten(2, geometry.size)


def class_map(weights: Tensor, geometry: Geometry) -> Tensor:
    """Where the class token looks, (n, heads, rows, columns): its row, the first, without the prefix tokens.

    Raises InputError where no token comes before the patches.
    """
    if not geometry.prefix:
        raise InputError("this layer has no class token: its tokens are the positions of the grid; use received_map or query_map")
    return place(grouped(weights, geometry)[..., 0, geometry.prefix :], geometry)


def received_map(weights: Tensor, geometry: Geometry) -> Tensor:
    """Attention received by each position, the mean over all positions as queries: (n, heads, rows, columns).

    Uniform attention without prefix tokens gives 1/positions everywhere. Where there is one row of scores per group (MobileViT
    v2), that row stands for all queries of its group; that of a learnt latent is the map.
    """
    rows, queries = grouped(weights, geometry), geometry.queries
    real = (queries.places >= 0).to(rows)  # (groups, tokens)
    if rows.shape[-2] == 1:
        received = rows[..., 0, geometry.prefix :] * real.sum(1)[:, None, None]
    else:
        received = (rows[..., queries.prefix :, geometry.prefix :] * real[:, None, :, None]).sum(3)
    return place(received / queries.positions, geometry)


def query_map(weights: Tensor, geometry: Geometry, *, y: int, x: int) -> Tensor:
    """Where position (y, x) of the queries' grid looks, (n, heads, rows, columns): zero outside the query's own group.

    Raises InputError where the position is outside, or the only query has no place: a class token, a learnt latent or the mean
    of the patches.
    """
    queries = geometry.queries
    if not (0 <= y < queries.size[0] and 0 <= x < queries.size[1]):
        raise InputError(
            f"query ({y}, {x}) is outside the grid; expected 0 ≤ y < {queries.size[0]} and 0 ≤ x < {queries.size[1]}"
        )
    rows = grouped(weights, geometry)
    if rows.shape[-2] == 1 and geometry.placeless:
        one = "a learnt latent" if geometry.latent else "the class token, or the mean of the patches"
        raise InputError(f"the only query of this layer is {one}: no other position asks (XCiT: see channels)")
    only = torch.zeros_like(rows[..., 0, geometry.prefix :])
    for group, token in (queries.places == y * queries.size[1] + x).nonzero().tolist():
        only[:, group] = rows[:, group, :, 0 if rows.shape[-2] == 1 else queries.prefix + token, geometry.prefix :]
    return place(only, geometry)


def query_rows(weights: Tensor, geometry: Geometry) -> Tensor:
    """Where every position looks, (n, positions that ask, positions), mean over heads.

    Row y·columns + x, of the grid of the queries, is `query_map` of that position: over the grid of the keys, row by row. Raises
    InputError where the only query has no place: a class token or a learnt latent.
    """
    rows, asking = grouped(weights, geometry), geometry.queries
    if rows.shape[-2] == 1 and geometry.placeless:
        raise InputError("the only query of this layer has no place: no position asks (XCiT: see channels)")
    mean = rows[..., 0 if rows.shape[-2] == 1 else asking.prefix :, geometry.prefix :].mean(2)
    queries, keys = (
        torch.where(g.places >= 0, g.places, g.positions).to(mean.device) for g in (asking, geometry)
    )  # padding goes to a row and column that are cut off
    return _laid(mean, queries, keys, (asking.positions + 1, geometry.positions + 1))[:, :-1, :-1]


def dense(weights: Tensor, geometry: Geometry) -> Tensor:
    """Head-reduced weights (n·groups, queries, keys) as one matrix over all tokens, (n, T, T), T = prefix + positions.

    Zero between groups. One row of scores per group stands for all queries of its group; one of a class token for itself. A
    learnt latent comes first, as one token more, which nothing attends to. Raises InputError where queries and keys stand on
    different grids: there is no square matrix then.
    """
    if not geometry.one_grid:
        raise InputError(
            f"its queries stand on a grid of {geometry.queries.size}, its keys on one of {geometry.size}: it has no weights "
            "of tokens on the same tokens. Take raw or weighted, which draw the grid of the keys, or a layer behind it"
        )
    rows = grouped(weights[:, None], geometry)[:, :, 0]
    ahead = int(geometry.latent)
    tokens = ahead + geometry.prefix + geometry.positions
    keys, queries = (ahead + _tokens(g, tokens - ahead).to(weights.device) for g in (geometry, geometry.queries))
    if rows.shape[-2] == 1 and geometry.placeless:
        queries = torch.zeros_like(keys[:, :1])
    return _laid(rows, queries, keys, (tokens + 1, tokens + 1))[:, :tokens, :tokens]


def _laid(rows: Tensor, queries: Tensor, keys: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights (n, groups, queries or 1, keys) in one matrix (n, *size) at the numbers of their queries and keys, added up."""
    cells = (queries[:, :, None] * size[1] + keys[:, None, :]).flatten()
    out = rows.new_zeros(len(rows), size[0] * size[1])
    out.index_add_(1, cells, rows.expand(-1, -1, queries.shape[1], -1).flatten(1))
    return out.unflatten(1, size)


def _tokens(geometry: Geometry, padding: int) -> Tensor:
    """Which of all tokens those of each group are, (groups, prefix + tokens); padding is one behind them."""
    patches = torch.where(geometry.places >= 0, geometry.places + geometry.prefix, padding)
    return torch.cat([torch.arange(geometry.prefix).expand(geometry.groups, -1), patches], 1)


def channel_readout(weights: Tensor, values: Tensor, geometry: Geometry, *, channel: int | None = None) -> Tensor:
    """Where the channels stand that one channel of each head attends to: a derived reading, not a weight of the model.

    weights (n, heads, c, c) and values (n, heads, c, tokens) of cross-covariance attention (XCA, arXiv 2106.09681, eq. 2).
    Σ_j A[channel, j]·v_j(t)² over tokens t, each map divided by its sum: (n, heads, rows, columns). The energy of the value
    channels, weighted by the attention of the channel, or by the mean over channels where none is named; uniform weights give
    the energy of all channels.
    """
    if channel is not None and not 0 <= channel < weights.shape[-2]:
        raise InputError(f"channel is {channel}; expected 0 to {weights.shape[-2] - 1}, the channels of a head")
    row = weights.mean(-2) if channel is None else weights[:, :, channel]
    energy = (row[..., None] * values**2).sum(2)
    return place((energy / energy.sum(-1, keepdim=True).clamp_min(1e-30))[:, None], geometry)


def channel_rows(weights: Tensor, values: Tensor, geometry: Geometry) -> Tensor:
    """The same for every position, (n, positions, positions), mean over heads: what the channel that stands out there reads.

    Position t asks by the channel of each head whose value has the largest share of its energy there,
    argmax_i v_i(t)² / Σ_s v_i(s)². Derived like `channel_readout`: XCA has no weights of tokens on tokens.
    """
    energy = values**2  # (n, heads, c, tokens)
    asks = (energy / energy.sum(-1, keepdim=True).clamp_min(1e-30)).argmax(2)  # (n, heads, tokens)
    rows = weights.gather(2, asks[..., None].expand(-1, -1, -1, weights.shape[-1])) @ energy
    mean = (rows / rows.sum(-1, keepdim=True).clamp_min(1e-30)).mean(1)
    order = geometry.places[0].argsort().to(mean.device)
    return mean[:, order][:, :, order]


def enlarge(maps: Tensor, size: Grid, *, extent: Grid | None = None) -> Tensor:
    """Maps (n, h, w) or (n, heads, h, w) bilinearly at another size. Limit: a constant map stays that constant.

    extent: rows and columns of pixels that the maps cover from the upper left corner, where that is not `size`: what is beyond
    the image is cut off, and what they do not reach repeats their edge.
    """
    if maps.ndim not in (3, 4):
        raise InputError(f"maps have shape {tuple(maps.shape)}; expected (n, h, w) or (n, heads, h, w)")
    wide = maps[:, None] if maps.ndim == 3 else maps
    large = F.interpolate(wide, size=extent or size, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
    large = F.pad(large, (0, size[1] - large.shape[-1], 0, size[0] - large.shape[-2]), mode="replicate")
    return large[:, 0] if maps.ndim == 3 else large
