"""What a model draws toward a class when it starts from noise, from a Gaussian of the class, or from other images.

Targeted synthesis follows the notebook of arXiv 2209.07399: uniform noise, L∞ with ε = 15, 100 steps of 1.5·ε/steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from interp.attacks.losses import LOSSES
from interp.attacks.pgd import PGD, begin
from interp.attacks.search import attack
from interp.attacks.starts import STARTS, class_gaussian, other_images, uniform
from interp.attacks.sweep import EACH, judged
from interp.models.model import Model, check_some, model_coords
from interp.result import Result
from interp.types import Batch, Images, InputError, Labels, pixels


@dataclass(frozen=True)
class Synthesis:
    """Targeted PGD toward classes, unbounded but for the box.

    attack: L∞ with ε = 15 makes the ball irrelevant and leaves the step size free, as in the notebook of the paper; its random
    start then clips, so that a share of 1/30 of the start's pixels lies strictly inside (0, 1). start: 'noise', 'gaussian' (of
    the batch's images of the class) or 'images' (the batch's, of other classes); the last two begin there and not at a random
    point of the ball. targets: class indices, none for all of them (of more than 20 classes, for 10 spread evenly).
    """

    attack: PGD = PGD(15.0, steps=100, targeted=True)
    seeds: int = 1
    chunk: int | None = field(default=None, metadata={"cost": True})
    start: str = field(default="noise", metadata={"later": True})
    targets: tuple[int, ...] = field(default=(), metadata={"later": True})

    def __post_init__(self) -> None:
        if not self.attack.targeted or self.attack.loss not in LOSSES:
            raise InputError(f"synthesis needs a targeted attack on one of {', '.join(LOSSES)}; found {self.attack}")
        if self.seeds < 1 or self.start not in STARTS:
            raise InputError(f"seeds is {self.seeds} and start {self.start!r}; expected ≥ 1 and one of {', '.join(STARTS)}")


def synthesise(models: Sequence[Model], batch: Batch, params: Synthesis = Synthesis()) -> Result:
    """Draw each class from its start; with the start 'noise' the batch only gives the image size.

    picture (model, seed, target, y, x, channel); start (seed, target, …): the first iterate, a random point of the ball or what
    params.start says (of several restarts, that of the first). predicted, own (model, seed, target): the model's reading, and
    its confidence in the target; others: mean confidence in the target of the judges, see `judges_of`.
    """
    started = time.perf_counter()
    check_some(models)
    classes = models[0].card.num_classes
    if any(m.card.num_classes != classes for m in models):
        raise InputError(f"models have {[m.card.num_classes for m in models]} classes; give models of one set of classes")
    aims = _aims(params, classes)
    goals = torch.tensor(aims).repeat(params.seeds)
    x, start = _starts(batch, goals, params)
    shape, size = (len(models), params.seeds, len(aims)), batch.images.shape[2:]
    picture = np.zeros((*shape, *size, 3), np.float32)
    own, others = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    predicted = np.zeros(shape, np.int64)
    for m, model in enumerate(tqdm(models, desc="synthesis", leave=False)):
        found = attack(model, x, goals, params.attack, start=start, chunk=params.chunk)
        drawn, probability = found.x.cpu(), found.logits.cpu().softmax(1)
        picture[m] = pixels(drawn).reshape(*shape[1:], *size, 3)
        predicted[m] = probability.argmax(1).reshape(shape[1:]).numpy()
        own[m] = probability.gather(1, goals[:, None]).reshape(shape[1:]).numpy()
        others[m] = judged(models, m, drawn, goals).reshape(shape[1:]).numpy()
    dims, begun = ("model", "seed", "target"), pixels(begin(x, params.attack, start=start))
    data = xr.Dataset(
        {
            "picture": ((*dims, "y", "x", "channel"), picture),
            "start": ((*dims[1:], "y", "x", "channel"), begun.reshape(*shape[1:], *size, 3)),
            "own": (dims, own),
            "predicted": (dims, predicted),
            "others": (dims, others),
        },
        coords=model_coords(models) | {"target": [models[0].card.label(i) for i in aims]},
    )
    title = {"noise": "noise", "gaussian": "a Gaussian of the class", "images": "images of other classes"}[params.start]
    return Result.of(
        "synthesis", f"Synthesis from {title} toward each class", data, params=params, models=models, batch=batch, started=started
    )


def _aims(params: Synthesis, classes: int) -> list[int]:
    wrong = [t for t in params.targets if not 0 <= t < classes]
    if wrong:
        raise InputError(f"target classes {wrong} are outside 0 to {classes - 1}")
    return list(params.targets) or (list(range(classes)) if classes <= EACH else [i * classes // 10 for i in range(10)])


def _starts(batch: Batch, goals: Labels, params: Synthesis) -> tuple[Images, Images | None]:
    """The centre of the ball, and where in it to begin (None: where the attack says)."""
    seed = params.attack.seed
    if params.start == "noise":
        return uniform((len(goals), 3, *batch.images.shape[2:]), seed=seed), None
    made = class_gaussian(batch, goals, seed=seed) if params.start == "gaussian" else other_images(batch, goals)
    return made, made
