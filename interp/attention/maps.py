"""From attention weights to maps: pure functions of tensors.

A softmax row sums to 1 over the keys. `class_map`, `received_map` and `query_map` drop the prefix tokens, so those maps
sum to 1 minus the share of the prefix tokens; `refold` and `refold_query` sum to 1.

MobileViT cuts its feature map into patches of p_h × p_w and lets the same pixel of all patches attend to each other
(arXiv 2110.02178, section 3.1, timm's `MobileVitBlock.forward`): row b·P + p_y·p_w + p_x of the unfolded tensor holds pixel
(p_y, p_x) of image b, its token i_y·n_w + i_x the position (i_y·p_h + p_y, i_x·p_w + p_x) of the feature map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from interp.types import InputError


@dataclass(frozen=True)
class Unfolding:
    """The geometry of one MobileViT block in one pass: images, size (H, W) of its feature map, pixels per patch."""

    batch: int
    size: tuple[int, int]
    patch: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row, (n_h, n_w)."""
        return math.ceil(self.size[0] / self.patch[0]), math.ceil(self.size[1] / self.patch[1])

    @property
    def inner(self) -> tuple[int, int]:
        """Size at which attention runs: the feature map is resized to it where `size` is no multiple of `patch`."""
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]

    @property
    def area(self) -> int:
        """Pixels per patch, P."""
        return self.patch[0] * self.patch[1]


def _check_weights(weights: Tensor, keys: int, expected: str) -> None:
    if weights.ndim != 4 or weights.shape[-1] != keys:
        raise InputError(
            f"attention weights have shape {tuple(weights.shape)}; expected (n, heads, queries, {keys}) for {expected}. "
            "Cross-covariance (channel) weights have no place in the image"
        )


def _check_position(y: int, x: int, size: tuple[int, int]) -> None:
    if not (0 <= y < size[0] and 0 <= x < size[1]):
        raise InputError(f"query ({y}, {x}) is outside the map; expected 0 ≤ y < {size[0]} and 0 ≤ x < {size[1]}")


def _patches(rows: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    kept = rows[..., prefix:]
    return kept.reshape(*kept.shape[:-1], *grid)


def class_map(weights: Tensor, grid: tuple[int, int], *, prefix: int = 1) -> Tensor:
    """Where the class token looks: its row without the prefix tokens, on the grid of patches.

    weights (n, heads, queries, prefix + gh·gw), the class token the first query: class attention or self-attention.
    Returns (n, heads, gh, gw), which sums to 1 minus the prefix tokens' share.
    """
    _check_weights(weights, prefix + math.prod(grid), f"a grid of {grid} and {prefix} prefix tokens")
    return _patches(weights[:, :, 0], grid, prefix)


def received_map(weights: Tensor, grid: tuple[int, int], *, prefix: int = 0) -> Tensor:
    """Attention received by each patch, the mean over all patches as queries: a reading without a class token.

    weights (n, heads, prefix + gh·gw, prefix + gh·gw) of self-attention. Returns (n, heads, gh, gw).
    """
    _check_weights(weights, prefix + math.prod(grid), f"a grid of {grid} and {prefix} prefix tokens")
    return _patches(weights[:, :, prefix:].mean(2), grid, prefix)


def query_map(weights: Tensor, grid: tuple[int, int], *, y: int, x: int, prefix: int = 0) -> Tensor:
    """Where the patch in row y, column x of the grid looks: (n, heads, gh, gw), from self-attention as in `received_map`."""
    _check_weights(weights, prefix + math.prod(grid), f"a grid of {grid} and {prefix} prefix tokens")
    _check_position(y, x, grid)
    return _patches(weights[:, :, prefix + y * grid[1] + x], grid, prefix)


def _check_unfolded(rows: Tensor, unfolding: Unfolding, tail: int) -> None:
    keys, first = math.prod(unfolding.grid), unfolding.batch * unfolding.area
    if rows.ndim < tail or rows.shape[0] != first or rows.shape[-1] != keys:
        raise InputError(
            f"unfolded tensor has shape {tuple(rows.shape)}; expected {first} rows and {keys} tokens for {unfolding}. "
            "Pass the unfolding that was captured with the weights"
        )


def _fold_inner(rows: Tensor, unfolding: Unfolding) -> Tensor:
    (n_h, n_w), (p_h, p_w) = unfolding.grid, unfolding.patch
    channels = rows.shape[1]
    pixels = rows.reshape(unfolding.batch, p_h, p_w, channels, n_h, n_w)
    return pixels.permute(0, 3, 4, 1, 5, 2).reshape(unfolding.batch, channels, *unfolding.inner)


def fold(rows: Tensor, unfolding: Unfolding) -> Tensor:
    """Unfolded values back on the feature map, as MobileViT does it: (B·P, c, N) → (B, c, H, W).

    Resized bilinearly where attention ran at another size. Limit: the inverse of the block's own unfolding.
    """
    _check_unfolded(rows, unfolding, 3)
    inner = _fold_inner(rows, unfolding)
    if unfolding.inner == unfolding.size:
        return inner
    return F.interpolate(inner, size=unfolding.size, mode="bilinear", align_corners=False)


def refold(weights: Tensor, unfolding: Unfolding) -> Tensor:
    """Attention received by each position of a MobileViT feature map, the mean over all its positions as queries.

    weights (B·P, heads, N, N). Returns (B, heads, H, W), which sums to 1; uniform attention gives 1/(H·W) everywhere.
    """
    _check_unfolded(weights, unfolding, 4)
    maps = fold(weights.mean(2), unfolding)
    return maps / maps.sum((-2, -1), keepdim=True)


def refold_query(weights: Tensor, unfolding: Unfolding, *, y: int, x: int) -> Tensor:
    """Where position (y, x) of a MobileViT feature map looks: (B, heads, *unfolding.inner), which sums to 1.

    A query reaches only its own pixel of every patch, so the map is exactly zero elsewhere; the slice
    [..., y % p_h :: p_h, x % p_w :: p_w] holds all of it. Positions count at the size at which attention runs.
    """
    _check_unfolded(weights, unfolding, 4)
    _check_position(y, x, unfolding.inner)
    (p_h, p_w), n_w = unfolding.patch, unfolding.grid[1]
    per_pixel = weights.reshape(unfolding.batch, unfolding.area, *weights.shape[1:])
    pixel = (y % p_h) * p_w + x % p_w
    rows = per_pixel.new_zeros(*per_pixel.shape[:3], per_pixel.shape[-1])
    rows[:, pixel] = per_pixel[:, pixel, :, (y // p_h) * n_w + x // p_w]
    return _fold_inner(rows.flatten(0, 1), unfolding)


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (n, h, w) or (n, heads, h, w) bilinearly at another size. Limit: a constant map stays that constant."""
    if maps.ndim not in (3, 4):
        raise InputError(f"maps have shape {tuple(maps.shape)}; expected (n, h, w) or (n, heads, h, w)")
    wide = maps[:, None] if maps.ndim == 3 else maps
    large = F.interpolate(wide, size=size, mode="bilinear", align_corners=False)
    return large[:, 0] if maps.ndim == 3 else large
