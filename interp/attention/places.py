"""Where timm's families have their tokens: one small function per way of cutting a feature map, named by the rows of layout.py.

Each is called before a module runs, with what is known then, and returns the geometry of the attention that follows. It reads
sizes that timm's modules hold or are given, and changes nothing. None where the tokens are no grid.

- whole maps, (n, c, h, w), (n, h, w, c) or tokens with a size beside them: PVT v2, Visformer, FastViT, LeViT, PiT, …
- pooled keys: PVT v2 (arXiv 2106.13797), Twins (2104.13840), MViT v2 (2112.01526), LeViT (2104.01136)
- windows: Swin (2103.14030), NesT (2105.12723), TinyViT (2207.10666), DaViT (2204.03645), SAM (2304.02643), GCViT (2206.09959)
- windows that overlap: HaloNet (2103.12731), VOLO's outlook (2106.13112)
- windows and grids, which take every k-th position: MaxViT (2204.01697); mask units: Hiera (2306.00989)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from interp.attention.geometry import Geometry, Grid, merged_extent, of_overlapping, of_patches, of_pixels, of_pooled, of_windows


@dataclass(frozen=True, eq=False)
class Told:
    """What is known before a module runs. owner: the module of the class that the row names. args: positional arguments of the
    module that runs, the owner or its child. net: the network. before: the geometry that was found last in this pass. image: rows
    and columns of what the network is given."""

    owner: Any
    args: tuple[Any, ...]
    net: Any
    before: Geometry | None
    image: Grid


Where: TypeAlias = Callable[[Told], Geometry | None]


def _pair(value: int | Sequence[int]) -> Grid:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _rows_columns(x: Tensor) -> Grid:
    """Of (n, h, w, c)."""
    return int(x.shape[1]), int(x.shape[2])


def _last_two(x: Tensor) -> Grid:
    """Of (n, c, h, w)."""
    return int(x.shape[2]), int(x.shape[3])


def _after(layer: Any, size: Grid) -> Grid:
    """The size of a map behind a convolution or a pooling; the same behind anything else."""
    if not hasattr(layer, "kernel_size"):
        return size
    kernel, stride, padding = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding)
    rows, columns = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    return rows, columns


# one group of tokens


def channels_last(t: Told) -> Geometry:
    """The module is given (n, h, w, c)."""
    return of_patches(_rows_columns(t.args[0]))


def channels_first(t: Told) -> Geometry:
    """The module is given (n, c, h, w)."""
    return of_patches(_last_two(t.args[0]))


def told(t: Told) -> Geometry:
    """The module is given tokens and their size."""
    return of_patches(_pair(t.args[1]))


def fixed(t: Told) -> Geometry:
    """LeViT: the module was built for one size."""
    return of_patches(_pair(t.owner.resolution))


def image(t: Told) -> Geometry:
    """NaFlexViT is given the image."""
    return of_patches(_pair(t.net.embeds.dynamic_feat_size(_last_two(t.args[0]))))


def image_of_patches(t: Told) -> Geometry:
    """Gemma 4 is given the image, and its patch embedding returns no size."""
    patch, size = _pair(t.owner.patch_size), _last_two(t.args[0])
    return of_patches((size[0] // patch[0], size[1] // patch[1]))


def pit(t: Told) -> Geometry:
    """PiT: a stage is given the map and the class tokens, and pools first."""
    return of_patches(_after(getattr(t.owner.pool, "conv", None), _last_two(t.args[0][0])))


def metaformer(t: Told) -> Geometry:
    """CAFormer: a stage is given a map, and a convolution shrinks it first."""
    return of_patches(_after(getattr(t.owner.downsample, "conv", None), _last_two(t.args[0])))


def crossvit(t: Told) -> Geometry | None:
    """CrossViT: the branch whose patches are as many as the tokens; none where it sees a crop of the image."""
    for embed, size in zip(t.net.patch_embed, t.net.img_size_scaled, strict=True):
        if embed.num_patches == t.args[0].shape[1] - 1 and not (t.net.crop_scale and _pair(size) != _pair(t.net.img_size)):
            return of_patches((embed.img_size[0] // embed.patch_size[0], embed.img_size[1] // embed.patch_size[1]))
    return None


def coat(t: Told) -> Geometry | None:
    """CoaT: the stage whose patches are as many as the tokens. Each has a class token; the head reads that of the last alone, or
    those of all but the first where its stages run side by side in the end; none where it reads the mean of the patches."""
    first, read = (1 if t.net.parallel_blocks is not None else 3), t.net.global_pool != "avg"
    for k, embed in enumerate((t.net.patch_embed1, t.net.patch_embed2, t.net.patch_embed3, t.net.patch_embed4)):
        if math.prod(embed.grid_size) == t.args[0].shape[1] - 1:
            return of_patches(_pair(embed.grid_size)).with_prefix(int(t.args[0].shape[1]), class_token=read and k >= first)
    return None


# keys or queries on a coarser grid


def reduced(t: Told) -> Geometry:
    """PVT v2 and Twins: keys behind a strided convolution, or pooled to a fixed size."""
    size, pool = _pair(t.args[1]), getattr(t.owner, "pool", None)
    return of_pooled(size, _after(t.owner.sr, size) if pool is None else _pair(pool.output_size))


def mvit(t: Told) -> Geometry:
    """MViT v2: queries and keys each behind their own pooling."""
    size = _pair(t.args[1])
    return of_pooled(_after(t.owner.pool_q, size), _after(t.owner.pool_k, size))


def shrinking(t: Told) -> Geometry:
    """LeViT: every stride-th position asks all."""
    keys, stride = _pair(t.owner.resolution), t.owner.stride
    return of_pooled((math.ceil(keys[0] / stride), math.ceil(keys[1] / stride)), keys)


def halving(t: Told) -> Geometry:
    """EfficientFormer v2: a map of half the size asks all."""
    return of_pooled(_pair(t.owner.resolution2), _pair(t.owner.resolution))


def multi_query(t: Told) -> Geometry:
    """MobileNet v4: queries pooled and keys behind a strided convolution, where the layer has these."""
    size = _last_two(t.args[0])
    queries = size[0] // t.owner.query_strides[0], size[1] // t.owner.query_strides[1]
    return of_pooled(queries, _after(getattr(t.owner.key, "down_conv", None), size))


def runs(t: Told) -> Geometry | None:
    """Next-ViT: keys are means over runs of tokens, row after row, which are no grid where there is more than one in a run."""
    return None if t.owner.e_mhsa.sr is not None else of_patches(_last_two(t.args[0]))


# windows


def _windows(size: Grid, window: Grid, shift: Grid = (0, 0)) -> Geometry:
    return of_windows(size, window, shift) if all(window) else of_patches(size)


def windows(t: Told) -> Geometry:
    """The block is given (n, h, w, c) and cuts it into windows, rolled first where it has a shift."""
    return _windows(_rows_columns(t.args[0]), _pair(t.owner.window_size), _pair(getattr(t.owner, "shift_size", 0)))


def merged(t: Told) -> Geometry:
    """The same of Swin, whose patches and 2 × 2 merged ones are padded below and to the right where they do not tile."""
    found = windows(t)
    covers = merged_extent(found.size, t.image, _pair(t.net.patch_embed.patch_size))
    return found if covers == t.image else replace(found, extent=covers)


def windows_channels_first(t: Told) -> Geometry:
    """The block is given (n, c, h, w) and cuts it into windows."""
    return _windows(_last_two(t.args[0]), _pair(t.owner.window_size))


def windows_told(t: Told) -> Geometry:
    """Twins: the module is given tokens and their size."""
    return _windows(_pair(t.args[1]), _pair(t.owner.ws))


def windows_as_built(t: Told) -> Geometry:
    """EfficientViT (MSRA): the attention within was built for its window."""
    return _windows(_last_two(t.args[0]), _pair(t.owner.attn.resolution))


def halo(t: Told) -> Geometry:
    """HaloNet, (n, c, h, w): blocks of queries, each before the block of keys and a halo around it; strided, every k-th asks."""
    size, block, stride = _last_two(t.args[0]), int(t.owner.block_size), int(t.owner.block_stride)
    asking = of_windows((size[0] // stride, size[1] // stride), (block // stride, block // stride), (0, 0))
    return replace(of_overlapping(size, t.owner.win_size, stride=block, padding=t.owner.halo_size), asking=asking)


def outlook(t: Told) -> Geometry:
    """VOLO, (n, h, w, c): windows around every k-th position, in which all positions ask."""
    return of_overlapping(_rows_columns(t.args[0]), t.owner.kernel_size, stride=t.owner.stride, padding=t.owner.padding)


def blocks(t: Told) -> Geometry:
    """NesT: the module is given (n, blocks, tokens, c), square blocks of a square map."""
    side, block = math.isqrt(t.args[0].shape[1]), math.isqrt(t.args[0].shape[2])
    return of_windows((side * block, side * block), (block, block), (0, 0))


def pooled_windows(t: Told) -> Geometry:
    """SAM 2's Hiera: windows of (n, h, w, c), whose queries are pooled where a stage begins."""
    size, window, stride = _rows_columns(t.args[0]), _pair(t.owner.window_size), _pair(t.owner.q_stride or 1)
    keys = _windows(size, window)
    if stride == (1, 1):
        return keys
    asking = _windows((size[0] // stride[0], size[1] // stride[1]), (window[0] // stride[0], window[1] // stride[1]))
    return replace(keys, asking=asking)


def _partition(owner: Any, size: Grid) -> Geometry:
    cut = _pair(owner.partition_size)
    if owner.partition_block:
        return of_windows(size, cut, (0, 0))
    return of_pixels(size, (size[0] // cut[0], size[1] // cut[1]))


def partition(t: Told) -> Geometry:
    """MaxViT, (n, h, w, c): windows, or grids that take every k-th position."""
    return _partition(t.owner, _rows_columns(t.args[0]))


def partition_channels_first(t: Told) -> Geometry:
    """The same of (n, c, h, w)."""
    return _partition(t.owner, _last_two(t.args[0]))


def parallel_windows(t: Told) -> Geometry:
    """MaxViT with parallel attention, (n, h, w, c): its windows, which are cut first."""
    return of_windows(_rows_columns(t.args[0]), _pair(t.owner.partition_size), (0, 0))


def parallel_grids(t: Told) -> Geometry | None:
    """And its grids, of the same map."""
    size, cut = (0, 0) if t.before is None else t.before.size, _pair(t.owner.partition_size)
    return None if t.before is None else of_pixels(size, (size[0] // cut[0], size[1] // cut[1]))


def pixels(t: Told) -> Geometry:
    """MobileViT: the map that is unfolded, with the size of the block's patch."""
    return of_pixels(_last_two(t.args[0]), _pair(t.owner.patch_size))


def tnt_pixels(t: Told) -> Geometry:
    """TNT's inner attention: the pixels of one patch."""
    grid, pixel = _pair(t.net.pixel_embed.grid_size), _pair(t.net.pixel_embed.new_patch_size)
    return of_windows((grid[0] * pixel[0], grid[1] * pixel[1]), pixel, (0, 0))


def tnt_patches(t: Told) -> Geometry:
    """TNT's outer attention: the patches."""
    return of_patches(_pair(t.net.pixel_embed.grid_size))


def mask_units(t: Told) -> Geometry:
    """Hiera: tokens in the order of its unrolling, which its `reroll` undoes; token j·units + u is the j-th of unit u."""
    index, tokens, attn = list(t.net.blocks).index(t.owner), int(t.args[0].shape[1]), t.owner.attn
    units = tokens // (attn.q_stride * attn.window_size) if attn.use_mask_unit_attn else 1
    if attn.q_stride == 1:
        return _unrolled(t.net, index, tokens, units)
    return replace(_unrolled(t.net, index - 1, tokens, units), asking=_unrolled(t.net, index, tokens // attn.q_stride, units))


def _unrolled(net: Any, block: int, tokens: int, units: int) -> Geometry:
    laid = net.reroll(torch.arange(tokens).view(1, tokens, 1), block)[0, ..., 0]  # which token is where
    return Geometry((int(laid.shape[0]), int(laid.shape[1])), laid.flatten().argsort().view(-1, units).T)
