"""One pass over the images: what every model does to them, how it looks, and what judges read in it.

Images are taken piece by piece, so that memory holds one number per measure, model and image, and a few pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from interp.attacks.basis import blurred
from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.attributes import aligned, appearance, classify, edges, write
from interp.attributes.classify import among, another, as_image, choices
from interp.attributes.evidence import Evidence, at_eps, evidence, noise
from interp.data.attributes import attributes
from interp.gradients.spectrum import centroid, radial
from interp.models.model import Model, judges_of
from interp.result import with_interval
from interp.stats import Running, bootstrap
from interp.types import Batch, Images, InputError, Labels, pixels

BLUR = 2.0  # width of the blurred control, in pixels of a 32-pixel image
PICTURES = ("delta", "gradient", "added")


@dataclass(frozen=True)
class Plan:
    """toward, away: the attacks. groups: which measures are asked for. examples: images of which pictures are kept."""

    toward: PGD
    away: PGD
    groups: tuple[str, ...]
    examples: int
    chunk: int


@dataclass(eq=False)
class Seen:
    """values, control: name → (model, image). extras: variables of the dataset. why: group → why it has no values."""

    values: dict[str, np.ndarray] = field(default_factory=dict)
    control: dict[str, np.ndarray] = field(default_factory=dict)
    extras: dict[str, object] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def gather(models: Sequence[Model], batch: Batch, goals: Labels, plan: Plan) -> Seen:
    """All measures of single images that the plan's groups ask for, each with its control's values on the same images."""
    seen = Seen()
    probes = _probes(models, batch, plan, seen)
    known = aligned.references(batch.images, batch.labels, models[0].card.num_classes)
    found: dict[tuple[str, str], list[list[np.ndarray]]] = {}
    spectra: list[list[Tensor]] = []
    pictures: list[list[tuple[Tensor, ...]]] = [[] for _ in models]
    with tqdm(total=len(models) * len(batch), desc="attributes", leave=False) as bar:
        for first in range(0, len(batch), plan.chunk):
            piece = _piece(models, batch, goals, known, first, plan)
            for m, model in enumerate(models):
                e = evidence(model, piece.x, piece.y, piece.goal, toward=plan.toward, away=plan.away, first=first)
                for kind, of in _of_model(models, m, piece, e, probes, plan).items():
                    for name, v in of.items():
                        found.setdefault((kind, name), [[] for _ in models])[m].append(np.asarray(v, np.float64))
                spectra.append([radial(e.toward)[1], radial(piece.nothing.toward)[1]])
                if first < plan.examples:
                    shown = (e.toward, e.gradients.mean.cpu(), (piece.x + e.toward).clamp(0, 1))
                    pictures[m].append(tuple(t[: plan.examples - first] for t in shown))
                bar.update(len(piece.x))
    joined = {key: np.stack([np.concatenate(v) for v in rows]) for key, rows in found.items() if all(rows)}
    seen.values, seen.control = ({n: v for (kind, n), v in joined.items() if kind == k} for k in ("value", "control"))
    checks_of = {name: joined["check", name] for name in classify.CONTROLS}
    seen.extras |= _matrices(joined, models) | _checks(checks_of, len(models)) | _spectra(spectra, len(models))
    seen.extras |= _examples(batch.images[: plan.examples], [[torch.cat(of) for of in zip(*p, strict=True)] for p in pictures])
    if probes:
        seen.extras |= _fates(joined.get(("change", "all")), probes[0], batch, goals)
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


def _piece(models: Sequence[Model], batch: Batch, goals: Labels, known: aligned.References, first: int, plan: Plan) -> _Piece:
    at = slice(first, first + plan.chunk)
    x, y, goal = batch.images[at], batch.labels[at], goals[at]
    nothing = noise(x, toward=plan.toward, away=plan.away, first=first)
    right = choices(models, x) == y
    empty = _hits(models, None, x, y, goal, nothing, right, plan)
    blur = (choices(models, blurred(x, BLUR * x.shape[-1] / 32)) == goal).float()
    other = another(goal, y, models[0].card.num_classes)
    moves = {name: aligned.directions(x, to, known) for name, to in (("goal", goal), ("other", other))}
    return _Piece(list(range(first, first + len(x))), x, y, goal, nothing, right, empty, blur, moves)


def _of_model(
    models: Sequence[Model], m: int, piece: _Piece, e: Evidence, probes: list[write.Probes], plan: Plan
) -> dict[str, dict[str, Any]]:
    """By kind (value, control, check, by, change) and name what is found of one model in some images, (n,) or (n, …)."""
    x, goal, judges = piece.x, piece.goal, judges_of(models, m)
    hits = _hits(models, m, x, piece.y, goal, e, piece.right, plan)
    read, unread = among(hits, judges), among(piece.empty, judges)
    checks = among({"noise": piece.empty["classified"], "blurred image": piece.blur}, judges) | read
    kinds: dict[str, dict[str, Any]] = {
        "value": {k.name: read[k.name] for k in classify.MEASURES} | _looks(e, x) | _points(e, piece.moves),
        "control": {k.name: unread[k.name] for k in classify.MEASURES}
        | _looks(piece.nothing, x)
        | _points(piece.nothing, piece.moves),
        "check": {name: checks[name] for name in classify.CONTROLS},
        "by": {f"{name}/{j}": hits[name][j] for name in ("classified", "transferred") for j in range(len(models))},
    }
    if probes and judges:
        readers, key = [probes[j] for j in judges], tuple(judges)
        moved = write.moved(readers, (x + e.toward).clamp(0, 1), goal, rows=piece.rows, chunk=plan.chunk)
        if key not in piece.wrote:
            idle = write.moved(readers, (x + piece.nothing.toward).clamp(0, 1), goal, rows=piece.rows, chunk=plan.chunk)
            piece.wrote[key] = _wrote(idle)
        kinds["value"] |= _wrote(moved)
        kinds["control"] |= piece.wrote[key]
        kinds["change"] = {"all": moved.change}
    return kinds


def _probes(models: Sequence[Model], batch: Batch, plan: Plan, seen: Seen) -> list[write.Probes]:
    """Every model's probes of the classes' attributes, as a judge; none, with the reason, where they cannot be fitted."""
    if "written" not in plan.groups:
        return []
    try:
        table = attributes(batch.classes or models[0].card.labels)
        return [write.fit(model, batch.images, batch.labels, table, chunk=plan.chunk) for model in models]
    except InputError as reason:
        seen.why["written"] = str(reason)
        return []


def _wrote(moved: write.Moved) -> dict[str, np.ndarray]:
    goal = moved.written - moved.shuffled
    return {"written": moved.written, "written_goal": goal, "precision": moved.precision, "recall": moved.recall}


def _hits(
    models: Sequence[Model], m: int | None, x: Images, y: Labels, goal: Labels, e: Evidence, right: Tensor, plan: Plan
) -> dict[str, Tensor]:
    """What every judge (judges, n) reads in the perturbations of model m, or of noise: 1 a hit, 0 none, NaN undefined."""
    classes = models[0].card.num_classes
    shown = choices(models, as_image(e.toward, plan.toward.eps))
    after = choices(models, (x + e.away).clamp(0, 1))
    new = another(y, y, classes) if m is None else after[m]  # noise turns no image into another class: the next in order
    became = (choices(models, as_image(e.away, plan.away.eps)) == new).float()
    return {
        "classified": (shown == goal).float(),
        "another target": (shown == another(goal, y, classes)).float(),
        "sign flipped": (choices(models, as_image(-e.toward, plan.toward.eps)) == goal).float(),
        "transferred": (choices(models, (x + e.toward).clamp(0, 1)) == goal).float(),
        "became": torch.where(new != y, became, torch.nan),
        "removed": (choices(models, as_image(-e.away, plan.away.eps)) == y).float(),
        "fooled": torch.where(right, (after != y).float(), torch.nan),
    }


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


def _points(e: Evidence, moves: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Where the gradient of the goal's logit points, beside the mean of another class."""
    (mean, nearest), (other, _) = moves["goal"], moves["other"]
    toward = aligned.toward(e.pull, mean)
    return {
        "toward_mean": toward,
        "toward_nearest": aligned.toward(e.pull, nearest),
        "class_part": toward - aligned.toward(e.pull, other),
    }


def _matrices(joined: dict[tuple[str, str], np.ndarray], models: Sequence[Model]) -> dict[str, object]:
    """Generator × judge, means with intervals; the diagonal, what each reads in its own, also apart."""
    out: dict[str, object] = {}
    n, count = next(iter(joined.values())).shape[1], len(models)
    for name, called in (("classified", "classified_by"), ("transferred", "transferred_to")):
        block = np.stack([joined["by", f"{name}/{j}"] for j in range(count)], 1)  # (generator, judge, image)
        intervals = [bootstrap(v) for row in block for v in row]
        attrs = {"unit": "share", "better": "none", "n": n, "long_name": called.replace("_", " ")}
        out |= with_interval(called, ("model", "judge"), intervals, (count, count), **attrs)
        out[f"{name}_own"] = ("model", block.mean(2).diagonal().copy())
    return out


def _checks(joined: dict[str, np.ndarray], count: int) -> dict[str, object]:
    block = np.stack([joined[name] for name in classify.CONTROLS], 1)  # (model, check, image)
    spans = np.array([bootstrap(v) for row in block for v in row]).reshape(count, len(classify.CONTROLS), 3)
    ends = ("", "_low", "_high")
    return {f"classified_controls{end}": (("model", "check"), spans[..., k]) for k, end in enumerate(ends)} | {
        "check": ("check", list(classify.CONTROLS))
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


def _fates(change: np.ndarray | None, probes: write.Probes, batch: Batch, goals: Labels) -> dict[str, object]:
    """attribute_change (model, attribute, fate): mean change of each attribute where it should appear, vanish or stay."""
    if change is None:
        return {}
    had, will = probes.has[:, batch.labels].T, probes.has[:, goals].T
    tables = [write.by_fate(torch.as_tensor(of), had, will, torch.arange(len(batch)))[0] for of in change]
    dims, block = ("model", "attribute", "fate"), np.stack(tables)
    return {f"attribute_change{end}": (dims, block[..., k]) for k, end in enumerate(("", "_low", "_high"))} | {
        "attribute": ("attribute", list(probes.names)),
        "fate": ("fate", list(write.FATES)),
    }


def sweep(models: Sequence[Model], batch: Batch, goals: Labels, sizes: Sequence[float], plan: Plan) -> dict[str, object]:
    """The measures of perturbations as ε grows, with half the plan's steps: sweep_NAME (model, eps) with intervals."""
    toward, away = (dataclasses.replace(a, steps=max(1, a.steps // 2), step_size=None) for a in (plan.toward, plan.away))
    x, y = batch.images, batch.labels
    right, nothing = choices(models, x) == y, torch.zeros(0)
    spans: dict[str, list[object]] = {m.name: [] for m in classify.MEASURES}
    for m, model in enumerate(tqdm(models, desc="ε", leave=False)):
        for eps in sizes:
            moved, left = (attack(model, x, to, at_eps(a, eps)).x.cpu() - x for to, a in ((goals, toward), (y, away)))
            e = Evidence(moved, left, Running(), nothing, nothing, nothing)
            at = dataclasses.replace(plan, toward=at_eps(toward, eps), away=at_eps(away, eps))
            for name, v in among(_hits(models, m, x, y, goals, e, right, at), judges_of(models, m)).items():
                if name in spans:
                    spans[name].append(bootstrap(v.numpy()))
    out: dict[str, object] = {"eps": ("eps", list(sizes))}
    for name, of in spans.items():
        block = np.array(of).reshape(len(models), len(sizes), 3)
        ends = zip(("", "_low", "_high"), np.moveaxis(block, 2, 0), strict=True)
        out |= {f"sweep_{name}{end}": (("model", "eps"), values, {"n": len(batch)}) for end, values in ends}
    return out
