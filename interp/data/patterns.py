"""Eight procedural textures in two tones, as functions of the place: where the second tone lies.

Lengths are shares of the picture, so that the same random numbers draw the same picture at any size. A period is a third to
a sixth of the picture, at 32 pixels at least five.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from interp.types import Labels

TEXTURES = ("horizontal stripes", "vertical stripes", "diagonal stripes", "dots", "checks", "waves", "noise", "bricks")
LATTICE = 12  # of random values beneath the noise, a side
DRAWS = 4 + LATTICE**2  # random numbers that one pattern takes


def grid(size: int) -> tuple[Tensor, Tensor]:
    """Coordinates x, y (size, size) of the pixel centres of a picture, as shares of it; y points down."""
    at = (torch.arange(size) + 0.5) / size
    return at.expand(size, size), at[:, None].expand(size, size)


def pattern(texture: str, size: int, draws: Tensor) -> Tensor:
    """A texture's second tone, (n, size, size) bool, for n rows of `DRAWS` uniform random numbers in [0, 1).

    Of each row, the first four choose period, phases and the sign of the diagonal; the rest are the values under the noise.
    """
    cycles, phase_x, phase_y, extra = (d[:, None, None] for d in draws[:, :4].T)
    cycles = 3 + 3 * cycles
    x, y = grid(size)
    u, v = x * cycles + phase_x, y * cycles + phase_y  # one period is 1
    if texture == "horizontal stripes":
        return _upper(v)
    if texture == "vertical stripes":
        return _upper(u)
    if texture == "diagonal stripes":
        return _upper((u + torch.where(extra < 0.5, 1.0, -1.0) * v) * math.sqrt(0.5))
    if texture == "dots":
        return (u % 1 - 0.5).hypot(v % 1 - 0.5) < 0.36
    if texture == "checks":
        return _upper(u) ^ _upper(v)
    if texture == "waves":
        return _upper(v + 0.35 * torch.sin(2 * math.pi * u * (0.5 + 0.3 * extra)))
    if texture == "bricks":
        return (v % 1 < 0.22) | ((u / 2 + 0.5 * (v.floor() % 2)) % 1 < 0.11)
    return _noise(draws[:, 4:].view(-1, 1, LATTICE, LATTICE), cycles, size)


def patterns(labels: Labels, size: int, draws: Tensor) -> Tensor:
    """As `pattern`, (n, size, size) bool, with a texture for each row: labels (n,) index into `TEXTURES`."""
    out = torch.empty(len(labels), size, size, dtype=torch.bool)
    for k in labels.unique().tolist():
        out[labels == k] = pattern(TEXTURES[k], size, draws[labels == k])
    return out


def _upper(phase: Tensor) -> Tensor:
    """The second half of each period."""
    return phase % 1 >= 0.5


def _noise(values: Tensor, cycles: Tensor, size: int) -> Tensor:
    """Blobs as large as half a period: random values on a lattice, interpolated, above their middle."""
    reach = 2 * cycles / LATTICE  # the share of the lattice that is seen
    x, y = (2 * c[None] - 1 for c in grid(size))
    return F.grid_sample(values, torch.stack((x * reach, y * reach), -1), padding_mode="border", align_corners=False)[:, 0] > 0.5
