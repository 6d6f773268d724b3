"""Which semantic attributes a perturbation writes and erases, as linear probes of other models read them.

An attribute is a property of classes ("wheels", "fur"), so that an image has those of its class. A probe is a logistic
regression on the standardised input of a judge's last linear layer (linear probes: Alain & Bengio, arXiv 1610.01644; class-level
attributes: Lampert et al. 2009). Images are dealt into folds, and a probe reads only images of the fold that it was not fitted
on, and pictures made from these. Its logit is divided by

    mean over images that have the attribute − mean over images that have it not        (held-out readings)

so that a change of 1 is the difference between real images with and without the attribute. For a picture moved from class a
toward b, with gains G = attributes of b that a lacks, losses L = attributes of a that b lacks, and c the changes of logits,

    written = ½ · (mean of c over G − mean of c over L), and where G or L is empty the other alone.

Controls: uniform noise in place of the perturbation (give `moved` such pictures), and `Moved.shuffled`, what the same pictures
score for a third class. Neither need be 0: a picture that leaves class a loses a's attributes, whatever it moves to. What
`written` has more than `shuffled` is written for the goal. Limits: attributes are known by class only, so a probe may read
whatever else these classes share, and an attribute of one class is that class's name. An attribute that a judge cannot read is
left out for that judge, and named. Where a table leaves open whether a class has an attribute, images of the class take no part
in its probe, and pictures from or toward the class are not read for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.attacks.features import cut
from interp.data.attributes import Table
from interp.models.chunks import in_chunks
from interp.models.each import each
from interp.models.model import Model
from interp.result import Measure
from interp.stats import Interval, bootstrap, holm, paired, wilson
from interp.types import Images, InputError, Labels

LEVEL = 0.05  # of corrected p-values
FEWEST = 20  # images on which a difference is judged
FATES = ("appear", "vanish", "stay")
"""What should become of an attribute between two classes."""

MEASURES = (
    Measure(
        "written",
        "attributes written",
        "½ · (mean change of the probes of attributes gained − of those lost); 1 is as far as real images differ",
        "linear probes, arXiv 1610.01644; class-level attributes, Lampert et al. 2009",
        "between-class difference",
        "higher",
    ),
    Measure(
        "written_goal",
        "written for the goal",
        "attributes written for the goal, less those for a third class from the same pictures",
        "linear probes, arXiv 1610.01644; class-level attributes, Lampert et al. 2009",
        "between-class difference",
        "higher",
    ),
    Measure(
        "precision",
        "flipped attributes that were due",
        "of the attributes read rightly before that flipped, the share in which the classes differ",
        "linear probes, arXiv 1610.01644",
        "share",
        "higher",
    ),
    Measure(
        "recall",
        "due attributes that flipped",
        "of the attributes read rightly before in which the classes differ, the share that flipped",
        "linear probes, arXiv 1610.01644",
        "share",
        "higher",
    ),
)

_PENALTY = 0.01  # C of the regression; of 1, 0.1, 0.01 and 0.001 the best mean accuracy, shipped models, 500 images


@dataclass(frozen=True, eq=False)
class Probes:
    """One judge's probes of every attribute, fitted in folds over n images.

    has, known (attributes, classes) bool: see `interp.data.attributes.Table`. fold (n,): the fold each image was left out with.
    weights (folds, attributes, features) and offsets (folds, attributes): logit of a picture's features, in units of the
    between-class difference. logits (n, attributes): of the images themselves, held out. accuracy: held-out balanced accuracy of
    each attribute with its 95 % interval. Where that does not clear the threshold (`left_out`), weights, offsets and logits are
    NaN.
    """

    judge: Model
    names: tuple[str, ...]
    has: Tensor
    known: Tensor
    labels: Labels
    fold: Tensor
    weights: Tensor
    offsets: Tensor
    logits: Tensor
    accuracy: tuple[Interval, ...]
    threshold: float

    @property
    def left_out(self) -> tuple[str, ...]:
        """Attributes that the judge's features do not show clearly enough."""
        return tuple(name for name, at in zip(self.names, self.accuracy, strict=True) if not at.low > self.threshold)

    @property
    def why(self) -> str:
        """Why nothing can be read in pictures by this judge; '' where something can."""
        if len(self.left_out) < len(self.names):
            return ""
        best = max((at.low for at in self.accuracy if not math.isnan(at.mean)), default=math.nan)
        least = f"lower ends of balanced accuracies reach {best:.2f} and must exceed {self.threshold:g}"
        return f"{self.judge.card.id} reads none of {len(self.names)} attributes: {least}"


@dataclass(frozen=True, eq=False)
class Moved:
    """What perturbations did to attributes, as a mean over judges.

    written, precision, recall (n,): per picture, NaN where undefined, as for classes the table says nothing of. shuffled (n,):
    `written` for a goal drawn from the other classes, the control. change (n, attributes): of each probe, NaN where no judge
    reads the attribute. by_fate (attributes, fates, 3): mean change of the pictures in which the attribute should appear, vanish
    or stay, with the ends of its 95 % interval, a bootstrap over images. counts (attributes, fates): of the images behind it.
    """

    names: tuple[str, ...]
    written: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    shuffled: np.ndarray
    change: np.ndarray
    by_fate: np.ndarray
    counts: np.ndarray


def fit(
    judge: Model,
    images: Images,
    labels: Labels,
    attributes: Table,
    *,
    seed: int = 0,
    chunk: int = 64,
    folds: int = 5,
    threshold: float = 0.6,
) -> Probes:
    """Fit a judge's probes on images (n, 3, h, w) with labels (n,); attributes as `interp.data.attributes.attributes` gives them.

    folds: images of each class are dealt out in turn, by the seed. threshold: what the lower end of an attribute's balanced
    accuracy must exceed. Raises InputError for fewer than two folds, labels outside the table, or a judge without a linear layer.
    """
    names, has, known = attributes
    _check(images, labels, has, folds)
    features = _features(judge, images, chunk)
    fold = _dealt(labels, folds, seed)
    truth, sure = has[:, labels].T, known[:, labels].T
    weights = torch.full((folds, len(names), features.shape[1]), math.nan, dtype=torch.float64)
    offsets = torch.full((folds, len(names)), math.nan, dtype=torch.float64)
    for k in range(folds):
        same: dict[bytes, tuple[Tensor, Tensor]] = {}  # attributes that say the same of these images are fitted once
        for a in range(len(names)):
            seen, of = (fold != k) & sure[:, a], truth[:, a] & sure[:, a]
            if 0 < int((of & seen).sum()) < int(seen.sum()):
                key = torch.stack([seen, of & seen]).numpy().tobytes()
                if key not in same:
                    same[key] = _regression(features[seen], of[seen])
                weights[k, a], offsets[k, a] = same[key]
    logits = _read(features, fold, weights, offsets)
    read = [(logits[sure[:, a], a], truth[sure[:, a], a]) for a in range(len(names))]
    accuracy = tuple(balanced(*of) for of in read)
    unit = torch.stack([v[has_it].mean() - v[~has_it].mean() for v, has_it in read])
    unit[torch.tensor([not at.low > threshold for at in accuracy])] = math.nan
    return Probes(
        judge, names, has, known, labels, fold, weights / unit[:, None], offsets / unit, logits / unit, accuracy, threshold
    )  # fmt: skip


def moved(
    probes: Sequence[Probes],
    pictures: Images,
    goals: Labels,
    *,
    rows: Sequence[int] | Tensor | None = None,
    seed: int = 0,
    chunk: int = 64,
    shown: Sequence[Tensor] | None = None,
) -> Moved:
    """What pictures (m, 3, h, w), made from the probes' images toward classes goals (m,), gained and lost.

    probes: of one or more judges, fitted on the same images; means are over them. rows (m,): from which image each picture was
    made; None, one from each in order. seed: draws the goals of the control. shown: what `features_of` says of the pictures,
    where it is known already. Raises InputError where shapes do not fit.
    Limit: the images themselves as pictures give changes of 0.
    """
    first = probes[0]
    at = torch.arange(len(first.labels)) if rows is None else torch.as_tensor(rows)
    _check_pictures(probes, pictures, goals, at)
    start, other = first.labels[at], _third(first, at, goals, seed)
    had, will, sure = first.has[:, start].T, first.has[:, goals].T, _both(first.known, start, goals)
    changes, scores = [], []
    for p, features in zip(probes, features_of(probes, pictures, chunk=chunk) if shown is None else shown, strict=True):
        before = p.logits[at]  # NaN where the judge does not read the attribute
        after = _read(features, p.fold[at], p.weights, p.offsets)
        changes.append(after - before)
        scores.append(torch.stack(flips(before.where(sure, math.nan), after, had, will)))
    every = torch.stack(changes).nanmean(0)
    change, aside = (every.where(both, math.nan) for both in (sure, _both(first.known, start, other)))
    precision, recall = torch.stack(scores).nanmean(0)
    return Moved(
        first.names, written(change, had, will).numpy(), precision.numpy(), recall.numpy(),
        written(aside, had, first.has[:, other].T).numpy(), change.numpy(), *by_fate(change, had, will, at),
    )  # fmt: skip


def features_of(probes: Sequence[Probes], pictures: Images, *, chunk: int = 64) -> list[Tensor]:
    """What the judge of each of the probes makes of pictures (m, 3, h, w), before it decides."""
    return each(lambda judge: _features(judge, pictures, chunk), [p.judge for p in probes])


def why(probes: Sequence[Probes], goals: Labels, *, rows: Sequence[int] | Tensor | None = None) -> str:
    """Why `moved` reads nothing in pictures toward classes goals; '' where it reads something. Arguments as there."""
    if not probes:
        return "there is no other model to read the pictures"
    if all(p.why for p in probes):
        return "; ".join(p.why for p in probes)
    first = probes[0]
    start = first.labels if rows is None else first.labels[torch.as_tensor(rows)]
    if not bool(_both(first.known, start, goals).any()):
        return f"the table of attributes lacks a class of each of the {len(goals)} pictures, the image's own or the goal"
    return ""


def _both(known: Tensor, start: Labels, end: Labels) -> Tensor:
    """Of which pictures (n, attributes) the table says whether both classes have an attribute."""
    return (known[:, start] & known[:, end]).T


def _third(probes: Probes, at: Tensor, goals: Labels, seed: int) -> Labels:
    """For pictures of images `at`, classes that are neither the image's nor the goal, drawn evenly, one draw for an image however
    the pictures come; the image's own where there are only two. Classes of which the table says nothing are no choice."""
    start, rows = probes.labels[at], probes.known.any(0)
    classes = rows.nonzero()[:, 0]
    if len(classes) < 3:
        return start
    place = rows.long().cumsum(0) - 1
    drawn = torch.randint(len(classes) - 2, probes.labels.shape, generator=torch.Generator().manual_seed(seed))[at]
    for taken in (torch.minimum(place[start], place[goals]), torch.maximum(place[start], place[goals])):
        drawn += drawn >= taken
    return torch.where(rows[start] & rows[goals], classes[drawn.clamp(max=len(classes) - 1)], start)


def written(change: Tensor, had: Tensor, will: Tensor) -> Tensor:
    """How far each picture (n,) moved as it should, from changes (n, attributes) and what it had and is to have, bool alike.

    Formula above. Attributes of which the change is NaN do not count; NaN where none is left. Limit: a change of 1 in all gains
    and −1 in all losses gives 1, the contrary −1, whatever the others do.
    """
    gained = torch.where(will & ~had, change, math.nan).nanmean(1)
    lost = torch.where(had & ~will, -change, math.nan).nanmean(1)
    return torch.stack([gained, lost]).nanmean(0)


def flips(before: Tensor, after: Tensor, had: Tensor, will: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and recall (n,) of the flipped attributes, from logits (n, attributes) before and after.

    Only attributes that were read rightly before (logit above 0 where had) take part: a misread one can but flip to its right
    value. precision: of those that flipped, the share in which had and will differ; recall: of those in which they differ, the
    share that flipped. NaN where there are none. Limit: with the same logits before and after, precision is NaN and recall 0.
    """
    right = ((before > 0) == had) & ~before.isnan()
    flipped = right & ((after > 0) != had)
    should = right & (will != had)
    hits = (flipped & should).sum(1).double()
    return hits / flipped.sum(1), hits / should.sum(1)  # 0 / 0 is NaN


def balanced(logits: Tensor, truth: Tensor) -> Interval:
    """Balanced accuracy of the signs of logits (n,), the mean of both classes' rates, with its 95 % interval.

    Both rates have Wilson's interval; the two are joined by squaring and adding their distances from the rates (Newcombe 1998,
    method 10; Zou & Donner 2008). (nan, 0, 1) where a class is missing. Limit: ½ for a constant answer.
    """
    if bool(truth.all()) or not bool(truth.any()) or bool(logits.isnan().any()):
        return Interval(math.nan, 0.0, 1.0)
    rates = [wilson(int(hit.sum()), len(hit)) for hit in (logits[truth] > 0, logits[~truth] <= 0)]
    mean = sum(r.mean for r in rates) / 2
    below, above = (math.hypot(*(r.mean - getattr(r, end) for r in rates)) / 2 for end in ("low", "high"))
    return Interval(mean, max(0.0, mean - below), min(1.0, mean + above))


def _features(judge: Model, images: Images, chunk: int) -> Tensor:
    """Input (n, features) float64 of the judge's last linear layer."""
    with cut(judge, "") as net, torch.no_grad():
        pieces = in_chunks(lambda rows: net(images[rows].to(judge.mean)).cpu(), len(images), chunk)
        return torch.cat([found for _, found in pieces]).double()


def _dealt(labels: Labels, folds: int, seed: int) -> Tensor:
    """Folds (n,): a random order, in which the images of each class, one class after another, are dealt out in turn."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(labels)) % folds
    return fold


def _regression(features: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (features,) and offset of a logistic regression, as they apply to features that are not standardised."""
    from sklearn.linear_model import LogisticRegression  # only here: every command would wait for it to be imported

    mean, spread = features.mean(0), features.std(0)
    spread[spread < 1e-12] = 1  # a dead channel says nothing
    model = LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=1000)
    model.fit(((features - mean) / spread).numpy(), truth.numpy())
    weights = torch.from_numpy(model.coef_[0]) / spread
    return weights, torch.from_numpy(model.intercept_)[0] - weights @ mean


def _read(features: Tensor, fold: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Logits (n, attributes) of features (n, d), each picture read by the probes of its fold."""
    logits = torch.empty(len(features), weights.shape[1], dtype=torch.float64)
    for k in range(len(weights)):
        logits[fold == k] = features[fold == k] @ weights[k].T + offsets[k]
    return logits


def by_fate(change: Tensor, had: Tensor, will: Tensor, rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean changes (attributes, fates, 3) with intervals, and counts of images, of which several pictures count as their mean."""
    means, counts = [], []
    for group in (will & ~had, had & ~will, had == will):
        values = torch.where(group, change, math.nan)
        per_image = torch.stack([values[rows == r].nanmean(0) for r in rows.unique()]).numpy()
        means.append([tuple(bootstrap(v)) for v in per_image.T])
        counts.append(np.isfinite(per_image).sum(0))
    return np.stack(means, 1), np.stack(counts, 1)


def more(change: np.ndarray, had: np.ndarray, will: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which attributes robust models move as is due, and further than their standard twins: (model, attribute, 2) bool.

    change (model, image, attribute), had, will (image, attribute). The last axis: attributes due to appear, due to vanish. Both
    are bootstrapped over images (`stats.paired`) and Holm-corrected over all attributes and pairs of (standard, robust) models;
    of fewer than FEWEST images none is.
    """
    found = np.zeros((len(change), change.shape[2], 2), bool)
    if not pairs:
        return found
    as_due = np.stack([np.where(will & ~had, change, np.nan), np.where(had & ~will, -change, np.nan)], -1)
    series = [(as_due[robust] - as_due[standard], as_due[robust]) for standard, robust in pairs]
    tests = np.stack([np.stack(of) for of in series])  # (pair, difference or own, image, attribute, 2)
    columns = np.moveaxis(tests, 2, 0).reshape(tests.shape[2], -1)
    of = paired(columns, draws=max(20000, int(2 * columns.shape[1] / LEVEL)))
    clear = (holm(np.where(of.n >= FEWEST, of.p, np.nan)) < LEVEL) & (of.mean > 0)
    for (_, robust), both in zip(pairs, clear.reshape(len(pairs), 2, *found.shape[1:]), strict=True):
        found[robust] = both.all(0)
    return found


def _check(images: Images, labels: Labels, has: Tensor, folds: int) -> None:
    if labels.shape != (len(images),) or bool((labels < 0).any()) or bool((labels >= has.shape[1]).any()):
        raise InputError(
            f"{len(images)} images came with labels {tuple(labels.shape)} from {int(labels.min())} to {int(labels.max())}; "
            f"expected one class each, 0 to {has.shape[1] - 1}, the columns of the table of attributes"
        )
    if not 2 <= folds <= len(images):
        raise InputError(
            f"probes read images in {folds} folds, and {len(images)} came; expected from 2 folds to one per image: raise n"
        )


def _check_pictures(probes: Sequence[Probes], pictures: Images, goals: Labels, rows: Tensor) -> None:
    first = probes[0]
    if any(not torch.equal(p.labels, first.labels) or p.names != first.names for p in probes):
        raise InputError("the probes were fitted on different images or attributes; fit all judges on the same")
    if len(pictures) != len(rows) or goals.shape != rows.shape:
        raise InputError(
            f"{len(pictures)} pictures came with {len(goals)} goals and {len(rows)} images that they were made from; "
            "expected one each: give rows where an image has more or fewer than one picture"
        )
    if bool((rows < 0).any()) or bool((rows >= len(first.labels)).any()):
        raise InputError(f"rows reach from {int(rows.min())} to {int(rows.max())}; the probes saw {len(first.labels)} images")
