"""What a step moves in, and what the model is shown: choices that make a large perturbation smooth.

fourier   steepest ascent in the coordinates of feature visualisation (Olah et al. 2017, distill.pub/2017/feature-visualization):
          the picture is F⁻¹(s·c) with s(f) = max(|f|, 1/size)^−decay. A step along ∇_c = s·F∇_x moves the picture along
          F⁻¹(s²·F∇_x): the same weighting of the spectrum, written in pixels, so that the ball and the box stay where they are.
jitter    each step shows the model the picture shifted by whole pixels, up to `jitter` along each axis, wrapped around
blur      each step shows it blurred by a Gaussian of that width; so is the gradient, by the transposed matrix
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.types import Images

BASES = ("pixels", "fourier")


def weighted(g: Tensor, decay: float) -> Tensor:
    """F⁻¹(s²·F g) for g (n, c, h, w), s² scaled to mean 1 over the frequencies of rfft2. Limit: decay 0 returns g."""
    h, w = g.shape[-2:]
    frequency = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)[None, :]).clamp_min(1 / max(h, w))
    weight = frequency ** (-2 * decay)
    return torch.fft.irfft2(torch.fft.rfft2(g) * (weight / weight.mean()).to(g), s=(h, w))


def shifted(x: Images, by: Tensor) -> Images:
    """Each image moved down and right by its row of `by` (n, 2) int pixels, wrapped around."""
    h, w = x.shape[-2:]
    rows = (torch.arange(h, device=x.device) - by[:, :1]) % h
    columns = (torch.arange(w, device=x.device) - by[:, 1:]) % w
    at = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """x (n, c, h, w) through a Gaussian of width σ pixels, cut at 3σ, borders mirrored. Limit: σ = 0 returns x."""
    reach = min(math.ceil(3 * sigma), x.shape[-2] - 1, x.shape[-1] - 1)
    if reach < 1:
        return x
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    across = F.conv2d(padded, kernel, groups=x.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), groups=x.shape[1])
