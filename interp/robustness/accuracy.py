"""Clean and adversarial accuracy with their intervals: the first thing to know of a checkpoint.

Robust accuracy counts an image only when it is classified correctly and neither attack changes that: PGD on the
cross-entropy, then PGD on the margin for the images that are left (a loss whose gradient does not vanish where
cross-entropy saturates; Carlini & Wagner, arXiv 1608.04644). On demand AutoAttack is run beside them, on all images anew.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from tqdm import tqdm

from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.models.load import check_labels
from interp.models.model import Model, check_some, macs, model_coords
from interp.result import Result, with_interval
from interp.robustness.autoattack import autoattack
from interp.stats import wilson
from interp.types import Batch, InputError


@dataclass(frozen=True)
class Accuracy:
    """The attack of the robust accuracy; steps of 2/255 at ε = 8/255 are the field's PGD-20.

    autoattack: whether AutoAttack (standard) is run too, in the attack's norm and ε; it takes seconds to minutes per image.
    """

    attack: PGD = PGD(8 / 255, "linf", steps=20, step_size=2 / 255)
    chunk: int | None = field(default=None, metadata={"later": True})  # AutoAttack draws by chunk, so it counts where it is given
    autoattack: bool = field(default=False, metadata={"later": True})


def correct(
    model: Model, batch: Batch, pgd: PGD | None = None, *, chunk: int | None = None, losses: Sequence[str] = ("ce",)
) -> np.ndarray:
    """Which images (n,) the model classifies as labelled, clean or under every attack (one per loss in `losses`)."""
    right = model.read(batch.images, chunk=chunk or 64).argmax(1) == batch.labels
    for loss in losses if pgd else ():
        at = right.nonzero()[:, 0]
        if pgd and len(at):
            attacked = dataclasses.replace(pgd, loss=loss)
            found = attack(model, batch.images[at], batch.labels[at], attacked, first=at.tolist(), chunk=chunk)
            right[at] = ~found.success.cpu()
    return right.numpy()


def accuracy(models: Sequence[Model], batch: Batch, params: Accuracy = Accuracy()) -> Result:
    """Clean and robust accuracy of each model on the same images, with size and cost. Raises InputError without labels."""
    check_some(models)
    if bool((batch.labels < 0).any()):
        raise InputError("accuracy needs labelled images; a single image file has no label: use folder: or parquet:")
    started = time.perf_counter()
    names = ("clean", "attacked", *(["autoattack"] if params.autoattack else []))
    rates = []
    for model in tqdm(models, desc="accuracy", leave=False):
        check_labels(model.card, batch)
        clean = correct(model, batch, chunk=params.chunk)
        robust = correct(model, batch, params.attack, chunk=params.chunk, losses=("ce", "margin"))
        held = [clean, robust]
        if params.autoattack:
            pgd = params.attack
            held.append(autoattack(model, batch, norm=pgd.norm, eps=pgd.eps, chunk=params.chunk or 64, seed=pgd.seed))
        rates.append([wilson(int(v.sum()), len(v)) for v in held])
    data = xr.Dataset(coords=model_coords(models))
    for i, name in enumerate(names):
        of_all = [r[i] for r in rates]
        data = data.assign(with_interval(name, ("model",), of_all, (len(models),), unit="share", better="higher", n=len(batch)))
    data["parameters"] = ("model", [m.parameters_count for m in models])
    data["macs"] = ("model", [macs(m) for m in models])
    return Result.of(
        "accuracy", "Clean and adversarial accuracy", data, params=params, models=models, batch=batch, started=started
    )
