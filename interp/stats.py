"""Statistics in constant memory, and the intervals that go with every number we print.

Running adds by the update of West (1979) and merges by that of Chan, Golub & LeVeque (1979); rates get Wilson's interval
(1927), other means a percentile bootstrap over images (Efron 1979).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
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


def wide(like: Tensor) -> torch.dtype:
    """The widest float of a tensor's device: float64, on MPS float32."""
    return torch.float32 if like.device.type == "mps" else torch.float64


class Running:
    """Weighted mean, mean absolute value, variance and sign agreement of a stream of tensors of one shape, in constant memory.

    `update` takes k samples (k, …), each with a weight above zero, 1 where none is given. Accumulated one sample after another
    in float64, on devices that lack it (MPS) in float32; given out in the samples' dtype. Limits: updates in any split give the
    same bits, and `merge` of parts the one-pass result up to rounding.
    """

    def __init__(self) -> None:
        self.count, self.weight = 0, 0.0
        self._sums: _Sums | None = None

    def update(self, samples: Tensor, weights: Sequence[float] | None = None) -> None:
        """Add k samples (k, …) with weights (k,); raises ValueError where a weight is not above zero."""
        for sample, weight in zip(samples.detach(), [1.0] * len(samples) if weights is None else weights, strict=True):
            if not weight > 0:
                raise ValueError(f"the weight of a sample is {weight}; expected a number above zero")
            if self._sums is None:
                self._sums = _Sums(sample)
            self.count, self.weight = self.count + 1, self.weight + weight
            self._sums.add(sample, weight, weight / self.weight)

    def merge(self, other: Running) -> None:
        """Add all that another Running has seen."""
        if other._sums is None:
            return
        total = self.weight + other.weight
        if self._sums is None:
            self._sums = copy.deepcopy(other._sums)
        else:
            self._sums.merge(other._sums, self.weight, other.weight / total)
        self.count, self.weight = self.count + other.count, total

    @property
    def mean(self) -> Tensor:
        """Weighted mean of all samples."""
        sums = self._seen()
        return sums.mean.to(sums.dtype)

    @property
    def absolute(self) -> Tensor:
        """Mean absolute value."""
        sums = self._seen()
        return (sums.absolute / self.weight).to(sums.dtype)

    @property
    def variance(self) -> Tensor:
        """Population variance."""
        sums = self._seen()
        return (sums.squares / self.weight).to(sums.dtype)

    @property
    def agreement(self) -> Tensor:
        """|Σ sign| / n in [0, 1]: 1 where every sample has the same sign."""
        return self._seen().signs.abs() / self.weight

    def _seen(self) -> _Sums:
        if self._sums is None:
            raise ValueError("no samples yet: call update first")
        return self._sums


class _Sums:
    """The accumulators, of the shape of one sample, and two buffers, so that adding one allocates nothing."""

    def __init__(self, like: Tensor) -> None:
        self.dtype = like.dtype
        exact = wide(like)
        self.mean, self.squares, self.absolute, self._wide = (
            torch.zeros(like.shape, dtype=exact, device=like.device) for _ in range(4)
        )
        self.signs, self._buffer = (torch.zeros(like.shape, dtype=like.dtype, device=like.device) for _ in range(2))

    def add(self, v: Tensor, weight: float, share: float) -> None:
        self._wide.copy_(v).sub_(self.mean)
        self.mean.add_(self._wide, alpha=share)
        self.squares.addcmul_(self._wide, self._wide, value=weight * (1 - share))
        self.absolute.add_(torch.abs(v, out=self._buffer), alpha=weight)
        self.signs.add_(torch.sign(v, out=self._buffer), alpha=weight)

    def merge(self, other: _Sums, weight: float, share: float) -> None:
        delta = other.mean - self.mean
        self.squares += other.squares + delta.square() * (weight * share)
        self.mean += delta * share
        self.absolute += other.absolute
        self.signs += other.signs


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between two batches (n, …), per sample (n,); 0 where either is zero."""
    one, other = (
        v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
        for v in (a.flatten(1), b.flatten(1))
    )
    return torch.linalg.vecdot(one, other)


class Paired(NamedTuple):
    """Paired differences: their means (k,), 95 % intervals, two-sided p-values and counts."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    n: np.ndarray


def paired(differences: npt.ArrayLike, *, draws: int = 20000, seed: int = 0) -> Paired:
    """Bootstrap over images of k series of paired differences (n, k), all drawn alike; NaN values are left out of their series.

    Intervals are percentiles. p is the larger of two: of the bootstrap of t = mean / standard error, (1 + the draws whose t of
    the centred differences is as far from 0 as the one found)/(draws + 1) (Davison & Hinkley 1997, section 4.4), which allows
    for skew, and of Student's one-sample t-test, for values that are few. A draw of equal values takes the error of all.
    Limits: differences that are all 0 have p = 1, as has a single one; a series without numbers is NaN. Memory does not grow
    with draws × n.
    """
    from scipy.special import stdtr  # only here: it takes a tenth of a second to import

    d = np.asarray(differences, dtype=np.float64)
    known = np.isfinite(d)
    count = known.sum(0)
    mean = np.where(count > 0, _summed(np.where(known, d, 0.0)) / np.maximum(count, 1), np.nan)
    centred = np.where(known, d - mean, 0.0)
    error = _error(_summed(np.square(centred)) / np.maximum(count, 1), count)
    t = np.abs(_over(mean, error))
    rng, found, as_far = np.random.default_rng(seed), [], np.zeros(d.shape[1])
    for start in range(0, draws, 500):
        block = min(500, draws - start)
        drawn = rng.integers(0, len(d), (block, len(d))) + np.arange(block)[:, None] * len(d)
        times = np.bincount(drawn.ravel(), minlength=block * len(d)).reshape(block, len(d)).astype(np.float64)
        seen = times @ known
        off = times @ centred / np.maximum(seen, 1)
        errors = _error(times @ np.square(centred) / np.maximum(seen, 1) - np.square(off), seen)
        found.append(mean + off)
        as_far += (np.abs(_over(off, np.where(errors > 1e-6 * error, errors, error))) >= t - 1e-12).sum(0)
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975], axis=0)
    student = np.where(count > 1, 2 * stdtr(np.maximum(count - 1, 1), -t), 1.0)
    p = np.where(count > 0, np.maximum((1 + as_far) / (draws + 1), student), np.nan)
    return Paired(mean, low, high, p, count)


def _error(variance: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Standard errors of means of n values, from population variances."""
    return np.sqrt(np.maximum(variance, 0.0) / np.maximum(n - 1, 1))


def _over(mean: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Means over their standard errors; 0 where both are 0 up to rounding, ±∞ where only the error is."""
    mean = np.where(np.abs(mean) > 1e-12, mean, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error > 1e-12, mean / error, np.where(mean == 0, 0.0, np.sign(mean) * np.inf))


def _summed(d: np.ndarray) -> np.ndarray:
    """The sum of each column, to the bit the same whatever stands beside it."""
    return np.ascontiguousarray(d.T).sum(1)


def holm(p: npt.ArrayLike) -> np.ndarray:
    """p-values adjusted for their number (Holm 1979), in the shape given; NaN stays and does not count."""
    given = np.asarray(p, dtype=np.float64)
    out, known = np.full(given.shape, np.nan), np.isfinite(given)
    values = given[known]
    order = values.argsort(kind="stable")
    steps = np.maximum.accumulate((len(values) - np.arange(len(values))) * values[order])
    adjusted = np.empty_like(values)
    adjusted[order] = steps.clip(max=1.0)
    out[known] = adjusted
    return out
