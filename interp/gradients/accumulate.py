"""Accumulated input gradients and attributions of robust and standard models, side by side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from interp.attacks.losses import LOSSES
from interp.attacks.pgd import PGD
from interp.attacks.sweep import labels_for
from interp.gradients import captum, sources
from interp.gradients.concentration import entropy, gini
from interp.gradients.fold import USES, fold
from interp.gradients.paths import BASELINES, RULES, Blur, baseline, nodes
from interp.gradients.spectrum import centroid, radial
from interp.models.chunks import in_chunks, tuned
from interp.models.engine import Engine, engine
from interp.models.model import Model, check_some, model_coords
from interp.result import Result, with_interval
from interp.stats import bootstrap
from interp.types import Batch, Images, InputError, Labels, pixels

SOURCES = ("steps", "noise", "path", "blur", "expected", "augment", "class")
PATHS = ("path", "blur", "expected")
TAKES: dict[str, tuple[str, ...]] = {  # the fields that a source heeds, besides precision, chunk and seed
    "steps": ("attack", "loss", "use"),
    "noise": ("n", "sigma", "loss", "use"),
    "path": ("n", "baseline", "rule", "loss", "use"),
    "blur": ("n", "rule", "loss", "use"),
    "expected": ("n", "loss", "use"),
    "augment": ("n", "loss", "use"),
    "class": ("loss", "use"),
}
ORDERED = ("steps", "path", "blur")  # where neighbouring draws are neighbouring points
UNITS = {
    "cosine": "cosine",
    "centroid": "cycles/pixel",
    "entropy": "share of log d",
    "gini": "Gini index",
    "completeness": "share",
}
LATER = {"later": True}


@dataclass(frozen=True)
class Accumulate:
    """What is accumulated.

    over: 'steps' (of `attack`), 'noise' (of width sigma), 'path' (straight, from a baseline), 'blur' (path through blurs),
    'expected' (paths from the batch's images), 'augment' (random views), 'class' (the images of each class); see `sources`.
    n: draws, for all but steps and class. loss: a name of attacks.LOSSES; none for what the source is known by: the attack's
    own for steps, 'logit' for paths, 'ce' for others. use: accumulate 'raw' gradients, their 'sign' or 'absolute' value.
    baseline, rule: of paths, see `paths`. method: 'captum:NAME' takes one of captum's methods in place of `over`.
    precision: float32 or float64. chunk: images (times draws) per pass, none for the fastest. attack.seed seeds all draws.
    """

    over: str = "steps"
    attack: PGD = PGD(8 / 255, steps=50)
    n: int = 50
    sigma: float = 0.1
    chunk: int | None = field(default=None, metadata={"cost": True})
    method: str = field(default="", metadata=LATER)
    loss: str | None = field(default=None, metadata=LATER)
    use: str = field(default="raw", metadata=LATER)
    baseline: str = field(default="grey", metadata=LATER)
    rule: str = field(default="gauss-legendre", metadata=LATER)
    precision: str = field(default="float32", metadata=LATER)

    def __post_init__(self) -> None:
        choices = {"over": SOURCES, "use": tuple(USES), "baseline": BASELINES, "rule": RULES, "precision": ("float32", "float64")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if self.loss is not None and self.loss not in LOSSES:
            raise InputError(f"loss is {self.loss!r}; expected one of {', '.join(LOSSES)}, or none for the source's own")
        if self.n < 1 or not self.sigma >= 0 or (self.chunk is not None and self.chunk < 1):
            raise InputError(
                f"n is {self.n}, sigma {self.sigma}, chunk {self.chunk}; expected n ≥ 1, sigma ≥ 0, chunk ≥ 1 or none"
            )
        if self.over in ("path", "blur"):
            nodes(self.rule, self.n)
        if self.over == "steps" and (self.attack.loss not in LOSSES or self.attack.restarts > 1 or self.attack.stop):
            raise InputError(f"the steps of an attack on labels are accumulated, without restarts or stop; found {self.attack}")
        if self.method:
            captum.method(self.method)
            if self.loss not in (None, "logit") or self.use != "raw":
                raise InputError(f"{self.method} explains the label's logit; leave the loss and its use out")

    @property
    def climbed(self) -> str:
        """The name of the loss whose gradient is taken; captum's methods explain the logit."""
        if self.method:
            return "logit"
        return self.loss or (self.attack.loss if self.over == "steps" else "logit" if self.over in PATHS else "ce")

    @property
    def takes(self) -> tuple[str, ...]:
        """The fields that the source, or the method in its place, heeds; others do nothing."""
        return captum.method(self.method).takes if self.method else TAKES[self.over]

    @property
    def draws(self) -> int:
        """Gradients per image, as far as the images do not decide it."""
        return self.attack.steps if self.over == "steps" else 1 if self.over == "class" else self.n


def accumulate(models: Sequence[Model], batch: Batch, params: Accumulate = Accumulate()) -> Result:
    """Fold the gradients of every image, in memory that does not grow with the draws.

    mean, absolute, variance (model, image, y, x, channel) of the gradients of the loss, weighted on paths by the rule.
    agreement: share of draws that agree in sign. attribution, for paths and captum's methods (which have it alone): what each
    pixel contributes to −loss, so that it sums to L(baseline) − L(x); for the loss 'logit', to the label's logit. size (model,
    image): root mean square of mean or, where there is none, attribution. spectrum (model, frequency): share of its energy.
    turns (model, draw): cosine with the draw before, where draws are in order.

    Measures (model), bootstrap intervals over images: cosine between neighbouring gradients, high where the loss is smooth;
    of the attribution, else the mean, centroid (`spectrum`), entropy and gini (`concentration`); for paths completeness, the
    error |Σ attribution − (L(baseline) − L(x))| / |L(baseline) − L(x)|. values_NAME (model, image): what they are made of.

    With over='class' an "image" is a class: its mean image, its images the draws. Raises InputError where images do not fit
    the models, have no labels to make classes of, or labels beyond the models' classes. Limit: one draw of noise of width 0 is
    the plain gradient.
    """
    started = time.perf_counter()
    check_some(models)
    for model in models:
        if int(batch.labels.max()) >= model.card.num_classes:
            raise InputError(
                f"a label is {int(batch.labels.max())}; expected −1 (unknown) to {model.card.num_classes - 1}, the classes of "
                f"{model.card.id}: give images of its classes"
            )
    if params.over == "expected" and not params.method and len(batch) < 2:
        raise InputError("expected gradients start from the batch's other images, and there are none; give at least two")
    shown = _classes(models[0], batch) if params.over == "class" and not params.method else batch
    what = params.method or f"gradients over {params.over}"
    found = [_one(model, batch, shown, params) for model in tqdm(models, desc=what, leave=False)]
    data = _dataset(models, shown, found).assign_attrs(takes=" ".join(params.takes), climbed=params.climbed)
    title = f"{params.method} attributions" if params.method else f"Input gradients accumulated over {params.over}"
    return Result.of("gradients", title, data, params=params, models=models, batch=batch, started=started)


def _classes(model: Model, batch: Batch) -> Batch:
    """One image per class, the mean of the batch's."""
    if bool((batch.labels < 0).any()):
        raise InputError("gradients over a class need labelled images; use folder: or parquet:, or another source")
    labels, counts = batch.labels.unique(return_counts=True)
    names = [batch.classes[c] if c < len(batch.classes) else model.card.label(c) for c in labels.tolist()]
    means = torch.stack([batch.images[batch.labels == c].mean(0) for c in labels])
    ids = tuple(f"{name} ({k} images)" for name, k in zip(names, counts.tolist(), strict=True))
    return Batch(means, labels, ids, batch.classes)


Run = Callable[[slice], dict[str, Tensor]]


def _one(model: Model, batch: Batch, shown: Batch, params: Accumulate) -> dict[str, np.ndarray]:
    """All of one model: arrays (image, …), `turns` (draw)."""
    model.check_images(batch.images.shape)
    run, at_once = (_attributing if params.method else _accumulating)(model, batch, shown, params)
    pieces = list(in_chunks(run, len(shown), at_once))
    found = {name: torch.cat([piece[name].cpu() for _, piece in pieces]) for name in pieces[0][1] if name != "turns"}
    measured = found["attribution"] if "attribution" in found else found["mean"]
    found |= {
        "centroid": centroid(measured),
        "entropy": entropy(measured),
        "gini": gini(measured),
        "spectrum": radial(measured)[1],
    }
    found["size"] = found.get("mean", measured).square().mean((1, 2, 3)).sqrt()
    if "turns" in pieces[0][1]:
        share = torch.tensor([rows.stop - rows.start for rows, _ in pieces]) / len(shown)
        found["turns"] = torch.stack([piece["turns"] for _, piece in pieces], 1) @ share
    return {name: pixels(v) if v.ndim == 4 else v.numpy() for name, v in found.items()}


def _attributing(model: Model, batch: Batch, shown: Batch, params: Accumulate) -> tuple[Run, int]:
    """What captum finds for a slice of the images, and the largest slice."""
    labels, chunk = labels_for(model, batch), params.chunk or sources.CHUNK
    like = model.mean.to(torch.float64 if params.precision == "float64" else torch.float32)

    def run(rows: slice) -> dict[str, Tensor]:
        x, y = batch.images[rows].to(like), labels[rows].to(like.device)
        return captum.attribute(model, x, y, params, references=batch.images, first=rows.start, chunk=chunk)

    return run, chunk


def _accumulating(model: Model, batch: Batch, shown: Batch, params: Accumulate) -> tuple[Run, int]:
    """The statistics of a slice of the images, or of one class, and the largest slice: even ones that fill a pass."""
    runner = engine(model, tuple(batch.images.shape), precision=params.precision, passes=len(batch) * params.draws)
    labels = labels_for(model, batch) if shown is batch else shown.labels
    chunk = params.chunk or _fastest(model, runner, batch.images, labels, params)
    at_once = -(-len(shown) // -(-len(shown) // chunk)) if shown is batch else 1

    def run(rows: slice) -> dict[str, Tensor]:
        x = batch.images[rows] if shown is batch else batch.images[batch.labels == labels[rows]]
        x, y = x.to(model.mean.device, runner.dtype), labels[rows].to(model.mean.device)
        return _folded(runner, x, y, params, references=batch.images, first=rows.start, chunk=chunk // at_once * len(y))

    return run, at_once


def _fastest(model: Model, runner: Engine, x: Images, y: Labels, params: Accumulate) -> int:
    """The number of images that take least time each in one pass."""
    n = len(x) * (1 if params.over == "steps" else params.draws)

    def step(part: Images) -> Tensor:
        return sources.gradient(runner.steps, part, y[:1].to(part.device).expand(len(part)), loss=params.climbed)

    return tuned(
        step,
        x[:1].to(model.mean.device, runner.dtype),
        n=n,
        passes=len(x) * params.draws,
        key=f"{model.card.arch} {model.card.arch_args}, {runner.words}",
    )


def _folded(
    runner: Engine, x: Images, y: Labels, params: Accumulate, *, references: Images, first: int, chunk: int
) -> dict[str, Tensor]:
    """The statistics of some images, or of the images of one class."""
    loss, model = params.climbed, runner.steps
    if params.over == "steps":
        stream = sources.over_steps(model, x, y, dataclasses.replace(params.attack, loss=loss), first=first)
    else:
        stream = sources.blocks(model, _draws(params, x, references, first), y, loss=loss, chunk=chunk)
    folded = fold(stream, use=params.use)
    running = folded.running
    found = {name: getattr(running, name) for name in ("mean", "absolute", "variance")}
    found |= {"agreement": running.agreement.mean(1), "cosine": folded.cosine}
    if params.over in ORDERED:
        found["turns"] = torch.tensor(folded.turns)
    if folded.attribution is not None:
        found["attribution"] = -folded.attribution
        found["completeness"] = completeness(found["attribution"], _fall(runner, x, y, params, references))
    return found


def _draws(params: Accumulate, x: Images, references: Images, first: int) -> Iterator[sources.Draw]:
    n, seed = params.n, params.attack.seed
    kinds: dict[str, Callable[[], Iterator[sources.Draw]]] = {
        "noise": lambda: sources.noisy(x, n=n, sigma=params.sigma, seed=seed, first=first),
        "path": lambda: sources.along(x, n=n, baseline=baseline(params.baseline, x, among=references), rule=params.rule),
        "blur": lambda: sources.through_blurs(x, n=n, rule=params.rule),
        "expected": lambda: sources.from_references(x, references=references, n=n, seed=seed, first=first),
        "augment": lambda: sources.augmented(x, n=n, seed=seed, first=first),
        "class": lambda: sources.of_class(x),
    }
    return kinds[params.over]()


def _fall(runner: Engine, x: Images, y: Labels, params: Accumulate, references: Images) -> Tensor:
    """L(baseline) − L(x) per image (n,); over references, their mean in place of the baseline."""
    loss_of = LOSSES[params.climbed]
    with torch.no_grad():
        here = loss_of(runner.reader(x), y)
        if params.over != "expected":
            begin = Blur(x).at(0.0)[0] if params.over == "blur" else baseline(params.baseline, x, among=references)
            return loss_of(runner.reader(begin), y) - here
        readings = in_chunks(lambda rows: runner.reader(references[rows].to(x)), len(references), sources.CHUNK)
        logits = torch.cat([logits for _, logits in readings])
        return torch.stack([loss_of(logits, label.expand(len(logits))).mean() for label in y]) - here


def completeness(attribution: Tensor, fall: Tensor) -> Tensor:
    """How far attributions (n, …) are from summing to what they explain (n,), as a share of it."""
    return (attribution.flatten(1).sum(1) - fall).abs() / fall.abs().clamp_min(torch.finfo(fall.dtype).tiny)


def _dataset(models: Sequence[Model], shown: Batch, found: list[dict[str, np.ndarray]]) -> xr.Dataset:
    """Arrays of all models with their names, and the measures made of them."""
    n, frequency = len(shown), radial(shown.images[:1])[0].numpy()
    picture = ("model", "image", "y", "x", "channel")
    data = xr.Dataset(coords=model_coords(models) | {"image": list(shown.ids), "frequency": frequency})
    for name in found[0]:
        block = np.stack([f[name] for f in found])
        if name in UNITS:
            intervals = [bootstrap(v) for v in block]
            data = data.assign(with_interval(name, ("model",), intervals, (len(models),), unit=UNITS[name], better="none", n=n))
            data[f"values_{name}"] = (("model", "image"), block)
        elif name == "spectrum":
            data[name] = (("model", "frequency"), torch.from_numpy(block).nanmean(1).numpy())
        else:
            data[name] = (("model", "draw") if name == "turns" else picture[: block.ndim], block)
    data["original"] = (("image", "y", "x", "channel"), pixels(shown.images))
    data["truth"] = ("image", shown.labels.numpy())
    return data
