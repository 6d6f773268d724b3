"""Projected gradient descent (Madry et al., arXiv 1706.06083) as a generator of steps.

    x_{t+1} = box(x + P_ε(x_t + α·s(g_t) − x)),  g_t = ∇_x L(f(x_t), y),  box = clip to [0, 1]

s is the sign (L∞) or g/‖g‖₂ (L2), P_ε the projection on the ball; a targeted attack descends instead. The attack, the
convergence curve and the accumulated gradient are three consumers of `pgd_steps`. Default step α = 1.5·ε/steps, as in
"A Light Recipe to Train Robust Vision Transformers" (arXiv 2209.07399, released code).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.attacks.norms import NORMS
from interp.types import Images, InputError, Labels


def _ce(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _logit(logits: Tensor, y: Tensor) -> Tensor:
    return -logits.gather(1, y[:, None])[:, 0]


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's (Carlini & Wagner, arXiv 1608.04644, f6 without the cut)."""
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def _kl(logits: Tensor, p: Tensor) -> Tensor:
    """KL(p ‖ softmax(logits)) to a distribution p (n, classes): what TRADES crafts with (Zhang et al., arXiv 1901.08573)."""
    return (torch.xlogy(p, p) - p * logits.log_softmax(1)).sum(1)


def _squared(logits: Tensor, p: Tensor) -> Tensor:
    """‖softmax(logits) − p‖² to a distribution p (n, classes): what SCORE crafts with (Pang et al., arXiv 2202.10103)."""
    return (logits.softmax(1) - p).square().sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": _ce, "logit": _logit, "margin": _margin}
TO_DISTRIBUTION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": _kl, "squared": _squared}  # y (n, classes), not (n,)


@dataclass(frozen=True)
class PGD:
    """Parameters of one attack. eps and step_size in units of [0, 1] (L2: over the whole image).

    step_size None means 1.5·eps/steps. With targeted, labels are targets and the loss is descended. restarts keep, per
    sample, the point of largest (targeted: smallest) loss. Raises InputError where a value makes no sense.
    """

    eps: float
    norm: str = "linf"
    steps: int = 10
    step_size: float | None = None
    targeted: bool = False
    random_start: bool = True
    restarts: int = 1
    loss: str = "ce"
    seed: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.eps) or self.eps < 0:
            raise InputError(f"ε is {self.eps}; expected a number ≥ 0 in units of [0, 1], such as 8/255")
        if self.norm not in NORMS:
            raise InputError(f"norm is {self.norm!r}; expected one of {', '.join(NORMS)}")
        if self.loss not in LOSSES | TO_DISTRIBUTION:
            raise InputError(f"loss is {self.loss!r}; expected one of {', '.join(LOSSES | TO_DISTRIBUTION)}")
        if self.steps < 1 or self.restarts < 1:
            raise InputError(f"steps is {self.steps} and restarts {self.restarts}; expected at least 1 of each")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise InputError(f"step size is {self.step_size}; expected a number > 0, or none for 1.5·ε/steps")

    @property
    def alpha(self) -> float:
        """The step size in force."""
        return 1.5 * self.eps / self.steps if self.step_size is None else self.step_size


@dataclass(frozen=True)
class Step:
    """One iterate: x (n, 3, h, w), loss (n,) and logits (n, classes) at x, gradient of the loss at x.

    index counts from 0 (the start) to `steps` (the result); the result's gradient is None: no step follows it.
    """

    index: int
    x: Images
    gradient: Tensor | None
    loss: Tensor
    logits: Tensor


def start_noise(shape: torch.Size | tuple[int, ...], *, seed: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal (n, …) and uniform (n,) draws, seeded sample by sample.

    Sample i depends on (seed, first + i) alone, so a batch gives the same draws in one piece or in chunks.
    """
    z, u = torch.empty(shape), torch.empty(shape[0])
    for i in range(shape[0]):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + first + i) % 2**63)
        z[i] = torch.randn(shape[1:], generator=generator)
        u[i] = torch.rand((), generator=generator)
    return z, u


def pgd_steps(
    model: nn.Module,
    x: Images,
    y: Labels,
    pgd: PGD,
    *,
    start: Images | None = None,
    first: int = 0,
    restart: int = 0,
) -> Iterator[Step]:
    """Yield the iterates of one PGD run from the start to the result: `pgd.steps` steps with a gradient and one without.

    start: where to begin instead of x or a random point (projected on the ball around x, then the box). first: index of
    x[0] in the whole batch, for the seeds. Every iterate satisfies ‖x_t − x‖ ≤ ε and lies in [0, 1].
    """
    norm, loss_of = NORMS[pgd.norm], (LOSSES | TO_DISTRIBUTION)[pgd.loss]
    if start is not None:
        current = (x + norm.project(start - x, _radius(x, pgd))).clamp(0, 1)
    elif pgd.random_start:
        z, u = start_noise(x.shape, seed=pgd.seed + 7919 * restart, first=first)
        current = (x + norm.start(z.to(x), u.to(x), _radius(x, pgd))).clamp(0, 1)
    else:
        current = x.clone()
    for index in range(pgd.steps):
        current = current.detach().requires_grad_(True)
        logits = model(current)
        loss = loss_of(logits, y)
        (gradient,) = torch.autograd.grad(loss.sum(), current)
        step = Step(index, current.detach(), gradient, loss.detach(), logits.detach())
        yield step
        current = _advance(x, step, pgd)
    with torch.no_grad():
        logits = model(current)
        yield Step(pgd.steps, current, None, loss_of(logits, y), logits)


def _radius(x: Images, pgd: PGD) -> Tensor:
    return torch.full((len(x),), pgd.eps, dtype=x.dtype, device=x.device)


def _advance(x: Images, step: Step, pgd: PGD) -> Images:
    """The next iterate after a step with a gradient."""
    norm = NORMS[pgd.norm]
    assert step.gradient is not None
    moved = step.x + (-pgd.alpha if pgd.targeted else pgd.alpha) * norm.step(step.gradient)
    return (x + norm.project(moved - x, _radius(x, pgd))).clamp(0, 1)


def craft(model: nn.Module, x: Images, y: Tensor, pgd: PGD, *, start: Images | None = None) -> Images:
    """Where one PGD run ends (restarts play no part), without the forward pass that `attack` reads it with: for training."""
    *_, last = itertools.islice(pgd_steps(model, x, y, pgd, start=start), pgd.steps)
    return _advance(x, last, pgd)


def attack(model: nn.Module, x: Images, y: Labels, pgd: PGD, *, start: Images | None = None, first: int = 0) -> Step:
    """The last step of PGD, the best of `pgd.restarts` runs per sample. Limit: ε = 0 returns x."""
    best: Step | None = None
    for restart in range(pgd.restarts):
        *_, last = pgd_steps(model, x, y, pgd, start=start, first=first, restart=restart)
        if best is None:
            best = last
            continue
        better = (last.loss < best.loss) if pgd.targeted else (last.loss > best.loss)
        wide = better.view(-1, 1, 1, 1)
        best = Step(
            last.index,
            torch.where(wide, last.x, best.x),
            None,
            torch.where(better, last.loss, best.loss),
            torch.where(better[:, None], last.logits, best.logits),
        )
    assert best is not None  # restarts ≥ 1
    return best
