"""Where gradients are taken: iterators that yield ∇_x L, one tensor (n, 3, h, w) per sample point, in the order taken.

steps   G_T = Σ_t ∇_x L(f(x_t), y) over the iterates of PGD (arXiv 2209.07399 shows gradients accumulated over an attack)
noise   x + N(0, σ²): SmoothGrad (Smilkov et al., arXiv 1706.03825); sigma = 0, n = 1 is the plain gradient
path    x₀ + a·(x − x₀), a at the midpoints of n equal parts of [0, 1] (Sundararajan et al., arXiv 1703.01365)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from interp.attacks.pgd import LOSSES, PGD, pgd_steps
from interp.types import Images, Labels


def gradient(model: nn.Module, x: Images, y: Labels, *, loss: str = "ce") -> Tensor:
    """∇_x L(f(x), y) per sample (n, 3, h, w)."""
    x = x.detach().requires_grad_(True)
    (g,) = torch.autograd.grad(LOSSES[loss](model(x), y).sum(), x)
    return g


def over_steps(model: nn.Module, x: Images, y: Labels, pgd: PGD, *, first: int = 0) -> Iterator[Tensor]:
    """The gradient at each iterate of PGD: `pgd.steps` tensors."""
    for step in pgd_steps(model, x, y, pgd, first=first):
        if step.gradient is not None:
            yield step.gradient


def over_noise(
    model: nn.Module, x: Images, y: Labels, *, n: int, sigma: float, seed: int = 0, loss: str = "ce"
) -> Iterator[Tensor]:
    """The gradient at n noisy copies of x; σ in units of [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        noise = torch.randn(x.shape, generator=generator).to(x)
        yield gradient(model, x + sigma * noise, y, loss=loss)


def over_path(model: nn.Module, x: Images, y: Labels, *, n: int, baseline: Images, loss: str = "logit") -> Iterator[Tensor]:
    """The gradient at n points of the straight path; (x − x₀)·mean sums to L(x) − L(x₀) as n grows."""
    for k in range(n):
        yield gradient(model, baseline + (k + 0.5) / n * (x - baseline), y, loss=loss)
