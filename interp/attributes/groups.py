"""Measures that need pictures of their own: group → columns of the table, and what else belongs into the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.attacks.starts import uniform
from interp.attention.maps import enlarge
from interp.attention.readings import read
from interp.attributes import aligned, concepts, discovery, localise, shape
from interp.attributes.table import Column
from interp.data.conflicts import cue_conflict_folder
from interp.data.source import images
from interp.data.synthetic import shapes
from interp.models.model import Model, judges_of
from interp.models.randomise import fully_randomised
from interp.result import Measure
from interp.types import Batch, InputError, Labels, pixels


@dataclass(frozen=True)
class Sizes:
    """shaped, tested, factorised, measured: the first so many images for shape and texture, concepts, discovery, distances.
    seeds: pictures drawn per class; synthesis: the attack that draws them, from noise. cues: a folder of cue conflicts named
    shapeN-textureM.png, of classes that the models have. masked: a source of images with masks for `where`, of any classes, of
    which the first `located` are taken, or as many drawn shapes.
    """

    shaped: int = 200
    tested: int = 200
    factorised: int = 200
    measured: int = 100
    seeds: int = 3
    synthesis: PGD = PGD(15.0, steps=40, targeted=True)
    cues: str = ""
    masked: str = ""
    located: int = 200


Found = tuple[list[Column], dict[str, object]]
Group = Callable[[Sequence[Model], Batch, Labels, Sizes, int], Found]


def _named(measures: Sequence[Measure], prefix: str) -> dict[str, Measure]:
    return {m.name: dataclasses.replace(m, name=prefix + m.name) for m in measures}


def shape_or_texture(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """What is left of the right answers when shape or texture is taken away, and which a read-out follows in drawn conflicts."""
    rows, few = _named(shape.MEASURES, "shape_"), batch[: sizes.shaped]
    cutoffs, chance = shape.ladder(few.images.shape[-1]), 1 / models[0].card.num_classes
    kept, nothing, drawn, halves, curves = [], [], [], [], []
    for model in tqdm(models, desc="shape", leave=False):
        decided = shape.decisions(model, few, chunk=chunk)
        rights = shape.right(decided, few.labels)
        kept.append(shape.kept(rights))
        nothing.append(shape.kept(shape.control(decided, few.labels)))
        halves.append(shape.cutoff(rights, cutoffs, chance=chance)[0])
        curves.append([np.pad(shape.curve(rights, band), ((len(cutoffs) - len(shape.curve(rights, band)), 0), (0, 0)),
                              constant_values=np.nan) for band in ("low", "high")])  # fmt: skip
        drawn.append(shape.drawn_cues(model, chunk=chunk))
    against = "the label of another image"
    columns = [
        Column(rows[name], np.stack([k[name] for k in kept]), np.stack([k[name] for k in nothing]), against, "shaped")
        for name in kept[0]
    ]
    level = {"cue_bias": 0.5, "cue_decided": 0.25, "cue_consistent": 0.0}
    for name, at in level.items():
        values = np.stack([d[name] for d in drawn])
        columns.append(Column(rows[name], values, np.full_like(values, at), f"chance, {at:g}", "stimulus"))
    if sizes.cues:
        conflict = cue_conflict_folder(sizes.cues, preprocess=models[0].card.preprocess)
        values = np.stack([shape.cue_conflict(model, conflict, chunk=chunk)["shape_bias"] for model in models])
        columns.append(Column(rows["shape_bias"], values, np.full_like(values, 0.5), "chance, 0.5", "conflict"))
    block, ends = np.array(curves), ("", "_low", "_high")  # (model, band, cutoff, 3)
    extras: dict[str, object] = {
        f"accuracy_by_band{end}": (("model", "band", "cutoff"), block[..., k]) for k, end in enumerate(ends)
    }
    extras |= {f"shape_cutoff{end}": ("model", np.array(halves)[:, k]) for k, end in enumerate(ends)}
    return columns, extras | {"cutoff": ("cutoff", list(cutoffs)), "band": ("band", ["low-pass", "high-pass"])}


def named_concepts(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """TCAV at the last layer: how far classes depend on drawn concepts, beside a random one."""
    rows, few = _named(concepts.MEASURES, "concept_"), batch[: sizes.tested]
    found = [
        concepts.tcav(model, few.images, few.labels, layers=(concepts.LAST,), chunk=chunk)[0]
        for model in tqdm(models, desc="concepts", leave=False)
    ]
    values, random = (np.stack([f.values[name] for f in found]) for name in ("sensitivity", "control"))
    passed = np.stack([np.where(np.isfinite(f.p[:-1]), np.isfinite(f.score[:-1]), np.nan).ravel() for f in found])
    at_random = np.stack([np.full(passed.shape[1], f.significant[1]) for f in found])
    accuracy = np.stack([f.accuracy.mean(1) for f in found])
    apart, blind = accuracy[:, :-1], np.repeat(accuracy[:, -1:], accuracy.shape[1] - 1, 1)
    columns = [
        Column(rows["sensitivity"], values, random, "a random concept", "tested"),
        Column(rows["significant"], passed, at_random, "a random concept", "pair"),
        Column(rows["told_apart"], apart, blind, "a random concept", "concept"),
    ]
    names = [model.card.label(k) for model in models[:1] for k in range(found[0].score.shape[1])]
    extras: dict[str, object] = {
        "concept_score": (("model", "concept", "tested_class"), np.stack([f.score[:-1] for f in found])),
        "concept": ("concept", list(found[0].names[:-1])),
        "tested_class": ("tested_class", names),
    }
    return columns, extras


def found_concepts(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """Non-negative parts of a late layer's features, and how far models share them."""
    rows, few = _named(discovery.MEASURES, "discovery_"), batch[: sizes.factorised]
    found, shuffled = (
        [discovery.discover(model, few.images, shuffled=s, chunk=chunk) for model in tqdm(models, desc="discovery", leave=False)]
        for s in (False, True)
    )
    explained, control = (np.stack([f.explained for f in of]) for of in (found, shuffled))
    cka, matches = discovery.shared(found)
    columns = [Column(rows["explained"], explained, control, "features shuffled over places", "factorised")]
    extras: dict[str, object] = {
        "concepts_needed": ("model", np.array([f.needed for f in found])),
        "concepts_needed_shuffled": ("model", np.array([f.needed for f in shuffled])),
        "cka": (("model", "other"), cka),
        "best_match": (("model", "other"), matches),
        "concept_crop": (
            ("model", "part", "top", "crop_y", "crop_x", "channel"),
            np.stack([discovery.crops(few.images, f, size=few.images.shape[-1] // 2) for f in found]),
        ),
    }
    return columns, extras


def pictures(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """Pictures drawn from noise toward every class: what independent judges read in them, and how they differ."""
    rows, classes = _named(aligned.MEASURES, "picture_"), models[0].card.num_classes
    if classes > 20:
        raise InputError(f"the models have {classes} classes; pictures are drawn toward all of at most 20")
    targets = torch.arange(classes).repeat(sizes.seeds)
    x = uniform((len(targets), 3, *batch.images.shape[2:]), seed=sizes.synthesis.seed)
    real = [aligned.penultimate(judge, batch.images, chunk=chunk) for judge in models]
    made = [attack(m, x, targets, sizes.synthesis).x.cpu() for m in tqdm(models, desc="pictures", leave=False)]
    values: dict[str, list[np.ndarray]] = {"read_accuracy": [], "diversity": []}
    control: dict[str, list[np.ndarray]] = {"read_accuracy": [], "diversity": []}
    for m, drawn in enumerate(made):
        judges = judges_of(models, m)
        if not judges:
            raise InputError("pictures are read by other models; give at least two")
        for into, of in ((values, drawn), (control, x)):
            logits = torch.stack([models[j].read(of, chunk=chunk) for j in judges])
            into["read_accuracy"].append(aligned.read_accuracy(logits, targets).numpy())
            seen = [aligned.penultimate(models[j], of, chunk=chunk) for j in judges]
            apart = [aligned.diversity(v, targets, real[j], batch.labels) for v, j in zip(seen, judges, strict=True)]
            into["diversity"].append(torch.stack(apart).mean(0).numpy())
    columns = [
        Column(rows[name], np.stack(values[name]), np.stack(control[name]), "the noise drawn from", "picture") for name in values
    ]
    shown = np.stack([pixels(d[:classes]) for d in made])
    return columns, {"synthesis": (("model", "target", "y", "x", "channel"), shown)}


def distances(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """Alignment of gradient and image, beside that of the networks with random parameters.

    Linearised robustness stays out of the table: networks that are nearly constant have the largest.
    """
    rows, x = _named(aligned.MEASURES, ""), batch.images[: sizes.measured]
    found, blind = (
        np.stack([aligned.distances(m, x, rivals=1, chunk=chunk)["alignment"] for m in tqdm(of, desc="distances", leave=False)])
        for of in (models, [fully_randomised(m) for m in models])
    )
    return [Column(rows["alignment"], found, blind, "the network with random parameters", "measured")], {}


def where(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """How much of the gradient and of the model's own map lies on the object, beside a map around the centre.

    What each model predicts is explained, so that the pictures need no class it knows: those of `sizes.masked`, else the images
    where they have masks, else drawn shapes, whose masks are exact.
    """
    pictured, origin = _masked(models[0], batch, sizes)
    assert pictured.masks is not None
    blind, unit = localise.controls(pictured.masks)["centre map"], "image" if pictured is batch else "located"
    columns = []
    for source, title in (("gradient", "gradient"), ("map", "map")):
        rows = {m.name: dataclasses.replace(m, name=f"{source}_{m.name}", title=f"{title}: {m.title}") for m in localise.MEASURES}
        found = [_located(model, pictured, source, chunk) for model in tqdm(models, desc=f"where, {title}", leave=False)]
        for name in ("mass", "pointing"):
            values, control = np.stack([f[name] for f in found]), np.repeat(blind[name][None], len(models), 0)
            columns.append(Column(rows[name], values, control, f"a map around the centre, in {origin}", unit))
    return columns, {"mask_area": (unit, pictured.masks.float().mean((1, 2)).numpy())}


def _masked(model: Model, batch: Batch, sizes: Sizes) -> tuple[Batch, str]:
    """Pictures with masks, and what they are called."""
    if sizes.masked:
        found = images(sizes.masked, n=sizes.located, preprocess=model.card.preprocess)
        if found.masks is None:
            raise InputError(f"{sizes.masked} has no masks; expected a parquet file with a column trimap or box_xyxy")
        return found, sizes.masked.rpartition(":")[2]
    if batch.masks is not None:
        return batch, "the images"
    height, width = batch.images.shape[2:]
    if height != width:
        raise InputError(f"images are {height}×{width} and have no masks, and drawn shapes are square; give some with masks")
    return shapes(sizes.located, height, 0, background="mixed"), "drawn shapes"


def _located(model: Model, batch: Batch, source: str, chunk: int) -> dict[str, np.ndarray]:
    size = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    maps = []
    for part in batch.chunks(chunk):
        x = part.images.to(model.mean)
        if source == "map":
            maps.append(enlarge(read(model, x).maps, size).cpu())
        else:
            own = model.read(x).argmax(1)
            maps.append(aligned.class_gradients(model, x, own.to(x.device)).abs().sum(1).cpu())
    assert batch.masks is not None
    return localise.localise(torch.cat(maps), batch.masks)


OWN: Mapping[str, Group] = {
    "pictures": pictures,
    "where": where,
    "distances": distances,
    "shape": shape_or_texture,
    "concepts": named_concepts,
    "discovery": found_concepts,
}
