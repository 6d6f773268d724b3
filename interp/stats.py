"""Statistics in constant memory, and the intervals that go with every number we print.

Running merges by the pairwise update of Chan, Golub & LeVeque (1979); rates get Wilson's interval (1927), other means a
percentile bootstrap over images (Efron 1979).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def wilson(successes: int, n: int, *, z: float = 1.959964) -> Interval:
    """A rate with its Wilson score interval; n = 0 gives (nan, 0, 1)."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))  # p is within but for rounding


def bootstrap(values: npt.ArrayLike, *, draws: int = 2000, seed: int = 0) -> Interval:
    """The mean of per-image values with a percentile bootstrap interval; NaN values are left out."""
    v = np.asarray(values, dtype=np.float64)
    v = v[np.isfinite(v)]
    if len(v) == 0:
        return Interval(math.nan, math.nan, math.nan)
    means = v[np.random.default_rng(seed).integers(0, len(v), (draws, len(v)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(v.mean()), float(low), float(high))


class Running:
    """Mean, mean absolute value, variance and sign agreement of a stream of tensors of one shape, in constant memory.

    `update` takes a tensor (k, …) of k samples. Limit: updates in any split, or `merge` of parts, give the one-pass result.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._absolute: Tensor | None = None
        self._squares: Tensor | None = None
        self._signs: Tensor | None = None

    def update(self, samples: Tensor) -> None:
        """Add k samples (k, …), accumulated in float64."""
        v = samples.detach().double()
        part = Running()
        part.count = len(v)
        part._mean, part._absolute, part._signs = v.mean(0), v.abs().mean(0), v.sign().sum(0)
        part._squares = (v - part._mean).square().sum(0)
        self.merge(part)

    def merge(self, other: Running) -> None:
        """Add all that another Running has seen."""
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self._mean, self._absolute = other.count, other._mean, other._absolute
            self._squares, self._signs = other._squares, other._signs
            return
        total = self.count + other.count
        share = other.count / total
        delta = _seen(other._mean) - _seen(self._mean)
        self._squares = _seen(self._squares) + _seen(other._squares) + delta.square() * (self.count * share)
        self._mean = _seen(self._mean) + delta * share
        self._absolute = _seen(self._absolute) + (_seen(other._absolute) - _seen(self._absolute)) * share
        self._signs = _seen(self._signs) + _seen(other._signs)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Mean of all samples."""
        return _seen(self._mean).float()

    @property
    def absolute(self) -> Tensor:
        """Mean absolute value."""
        return _seen(self._absolute).float()

    @property
    def variance(self) -> Tensor:
        """Population variance."""
        return (_seen(self._squares) / self.count).float()

    @property
    def agreement(self) -> Tensor:
        """|Σ sign| / n in [0, 1]: 1 where every sample has the same sign."""
        return (_seen(self._signs).abs() / self.count).float()


def _seen(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("no samples yet: call update first")
    return value


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between two batches (n, …), per sample (n,); 0 where either is zero."""
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)
