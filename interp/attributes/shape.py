"""Shape or texture: which of the two a model's decisions rest on, for any checkpoint.

1. Labelled images with one kind of information taken out (interp.data.transforms): patches shuffled (texture stays, the outline
   goes; Zhang & Zhu, arXiv 1905.09797), low and high bands (Yin et al., arXiv 1906.08988), edges and silhouettes (Geirhos et al.,
   arXiv 1811.12231, Fig. 2). `decisions` → `right` (0 or 1 per image) → `kept`, `curve`, `cutoff`:

       kept = right on the changed image, over the images that are right unchanged;  its mean is P(right changed | right)
       cutoff = frequency f at which accuracy(images low-passed at f) = accuracy(images) / 2, linear between the cutoffs

2. Cue conflicts of the model's own classes (folders of shapeN-textureM.png), `cue_conflict`:

       shape bias = shape decisions / (shape + texture decisions)            arXiv 1811.12231, Fig. 4

3. Drawn cue conflicts, whatever the model's classes, `drawn_cues`: a linear read-out of the last linear layer's input learns 8
   classes of which shape and texture say the same, and then sees stimuli in which they disagree. After Hermann et al.,
   arXiv 1911.09071, who decode shape and texture from features one at a time; here both are there to be used, and it counts
   which one is. It also reads silhouettes, of which no texture is left: those of images need masks, and drawn shapes are no
   classes of most models. Another drawing of the stimuli (seed) moved it by up to 0.05: compare models on one seed.

None is better higher or lower. Controls: with labels of other images (`control`) 1 is at chance; a model that does not see its
input has shape bias ½; a randomised network (`interp.models.randomise.fully_randomised`) goes through 3 as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from interp.attacks.features import cut
from interp.data.conflicts import CLASSES16, IMAGENET16, Conflict
from interp.data.outlines import SHAPES
from interp.data.synthetic import cue_conflicts
from interp.data.transforms import band_limited, edges, patch_shuffle, silhouettes
from interp.models.load import check_labels
from interp.models.model import Model
from interp.result import Measure
from interp.stats import wilson
from interp.types import Batch, Card, Images, InputError, Labels

GRIDS = (2, 4)  # patches a side
CYCLES = (0.5, 1.5, 2.5, 4.5, 7.5, 12.5, 24.5, 48.5, 96.5)  # per picture: halves, so that no frequency lies on a limit
SET = 56  # drawn stimuli at a time: each pair of a shape and another texture once
LEVEL = 0.2  # chance-corrected accuracy that a read-out's interval has to clear on consistent stimuli
SYNONYMS = {"automobile": "car", "ship": "boat"}  # CIFAR-10's names for two of the 16 classes

_KEPT = "share of the images that are right unchanged and stay so "
_DRAWN = "read-out of the last linear layer's input, "
MEASURES = (
    Measure(
        "shuffled_2", "kept, 2×2 patches shuffled", _KEPT + "when 2×2 patches change places", "arXiv 1905.09797", "share", "none"
    ),
    Measure(
        "shuffled_4", "kept, 4×4 patches shuffled", _KEPT + "when 4×4 patches change places", "arXiv 1905.09797", "share", "none"
    ),
    Measure("low_pass", "kept, low-passed", _KEPT + "under low-pass, mean over cutoffs", "arXiv 1906.08988", "share", "none"),
    Measure("high_pass", "kept, high-passed", _KEPT + "under high-pass, mean over cutoffs", "arXiv 1906.08988", "share", "none"),
    Measure("edges", "kept as edge drawing", _KEPT + "as thin contours", "arXiv 1811.12231, Fig. 2", "share", "none"),
    Measure("silhouettes", "kept as silhouette", _KEPT + "black on white", "arXiv 1811.12231, Fig. 2", "share", "none"),
    Measure(
        "cutoff",
        "low-pass that halves accuracy",
        "frequency f at which accuracy below f is half the accuracy",
        "arXiv 1906.08988",
        "cycles/pixel",
        "none",
    ),
    Measure(
        "shape_bias",
        "shape bias, cue conflicts",
        "shape decisions / (shape + texture decisions)",
        "arXiv 1811.12231, Fig. 4",
        "share",
        "none",
    ),
    Measure(
        "cue_bias",
        "shape bias, drawn conflicts",
        _DRAWN + "learnt where shape and texture agree: shape / (shape + texture) decisions where they do not",
        "after arXiv 1911.09071",
        "share",
        "none",
    ),
    Measure(
        "cue_decided",
        "drawn conflicts decided",
        _DRAWN + "share of conflicts read as their shape or their texture; chance 2/8",
        "after arXiv 1911.09071",
        "share",
        "none",
    ),
    Measure(
        "cue_consistent",
        "consistent stimuli read",
        _DRAWN + "held-out accuracy where shape and texture agree, (accuracy − 1/8) / (1 − 1/8)",
        "after arXiv 1911.09071",
        "share",
        "none",
    ),
    Measure(
        "cue_silhouette",
        "silhouettes of drawn shapes read",
        _DRAWN + "accuracy on the shapes alone, black on white, (accuracy − 1/8) / (1 − 1/8)",
        "after arXiv 1911.09071; 1811.12231, Fig. 2",
        "share",
        "none",
    ),
)


def ladder(size: int) -> tuple[float, ...]:
    """Cutoffs in cycles/pixel for pictures of that many pixels a side: ½ cycle per picture, below which is the mean, and up."""
    return tuple(c / size for c in CYCLES if c < size / 2)


def views(batch: Batch, *, seed: int = 0) -> Iterator[tuple[str, Images]]:
    """Yield name and images of each view, one at a time: clean, shuffled_GRID, low_k and high_k by the ladder's k, edges.

    low_0 is the mean colour, and there is no high_0; silhouettes follow where the batch has masks. Raises InputError where the
    sides are no multiples of the grids.
    """
    x = batch.images
    yield "clean", x
    for grid in GRIDS:
        yield f"shuffled_{grid}", patch_shuffle(x, grid, seed)
    for k, cutoff in enumerate(ladder(x.shape[-1])):
        yield f"low_{k}", band_limited(x, high=cutoff)
        if k > 0:  # all is above the first
            yield f"high_{k}", band_limited(x, low=cutoff)
    yield "edges", edges(batch).images
    if batch.masks is not None:
        yield "silhouettes", silhouettes(batch).images


def decisions(model: Model, batch: Batch, *, seed: int = 0, chunk: int = 64) -> dict[str, np.ndarray]:
    """The model's first choice, an index of a class, for each view of each image: view → (n,) int64.

    A silhouette of an empty or a full mask shows nothing: −1. One view is held in memory at a time. Raises InputError for
    unlabelled images and for images of other classes or another size than the model's.
    """
    if bool((batch.labels < 0).any()):
        raise InputError("shape and texture need labelled images; a single image file has no label: use folder: or parquet:")
    check_labels(model.card, batch)
    model.check_images(batch.images.shape)
    found = {name: model.read(x, chunk=chunk).argmax(1).numpy() for name, x in views(batch, seed=seed)}
    if batch.masks is not None:
        area = batch.masks.flatten(1).float().mean(1).numpy()
        found["silhouettes"] = np.where((area > 0) & (area < 1), found["silhouettes"], -1)
    return found


def right(decided: dict[str, np.ndarray], labels: Labels) -> dict[str, np.ndarray]:
    """Whether each decision is the label: view → (n,) float64, 0 or 1; NaN where nothing was to be seen."""
    return {name: np.where(v < 0, np.nan, v == labels.numpy()) for name, v in decided.items()}


def control(decided: dict[str, np.ndarray], labels: Labels) -> dict[str, np.ndarray]:
    """As `right`, but each decision on a changed image is held against the label of an image drawn at random, in expectation.

    That is the share of the images whose label it is; clean ones are held against their own. What `kept` gives for these is
    chance: for balanced labels exactly 1 / classes, whatever the model.
    """
    rows = right(decided, labels)
    share = torch.bincount(labels, minlength=1 + max(int(v.max()) for v in decided.values())).numpy() / len(labels)
    return {name: row if name == "clean" else np.where(np.isnan(row), np.nan, share[decided[name]]) for name, row in rows.items()}


def kept(rights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of `MEASURES` per image, from `right`: 1 where the decision stays right, 0 where it does not, NaN where it was wrong.

    low_pass and high_pass are shares of the ladder's cutoffs. The mean of a row is accuracy on the changed images relative to
    the clean one, counted on the images that are right at first. Limit: 1 for a transform that the model does not see.
    """
    was_right = rights["clean"] == 1
    rows = {name: rights[name] for name in (*(f"shuffled_{g}" for g in GRIDS), "edges", "silhouettes") if name in rights}
    rows |= {f"{band}_pass": _band(rights, band).mean(0) for band in ("low", "high")}
    return {name: np.where(was_right, row, np.nan) for name, row in rows.items()}


def curve(rights: dict[str, np.ndarray], band: str) -> np.ndarray:
    """Accuracy at the ladder's cutoffs (band "high": from the second) with Wilson's interval, (cutoffs, 3): mean, low, high."""
    return np.array([wilson(int(v.sum()), len(v)) for v in _band(rights, band)])


def _band(rights: dict[str, np.ndarray], band: str) -> np.ndarray:
    """The rows (cutoffs, n) of the low or the high band, by rising cutoff."""
    return np.stack([row for name, row in rights.items() if name.startswith(f"{band}_")])


def half(low: np.ndarray, clean: np.ndarray, cutoffs: tuple[float, ...], *, chance: float) -> np.ndarray:
    """Frequency (…) below which a low-pass leaves less than half of the clean accuracy, linear between the cutoffs.

    low (cutoffs, …): accuracy at each; clean (…), reached at √½, where nothing is taken out. Where the curve crosses more than
    once the highest crossing counts. The lowest cutoff stands for all below it. NaN where half the clean accuracy is no more
    than chance, which a model gets from a blank image.
    """
    f = np.array([*cutoffs, math.sqrt(0.5)])
    curves, target = np.concatenate([low, clean[None]]), clean / 2
    below = curves < target
    j = len(f) - 2 - np.argmax(below[-2::-1], 0)  # the last cutoff below; the end never is
    a, b = (np.take_along_axis(curves, at[None], 0)[0] for at in (j, j + 1))
    crosses = below.any(0)
    frequency = f[j] + (target - a) / np.where(crosses, b - a, 1.0) * (f[j + 1] - f[j])
    return np.where(target > chance, np.where(crosses, frequency, f[0]), np.nan)


def cutoff(rights: dict[str, np.ndarray], cutoffs: tuple[float, ...], *, chance: float) -> np.ndarray:
    """`half` on all images, one value per image (n,): their mean is that frequency, of each image its influence on it.

    The frequency is no mean over images, but a smooth function of three accuracies, the two that it lies between and the clean
    one: to first order a mean of these values (the infinitesimal jackknife, Efron 1982, chapter 6), which are bootstrapped and
    compared as those of other measures are. NaN for all where undefined, and all the same where no cutoff halves the accuracy.
    """
    low, clean = _band(rights, "low"), rights["clean"]
    means, target = low.mean(1), clean.mean() / 2
    found = float(half(means, clean.mean(), cutoffs, chance=chance))
    below = np.flatnonzero(means < target)
    if math.isnan(found) or not len(below):
        return np.full(len(clean), found)
    f, curves, j = (*cutoffs, math.sqrt(0.5)), np.concatenate([low, clean[None]]), below[-1]
    a, b = curves[j].mean(), curves[j + 1].mean()
    moved_a, moved_b, moved = (v - v.mean() for v in (curves[j], curves[j + 1], clean / 2))
    return np.asarray(
        found + (f[j + 1] - f[j]) * ((b - a) * moved - (b - target) * moved_a - (target - a) * moved_b) / (b - a) ** 2
    )


def cue_classes(card: Card, cues: tuple[str, ...]) -> Tensor:
    """For each of a model's classes the index of the cue class it counts as, −1 for none: (classes,) int64.

    ImageNet's 1000 classes go to the 16 as their authors publish it; others by name, where automobile is a car and a ship a
    boat. Raises InputError where the model has fewer than two of the cue classes.
    """
    found = torch.full((card.num_classes,), -1)
    if card.num_classes == 1000 and cues == CLASSES16:
        for cue, indices in IMAGENET16.items():
            found[list(indices)] = cues.index(cue)
    for k, label in enumerate(card.labels if card.num_classes != 1000 else ()):
        name = label if label in cues else SYNONYMS.get(label, label)
        found[k] = cues.index(name) if name in cues else -1
    if len(found[found >= 0].unique()) < 2:
        raise InputError(
            f"model {card.id} has fewer than two of the classes {', '.join(cues[:6])}…; expected a model of ImageNet's 1000 "
            f"classes or one whose card names such classes, or use the drawn conflicts"
        )
    return found


def shape_bias(logits: Tensor, shape_labels: Labels, texture_labels: Labels, class_map: Tensor) -> Tensor:
    """Per image (n,) 1 for a decision for its shape, 0 for its texture, NaN for neither; the mean is the shape bias.

    arXiv 1811.12231, Fig. 4: the decision is the cue class with the largest mean probability over the model's classes under it
    (arXiv 1808.08750, appendix), among those that the model has. logits (n, classes); labels index the cue classes, class_map
    (classes,) says the cue class of each of the model's, −1 for none. Also NaN where shape and texture are one class, or the
    model lacks one of them. Limit: ½ on average for decisions that do not depend on the image.
    """
    known = class_map >= 0
    count = int(torch.stack([class_map.max(), shape_labels.max(), texture_labels.max()]).max()) + 1
    sizes = torch.bincount(class_map[known], minlength=count)
    scores = torch.zeros(len(logits), count, dtype=torch.float64)
    scores.index_add_(1, class_map[known], logits.double().softmax(1)[:, known])
    choice = scores.div(sizes).nan_to_num(-1.0).argmax(1)
    posed = (shape_labels != texture_labels) & (sizes[shape_labels] > 0) & (sizes[texture_labels] > 0)
    for_shape, for_texture = choice == shape_labels, choice == texture_labels
    return torch.where(posed & (for_shape | for_texture), for_shape.double(), torch.nan)


def cue_conflict(model: Model, conflict: Conflict, *, chunk: int = 64) -> dict[str, np.ndarray]:
    """Shape bias of a model's own decisions on stimuli of its classes, as read by `cue_conflict_folder`: row → (n,).

    Raises InputError where shapes and textures are named by different lists of classes, and as `cue_classes`.
    """
    cues = conflict.batch.classes
    if cues != conflict.texture_classes:
        raise InputError(
            f"shapes are {', '.join(cues[:3])}… and textures {', '.join(conflict.texture_classes[:3])}…; expected one list of "
            f"classes for both, as cue_conflict_folder gives; drawn stimuli are read by drawn_cues"
        )
    model.check_images(conflict.batch.images.shape)
    mapped = cue_classes(model.card, cues)
    bias = shape_bias(model.read(conflict.batch.images, chunk=chunk), conflict.batch.labels, conflict.textures, mapped)
    return {"shape_bias": bias.numpy()}


def drawn_cues(
    model: Model, *, seed: int = 0, chunk: int = 64, train: int = 7, test: int = 4, level: float = LEVEL
) -> dict[str, np.ndarray]:
    """Which of two cues that agreed in training a linear read-out of the model's features follows where they disagree.

    Logistic regression (L2, C = 1) on the standardised input of the last linear layer, trained on `train` sets of 56 stimuli in
    which shape k is filled by texture k. Rows over the `test` · 56 stimuli, the same for every model of one size: cue_consistent,
    on held-out consistent stimuli, (right − 1/8) / (1 − 1/8); cue_decided, on conflicts, 1 for a decision for either cue;
    cue_bias, of these 1 for shape and 0 for texture, else NaN; cue_silhouette, on the held-out shapes in black on white, as
    cue_consistent. All of cue_bias and cue_silhouette is NaN where `unread` says why. Raises InputError for less than one set and
    for a model without linear layers. Limit: bias tends to ½ as cue_decided falls to its chance, 2/8.
    """
    from sklearn.linear_model import LogisticRegression  # only here: every command would wait for it to be imported
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if train < 1 or test < 1:
        raise InputError(f"{train} sets to train on and {test} to test on were asked for; expected at least one each")
    features, shapes, _ = _read(model, range(train), seed=seed, chunk=chunk, agree=True)
    readout = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(features, shapes)
    features, shapes, _ = _read(model, range(train, train + test), seed=seed, chunk=chunk, agree=True)
    consistent = readout.predict(features) == shapes
    features, shapes, _ = _read(model, range(train, train + test), seed=seed, chunk=chunk, agree=True, silhouette=True)
    alone = readout.predict(features) == shapes
    features, shapes, textures = _read(model, range(train + test, train + 2 * test), seed=seed, chunk=chunk, agree=False)
    choice = readout.predict(features)
    for_shape, decided = choice == shapes, (choice == shapes) | (choice == textures)
    chance = 1 / len(SHAPES)
    read, dark = ((hits - chance) / (1 - chance) for hits in (consistent, alone))
    counts = unread(read, level=level) == ""
    bias, dark = np.where(decided & counts, for_shape, np.nan), np.where(counts, dark, np.nan)
    return {"cue_bias": bias, "cue_decided": decided.astype(np.float64), "cue_consistent": read, "cue_silhouette": dark}


def unread(consistent: np.ndarray, *, level: float = LEVEL) -> str:
    """Why the bias of a read-out is not defined, from `drawn_cues`' row cue_consistent; '' where it is.

    A read-out counts that reads consistent stimuli with a chance-corrected accuracy whose Wilson interval lies above `level`.
    """
    chance = 1 / len(SHAPES)
    mean, low, high = ((v - chance) / (1 - chance) for v in wilson(int((consistent > 0).sum()), len(consistent)))
    if low > level:
        return ""
    return (
        f"the read-out reads {mean:.2f} ({low:.2f} to {high:.2f}, chance-corrected) of {len(consistent)} stimuli whose shape and "
        f"texture agree; expected an interval above {level:g}"
    )


def _read(
    model: Model, sets: range, *, seed: int, chunk: int, agree: bool, silhouette: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, d), shapes (n,) and textures (n,) of sets of drawn stimuli, of which one is in memory at a time."""
    read = []
    with torch.no_grad(), cut(model, "") as cutting:
        for k in sets:
            drawn = cue_conflicts(SET, model.card.preprocess.size, 1000 * seed + k, agree=agree)
            shown = silhouettes(drawn.batch) if silhouette else drawn.batch
            features = torch.cat([cutting(x.to(model.mean)).double().cpu() for x in shown.images.split(chunk)])
            read.append((features.numpy(), drawn.batch.labels.numpy(), drawn.textures.numpy()))
    seen, shapes, textures = (np.concatenate(column) for column in zip(*read, strict=True))
    return seen, shapes, textures
