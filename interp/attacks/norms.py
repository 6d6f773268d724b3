"""The balls a perturbation may live in, each with a random start, a steepest-ascent step and a way back into ball and box.

Kernels: tensors (n, …) in and out, per sample over all but the first dimension. A perturbation is δ = x' − x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.types import Images

SPARSITY = 0.99  # an L1 step moves the coordinates above this quantile of |g| (Tramèr & Boneh, arXiv 1904.13000, algorithm 1)


@dataclass(frozen=True)
class Norm:
    """A norm's geometry.

    size(δ) → (n,). step(g, x) → direction of unit size at x. land(x, δ, ε) → a point of the ball of radius ε (n,) around x and
    of the box [0, 1], x + δ itself where that is one. start(z, u, ε) → δ uniform in the ball from standard normal z (n, …) and
    uniform u (n,).
    """

    size: Callable[[Tensor], Tensor]
    step: Callable[[Tensor, Images], Tensor]
    land: Callable[[Images, Tensor, Tensor], Images]
    start: Callable[[Tensor, Tensor, Tensor], Tensor]


def column(v: Tensor, like: Tensor) -> Tensor:
    """Values (n,) shaped to multiply a tensor (n, …)."""
    return v.view(-1, *[1] * (like.ndim - 1))


def unit(v: Tensor, size: Tensor) -> Tensor:
    """v / size per sample; a zero vector stays zero."""
    return v / column(size.clamp_min(torch.finfo(v.dtype).tiny), v)


def _linf_size(d: Tensor) -> Tensor:
    return d.flatten(1).abs().amax(1)


def _linf_land(x: Images, d: Tensor, eps: Tensor) -> Images:
    e = column(eps, d)
    return (x + torch.minimum(torch.maximum(d, -e), e)).clamp(0, 1)


def _linf_start(z: Tensor, u: Tensor, eps: Tensor) -> Tensor:
    """Uniform in the cube: the normal's distribution function makes z uniform, coordinate by coordinate."""
    return (2 * torch.special.ndtr(z) - 1) * column(eps, z)


def _l2_size(d: Tensor) -> Tensor:
    return d.flatten(1).norm(dim=1)


def _l2_step(g: Tensor, x: Images) -> Tensor:
    return unit(g, _l2_size(g))


def _l2_land(x: Images, d: Tensor, eps: Tensor) -> Images:
    """On the ball, then into the box, which only shortens δ: what the field does, though not the nearest point of both."""
    size = _l2_size(d)
    tiny = torch.finfo(d.dtype).tiny
    return (x + d * column(torch.where(size > eps, eps / size.clamp_min(tiny), 1.0), d)).clamp(0, 1)


def _l2_start(z: Tensor, u: Tensor, eps: Tensor) -> Tensor:
    """Uniform in the ball: a uniform direction (normalised Gaussian) times ε·u^(1/dim)."""
    return unit(z, _l2_size(z)) * column(eps * u ** (1 / z[0].numel()), z)


def _l1_size(d: Tensor) -> Tensor:
    return d.flatten(1).abs().sum(1)


def _l1_step(g: Tensor, x: Images) -> Tensor:
    """The signs of the coordinates in the top per cent of |g|, scaled to unit size; none that would leave the box at once."""
    stuck = ((x <= 0) & (g < 0)) | ((x >= 1) & (g > 0))
    return sparse_signs(g.masked_fill(stuck, 0), torch.tensor(math.ceil(SPARSITY * (g[0].numel() - 1)), device=g.device))


def sparse_signs(g: Tensor, skipped: Tensor) -> Tensor:
    """sign(g) without the `skipped` smallest |g| (one number, or one per sample; ties stay), scaled to ‖·‖₁ = 1."""
    size = g.flatten(1).abs()
    least = size.sort(dim=1).values.gather(1, skipped.expand(len(g))[:, None])
    signs = g.sign() * (size >= least).view_as(g)
    return unit(signs, _l1_size(signs))


def _l1_land(x: Images, d: Tensor, eps: Tensor) -> Images:
    """The nearest point of ball and box at once (Croce & Hein, arXiv 2103.01208, proposition 2.1).

    z_i = sign(δ_i)·clip(|δ_i| − λ, 0, l_i), l_i the way from x_i to the border that δ_i points to, with the smallest λ ≥ 0 for
    which ‖z‖₁ ≤ ε. ‖z(λ)‖₁ is linear between the values |δ_i| and |δ_i| − l_i: sorted, their running sums give λ in closed
    form.
    """
    wide = d.dtype if d.device.type == "mps" else torch.float64
    size = d.flatten(1).abs().to(wide)
    room = torch.where(d > 0, 1 - x, x).flatten(1).to(wide)
    kinks, order = torch.cat([size, (size - room).clamp_min(0)], 1).sort(dim=1, descending=True, stable=True)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).to(wide)
    count, total = slope.cumsum(1), (slope * kinks).cumsum(1)
    below = torch.cat([kinks[:, 1:], torch.zeros_like(kinks[:, :1])], 1)
    reaches = total - below * count >= eps[:, None]
    at = reaches.int().argmax(1, keepdim=True)
    cut = (total.gather(1, at) - eps[:, None]) / count.gather(1, at).clamp_min(1)
    cut = torch.where(reaches.any(1, keepdim=True), cut, torch.zeros_like(cut))
    kept = torch.minimum((size - cut).clamp_min(0), room).to(d.dtype).view_as(d)
    return (x + d.sign() * kept).clamp(0, 1)


def _l1_start(z: Tensor, u: Tensor, eps: Tensor) -> Tensor:
    """Uniform in the ball: signed exponentials over their sum have a uniform direction; times ε·u^(1/dim)."""
    tail = torch.special.log_ndtr(-z.abs().cpu()).to(z)  # on the processor: MPS has no such function
    e = z.sign() * -(tail + math.log(2))  # |e|: the chance of a larger |z|, as an exponential
    return unit(e, _l1_size(e)) * column(eps * u ** (1 / z[0].numel()), z)


NORMS: dict[str, Norm] = {
    "linf": Norm(_linf_size, lambda g, x: torch.sign(g), _linf_land, _linf_start),
    "l2": Norm(_l2_size, _l2_step, _l2_land, _l2_start),
    "l1": Norm(_l1_size, _l1_step, _l1_land, _l1_start),
}
