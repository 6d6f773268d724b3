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
concept and class of a layer. Scores that do not pass are NaN. The last concept, `random`, is a random set treated as the others
are: the control, of which about none may pass. Pairs of concept and class share both and are no independent tries; a table
counts concepts, each by the share of classes that depend on it (`Sensitivity.depending`). Concepts share their random pictures
and the classes' images still.

A concept is told from drawn noise, or, if it is a class of photographs, from the other classes' (the paper's relative vectors):
from noise a model would tell photographs of anything.
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
from interp.data.concepts import CONCEPTS, RANDOM, concepts
from interp.models.chunks import in_chunks
from interp.models.model import Model
from interp.result import Measure
from interp.stats import holm
from interp.types import Batch, Images, InputError, Labels

LAST = ""
"""Name of the input of the last linear layer."""

DEFAULT = (
    "red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white",
    "horizontal stripes", "vertical stripes", "diagonal stripes", "narrow stripes", "broad stripes",
    "dots", "checks", "waves", "bricks", "curved", "angular", "circle", "square", "triangle", "star", "cross", "ring",
)  # fmt: skip
"""Concepts that are tested where none are named: colours, textures, strokes, shapes."""
RUNS, PICTURES, FEWEST = 10, 7, 5
"""Runs, pictures of a concept in each, and how many photographs of a class in each make it a concept.

With 10 pictures for 7, of the default concepts and the shipped models, 0.4 to 7 more of 100 pairs of concept and class pass.
"""

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
        "concepts told from random",
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
    photos: Batch | None = None,
    layers: Sequence[str] | None = None,
    runs: int = RUNS,
    pictures: int = PICTURES,
    alpha: float = 0.05,
    seed: int = 0,
    chunk: int = 64,
) -> list[Sensitivity]:
    """Sensitivity of images (n, 3, h, w) with labels (n,) to concepts, one answer per layer.

    names: of `interp.data.concepts`. photos: in their place the classes of these images, as `photographs` gives them, with at
    least runs × FEWEST of each. layers: as in `model.net.named_modules()`, '' the input of the last linear layer; None,
    `middle(model)` and ''. pictures: of a concept, and random ones, in each run, of photographs as many as there are. alpha:
    level of the test. Raises InputError for an unknown concept or layer, fewer than three runs, and layers that have no part in
    the logits. Limit: a model that does not see a concept tells it from random pictures at 0.5, and its classes do not depend
    on it.
    """
    _check(images, labels, names, runs, pictures, model.card.num_classes)
    layers = (middle(model), LAST) if layers is None else tuple(layers)
    gradients = _gradients(model, images, labels, layers, chunk)
    if photos is None:
        names, count = (*names, RANDOM), runs * pictures
        pairs: Iterable[tuple[Layers, Layers]] = _drawn(model, names, images.shape[-1], count, layers, seed, chunk)
    else:
        names = (*photos.classes, RANDOM)
        pairs = _photographed(_activations(model, photos.images, layers, chunk), photos.labels, runs, pictures, seed)
    vectors: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    accuracy: dict[str, list[list[float]]] = {layer: [] for layer in layers}
    for positive, negative in pairs:
        for layer in layers:
            each = len(positive[layer]) // runs
            inside = [slice(r * each, (r + 1) * each) for r in range(runs)]
            found = [concept_vector(positive[layer], negative[layer], rows) for rows in inside]
            vectors[layer].append(np.stack([v for v, _ in found]))
            accuracy[layer].append([a for _, a in found])
    return [
        _answer(layer, tuple(names), np.stack(vectors[layer]), np.array(accuracy[layer]), gradients[layer], labels, alpha)
        for layer in layers
    ]


def _drawn(
    model: Model, names: Sequence[str], size: int, count: int, layers: Sequence[str], seed: int, chunk: int
) -> Iterator[tuple[Layers, Layers]]:
    """Activations of each concept's pictures and of the random ones that all are told from."""
    against = _activations(model, concepts(RANDOM, count, size, seed).images, layers, chunk)
    for name in names:  # another seed: the control's pictures are not those it is told from
        yield _activations(model, concepts(name, count, size, seed + 1).images, layers, chunk), against


def _photographed(every: Layers, labels: Labels, runs: int, pictures: int, seed: int) -> Iterator[tuple[Layers, Layers]]:
    """Activations of each class's photographs and of as many of other classes; last, of two random sets from all classes."""
    generator = torch.Generator().manual_seed(seed)
    for k in range(int(labels.max()) + 2):
        of, others = (labels == k).nonzero()[:, 0], (labels != k).nonzero()[:, 0]
        of, others = (rows[torch.randperm(len(rows), generator=generator)] for rows in (of, others))
        if not len(of):  # beyond the last class: the control
            of, others = others.chunk(2)
        each = min(pictures, len(of) // runs, len(others) // runs)
        if each < FEWEST:
            raise InputError(
                f"concept {k} has {len(of)} photographs beside {len(others)}; expected {runs * FEWEST} of each at least"
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


def _check(images: Images, labels: Labels, names: Sequence[str], runs: int, pictures: int, classes: int) -> None:
    if labels.shape != (len(images),) or bool((labels < 0).any()) or bool((labels >= classes).any()):
        raise InputError(
            f"{len(images)} images came with labels {tuple(labels.shape)}; expected one class each, 0 to {classes - 1}"
        )
    unknown = [name for name in names if name not in CONCEPTS]
    if unknown or not names:
        raise InputError(f"{unknown or 'nothing'} is no concept; expected some of {', '.join(CONCEPTS)}")
    if runs < 3 or pictures < 2:
        raise InputError(f"there are {runs} runs with {pictures} pictures; a test needs at least 3 runs, a vector 2 pictures")
