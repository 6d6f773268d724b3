"""How concentrated a map is: on few pixels, or spread over the image.

a_p = Σ_channels |v|, over the d pixels p of an image:

entropy   −Σ_p s_p log s_p / log d,  s = a / Σ a              1 for a uniform map, 0 for a single pixel
gini      1 − 2 Σ_k a_(k)/Σa · (d − k + ½)/d, a_(1) ≤ … ≤ a_(d)   0 for a uniform map, 1 − 1/d for a single pixel
          (Chalasani et al., arXiv 1810.06583; Hurley & Rickard, arXiv 0811.4706)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy(v: Tensor) -> Tensor:
    """Entropy (n,) in [0, 1] of maps (n, c, h, w); NaN for a map of zeros."""
    share = _shares(v)
    return torch.special.entr(share).sum(1) / math.log(share.shape[1])


def gini(v: Tensor) -> Tensor:
    """Gini index (n,) in [0, 1) of maps (n, c, h, w); NaN for a map of zeros."""
    share = _shares(v).sort(dim=1).values
    d = share.shape[1]
    rank = torch.arange(1, d + 1, dtype=share.dtype, device=share.device)
    return 1 - 2 * (share * (d - rank + 0.5)).sum(1) / d


def _shares(v: Tensor) -> Tensor:
    a = v.abs().sum(1).flatten(1)
    return a / a.sum(1, keepdim=True)
