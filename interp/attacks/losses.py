"""What an attack climbs (or, targeted, descends), one value per sample.

y is a label (n,) for LOSSES, class probabilities (n, classes) for TO_DISTRIBUTION, and for TO_FEATURES what another image gives
at a layer, where the model is cut off at it (`features.cut`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.types import InputError

Loss = Callable[[Tensor, Tensor], Tensor]


def _ce(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _logit(logits: Tensor, y: Tensor) -> Tensor:
    return -logits.gather(1, y[:, None])[:, 0]


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's (Carlini & Wagner, arXiv 1608.04644, f6 without the cut)."""
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def _dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin over the gap between the largest and the third largest logit (Croce & Hein, arXiv 2003.01690, equation 6)."""
    if logits.shape[1] < 3:
        raise InputError(f"the dlr loss needs three classes, this model has {logits.shape[1]}; use margin")
    largest = logits.topk(3, dim=1).values
    return _margin(logits, y) / (largest[:, 0] - largest[:, 2] + 1e-12)


def _dlr_toward(logits: Tensor, target: Tensor) -> Tensor:
    """The same toward a target, over the gap to the mean of the third and the fourth logit (there, equation 7)."""
    if logits.shape[1] < 4:
        raise InputError(f"the dlr loss toward a target needs four classes, this model has {logits.shape[1]}; use margin")
    largest = logits.topk(4, dim=1).values
    return _margin(logits, target) / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12)


def _kl(logits: Tensor, p: Tensor) -> Tensor:
    """KL(p ‖ softmax(logits)) to a distribution p (n, classes): what TRADES crafts with (Zhang et al., arXiv 1901.08573)."""
    return (torch.xlogy(p, p) - p * logits.log_softmax(1)).sum(1)


def _squared(logits: Tensor, p: Tensor) -> Tensor:
    """‖softmax(logits) − p‖² to a distribution p (n, classes): what SCORE crafts with (Pang et al., arXiv 2202.10103)."""
    return (logits.softmax(1) - p).square().sum(1)


def _features(output: Tensor, wanted: Tensor) -> Tensor:
    """‖output − wanted‖₂ / ‖wanted‖₂: feature inversion descends it (Engstrom et al., arXiv 1906.00945, section 4.1)."""
    flat, goal = output.flatten(1), wanted.flatten(1)
    return (flat - goal).norm(dim=1) / goal.norm(dim=1).clamp_min(torch.finfo(goal.dtype).tiny)


LOSSES: dict[str, Loss] = {"ce": _ce, "logit": _logit, "margin": _margin, "dlr": _dlr}
TO_DISTRIBUTION: dict[str, Loss] = {"kl": _kl, "squared": _squared}
TO_FEATURES: dict[str, Loss] = {"features": _features}
NAMES = (*LOSSES, *TO_DISTRIBUTION, *TO_FEATURES)


def loss_named(name: str, *, targeted: bool = False) -> Loss:
    """The loss of a name; `targeted` matters for dlr, which has a form of its own toward a target."""
    if name == "dlr" and targeted:
        return _dlr_toward
    return (LOSSES | TO_DISTRIBUTION | TO_FEATURES)[name]


def succeeded(logits: Tensor, y: Tensor, *, targeted: bool) -> Tensor:
    """Whether each sample (n,) is read as its target, or untargeted no longer as its label."""
    return (logits.argmax(1) == y) == targeted
