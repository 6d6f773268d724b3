"""What adversarial training minimises, each loss a function of logits; the attack that goes with each is named beside it.

    pgd      CE(f(x'), y)                                          Madry et al., arXiv 1706.06083, eq. 2.1
    trades   CE(f(x), y) + β·KL(f(x) ‖ f(x'))                      Zhang et al., arXiv 1901.08573, eq. 5
    mart     BCE(f(x'), y) + β·KL(f(x) ‖ f(x'))·(1 − f_y(x))       Wang et al., ICLR 2020, eq. 8
    hat      trades + γ·CE(f(x + h·(x' − x)), argmax g(x'))        Rade & Moosavi-Dezfooli, ICLR 2022; g: a standard model
    score    ‖f(x) − y‖² + β·‖f(x') − f(x)‖²                       Pang et al., arXiv 2202.10103 (f: probabilities)

f are softmax probabilities where a divergence is taken, x' the crafted images. Targets y are labels (n,) or distributions
(n, classes) (MixUp, CutMix, label smoothing) except where a loss needs the true class. All return a mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.types import Labels


@dataclass(frozen=True)
class Views:
    """Logits (n, classes) of the network on its views of one batch; those an objective does not use are None.

    clean: on x. crafted: on x'. beyond: on x + h·(x' − x), with `helper_labels` (n,), what the helper sees in x'.
    """

    clean: Tensor | None
    crafted: Tensor | None
    beyond: Tensor | None = None
    helper_labels: Labels | None = None


Loss = Callable[[Views, Tensor, float, float], Tensor]  # views, target, beta, gamma


@dataclass(frozen=True)
class Objective:
    """craft: the loss its attack climbs ('ce' against the label, 'kl' or 'squared' against the clean prediction, '' for none).

    views: which logits the loss takes. hard_labels: whether it needs the true class and so goes without mixed targets.
    """

    loss: Loss
    craft: str
    views: tuple[str, ...]
    hard_labels: bool = False


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) ‖ softmax(q)) per sample (n,), from logits; both carry gradients."""
    a, b = p.log_softmax(1), q.log_softmax(1)
    return (a.exp() * (a - b)).sum(1)


def boosted_cross_entropy(logits: Tensor, labels: Labels) -> Tensor:
    """−log p_y − log(1 − max_{k≠y} p_k) per sample (n,): MART's BCE (eq. 6), computed from logits without a small constant."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    best = others.argmax(1, keepdim=True)
    rest = logits.scatter(1, best, -torch.inf).logsumexp(1) - logits.logsumexp(1)  # log(1 − p_best)
    return F.cross_entropy(logits, labels, reduction="none") - rest


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """‖softmax(logits) − target‖² per sample (n,); target: labels (n,) or distributions (n, classes)."""
    wanted = F.one_hot(target, logits.shape[1]).to(logits) if target.ndim == 1 else target
    return (logits.softmax(1) - wanted).square().sum(1)


def _standard(v: Views, target: Tensor, beta: float, gamma: float) -> Tensor:
    return F.cross_entropy(_there(v.clean), target)


def _pgd(v: Views, target: Tensor, beta: float, gamma: float) -> Tensor:
    return F.cross_entropy(_there(v.crafted), target)


def _trades(v: Views, target: Tensor, beta: float, gamma: float) -> Tensor:
    clean, crafted = _there(v.clean), _there(v.crafted)
    return F.cross_entropy(clean, target) + beta * divergence(clean, crafted).mean()


def _mart(v: Views, target: Tensor, beta: float, gamma: float) -> Tensor:
    clean, crafted = _there(v.clean), _there(v.crafted)
    doubt = 1 - clean.softmax(1).gather(1, target[:, None])[:, 0]
    return (boosted_cross_entropy(crafted, target) + beta * divergence(clean, crafted) * doubt).mean()


def _hat(v: Views, target: Tensor, beta: float, gamma: float) -> Tensor:
    return _trades(v, target, beta, gamma) + gamma * F.cross_entropy(_there(v.beyond), _there(v.helper_labels))


def _score(v: Views, target: Tensor, beta: float, gamma: float) -> Tensor:
    clean, crafted = _there(v.clean), _there(v.crafted)
    return (squared_error(clean, target) + beta * (crafted.softmax(1) - clean.softmax(1)).square().sum(1)).mean()


def _there(view: Tensor | None) -> Tensor:
    if view is None:
        raise ValueError("this loss needs a view that was not computed; see Objective.views")
    return view


OBJECTIVES: dict[str, Objective] = {
    "standard": Objective(_standard, "", ("clean",)),
    "pgd": Objective(_pgd, "ce", ("crafted",)),
    "trades": Objective(_trades, "kl", ("clean", "crafted")),
    "mart": Objective(_mart, "ce", ("clean", "crafted"), hard_labels=True),
    "hat": Objective(_hat, "kl", ("clean", "crafted", "beyond")),
    "score": Objective(_score, "squared", ("clean", "crafted")),
}
