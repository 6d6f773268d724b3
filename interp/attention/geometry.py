"""Where the tokens of an attention layer stand on the image: one description for patches, pixels, windows and pooled keys.

Attention runs over groups of tokens that do not see each other: one group for a ViT, one per pixel position inside a patch for
MobileViT (arXiv 2110.02178, section 3.1), one per window for Swin (arXiv 2103.14030, section 3.2). `Geometry.places` says for
every token of every group which position of the grid it is, so that maps, distances and roll-outs need no case per family.
Where keys are pooled, as in PVT v2 (arXiv 2106.13797), or windows of keys are wider than those of their queries, as in HaloNet
(arXiv 2103.12731), the queries stand elsewhere, `Geometry.asking`. Where windows overlap, a position is a token of several
groups: what it attends to, and what is attended to it, are then sums over these.
A grid is taken to cover the image, but where Swin, or a ViT for images of any size, pads patches beyond its right and lower edge:
there it covers `Geometry.extent`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.errors import InputError

Grid: TypeAlias = tuple[int, int]  # rows and columns


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of one attention layer in one pass.

    size: rows and columns of the positions that are attended to. places (groups, tokens) int64: position y·columns + x of each
    patch token, −1 where a token is padding; every position occurs, and once where no windows overlap. prefix: tokens before the
    patches in each group. class_token: whether the first of them is a class token that the head reads. asking: where the queries
    stand, if not where the keys do. latent: whether the only query is a learnt vector, which is none of the tokens. extent: rows
    and columns of pixels that the grid covers from the upper left corner, where that is not the image.
    """

    size: Grid
    places: Tensor
    prefix: int = 0
    class_token: bool = False
    asking: Geometry | None = None
    latent: bool = False
    extent: Grid | None = None

    @property
    def queries(self) -> Geometry:
        """Where the queries stand."""
        return self.asking or self

    @property
    def groups(self) -> int:
        """Groups of tokens per image."""
        return len(self.places)

    @property
    def positions(self) -> int:
        """Positions of the grid, rows × columns."""
        return math.prod(self.size)

    @property
    def one_grid(self) -> bool:
        """Whether queries and keys are positions of the same grid."""
        return self.queries.size == self.size

    @property
    def placeless(self) -> bool:
        """Whether a query that is alone has no place in the image."""
        return self.class_token or self.latent

    @property
    def share(self) -> Tensor:
        """1 / how many tokens of all groups are the same position, 0 for padding, (groups, tokens); sums to the positions."""
        real = self.places >= 0
        times = self.places[real].bincount(minlength=self.positions)
        return torch.where(real, 1 / times[self.places.clamp_min(0)], 0)

    def at(self, y: int, x: int, image: Grid) -> Grid:
        """The position of the queries' grid under the middle of the pixel (y, x) of an image of rows × columns; the nearest one
        where patches leave the last pixels out."""
        if not (0 <= y < image[0] and 0 <= x < image[1]):
            raise InputError(f"pixel ({y}, {x}) is outside the image; expected 0 ≤ y < {image[0]} and 0 ≤ x < {image[1]}")
        (rows, columns), (height, width) = self.queries.size, self.queries.extent or image
        return min((2 * y + 1) * rows // (2 * height), rows - 1), min((2 * x + 1) * columns // (2 * width), columns - 1)

    def with_prefix(self, tokens: int, *, class_token: bool) -> Geometry:
        """This grid for a layer of so many tokens in all: those beyond the positions come first."""
        prefix = tokens - self.positions
        asking = self.asking and replace(self.asking, prefix=prefix, class_token=class_token)
        return replace(self, prefix=prefix, class_token=class_token, asking=asking)

    def fits(self, weights: Tensor, images: int) -> bool:
        """Whether weights (n·groups, heads, queries, keys) of so many images have this geometry; one query fits any."""
        keys, queries = self.prefix + self.places.shape[1], self.queries.prefix + self.queries.places.shape[1]
        return len(weights) == images * self.groups and weights.shape[-1] == keys and weights.shape[-2] in (1, queries)


def of_patches(size: Grid) -> Geometry:
    """One group, the patches row by row."""
    return Geometry(size, torch.arange(math.prod(size))[None])


def merged_extent(size: Grid, image: Grid, patch: Grid) -> Grid:
    """Pixels that a grid covers whose cells are patches, or 2 × 2 cells of a finer grid merged, padded to an even number."""
    sides = []
    for cells, pixels, side in zip(size, image, patch, strict=True):
        while cells * side < pixels:
            side *= 2
        sides.append(cells * side)
    return sides[0], sides[1]


def of_pixels(size: Grid, patch: Grid) -> Geometry:
    """MobileViT: the same pixel of all patches is one group; `size` is rounded up to whole patches, as the block resizes it.

    Group p_y·p_w + p_x holds pixel (p_y, p_x), its token i_y·n_w + i_x the position (i_y·p_h + p_y, i_x·p_w + p_x).
    """
    (n_h, n_w), (p_h, p_w) = (math.ceil(size[0] / patch[0]), math.ceil(size[1] / patch[1])), patch
    inner = n_h * p_h, n_w * p_w
    places = torch.arange(math.prod(inner)).view(n_h, p_h, n_w, p_w).permute(1, 3, 0, 2).reshape(p_h * p_w, n_h * n_w)
    return Geometry(inner, places)


def of_windows(size: Grid, window: Grid, shift: Grid) -> Geometry:
    """Swin: windows of the grid after it was rolled by −shift and padded below and to the right to whole windows."""
    (w_h, w_w), (rows, columns) = window, size
    rolled = torch.arange(rows * columns).view(size).roll((-shift[0], -shift[1]), (0, 1))
    padded = F.pad(rolled, (0, -columns % w_w, 0, -rows % w_h), value=-1)
    cut = padded.view(padded.shape[0] // w_h, w_h, padded.shape[1] // w_w, w_w)
    return Geometry(size, cut.permute(0, 2, 1, 3).reshape(-1, w_h * w_w))


def of_overlapping(size: Grid, window: int, *, stride: int, padding: int) -> Geometry:
    """Square windows at every stride-th position of the grid, padded on all sides: they overlap where window > stride."""
    padded = F.pad(torch.arange(math.prod(size)).view(size), (padding,) * 4, value=-1)
    cut = padded.unfold(0, window, stride).unfold(1, window, stride)
    return Geometry(size, cut.reshape(-1, window**2))


def of_pooled(queries: Grid, keys: Grid) -> Geometry:
    """One group whose queries and keys stand on grids of different size over the same image."""
    return of_patches(keys) if queries == keys else replace(of_patches(keys), asking=of_patches(queries))


def embedded(embed: nn.Module, args: tuple[Any, ...], output: Any) -> Geometry:
    """The patches of one pass, from what the patch embedding was given and what it returned.

    Patches that are cut without overlap are padded beyond the image, or leave its last pixels out, where they do not tile it.
    """
    size, image = patch_grid(embed, args, output), (int(args[0].shape[-2]), int(args[0].shape[-1]))
    proj = getattr(embed, "proj", None)
    stride = getattr(proj, "stride", None)
    if stride is None or stride != getattr(proj, "kernel_size", None) or hasattr(embed, "backbone"):
        return of_patches(size)
    covers = size[0] * int(stride[0]), size[1] * int(stride[1])
    return of_patches(size) if covers == image else replace(of_patches(size), extent=covers)


def patch_grid(embed: nn.Module, args: tuple[Any, ...], output: Any) -> Grid:
    """Rows and columns of patches.

    XCiT's embedding returns (tokens, (rows, columns)); a ViT of any image size returns (n, rows, columns, c); others return
    (n, tokens, c) and compute the grid from the image size.
    """
    if isinstance(output, tuple):
        return int(output[1][0]), int(output[1][1])
    if output.ndim == 4:
        return int(output.shape[1]), int(output.shape[2])
    rows, columns = embed.dynamic_feat_size(tuple(args[0].shape[-2:]))  # type: ignore[operator]  # timm's method
    return int(rows), int(columns)
