"""Projected gradient descent (Madry et al., arXiv 1706.06083) and its relatives as one generator of steps.

    x_{t+1} = land(x_t + α·s(g_t)),  g_t = ∇_x L(f(x_t), y)

s is the norm's steepest-ascent direction, land the way back into the ball of radius ε around x and the box [0, 1] (`norms`); a
targeted attack descends instead. Norm, loss, rule, start and basis are chosen independently; FGSM is one step of size ε from the
image. The attack, the convergence curve and the accumulated gradient are consumers of `pgd_steps`. Default step α = 1.5·ε/steps,
as in "A Light Recipe to Train Robust Vision Transformers" (arXiv 2209.07399, released code).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from interp.attacks.basis import BASES, blurred, shifted
from interp.attacks.losses import LOSSES, NAMES, loss_named, succeeded
from interp.attacks.norms import NORMS
from interp.attacks.rules import RULES, Plain
from interp.types import Images, InputError, Labels

LATER = {"later": True}


@dataclass(frozen=True)
class PGD:
    """Parameters of one attack. eps and step_size in units of [0, 1] (L2, L1: over the whole image).

    step_size None means 1.5·eps/steps. With targeted, labels are targets and the loss is descended. restarts keep, per sample,
    the best point: one that succeeds, of these the one of largest (targeted: smallest) loss. Raises InputError where a value
    makes no sense.

    norm: linf, l2, l1. loss: ce, logit, margin, dlr against labels; kl, squared against a distribution; features against a
    layer's. rule: pgd, momentum (decay `momentum`), apgd, which chooses its own step sizes. keep: the last point of a run, or
    its best as among restarts; apgd keeps the best whatever is said. stop: end a sample's run as soon as it succeeds: for the
    question whether an adversarial example exists; pictures need all their steps. basis, decay, jitter, blur: see `basis`; with
    fourier steps the direction is the smooth gradient itself, not its sign.
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
    rule: str = field(default="pgd", metadata=LATER)
    momentum: float = field(default=1.0, metadata=LATER)
    keep: str = field(default="last", metadata=LATER)
    stop: bool = field(default=False, metadata=LATER)
    basis: str = field(default="pixels", metadata=LATER)
    decay: float = field(default=1.0, metadata=LATER)
    jitter: int = field(default=0, metadata=LATER)
    blur: float = field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        self._check_kinds()
        if not math.isfinite(self.eps) or self.eps < 0:
            raise InputError(f"ε is {self.eps}; expected a number ≥ 0 in units of [0, 1], such as 8/255")
        for name, known in (("norm", NORMS), ("loss", NAMES), ("rule", RULES), ("basis", BASES), ("keep", ("last", "best"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise InputError(f"step size is {self.step_size}; expected a number > 0, or none for 1.5·ε/steps")
        if self.step_size is not None and self.rule == "apgd":
            raise InputError(f"step size is {self.step_size}, but apgd chooses its own; leave it out or take the rule pgd")
        for name in ("momentum", "decay", "blur", "jitter"):
            if not math.isfinite(getattr(self, name)) or getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number ≥ 0")
        if self.stop and self.loss not in LOSSES:
            raise InputError(f"stop needs labels to succeed against, and the loss {self.loss} has none; leave stop out")
        if self.basis == "fourier" and (self.rule, self.norm) == ("apgd", "l1"):
            raise InputError("apgd in L1 moves single pixels, of which the fourier basis has none; take another rule or norm")

    def _check_kinds(self) -> None:
        """Raise InputError for words in place of numbers, and for parts of steps and pixels."""
        for name in ("eps", "step_size", "momentum", "decay", "blur"):
            value = getattr(self, name)
            if not (_is_number(value) or (name == "step_size" and value is None)):
                raise InputError(f"{name} is {value!r}; expected a number, such as {'8 / 255' if name == 'eps' else '0.5'}")
        for name in ("steps", "restarts", "jitter", "seed"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or isinstance(value, bool):
                raise InputError(f"{name} is {value!r}; expected a whole number")

    @classmethod
    def fgsm(cls, eps: float, *, targeted: bool = False, loss: str = "ce") -> PGD:
        """The fast gradient sign method (Goodfellow et al., arXiv 1412.6572): one step of size ε from the image."""
        return cls(eps, steps=1, step_size=max(eps, 1e-12), targeted=targeted, random_start=False, loss=loss)

    @property
    def alpha(self) -> float:
        """The step size in force; for apgd the one it begins with."""
        if self.rule == "apgd":
            return self.eps * (1 if self.norm == "l1" else 2)
        return 1.5 * self.eps / self.steps if self.step_size is None else self.step_size


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Step:
    """One iterate: x (n, 3, h, w), loss (n,) and logits (n, classes) at x, gradient of the loss at x.

    index counts from 0 (the start) to `steps` (the result); the result's gradient is None: no step follows it. rows (n,): which
    samples of the batch these are, all of them unless `stop` has ended some. With jitter or blur, loss and logits of all but the
    result are those of the picture as it was shown.
    """

    index: int
    x: Images
    gradient: Tensor | None
    loss: Tensor
    logits: Tensor
    rows: Tensor


def seeds_of(n: int, *, seed: int, first: int | Sequence[int] = 0, restart: int | Sequence[int] = 0) -> list[int]:
    """One seed per sample, from its index in the whole batch (the first's where they follow each other) and its run's number."""
    indices = range(first, first + n) if isinstance(first, int) else first
    runs = [restart] * n if isinstance(restart, int) else restart
    return [((seed + 7919 * run) * 1_000_003 + index) % 2**63 for index, run in zip(indices, runs, strict=True)]


def start_noise(
    shape: torch.Size | tuple[int, ...], *, seed: int, first: int | Sequence[int] = 0, restart: int | Sequence[int] = 0
) -> tuple[Tensor, Tensor]:
    """Standard normal (n, …) and uniform (n,) draws, seeded sample by sample.

    Sample i depends on (seed, first + i) alone, so a batch gives the same draws in one piece or in chunks.
    """
    z, u = torch.empty(shape), torch.empty(shape[0])
    for i, number in enumerate(seeds_of(shape[0], seed=seed, first=first, restart=restart)):
        generator = torch.Generator().manual_seed(number)
        z[i] = torch.randn(shape[1:], generator=generator)
        u[i] = torch.rand((), generator=generator)
    return z, u


def pgd_steps(
    model: nn.Module,
    x: Images,
    y: Labels,
    pgd: PGD,
    *,
    eps: Tensor | None = None,
    start: Images | None = None,
    first: int | Sequence[int] = 0,
    restart: int | Sequence[int] = 0,
    reader: nn.Module | None = None,
) -> Iterator[Step]:
    """Yield the iterates of one run from the start to the result: `pgd.steps` steps with a gradient and one without.

    eps (n,): each sample's own ε in place of pgd.eps. start: where to begin instead of x or a random point (brought into ball
    and box). first: index of x[0], or of each sample, in the whole batch, restart: number of the run, or of each: for the
    seeds. reader: what the result, and with `stop` each success, is read with, where `model` is only good enough for gradients.
    Every iterate satisfies ‖x_t − x‖ ≤ ε and lies in [0, 1]. With `stop` a sample's last step is its result, and the run ends
    when none is left.
    """
    loss_of, reader = loss_named(pgd.loss, targeted=pgd.targeted), reader or model
    radius = _radius(x, pgd) if eps is None else eps.to(x)
    rule = RULES[pgd.rule](pgd, x, radius)
    shows = _shows(pgd, x, first, restart)
    current = begin(x, pgd, radius=radius, start=start, first=first, restart=restart)
    rows, sign = torch.arange(len(x), device=x.device), -1 if pgd.targeted else 1
    for index in range(pgd.steps):
        with torch.enable_grad():
            current = current.detach().requires_grad_(True)
            logits = model(_shown(current, pgd, shows[index] if shows else None))
            loss = loss_of(logits, y)
            (gradient,) = torch.autograd.grad(loss.sum(), current)
        step = Step(index, current.detach(), gradient, loss.detach(), logits.detach(), rows)
        left = None
        if pgd.stop:
            sure = reader is model and not (pgd.jitter or pgd.blur)
            step, won = _read(step, y, pgd, None if sure else reader)
            left = (~won).nonzero()[:, 0]
        yield step
        current = rule.move(step.x, sign * gradient, sign * step.loss)
        if left is not None and len(left) < len(rows):
            rule.keep(left)
            current, y, rows, shows = current[left], y[left], rows[left], [s[left] for s in shows]
            if not len(rows):
                return
    with torch.no_grad():
        logits = reader(current)
        yield Step(pgd.steps, current, None, loss_of(logits, y), logits, rows)


def begin(
    x: Images,
    pgd: PGD,
    *,
    radius: Tensor | None = None,
    start: Images | None = None,
    first: int | Sequence[int] = 0,
    restart: int | Sequence[int] = 0,
) -> Images:
    """The first iterate of `pgd_steps`: as given, at random in the ball (radius (n,), else pgd.eps), or the image itself."""
    norm, radius = NORMS[pgd.norm], _radius(x, pgd) if radius is None else radius
    if start is not None:
        return norm.land(x, start - x, radius)
    if not pgd.random_start:
        return x.clone()
    z, u = start_noise(x.shape, seed=pgd.seed, first=first, restart=restart)
    return (x + norm.start(z.to(x), u.to(x), radius)).clamp(0, 1)


def _radius(x: Images, pgd: PGD) -> Tensor:
    return torch.full((len(x),), pgd.eps, dtype=x.dtype, device=x.device)


def _shows(pgd: PGD, x: Images, first: int | Sequence[int], restart: int | Sequence[int]) -> list[Tensor]:
    """The shifts (n, 2) of every step, drawn sample by sample; nothing without jitter."""
    if not pgd.jitter:
        return []
    drawn = [
        torch.randint(-pgd.jitter, pgd.jitter + 1, (pgd.steps, 2), generator=torch.Generator().manual_seed(number))
        for number in seeds_of(len(x), seed=pgd.seed + 15_485_863, first=first, restart=restart)
    ]
    return list(torch.stack(drawn, 1).to(x.device))


def _shown(x: Images, pgd: PGD, by: Tensor | None) -> Images:
    moved = x if by is None else shifted(x, by)
    return blurred(moved, pgd.blur) if pgd.blur else moved


def _read(step: Step, y: Labels, pgd: PGD, reader: nn.Module | None) -> tuple[Step, Tensor]:
    """Which samples (n,) have succeeded; with a reader only those where it agrees, and then its reading is the step's."""
    won = succeeded(step.logits, y, targeted=pgd.targeted)
    at = won.nonzero()[:, 0]
    if reader is None or not len(at):
        return step, won
    with torch.no_grad():
        read = reader(step.x[at])
    logits, loss, won = step.logits.clone(), step.loss.clone(), won.clone()
    logits[at], loss[at] = read.to(logits), loss_named(pgd.loss, targeted=pgd.targeted)(read, y[at]).to(loss)
    won[at] = succeeded(read, y[at], targeted=pgd.targeted)
    return dataclasses.replace(step, logits=logits, loss=loss), won


def craft(model: nn.Module, x: Images, y: Tensor, pgd: PGD, *, start: Images | None = None) -> Images:
    """Where one run of the rule pgd ends (restarts play no part), without the forward pass that reads it: for training."""
    *_, last = itertools.islice(pgd_steps(model, x, y, pgd, start=start), pgd.steps)
    assert last.gradient is not None
    return Plain(pgd, x, _radius(x, pgd)).move(last.x, -last.gradient if pgd.targeted else last.gradient, last.loss)
