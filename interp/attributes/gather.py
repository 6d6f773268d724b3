"""One pass over the images: what every model does to them, how it looks, and what judges read in it.

Images are taken piece by piece, so that memory holds one number per measure, model and image, and a few pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from interp.attacks.basis import blurred
from interp.attacks.pgd import PGD
from interp.attributes import aligned, appearance, classify, edges, write
from interp.attributes.classify import among, another
from interp.attributes.evidence import Evidence, evidence, noise
from interp.attributes.panel import became, by_chance, checks, hits_of, matrix, read_by
from interp.data.attributes import attributes, telling
from interp.gradients.spectrum import centroid, radial
from interp.models.each import at_once, each
from interp.models.model import Model, judges_between, judges_of, model_coords, twins
from interp.models.randomise import fully_randomised
from interp.types import Batch, Images, InputError, Labels, pixels

BLUR = 2.0  # width of the blurred control, in pixels of a 32-pixel image
PICTURES = ("delta", "gradient", "added")
UNLEARNT = 4  # networks with random parameters, of each architecture
_LOOKS = (*appearance.MEASURES, *edges.MEASURES)


@dataclass(frozen=True)
class Plan:
    """toward, away: the attacks. groups: which measures are asked for. examples: images of which pictures are kept.

    randomised: images that networks with random parameters see. attributes: the source of what classes have. judges: who reads
    perturbations beside the models.
    """

    toward: PGD
    away: PGD
    groups: tuple[str, ...]
    examples: int
    chunk: int
    randomised: int
    attributes: str = ""
    judges: tuple[Model, ...] = ()

    @property
    def eps(self) -> tuple[float, float]:
        return self.toward.eps, self.away.eps


@dataclass(eq=False)
class Seen:
    """values, control: name → (model, image). beside: name → (model, other, image), what judges that both have read.

    extras: variables of the dataset. why: group → why it has no values.
    """

    values: dict[str, np.ndarray] = field(default_factory=dict)
    control: dict[str, np.ndarray] = field(default_factory=dict)
    beside: dict[str, np.ndarray] = field(default_factory=dict)
    extras: dict[str, object] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def gather(models: Sequence[Model], batch: Batch, goals: Labels, plan: Plan) -> Seen:
    """All measures of single images that the plan's groups ask for, each with its control's values on the same images."""
    seen, panel = Seen(), [*models, *plan.judges]
    probes = _probes(panel, batch, plan, seen)
    known = aligned.references(batch.images, batch.labels, models[0].card.num_classes)
    found: dict[tuple[str, str], list[list[np.ndarray]]] = {}
    spectra: list[list[Tensor]] = []
    pictures: list[list[tuple[Tensor, ...]]] = [[] for _ in models]
    with tqdm(total=len(models) * len(batch), desc="attributes", leave=False) as bar:
        for first in range(0, len(batch), plan.chunk):
            piece = _piece(panel, batch, goals, known, first, plan)
            for m, e in _made(models, piece, first, plan):
                for kind, of in _of_model(panel, m, piece, e, probes, plan).items():
                    for name, v in of.items():
                        found.setdefault((kind, name), [[] for _ in models])[m].append(np.asarray(v, np.float64))
                spectra.append([radial(e.toward)[1], radial(piece.nothing.toward)[1]])
                if first < plan.examples:
                    shown = (e.toward, e.gradients.mean.cpu(), (piece.x + e.toward).clamp(0, 1))
                    pictures[m].append(tuple(t[: plan.examples - first] for t in shown))
                bar.update(len(piece.x))
    joined = {key: np.stack([np.concatenate(v) for v in rows]) for key, rows in found.items() if all(rows)}
    seen.values, seen.control = ({n: v for (kind, n), v in joined.items() if kind == k} for k in ("value", "control"))
    names = {name.partition("/")[0] for kind, name in joined if kind == "beside"}
    seen.beside = {n: np.stack([joined["beside", f"{n}/{o}"] for o in range(len(models))], 1) for n in names}
    reads = {j: joined["aside", f"became/{j}"] for j in range(len(panel))}
    seen.control["became"] = by_chance(joined["aside", "new"], reads, panel)
    if "appearance" in plan.groups:
        seen.control |= _unlearnt(models, batch, goals, plan, seen.values)
    for name, called in (("classified", "classified_by"), ("transferred", "transferred_to")):
        block = np.stack([joined["by", f"{name}/{j}"] for j in range(len(panel))], 1)
        seen.extras |= matrix(called, block) | {f"{name}_own": ("model", block.mean(2).diagonal().copy())}
    seen.extras |= checks({name: v for (kind, name), v in joined.items() if kind == "check"}) | _spectra(spectra, len(models))
    seen.extras |= _examples(batch.images[: plan.examples], [[torch.cat(of) for of in zip(*p, strict=True)] for p in pictures])
    if probes:
        reasons = [write.why([probes[j] for j in judges_of(panel, m)], goals) for m in range(len(models))]
        if all(reasons):
            seen.why["written"] = "; ".join(dict.fromkeys(reasons))
        pairs = [(s, r) for s, r in twins(models) if judges_of(panel, s) == judges_of(panel, r)]
        seen.extras |= _read_attributes(probes) | _fates(joined.get(("change", "all")), probes[0], batch, goals, pairs)
    if "perturbation" in plan.groups and len(panel) < 2:
        seen.why["perturbation"] = "there is no other model to read the perturbations; give further models, or judges"
    return seen


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some images with what does not depend on the model that perturbs them.

    rows: their places in the batch. nothing: noise in place of evidence. right (judges, n): who reads them rightly. empty: hits
    of the noise. blur (judges, n): blurred images read as the goal. moves: to mean and nearest image of the goal's and of
    another class. wrote: what noise writes, by judges, once it was asked for.
    """

    rows: list[int]
    x: Images
    y: Labels
    goal: Labels
    nothing: Evidence
    right: Tensor
    empty: dict[str, Tensor]
    blur: Tensor
    moves: dict[str, tuple[Tensor, Tensor]]
    wrote: dict[tuple[int, ...], dict[str, np.ndarray]] = field(default_factory=dict)


def _piece(panel: Sequence[Model], batch: Batch, goals: Labels, known: aligned.References, first: int, plan: Plan) -> _Piece:
    at = slice(first, first + plan.chunk)
    x, y, goal = batch.images[at], batch.labels[at], goals[at]
    nothing = noise(x, toward=plan.toward, away=plan.away, first=first)
    everyone = range(len(panel))
    read, blur = read_by(panel, everyone, (x, blurred(x, BLUR * x.shape[-1] / 32)))
    right = read == y
    empty = hits_of(panel, None, x, y, goal, nothing, right, eps=plan.eps, by=everyone)
    blur = (blur == goal).float()
    other = another(goal, y, panel[0].card.num_classes)
    moves = {name: aligned.directions(x, to, known) for name, to in (("goal", goal), ("other", other))}
    return _Piece(list(range(first, first + len(x))), x, y, goal, nothing, right, empty, blur, moves)


def _made(models: Sequence[Model], piece: _Piece, first: int, plan: Plan) -> Iterator[tuple[int, Evidence]]:
    """Every model's evidence of a piece: of as many in memory as run side by side."""

    def run(model: Model) -> Evidence:
        return evidence(model, piece.x, piece.y, piece.goal, toward=plan.toward, away=plan.away, first=first)

    width = at_once(models)
    for start in range(0, len(models), width):
        yield from enumerate(each(run, models[start : start + width]), start)


def _of_model(
    panel: Sequence[Model], m: int, piece: _Piece, e: Evidence, probes: list[write.Probes], plan: Plan
) -> dict[str, dict[str, Any]]:
    """By kind and name what is found of one model in some images, (n,) or (n, …).

    value, control; beside: NAME/other, the values by judges that the other has too; check, by (NAME/judge), aside (what the
    control of `became` takes), change (of attributes).
    """
    x, goal, judges = piece.x, piece.goal, tuple(judges_of(panel, m))
    hits = hits_of(panel, m, x, piece.y, goal, e, piece.right, eps=plan.eps, by=range(len(panel)))
    compared = len(panel) - len(plan.judges)
    unread, both = among(piece.empty, judges), [tuple(judges_between(panel, m, o)) for o in range(compared)]
    checked = among({"noise": piece.empty["classified"], "blurred image": piece.blur}, judges) | among(hits, judges)
    kinds: dict[str, dict[str, Any]] = {
        "value": _looks(e, x) | _points(e, piece.moves),
        "control": {k.name: unread[k.name] for k in classify.MEASURES}
        | _looks(piece.nothing, x)
        | _points(piece.nothing, piece.moves),
        "check": {name: checked[name] for name in classify.CONTROLS},
        "by": {f"{name}/{j}": hits[name][j] for name in ("classified", "transferred") for j in range(len(panel))},
        "aside": {f"became/{j}": hits["became class"][j] for j in range(len(panel))} | {"new": became(e, piece.y)},
    }
    read: dict[tuple[int, ...], dict[str, Any]] = {}
    for by in {judges, *both}:
        seen = among(hits, by)
        read[by] = {k.name: seen[k.name] for k in classify.MEASURES}
    if probes and judges:
        pictures, blank = (x + e.toward).clamp(0, 1), (x + piece.nothing.toward).clamp(0, 1)
        shown = dict(zip(judges, write.features_of([probes[j] for j in judges], pictures, chunk=plan.chunk), strict=True))
        for by in filter(None, read):
            of = [probes[j] for j in by]
            moved = write.moved(of, pictures, goal, rows=piece.rows, shown=[shown[j] for j in by])
            read[by] |= _wrote(moved)
            kinds |= {"change": {"all": moved.change}} if by == judges else {}
        if judges not in piece.wrote:
            readers = [probes[j] for j in judges]
            piece.wrote[judges] = _wrote(write.moved(readers, blank, goal, rows=piece.rows, chunk=plan.chunk))
        kinds["control"] |= piece.wrote[judges]
    kinds["value"] |= read[judges]
    nothing = dict.fromkeys(read[judges], np.full(len(x), np.nan))
    kinds["beside"] = {f"{name}/{o}": v for o, by in enumerate(both) for name, v in (nothing | read[by]).items()}
    return kinds


def _read_attributes(probes: Sequence[write.Probes]) -> dict[str, object]:
    """attribute_read (judge, attribute): held-out balanced accuracy of each judge's probe; attribute_kept: whether it is used."""
    block = np.array([[(at.mean, at.low, at.high) for at in p.accuracy] for p in probes])
    kept = block[..., 1] > np.array([p.threshold for p in probes])[:, None]
    dims, ends = ("judge", "attribute"), ("", "_low", "_high")
    found: dict[str, object] = {f"attribute_read{end}": (dims, block[..., k]) for k, end in enumerate(ends)}
    return found | {"attribute_kept": (dims, kept)}


def _probes(panel: Sequence[Model], batch: Batch, plan: Plan, seen: Seen) -> list[write.Probes]:
    """Every judge's probes of the classes' attributes; none, with the reason, where they cannot be fitted."""
    if "written" not in plan.groups:
        return []
    try:
        table = telling(attributes(batch.classes or panel[0].card.labels, source=plan.attributes))
        return each(lambda model: write.fit(model, batch.images, batch.labels, table, chunk=plan.chunk), panel, desc="probes")
    except InputError as reason:
        seen.why["written"] = str(reason)
        return []


def _wrote(moved: write.Moved) -> dict[str, np.ndarray]:
    goal = moved.written - moved.shuffled
    return {"written": moved.written, "written_goal": goal, "precision": moved.precision, "recall": moved.recall}


def _looks(e: Evidence, x: Images) -> dict[str, Tensor]:
    """How the evidence looks: the perturbation's centroid, the rest of the gradient added up along the attack away."""
    added = e.gradients.mean.cpu()
    return {name: kernel(added) for name, kernel in appearance.KERNELS.items()} | {
        "centroid": centroid(e.toward),
        "sign_agreement": appearance.sign_agreement(e.gradients).cpu(),
        "persistence": e.persistence,
        "smoothness": appearance.smoothness(e.pull, e.nearby),
        "edges": edges.alignment(added, x),
    }


def _unlearnt(
    models: Sequence[Model], batch: Batch, goals: Labels, plan: Plan, values: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """How the evidence of networks of each architecture with random parameters looks, (model, image), NaN but for some images.

    Of several such networks each measure takes the one that is hardest to tell from a model: the best by its mean, or where no
    direction is better the nearest to the model's.
    """
    few, found = batch[: plan.randomised], [np.full((len(models), len(batch)), np.nan) for _ in _LOOKS]
    aims = goals[: plan.randomised]
    drawn: dict[str, np.ndarray] = {}  # architecture → (measure, network, image)
    for m, (model, group) in enumerate(zip(models, model_coords(models)["group"][1], strict=True)):
        if group not in drawn:
            nets = [fully_randomised(model, seed=seed) for seed in range(UNLEARNT)]
            drawn[group] = np.stack(each(partial(_looks_of, batch=few, goals=aims, plan=plan), nets, desc="random networks"), 1)
        for measure, block, of in zip(_LOOKS, found, drawn[group], strict=True):
            means, own = (np.ma.masked_invalid(v).mean(-1) for v in (of, values[measure.name][m]))
            worth = -abs(means - own) if measure.better == "none" else means * (-1 if measure.better == "lower" else 1)
            block[m, : len(few)] = of[worth.argmax()]
    return {measure.name: block for measure, block in zip(_LOOKS, found, strict=True)}


def _looks_of(model: Model, batch: Batch, goals: Labels, plan: Plan) -> np.ndarray:
    """(measure, image)"""
    e = evidence(model, batch.images, batch.labels, goals, toward=plan.toward, away=plan.away, first=0)
    looks = _looks(e, batch.images)
    return np.stack([np.asarray(looks[measure.name], np.float64) for measure in _LOOKS])


def _points(e: Evidence, moves: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Where the gradient of the goal's logit points, beside the mean of another class."""
    (mean, nearest), (other, _) = moves["goal"], moves["other"]
    toward = aligned.toward(e.pull, mean)
    return {
        "toward_mean": toward,
        "toward_nearest": aligned.toward(e.pull, nearest),
        "class_part": toward - aligned.toward(e.pull, other),
    }


def _spectra(pieces: list[list[Tensor]], count: int) -> dict[str, object]:
    """Mean share of δ's energy by frequency, of each model and of noise; pieces go round the models."""
    of_models = np.stack([torch.cat([p[0] for p in pieces[m::count]]).mean(0).numpy() for m in range(count)])
    return {
        "spectrum": (("model", "frequency"), of_models),
        "spectrum_noise": ("frequency", torch.cat([p[1] for p in pieces[::count]]).mean(0).numpy()),
        "frequency": ("frequency", radial(torch.zeros(1, 3, 8, 8))[0].numpy()),
    }


def _examples(x: Images, pictures: list[list[Tensor]]) -> dict[str, object]:
    dims = ("model", "example", "y", "x", "channel")
    named = zip(PICTURES, zip(*pictures, strict=True), strict=True)
    return {"example_x": (dims[1:], pixels(x))} | {
        f"example_{name}": (dims, np.stack([pixels(t) for t in of])) for name, of in named
    }


def _fates(
    change: np.ndarray | None, probes: write.Probes, batch: Batch, goals: Labels, pairs: Sequence[tuple[int, int]]
) -> dict[str, object]:
    """attribute_change (model, attribute, fate): mean change of each attribute where it should appear, vanish or stay.

    attribute_change_n: of how many images. attribute_more: whether a robust model moves it as is due, further than its standard
    twin; pairs: (standard, robust) of whom that is asked, read by the same judges.
    """
    if change is None:
        return {}
    had, will = probes.has[:, batch.labels].T, probes.has[:, goals].T
    tables = [write.by_fate(torch.as_tensor(of), had, will, torch.arange(len(batch))) for of in change]
    dims, block = ("model", "attribute", "fate"), np.stack([means for means, _ in tables])
    more = np.zeros(block.shape[:3], bool)
    more[:, :, :2] = write.more(change, had.numpy(), will.numpy(), pairs)
    return {f"attribute_change{end}": (dims, block[..., k]) for k, end in enumerate(("", "_low", "_high"))} | {
        "attribute": ("attribute", list(probes.names)),
        "fate": ("fate", list(write.FATES)),
        "attribute_change_n": (dims, np.stack([counts for _, counts in tables])),
        **({"attribute_more": (dims, more)} if pairs else {}),
    }
