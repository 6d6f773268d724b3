"""Measures that need pictures of their own: group → columns of the table, and what else belongs into the result."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.attacks.starts import uniform
from interp.attention.readings import read
from interp.attributes import aligned, concepts, discovery, localise, matching, shape
from interp.attributes.evidence import together
from interp.attributes.table import Column
from interp.data.concepts import FAMILIES, deal, family, photographs
from interp.data.conflicts import cue_conflict_folder
from interp.data.source import images
from interp.data.synthetic import shapes
from interp.gradients.layers import LAST
from interp.models.each import each
from interp.models.model import Model, judges_between, judges_of
from interp.models.randomise import fully_randomised
from interp.result import Measure
from interp.stats import bootstrap
from interp.types import Batch, InputError, Labels, pixels

OF_A_FAMILY, SHUFFLED = "random parts of a family", "features shuffled over places"
ENDS = ("", "_low", "_high")
FEWEST_IMAGES = 20
"""Images without which concepts are not compared: their units are concepts, whose spread says nothing of few images."""


@dataclass(frozen=True)
class Sizes:
    """shaped, tested, factorised, measured: the first so many images for shape and texture, concepts, discovery, distances.
    seeds: pictures drawn per class; synthesis: the attack that draws them, from noise. cues: a folder of cue conflicts named
    shapeN-textureM.png, of classes that the models have. masked: a source of images with masks for `where`, of any classes, of
    which the first `located` are taken, or as many drawn shapes. concepts: a source of labelled images whose classes are
    concepts beside the drawn ones, of textures for example. attributes: what classes have, a file or a folder as
    `interp.data.attributes` reads it; '', the bundled tables. randomised: images on which networks with random parameters show
    how gradients look that nothing was learnt for. stamp: names, sizes and times of the files behind these, so that a saved
    result is not taken for one of other files.
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
    concepts: str = ""
    attributes: str = ""
    randomised: int = 64
    stamp: str = field(default="", init=False)

    @property
    def sources(self) -> dict[str, str]:
        """Group → the source that is given for it, '' where none is."""
        return {"shape": self.cues, "where": self.masked, "concepts": self.concepts, "written": self.attributes}

    def __post_init__(self) -> None:
        roots = [Path(source.rpartition(":")[2]) for source in self.sources.values() if source]
        files = [p for root in roots for p in (root, *sorted(root.rglob("*"))) if p.is_file()]
        stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        object.__setattr__(self, "stamp", hashlib.sha256(repr(stats).encode()).hexdigest()[:16] if stats else "")


Found = tuple[list[Column], dict[str, object]]
Group = Callable[[Sequence[Model], Batch, Labels, Sizes, int], Found]


def _named(measures: Sequence[Measure], prefix: str) -> dict[str, Measure]:
    return {m.name: dataclasses.replace(m, name=prefix + m.name) for m in measures}


def shape_or_texture(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """What is left of the right answers when shape or texture is taken away, and which a read-out follows in drawn conflicts."""
    rows, few = _named(shape.MEASURES, "shape_"), batch[: sizes.shaped]
    cutoffs, chance = shape.ladder(few.images.shape[-1]), 1 / models[0].card.num_classes
    kept: list[dict[str, np.ndarray]] = []
    nothing: list[dict[str, np.ndarray]] = []
    curves = []
    found = each(lambda m: (shape.decisions(m, few, chunk=chunk), shape.drawn_cues(m, chunk=chunk)), models, desc="shape")
    drawn = [cues for _, cues in found]
    for decided, _ in found:
        rights = shape.right(decided, few.labels)
        for found_in, of in ((kept, rights), (nothing, shape.control(decided, few.labels))):
            found_in.append(shape.kept(of) | {"cutoff": shape.cutoff(of, cutoffs, chance=chance)})
        curves.append([np.pad(shape.curve(rights, band), ((len(cutoffs) - len(shape.curve(rights, band)), 0), (0, 0)),
                              constant_values=np.nan) for band in ("low", "high")])  # fmt: skip
    against = "the label of another image"
    columns = [
        Column(rows[name], np.stack([k[name] for k in kept]), np.stack([k[name] for k in nothing]), against, "shaped")
        for name in kept[0]
    ]
    level = {"cue_bias": 0.5, "cue_decided": 0.25, "cue_consistent": 0.0, "cue_silhouette": 0.0}
    for name, at in level.items():
        values = np.stack([d[name] for d in drawn])
        columns.append(Column(rows[name], values, np.full_like(values, at), f"chance, {at:g}", "stimulus"))
    if sizes.cues:
        conflict = cue_conflict_folder(sizes.cues, preprocess=models[0].card.preprocess)
        values = np.stack(each(lambda m: shape.cue_conflict(m, conflict, chunk=chunk)["shape_bias"], models))
        columns.append(Column(rows["shape_bias"], values, np.full_like(values, 0.5), "chance, 0.5", "conflict"))
    block = np.array(curves)  # (model, band, cutoff, 3)
    extras: dict[str, object] = {
        f"accuracy_by_band{end}": (("model", "band", "cutoff"), block[..., k]) for k, end in enumerate(ENDS)
    }
    return columns, extras | {"cutoff": ("cutoff", list(cutoffs)), "band": ("band", ["low-pass", "high-pass"])}


def named_concepts(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """TCAV, at the last layer and half-way: how far classes depend on concepts, each told from the others of its family.

    Families are those of `interp.data.concepts`, and the classes of `sizes.concepts`; random parts of a family are its control.
    Sensitivities are means over the concepts that a model tells from the others, or, of two models, that both do. concept_told
    (model, concept): whether it does; concept_score: see `concepts.Sensitivity`; tested_n (tested_class): images of each class.
    """
    few, photos = batch[: sizes.tested], _photographs(models[0], sizes.concepts)
    if len(few) < FEWEST_IMAGES:
        raise InputError(f"{_count(few)} came; expected {FEWEST_IMAGES} at least, to say how they vary: raise n")
    depths = _depths(models)

    def run(model: Model) -> list[list[concepts.Sensitivity]]:
        layers = [layer(model) for layer in depths.values()]
        sets = chain(_families(few.images.shape[-1]), photos)
        return concepts.relative(model, few.images, few.labels, sets, layers=layers, chunk=chunk)

    every = each(run, models, desc="concepts")  # (model, set, depth)
    columns: list[Column] = []
    names = [f"{name}{' (photo)' * (s >= len(FAMILIES))}" for s, of in enumerate(every[0]) for name in of[0].names[:-1]]
    extras: dict[str, object] = {
        "concept": ("concept", names),
        "tested_class": ("tested_class", [models[0].card.label(k) for k in range(models[0].card.num_classes)]),
        "tested_n": ("tested_class", every[0][0][0].images),
    }
    for d, depth in enumerate(depths):
        found = [[of[d] for of in sets_of] for sets_of in every]
        rows = _named(concepts.MEASURES, f"concept_{depth}")
        if depth:
            rows = {k: dataclasses.replace(m, title=f"{m.title}, half-way") for k, m in rows.items()}
        told = _beside(found, lambda f: f.told)[0].astype(bool)
        sensitivity = _sensitivity(rows["sensitivity"], *_beside(found, lambda f: np.abs(f.sensitivity)), told)
        columns.append(sensitivity)
        for name, of in (("significant", lambda f: f.depending), ("told_apart", lambda f: f.accuracy.mean(1))):
            columns.append(Column(rows[name], *_beside(found, of), OF_A_FAMILY, "concept"))
        scores = np.stack([np.concatenate([f.score[:-1] for f in of]) for of in found])
        extras[f"concept_{depth}score"] = (("model", "concept", "tested_class"), scores)
        extras[f"concept_{depth}told"] = (("model", "concept"), told)
        blank = np.isnan(sensitivity.values).all(1)
        reasons = ["; ".join(dict.fromkeys(f.why for f in of if f.why)) * bool(b) for of, b in zip(found, blank, strict=True)]
        extras |= _why(sensitivity.measure.name, reasons) | _why(rows["significant"].name, [of[0].why_untested for of in found])
    return columns, extras


def _sensitivity(measure: Measure, strength: np.ndarray, blind: np.ndarray, told: np.ndarray) -> Column:
    """Means of values (model, image, concept) and of the control over told concepts (model, concept); of pairs, told by both."""
    shared = told[:, None] & told[None]
    own, control = (_over(v, told[:, None]) for v in (strength, blind))
    return Column(measure, own, control, OF_A_FAMILY, "tested", _over(strength[:, None], shared[:, :, None]))


def _over(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Means over the last axis where a mask is true; NaN where it is nowhere."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(mask, values, 0).sum(-1) / mask.sum(-1))


def _count(batch: Batch) -> str:
    return "1 image" if len(batch) == 1 else f"{len(batch)} images"


def _depths(models: Sequence[Model]) -> dict[str, Callable[[Model], str]]:
    """Part of a measure's name → the layer of a model; the middle where every model has one that is known."""
    found: dict[str, Callable[[Model], str]] = {"": lambda _: LAST}
    try:
        return found | {"middle_": concepts.middle} if [concepts.middle(m) for m in models] else found
    except InputError:
        return found


def _families(size: int) -> Iterator[Iterator[Batch]]:
    """Pictures of the drawn concepts, a family and in it a run at a time."""
    n = concepts.pictures_of(size)
    return ((family(names, n, size, seed=run) for run in range(concepts.RUNS)) for names in FAMILIES.values())


def _photographs(model: Model, source: str) -> list[list[Batch]]:
    """The classes of a source that are to be concepts, dealt to the runs, if there is a source."""
    if not source:
        return []
    preprocess = model.card.preprocess
    least, most = (concepts.RUNS * n for n in (concepts.FEWEST, concepts.pictures_of(preprocess.size)))
    return [deal(photographs(source, preprocess=preprocess, least=least, most=most, seed=0), concepts.RUNS)]


def _beside(
    found: Sequence[Sequence[concepts.Sensitivity]], of: Callable[[concepts.Sensitivity], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Values (model, …, concept) of all sets' concepts, and in their places those of the control of each set."""
    blocks = [[of(f) for f in sets] for sets in found]
    own = [np.concatenate([v[..., :-1] for v in sets], -1) for sets in blocks]
    control = [np.concatenate([np.repeat(v[..., -1:], v.shape[-1] - 1, -1) for v in sets], -1) for sets in blocks]
    return np.stack(own), np.stack(control)


def _why(name: str, reasons: Sequence[str]) -> dict[str, object]:
    """why_NAME (model): why a model has no value, '' where it has one; nothing where all have."""
    return {f"why_{name}": ("model", list(reasons))} if any(reasons) else {}


def found_concepts(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """Non-negative parts of a late layer's features, and how far models share them.

    concepts_needed, _low, _high (model): see `discovery.Needed`, and _shuffled, of features shuffled over places; no row of the
    table, since what their intervals leave out is not tested. Of several models cka, cka_low, cka_high, best_match (model,
    other). concept_crop: where parts lie.
    """
    rows, few = _named((*discovery.MEASURES, *matching.MEASURES), "discovery_"), batch[: sizes.factorised]
    if len(few) < matching.FEWEST:
        raise InputError(f"{_count(few)} came; expected {matching.FEWEST} at least, to leave one out: raise n")
    found, shuffled = (
        [discovery.discover(model, few.images, shuffled=s, chunk=chunk) for model in tqdm(models, desc="discovery", leave=False)]
        for s in (False, True)
    )
    own, control = (np.stack([f.explained for f in of]) for of in (found, shuffled))
    columns = [Column(rows["explained"], own, control, SHUFFLED, "factorised")]
    extras: dict[str, object] = {
        "concept_crop": (
            ("model", "part", "top", "crop_y", "crop_x", "channel"),
            np.stack([discovery.crops(few.images, f, size=few.images.shape[-1] // 2) for f in found]),
        ),
    }
    if len(models) > 1:
        cka, matches = matching.shared([f.features for f in found], [f.by_image for f in found])
        spans = np.array([[bootstrap(v) for v in row] for row in cka])
        extras |= {f"cka{end}": (("model", "other"), spans[..., k]) for k, end in enumerate(ENDS)}
        extras["best_match"] = (("model", "other"), matches)
        strange, _ = matching.shared([f.features for f in found], [f.by_image for f in found], seed=1)
        columns.append(_likeness(rows["shared"], cka, strange))
    for name, of in (("concepts_needed", found), ("concepts_needed_shuffled", shuffled)):
        ends = np.array([(f.needed.k, f.needed.low, f.needed.high) for f in of])
        extras |= {f"{name}{end}": ("model", ends[:, k]) for k, end in enumerate(ENDS)}
        extras |= _why(name, [f.needed.why for f in of])
    return columns, extras


def _likeness(measure: Measure, cka: np.ndarray, strange: np.ndarray) -> Column:
    """Means over the other models of CKA (model, model, image), as it is and with images in another order."""
    other = ~np.eye(len(cka), dtype=bool)
    own, control = (_over(v.swapaxes(1, 2), other[:, None]) for v in (cka, strange))
    rest = other[:, None] & other[None]  # of two models: who is neither
    return Column(
        measure, own, control, "images in another order", "factorised", _over(cka.swapaxes(1, 2)[:, None], rest[:, :, None])
    )


def pictures(
    models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int, *, judges: Sequence[Model] = ()
) -> Found:
    """Pictures drawn from noise toward every class: what judges read in them, and how they differ."""
    panel = [*models, *judges]
    rows, classes = _named(aligned.MEASURES, "picture_"), models[0].card.num_classes
    if classes > 20:
        raise InputError(f"the models have {classes} classes; pictures are drawn toward all of at most 20")
    targets = torch.arange(classes).repeat(sizes.seeds)
    x = uniform((len(targets), 3, *batch.images.shape[2:]), seed=sizes.synthesis.seed)
    if len(panel) < 2:
        raise InputError("pictures are read by other models; give at least two, or judges")
    at_a_time = together(x, chunk)
    made = each(lambda m: attack(m, x, targets, sizes.synthesis, chunk=at_a_time).x.cpu(), models, desc="pictures")

    def judged(judge: Model) -> list[tuple[Tensor, Tensor]]:
        """Logits and diversity of the noise, and of what each model drew from it."""
        real = aligned.penultimate(judge, batch.images, chunk=chunk)
        seen = ((judge.read(of, chunk=chunk), aligned.penultimate(judge, of, chunk=chunk)) for of in (x, *made))
        return [(logits, aligned.diversity(features, targets, real, batch.labels)) for logits, features in seen]

    readings = each(judged, panel)

    def read(of: int, by: Sequence[int]) -> dict[str, np.ndarray]:
        """What some judges read in the noise, 0, or in what model of − 1 drew; NaN without judges."""
        if not by:
            return {name: np.full(len(targets), np.nan) for name in ("read_accuracy", "diversity")}
        logits, apart = zip(*(readings[j][of] for j in by), strict=True)
        hits = aligned.read_accuracy(torch.stack(logits), targets)
        return {"read_accuracy": hits.numpy(), "diversity": torch.stack(apart).mean(0).numpy()}

    every = range(len(models))
    own, blank = (
        [read(of, judges_of(panel, m)) for m, of in enumerate(ofs)] for ofs in ([m + 1 for m in every], [0 for _ in every])
    )
    beside = [[read(m + 1, judges_between(panel, m, o)) for o in every] for m in every]
    columns = [
        Column(
            rows[name], np.stack([v[name] for v in own]), np.stack([v[name] for v in blank]), "the noise drawn from", "picture",
            np.array([[v[name] for v in of] for of in beside]),
        )
        for name in ("read_accuracy", "diversity")
    ]  # fmt: skip
    shown = np.stack([pixels(d[:classes]) for d in made])
    return columns, {"synthesis": (("model", "target", "y", "x", "channel"), shown)}


def distances(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """Alignment of gradient and image, beside that of the networks with random parameters.

    Linearised robustness stays out of the table: networks that are nearly constant have the largest.
    """
    rows, x = _named(aligned.MEASURES, ""), batch.images[: sizes.measured]

    def alignment(model: Model) -> np.ndarray:
        gradients = aligned.class_gradients(model, x, model.read(x, chunk=chunk).argmax(1), chunk=chunk)
        return aligned.alignment(x, gradients).double().numpy()

    found = np.stack(each(alignment, models, desc="distances"))
    blind = np.stack(each(alignment, [fully_randomised(m) for m in models], desc="distances, random"))
    return [Column(rows["alignment"], found, blind, "the network with random parameters", "measured")], {}


def where(models: Sequence[Model], batch: Batch, _goals: Labels, sizes: Sizes, chunk: int) -> Found:
    """How much of the gradient and of the model's own map lies on the object, beside an even map or one around the centre,
    whichever does better.

    What each model predicts is explained, so that the pictures need no class it knows: those of `sizes.masked`, else the images
    where they have masks, else drawn shapes, whose masks are exact.
    """
    pictured, origin = _masked(models[0], batch, sizes)
    assert pictured.masks is not None
    blind, unit = localise.controls(pictured.masks), "image" if pictured is batch else "located"
    columns = []
    for source, title in (("gradient", "gradient"), ("map", "map")):
        rows = {m.name: dataclasses.replace(m, name=f"{source}_{m.name}", title=f"{title}: {m.title}") for m in localise.MEASURES}
        found = each(partial(_located, batch=pictured, source=source, chunk=chunk), models, desc=f"where, {title}")
        for name in ("mass", "pointing"):
            values, harder = np.stack([f[name] for f in found]), max(blind, key=lambda kind: np.nanmean(blind[kind][name]))
            control = np.repeat(blind[harder][name][None], len(models), 0)
            columns.append(Column(rows[name], values, control, f"{harder}, in {origin}", unit))
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
            maps.append(read(model, x).on_image(size).cpu())
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
