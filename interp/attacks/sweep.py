"""What a model would change in an image as ε grows, away from its class and toward others.

Large perturbations follow section "Semantic nature of perturbations" of arXiv 2209.07399: at ε = 1 (L∞) every image in [0, 1] is
within reach of every other, so the ball no longer binds and only the box does.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from interp.attacks.losses import LOSSES
from interp.attacks.pgd import PGD, Step
from interp.attacks.search import Found, attack
from interp.models.engine import PRECISIONS
from interp.models.model import Model, check_some, judges_of, model_coords
from interp.result import Result, with_interval
from interp.stats import wilson
from interp.types import Batch, InputError, Labels, pixels

EACH = 20  # more classes than this do not fit a grid of pictures
CHOICES = ("each", "next-likely")


@dataclass(frozen=True)
class Sweep:
    """ε values in units of [0, 1], and the attack at each (its eps is replaced).

    target: class index to move toward; None, the class after each image's own; 'next-likely', the class that each model finds
    likeliest after the image's own; 'each', every class in turn. Images without a label move away from what the model sees in
    them. frames: pictures kept along each run, evenly spaced over its steps, for animations. chunk: images per pass, None the
    fastest.
    """

    eps: tuple[float, ...] = (8 / 255, 32 / 255, 128 / 255, 1.0)
    attack: PGD = PGD(8 / 255, steps=50)
    target: int | str | None = None
    chunk: int | None = field(default=None, metadata={"cost": True})
    frames: int = field(default=0, metadata={"later": True})
    precision: str = field(default="float32", metadata={"later": True})

    def __post_init__(self) -> None:
        if not self.eps:
            raise InputError("no ε was given; expected at least one, such as 8/255")
        for eps in self.eps:
            dataclasses.replace(self.attack, eps=eps)  # checks each value
        if len(set(self.eps)) < len(self.eps):
            raise InputError(f"ε are {self.eps}; expected each once")
        if isinstance(self.target, str) and self.target not in CHOICES:
            raise InputError(f"target is {self.target!r}; expected a class index, none, or one of {', '.join(CHOICES)}")
        if self.attack.loss not in LOSSES:
            raise InputError(f"loss is {self.attack.loss!r}; a sweep moves away from and toward labels: {', '.join(LOSSES)}")
        if self.attack.restarts > 1 or self.attack.stop:
            raise InputError("a sweep shows whole runs: one restart, without stop; interp.attack takes both")
        if self.frames < 0 or self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r} and frames {self.frames}; expected {' or '.join(PRECISIONS)}, ≥ 0")

    @property
    def kept(self) -> list[int]:
        """The steps of which pictures are kept."""
        return sorted({round(s) for s in np.linspace(0, self.attack.steps, self.frames)}) if self.frames else []


def labels_for(model: Model, batch: Batch) -> Labels:
    """The batch's labels, with the model's own prediction where a label is unknown (−1)."""
    if not bool((batch.labels < 0).any()):
        return batch.labels
    return torch.where(batch.labels < 0, model.read(batch.images).argmax(1), batch.labels)


def targets_of(model: Model, batch: Batch, target: int | str | None) -> Tensor:
    """The classes to move toward (directions, n): one row, with 'each' one per class. Raises InputError outside the classes."""
    classes, labels = model.card.num_classes, labels_for(model, batch)
    if target == "each":
        if classes > EACH:
            raise InputError(f"{model.card.id} has {classes} classes; 'each' draws at most {EACH}: name one as the target")
        return torch.arange(classes)[:, None].expand(-1, len(batch)).contiguous()
    if target == "next-likely":
        return model.read(batch.images).scatter(1, labels[:, None], -torch.inf).argmax(1)[None]
    if target is None:
        return ((labels + 1) % classes)[None]
    assert isinstance(target, int)
    if not 0 <= target < classes:
        raise InputError(f"target class is {target}; expected 0 to {classes - 1}")
    return torch.full_like(labels, target)[None]


class _Curves:
    """Loss and probability of the goal at every step of runs over (directions, ε, images), and some pictures on the way."""

    def __init__(self, params: Sweep, goals: Tensor, size: torch.Size) -> None:
        runs = goals.shape  # (directions, eps, images)
        self.goals, self.kept = goals.flatten(), params.kept
        self.loss = np.zeros((*runs, params.attack.steps + 1), np.float32)
        self.probability = np.zeros_like(self.loss)
        self.film = np.zeros((*runs, len(self.kept), *size, 3), np.uint8)

    def __call__(self, at: Tensor, step: Step) -> None:
        rows = at.cpu().numpy()
        goal = self.goals.to(step.logits.device)[at]
        belief = step.logits.softmax(1).gather(1, goal[:, None])[:, 0]
        for table, values in ((self.loss, step.loss), (self.probability, belief)):
            table.reshape(-1, table.shape[-1])[rows, step.index] = values.float().cpu().numpy()
        if step.index in self.kept:
            frames = self.film.reshape(-1, *self.film.shape[3:])
            frames[rows, self.kept.index(step.index)] = (pixels(step.x) * 255).round().astype(np.uint8)


def sweep(models: Sequence[Model], batch: Batch, params: Sweep = Sweep()) -> Result:
    """Perturb every image at every ε, away from its class and toward another, or toward each.

    picture (model, direction, eps, image, y, x, channel): the perturbed images; directions are 'away', then 'toward' the target
    or each class by name. predicted, confidence: each model's own reading of them; reached: no longer read as the label (away),
    or read as the target. goal (model, direction, image): the class concerned. others: mean probability of the goal for the
    judges, see `judges_of` (away: what is left of the label). loss, probability (…, step): along each run, of the goal by the
    model itself. film (…, frame, y, x, channel) uint8, where asked for. Measure success (model, direction, eps): share reached;
    toward a class, of the images that are neither of it nor read as it before they move: counted (model, direction, image),
    success_n of them. Raises InputError where all images are of the class to move toward.
    """
    started = time.perf_counter()
    check_some(models)
    for model in models:
        model.check_images(batch.images.shape)
    if len({m.card.num_classes for m in models}) > 1:
        raise InputError(f"models have {[m.card.num_classes for m in models]} classes; give models of one set of classes")
    if isinstance(params.target, int) and all(bool((labels_for(m, batch) == params.target).all()) for m in models):
        raise InputError(
            f"all {len(batch)} images are of the target class {models[0].card.label(params.target)}; expected some of another: "
            f"give more images, or another target"
        )
    runs = [_one(models, m, batch, params) for m in tqdm(range(len(models)), desc="perturbations", leave=False)]
    dims = ("model", "direction", "eps", "image")
    after = {"picture": ("y", "x", "channel"), "film": ("frame", "y", "x", "channel")}
    after |= {"loss": ("step",), "probability": ("step",)}
    of = {name: (*dims, *after.get(name, ())) for name in runs[0] if name != "words"}
    of |= dict.fromkeys(("goal", "counted"), ("model", "direction", "image"))
    data = xr.Dataset(
        {name: (of[name], np.stack([r[name] for r in runs])) for name in of if name != "film" or params.frames},
        coords=model_coords(models)
        | {"direction": _directions(models[0], params), "eps": list(params.eps), "image": list(batch.ids)}
        | ({"frame": params.kept} if params.frames else {}),
    )
    data["original"] = (("image", "y", "x", "channel"), pixels(batch.images))
    data["truth"] = ("image", batch.labels.numpy())
    hits = data["reached"].values
    counts = np.broadcast_to(data["counted"].values[:, :, None], hits.shape)
    n = counts.sum(-1)
    rates = [wilson(int(k), int(of)) for k, of in zip((hits & counts).sum(-1).flat, n.flat, strict=True)]
    data = data.assign(with_interval("success", dims[:3], rates, n.shape, unit="share", better="none", n=len(batch)))
    data["success_n"] = (dims[:3], n)
    data.attrs["arithmetic"] = "; ".join(dict.fromkeys(str(r["words"]) for r in runs))
    return Result.of("sweep", "Perturbations as ε grows", data, params=params, models=models, batch=batch, started=started)


def _directions(model: Model, params: Sweep) -> list[str]:
    toward = [f"toward {model.card.label(i)}" for i in range(model.card.num_classes)] if params.target == "each" else ["toward"]
    return ["away", *toward]


def _one(models: Sequence[Model], m: int, batch: Batch, params: Sweep) -> dict[str, Any]:
    """One model's runs, arrays (directions, eps, images, …)."""
    model = models[m]
    goal = torch.cat([labels_for(model, batch)[None], targets_of(model, batch, params.target)])
    goals = goal[:, None].expand(-1, len(params.eps), -1).contiguous()
    curves = _Curves(params, goals, batch.images.shape[2:])
    away = _runs(model, batch, goals[:1], params, curves, 0)
    toward = _runs(model, batch, goals[1:], params, curves, away.x.shape[0])
    x, logits, reached = (torch.cat([getattr(f, name).cpu() for f in (away, toward)]) for name in ("x", "logits", "success"))
    top, shape = logits.softmax(1).max(1), (*goals.shape,)
    counted = (goal != goal[:1]) & (goal != model.read(batch.images).argmax(1))  # others are there before they move
    counted[0] = True  # away: all images, as in robust accuracy
    return {
        "picture": pixels(x.float()).reshape(*shape, *batch.images.shape[2:], 3),
        "predicted": top.indices.reshape(shape).numpy(),
        "confidence": top.values.float().reshape(shape).numpy(),
        "reached": reached.reshape(shape).numpy(),
        "goal": goal.numpy(),
        "counted": counted.numpy(),
        "others": judged(models, m, x.float(), goals.flatten()).reshape(shape).numpy(),
        "loss": curves.loss,
        "probability": curves.probability,
        "film": curves.film,
        "words": away.words,
    }


def _runs(model: Model, batch: Batch, goals: Tensor, params: Sweep, curves: _Curves, before: int) -> Found:
    """All runs of one sign at once, (directions, eps, images) flattened; an image has one start whatever its ε and goal."""
    directions, sizes, n = goals.shape
    eps = torch.tensor(params.eps)[None, :, None].expand(goals.shape).flatten()
    pgd = dataclasses.replace(params.attack, eps=max(params.eps), targeted=before > 0)
    return attack(
        model, batch.images.repeat(directions * sizes, 1, 1, 1), goals.flatten(), pgd,
        eps=eps, first=list(range(n)) * (directions * sizes), chunk=params.chunk, precision=params.precision,
        watch=lambda at, step: curves(at + before, step),
    )  # fmt: skip


def judged(models: Sequence[Model], generator: int, x: Tensor, goals: Labels) -> Tensor:
    """Mean probability (n,) that the judges of a generator give each picture's goal (`judges_of`); NaN where there are none."""
    readings = [models[j].read(x).softmax(1) for j in judges_of(models, generator)]
    found = [reading.gather(1, goals[:, None])[:, 0] for reading in readings]
    return torch.stack(found).mean(0) if found else torch.full((len(x),), torch.nan)
