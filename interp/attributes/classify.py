"""What an independent model reads in a perturbation.

The quantification of arXiv 2209.07399: a perturbation δ shown as the image (δ + ε)/2ε, in which 0.5 is no change, is
classified by a model that did not make it. Also the perturbed image itself (transfer).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interp.types import Images, Labels


def as_image(delta: Tensor, eps: float) -> Images:
    """δ ∈ [−ε, ε] as an image (δ + ε)/2ε in [0, 1]; a zero δ is grey 0.5."""
    return ((delta + eps) / (2 * eps)).clamp(0, 1)


def read_as(judge: nn.Module, x: Images, targets: Labels, *, chunk: int = 64) -> Tensor:
    """Whether the judge's first choice for each image is its target, as (n,) float 0 or 1."""
    with torch.no_grad():
        choice = torch.cat([judge(part).argmax(1) for part in x.split(chunk)])
    return (choice == targets).float()
