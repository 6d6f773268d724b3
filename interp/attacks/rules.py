"""How an attack gets from one iterate to the next.

pgd       x_{t+1} = land(x_t + α·s(g_t))                      Madry et al., arXiv 1706.06083
momentum  the same along m_t = μ·m_{t−1} + g_t/‖g_t‖₁          MI-FGSM, Dong et al., arXiv 1710.06081, equation 6
apgd      steps from 2ε (L1: ε) on, each with a quarter of the last one, halved for a sample whose loss no longer rises and which
          then goes on from its best point                    Croce & Hein, arXiv 2003.01690, algorithm 1
          L1: the number of moved coordinates adapts instead  Croce & Hein, arXiv 2103.01208, algorithm 1

s is the norm's steepest-ascent direction, land the way back into ball and box (`norms`). A rule holds what it remembers between
steps for the samples that still run, and drops the others on `keep`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from interp.attacks.basis import weighted
from interp.attacks.norms import NORMS, column, sparse_signs, unit
from interp.types import Images

if TYPE_CHECKING:
    from interp.attacks.pgd import PGD


class Rule(Protocol):
    """What moves the samples of one run."""

    def move(self, at: Images, up: Tensor, height: Tensor) -> Images:
        """The next iterate from the present one, the direction in which its objective rises, and its value (n,)."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the present samples alone."""
        ...


class Plain:
    """Steps of fixed size, with or without momentum."""

    def __init__(self, pgd: PGD, x: Images, eps: Tensor) -> None:
        self.pgd, self.norm, self.x, self.eps = pgd, NORMS[pgd.norm], x, eps
        size = 1.5 * eps / pgd.steps if pgd.step_size is None else torch.full_like(eps, pgd.step_size)
        self.size = column(size, x)
        self.speed: Tensor | None = None

    def move(self, at: Images, up: Tensor, height: Tensor) -> Images:
        if self.pgd.rule == "momentum":
            fresh = unit(up, up.flatten(1).abs().sum(1))
            self.speed = fresh if self.speed is None else self.pgd.momentum * self.speed + fresh
            up = self.speed
        return self.norm.land(self.x, at + self.size * direction(self.pgd, up, at) - self.x, self.eps)

    def keep(self, rows: Tensor) -> None:
        self.x, self.eps, self.size = self.x[rows], self.eps[rows], self.size[rows]
        self.speed = None if self.speed is None else self.speed[rows]


def direction(pgd: PGD, up: Tensor, at: Images) -> Tensor:
    """The direction of a step, of unit size in the norm: steepest ascent in pixels, or in the weighted spectrum."""
    norm = NORMS[pgd.norm]
    if pgd.basis == "pixels":
        return norm.step(up, at)
    smooth = weighted(up, pgd.decay)
    return unit(smooth, norm.size(smooth))


class Auto:
    """APGD: step sizes that follow the progress of each sample (Croce & Hein, arXiv 2003.01690, algorithm 1).

    One departure from the released code: its first check compares the first loss with 0, here it is compared with the start's.
    """

    PROGRESS = 0.75  # ρ: a smaller share of rising steps between two checks halves the step
    WEIGHT = 0.75  # α: of the new step beside the last one

    def __init__(self, pgd: PGD, x: Images, eps: Tensor) -> None:
        self.pgd, self.norm, self.x, self.eps = pgd, NORMS[pgd.norm], x, eps
        self.sparse = pgd.norm == "l1"
        steps = pgd.steps
        self.until = max(int((0.04 if self.sparse else 0.22) * steps), 1)  # steps to the next check
        self.shorter, self.least = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
        self.size = eps * (1 if self.sparse else 2)
        self.since = self.index = 0
        self.heights: list[Tensor] = []
        self.share = torch.full_like(eps, 0.2)  # of the coordinates that an L1 step moves
        self.nonzero = torch.full_like(eps, float(x[0].numel()))

    def move(self, at: Images, up: Tensor, height: Tensor) -> Images:
        self.heights.append(height)
        if self.index == 0:
            self.last, self.best, self.best_up, self.top = at, at, up, height
            self.top_before, self.halved = height, torch.ones_like(height, dtype=torch.bool)
        else:
            rises = height > self.top
            self.top = torch.where(rises, height, self.top)
            self.best = torch.where(column(rises, at), at, self.best)
            self.best_up = torch.where(column(rises, at), up, self.best_up)
            self.since += 1
            if self.since == self.until:
                at, up = (self._check_sparse if self.sparse else self._check)(at, up)
                self.since = 0
        moved = self._sparse_step(at, up) if self.sparse else self._step(at, up)
        self.last = at
        self.index += 1
        return moved

    def _step(self, at: Images, up: Tensor) -> Images:
        weight = self.WEIGHT if self.index else 1.0
        there = self._land(at + column(self.size, at) * direction(self.pgd, up, at))
        return self._land(at + weight * (there - at) + (1 - weight) * (at - self.last))

    def _sparse_step(self, at: Images, up: Tensor) -> Images:
        d = up[0].numel()
        skipped = ((1 - self.share) * d).long().clamp(0, d - 1)
        return self._land(at + column(self.size, at) * sparse_signs(up, skipped))

    def _land(self, moved: Images) -> Images:
        return self.norm.land(self.x, moved - self.x, self.eps)

    def _check(self, at: Images, up: Tensor) -> tuple[Images, Tensor]:
        """Halve the steps of the samples that stand still, and take those back to their best point."""
        recent = torch.stack(self.heights[-self.until - 1 :])
        stalls = (recent.diff(dim=0) > 0).sum(0) <= self.PROGRESS * self.until
        stalls |= ~self.halved & (self.top_before >= self.top)
        self.halved, self.top_before = stalls, self.top
        self.size = torch.where(stalls, self.size / 2, self.size)
        self.until = max(self.until - self.shorter, self.least)
        return self._back(stalls, at, up)

    def _check_sparse(self, at: Images, up: Tensor) -> tuple[Images, Tensor]:
        """Where the best δ became sparser start anew from it with full steps, elsewhere shorten them."""
        nonzero = (self.best != self.x).flatten(1).sum(1).to(self.eps)
        sparser = nonzero / self.nonzero < 0.95
        self.share, self.nonzero = nonzero / self.x[0].numel() / 1.5, nonzero
        self.size = torch.where(sparser, self.eps, (self.size / 1.5).clamp_min(self.eps / 10))
        return self._back(sparser, at, up)

    def _back(self, where: Tensor, at: Images, up: Tensor) -> tuple[Images, Tensor]:
        wide = column(where, at)
        return torch.where(wide, self.best, at), torch.where(wide, self.best_up, up)

    def keep(self, rows: Tensor) -> None:
        for name in ("x", "eps", "size", "share", "nonzero", "last", "best", "best_up", "top", "top_before", "halved"):
            setattr(self, name, getattr(self, name)[rows])
        self.heights = [h[rows] for h in self.heights[-self.until - 1 :]]


RULES: dict[str, Callable[[PGD, Images, Tensor], Rule]] = {"pgd": Plain, "momentum": Plain, "apgd": Auto}
