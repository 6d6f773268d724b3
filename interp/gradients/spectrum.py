"""Where in the spectrum a map lies: smooth shapes sit at low frequencies, noise at high ones.

    E(r) = Σ_{|f| = r} |FFT(v − mean v)|²,   centroid = Σ_f |f|·|FFT|² / Σ_f |FFT|²,   |f| in cycles per pixel

The figure of arXiv 2209.07399 shows log |FFT| of perturbations; the centroid puts it in one number. White noise has the
mean of |f| over the square of frequencies, 0.3826.
"""

from __future__ import annotations

import torch
from torch import Tensor


def energy(v: Tensor) -> tuple[Tensor, Tensor]:
    """Spectral energy of maps (n, c, h, w), summed over channels, without the mean.

    Returns |f| (h, w) in cycles per pixel and the energy (n, h, w), which sums to h·w·Σ(v − mean)² (Parseval).
    """
    h, w = v.shape[-2:]
    centred = v - v.mean((-2, -1), keepdim=True)
    power = torch.fft.fft2(centred).abs().square().sum(1)
    radius = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.fftfreq(w)[None, :])
    return radius.to(v.device), power


def centroid(v: Tensor) -> Tensor:
    """Spectral centroid (n,) of maps (n, c, h, w) in cycles per pixel; NaN for a constant map."""
    radius, power = energy(v)
    return (radius * power).sum((1, 2)) / power.sum((1, 2))


def radial(v: Tensor, *, bins: int = 16) -> tuple[Tensor, Tensor]:
    """Share of the energy in `bins` equal bands of |f| from 0 to √½: band centres (bins,) and shares (n, bins)."""
    radius, power = energy(v)
    top = 0.5**0.5
    band = (radius / top * bins).long().clamp_max(bins - 1).flatten()
    shares = torch.zeros(len(v), bins, dtype=power.dtype, device=v.device).index_add_(1, band, power.flatten(1))
    return (torch.arange(bins, device=v.device) + 0.5) * top / bins, shares / shares.sum(1, keepdim=True)
