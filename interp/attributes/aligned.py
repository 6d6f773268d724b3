"""Perceptually aligned gradients: whether ∇_x of a class's logit points toward images of that class; what pictures are worth.

    toward_mean       cos(∇ψ_t, m_t − x), m_t the mean image of class t            Ganz et al., arXiv 2207.11378, class mean
    toward_nearest    cos(∇ψ_t, z_t − x), z_t the image of class t nearest in L2   same, nearest neighbour
    class_part        toward_mean − cos(∇ψ_t, m_s − x), s another class
    alignment         α(x) = |⟨x, ∇ψ(x)⟩| / ‖∇ψ(x)‖, ψ the largest logit           Etmann et al., arXiv 1905.04172
    linearised        ρ̃(x) = min_j (ψ − ψ_j)(x) / ‖∇ψ(x) − ∇ψ_j(x)‖                same, linearised robustness
    read_accuracy     share of judges whose first choice for a picture is the class it was made toward
    diversity         mean distance of a picture to the others of its class, over that between real images of the class

Controls. White noise in place of a gradient has cosines of mean 0 and standard deviation 1/√d, d = 3hw (0.018 at 32 pixels), and
an α of mean √(2/πd)·‖x‖. That is too mild: gradients of networks with random parameters are smooth and vary more, and all class
means are nearly grey, so a gradient that only takes contrast from x, whatever the class, scores in toward_mean and
toward_nearest. Its class_part has mean 0 where targets are spread evenly over the classes that x is not of (x is nearer to its
own class, so that class is neither target nor comparison), as it has over random networks (of one alone ±0.008 was measured).
α and ρ̃ are L2 distances between images in [0, 1], blind to the scale of the logits; α depends on what counts as 0, here black.
They only describe: random networks reach the α of robust ones, and a far larger ρ̃ where they are nearly constant. Read accuracy
with shuffled targets is 1 / classes on average, diversity of real images of the class 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.attacks.features import cut
from interp.gradients.sources import gradient
from interp.models.chunks import in_chunks
from interp.models.engine import engine
from interp.models.model import Model
from interp.result import Measure
from interp.stats import cosine
from interp.types import Images, InputError, Labels

CHUNK, RIVALS = 64, 3


class References(NamedTuple):
    """Real images by class: images (m, 3, h, w), labels (m,), means (classes, 3, h, w), NaN where a class has no image."""

    images: Images
    labels: Labels
    means: Images


def references(images: Images, labels: Labels, classes: int) -> References:
    """The images that stand for classes 0 … classes − 1; labels below 0 (unknown) stand for none. InputError for others."""
    if len(labels) != len(images) or len(labels) == 0 or int(labels.max()) >= classes:
        raise InputError(f"{len(images)} reference images have {len(labels)} labels; expected one each, below {classes}")
    return References(images, labels, torch.stack([images[labels == c].mean(0) for c in range(classes)]))


def directions(x: Images, targets: Labels, known: References) -> tuple[Tensor, Tensor]:
    """From each image to the mean and to the nearest reference of its target class, each (n, 3, h, w).

    References equal to x are left out of both, so that no image is its own. NaN where none is left.
    """
    mean, nearest = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    for t in targets.unique():
        rows, members = (targets == t).nonzero()[:, 0], known.images[known.labels == t].to(x).flatten(1)
        apart = torch.cdist(x[rows].flatten(1), members, compute_mode="donot_use_mm_for_euclid_dist")  # exactly 0 for copies
        others = apart > 0
        found = others.any(1)
        rows, apart, others = rows[found], apart[found], others[found]
        if len(rows):
            mean[rows] = ((others.to(x) @ members) / others.sum(1, keepdim=True)).view_as(x[rows])
            nearest[rows] = members[apart.masked_fill(~others, torch.inf).argmin(1)].view_as(x[rows])
    return mean - x, nearest - x


def class_gradients(model: Model, x: Images, targets: Labels, *, chunk: int = CHUNK) -> Tensor:
    """∇_x of the logit of each image's target, (n, 3, h, w), where x is."""
    net = engine(model, tuple(x.shape)).steps

    def run(rows: slice) -> Tensor:
        return -gradient(net, x[rows].to(model.mean), targets[rows].to(model.mean.device), loss="logit").to(x)

    return torch.cat([g for _, g in in_chunks(run, len(x), chunk)])


def toward(gradients: Tensor, direction: Tensor) -> Tensor:
    """Cosine (n,) in [−1, 1] between gradients and directions (n, 3, h, w); NaN where either is 0 or not defined."""
    defined = gradients.flatten(1).any(1) & direction.flatten(1).any(1)
    return torch.where(defined, cosine(gradients, direction), torch.nan)


def alignment(x: Images, gradients: Tensor) -> Tensor:
    """α(x) = |⟨x, g⟩| / ‖g‖, (n,) from 0 to ‖x‖; NaN where g is 0.

    Limit: for a linear model without bias that reads the sign of ψ, the distance to its boundary.
    """
    g = gradients.flatten(1)
    return torch.linalg.vecdot(x.flatten(1), g).abs() / g.norm(dim=1)


def linearised_robustness(logits: Tensor, gradients: Tensor) -> Tensor:
    """ρ̃(x), the L2 distance (n,) to where the linearised model would choose another class.

    logits (n, k) of k classes, the largest first, their gradients (n, k, 3, h, w). With fewer than all classes an upper bound;
    infinite where no gradient differs. Limit: the exact distance to the boundary of a linear model, with or without bias.
    """
    apart = (gradients[:, :1] - gradients[:, 1:]).flatten(2).norm(dim=2)
    return ((logits[:, :1] - logits[:, 1:]) / apart).amin(1)


def aligned(
    model: Model, x: Images, labels: Labels, targets: Labels, known: References, *, seed: int = 0, chunk: int = CHUNK
) -> dict[str, np.ndarray]:
    """toward_mean, toward_nearest and class_part by name, (n,) float64, in the images' order; one backward pass an image.

    labels: of x, below 0 where unknown; class_part is NaN where the target is the label. seed: draws the other class of
    class_part, the same for all models. Raises InputError for fewer than three classes.
    """
    others = _others(labels, targets, len(known.means), seed)

    def run(rows: slice) -> dict[str, Tensor]:
        (mean, nearest), (other, _) = (directions(x[rows], t[rows], known) for t in (targets, others))
        g = class_gradients(model, x[rows], targets[rows], chunk=chunk)
        found = {"toward_mean": toward(g, mean), "toward_nearest": toward(g, nearest)}
        part = found["toward_mean"] - toward(g, other)
        return found | {"class_part": torch.where(targets[rows] != labels[rows], part, torch.nan)}

    return _joined([part for _, part in in_chunks(run, len(x), chunk)])


def distances(model: Model, x: Images, *, rivals: int = RIVALS, chunk: int = CHUNK) -> dict[str, np.ndarray]:
    """alignment and linearised by name, (n,) float64, in the images' order.

    rivals: how many of the next likely classes enter ρ̃; a backward pass an image for each, and one more. On the shipped robust
    models 1 overstates ρ̃ by 7 to 19 %, 3 by 1 to 4 %.
    """

    def run(rows: slice) -> dict[str, Tensor]:
        logits = model.read(x[rows], chunk=chunk).to(x)
        best = logits.topk(min(rivals + 1, logits.shape[1]), dim=1)
        top = torch.stack([class_gradients(model, x[rows], t, chunk=chunk) for t in best.indices.unbind(1)], 1)
        return {"alignment": alignment(x[rows], top[:, 0]), "linearised": linearised_robustness(best.values, top)}

    return _joined([part for _, part in in_chunks(run, len(x), chunk)])


def _others(labels: Labels, targets: Labels, classes: int, seed: int) -> Labels:
    """For each image a class drawn from those that are neither its label nor its target."""
    if classes < 3:
        raise InputError(f"there are {classes} reference classes; expected at least three: the image's, its target and another")
    lots = torch.rand(len(targets), classes, generator=torch.Generator().manual_seed(seed)).to(targets.device)
    taken = torch.stack([targets, torch.where(labels < 0, targets, labels)], 1)
    return lots.scatter(1, taken, -1.0).argmax(1)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    return {name: torch.cat([part[name] for part in parts]).double().cpu().numpy() for name in parts[0]}


def read_accuracy(logits: Tensor, targets: Labels) -> Tensor:
    """Share of judges (n,) that read each picture as its target, from their logits (judges, n, classes)."""
    return (logits.argmax(2) == targets).float().mean(0)


def penultimate(judge: Model, x: Images, *, chunk: int = CHUNK) -> Tensor:
    """What a judge's last linear layer is given, (n, features); InputError where it has none."""
    with torch.no_grad(), cut(judge, "") as features:
        return torch.cat([f for _, f in in_chunks(lambda rows: features(x[rows].to(judge.mean)).to(x), len(x), chunk)])


def diversity(made: Tensor, targets: Labels, real: Tensor, labels: Labels) -> Tensor:
    """Mean distance of each picture to the others made toward its class, over that between real images of the class: (n,) ≥ 0.

    made (n, features), real (m, features) of one judge (`penultimate`), Euclidean. 0 where all pictures of a class are one, 1
    where they differ as real images do; above 1 is no better, and noise too can be diverse: read it beside read_accuracy. NaN
    where a class has only one picture or one real image.
    """
    found = made.new_full((len(made),), torch.nan)
    for t in targets.unique():
        ours, theirs = targets == t, real[labels == t]
        if int(ours.sum()) > 1 and len(theirs) > 1:
            found[ours] = _apart(made[ours]) / _apart(theirs).mean()
    return found


def _apart(features: Tensor) -> Tensor:
    """Mean distance of each row to the others."""
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum(1) / (len(features) - 1)


MEASURES = (
    Measure(
        "toward_mean",
        "gradient toward the class mean",
        "cos(∇ψ_t, mean image of class t − x), ψ_t the logit of class t",
        "arXiv 2207.11378, class mean",
        "cosine",
        "higher",
    ),
    Measure(
        "toward_nearest",
        "gradient toward nearest image",
        "cos(∇ψ_t, nearest image of class t in L2 − x)",
        "arXiv 2207.11378, nearest neighbour",
        "cosine",
        "higher",
    ),
    Measure(
        "class_part",
        "class mean over another's",
        "cos(∇ψ_t, mean of class t − x) − cos(∇ψ_t, mean of another class − x)",
        "after arXiv 2207.11378, its control",
        "cosine",
        "higher",
    ),
    Measure(
        "alignment",
        "alignment with the image",
        "|⟨x, ∇ψ⟩| / ‖∇ψ‖, ψ the largest logit",
        "arXiv 1905.04172, alignment",
        "L2 distance",
        "none",
    ),
    Measure(
        "linearised",
        "linearised robustness",
        f"min_j (ψ − ψ_j) / ‖∇ψ − ∇ψ_j‖ over the {RIVALS} next likely classes j",
        "arXiv 1905.04172, linearised robustness",
        "L2 distance",
        "none",
    ),
    Measure(
        "read_accuracy",
        "pictures read as the target",
        "share of judges whose first choice for a picture is the class it was made toward",
        "after arXiv 1906.09453",
        "share",
        "higher",
    ),
    Measure(
        "diversity",
        "diversity of pictures of a class",
        "mean distance between pictures of a class in a judge's last features, over that of real images",
        "after LPIPS diversity, arXiv 1711.11586",
        "ratio",
        "none",
    ),
)
