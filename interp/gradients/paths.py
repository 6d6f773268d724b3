"""Paths from an image without information to the image, and the rules that integrate along them.

straight   x₀ + a·(x − x₀)                         integrated gradients, Sundararajan et al., arXiv 1703.01365, equation 1
blur       x through a Gaussian of width σ → 0      Blur IG, Xu et al., arXiv 2004.03383

A path γ: [0, 1] → images has γ(1) = x; the attribution ∫ ∇L(γ)·γ' da sums to L(x) − L(γ(0)), whatever the path.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from interp.stats import wide
from interp.types import Images, InputError

RULES = ("gauss-legendre", "midpoint", "trapezoid")
BASELINES = ("grey", "black", "white", "blur", "mean")
WIDEST = 0.25  # of the blurs, as a share of the image's side; the authors' code takes 50 pixels at 224 to 299


def nodes(rule: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [0, 1] and weights, which sum to 1, of a rule with n evaluations.

    Exact for polynomials of degree 2n − 1 (gauss-legendre) or 1 (midpoint; trapezoid, which needs n ≥ 2). Raises InputError for
    others.
    """
    if rule not in RULES or n < (2 if rule == "trapezoid" else 1):
        raise InputError(f"the rule is {rule!r} with {n} points; expected one of {', '.join(RULES)}, trapezoid with at least 2")
    if rule == "gauss-legendre":
        at, weights = np.polynomial.legendre.leggauss(n)
        return (at + 1) / 2, weights / 2
    if rule == "midpoint":
        return (np.arange(n) + 0.5) / n, np.full(n, 1 / n)
    weights = np.full(n, 1 / (n - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights


def baseline(name: str, x: Images, *, among: Images | None = None) -> Images:
    """Where a straight path begins, like x (n, 3, h, w): one level, x blurred, or the mean of the images `among` (or x)."""
    if name not in BASELINES:
        raise InputError(f"baseline is {name!r}; expected one of {', '.join(BASELINES)}")
    if name == "blur":
        return Blur(x).at(0.0)[0]
    if name == "mean":
        return (x if among is None else among).mean(0).to(x).expand_as(x)
    return torch.full_like(x, {"grey": 0.5, "black": 0.0, "white": 1.0}[name])


class Blur:
    """The path through the scale space of images x, σ = WIDEST·side·(1 − a)².

    Gaussian blur with mirrored borders is a multiplication by exp(−σ²ω²/2), ω = πk/side, in the cosine basis C: rows and columns
    pass through Cᵀ exp(…) C. So the derivative along the path is exact, two blurs of σ and τ are one of √(σ² + τ²), a = 1 is x
    itself, and σ → ∞ its mean colour. The square gives small blurs, where most of an image is lost, more of the path.
    """

    def __init__(self, x: Images) -> None:
        self.x, exact = x, wide(x)
        self.bases = [_cosines(side).to(x.device, exact) for side in x.shape[-2:]]
        self.frequencies = [math.pi / side * torch.arange(side, device=x.device, dtype=exact) for side in x.shape[-2:]]
        self.widest = WIDEST * max(x.shape[-2:])

    def at(self, a: float) -> tuple[Images, Tensor]:
        """The point γ(a) and the derivative γ'(a), like x."""
        sigma, slope = self.widest * (1 - a) ** 2, -2 * self.widest * (1 - a)
        passed = [torch.exp(-((sigma * w) ** 2) / 2) for w in self.frequencies]
        changed = [-sigma * slope * w**2 * p for w, p in zip(self.frequencies, passed, strict=True)]
        (rows, columns), (rows_, columns_) = (
            [_through(c, f) for c, f in zip(self.bases, by, strict=True)] for by in (passed, changed)
        )
        x = self.x.to(rows.dtype)
        across, across_ = x @ columns, x @ columns_
        return (rows @ across).to(self.x.dtype), (rows_ @ across + rows @ across_).to(self.x.dtype)


def _cosines(side: int) -> Tensor:
    """The orthonormal cosine basis (DCT-II), one function per row."""
    k = torch.arange(side, dtype=torch.float64)
    c = torch.cos(math.pi / side * k[:, None] * (k + 0.5)) * math.sqrt(2 / side)
    c[0] /= math.sqrt(2)
    return c


def _through(c: Tensor, factor: Tensor) -> Tensor:
    return (c.T * factor) @ c
