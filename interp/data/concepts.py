"""Sets of pictures that share one concept and nothing else, for concept vectors (TCAV, Kim et al., arXiv 1711.11279).

a colour       two shades of it in any texture
a texture      in any two colours
narrow, broad stripes   in any direction, a seventh or eighth of the picture wide with their gap, or about a half
curved, angular   strokes: arcs of circles, or the same strokes along regular polygons
a shape        filled, on any background
random         none of these: smooth colour noise, the counter-example of all

`family` puts concepts of one kind into one set, in which each can be told from the others; `photographs` makes such a set of the
classes of a user's labelled images, of textures for example, and `deal` several that share none.
"""

from __future__ import annotations

import colorsys
import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from interp.data.decode import decode
from interp.data.outlines import SHAPES
from interp.data.patterns import DRAWS, TEXTURES, grid, patterns
from interp.data.source import read_encoded
from interp.data.synthetic import shapes, two_tone, uniform
from interp.types import Batch, Images, InputError, Preprocess

COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-0.02, 0.02), (0.7, 1.0), (0.55, 1.0)),
    "orange": ((0.07, 0.1), (0.8, 1.0), (0.85, 1.0)),
    "yellow": ((0.14, 0.17), (0.7, 1.0), (0.8, 1.0)),
    "green": ((0.29, 0.38), (0.6, 1.0), (0.4, 0.9)),
    "blue": ((0.58, 0.66), (0.6, 1.0), (0.5, 1.0)),
    "purple": ((0.75, 0.81), (0.5, 0.9), (0.45, 0.9)),
    "brown": ((0.05, 0.09), (0.55, 0.85), (0.25, 0.5)),
    "black": ((0.0, 1.0), (0.0, 0.2), (0.0, 0.18)),
    "white": ((0.0, 1.0), (0.0, 0.06), (0.88, 1.0)),
}
"""Ranges of hue (a share of the circle), saturation and value."""
PATTERNS = {
    "stripes": TEXTURES[:3],
    **{name: (name,) for name in TEXTURES if name != "noise"},
    "blotches": ("noise",),
}
STRIPES = {"narrow stripes": (6.5, 8.0), "broad stripes": (1.5, 2.5)}
"""Ranges of periods in a picture; those of the textures are 3 to 6."""
STROKES = ("curved", "angular")
CONCEPTS = (*COLOURS, *PATTERNS, *STRIPES, *STROKES, *SHAPES)
RANDOM = "random"
FAMILIES: dict[str, tuple[str, ...]] = {
    "colours": tuple(COLOURS),
    "stripes": (*TEXTURES[:3], *STRIPES),
    "textures": ("dots", "checks", "waves", "bricks", *STROKES),
    "shapes": SHAPES[:6],
}
"""Concepts of one kind, that differ in what they are called for."""

_STROKE = 6  # numbers that one stroke takes: x, y, radius, rotation, length, corners
_STROKES = 7  # in a picture
_OCTAVES = (4, 8, 16)  # cells a side of the colour noise


def concepts(name: str, n: int, size: int, seed: int) -> Batch:
    """Pictures of one concept of `CONCEPTS`, or of "random"; label 0, class the name, masks for shapes.

    One seed gives sets that correspond: curved and angular differ in nothing but the form of their strokes, colours in nothing
    but the colour. Raises InputError for a name that is no concept, fewer than one picture, or pictures below 16×16.
    """
    if name in SHAPES:
        batch = shapes(n, size, seed, background="mixed", only=name)
        return dataclasses.replace(batch, labels=torch.zeros_like(batch.labels), classes=(name,))
    if name in COLOURS:
        images = _coloured(name, n, size, seed)
    elif name in PATTERNS:
        draws = uniform(n, 6 + 1 + DRAWS, size=size, seed=seed)
        images = two_tone(_pattern_of(PATTERNS[name], draws[:, 6:], size), draws[:, :6])
    elif name in STRIPES:
        draws = uniform(n, 6 + 3, size=size, seed=seed)
        images = two_tone(_stripes(draws[:, 6:], size, STRIPES[name]), draws[:, :6])
    elif name in STROKES:
        draws = uniform(n, 6 + _STROKES * _STROKE, size=size, seed=seed)
        images = two_tone(_strokes(draws[:, 6:], size, angular=name == "angular"), draws[:, :6])
    elif name == RANDOM:
        images = _colour_noise(n, size, seed)
    else:
        raise InputError(f"there is no concept {name!r}; expected {RANDOM} or one of {', '.join(CONCEPTS)}")
    return Batch(images, torch.zeros(n, dtype=torch.int64), classes=(name,))


def family(names: Sequence[str], n: int, size: int, seed: int) -> Batch:
    """n pictures of each of several concepts, that share no random number; labels 0, 1, … in the order of the names.

    Sets of two seeds share none either.
    """
    found = [concepts(name, n, size, len(names) * seed + k) for k, name in enumerate(names)]
    labels = torch.arange(len(names)).repeat_interleave(n)
    return Batch(torch.cat([batch.images for batch in found]), labels, classes=tuple(names))


def photographs(spec: str, *, preprocess: Preprocess, least: int, most: int, seed: int) -> Batch:
    """Up to `most` images, drawn by the seed, of each class of an image source that has at least `least`; labels 0, 1, …

    preprocess: a model's; only what is drawn is decoded. Raises InputError as `interp.data.source` does, and where fewer than two
    classes have enough.
    """
    found = read_encoded(spec)
    of_class = [(found.labels == k).nonzero()[:, 0] for k in range(int(found.labels.max()) + 1)]
    enough = [k for k, rows in enumerate(of_class) if len(rows) >= least]
    if len(enough) < 2:
        raise InputError(
            f"{len(enough)} classes of {spec} have {least} images, of {sorted(len(rows) for rows in of_class)} in all; concepts "
            f"need two classes with {least} or more: each is told from the others"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat([of_class[k][torch.randperm(len(of_class[k]), generator=generator)[:most]] for k in enough])
    pixels = [decode(found.sources[r], name=found.ids[r], preprocess=preprocess) for r in rows.tolist()]
    labels = torch.tensor([enough.index(k) for k in found.labels[rows].tolist()])
    ids = tuple(found.ids[r] for r in rows.tolist())
    names = tuple(found.classes[k] if found.classes else str(k) for k in enough)
    return Batch(torch.stack(pixels).float().div_(255), labels, ids, names)


def deal(batch: Batch, hands: int) -> list[Batch]:
    """The images of a batch in so many parts, of every class alike many in each and none in two; what is over is left out."""
    count = len(batch.classes)
    rows = [(batch.labels == k).nonzero()[:, 0] for k in range(count)]
    return [
        batch[torch.cat([of[h * (len(of) // hands) : (h + 1) * (len(of) // hands)] for of in rows]).tolist()]
        for h in range(hands)
    ]


def _pattern_of(names: tuple[str, ...], draws: Tensor, size: int) -> Tensor:
    """A pattern (n, size, size) of one of the named textures, chosen by the first number of each row."""
    known = torch.tensor([TEXTURES.index(name) for name in names])
    return patterns(known[(draws[:, 0] * len(names)).long()], size, draws[:, 1:])


def _coloured(name: str, n: int, size: int, seed: int) -> Images:
    draws = uniform(n, 6 + 1 + DRAWS, size=size, seed=seed)
    second = _pattern_of(TEXTURES, draws[:, 6:], size)
    low, high = torch.tensor(COLOURS[name]).T
    hsv = low + (high - low) * draws[:, :6].view(n, 2, 3)
    rgb = torch.tensor([[colorsys.hsv_to_rgb(h % 1, s, v) for h, s, v in pair] for pair in hsv.tolist()])
    return torch.where(second[:, None], rgb[:, 1, :, None, None], rgb[:, 0, :, None, None])


def _stripes(draws: Tensor, size: int, periods: tuple[float, float]) -> Tensor:
    """Stripes (n, size, size) in any direction, of draws (n, 3): direction, period, phase."""
    turn, period, phase = (d[:, None, None] for d in draws.T)
    x, y = grid(size)
    cycles = periods[0] + (periods[1] - periods[0]) * period
    return ((x * torch.cos(math.pi * turn) + y * torch.sin(math.pi * turn)) * cycles + phase) % 1 >= 0.5


def _strokes(draws: Tensor, size: int, *, angular: bool) -> Tensor:
    """Where the strokes lie, (n, size, size) bool: parts of outlines r(θ), of circles or of polygons with 3 to 5 corners."""
    x, y = grid(size)
    width = max(0.018, 0.75 / size)
    out = torch.zeros(len(draws), size, size, dtype=torch.bool)
    for stroke in draws.split(_STROKE, 1):
        at_x, at_y, radius, turn, length, corners = (d[:, None, None] for d in stroke.T)
        radius = 0.12 + 0.16 * radius
        dx, dy = x - at_x, y - at_y
        angle = (torch.atan2(dy, dx) / (2 * math.pi) + turn) % 1
        outline = radius * polygon(angle, 3 + (3 * corners).floor()) if angular else radius
        out |= ((dx.hypot(dy) - outline).abs() < width) & (angle < 0.5 + 0.5 * length)
    return out


def polygon(angle: Tensor, corners: Tensor) -> Tensor:
    """Distance from its centre to a regular polygon with corners on the unit circle, the first at 0; angles in full turns."""
    side = 1 / corners
    return torch.cos(math.pi * side) / torch.cos(2 * math.pi * (angle % side - side / 2))


def _colour_noise(n: int, size: int, seed: int) -> Images:
    """Random values on ever finer lattices, interpolated, with half the weight at each: about 1/f, as in photographs."""
    draws = uniform(n, 3 * sum(k * k for k in _OCTAVES), size=size, seed=seed)
    total = torch.zeros(n, 3, size, size)
    for octave, (k, part) in enumerate(zip(_OCTAVES, draws.split([3 * k * k for k in _OCTAVES], 1), strict=True)):
        total += F.interpolate(part.view(n, 3, k, k), size, mode="bicubic", align_corners=False) / 2**octave
    low, high = total.amin((1, 2, 3), keepdim=True), total.amax((1, 2, 3), keepdim=True)
    return (total - low) / (high - low)
