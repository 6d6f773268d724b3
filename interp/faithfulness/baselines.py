"""Maps that know nothing of the model: what a method has to beat before its own maps mean anything."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from interp.faithfulness.draws import uniform
from interp.types import Images, Maps


def noise(x: Images, *, seed: int = 0) -> Maps:
    """Uniform noise in [0, 1), pixel by pixel: a random order."""
    return uniform(x, tuple(x.shape[2:]), seed=seed, use="noise map")


def smooth_noise(x: Images, *, cells: int = 8, seed: int = 0) -> Maps:
    """Uniform noise on a grid of cells × cells, enlarged bilinearly: random at the resolution that attention maps have."""
    coarse = uniform(x, (1, cells, cells), seed=seed, use="smooth map")
    return F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def edges(x: Images) -> Maps:
    """Sobel magnitude of the grey image, mirrored at the border: the edge detector of Adebayo et al. (arXiv 1810.03292)."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(x)
    grey = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="reflect")
    return F.conv2d(grey, torch.stack([across, across.T])[:, None]).square().sum(1).sqrt()


def centre(x: Images, *, width: float = 0.25) -> Maps:
    """A Gaussian around the image's centre, σ = width of each side: where photographers put the object."""
    rows, columns = (torch.exp(-((((torch.arange(side) + 0.5) / side - 0.5) / width) ** 2) / 2).to(x) for side in x.shape[2:])
    return (rows[:, None] * columns).expand(len(x), -1, -1)


def flat(x: Images) -> Maps:
    """The uniform map: no order at all, so that ties are broken at random."""
    return torch.ones_like(x[:, 0])
