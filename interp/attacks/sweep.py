"""What a model would change in an image as ε grows, and what it draws when it starts from noise.

Large perturbations and targeted synthesis follow section "Semantic nature of perturbations" of arXiv 2209.07399: at
ε = 1 (L∞) every image in [0, 1] is within reach of every other, so the ball no longer binds and only the box does.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from interp.attacks.pgd import PGD, attack
from interp.models.model import Model, judges_of, model_coords
from interp.result import Result, with_interval
from interp.stats import wilson
from interp.types import Batch, InputError, Labels, pixels

DIRECTIONS = ("away", "toward")


@dataclass(frozen=True)
class Sweep:
    """ε values in units of [0, 1], and the attack at each (its eps is replaced).

    target: class index to move toward, or None for the class after each image's own. Images without a label move away from
    what the model sees in them.
    """

    eps: tuple[float, ...] = (8 / 255, 32 / 255, 128 / 255, 1.0)
    attack: PGD = PGD(8 / 255, steps=50)
    target: int | None = None
    chunk: int = 16

    def __post_init__(self) -> None:
        if not self.eps:
            raise InputError("no ε was given; expected at least one, such as 8/255")
        for eps in self.eps:
            dataclasses.replace(self.attack, eps=eps)  # checks each value


@dataclass(frozen=True)
class Synthesis:
    """Targeted PGD from uniform noise toward every class, unbounded but for the box.

    attack: L∞ with ε = 15 makes the ball irrelevant and leaves the step size free, as in the notebook of the paper
    (ε = 15, 100 steps, step 1.5·ε/steps); its random start then clips, so that a share of 1/30 of the start's pixels lies
    strictly inside (0, 1).
    """

    attack: PGD = PGD(15.0, steps=100, targeted=True)
    seeds: int = 1
    chunk: int = 16


def targets_of(labels: Labels, classes: int, target: int | None) -> Labels:
    """The class to move toward: the given one, or the next in label order; raises InputError outside 0 … classes − 1."""
    if target is None:
        return (labels + 1) % classes
    if not 0 <= target < classes:
        raise InputError(f"target class is {target}; expected 0 to {classes - 1}")
    return torch.full_like(labels, target)


def labels_for(model: Model, batch: Batch) -> Labels:
    """The batch's labels, with the model's own prediction where a label is unknown (−1)."""
    if not bool((batch.labels < 0).any()):
        return batch.labels
    with torch.no_grad():
        return torch.where(batch.labels < 0, model(batch.images).argmax(1), batch.labels)


def sweep(models: Sequence[Model], batch: Batch, params: Sweep = Sweep()) -> Result:
    """Perturb every image at every ε, away from its class and toward another.

    picture (model, direction, eps, image, y, x, channel): the perturbed images. predicted and confidence: each model's own
    reading of them. success (model, direction, eps): share no longer given its label (away), or given the target (toward).
    """
    started = time.perf_counter()
    shape = (len(models), 2, len(params.eps), len(batch))
    picture = np.zeros((*shape, *batch.images.shape[2:], 3), np.float32)
    predicted, confidence, hit = np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, bool)
    goal = np.zeros((len(models), len(batch)), np.int64)
    plan = [(m, d, e) for m in range(len(models)) for d in range(2) for e in range(len(params.eps))]
    for m, d, e in tqdm(plan, desc="perturbations", leave=False):
        model = models[m]
        model.check_images(batch.images.shape)
        labels = labels_for(model, batch)
        goal[m] = targets_of(labels, model.card.num_classes, params.target).numpy()
        pgd = dataclasses.replace(params.attack, eps=params.eps[e], targeted=bool(d))
        first = 0
        for part in batch.chunks(params.chunk):
            rows = slice(first, first + len(part))
            aim = torch.from_numpy(goal[m, rows]) if d else labels[rows]
            step = attack(model, part.images, aim, pgd, first=first)
            top = step.logits.softmax(1).max(1)
            picture[m, d, e, rows] = pixels(step.x)
            predicted[m, d, e, rows], confidence[m, d, e, rows] = top.indices.numpy(), top.values.numpy()
            hit[m, d, e, rows] = ((top.indices == aim) == bool(d)).numpy()
            first += len(part)
    dims = ("model", "direction", "eps", "image")
    data = xr.Dataset(
        {
            "picture": ((*dims, "y", "x", "channel"), picture),
            "original": (("image", "y", "x", "channel"), pixels(batch.images)),
            "predicted": (dims, predicted),
            "confidence": (dims, confidence),
            "target": (("model", "image"), goal),
            "truth": ("image", batch.labels.numpy()),
        },
        coords=model_coords(models) | {"direction": list(DIRECTIONS), "eps": list(params.eps), "image": list(batch.ids)},
    )
    rates = [wilson(int(v.sum()), len(batch)) for v in hit.reshape(-1, len(batch))]
    data = data.assign(with_interval("success", dims[:3], rates, shape[:3], unit="share", better="none", n=len(batch)))
    return Result.of("sweep", "Perturbations as ε grows", data, params=params, models=models, batch=batch, started=started)


def synthesise(models: Sequence[Model], batch: Batch, params: Synthesis = Synthesis()) -> Result:
    """Start from uniform noise of the batch's image size and move toward each class; the batch's pixels play no part.

    picture (model, seed, target, y, x, channel). predicted, own (model, seed, target): the model's reading, and its confidence
    in the target; others: mean confidence in the target of the models of other architectures, the independent check.
    """
    started = time.perf_counter()
    classes = models[0].card.num_classes
    if any(m.card.num_classes != classes for m in models):
        raise InputError(f"models have {[m.card.num_classes for m in models]} classes; give models of one set of classes")
    h, w = batch.images.shape[2:]
    noise = torch.rand((params.seeds * classes, 3, h, w), generator=torch.Generator().manual_seed(params.attack.seed))
    goals = torch.arange(classes).repeat(params.seeds)
    shape = (len(models), params.seeds, classes)
    picture = np.zeros((*shape, h, w, 3), np.float32)
    own, others = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    predicted = np.zeros(shape, np.int64)
    for m, model in enumerate(tqdm(models, desc="synthesis from noise", leave=False)):
        drawn = torch.cat(
            [
                attack(model, noise[i : i + params.chunk], goals[i : i + params.chunk], params.attack, first=i).x
                for i in range(0, len(noise), params.chunk)
            ]
        )
        with torch.no_grad():
            read = torch.stack([judge(drawn).softmax(1).gather(1, goals[:, None])[:, 0] for judge in models])
            predicted[m] = model(drawn).argmax(1).reshape(shape[1:]).numpy()
        picture[m] = pixels(drawn).reshape(*shape[1:], h, w, 3)
        own[m] = read[m].reshape(shape[1:]).numpy()
        rest = judges_of(models, m)
        others[m] = (read[rest].mean(0) if rest else torch.full_like(read[m], float("nan"))).reshape(shape[1:]).numpy()
    dims = ("model", "seed", "target")
    data = xr.Dataset(
        {
            "picture": ((*dims, "y", "x", "channel"), picture),
            "own": (dims, own),
            "predicted": (dims, predicted),
            "others": (dims, others),
        },
        coords=model_coords(models) | {"target": [models[0].card.label(i) for i in range(classes)]},
    )
    return Result.of(
        "synthesis", "Synthesis from noise toward each class", data, params=params, models=models, batch=batch, started=started
    )
