"""Which concepts the classes of a model depend on: TCAV (Kim et al., arXiv 1711.11279).

At a layer with activations f(x), a concept's vector v is the unit normal of a linear classifier that tells pictures of the
concept from random ones (section 3.2), here a logistic regression. With h the log-odds of the image's class,

    h(x) = z_y − log Σ_{j≠y} exp z_j,        sensitivity = cos(∇_f h(x), v),        score = share of a class's images with it > 0

(sections 3.3 and 3.4). The paper takes the logit z_y for h; its gradient at the last layer is the same for all images, and
counts what raises all classes alike. Log-odds do neither, and have the direction of the gradient of log p_y. The cosine leaves
out the length of gradients, which says how sure a model is, so that images of several models can be compared; but random vectors
have |cos| about √(2 / (π·d)) in d dimensions, so models are compared on the same d, or against the row `random`.

Tests (section 3.2, "statistical significance"): several runs, each with its own pictures of the concept and its own random ones,
so that runs are independent. Were the concept but another random set, exchanging the two would turn v, and the expected
sensitivity were 0: one-sample t-test over runs of a class's mean sensitivity against 0, Holm-corrected over all that is tested of
one model, every concept (the controls too) at every layer for every class. And a vector says nothing of a concept that is not
told apart: its accuracy on the pictures of other runs has to lie above ½ too, at the same level, uncorrected since this can only
take away. That is an exact test: exchange the two sets of a run, and all its hits become misses. With signs s = ±1 of the runs
and a_rq the accuracy of run r's vector on run q's pictures, p is the share of all s whose Σ_{r<q} s_r·s_q·(a_rq − ½) is as large
as that of s = 1. Scores that do not pass both are NaN.

The last concept, `random`, is a random set treated as the others are: the control, of which about none may pass. Pairs of concept
and class share both and are no independent tries; a table counts concepts, each by the share of classes that depend on it
(`Sensitivity.depending`). Concepts share their random pictures and the classes' images still: intervals of such shares are over
concepts, with images and pictures as they are. Classes of fewer than PER_CLASS images are not tested.

`tcav` tells concepts from drawn noise, `relative` each concept of a set from the others of the set (the paper's section "Relative
TCAV": the positive pictures are one concept's, the negative ones those of others). From noise a model tells flat drawings of
anything, and photographs of anything, so that vectors of shapes found against noise have cosines near 1 and mean no shape. The
control of a set is one random part of all its pictures told from another. Limit: sensitivities to the k concepts of a set are
deviations from their mean, so that what depends on one alone moves from the others too, each by about 1 / (k − 1) of it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.data.concepts import CONCEPTS, FAMILIES, RANDOM, concepts
from interp.gradients.layers import LAST, activations, odds_gradients
from interp.models.model import Model
from interp.result import Measure
from interp.stats import holm
from interp.types import Batch, Images, InputError, Labels

DEFAULT = tuple(name for family in FAMILIES.values() for name in family)
"""Concepts that are tested where none are named: colours, stripes, textures, shapes."""
RUNS, FEWEST = 10, 5
"""Runs, and how many pictures in each make a class of a set a concept."""
PER_CLASS = 5
"""Images of a class of which its mean sensitivity is tested, and its score given."""
FEWEST_RUNS = 6
"""Of fewer runs no accuracy is above chance at the level of the tests."""
ALPHA = 0.05
"""Level of the tests."""

_PENALTY = 1.0  # C of the regression; 0.01 and 100 give mean accuracies within 0.03 of it, on three of the shipped models
_STEPS = 50  # of Newton's method at most; it takes about six
_SOURCE = "TCAV, arXiv 1711.11279"
MEASURES = (
    Measure(
        "significant",
        "classes that depend on a concept",
        "of a concept told from others: share of classes whose mean sensitivity differs from 0 over runs (t-test, "
        "Holm over all concepts, classes and layers of the model); else 0; interval over concepts, images and pictures fixed",
        f"{_SOURCE}, section 3.2",
        "share",
        "none",
    ),
    Measure(
        "sensitivity",
        "sensitivity to concepts",
        "mean over the concepts told from others (of two models, by both) of |cos(∇ log-odds of the class, concept vector)|",
        f"{_SOURCE}, section 3.3",
        "cosine",
        "none",
    ),
    Measure(
        "told_apart",
        "concepts told from others",
        "held-out accuracy of the concept vectors, mean over concepts; interval over concepts, pictures fixed",
        f"{_SOURCE}, section 3.2",
        "share",
        "higher",
    ),
)


class _Run(NamedTuple):
    """Pictures of one run, and in which rows those of each concept and those that it is told from stand."""

    names: tuple[str, ...]
    images: Images
    pairs: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What one layer of one model says of concepts; names ends with `random`, the control.

    vectors (concepts, runs, features): unit normals. accuracy (concepts, pairs of runs): of each run's vector on the pictures of
    each later run, chance 0.5; told_p (concepts,): whether it lies above. sensitivity (images, concepts): mean over runs, in
    [−1, 1], for the log-odds of each image's label. images (classes,): how many each of the model's classes has. score (concepts,
    classes): TCAV score, mean over runs, NaN where a test is not passed or the class has fewer than PER_CLASS images; p
    (concepts, classes): of the mean sensitivity, Holm-corrected over all that was tested of the model. alpha: level of both
    tests.
    """

    layer: str
    names: tuple[str, ...]
    vectors: np.ndarray
    accuracy: np.ndarray
    told_p: np.ndarray
    sensitivity: np.ndarray
    images: np.ndarray
    score: np.ndarray
    p: np.ndarray
    alpha: float

    @property
    def told(self) -> np.ndarray:
        """Whether each concept (concepts,) is told from the others above chance."""
        return np.asarray(self.told_p < self.alpha)

    @property
    def significant(self) -> tuple[float, float]:
        """Share of pairs of concept and class that pass the tests, and of pairs with the control."""
        tested = np.isfinite(self.p)
        passed = np.isfinite(self.score)
        return tuple(float(passed[rows].sum() / max(1, tested[rows].sum())) for rows in (slice(-1), slice(-1, None)))  # type: ignore[return-value]

    @property
    def depending(self) -> np.ndarray:
        """Of each concept (concepts,), the control last, the share of classes that pass the tests; NaN where none is tested."""
        tested = np.isfinite(self.p)
        with np.errstate(invalid="ignore"):
            return (np.isfinite(self.score) & tested).sum(1) / tested.sum(1)

    @property
    def why_untested(self) -> str:
        """Why no class is tested; '' where one is."""
        most = int(self.images.max())
        return "" if most >= PER_CLASS else f"classes have {most} images at most; expected {PER_CLASS} of one at least"

    @property
    def why(self) -> str:
        """Why no image has a mean sensitivity; '' where one has."""
        blind = [name for name, v in zip(self.names[:-1], self.vectors, strict=False) if np.isnan(v).all((0, 1))]
        if blind:
            return f"layer {self.layer!r} gives the same for all pictures of {', '.join(blind)}"
        if not np.isfinite(self.sensitivity).any():
            return f"the gradient of the log-odds at layer {self.layer!r} is 0 for all images"
        if not self.told[:-1].any():
            return f"layer {self.layer!r} tells none of {', '.join(self.names[:-1])} from the others above chance"
        return ""


def pictures_of(size: int) -> int:
    """Drawn pictures of a concept in each run, for pictures of that many pixels a side: 40, above 64 fewer with the area.

    At 32 pixels, over the six shipped models and both layers, vectors of 7, 20 and 40 pictures tell shapes from each other with
    an accuracy of 0.52, 0.53 and 0.55 on average, textures with 0.61, 0.66 and 0.69, stripes with 0.71, 0.77 and 0.80, colours
    with 0.92, 0.95 and 0.96.
    """
    return max(7, min(40, 40 * 64**2 // size**2))


def tcav(
    model: Model,
    images: Images,
    labels: Labels,
    *,
    names: Sequence[str] = DEFAULT,
    layers: Sequence[str] | None = None,
    runs: int = RUNS,
    pictures: int | None = None,
    alpha: float = ALPHA,
    seed: int = 0,
    chunk: int = 64,
) -> list[Sensitivity]:
    """Sensitivity of images (n, 3, h, w) with labels (n,) to concepts, each told from noise; one answer per layer.

    names: of `interp.data.concepts`. layers: as in `model.net.named_modules()`, '' the input of the last linear layer; None,
    `middle(model)` and ''. pictures: of a concept, and random ones, in each run; None, `pictures_of`. alpha: level of the tests.
    Raises InputError for an unknown concept or layer, too few runs, and layers that have no part in the logits. Limit: a model
    that does not see a concept tells it from random pictures at 0.5, and its classes do not depend on it.
    """
    unknown = [name for name in names if name not in CONCEPTS]
    if unknown or not names:
        raise InputError(f"{unknown or 'nothing'} is no concept; expected some of {', '.join(CONCEPTS)}")
    pictures = pictures_of(images.shape[-1]) if pictures is None else pictures
    if pictures < 2:
        raise InputError(f"runs have {pictures} pictures of a concept; a vector needs 2 at least")
    _check(images, labels, model.card.num_classes)
    layers = (middle(model), LAST) if layers is None else tuple(layers)
    gradients = odds_gradients(model, images, labels, layers, chunk)
    fits = _fitted(model, _drawn((*names, RANDOM), runs, pictures, images.shape[-1], seed), layers, chunk)
    return _corrected([_answer(fit, gradients[fit.layer], labels, model.card.num_classes) for fit in fits], alpha)


def relative(
    model: Model,
    images: Images,
    labels: Labels,
    sets: Iterable[Iterable[Batch]],
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    chunk: int = 64,
) -> list[list[Sensitivity]]:
    """Sensitivity of images (n, 3, h, w) with labels (n,) to the classes of each set, told from the others of the set.

    One answer per set and layer; the images' gradients are taken once. sets: each its runs, batches with FEWEST pictures at least
    of every class, none of them in two, as `interp.data.concepts.family` draws and `deal` makes of photographs; only one run's
    pictures are held at a time. seed: which pictures meet. layers and errors as in `tcav`.
    """
    _check(images, labels, model.card.num_classes)
    layers = (middle(model), LAST) if layers is None else tuple(layers)
    gradients = odds_gradients(model, images, labels, layers, chunk)
    found = []
    for batches in sets:
        fits = _fitted(model, _within(batches, seed), layers, chunk)
        found.append([_answer(fit, gradients[fit.layer], labels, model.card.num_classes) for fit in fits])
    flat = iter(_corrected([f for of in found for f in of], ALPHA))
    return [[next(flat) for _ in of] for of in found]


def _drawn(names: Sequence[str], runs: int, pictures: int, size: int, seed: int) -> Iterator[_Run]:
    """Concepts beside random pictures that all are told from."""
    for run in range(runs * seed, runs * (seed + 1)):  # the control's pictures are not those it is told from
        drawn = [concepts(RANDOM, pictures, size, 2 * run), *(concepts(name, pictures, size, 2 * run + 1) for name in names)]
        against, *rows = torch.arange(len(drawn) * pictures).split(pictures)
        yield _Run(tuple(names), torch.cat([batch.images for batch in drawn]), [(of, against) for of in rows])


def _within(batches: Iterable[Batch], seed: int) -> Iterator[_Run]:
    """Classes beside as many pictures of the others; last, two random parts of all."""
    generator = torch.Generator().manual_seed(seed)
    for run, batch in enumerate(batches):
        names = (*batch.classes, RANDOM)
        most, pairs = int(batch.labels.bincount().max()), []
        for k, name in enumerate(names):
            of, others = (batch.labels == k).nonzero()[:, 0], (batch.labels != k).nonzero()[:, 0]
            of, others = (rows[torch.randperm(len(rows), generator=generator)] for rows in (of, others))
            if k == len(batch.classes):  # the control
                of, others = others.chunk(2)
            each = min(most, len(of), len(others))
            if each < FEWEST:
                raise InputError(
                    f"run {run + 1} has {len(of)} pictures of concept {name} beside {len(others)} others; expected {FEWEST} of "
                    f"both at least"
                )
            pairs.append((of[:each], others[:each]))
        yield _Run(names, batch.images, pairs)


def middle(model: Model) -> str:
    """The layer half-way through a model: the middle one of its numbered stages or blocks, the earlier of two.

    Raises InputError where the network has none that are known here.
    """
    children = dict(model.net.named_children())
    series = [name for name in children if re.fullmatch(r"(layer|block|stage)_?\d+", name)]
    for name in ("blocks", "stages", "layers", "layer"):
        series = series or [f"{name}.{k}" for k, _ in children[name].named_children()] if name in children else series
    if not series:
        raise InputError(f"model {model.card.id} has {', '.join(children)}, no stages or blocks; name the layers to be read")
    return series[(len(series) - 1) // 2]


def concept_vector(positive: Tensor, negative: Tensor) -> tuple[np.ndarray, float]:
    """Unit normal (d,) of the boundary between the rows of both (n, d), and where on it the boundary lies; NaN, 0 for equal rows.

    A logistic regression after all features were divided by one number, the root mean square distance from the mean: the normal
    is that of the boundary between activations as they are.
    """
    both = torch.cat([positive, negative]).double()
    mean = both.mean(0)
    scale = (both - mean).square().sum(1).mean().sqrt()
    if scale == 0:
        return np.full(both.shape[1], math.nan), 0.0  # the model does not tell any of them apart
    weights, offset = logistic(((both - mean) / scale).numpy(), np.repeat([1.0, -1.0], [len(positive), len(negative)]))
    length = float(np.linalg.norm(weights))
    return weights / length, float(mean.numpy() @ weights - offset * float(scale)) / length


def hits(along: Tensor, threshold: float, of: Tensor, others: Tensor) -> float:
    """Mean of the shares of two sets of rows, of what lies along a vector, that are on their sides of its threshold.

    ½ for a vector that is NaN.
    """
    above = along > threshold
    return float(above[of].double().mean() + 1 - above[others].double().mean()) / 2


def above_chance(accuracy: np.ndarray, runs: int) -> np.ndarray:
    """One-sided p-values (concepts,) of accuracies (concepts, runs·(runs − 1)/2) of pairs of runs: exact, see the module.

    Pairs in the order of `np.triu_indices(runs, 1)`. Of more than 12 runs 4096 of the signs are drawn. Limit: 2^(1 − runs) at
    least, and 1 for accuracies that are all ½.
    """
    if runs <= 12:
        signs = 1 - 2 * (np.arange(2 ** (runs - 1))[:, None] >> np.arange(runs) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (4096, runs))
        signs[0] = 1
    one, other = np.triu_indices(runs, 1)
    sums = (accuracy - 0.5) @ (signs[:, one] * signs[:, other]).T
    return np.asarray((sums >= sums[:, :1] - 1e-9).mean(1))


def logistic(x: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (d,) and offset that minimise ½·‖w‖² + C·Σ log(1 + exp(−side·(x·w + b))), of rows x (n, d), side ±1.

    Newton's method on the rows' coordinates in the space they span: n − 1 numbers at most, however many features there are.
    """
    values, turn = np.linalg.eigh(x @ x.T)
    kept = values > 1e-12 * values[-1]
    root = np.sqrt(values[kept])
    z = np.concatenate([turn[:, kept] * root, np.ones((len(x), 1))], 1)
    penalty = np.append(np.ones(len(root)), 0.0)
    at = np.zeros(z.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp((side * (z @ at)).clip(-50, 50)))  # of the wrong side
        curved = (z * (_PENALTY * p * (1 - p))[:, None]).T @ z + np.diag(penalty)
        step = np.linalg.solve(curved, penalty * at - _PENALTY * z.T @ (side * p))
        at -= step
        if np.abs(step).max() < 1e-10:
            break
    return x.T @ (turn[:, kept] / root) @ at[:-1], float(at[-1])


@dataclass(eq=False)
class _Fit:
    """One layer's vectors as the runs come: normals, a list per run of (concepts, features), thresholds, and accuracies."""

    layer: str
    names: tuple[str, ...] = ()
    normals: list[np.ndarray] = field(default_factory=list)
    thresholds: list[list[float]] = field(default_factory=list)
    accuracy: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def take(self, activations: Tensor, run: _Run) -> None:
        """Judge the vectors of the runs before on this one's activations (pictures, features), and find its own."""
        self.names, now, pairs = run.names, len(self.normals), run.pairs
        for before, (normals, thresholds) in enumerate(zip(self.normals, self.thresholds, strict=True)):
            along = torch.from_numpy(normals) @ activations.T
            self.accuracy[before, now] = [hits(a, t, *rows) for a, t, rows in zip(along, thresholds, pairs, strict=True)]
        found = [concept_vector(activations[of], activations[others]) for of, others in pairs]
        self.normals.append(np.stack([v for v, _ in found]).astype(np.float32))
        self.thresholds.append([t for _, t in found])


def _fitted(model: Model, runs: Iterable[_Run], layers: Sequence[str], chunk: int) -> list[_Fit]:
    """The vectors of each layer."""
    fits = [_Fit(layer) for layer in layers]
    for run in runs:
        found = activations(model, run.images, layers, chunk)
        for fit in fits:
            fit.take(found[fit.layer].float(), run)
    if (count := len(fits[0].normals)) < FEWEST_RUNS:
        raise InputError(f"there are {count} runs; expected {FEWEST_RUNS} at least, of fewer no concept passes the tests")
    return fits


def _answer(fit: _Fit, gradients: Tensor, labels: Labels, classes: int) -> Sensitivity:
    """What one layer says of concepts, before p-values are corrected."""
    vectors = np.stack(fit.normals, 1)
    pairs = zip(*np.triu_indices(vectors.shape[1], 1), strict=True)
    accuracy = np.array([fit.accuracy[int(a), int(b)] for a, b in pairs]).T
    length = gradients.norm(dim=1, keepdim=True)
    unit = torch.where(length > 0, gradients / length, math.nan).float().numpy()
    cosines = np.einsum("nd,crd->ncr", unit, vectors, optimize=True).astype(np.float64)
    counts = labels.bincount(minlength=classes).numpy()
    score, p = np.full((2, len(fit.names), classes), math.nan)
    for k in np.flatnonzero(counts >= PER_CLASS).tolist():
        of_class = cosines[(labels == k).numpy()]
        score[:, k], p[:, k] = (of_class > 0).mean((0, 2)), _p_value(of_class.mean(0))
    told = above_chance(accuracy, vectors.shape[1])
    return Sensitivity(fit.layer, fit.names, vectors, accuracy, told, cosines.mean(2), counts, score, p, ALPHA)


def _corrected(found: list[Sensitivity], alpha: float) -> list[Sensitivity]:
    """p-values corrected over all answers of a model, and scores left out that do not pass."""
    every = np.split(holm(np.concatenate([f.p.ravel() for f in found])), np.cumsum([f.p.size for f in found])[:-1])
    out = []
    for f, corrected in zip(found, every, strict=True):
        p = corrected.reshape(f.p.shape)
        score = np.where((p < alpha) & (f.told_p < alpha)[:, None], f.score, math.nan)
        out.append(dataclasses.replace(f, p=p, score=score, alpha=alpha))
    return out


def _p_value(values: np.ndarray) -> np.ndarray:
    """Two-sided p-values (concepts,) of Student's one-sample t-test of values (concepts, runs) against 0; 1 for all 0."""
    from scipy.special import stdtr

    runs = values.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = values.mean(1) / (values.std(1, ddof=1) / math.sqrt(runs))
    t[(values == 0).all(1)] = 0
    return 2 * stdtr(runs - 1, -np.abs(t))


def _check(images: Images, labels: Labels, classes: int) -> None:
    if labels.shape != (len(images),) or not len(images) or bool((labels < 0).any()) or bool((labels >= classes).any()):
        raise InputError(
            f"{len(images)} images came with labels {tuple(labels.shape)}; expected one class each, 0 to {classes - 1}"
        )
