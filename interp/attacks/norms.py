"""The two balls a perturbation may live in, each with a random start, a steepest-ascent step and a projection.

Kernels: tensors (n, …) in and out, per sample over all but the first dimension. A perturbation is δ = x' − x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """A norm's geometry. size(δ) → (n,). step(g) → direction of unit size. project(δ, ε) → δ with size ≤ ε. start(z, u, ε)
    → a point uniform in the ball from standard normal z (n, …) and uniform u (n,)."""

    size: Callable[[Tensor], Tensor]
    step: Callable[[Tensor], Tensor]
    project: Callable[[Tensor, Tensor], Tensor]
    start: Callable[[Tensor, Tensor, Tensor], Tensor]


def _column(v: Tensor, like: Tensor) -> Tensor:
    return v.view(-1, *[1] * (like.ndim - 1))


def _l2_size(d: Tensor) -> Tensor:
    return d.flatten(1).norm(dim=1)


def _l2_step(g: Tensor) -> Tensor:
    """g / ‖g‖₂ per sample; a zero gradient gives a zero step."""
    return g / _column(_l2_size(g).clamp_min(torch.finfo(g.dtype).tiny), g)


def _l2_project(d: Tensor, eps: Tensor) -> Tensor:
    size = _l2_size(d)
    return d * _column(torch.where(size > eps, eps / size.clamp_min(torch.finfo(d.dtype).tiny), 1.0), d)


def _l2_start(z: Tensor, u: Tensor, eps: Tensor) -> Tensor:
    """Uniform in the ball: a uniform direction (normalised Gaussian) times ε·u^(1/dim)."""
    dim = z[0].numel()
    return _l2_step(z) * _column(eps * u ** (1 / dim), z)


def _linf_project(d: Tensor, eps: Tensor) -> Tensor:
    e = _column(eps, d)
    return torch.minimum(torch.maximum(d, -e), e)


def _linf_start(z: Tensor, u: Tensor, eps: Tensor) -> Tensor:
    """Uniform in the cube: the normal's distribution function makes z uniform, coordinate by coordinate."""
    return (2 * torch.special.ndtr(z) - 1) * _column(eps, z)


NORMS: dict[str, Norm] = {
    "linf": Norm(lambda d: d.flatten(1).abs().amax(1), torch.sign, _linf_project, _linf_start),
    "l2": Norm(_l2_size, _l2_step, _l2_project, _l2_start),
}
