"""Eight plane shapes by their geometry, each in the unit circle and touching it.

Areas in closed form, for tests: circle π, ring π(1 − 0.6²), square 2, triangle 3√3/4, star 10·½·0.45·sin 36°,
cross 4(2ab − a²) with a = 0.3 and b = √(1 − a²), crescent π minus the lens it shares with its bite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "arrow")
HOLE = 0.6  # radius of the ring's hole
BITE = (0.45, 0.8)  # the crescent is the unit circle without the circle at (x, 0) of this radius
ARM = 0.3  # half the width of the cross's arms


def inside(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Whether points lie in a shape that is centred at 0 with radius 1: bool, of the form of x and y. y points down."""
    if shape == "circle":
        return x.hypot(y) <= 1
    if shape == "ring":
        r = x.hypot(y)
        return (r >= HOLE) & (r <= 1)
    if shape == "crescent":
        return (x.hypot(y) <= 1) & ((x - BITE[0]).hypot(y) > BITE[1])
    return _in_polygon(_CORNERS[shape], x, y)


def _in_polygon(corners: list[tuple[float, float]], x: Tensor, y: Tensor) -> Tensor:
    """Even-odd rule: a ray to the right crosses the outline an odd number of times."""
    odd = torch.zeros_like(x, dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (x1 - x0) * (y - y0) / (y1 - y0))
    return odd


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    """Corners at equal angles from the top, every second one at the inner radius."""
    radius = (1.0, inner)
    turns = [math.pi * k / points for k in range(2 * points)]
    return [(radius[k % 2] * math.sin(t), -radius[k % 2] * math.cos(t)) for k, t in enumerate(turns)]


_REACH = math.sqrt(1 - ARM**2)
_CORNERS = {
    "square": _star(4, 1.0)[1::2],
    "triangle": _star(3, 1.0)[::2],
    "star": _star(5, 0.45),
    "cross": [
        (ARM, -_REACH), (ARM, -ARM), (_REACH, -ARM), (_REACH, ARM), (ARM, ARM), (ARM, _REACH),
        (-ARM, _REACH), (-ARM, ARM), (-_REACH, ARM), (-_REACH, -ARM), (-ARM, -ARM), (-ARM, -_REACH),
    ],
    "arrow": [(0.0, -1.0), (0.7, -0.1), (0.25, -0.1), (0.25, 0.9), (-0.25, 0.9), (-0.25, -0.1), (-0.7, -0.1)],
}  # fmt: skip
