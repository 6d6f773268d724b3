"""Whether a map follows the edges of the image it belongs to.

    alignment = Pearson correlation over pixels of Σ_channels |v| and the Sobel magnitude of the grey image

Robust models' gradients are reported to follow edges (Tsipras et al., arXiv 1805.12152, section 3, in pictures); a map
unrelated to the image scores 0 on average, the edge map itself 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.result import Measure
from interp.types import Images, Maps


def sobel(x: Images) -> Maps:
    """Gradient magnitude (n, h, w) of the grey images, by the 3 × 3 Sobel operator with mirrored borders."""
    grey = x.mean(1, keepdim=True)
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(x)
    kernels = torch.stack([kernel, kernel.T])[:, None]
    d = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), kernels)
    return d.square().sum(1).sqrt()


def alignment(v: Tensor, x: Images) -> Tensor:
    """Edge alignment (n,) in [−1, 1] of maps v (n, c, h, w) with images x; NaN where either is constant."""
    pair = torch.stack([v.abs().sum(1).flatten(1), sobel(x).flatten(1)])
    centred = pair - pair.mean(2, keepdim=True)
    return (centred[0] * centred[1]).sum(1) / centred.norm(dim=2).prod(0)


MEASURES = (
    Measure(
        "edges",
        "edge alignment",
        "correlation over pixels of |Σ_t ∇L(x_t)| and the Sobel magnitude of x",
        "after Tsipras et al., arXiv 1805.12152",
        "correlation",
        "higher",
    ),
)
