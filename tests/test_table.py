"""The table of measures on values of which the truth is known: what differs is found, what does not is not."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import xarray as xr

from interp.attributes.table import FEWEST, LEVEL, Column, tabulate
from interp.result import Measure
from interp.stats import holm, paired

IDS = ("a", "b", "c", "d")


def row(name: str = "m", better: str = "higher") -> Measure:
    return Measure(name, f"the {name}", "formula", "source", "unit", better)


def normals(*shape: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, shape)


def around(*means: float, n: int = 30, seed: int = 0) -> np.ndarray:
    """Values (model, unit) around each model's mean, far narrower than means of whole numbers are apart."""
    return np.array(means)[:, None] + 0.1 * normals(len(means), n, seed=seed)


def table_of(
    values: np.ndarray, control: np.ndarray | None, *, better: str = "higher", pairs: tuple[tuple[int, int], ...] = ()
) -> xr.Dataset:
    return tabulate([Column(row(better=better), values, control, "noise", "picture")], IDS[: len(values)], pairs)


def test_values_intervals_counts_and_words() -> None:
    values, control = around(1, 2, 3), around(0, 0, 0, seed=1)
    values[1, :7], values[2] = np.nan, np.nan
    data = table_of(values, control)
    m = data["m"]
    assert np.allclose(m, [values[0].mean(), values[1, 7:].mean(), np.nan], equal_nan=True)
    assert data["m_n"].values.tolist() == [30, 23, 0]
    assert data["values_m"].dims == ("model", "picture") and np.allclose(data["values_m"], values, atol=1e-6, equal_nan=True)
    for k in (0, 1):
        shift = 1.96 * np.nanstd(values[k]) / np.sqrt(data["m_n"].values[k])
        assert data["m_high"].values[k] - m.values[k] == pytest.approx(shift, rel=0.2)
        assert m.values[k] - data["m_low"].values[k] == pytest.approx(shift, rel=0.2)
    assert np.allclose(data["m_control"], control.mean(1)) and (data["m_control_low"] < data["m_control_high"]).all()
    assert data["m_above"].values.tolist() == [True, True, False]
    said = {"unit": "unit", "better": "higher", "n": 30, "long_name": "the m", "control": "noise", "source": "source"}
    assert said.items() <= m.attrs.items()


def test_no_columns_are_an_empty_table_and_one_model_has_no_pairs() -> None:
    assert len(tabulate([], IDS, [])) == 0
    alone = table_of(around(1), around(0))
    assert alone["m_above"].all() and np.isnan(alone["m_difference"]).all() and alone["m"].attrs["best"] == ""


def test_differences_are_antisymmetric_and_p_values_symmetric() -> None:
    values = normals(4, 40)
    values[0, ::3] = np.nan
    data = table_of(values, None)
    apart, low, high = (data[f"m_difference{end}"].values for end in ("", "_low", "_high"))
    assert np.allclose(apart, -apart.T, equal_nan=True) and np.allclose(low, -high.T, equal_nan=True)
    assert apart[1, 2] == pytest.approx((values[1] - values[2]).mean())  # the row's model less the column's
    assert apart[0, 1] == pytest.approx(np.nanmean(values[0] - values[1]))  # on the units that both have
    p = data["m_p"].values
    off = ~np.eye(4, dtype=bool)
    assert np.array_equal(p, p.T, equal_nan=True) and np.isfinite(p[off]).all() and np.isnan(p[~off]).all()
    assert (low[off] < apart[off]).all() and (apart[off] < high[off]).all()


def test_the_order_of_the_models_does_not_matter() -> None:
    values, control = normals(3, 40) + np.array([[0.0], [0.4], [0.9]]), normals(3, 40, seed=1)
    first = table_of(values, control, pairs=((0, 1), (0, 2)))
    for order in list(permutations(range(3)))[1:]:
        at = [order.index(k) for k in range(3)]  # where each model went
        moved = tabulate(
            [Column(row(), values[list(order)], control[list(order)], "noise", "picture")],
            [IDS[k] for k in order],
            [(at[0], at[1]), (at[0], at[2])],
        )
        back = moved.isel(model=at, other=at)
        for name in first.data_vars:
            assert np.allclose(first[name], back[name], atol=1e-9, equal_nan=True), name
        assert first["m"].attrs == moved["m"].attrs


def test_comparisons_of_all_measures_are_corrected_together() -> None:
    """With one pair of models the smallest of k p-values is multiplied by k; measures without values do not count."""
    effect, rest = normals(2, 40) + np.array([[0.0], [0.7]]), [normals(2, 40, seed=s) for s in range(1, 7)]
    nothing = np.full((2, 40), np.nan)
    alone = tabulate([Column(row("m0"), effect, normals(2, 40, seed=9))], IDS[:2], [])
    many = [Column(row(f"m{k}"), v, normals(2, 40, seed=9)) for k, v in enumerate([effect, *rest, nothing])]
    data = tabulate(many, IDS[:2], [])
    p = np.array([data[f"m{k}_p"].values[0, 1] for k in range(8)])
    assert p[0] == pytest.approx(7 * alone["m0_p"].values[0, 1]) and p[0] == np.nanmin(p) < LEVEL
    raw = [paired(v[1] - v[0]).p for v in ([*np.moveaxis(np.stack([effect, *rest]), 1, 0)[:, k, :, None]] for k in range(7))]
    assert np.allclose(p[:7], holm(np.concatenate(raw)))
    assert np.isnan(p[7]) and data["m7"].attrs["verdict"].startswith("not judged")


def test_next_to_nothing_is_found_where_there_is_nothing() -> None:
    """Of 36 tests against controls and 54 comparisons that are all of nothing; uncorrected four or five would be found."""
    directions = ("higher", "lower", "none")
    columns = [
        Column(row(f"m{k}", directions[k % 3]), normals(4, 40, seed=2 * k), normals(4, 40, seed=2 * k + 1)) for k in range(9)
    ]
    data = tabulate(columns, IDS, [(0, 1)])
    raw = np.concatenate([paired((c.values - c.control).T).p for c in columns if c.control is not None])
    assert (raw < LEVEL).sum() > 1
    assert sum(int(data[f"m{k}_above"].sum()) for k in range(9)) <= 1
    assert sum(int((data[f"m{k}_p"] < LEVEL).sum()) for k in range(9)) <= 2  # one comparison, which stands there twice
    assert [data[f"m{k}"].attrs["best"] for k in range(9)] == [""] * 9


def false_alarms(n: int, *, families: int = 120, size: int = 20) -> tuple[float, float]:
    """Share of families of `size` series of n differences, all of mean 0, in which any is found: corrected, uncorrected."""
    p = paired(normals(n, families * size, seed=n), draws=8000).p.reshape(families, size)
    return float(np.mean([(holm(of) < LEVEL).any() for of in p])), float((p < LEVEL).any(1).mean())


BAND = LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / 120)


def test_false_alarms_are_no_more_than_said() -> None:
    corrected, uncorrected = false_alarms(100)
    assert corrected <= BAND and uncorrected > 0.5


def test_false_alarms_are_no_more_than_said_of_the_fewest_units_that_are_judged() -> None:
    assert false_alarms(FEWEST)[0] <= BAND


@pytest.fixture(scope="module")
def many() -> tuple[xr.Dataset, np.ndarray]:
    """Four measures of 24 models, 1104 comparisons, with the models' true means."""
    truth = np.random.default_rng(5).normal(0, 0.3, (4, 24))
    truth[0, 3] = 5.0
    noisy = [
        Column(row(f"m{k}"), t[:, None] + normals(24, 30, seed=k), normals(24, 30, mean=0.5, seed=9 + k))
        for k, t in enumerate(truth)
    ]
    return tabulate(noisy, [str(k) for k in range(24)], []), truth


def test_what_is_far_apart_is_found_among_any_number_of_comparisons(many: tuple[xr.Dataset, np.ndarray]) -> None:
    """20 000 draws give p ≥ 5·10⁻⁵, which a correction for more than 1000 comparisons would lift above the level."""
    data, _ = many
    others = np.arange(24) != 3
    assert (data["m0_p"].values[3, others] < LEVEL).all() and data["m0_above"].values[3]
    assert data["m0"].attrs["best"] == "3"


def test_intervals_cover_the_truth(many: tuple[xr.Dataset, np.ndarray]) -> None:
    """Means, means of controls and differences; 96 or 192 of them allow for ±0.06, a bootstrap of 30 values for 0.02."""
    data, truth = many
    covered: dict[str, list[np.ndarray]] = {"": [], "_control": [], "_difference": []}
    for k, t in enumerate(truth):
        for name, at in (("", t), ("_control", np.full(24, 0.5)), ("_difference", t[:, None] - t[None])):
            low, high = data[f"m{k}{name}_low"].values, data[f"m{k}{name}_high"].values
            known = np.isfinite(low)
            covered[name].append(((low <= at) & (at <= high))[known])
    for name, hits in covered.items():
        assert 0.87 <= np.concatenate(hits).mean() <= 0.995, name


@pytest.mark.parametrize(("better", "best"), [("higher", "c"), ("lower", "a"), ("none", "")])
def test_the_best_is_better_than_every_other_in_its_direction(better: str, best: str) -> None:
    control = around(*[0.0 if better == "higher" else 4.0] * 3, seed=1)
    assert table_of(around(1, 2, 3), control, better=better)["m"].attrs["best"] == best
    shared = around(3, 2, 3) if better == "higher" else around(1, 2, 1)
    assert table_of(shared, control, better=better)["m"].attrs["best"] == ""


def test_above_is_on_the_better_side_of_the_control() -> None:
    values, control = around(1, 2, 3), around(2, 2, 2, seed=1)
    for better, above in (("higher", [False, False, True]), ("lower", [True, False, False]), ("none", [True, False, True])):
        assert table_of(values, control, better=better)["m_above"].values.tolist() == above


def test_the_best_of_those_that_differ_from_their_control_is_not_below_one_that_does_not() -> None:
    """Model c is highest, but as high as its control: nobody is best."""
    data = table_of(around(1, 2, 3), around(0, 0, 3, seed=1))
    assert data["m_above"].values.tolist() == [True, True, False] and data["m"].attrs["best"] == ""


def test_without_a_control_values_stand_for_themselves() -> None:
    data = table_of(around(1, 2), None, pairs=((0, 1),))
    assert data["m_above"].all() and "m_control" not in data
    assert data["m"].attrs["verdict"] == "robust against standard: higher in 1 of 1"


LOW4 = around(0, 0, 0, 0, seed=1)


@pytest.mark.parametrize(
    ("means", "pairs", "words"),
    [
        ((1, 2, 1, 2), ((0, 1), (2, 3)), "robust against standard: higher in 2 of 2"),
        ((2, 1, 2, 1), ((0, 1), (2, 3)), "robust against standard: lower in 2 of 2"),
        ((1, 2, 2, 1), ((0, 1), (2, 3)), "robust against standard: higher in 1, lower in 1 of 2"),
        ((1, 2, 2, 2), ((0, 1), (2, 3)), "robust against standard: higher in 1, not shown to differ in 1 of 2"),
        ((1, 1, 1, 1), ((0, 1),), "robust against standard: not shown to differ in 1 of 1"),
        ((1, 2, 3, 4), (), "no twins to compare"),
        ((0, 0, 0, 0), ((0, 1),), "says nothing here: no tested model differs from its control"),
        ((-1, -2, -1, -1), ((0, 1),), "says nothing here: no tested model differs from its control"),
    ],
)
def test_verdicts(means: tuple[float, ...], pairs: tuple[tuple[int, int], ...], words: str) -> None:
    assert table_of(around(*means), LOW4, pairs=pairs)["m"].attrs["verdict"] == words


def test_few_values_are_not_judged() -> None:
    words = f"not judged: fewer than {FEWEST} values"
    few, enough = (table_of(around(1, 2, n=n), around(0, 0, n=n, seed=1), pairs=((0, 1),)) for n in (FEWEST - 1, FEWEST))
    assert few["m"].attrs["verdict"] == words and not few["m_above"].any() and np.isnan(few["m_p"]).all()
    assert few["m"].attrs["best"] == "" and np.isfinite(few["m_difference_low"].values[0, 1])
    assert enough["m"].attrs["verdict"].endswith("higher in 1 of 1") and enough["m"].attrs["best"] == "b"
    control = around(0, 0, seed=1)
    control[:, FEWEST - 1 :] = np.nan  # many values, few of them beside a control
    assert table_of(around(1, 2), control, pairs=((0, 1),))["m"].attrs["verdict"] == words


def test_models_are_compared_by_what_both_have_been_read_by() -> None:
    """By its own judges the second is higher, by those that both have the first; the third cannot be compared."""
    own = np.stack([around(v, seed=k)[0] for k, v in enumerate((1.0, 2.0, 5.0))])
    beside = np.repeat(own[:, None], 3, 1)
    beside[0, 1] = own[1] + 1
    beside[:, 2] = beside[2, :] = np.nan
    measure = Measure("read", "read", "", "", "share", "higher")
    data = tabulate([Column(measure, own, np.zeros_like(own), "nothing", beside=beside)], ["a", "b", "c"], [(0, 1), (0, 2)])
    assert data["read_difference"].values[0, 1] == pytest.approx(1) and data["read_p"].values[0, 1] < 0.05
    assert np.isnan(data["read_p"].values[:2, 2]).all() and data["read"].attrs["best"] == ""
    assert data["read"].attrs["verdict"] == "robust against standard: lower in 1, not compared in 1 of 2"
