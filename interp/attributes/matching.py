"""How far models share what they see: likeness of their features, and of the concepts found in them, on the same images.

Linear CKA (Kornblith et al., arXiv 1905.00414, eq. 3 and 4), with the unbiased estimate of HSIC (Song et al. 2012; Nguyen et al.,
arXiv 2010.15327, eq. 3) since more features than images raise the plain one; and for each concept the best correlation, over
images, with a concept of the other model. Control of both: images in another order.

CKA is no mean over images. Its interval, and its comparison on the same images, rest on one value per image: CKA, and by how much
it falls without the image (the jackknife, Efron 1982, chapter 3). Drawing images with replacement would set pairs of one and the
same image beside the others, which raises CKA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from interp.result import Measure
from interp.types import InputError

FEWEST = 5
"""Images of which one can be left out."""

MEASURES = (
    Measure(
        "shared",
        "features shared with others",
        "linear CKA of the features, unbiased HSIC, mean over the other models; between two models over the rest",
        "arXiv 1905.00414, eq. 3 and 4",
        "CKA",
        "none",
    ),
)


def linear_cka(x: np.ndarray, y: np.ndarray, *, unbiased: bool = True) -> float:
    """Linear CKA of features (n, p) and (n, q) of the same images, at most 1.

    unbiased: about 0, of either sign, for features that have nothing to do with each other; else the plain one of Kornblith et
    al., in [0, 1]. Raises InputError for other than the same n ≥ 4 images. Limits: 1 for x and a rotation or multiple of x.
    """
    if len(x) != len(y) or len(x) < 4:
        raise InputError(f"features are of {len(x)} and {len(y)} images; expected the same, 4 at least")
    a, b = (_gram(v, unbiased=unbiased) for v in (x, y))
    hsic = _hsic_unbiased if unbiased else _hsic
    own = hsic(a, a) * hsic(b, b)
    return hsic(a, b) / math.sqrt(own) if own > 0 else math.nan


def best_matches(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each concept of activations (n, k), the highest Pearson correlation (k,) with a concept of (n, l) on the same images.

    NaN for a concept that is the same in all images. Limit: 1 for a model with itself.
    """
    if len(a) != len(b):
        raise InputError(f"activations are of {len(a)} and {len(b)} images; expected the same")
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = ((v - v.mean(0)) / np.linalg.norm(v - v.mean(0), axis=0) for v in (a, b))
    correlation = one.T @ other
    best = np.where(np.isnan(correlation), -np.inf, correlation).max(1)
    return np.where(np.isinf(best), np.nan, best)


def cka_by_image(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One value per image (n,), of which the mean is the unbiased `linear_cka` of features (n, p) and (n, q).

    With CKA₋ᵢ of all images but one, CKA + (n − 1)·(mean over images of CKA₋ᵢ − CKA₋ᵢ). Raises InputError for other than the same
    n ≥ FEWEST images. Limit: 1 for all, of x and a rotation or multiple of x.
    """
    if len(x) != len(y) or len(x) < FEWEST:
        raise InputError(f"features are of {len(x)} and {len(y)} images; expected the same, {FEWEST} at least")
    a, b = (_gram(v, unbiased=True) for v in (x, y))
    both, one, other = (_hsic_without(*pair) for pair in ((a, b), (a, a), (b, b)))
    with np.errstate(divide="ignore", invalid="ignore"):
        without = np.where(one * other > 0, both / np.sqrt(one * other), math.nan)
    return np.asarray(linear_cka(x, y) + (len(x) - 1) * (without.mean() - without))


def shared(
    features: Sequence[np.ndarray], activations: Sequence[np.ndarray], *, seed: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """CKA per image (models, models, n) of features (n, p) and mean best match (models, models) of concepts' activations (n, k).

    All of the same images; rows are matched in columns. seed: of the control, in which the columns' images are in another order;
    None, as they are. Limit: the diagonals are 1.
    """
    order = np.arange(len(features[0]))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    cka = [[cka_by_image(a, b[order]) for b in features] for a in features]
    matches = [[float(np.nanmean(best_matches(a, b[order]))) for b in activations] for a in activations]
    return np.array(cka), np.array(matches)


def _gram(x: np.ndarray, *, unbiased: bool) -> np.ndarray:
    centred = (x - x.mean(0)).astype(np.float64)
    gram = centred @ centred.T
    if unbiased:
        np.fill_diagonal(gram, 0)
    return gram


def _hsic(a: np.ndarray, b: np.ndarray) -> float:
    """Up to a factor, of Gram matrices of centred features."""
    return float((a * b).sum())


def _hsic_unbiased(a: np.ndarray, b: np.ndarray) -> float:
    """Up to a factor, of Gram matrices with zero diagonals (Song et al. 2012, eq. 5)."""
    n = len(a)
    cross = 2 / (n - 2) * a.sum(0) @ b.sum(0)
    return float((a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - cross)


def _hsic_without(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`_hsic_unbiased` of all images but one, up to the same factor, for each (n,) that is left out."""
    n, product = len(a) - 1, a * b
    of_a, of_b, of_both = a.sum(0), b.sum(0), product.sum(0)
    total = (of_a.sum() - 2 * of_a) * (of_b.sum() - 2 * of_b)
    rows = of_a @ of_b - of_a * of_b - b @ of_a - a @ of_b + of_both  # Σ of products of what is left of the rows' sums
    return np.asarray(of_both.sum() - 2 * of_both + total / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows)
