"""Images with one kind of information taken out: silhouettes, edges, shuffled patches, bands of the spectrum.

Silhouettes and edges leave the shape (Geirhos et al., arXiv 1811.12231), shuffled patches the texture (Zhang & Zhu, arXiv
1905.09797); low and high bands are those of Yin et al. (arXiv 1906.08988).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from interp.types import Batch, Images, InputError

GREY = (0.299, 0.587, 0.114)  # luma, ITU-R BT.601


def silhouettes(batch: Batch) -> Batch:
    """The objects black on white, with their labels and masks; raises InputError where the batch has no masks."""
    if batch.masks is None:
        raise InputError(
            "silhouettes need masks and the images have none; use interp.data.synthetic or a parquet file with trimap"
        )
    images = (~batch.masks)[:, None].float().expand(-1, 3, -1, -1).contiguous()
    return dataclasses.replace(batch, images=images)


def edges(batch: Batch, *, sigma: float = 1.0, low: float = 0.1, high: float = 0.25) -> Batch:
    """Thin contours black on white, from the pixels alone, with labels and masks as they were.

    Canny (1986): Gaussian blur (sigma, in pixels), Sobel gradient of the grey image, only its maxima along its direction, of
    these all above `high` and those above `low` that touch them; both are shares of the image's own largest gradient. A plain
    image has no edges, nor have colours of one grey. Raises InputError unless 0 < low ≤ high ≤ 1 and sigma > 0.
    """
    if not (0 < low <= high <= 1 and sigma > 0):
        raise InputError(
            f"edges were asked for with sigma {sigma}, low {low}, high {high}; expected sigma > 0, 0 < low ≤ high ≤ 1"
        )
    grey = torch.einsum("nchw,c->nhw", batch.images, torch.tensor(GREY))[:, None]
    gx, gy = _sobel(_blur(grey, sigma))
    strength = gx.hypot(gy)
    top = strength.amax((2, 3), keepdim=True)
    ridge = _ridge(strength, gx, gy) & (strength > 1e-4)  # below: rounding of a plain image
    weak, kept = ridge & (strength >= low * top), ridge & (strength >= high * top)
    while not torch.equal(grown := weak & (F.max_pool2d(kept.float(), 3, 1, 1) > 0), kept):
        kept = grown
    return dataclasses.replace(batch, images=(~kept).float().expand(-1, 3, -1, -1).contiguous())


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (n, 1, h, w), cut off at 3σ, the border repeated."""
    r = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-r, r + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    x = F.conv2d(F.pad(x, (r, r, 0, 0), "replicate"), kernel[None, None, None, :])
    return F.conv2d(F.pad(x, (0, 0, r, r), "replicate"), kernel[None, None, :, None])


def _sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical derivatives (n, 1, h, w) in units of grey per pixel."""
    k = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    x = F.pad(x, (1, 1, 1, 1), "replicate")
    return F.conv2d(x, k[None, None]), F.conv2d(x, k.T[None, None])


def _ridge(strength: Tensor, gx: Tensor, gy: Tensor) -> Tensor:
    """Where the strength is the largest among the two neighbours along the gradient, of four directions."""
    h, w = strength.shape[2:]
    padded = F.pad(strength, (1, 1, 1, 1))
    direction = (torch.atan2(gy, gx) / (math.pi / 4)).round().long() % 4
    out = torch.zeros_like(strength, dtype=torch.bool)
    for k, (dx, dy) in enumerate(((1, 0), (1, 1), (0, 1), (-1, 1))):
        ahead = padded[..., 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
        behind = padded[..., 1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w]
        out |= (direction == k) & (strength >= ahead) & (strength > behind)
    return out


def patch_shuffle(images: Images, grid: int, seed: int) -> Images:
    """Cut images into grid × grid patches and lay them down in another order, an own one for each image.

    The order depends on the seed and the image's place in the batch, not on the batch's length or pixels. A grid of 1 returns
    the images. Raises InputError where the sides are no multiples of grid.
    """
    n, c, h, w = images.shape
    if grid < 1 or h % grid or w % grid:
        raise InputError(f"{w}×{h} pixels do not fall into {grid}×{grid} equal patches; choose a divisor of both sides")
    order = torch.rand(n, grid * grid, generator=torch.Generator().manual_seed(seed)).argsort(1).to(images.device)
    patches = images.view(n, c, grid, h // grid, grid, w // grid).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = patches[torch.arange(n, device=images.device)[:, None], order].view(n, grid, grid, c, h // grid, w // grid)
    return moved.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


def band_limited(images: Images, *, low: float | None = None, high: float | None = None, clip: bool = True) -> Images:
    """Keep the frequencies low ≤ |f| < high, in cycles per pixel, and the mean; without limits the images themselves.

    |f| goes to √½ in the corners of the spectrum. Results are clipped to [0, 1] unless clip is false; unclipped, the parts
    below and above one limit add up to the image plus its mean. Raises InputError where low ≥ high or a limit is negative.
    """
    if (low or 0.0) < 0 or (high is not None and high <= (low or 0.0)):
        raise InputError(f"the band from {low} to {high} is empty; expected 0 ≤ low < high, in cycles per pixel")
    if low is None and high is None:
        return images
    h, w = images.shape[2:]
    radius = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)[None, :]).to(images.device)
    kept = (radius >= (low or 0.0)) & (radius < (math.inf if high is None else high))
    kept[0, 0] = True
    out = torch.fft.irfft2(torch.fft.rfft2(images) * kept, s=(h, w))
    return out.clamp(0, 1) if clip else out
