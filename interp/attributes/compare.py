"""Semantic attributes of models on the same images: one table of measures with intervals, controls and paired comparisons.

Most measures are computed from the same evidence, made once per model and image: a perturbation toward another class, one away
from the label, the gradients along it (`gather`); the others from pictures of their own (`groups`). The goals are spread evenly:
of the images of one class each moves toward the next of the other classes in turn, so that every pair of classes occurs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from interp.attacks.pgd import PGD
from interp.attributes import aligned, appearance, classify, edges, write
from interp.attributes.gather import Plan, Seen, gather
from interp.attributes.groups import OWN, Sizes
from interp.attributes.panel import sweep
from interp.attributes.table import Column, tabulate
from interp.models.load import check_labels
from interp.models.model import Model, check_apart, check_some, model_coords, twins
from interp.result import Measure, Result
from interp.types import Batch, InputError, Labels

NOISE = "noise in place of the model's δ and gradients"
RANDOM = "networks of its architecture with random parameters"
CHANCE = "how often images become the class that is read"
PER_IMAGE: Mapping[str, tuple[Measure, ...]] = {
    "perturbation": classify.MEASURES,
    "appearance": (*appearance.MEASURES, *edges.MEASURES),
    "alignment": tuple(m for m in aligned.MEASURES if m.name in ("toward_mean", "toward_nearest", "class_part")),
    "written": write.MEASURES,
}
GROUPS = (*PER_IMAGE, *OWN)
JUDGED = ("perturbation", "written", "pictures")  # what other models read
QUICK = ("perturbation", "appearance", "alignment")


@dataclass(frozen=True)
class Compare:
    """attack: the targeted perturbation. away: the untargeted attack whose gradients are added up.

    groups: names of GROUPS. sweep: further ε of the perturbations' readings, on the first `swept` images, with half the steps.
    sizes: how many images and pictures the groups with their own take. examples: images of which pictures are kept. judges: who
    reads perturbations and pictures beside the models, and is not compared; without them twins alone have no judge of another
    architecture, nor have two architectures one in common (see `interp.independent_judges`). chunk: images at a time.
    """

    attack: PGD = PGD(32 / 255, steps=10, targeted=True)
    away: PGD = PGD(8 / 255, steps=10)
    groups: tuple[str, ...] = GROUPS
    sweep: tuple[float, ...] = (8 / 255, 128 / 255, 1.0)
    swept: int = 60
    sizes: Sizes = Sizes()
    examples: int = 6
    judges: tuple[Model, ...] = field(default=(), metadata={"later": True})
    chunk: int = field(default=64, metadata={"cost": True})

    def __post_init__(self) -> None:
        if not self.attack.targeted or self.away.targeted or min(self.attack.eps, self.away.eps, *self.sweep) <= 0:
            raise InputError("comparing needs a targeted attack, an untargeted one away from the label, and ε above 0")
        if self.chunk < 1:
            raise InputError(f"images are taken {self.chunk} at a time; expected at least 1")
        idle = [name for name, source in self.sizes.sources.items() if source and name not in self.groups]
        if idle:
            raise InputError(f"a source is given for {', '.join(idle)}, which is not among the groups {', '.join(self.groups)}")
        unknown = [name for name in self.groups if name not in GROUPS]
        if unknown or not self.groups or len(set(self.groups)) < len(self.groups):
            raise InputError(f"groups are {', '.join(self.groups) or 'none'}; expected some of {', '.join(GROUPS)}, each once")


def compare(models: Sequence[Model], batch: Batch, params: Compare = Compare()) -> Result:
    """Measure every model on the batch, each beside its control, and compare the models in pairs.

    Measures over model: those of each group, see `table.tabulate` for what stands beside each; attribute `group` says which.
    classified_by, transferred_to (model, judge): the share of one model's perturbations that one judge reads as the target, the
    models in their order and then the further judges; classified_own, transferred_own (model), what the generator itself reads.
    classified_controls (model, check): see classify.CONTROLS. sweep_NAME (model, eps) for the measures of perturbations.
    attribute_change, attribute_more (model, attribute, fate): see `write.by_fate`, `write.more`. spectrum (model, frequency):
    share of δ's energy, with spectrum_noise. example_x, example_delta, example_gradient, example_added: pictures. goal (image):
    the class moved toward. attribute `skipped`: which groups have nothing to say, and why.
    Raises InputError for unlabelled images, models or judges of different classes, and one that is given twice.
    """
    started = time.perf_counter()
    check_some(models)
    panel = [*models, *params.judges]
    _check(panel, batch)
    goals = goals_of(batch.labels, models[0].card.num_classes)
    sizes = params.sizes
    plan = Plan(
        params.attack, params.away, params.groups, params.examples, params.chunk,
        sizes.randomised, sizes.attributes, params.judges,
    )  # fmt: skip
    within = [name for name in params.groups if name in PER_IMAGE]
    seen = gather(models, batch, goals, plan) if within else Seen()
    columns = {
        name: [_column(m, seen, RANDOM if name == "appearance" else NOISE) for m in PER_IMAGE[name] if m.name in seen.values]
        for name in within
    }
    for name in (n for n in params.groups if n in OWN):
        try:
            further = {"judges": params.judges} if name in JUDGED else {}
            columns[name], extras = OWN[name](models, batch, goals, sizes, params.chunk, **further)
            seen.extras |= extras
        except InputError as reason:
            seen.why[name] = str(reason)
    for name in within:
        if columns[name] and not any(np.isfinite(column.values).any() for column in columns[name]):
            seen.why.setdefault(name, "no image has a value: the images hold none of the classes that perturbations go toward")
    for name, source in sizes.sources.items():
        if source and name in seen.why:
            raise InputError(f"{name} from {source}: {seen.why[name]}")
    if not any(columns.values()):
        raise InputError(f"nothing could be measured: {'; '.join(f'{k}: {v}' for k, v in seen.why.items())}")
    coords, readers = model_coords(models), model_coords(panel)
    coords["label"] = "model", readers["label"][1][: len(models)]
    data = tabulate([c for of in columns.values() for c in of], coords["model"], twins(models))
    for name, of in columns.items():
        for column in of:
            data[column.measure.name].attrs["group"] = name
    data = data.assign_coords(coords | {"image": list(batch.ids), "other": coords["model"], "judge": [m.card.id for m in panel]})
    data["judge_label"], data["judge_group"] = ("judge", readers["label"][1]), ("judge", readers["group"][1])
    data = data.assign(seen.extras)
    data["goal"], data["truth"] = ("image", goals.numpy()), ("image", batch.labels.numpy())
    if "perturbation" in params.groups and params.sweep:
        few = slice(0, params.swept)
        ladder, attacks = sorted({*params.sweep, params.attack.eps}), (params.attack, params.away)
        data = data.assign(sweep(panel, len(models), batch[few], goals[few], ladder, attacks, chunk=params.chunk))
    data.attrs |= {"chance": 1 / models[0].card.num_classes, "skipped": "; ".join(f"{k}: {v}" for k, v in seen.why.items())}
    return Result.of("compare", "Semantic attributes", data, params=params, models=models, batch=batch, started=started)


def _column(m: Measure, seen: Seen, against: str) -> Column:
    return Column(
        m, seen.values[m.name], seen.control[m.name], CHANCE if m.name == "became" else against, beside=seen.beside.get(m.name)
    )


def goals_of(labels: Labels, classes: int) -> Labels:
    """For every image another class: of the images of one class the k-th moves k places on, past its own."""
    seen: dict[int, int] = {}
    goals = []
    for label in labels.tolist():
        turn = seen[label] = seen.get(label, -1) + 1
        goals.append((label + 1 + turn % (classes - 1)) % classes)
    return torch.tensor(goals)


def _check(models: Sequence[Model], batch: Batch) -> None:
    check_apart(models)
    if bool((batch.labels < 0).any()):
        raise InputError("comparing needs labelled images; a single image file has no label: use folder: or parquet:")
    for model in models:
        check_labels(model.card, batch)
        model.check_images(batch.images.shape)
        if model.card.num_classes != models[0].card.num_classes:
            raise InputError(f"models have {[m.card.num_classes for m in models]} classes; give models of one set of classes")
