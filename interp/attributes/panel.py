"""What a panel reads in perturbations: the models that are compared, and further judges behind them.

A model's judges are those of the panel that are of other architectures (`models.model.judges_of`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.attributes import classify
from interp.attributes.classify import among, another, as_image, choices
from interp.attributes.evidence import Evidence, at_eps, together
from interp.models.each import each
from interp.models.model import Model, judges_of
from interp.result import with_interval
from interp.stats import Running, bootstrap
from interp.types import Batch, Images, Labels


def hits_of(
    panel: Sequence[Model],
    m: int | None,
    x: Images,
    y: Labels,
    goal: Labels,
    e: Evidence,
    right: Tensor,
    *,
    eps: tuple[float, float],
    by: Sequence[int],
) -> dict[str, Tensor]:
    """What judges (judges, n) read in the perturbations of model m, or of noise: 1 a hit, 0 none, NaN undefined or not asked.

    right (judges, n): who reads x rightly. eps: of the perturbations toward the goal and away from the label. by: who reads δ and
    x + δ toward the goal; the rest is read by those who may judge m.
    """
    (to, off), classes, judges = eps, panel[0].card.num_classes, judges_of(panel, m)
    new = another(y, y, classes) if e.reads is None else e.reads  # noise turns no image into another class: the next in order
    shown, moved = read_by(panel, by, (as_image(e.toward, to), x + e.toward))
    rest = (as_image(-e.toward, to), x + e.away, as_image(e.away, off), as_image(-e.away, off))
    flipped, after, became, removed = read_by(panel, judges, rest)
    hits = {
        "classified": (shown, shown == goal),
        "another target": (shown, shown == another(goal, y, classes)),
        "sign flipped": (flipped, flipped == goal),
        "transferred": (moved, moved == goal),
        "became": (became.where(new != y, _UNREAD), became == new),
        "became class": (became.where(new != y, _UNREAD), became),
        "removed": (removed, removed == y),
        "fooled": (after.where(right, _UNREAD), after != y),
    }
    return {name: torch.where(read == _UNREAD, torch.nan, hit.float()) for name, (read, hit) in hits.items()}


_UNREAD = -1


def read_by(panel: Sequence[Model], by: Sequence[int], pictures: Sequence[Images]) -> tuple[Labels, ...]:
    """For each of some batches of n pictures the classes (judges, n) that some judges read in it, −1 for all others."""
    found = torch.full((len(panel), len(pictures), len(pictures[0])), _UNREAD)
    if by:
        shown = torch.cat([p.clamp(0, 1) for p in pictures])
        found[list(by)] = choices([panel[j] for j in by], shown).view(len(by), len(pictures), -1)
    return found.unbind(1)


def became(e: Evidence, y: Labels) -> Tensor:
    """The class (n,) that each image became, NaN where it is what it was."""
    return torch.where(e.reads == y, torch.nan, e.reads.double()) if e.reads is not None else torch.full(y.shape, torch.nan)


def by_chance(new: np.ndarray, read: Mapping[int, np.ndarray], panel: Sequence[Model]) -> np.ndarray:
    """What `became` is where readings have nothing to do with images: how often a model's images become the class that is read.

    (model, image), a mean over the model's judges; NaN where an image is what it was. new (model, image): the class that each
    image became, see `became`. read: judge → the class (model, image) that it reads in δ.
    """
    rows = []
    for m, turned in enumerate(new):
        known = np.isfinite(turned)
        often = np.bincount(turned[known].astype(int), minlength=panel[m].card.num_classes) / max(1, int(known.sum()))
        guesses = [np.where(known, read[j][m], 0).astype(int) for j in judges_of(panel, m)]
        hits = [np.where(known, often[guess], np.nan) for guess in guesses]
        rows.append(np.mean(hits, 0) if hits else np.full(len(turned), np.nan))
    return np.stack(rows)


def matrix(called: str, block: np.ndarray) -> dict[str, object]:
    """NAME (model, judge): means of (generator, judge, image) with intervals."""
    intervals = [bootstrap(v) for row in block for v in row]
    attrs = {"unit": "share", "better": "none", "n": block.shape[2], "long_name": called.replace("_", " ")}
    return dict(with_interval(called, ("model", "judge"), intervals, block.shape[:2], **attrs))


def checks(found: Mapping[str, np.ndarray]) -> dict[str, object]:
    """classified_controls (model, check) with intervals, of CONTROLS → (model, image)."""
    block = np.stack([found[name] for name in classify.CONTROLS], 1)  # (model, check, image)
    spans = np.array([bootstrap(v) for row in block for v in row]).reshape(*block.shape[:2], 3)
    ends = ("", "_low", "_high")
    return {f"classified_controls{end}": (("model", "check"), spans[..., k]) for k, end in enumerate(ends)} | {
        "check": ("check", list(classify.CONTROLS))
    }


def sweep(
    panel: Sequence[Model],
    count: int,
    batch: Batch,
    goals: Labels,
    sizes: Sequence[float],
    attacks: tuple[PGD, PGD],
    *,
    chunk: int,
) -> dict[str, object]:
    """The measures of perturbations as ε grows, with half the attacks' steps: sweep_NAME (model, eps) with intervals.

    count: how many of the panel are compared, the first; the rest only judge. attacks: toward the goals and away from the labels.
    """
    toward, away = (dataclasses.replace(a, steps=max(1, a.steps // 2), step_size=None) for a in attacks)
    x, y = batch.images, batch.labels
    right, spans = choices(panel, x) == y, np.empty((len(classify.MEASURES), count, len(sizes), 3))
    for k, eps in enumerate(tqdm(sizes, desc="ε", leave=False)):
        run = partial(_moved, x=x, y=y, goals=goals, attacks=(at_eps(toward, eps), at_eps(away, eps)), chunk=chunk)
        for m, e in enumerate(each(run, panel[:count])):
            judges = judges_of(panel, m)
            hits = hits_of(panel, m, x, y, goals, e, right, eps=(eps, eps), by=judges)
            read = among(hits, judges)
            spans[:, m, k] = [bootstrap(read[measure.name].numpy()) for measure in classify.MEASURES]
    out: dict[str, object] = {"eps": ("eps", list(sizes))}
    for measure, block in zip(classify.MEASURES, spans, strict=True):
        ends = zip(("", "_low", "_high"), np.moveaxis(block, 2, 0), strict=True)
        out |= {f"sweep_{measure.name}{end}": (("model", "eps"), values, {"n": len(batch)}) for end, values in ends}
    return out


def _moved(model: Model, x: Images, y: Labels, goals: Labels, attacks: tuple[PGD, PGD], chunk: int) -> Evidence:
    """Perturbations alone, without gradients."""
    at_a_time, nothing = together(x, chunk), torch.zeros(0)
    moved, left = (attack(model, x, to, a, chunk=at_a_time) for to, a in zip((goals, y), attacks, strict=True))
    return Evidence(moved.x.cpu() - x, left.x.cpu() - x, Running(), nothing, nothing, nothing, left.logits.argmax(1).cpu())
