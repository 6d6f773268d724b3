"""Labelled images settle what a file leaves open, and show a normalisation that is missing or applied twice.

Trying the candidates and comparing accuracies is how users find out by hand (RobustBench #56, #105, #115; MadryLab/robustness
#123); here each accuracy is printed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from interp.models.inspect import Inspection
from interp.models.model import Model
from interp.models.normalise import NORMALISERS, name_of
from interp.stats import wilson
from interp.types import Batch, Card, InputError

log = logging.getLogger(__name__)

TRIED = 256  # images; more would not change which candidate wins
CHECKED = 64
SAID = 8  # candidates named with their accuracies


@dataclass(frozen=True)
class Score:
    """How one candidate does on labelled images: share right of n, mean log-likelihood of the label, mean confidence."""

    right: int
    n: int
    likelihood: float
    confidence: float

    @property
    def accuracy(self) -> float:
        """Share of the images classified right."""
        return self.right / self.n


def settle(found: Inspection, images: Batch, fill: Callable[[Card], Model]) -> Model:
    """The model of best accuracy among the architectures, normalisations and channel orders that are open, all of them said.

    fill: card → model. Raises InputError where the images do not fit the file.
    """
    batch = images[:TRIED]
    candidates = [found.arch.value] if found.arch else list(found.fits)
    normals = [found.normaliser.value] if found.normaliser else list(NORMALISERS.values())
    orders = [found.channels.value] if found.channels else ["rgb", "bgr"]
    scores: dict[str, tuple[Score, Card]] = {}
    sizes: dict[int, str] = {}
    for candidate in candidates:
        cards = [found.describe(candidate, normal, order) for normal in normals for order in orders]
        sizes.setdefault(cards[0].preprocess.size, candidate.arch)
        if batch.images.shape[-1] != cards[0].preprocess.size:
            continue
        for card in cards:
            scores[_name(card, found)] = score(fill(card), batch), card
    if not scores:
        wanted = " or ".join(f"(n, 3, {s}, {s})" for s in sorted(sizes))
        raise InputError(
            f"{found.path} takes images {wanted}; found {tuple(batch.images.shape)}. Give images of that size, "
            f"or --size {batch.images.shape[-1]} if the model was trained on such"
        )
    for size, arch in sizes.items():
        if size != batch.images.shape[-1]:
            log.warning("%s: %s was not tried, since it takes %d × %d pixels", found.path.name, arch, size, size)
    return _best(found, scores, batch, fill)


def _best(found: Inspection, scores: Mapping[str, tuple[Score, Card]], batch: Batch, fill: Callable[[Card], Model]) -> Model:
    order = sorted(scores, key=lambda k: (scores[k][0].right, scores[k][0].likelihood), reverse=True)
    best, (top, card) = order[0], scores[order[0]]
    said = ", ".join(f"{k} {scores[k][0].accuracy:.0%}" for k in order[:SAID])
    said += f" and {len(order) - SAID} more, none better" if len(order) > SAID else ""
    if wilson(top.right, top.n).low <= 1 / card.num_classes:
        raise InputError(
            f"{found.path}: none of {len(order)} candidates is clearly better than chance on {len(batch)} labelled images "
            f"({said}). Give more images, check their labels, or answer yourself: {'; '.join(found.questions())}"
        )
    note = f"settled on {len(batch)} labelled images (accuracy: {said}): {best}"
    log.warning("%s: %s", found.path.name, note)
    rivals = [k for k in order[1:] if wilson(scores[k][0].right, top.n).high >= wilson(top.right, top.n).low]
    if rivals:
        log.warning(
            "%s: these images do not tell it from %s (95 %% intervals overlap); the most accurate was taken, of equals "
            "the likeliest. Give more images, or say which",
            found.path.name,
            ", ".join(rivals[:3]) + (f" and {len(rivals) - 3} more" if len(rivals) > 3 else ""),
        )
    labels = batch.classes if len(batch.classes) == card.num_classes else ()
    return fill(dataclasses.replace(card, labels=labels or card.labels, origin=f"{card.origin}; {note}"))


def _name(card: Card, found: Inspection) -> str:
    """What tells a candidate from the others."""
    parts = [] if found.arch else [f"{card.arch} {', '.join(f'{k}={v}' for k, v in card.arch_args.items())}".strip()]
    parts += [] if found.normaliser else [name_of((card.preprocess.mean, card.preprocess.std))]
    parts += [] if found.channels else [card.preprocess.channels]
    return " with ".join(parts)


def score(model: Model, batch: Batch) -> Score:
    """Accuracy, likelihood and confidence of a model on a batch; without labels none is right and the likelihood is 0."""
    with torch.inference_mode():
        logits = torch.cat([model(part.images) for part in batch.chunks(32)])
    confidence = logits.softmax(1).amax(1).mean().item()
    if bool((batch.labels < 0).any()):
        return Score(0, len(batch), 0.0, confidence)
    right = int((logits.argmax(1) == batch.labels).sum())
    return Score(right, len(batch), -F.cross_entropy(logits, batch.labels).item(), confidence)


def doubt(model: Model, images: Batch) -> str:
    """A warning where these images speak against the model's normalisation; empty where they do not.

    Compared with its opposite: none where the model normalises, the usual ones where it does not. With labels the opposite
    must be more accurate with Wilson intervals apart; without, more confident by 0.15 on average.
    """
    p = model.card.preprocess
    used = name_of((p.mean, p.std))
    others = ["none"] if used != "none" else ["imagenet", "cifar10"] if p.size <= 64 else ["imagenet", "half"]
    batch = images[:CHECKED]
    labelled = not bool((batch.labels < 0).any()) and int(batch.labels.max()) < model.card.num_classes
    if not labelled:
        batch = dataclasses.replace(batch, labels=torch.full_like(batch.labels, -1))
    own = score(model, batch)
    for other in others:
        mean, std = NORMALISERS[other]
        card = dataclasses.replace(model.card, preprocess=dataclasses.replace(p, mean=mean, std=std))
        rival = score(Model(model.net, card), batch)
        if labelled and wilson(rival.right, rival.n).low > wilson(own.right, own.n).high:
            fault = "applied twice or wrong" if used != "none" else "missing"
            return (
                f"{model.card.id} is right on {own.right} of {own.n} images with normalisation {used} "
                f"({own.confidence:.0%} confident), on {rival.right} with {other} ({rival.confidence:.0%}): "
                f"it seems to be {fault}; try --normalise {other}"
            )
        if not labelled and rival.confidence > own.confidence + 0.15:
            return (
                f"{model.card.id} is {own.confidence:.0%} confident with normalisation {used}, {rival.confidence:.0%} with "
                f"{other}; check it on labelled images, or try --normalise {other}"
            )
    return ""
