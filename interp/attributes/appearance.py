"""How a map v (n, c, h, w), a perturbation or a gradient, looks: rough or smooth, striped, sparse, steady.

    total variation   mean_{c,p} ‖∇v‖ / mean_{c,p} |v|, ∇ by differences to the right and the lower neighbour (Rudin et al. 1992)
    anisotropy        |Σ_f P(f)·e^{2iθ(f)}| / Σ_f P(f), P the energy of `spectrum.energy`, θ the angle of the frequency f
    Hoyer sparsity    (√d − ‖a‖₁/‖a‖₂) / (√d − 1), a_p = Σ_c |v|, d pixels (Hoyer 2004; Hurley & Rickard, arXiv 0811.4706)
    sign agreement    Σ A·|v| / Σ |v| over an attack's gradients, A = |Σ_t sign v_t| / T
    smoothness        cosine of the gradient at x with that at x + N(0, σ²) (after SmoothGrad, arXiv 1706.03825)

The control is the same kernel on gradients of networks of the same architecture with random parameters (`gather`): noise is too
mild, since such networks are steady along an attack and smooth around an image, as much as trained ones or more. Normal noise of
v's shape scores: total variation √3·E(m = ⅔) = 2.19, E the elliptic integral; anisotropy a root mean square of √(2 / chw), 0.026
at 3 × 32 × 32; Hoyer, for three channels, 0.083·√d / (√d − 1); sign
agreement C(T, T/2) / 2^T for even T, 0.176 for 20; smoothness 0. No measure here says what a map shows: a grating is smoother and
a single pixel sparser than any object. Total variation is per pixel: compare maps of one resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from interp.gradients.concentration import entropy, gini
from interp.gradients.spectrum import centroid, energy
from interp.result import Measure
from interp.stats import Running, cosine


def total_variation(v: Tensor) -> Tensor:
    """Mean length of the spatial gradient per mean absolute value, (n,) ≥ 0; 0 for a constant map, NaN for a map of zeros.

    Limit: a wave of k periods along a side of N pixels scores about 2·sin(πk/N); v and −3v score alike.
    """
    right, below = v[..., :-1, 1:] - v[..., :-1, :-1], v[..., 1:, :-1] - v[..., :-1, :-1]
    return torch.hypot(right, below).mean((1, 2, 3)) / v.abs().mean((1, 2, 3))


def anisotropy(v: Tensor) -> Tensor:
    """How much of the energy lies along one orientation, (n,) in [0, 1]; NaN for a constant map.

    0 where energy is spread evenly, or over two orientations at right angles; 1 for a wave or stripes. Of a pattern that does not
    end where it began, the jump at the border adds energy along both axes, in equal parts only for diagonals.
    """
    return _resultant(v).abs()


def orientation(v: Tensor) -> Tensor:
    """The direction in which a map varies most, as an angle (n,) in [0, π); NaN for a constant map.

    0 along a row (upright stripes), π/2 down a column, π/4 toward the lower right. Means little where anisotropy is near 0.
    """
    return (_resultant(v).angle() / 2).remainder(torch.pi)


def _resultant(v: Tensor) -> Tensor:
    """Energy-weighted mean of e^{2iθ} over frequencies, (n,) complex."""
    radius, power = energy(v)
    h, w = v.shape[-2:]
    down, along = torch.fft.fftfreq(h, device=v.device)[:, None], torch.fft.fftfreq(w, device=v.device)[None, :]
    both_ways = (down == -0.5) | (along == -0.5)  # such a frequency is also its mirror image
    turned = torch.complex(along.square() - down.square(), (2 * along * down).masked_fill(both_ways, 0)) / radius.square()
    turned[0, 0] = 0
    total = power.sum((1, 2))
    rounding = h * w * v.square().sum((1, 2, 3)) * 1e-12  # what is left of a constant map's energy
    return (power * turned).sum((1, 2)) / torch.where(total > rounding, total, torch.nan)


def hoyer(v: Tensor) -> Tensor:
    """Hoyer's sparsity (n,) in [0, 1]: 0 for a uniform map, 1 for a single pixel, NaN for a map of zeros."""
    a = v.abs().sum(1).flatten(1)
    root = a.shape[1] ** 0.5
    return (root - a.sum(1) / a.norm(dim=1)) / (root - 1)


def sign_agreement(running: Running) -> Tensor:
    """How steadily the samples of images (n, …) keep their sign, weighted by mean absolute value: (n,) in [0, 1].

    1 where no value ever changes sign; NaN where all are 0. The value for noise falls as 1/√T: compare equal numbers of steps.
    """
    weight = running.absolute.flatten(1)
    return (running.agreement.flatten(1) * weight).sum(1) / weight.sum(1)


def smoothness(at: Tensor, near: Tensor) -> Tensor:
    """Cosine (n,) between the gradients at x and at x + small noise, NaN where either is 0; 1 for a linear model."""
    defined = at.flatten(1).any(1) & near.flatten(1).any(1)
    return torch.where(defined, cosine(at, near), torch.nan)


MEASURES = (
    Measure(
        "total_variation",
        "total variation",
        "mean length of ∇v per mean |v|, normal noise 2.19",
        "Rudin, Osher & Fatemi 1992, doi 10.1016/0167-2789(92)90242-F",
        "1/pixel",
        "lower",
    ),
    Measure(
        "anisotropy",
        "anisotropy",
        "|Σ_f P(f)·exp(2iθ_f)| / Σ_f P(f) of the spectral energy P, 1 for stripes",
        "resultant of the doubled angle (Mardia & Jupp 2000, section 2.3)",
        "share",
        "none",
    ),
    Measure(
        "hoyer",
        "Hoyer sparsity",
        "(√d − ‖a‖₁/‖a‖₂) / (√d − 1), a = Σ_channels |v|, 1 for a single pixel",
        "Hoyer 2004; arXiv 0811.4706",
        "share",
        "none",
    ),
    Measure(
        "gini",
        "Gini index",
        "Gini index of Σ_channels |v| over pixels, 1 for a single pixel",
        "arXiv 1810.06583; arXiv 0811.4706",
        "share",
        "none",
    ),
    Measure(
        "entropy",
        "entropy over pixels",
        "−Σ s·ln s / ln d, s = share of Σ_channels |v| in each of d pixels, 1 for a uniform map",
        "Shannon entropy",
        "share of its maximum",
        "none",
    ),
    Measure(
        "gradient_centroid",
        "centroid of the gradient",
        "Σ |f|·|FFT ∇L|² / Σ |FFT ∇L|², white noise 0.38",
        "arXiv 2209.07399, Fourier figure, as one number",
        "cycles/pixel",
        "lower",
    ),
    Measure(
        "sign_agreement",
        "sign agreement",
        "Σ A·|∇L| / Σ |∇L| over an attack of T steps, A = |Σ_t sign ∇L(x_t)| / T",
        "after arXiv 2209.07399, accumulated gradients",
        "share",
        "higher",
    ),
    Measure(
        "smoothness",
        "smoothness of the gradient",
        "cosine of ∇L at x and at x + N(0, σ²)",
        "after SmoothGrad, arXiv 1706.03825",
        "cosine",
        "higher",
    ),
    Measure(
        "persistence",
        "persistence of the gradient",
        "mean cosine of ∇L at neighbouring steps of an attack",
        "after arXiv 2209.07399, accumulated gradients",
        "cosine",
        "higher",
    ),
    Measure(
        "centroid",
        "spectral centroid of δ",
        "Σ |f|·|FFT δ|² / Σ |FFT δ|², white noise 0.38",
        "arXiv 2209.07399, Fourier figure, as one number",
        "cycles/pixel",
        "lower",
    ),
)
KERNELS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "total_variation": total_variation,
    "anisotropy": anisotropy,
    "hoyer": hoyer,
    "gini": gini,
    "entropy": entropy,
    "gradient_centroid": centroid,
}
"""The measures of one map v (n, c, h, w) → (n,); sign agreement needs a Running, smoothness two gradients."""
