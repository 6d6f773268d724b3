"""Pictures with known answers: shapes with exact masks, textures, and shapes filled by textures that contradict them.

Everything is drawn from a seed. Picture i depends on the seed, the size and i alone, not on how many are drawn, and shows the
same at every size. Classes take turns, so that any number of pictures is balanced up to one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interp.data.conflicts import Conflict
from interp.data.outlines import SHAPES, inside
from interp.data.patterns import DRAWS, TEXTURES, grid, patterns
from interp.types import Batch, Images, InputError, Labels, Masks

BACKGROUNDS = ("plain", "gradient", "texture", "mixed")
SMALLEST = 16  # pixels a side: below, periods and outlines fall between the pixels


def uniform(n: int, columns: int, *, size: int, seed: int) -> Tensor:
    """Random numbers in [0, 1), a row (columns) for each of n pictures; the first rows do not depend on n.

    Raises InputError for a picture too small to draw in, or for none at all.
    """
    if n < 1 or size < SMALLEST:
        raise InputError(f"{n} pictures of {size}×{size} pixels were asked for; expected at least 1 of {SMALLEST}×{SMALLEST}")
    return torch.rand(n, columns, generator=torch.Generator().manual_seed(seed))


def shapes(n: int, size: int, seed: int, *, background: str = "plain", only: str = "") -> Batch:
    """One filled shape in each picture, of random place, scale, rotation and colour; labels are `SHAPES`, masks its pixels.

    background: plain, gradient, texture, or mixed, the three by turns; its colours stay within 0.15 of one colour in every
    channel, and the shape's colour is at least 0.25 from all of them. only: one shape for all pictures. The whole shape is in
    the picture, its radius between a fifth and two fifths of the side. Raises InputError for another background or shape, fewer
    than one picture, or pictures below 16×16.
    """
    if background not in BACKGROUNDS or only not in ("", *SHAPES):
        raise InputError(f"{only!r} on {background!r} cannot be drawn; expected one of {SHAPES} on one of {BACKGROUNDS}")
    draws = uniform(n, 4 + 6 + 1 + DRAWS, size=size, seed=seed)
    place, ground, shift, turn, texture = draws.split((4, 3, 3, 1, DRAWS), 1)
    labels = torch.full((n,), SHAPES.index(only)) if only else torch.arange(n) % len(SHAPES)
    masks = _outlines(labels, place, size, radius=(0.2, 0.4))
    colour = (ground + 0.4 + 0.2 * shift) % 1
    field = _background(background, turn[:, 0], texture, size)
    around = (ground[:, :, None, None] + 0.15 * field[:, None]).clamp(0, 1)
    return Batch(torch.where(masks[:, None], colour[:, :, None, None], around), labels, classes=SHAPES, masks=masks)


def textures(n: int, size: int, seed: int) -> Batch:
    """One texture filling each picture, of random phase, scale and two colours; labels are `TEXTURES`, without masks.

    The colours differ by at least 0.3 in every channel. Raises InputError for fewer than one picture, or pictures below 16×16.
    """
    draws = uniform(n, 6 + DRAWS, size=size, seed=seed)
    labels = torch.arange(n) % len(TEXTURES)
    return Batch(two_tone(patterns(labels, size, draws[:, 6:]), draws[:, :6]), labels, classes=TEXTURES)


def cue_conflicts(n: int, size: int, seed: int, *, agree: bool = False) -> Conflict:
    """Shapes filled by a texture, on a plain ground of the filling's mean colour: only the texture's edges show the shape.

    Stimuli in which shape says one class and texture another, after Geirhos et al. (arXiv 1811.12231, §2), drawn instead of
    style-transferred. Shape k and texture k stand for class k. No picture shows the two of one class, and each of the 56 pairs
    comes once in 56 pictures; with `agree` all pictures do: what a model can be trained on before its bias is measured.
    Labels are shapes; masks are exact. Raises InputError for fewer than one picture, or pictures below 16×16.
    """
    draws = uniform(n, 4 + 6 + DRAWS, size=size, seed=seed)
    place, colours, texture = draws.split((4, 6, DRAWS), 1)
    i, k = torch.arange(n), len(SHAPES)
    labels = i % k
    fillings = labels if agree else (labels + 1 + i // k % (k - 1)) % k
    masks = _outlines(labels, place, size, radius=(0.3, 0.48))
    filled = two_tone(patterns(fillings, size, texture), colours)
    m = masks[:, None]
    mean = (filled * m).sum((2, 3), keepdim=True) / m.sum((2, 3), keepdim=True)
    return Conflict(Batch(torch.where(m, filled, mean), labels, classes=SHAPES, masks=masks), fillings, TEXTURES)


def two_tone(second: Tensor, colours: Tensor) -> Images:
    """Two colours (n, 6 random numbers) by a pattern (n, h, w); they differ by at least 0.3 in every channel."""
    first = colours[:, :3]
    other = (first + 0.3 + 0.4 * colours[:, 3:]) % 1
    return torch.where(second[:, None], other[:, :, None, None], first[:, :, None, None])


def _outlines(labels: Labels, place: Tensor, size: int, *, radius: tuple[float, float]) -> Masks:
    """Masks (n, size, size) of shapes at random places, wholly inside; place (n, 4): x, y, radius, rotation."""
    x, y = grid(size)
    out = torch.empty(len(labels), size, size, dtype=torch.bool)
    for k in labels.unique().tolist():
        at_x, at_y, scale, turn = (p[:, None, None] for p in place[labels == k].T)
        r = radius[0] + (radius[1] - radius[0]) * scale
        dx, dy = ((c - r - (1 - 2 * r) * at) / r for c, at in ((x, at_x), (y, at_y)))
        cos, sin = torch.cos(2 * math.pi * turn), torch.sin(2 * math.pi * turn)
        out[labels == k] = inside(SHAPES[k], dx * cos + dy * sin, dy * cos - dx * sin)
    return out


def _background(kind: str, turn: Tensor, texture: Tensor, size: int) -> Tensor:
    """Lighter and darker places (n, size, size) of a background, in [−1, 1]."""
    if kind == "plain":
        return torch.zeros(len(turn), size, size)
    if kind == "texture":
        return patterns((turn * len(TEXTURES)).long(), size, texture) * 2.0 - 1.0
    if kind == "gradient":
        x, y = grid(size)
        angle = 2 * math.pi * turn[:, None, None]
        return ((2 * x - 1) * torch.cos(angle) + (2 * y - 1) * torch.sin(angle)) / math.sqrt(2)
    out = torch.empty(len(turn), size, size)
    for k, one in enumerate(BACKGROUNDS[:3]):
        out[k::3] = _background(one, turn[k::3], texture[k::3], size)
    return out
