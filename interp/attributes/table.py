"""Measures of several models on the same images → one table: intervals, controls, paired comparisons, verdicts in words.

A value counts as evidence of a model where it differs, in the better direction, from the control of the same images. Models are
compared in pairs on the same images. Both families of tests are bootstraps over images (`stats.paired`), and both are corrected
by Holm's rule: the comparisons of all measures and pairs together, the tests against controls of all measures and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from interp.result import Measure, with_interval
from interp.stats import Paired, bootstrap, holm, paired

LEVEL = 0.05  # of corrected p-values
SERIES = 128  # differences bootstrapped at a time: their means take 25 MB
FEWEST = 20  # units of which a difference is judged: with fewer the bootstrap finds differences too easily


@dataclass(frozen=True, eq=False)
class Column:
    """One measure: values (model, unit) and those of its control on the same units, NaN where undefined.

    against: what the control is, in words, '' where a measure has none. unit: the dimension of units: image, stimulus, picture.
    beside (model, other, unit): the values by which a model is compared with another, where those depend on the pair, as judges
    do; NaN where it cannot be compared.
    """

    measure: Measure
    values: np.ndarray
    control: np.ndarray | None = None
    against: str = ""
    unit: str = "image"
    beside: np.ndarray | None = None

    def difference(self, one: int, other: int) -> np.ndarray:
        """Other less one, (unit,)."""
        if self.beside is None:
            return np.asarray(self.values[other] - self.values[one])
        return np.asarray(self.beside[other, one] - self.beside[one, other])


def tabulate(columns: Sequence[Column], models: Sequence[str], pairs: Sequence[tuple[int, int]]) -> xr.Dataset:
    """The table of some measures.

    Per measure NAME: NAME, NAME_low, NAME_high, NAME_n (model); values_NAME (model, unit); NAME_control with _low, _high and _n
    (model); NAME_above (model), whether the value differs from its control as it should, tested on NAME_tested (model) units that
    have both; NAME_difference, NAME_difference_low, _high and NAME_p (model, other), Holm-corrected; attributes control, best
    (the id of the model that is better than every other, or ''), verdict (words). Attribute least_p: the smallest p that pairs
    can have. pairs: the (standard, robust) twins of the verdict.
    """
    if not columns:
        return xr.Dataset()
    data: dict[str, Any] = {}
    every = list(combinations(range(len(models)), 2))
    draws = max(20000, int(2 * len(columns) * max(len(every), len(models)) / LEVEL))  # so many that the rule can still find any
    differences_of = [np.stack([c.difference(a, b) for a, b in every], 1) if every else None for c in columns]
    beside = [(c.values - c.control).T if c.control is not None else None for c in columns]
    found = _bootstrapped([*differences_of, *beside], draws)
    compared, tests = found[: len(columns)], found[len(columns) :]
    p_pairs = _adjusted([np.where(t.n >= FEWEST, t.p, np.nan) if t else np.zeros(0) for t in compared])
    p_above = _adjusted([np.where(t.n >= FEWEST, t.p, np.nan) if t else np.full(len(models), np.nan) for t in tests])
    for column, differences, p, test, above in zip(columns, compared, p_pairs, tests, p_above, strict=True):
        m, n = column.measure, np.isfinite(column.values).sum(1)
        attrs = {"unit": m.unit, "better": m.better, "n": column.values.shape[1], "long_name": m.title}
        spans = [bootstrap(v) for v in column.values]
        data |= with_interval(m.name, ("model",), spans, (len(models),), **attrs)
        data[f"{m.name}_n"] = ("model", n)
        data[f"values_{m.name}"] = (("model", column.unit), column.values.astype(np.float32))
        block = np.full((3, len(models), len(models)), np.nan)
        corrected = np.full((len(models), len(models)), np.nan)
        for k, (a, b) in enumerate(every):
            assert differences is not None
            block[:, b, a] = differences.mean[k], differences.low[k], differences.high[k]
            block[:, a, b] = -differences.mean[k], -differences.high[k], -differences.low[k]
            corrected[a, b] = corrected[b, a] = p[k]
        for end, values in zip(("", "_low", "_high"), block, strict=True):
            data[f"{m.name}_difference{end}"] = (("model", "other"), values)
        data[f"{m.name}_p"] = (("model", "other"), corrected)
        shown, counted = np.isfinite(column.values).any(1), n if test is None else test.n
        if test is not None and column.control is not None:
            for end, values in zip(("", "_low", "_high"), np.array([bootstrap(v) for v in column.control]).T, strict=True):
                data[f"{m.name}_control{end}"] = ("model", values)
            data[f"{m.name}_control_n"] = ("model", np.isfinite(column.control).sum(1))
            shown &= (above < LEVEL) & (_sign(m) * test.mean > 0 if m.better != "none" else True)
        data[f"{m.name}_above"], data[f"{m.name}_tested"] = ("model", shown), ("model", counted)
        best = _best(m, np.array([s.mean for s in spans]), shown, block[0], corrected)
        data[m.name][2].update(
            {
                "control": column.against,
                "best": "" if best is None else models[best],
                "formula": m.formula,
                "source": m.source,
                "verdict": verdict(m, shown, block[0], corrected, pairs, judged=bool((counted >= FEWEST).any()))
                if n.any()
                else "not judged: no values",
            }
        )
    tested = sum(int(np.isfinite(p).sum()) for p in p_pairs)
    return xr.Dataset(data, attrs={"least_p": tested / (draws + 1)})


def _bootstrapped(series: Sequence[np.ndarray | None], draws: int) -> list[Paired | None]:
    """`paired` of each array (n, k): those of one n together, `SERIES` at a time, since the draws depend on n alone."""
    found: list[Paired | None] = [None] * len(series)
    for n in sorted({len(s) for s in series if s is not None}):
        waiting = [k for k, s in enumerate(series) if s is not None and len(s) == n]
        while waiting:
            widths = np.cumsum([series[k].shape[1] for k in waiting])  # type: ignore[union-attr]
            some = waiting[: max(1, int((widths <= SERIES).sum()))]
            joined = paired(np.concatenate([series[k] for k in some], 1), draws=draws)  # type: ignore[misc]
            parts = zip(*(np.split(v, widths[: len(some) - 1]) for v in joined), strict=True)
            for k, part in zip(some, parts, strict=True):
                found[k] = Paired(*part)
            waiting = waiting[len(some) :]
    return found


def _adjusted(series: Sequence[np.ndarray]) -> list[np.ndarray]:
    """p-values of all measures corrected together, cut into the series they came in."""
    ends = np.cumsum([len(s) for s in series])[:-1]
    return np.split(holm(np.concatenate(series)), ends)


def _sign(m: Measure) -> int:
    return -1 if m.better == "lower" else 1


def _best(m: Measure, means: np.ndarray, shown: np.ndarray, differences: np.ndarray, p: np.ndarray) -> int | None:
    """The model that is better than each of the others that have a value, by corrected p-values."""
    if m.better == "none" or not shown.any():
        return None
    first = int(np.nanargmax(np.where(shown, _sign(m) * means, np.nan)))
    others = [k for k in range(len(means)) if k != first and np.isfinite(means[k])]
    better = all(p[first, k] < LEVEL and _sign(m) * differences[first, k] > 0 for k in others)
    return first if others and better else None


def verdict(
    m: Measure, shown: np.ndarray, differences: np.ndarray, p: np.ndarray, pairs: Sequence[tuple[int, int]], *, judged: bool
) -> str:
    """What a measure shows of robust models beside their standard twins, in words that say no more than the tests.

    A difference counts where the better of the two, or where no direction is better each, differs from its control.
    """
    if not judged:
        return f"not judged: fewer than {FEWEST} values"
    if not shown.any():
        return "says nothing here: no tested model differs from its control"
    if not pairs:
        return "no twins to compare"
    sure = [np.sign(differences[r, s]) if p[s, r] < LEVEL and _counts(m, shown, differences, s, r) else 0 for s, r in pairs]
    higher, lower = sum(v > 0 for v in sure), sum(v < 0 for v in sure)
    parts = [f"{word} in {k}" for word, k in (("higher", higher), ("lower", lower)) if k]
    apart = sum(bool(np.isnan(p[s, r])) for s, r in pairs)
    open_ = len(pairs) - higher - lower - apart
    parts += [f"not shown to differ in {open_}"] if open_ else []
    parts += [f"not compared in {apart}"] if apart else []
    return f"robust against standard: {', '.join(parts)} of {len(pairs)}"


def _counts(m: Measure, shown: np.ndarray, differences: np.ndarray, s: int, r: int) -> bool:
    if m.better == "none":
        return bool(shown[s] and shown[r])
    return bool(shown[r] if _sign(m) * differences[r, s] > 0 else shown[s])
