"""How far each method's maps can be trusted on each model, beside maps that know nothing of the model.

For every model and method: deletion, insertion and pixel flipping (`curves`), and what is left of the maps when the model's
parameters are randomised (`randomisation`). Each model's own prediction is explained. Insertion favours standard models and
deletion robust ones, whatever the method (arXiv 2205.13042): compare the methods within a row, not the models within a column.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from interp.attention.attend import as_names, check_fields
from interp.faithfulness.curves import BASELINES, Flips, deletion, insertion, pixel_flipping, squares
from interp.faithfulness.methods import CONTROLS, DEFAULT, EDGES, METHODS, RANDOM, Method, named
from interp.faithfulness.randomisation import constant, spearman
from interp.models.chunks import in_chunks
from interp.models.model import Model, check_some, model_coords
from interp.models.randomise import fully_randomised
from interp.result import Measure, Result, described, with_interval
from interp.stats import bootstrap
from interp.types import Batch, Images, InputError, Labels, Maps, pixels

log = logging.getLogger(__name__)
FEWEST = 6  # images of a verdict: fewer lie all on one side by chance more often than 1 time in 20, and no interval shows it


MEASURES = (
    Measure(
        "deletion_auc",
        "deletion",
        "area under the probability while squares are replaced by the baseline, largest of the map first",
        "RISE, arXiv 1806.07421",
        "mean probability",
        "lower",
    ),
    Measure(
        "insertion_auc",
        "insertion",
        "area under the probability while squares are put into the blurred image, largest of the map first",
        "RISE, arXiv 1806.07421",
        "mean probability",
        "higher",
    ),
    Measure(
        "pixel_flipping_aopc",
        "pixel flipping",
        "mean drop of the logit while squares are replaced by noise, largest of the map first",
        "AOPC, arXiv 1509.06321",
        "logit",
        "higher",
    ),
)
RANDOMISATION = Measure(
    "randomisation_similarity",
    "similarity after randomisation",
    "Spearman correlation of |map| before and after all layers are initialised anew",
    "arXiv 1810.03292",
    "rank correlation",
    "lower",
)


@dataclass(frozen=True)
class Faithfulness:
    """What is judged, and how.

    methods: names, or one, of "saliency", "integrated-gradients", "smoothgrad", and of what `interp.Attend` reads, "raw",
    "channels", "weighted", "rollout", "chefer", "gradcam", "gradcam++", "layercam", "scorecam"; the controls "random", "smooth
    random", "edges", "centre" and "uniform" always come along. By default those that people show most, and of attention one
    without and one with the class's gradient: each costs some 100 passes per image to judge, whatever its map costs, so their
    relatives (roll-out, gradient-weighted attention, other class activation maps) are for the asking. steps, patch, seed: see
    `Flips`; a patch of more than one pixel suits maps that are coarse. baseline: of deletion, "black", "mean", "blur" or
    "noise"; insertion has the blurred image, pixel flipping noise. example: the image whose maps are kept. randomise: whether
    maps are drawn again with random parameters. chunk: images, times points or draws, per pass.
    """

    methods: tuple[str, ...] = DEFAULT
    steps: int = 32
    baseline: str = "mean"
    patch: int = 4
    example: int = 0
    randomise: bool = True
    seed: int = 0
    chunk: int = field(default=16, metadata={"cost": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", as_names(self.methods))
        check_fields(self)
        self.flips("probability")  # checks what it takes
        if self.baseline not in BASELINES:
            raise InputError(f"baseline is {self.baseline!r}; expected one of {', '.join(BASELINES)}")
        if len(set(self.methods)) < len(self.methods) or set(self.methods) & CONTROLS.keys():
            raise InputError(f"methods are {self.methods}; expected each once, without the controls: {', '.join(CONTROLS)}")

    def flips(self, score: str) -> Flips:
        """How pixels are changed, for one score."""
        return Flips(self.steps, self.patch, score, seed=self.seed, chunk=self.chunk)


def faithfulness(
    models: Sequence[Model], batch: Batch, params: Faithfulness = Faithfulness(), *, maps_of: Mapping[str, Method] | None = None
) -> Result:
    """Judge the maps of params.methods, by their functions in `maps_of` (METHODS), and of the controls, on every model.

    models: a list of models, as interp.load gives them. batch: images of the models' size, as interp.images gives them; labels
    are not used. params: interp.Faithfulness(methods, steps, baseline, patch, …), whose docstring lists the methods.

    Returns a Result. Measures (model, reading), where a reading is one of the methods or controls, see MEASURES and
    RANDOMISATION: means over images with 95 % bootstrap intervals; values_NAME (model, reading, image): what they are made of. A
    constant map has no rank correlation, nor has one that the method cannot draw on the randomised model: NaN, left out of the
    mean, so that randomisation_similarity_n may be below n. curve_deletion, curve_insertion (model, reading, share): mean
    probability. target (model, image): the class explained, the model's own prediction. example (model, reading, y, x): one
    image's map ÷ the mean of its absolute value, original (y, x, channel) that image. trusted (model, reading), in words: by
    which of deletion, insertion and pixel flipping the method is better than both the random map and the edges on this model,
    which is where the 95 % interval of the paired difference, bootstrapped over images, excludes 0 for both. It says that and no
    more; three measures are looked at, uncorrected for their number. A method that raises InputError for a model has NaN there,
    and `trusted` says why.
    """
    started = time.perf_counter()
    maps_of = METHODS if maps_of is None else maps_of
    _check(models, batch, maps_of, params)
    table = {**{name: maps_of[name] for name in params.methods}, **CONTROLS}
    targets, found = [], []
    for model in tqdm(models, desc="faithfulness", leave=False):
        targets.append(model.read(batch.images, chunk=params.chunk).argmax(1))
        found.append(_one(model, batch.images, targets[-1], table, params))
    data = _dataset(models, batch, found, params)
    data["target"] = (("model", "image"), torch.stack(targets).numpy())
    data = described(data, WORDS)
    return Result.of(
        "faithfulness", "How far maps can be trusted", data, params=params, models=models, batch=batch, started=started
    )


WORDS = {
    "target": ("class explained, the one that the model reads", "class index"),
    "example": ("map of one image ÷ the mean of its absolute value", "× mean"),
    "share": ("share of the pixels changed", "share"),
    "curve_deletion": ("probability of the class while squares are taken out", "mean probability"),
    "curve_insertion": ("probability of the class while squares are put in", "mean probability"),
    "trusted": (f"better than both {RANDOM} and {EDGES}?", ""),
    "control": ("whether the map knows nothing of the model", ""),
}
for _m in (*MEASURES, RANDOMISATION):
    WORDS[f"values_{_m.name}"] = f"{_m.title}, image by image", _m.unit
    WORDS[f"{_m.name}_n"] = f"{_m.title}, how many images have one", "images"


class _Judged(NamedTuple):
    """What one method comes to on one model; `why` says where its maps could not be drawn."""

    values: dict[str, np.ndarray]  # (image,) each
    curves: dict[str, np.ndarray]  # (share,) each
    example: np.ndarray  # (y, x)
    why: str = ""


def _check(models: Sequence[Model], batch: Batch, maps_of: Mapping[str, Method], params: Faithfulness) -> None:
    check_some(models)
    named(params.methods, maps_of)
    if not 0 <= params.example < len(batch):
        raise InputError(f"the example is image {params.example}; expected 0 to {len(batch) - 1}")
    squares(batch.images, params.flips("logit"))
    for model in models:
        model.check_images(batch.images.shape)


def _one(model: Model, images: Images, y: Labels, table: Mapping[str, Method], params: Faithfulness) -> dict[str, _Judged]:
    x, y = images.to(model.mean), y.to(model.mean.device)
    other = fully_randomised(model, seed=params.seed) if params.randomise else None
    judged = {}
    for name, method in tqdm(table.items(), desc=model.card.id, leave=False):
        try:
            maps = _maps(method, model, x, y, params.chunk)
        except InputError as error:
            judged[name] = _absent(images, params, str(error))
            continue
        judged[name] = _judge(model, x, y, maps, params)
        if other is not None:
            judged[name].values[RANDOMISATION.name] = _similarity(maps, method, other, x, y, params.chunk)
    return judged


def _maps(method: Method, model: Model, x: Images, y: Labels, chunk: int) -> Maps:
    return torch.cat([part for _, part in in_chunks(lambda rows: method(model, x[rows], y[rows]), len(x), chunk)])


def _absent(images: Images, params: Faithfulness, why: str) -> _Judged:
    nothing = np.full(len(images), np.nan)
    names = [m.name for m in MEASURES] + [RANDOMISATION.name] * params.randomise
    curves = dict.fromkeys(("deletion", "insertion"), np.full(params.steps + 1, np.nan))
    return _Judged(dict.fromkeys(names, nothing), curves, np.full(images.shape[2:], np.nan), why)


def _judge(model: Model, x: Images, y: Labels, maps: Maps, params: Faithfulness) -> _Judged:
    probability = params.flips("probability")
    deleted = deletion(model, x, y, maps, baseline=params.baseline, how=probability)
    inserted = insertion(model, x, y, maps, how=probability)
    dropped = pixel_flipping(model, x, y, maps, how=params.flips("logit"))
    values = dict(zip([m.name for m in MEASURES], (deleted.area, inserted.area, dropped.drop), strict=True))
    shown = maps[params.example]
    return _Judged(
        {name: v.cpu().numpy() for name, v in values.items()},
        {name: c.scores.mean(0).cpu().numpy() for name, c in (("deletion", deleted), ("insertion", inserted))},
        (shown / shown.abs().mean().clamp_min(1e-12)).cpu().numpy(),
    )


def _similarity(before: Maps, method: Method, other: Model, x: Images, y: Labels, chunk: int) -> np.ndarray:
    """Spearman correlation (n,) of |map| with those of the other model; NaN where a map is constant, or cannot be drawn there."""
    found = np.full(len(x), np.nan)
    try:
        after = _maps(method, other, x, y, chunk)
    except InputError as error:
        log.info("%s has no maps with random parameters: %s", other.card.id, error)
        return found
    defined = ~(constant(before.abs()) | constant(after.abs()))
    if bool(defined.any()):
        found[defined.cpu().numpy()] = spearman(before[defined], after[defined], absolute=True).cpu().numpy()
    return found


def _dataset(models: Sequence[Model], batch: Batch, found: list[dict[str, _Judged]], params: Faithfulness) -> xr.Dataset:
    names = list(found[0])
    dims = ("model", "reading")
    coords = model_coords(models) | {
        "reading": names,
        "control": ("reading", [name in CONTROLS for name in names]),
        "image": list(batch.ids),
        "share": _share(batch, params),
    }
    data = xr.Dataset(coords=coords)
    for m in (*MEASURES, *([RANDOMISATION] if params.randomise else [])):
        block = np.stack([[judged.values[m.name] for judged in row.values()] for row in found])
        intervals = [bootstrap(v) for v in block.reshape(-1, len(batch))]
        attrs = {"unit": m.unit, "better": m.better, "n": len(batch), "long_name": m.title}
        data = data.assign(with_interval(m.name, dims, intervals, block.shape[:2], **attrs))
        data[f"{m.name}_n"] = (dims, np.isfinite(block).sum(-1))
        data[f"values_{m.name}"] = ((*dims, "image"), block.astype(np.float32))
    for name in ("deletion", "insertion"):
        block = np.stack([[judged.curves[name] for judged in row.values()] for row in found])
        data[f"curve_{name}"] = ((*dims, "share"), block.astype(np.float32))
    examples = np.stack([[judged.example for judged in row.values()] for row in found])
    data["example"] = ((*dims, "y", "x"), examples.astype(np.float32))
    verdicts = [[verdict(row, name) for name in row] for row in found]
    data["trusted"] = (dims, verdicts)
    data["original"] = (("y", "x", "channel"), pixels(batch.images[params.example][None])[0])
    return data


def _share(batch: Batch, params: Faithfulness) -> np.ndarray:
    """The share changed at each point, as `flipped` takes them."""
    count = squares(batch.images, params.flips("logit"))
    return np.arange(params.steps + 1) * count // params.steps / count


def verdict(judged: Mapping[str, _Judged], name: str) -> str:
    """By what a method is better than both the random map and the edges, in words that say no more than that."""
    if judged[name].why:
        return f"not read: {judged[name].why}"
    if name in CONTROLS:
        return "a control"
    if len(judged[name].values[MEASURES[0].name]) < FEWEST:
        return f"not judged below {FEWEST} images"
    shown = [m.title for m in MEASURES if all(_better(judged, m, name, control) for control in (RANDOM, EDGES))]
    if len(shown) == len(MEASURES):
        return "better by all measures"
    return f"better by {', '.join(shown)}" if shown else "not shown to be better"


def _better(judged: Mapping[str, _Judged], m: Measure, name: str, control: str) -> bool:
    gain = (judged[name].values[m.name] - judged[control].values[m.name]) * (1 if m.better == "higher" else -1)
    return bootstrap(gain).low > 0
