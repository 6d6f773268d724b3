"""Semantic attributes of models on the same images: one table of measures with intervals and a noise control.

Every measure is computed from the same perturbations, made once per model: δ toward several other classes at one ε.
The control is uniform noise of the same ε in place of a model's δ and gradient. Intervals are bootstraps over images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.attributes.classify import as_image, read_as
from interp.attributes.edges import alignment
from interp.gradients.fold import fold
from interp.gradients.sources import Block, over_steps
from interp.gradients.spectrum import centroid, radial
from interp.models.load import check_labels
from interp.models.model import Model, judges_of, model_coords
from interp.result import Measure, Result, with_interval
from interp.stats import bootstrap
from interp.types import Batch, InputError, Labels

CONTROL = "uniform noise (control)"


MEASURES = (
    Measure(
        "classified",
        "δ read as the target",
        "share of images (δ + ε)/2ε that models of other architectures classify as the class δ was made toward",
        "arXiv 2209.07399, quantification of perturbations",
        "share",
        "higher",
    ),
    Measure(
        "transferred",
        "x + δ read as the target",
        "share of images x + δ that models of other architectures classify as the class δ was made toward",
        "targeted transfer",
        "share",
        "higher",
    ),
    Measure(
        "centroid",
        "spectral centroid of δ",
        "Σ |f|·|FFT δ|² / Σ |FFT δ|², white noise 0.38",
        "arXiv 2209.07399, Fourier figure, as one number",
        "cycles/pixel",
        "lower",
    ),
    Measure(
        "edges",
        "edge alignment of the accumulated gradient",
        "correlation over pixels of |Σ_t ∇L(x_t)| and the Sobel magnitude of x",
        "after Tsipras et al., arXiv 1805.12152",
        "correlation",
        "higher",
    ),
    Measure(
        "persistence",
        "gradient persistence along the attack",
        "mean cosine of ∇L at neighbouring steps of PGD",
        "arXiv 2209.07399, accumulated gradients",
        "cosine",
        "higher",
    ),
)


@dataclass(frozen=True)
class Compare:
    """attack: the targeted perturbation; gradients: the untargeted attack whose gradients are summed.

    targets: number of other classes each image is moved toward, spread evenly over the label order.
    """

    attack: PGD = PGD(32 / 255, steps=20, targeted=True)
    gradients: PGD = PGD(8 / 255, steps=20)
    targets: int = 5
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.targets < 1 or not self.attack.targeted or self.attack.eps == 0:
            raise InputError("comparing needs at least one target and a targeted attack with ε > 0")


def compare(models: Sequence[Model], batch: Batch, params: Compare = Compare()) -> Result:
    """Measure each model on the batch.

    Measures over model, which ends with the noise control; `classified_by` and `transferred_to` (model, judge): the share of
    one model's perturbations that one judge reads as the target; `spectrum` (model, frequency): share of δ's energy;
    `values_NAME` (model, image): what each mean and interval is made of. Raises InputError for unlabelled images or models
    of different classes.
    """
    started = time.perf_counter()
    _check(models, batch)
    classes = models[0].card.num_classes
    shifts = sorted({round(k * (classes - 1) / params.targets) % (classes - 1) + 1 for k in range(params.targets)})
    tiled = batch[[i for i in range(len(batch)) for _ in shifts]]
    goals = torch.cat([(label + torch.tensor(shifts)) % classes for label in batch.labels])
    names = [*(m.card.id for m in models), CONTROL]
    values: dict[str, list[np.ndarray]] = {m.name: [] for m in MEASURES}
    matrices: dict[str, list[Tensor]] = {"classified_by": [], "transferred_to": []}
    spectra = []
    for g in tqdm(range(len(names)), desc="attributes", leave=False):
        model = models[g] if g < len(models) else None
        x, eps = tiled.images, params.attack.eps
        delta = _perturb(model, tiled, goals, params)
        seen = {
            "classified_by": [read_as(j, as_image(delta, eps), goals).view(len(batch), -1) for j in models],
            "transferred_to": [read_as(j, x + delta, goals).view(len(batch), -1) for j in models],
        }
        for (matrix, per_judge), measure in zip(seen.items(), ("classified", "transferred"), strict=True):
            matrices[matrix].append(torch.stack([v.mean(1) for v in per_judge]))
            judges = judges_of(models, g if model is not None else None)
            independent = [per_judge[j] for j in judges] or [torch.full_like(per_judge[0], torch.nan)]
            values[measure].append(torch.stack(independent).mean((0, 2)).numpy())
        values["centroid"].append(centroid(delta).view(len(batch), -1).mean(1).numpy())
        frequency, shares = radial(delta)
        spectra.append(shares.mean(0).numpy())
        gradient, persistence = _accumulated(model, batch, params)
        values["edges"].append(alignment(gradient, batch.images).numpy())
        values["persistence"].append(persistence.numpy())
    data = _dataset(models, names, batch, values, matrices, (frequency.numpy(), np.stack(spectra)))
    return Result.of("compare", "Semantic attributes", data, params=params, models=models, batch=batch, started=started)


def _check(models: Sequence[Model], batch: Batch) -> None:
    if bool((batch.labels < 0).any()):
        raise InputError("comparing needs labelled images; a single image file has no label: use folder: or parquet:")
    for model in models:
        check_labels(model.card, batch)
        model.check_images(batch.images.shape)
        if model.card.num_classes != models[0].card.num_classes:
            raise InputError(f"models have {[m.card.num_classes for m in models]} classes; give models of one set of classes")


def _perturb(model: Model | None, batch: Batch, goals: Labels, params: Compare) -> Tensor:
    """δ of a model toward the goals, or uniform noise in the same ball and box."""
    pgd = params.attack
    if model is None:
        noise = torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(pgd.seed))
        return (batch.images + (2 * noise - 1) * pgd.eps).clamp(0, 1) - batch.images
    return attack(model, batch.images, goals, pgd).x.cpu() - batch.images


def _accumulated(model: Model | None, batch: Batch, params: Compare) -> tuple[Tensor, Tensor]:
    """Mean gradient (n, 3, h, w) along an untargeted attack and its persistence (n,); for the control, sums of noise."""
    if model is None:
        generator = torch.Generator().manual_seed(params.gradients.seed)
        noise = (Block(torch.randn(1, *batch.images.shape, generator=generator)) for _ in range(params.gradients.steps))
        folded = fold(noise)
        return folded.running.mean, folded.cosine
    means, cosines, first = [], [], 0
    for part in batch.chunks(params.chunk):
        folded = fold(over_steps(model, part.images, part.labels, params.gradients, first=first))
        means.append(folded.running.mean)
        cosines.append(folded.cosine)
        first += len(part)
    return torch.cat(means), torch.cat(cosines)


def _dataset(
    models: Sequence[Model],
    names: list[str],
    batch: Batch,
    values: dict[str, list[np.ndarray]],
    matrices: dict[str, list[Tensor]],
    spectrum: tuple[np.ndarray, np.ndarray],
) -> xr.Dataset:
    coords = model_coords(models)
    coords["model"] = names
    coords["robust"] = ("model", [*coords["robust"][1], False])
    coords["label"] = ("model", [*coords["label"][1], CONTROL])
    coords["group"] = ("model", [*coords["group"][1], "control"])
    coords |= {"judge": names[:-1], "image": list(batch.ids), "frequency": spectrum[0]}
    data = xr.Dataset({"spectrum": (("model", "frequency"), spectrum[1])}, coords=coords)
    for m in MEASURES:
        block = np.stack(values[m.name])
        attrs = {"unit": m.unit, "better": m.better, "n": len(batch), "long_name": m.title}
        data = data.assign(with_interval(m.name, ("model",), [bootstrap(v) for v in block], (len(names),), **attrs))
        data[f"values_{m.name}"] = (("model", "image"), block.astype(np.float32))
    for name, rows in matrices.items():
        block = torch.stack(rows).numpy()  # (generator, judge, image)
        intervals = [bootstrap(v) for row in block for v in row]
        attrs = {"unit": "share", "better": "none", "n": len(batch), "long_name": name.replace("_", " ")}
        data = data.assign(with_interval(name, ("model", "judge"), intervals, block.shape[:2], **attrs))
    data.attrs["chance"] = 1 / models[0].card.num_classes
    return data
