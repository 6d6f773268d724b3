"""What the measures are made of: per image, a model's perturbations and gradients, and noise in their place as the control."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.attacks.pgd import PGD, Step, pgd_steps, seeds_of
from interp.attacks.search import attack
from interp.gradients.fold import fold
from interp.gradients.sources import Block, gradient
from interp.models.engine import engine
from interp.models.model import Model
from interp.stats import Running
from interp.types import Images, Labels

NEARBY = 4 / 255  # width of the noise beside which a gradient is taken again, in units of [0, 1]
SMALL = 64  # pixels a side up to which images go all at once: 64 of 32 pixels take 0.5 to 0.9 of the time each that 16 do


@dataclass(frozen=True, eq=False)
class Evidence:
    """Of n images, all (n, 3, h, w) but persistence (n,).

    toward: the perturbation toward a goal. away: the one away from the label. gradients: statistics of the gradients along the
    attack away; persistence: the mean cosine of neighbouring ones. pull: the gradient of the goal's logit at the image; nearby:
    the same at the image under a little noise. reads (n,): the class that the model reads in x + away; None for noise.
    """

    toward: Tensor
    away: Tensor
    gradients: Running
    persistence: Tensor
    pull: Tensor
    nearby: Tensor
    reads: Labels | None = None


def evidence(model: Model, x: Images, labels: Labels, goals: Labels, *, toward: PGD, away: PGD, first: int) -> Evidence:
    """What the model gives. toward: a targeted attack; away: an untargeted one; first: the index of x[0] in the whole batch."""
    device = model.mean.device
    near, labels, goals = x.to(device), labels.to(device), goals.to(device)
    steps = engine(model, tuple(x.shape), passes=len(x) * (toward.steps + away.steps)).steps
    last: Step | None = None

    def along() -> Iterator[Block]:
        nonlocal last
        for step in pgd_steps(steps, near, labels, away, first=first):
            last = step
            if step.gradient is not None:
                yield Block(step.gradient[None])

    folded = fold(along())
    assert last is not None  # an attack has at least one step
    shaken = (near + NEARBY * _normals(x, seed=away.seed + 2, first=first).to(near)).clamp(0, 1)
    pulls = [-gradient(steps, at, goals, loss="logit") for at in (near, shaken)]  # the loss is minus the logit
    moved = attack(model, near, goals, toward, first=first, chunk=together(x, len(x))).x - near
    moved, left, cosine, pull, nearby = (t.detach().float().cpu() for t in (moved, last.x - near, folded.cosine, *pulls))
    return Evidence(moved, left, folded.running, cosine, pull, nearby, last.logits.argmax(1).cpu())


def together(x: Images, most: int) -> int | None:
    """How many images to attack at a time: `most` where they are small, else None: what is fastest is then measured.

    An attack of ten steps on 64 images may only be measured up to 16 of them.
    """
    return most if max(x.shape[2:]) <= SMALL else None


def noise(x: Images, *, toward: PGD, away: PGD, first: int) -> Evidence:
    """Noise in place of each: uniform in the same ball and box for perturbations, normal for gradients."""
    seed = toward.seed + 1  # the attacks begin at the draws of their seed
    generators = [torch.Generator().manual_seed(s) for s in seeds_of(len(x), seed=seed, first=first)]

    def normal() -> Tensor:
        return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])

    def uniform(eps: float) -> Tensor:
        u = torch.stack([torch.rand(x.shape[1:], generator=g) for g in generators])
        return (x + (2 * u - 1) * eps).clamp(0, 1) - x

    perturbations = uniform(toward.eps), uniform(away.eps)
    folded = fold(Block(normal()[None]) for _ in range(away.steps))
    return Evidence(*perturbations, folded.running, folded.cosine, normal(), normal())


def _normals(x: Images, *, seed: int, first: int) -> Tensor:
    drawn = [
        torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds_of(len(x), seed=seed, first=first)
    ]
    return torch.stack(drawn)


def at_eps(attack: PGD, eps: float) -> PGD:
    """The attack at another ε, its step in proportion."""
    step = None if attack.step_size is None else attack.step_size * eps / attack.eps
    return dataclasses.replace(attack, eps=eps, step_size=step)
