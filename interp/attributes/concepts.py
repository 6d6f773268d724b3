"""Which concepts the classes of a model depend on: TCAV (Kim et al., arXiv 1711.11279).

At a layer with activations f(x), a concept's vector v is the unit normal of a linear classifier that tells pictures of the
concept from random ones (section 3.2), here a logistic regression. With h the log-odds of the image's class,

    h(x) = z_y − log Σ_{j≠y} exp z_j,        sensitivity = cos(∇_f h(x), v),        score = share of a class's images with it > 0

(sections 3.3 and 3.4). The paper takes the logit z_y for h; its gradient at the last layer is the same for all images, and
counts what raises all classes alike. Log-odds do neither, and have the direction of the gradient of log p_y. The cosine leaves
out the length of gradients, which says how sure a model is, so that images of several models can be compared; but random vectors
have |cos| about √(2 / (π·d)) in d dimensions, so models are compared on the same d, or against the row `random`.

Test (section 3.2, "statistical significance"): several runs, each with its own pictures of the concept and its own random ones,
so that runs are independent. Were the concept but another random set, exchanging the two would turn v, and the expected
sensitivity were 0: one-sample t-test over runs of a class's mean sensitivity against 0, Holm-corrected over all pairs of
concept and class of a layer, of each set by itself. Scores that do not pass are NaN. The last concept, `random`, is a random set
treated as the others are: the control, of which about none may pass. Pairs of concept and class share both and are no independent
tries; a table counts concepts, each by the share of classes that depend on it (`Sensitivity.depending`). Concepts share their
random pictures and the classes' images still.

`tcav` tells concepts from drawn noise, `relative` each concept of a set from the others of the set (the paper's section "Relative
TCAV": the positive pictures are one concept's, the negative ones those of others). From noise a model tells flat drawings of
anything, and photographs of anything, so that vectors of shapes found against noise have cosines near 1 and mean no shape. The
control of a set is one random part of all its pictures told from another. Limit: sensitivities to the k concepts of a set are
deviations from their mean, so that what depends on one alone moves from the others too, each by about 1 / (k − 1) of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.attention.layout import module_at
from interp.data.concepts import CONCEPTS, FAMILIES, RANDOM, concepts
from interp.models.chunks import in_chunks
from interp.models.model import Model
from interp.result import Measure
from interp.stats import holm
from interp.types import Batch, Images, InputError, Labels

LAST = ""
"""Name of the input of the last linear layer."""

DEFAULT = tuple(name for family in FAMILIES.values() for name in family)
"""Concepts that are tested where none are named: colours, stripes, textures, shapes."""
RUNS, PICTURES, FEWEST = 10, 7, 5
"""Runs, pictures of a concept in each, and how many pictures in each make a class of a set a concept."""
ALPHA = 0.05
"""Level of the test."""

Layers = dict[str, Tensor]  # layer → activations (n, features)
_PENALTY = 1.0  # C of the regression; 0.01 and 100 give mean accuracies within 0.03 of it, on three of the shipped models
_STEPS = 50  # of Newton's method at most; it takes about six
_SOURCE = "TCAV, arXiv 1711.11279"
MEASURES = (
    Measure(
        "significant",
        "classes that depend on a concept",
        "of a concept: share of classes whose mean sensitivity differs from 0 over runs (t-test, Holm)",
        f"{_SOURCE}, section 3.2",
        "share",
        "none",
    ),
    Measure(
        "sensitivity",
        "sensitivity to concepts",
        "mean over concepts of |cos(∇ log-odds of the class, concept vector)|",
        f"{_SOURCE}, section 3.3",
        "cosine",
        "none",
    ),
    Measure(
        "told_apart",
        "concepts told from others",
        "held-out accuracy of the concept vectors, mean over concepts",
        f"{_SOURCE}, section 3.2",
        "share",
        "higher",
    ),
)


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What one layer of one model says of concepts; names ends with `random`, the control.

    vectors (concepts, runs, features): unit normals. accuracy (concepts, runs): of each on the pictures of the other runs, chance
    0.5. sensitivity (images, concepts): mean over runs, in [−1, 1], for the log-odds of each image's label. score (concepts,
    classes): TCAV score, mean over runs, NaN where the test is not passed or the class has no images; p (concepts, classes):
    Holm-corrected.
    """

    layer: str
    names: tuple[str, ...]
    vectors: np.ndarray
    accuracy: np.ndarray
    sensitivity: np.ndarray
    score: np.ndarray
    p: np.ndarray

    @property
    def significant(self) -> tuple[float, float]:
        """Share of pairs of concept and class that pass the test, and of pairs with the control."""
        tested = np.isfinite(self.p)
        passed = np.isfinite(self.score)
        return tuple(float(passed[rows].sum() / max(1, tested[rows].sum())) for rows in (slice(-1), slice(-1, None)))  # type: ignore[return-value]

    @property
    def depending(self) -> np.ndarray:
        """Of each concept (concepts,), the control last, the share of classes that pass the test; NaN where none is tested."""
        tested = np.isfinite(self.p)
        with np.errstate(invalid="ignore"):
            return (np.isfinite(self.score) & tested).sum(1) / tested.sum(1)

    @property
    def why(self) -> str:
        """Why no image has a mean sensitivity; '' where one has."""
        if np.isfinite(self.values["sensitivity"]).any():
            return ""
        blind = [name for name, v in zip(self.names[:-1], self.vectors, strict=False) if np.isnan(v).all((0, 1))]
        if blind:
            return f"layer {self.layer!r} gives the same for all pictures of {', '.join(blind)}"
        return f"the gradient of the log-odds at layer {self.layer!r} is 0 for all images"

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Per image (n,): mean |sensitivity| over the concepts, and that of the control."""
        size = np.abs(self.sensitivity)
        return {"sensitivity": size[:, :-1].mean(1), "control": size[:, -1]}


def tcav(
    model: Model,
    images: Images,
    labels: Labels,
    *,
    names: Sequence[str] = DEFAULT,
    layers: Sequence[str] | None = None,
    runs: int = RUNS,
    pictures: int = PICTURES,
    alpha: float = ALPHA,
    seed: int = 0,
    chunk: int = 64,
) -> list[Sensitivity]:
    """Sensitivity of images (n, 3, h, w) with labels (n,) to concepts, each told from noise; one answer per layer.

    names: of `interp.data.concepts`. layers: as in `model.net.named_modules()`, '' the input of the last linear layer; None,
    `middle(model)` and ''. pictures: of a concept, and random ones, in each run. alpha: level of the test. Raises InputError for
    an unknown concept or layer, fewer than three runs, and layers that have no part in the logits. Limit: a model that does not
    see a concept tells it from random pictures at 0.5, and its classes do not depend on it.
    """
    unknown = [name for name in names if name not in CONCEPTS]
    if unknown or not names:
        raise InputError(f"{unknown or 'nothing'} is no concept; expected some of {', '.join(CONCEPTS)}")
    _check(images, labels, runs, pictures, model.card.num_classes)
    layers = (middle(model), LAST) if layers is None else tuple(layers)
    gradients = _gradients(model, images, labels, layers, chunk)
    pairs = _drawn(model, (*names, RANDOM), images.shape[-1], runs * pictures, layers, seed, chunk)
    return _answers((*names, RANDOM), pairs, gradients, labels, runs, alpha)


def relative(
    model: Model,
    images: Images,
    labels: Labels,
    sets: Iterable[Batch],
    *,
    layers: Sequence[str] | None = None,
    runs: int = RUNS,
    pictures: int = PICTURES,
    seed: int = 0,
    chunk: int = 64,
) -> list[list[Sensitivity]]:
    """Sensitivity of images (n, 3, h, w) with labels (n,) to the classes of each set, told from the others of the set.

    One answer per set and layer; the images' gradients are taken once. sets: as `interp.data.concepts.family` and `photographs`
    give them, with at least runs × FEWEST pictures of each class; drawn one by one. pictures: of a concept, and of the others,
    in each run, or as many as there are. seed: which pictures meet. layers and errors as in `tcav`.
    """
    _check(images, labels, runs, pictures, model.card.num_classes)
    layers = (middle(model), LAST) if layers is None else tuple(layers)
    gradients = _gradients(model, images, labels, layers, chunk)
    found = []
    for batch in sets:
        pairs = _within(_activations(model, batch.images, layers, chunk), batch, runs, pictures, seed)
        found.append(_answers((*batch.classes, RANDOM), pairs, gradients, labels, runs, ALPHA))
    return found


def _drawn(
    model: Model, names: Sequence[str], size: int, count: int, layers: Sequence[str], seed: int, chunk: int
) -> Iterator[tuple[Layers, Layers]]:
    """Activations of each concept's pictures and of the random ones that all are told from."""
    against = _activations(model, concepts(RANDOM, count, size, seed).images, layers, chunk)
    for name in names:  # another seed: the control's pictures are not those it is told from
        yield _activations(model, concepts(name, count, size, seed + 1).images, layers, chunk), against


def _within(every: Layers, batch: Batch, runs: int, pictures: int, seed: int) -> Iterator[tuple[Layers, Layers]]:
    """Activations of each class's pictures and of as many of the other classes; last, of two random sets from all classes."""
    generator = torch.Generator().manual_seed(seed)
    for k, name in enumerate((*batch.classes, RANDOM)):
        of, others = (batch.labels == k).nonzero()[:, 0], (batch.labels != k).nonzero()[:, 0]
        of, others = (rows[torch.randperm(len(rows), generator=generator)] for rows in (of, others))
        if k == len(batch.classes):  # the control
            of, others = others.chunk(2)
        each = min(pictures, len(of) // runs, len(others) // runs)
        if each < FEWEST:
            raise InputError(
                f"concept {name} has {len(of)} pictures beside {len(others)}; expected {runs * FEWEST} of each at least"
            )
        yield tuple({layer: t[rows[: runs * each]] for layer, t in every.items()} for rows in (of, others))  # type: ignore[misc]


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


def concept_vector(positive: Tensor, negative: Tensor, inside: slice) -> tuple[np.ndarray, float]:
    """Unit normal (d,) of the boundary between the rows `inside` of both (n, d), and its accuracy on the others, both alike.

    A logistic regression after all features were divided by one number, the root mean square distance from the mean: the normal
    is that of the boundary between activations as they are.
    """
    both = torch.cat([positive[inside], negative[inside]]).double()
    mean = both.mean(0)
    scale = (both - mean).square().sum(1).mean().sqrt()
    if scale == 0:
        return np.full(both.shape[1], math.nan), 0.5  # the model does not tell any of them apart
    weights, offset = logistic(((both - mean) / scale).numpy(), np.repeat([1.0, -1.0], len(both) // 2))
    normal = torch.from_numpy(weights) / scale
    outside = torch.ones(len(positive), dtype=torch.bool)
    outside[inside] = False
    hits = [(t[outside].double() @ normal > mean @ normal - offset).double().mean() for t in (positive, negative)]
    return weights / np.linalg.norm(weights), float(hits[0] + 1 - hits[1]) / 2


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


def log_odds(logits: Tensor, labels: Labels) -> Tensor:
    """log p / (1 − p) (n,) of each image's label, from logits (n, classes)."""
    own = nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -math.inf).logsumexp(1)


def _answers(
    names: tuple[str, ...],
    pairs: Iterable[tuple[Layers, Layers]],
    gradients: Layers,
    labels: Labels,
    runs: int,
    alpha: float,
) -> list[Sensitivity]:
    """What each layer says of concepts, from the activations of each concept and of what it is told from."""
    vectors: dict[str, list[np.ndarray]] = {layer: [] for layer in gradients}
    accuracy: dict[str, list[list[float]]] = {layer: [] for layer in gradients}
    for positive, negative in pairs:
        for layer in gradients:
            each = len(positive[layer]) // runs
            inside = [slice(r * each, (r + 1) * each) for r in range(runs)]
            found = [concept_vector(positive[layer], negative[layer], rows) for rows in inside]
            vectors[layer].append(np.stack([v for v, _ in found]))
            accuracy[layer].append([a for _, a in found])
    return [
        _answer(layer, names, np.stack(vectors[layer]), np.array(accuracy[layer]), of, labels, alpha)
        for layer, of in gradients.items()
    ]


def _answer(
    layer: str, names: tuple[str, ...], vectors: np.ndarray, accuracy: np.ndarray, gradients: Tensor, labels: Labels, alpha: float
) -> Sensitivity:
    length = gradients.norm(dim=1, keepdim=True)
    unit = torch.where(length > 0, gradients / length, math.nan).double().numpy()
    cosines = np.einsum("nd,crd->ncr", unit, vectors)
    classes = range(int(labels.max()) + 1)
    of_class = [cosines[(labels == k).numpy()] for k in classes]
    score = np.stack([(v > 0).mean((0, 2)) if len(v) else np.full(len(names), math.nan) for v in of_class], 1)
    p = holm(np.stack([_p_value(v.mean(0)) if len(v) else np.full(len(names), math.nan) for v in of_class], 1))
    score[~(p < alpha)] = math.nan
    return Sensitivity(layer, names, vectors, accuracy, cosines.mean(2), score, p)


def _p_value(values: np.ndarray) -> np.ndarray:
    """Two-sided p-values (concepts,) of Student's one-sample t-test of values (concepts, runs) against 0; 1 for all 0."""
    from scipy.special import stdtr

    runs = values.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = values.mean(1) / (values.std(1, ddof=1) / math.sqrt(runs))
    t[(values == 0).all(1)] = 0
    return 2 * stdtr(runs - 1, -np.abs(t))


@contextmanager
def _tapped(model: Model, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, a pass leaves the layers' outputs in the dictionary, as tensors that gradients can be taken for."""
    seen: dict[str, Tensor] = {}

    def note(layer: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise InputError(f"layer {layer!r} gives {type(value).__name__}, no tensor; choose another")
        seen[layer] = value if value.requires_grad or not torch.is_grad_enabled() else value.detach().requires_grad_(True)
        return seen[layer].clone()  # a later in-place activation then spares what was seen

    with ExitStack() as stack:
        for layer in layers:
            if layer == LAST:
                linear = [m for m in model.net.modules() if isinstance(m, nn.Linear)]
                if not linear:
                    raise InputError(f"model {model.card.id} has no linear layer; name the layers to be read")
                stack.enter_context(linear[-1].register_forward_pre_hook(lambda _m, args, at=layer: (note(at, args[0]),)))
            else:
                module = module_at(model.net, layer)
                stack.enter_context(module.register_forward_hook(lambda _m, _a, out, at=layer: note(at, out)))
        yield seen


def _activations(model: Model, images: Images, layers: Sequence[str], chunk: int) -> dict[str, Tensor]:
    """Flattened output (n, features) of each layer."""

    def run(rows: slice) -> dict[str, Tensor]:
        model(images[rows].to(model.mean))
        n = rows.stop - rows.start
        if any(layer not in seen or len(seen[layer]) != n for layer in layers):
            raise InputError(f"a layer of {', '.join(map(repr, layers))} gives no tensor with one entry per image; choose others")
        return {layer: seen[layer].flatten(1).cpu() for layer in layers}

    with torch.no_grad(), _tapped(model, layers) as seen:
        return _joined([found for _, found in in_chunks(run, len(images), chunk)])


def _gradients(model: Model, images: Images, labels: Labels, layers: Sequence[str], chunk: int) -> dict[str, Tensor]:
    """Gradient (n, features) of each image's log-odds at each layer."""

    def run(rows: slice) -> dict[str, Tensor]:
        logits = model(images[rows].to(model.mean))
        score = log_odds(logits, labels[rows].to(logits.device)).sum()
        found = torch.autograd.grad(score, [seen[layer] for layer in layers], allow_unused=True)
        if any(g is None for g in found):
            raise InputError(f"a layer of {', '.join(layers)} has no part in the logits of model {model.card.id}; choose others")
        return {layer: g.flatten(1).cpu() for layer, g in zip(layers, found, strict=True)}

    with torch.inference_mode(False), torch.enable_grad(), _tapped(model, layers) as seen:
        return _joined([found for _, found in in_chunks(run, len(images), chunk)])


def _joined(pieces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {layer: torch.cat([p[layer] for p in pieces]) for layer in pieces[0]}


def _check(images: Images, labels: Labels, runs: int, pictures: int, classes: int) -> None:
    if labels.shape != (len(images),) or bool((labels < 0).any()) or bool((labels >= classes).any()):
        raise InputError(
            f"{len(images)} images came with labels {tuple(labels.shape)}; expected one class each, 0 to {classes - 1}"
        )
    if runs < 3 or pictures < 2:
        raise InputError(f"there are {runs} runs with {pictures} pictures; a test needs at least 3 runs, a vector 2 pictures")
