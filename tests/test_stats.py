"""Streaming statistics equal the one-pass formula for every split; intervals agree with their references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor

from interp.stats import Running, bootstrap, cosine, holm, paired, wilson

FIELDS = ("mean", "absolute", "variance", "agreement")


def stream(n: int, seed: int, *, offset: float = 0.0) -> Tensor:
    v = torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(seed)) + offset
    return torch.where(v.abs() < 0.2, 0.0, v)


def one_pass(v: Tensor) -> dict[str, np.ndarray]:
    a = v.double().numpy()
    return {
        "mean": a.mean(0),
        "absolute": np.abs(a).mean(0),
        "variance": a.var(0),
        "agreement": np.abs(np.sign(a).sum(0)) / len(a),
    }


def folded(parts: list[Tensor]) -> Running:
    running = Running()
    for part in parts:
        running.update(part)
    return running


def check(running: Running, v: Tensor) -> None:
    assert running.count == len(v)
    for name, want in one_pass(v).items():
        np.testing.assert_allclose(getattr(running, name).numpy(), want, rtol=1e-6, atol=1e-7, err_msg=name)


@given(st.integers(1, 40), st.integers(0, 9), st.data())
@settings(max_examples=40, deadline=None)
def test_any_split_equals_one_pass(n: int, seed: int, data: st.DataObject) -> None:
    v = stream(n, seed, offset=seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=5)))
    parts = [v[a:b] for a, b in zip([0, *cuts], [*cuts, n], strict=True)]  # empty ones among them
    check(folded(parts), v)
    middle = data.draw(st.integers(0, len(parts)))
    left, right = folded(parts[:middle]), folded(parts[middle:])
    left.merge(right)
    check(left, v)


def test_merging_leaves_the_other_as_it_was() -> None:
    v = stream(9, 0)
    empty, left, right = Running(), folded([v[:4]]), folded([v[4:]])
    empty.merge(right)
    empty.merge(left)
    left.merge(right)
    right.merge(Running())
    check(right, v[4:])
    check(left, v)
    check(empty, v)


def test_variance_survives_a_large_mean() -> None:
    v = stream(200, 1).double() + 1e6
    running = folded(list(v.split(7)))
    np.testing.assert_allclose(running.variance.numpy(), v.numpy().var(0), rtol=1e-5)


def test_one_sample_has_no_variance_and_full_agreement() -> None:
    v = torch.tensor([[1.0, -2.0, 0.0]])
    running = folded([v])
    assert torch.equal(running.mean, v[0]) and torch.equal(running.variance, torch.zeros(3))
    assert running.agreement.tolist() == [1, 1, 0] and running.mean.dtype == torch.float32


def test_agreement_counts_signs() -> None:
    v = torch.tensor([[3.0, 0.1, 1.0], [0.2, -9.0, 0.0], [0.5, 0.1, 0.0], [7.0, -9.0, 0.0]])
    assert folded([v[:1], v[1:]]).agreement.tolist() == [1.0, 0.0, 0.25]
    assert torch.equal(folded([v]).agreement, folded([-100 * v]).agreement)


def test_nothing_seen_is_nothing_known() -> None:
    for name in FIELDS:
        with pytest.raises(ValueError, match="no samples yet"):
            getattr(Running(), name)


def test_any_split_gives_the_same_bits() -> None:
    v = stream(12, 3)
    whole, single = folded([v]), folded(list(v.split(1)))
    assert all(torch.equal(getattr(whole, name), getattr(single, name)) for name in FIELDS)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_weight_counts_a_sample_as_often(weights: list[int], seed: int) -> None:
    v = stream(len(weights), seed, offset=0.3)
    repeated = v.repeat_interleave(torch.tensor(weights), dim=0)
    weighted, half = Running(), Running()
    weighted.update(v, weights)
    half.update(v, [w / 2 for w in weights])
    assert weighted.count == len(v) and weighted.weight == len(repeated)
    for name, want in one_pass(repeated).items():
        for running in (weighted, half):
            np.testing.assert_allclose(getattr(running, name).numpy(), want, rtol=1e-6, atol=1e-7, err_msg=name)
    left, right = Running(), Running()
    left.update(v[:3], weights[:3])
    right.update(v[3:], weights[3:])
    right.merge(left)
    np.testing.assert_allclose(right.variance.numpy(), weighted.variance.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_weights_are_above_zero(weight: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        Running().update(stream(2, 0), [1.0, weight])


def test_each_sample_has_one_weight() -> None:
    with pytest.raises(ValueError, match="zip"):
        Running().update(stream(3, 0), [1.0, 1.0])


def test_statistics_have_the_precision_of_the_samples() -> None:
    v = stream(5, 0).double() / 3
    for name in FIELDS:
        assert getattr(folded([v]), name).dtype == torch.float64
        assert getattr(folded([v.float()]), name).dtype == torch.float32
    np.testing.assert_allclose(folded([v]).mean.numpy(), v.numpy().mean(0), rtol=1e-14)


def test_memory_does_not_grow_with_the_samples() -> None:
    def held(running: Running) -> int:
        return sum(v.untyped_storage().nbytes() for v in vars(running._sums).values() if isinstance(v, Tensor))

    running = folded([stream(3, 0)])
    first, names = held(running), set(vars(running._sums))
    for i in range(50):
        running.update(stream(20, i))
    assert held(running) == first == 6 * (4 * 8 + 2 * 4) and set(vars(running._sums)) == names
    assert not any(isinstance(v, list | dict | tuple) for v in [*vars(running).values(), *vars(running._sums).values()])
    x = stream(1000, 0).requires_grad_(True)
    running.update(x * 2)
    assert not running.mean.requires_grad and held(running) == first


@pytest.mark.parametrize(("k", "n"), [(8, 10), (0, 10), (10, 10), (1, 1), (0, 1), (531, 1000), (3, 20000)])
def test_wilson_is_scipys_wilson(k: int, n: int) -> None:
    want = binomtest(k, n).proportion_ci(method="wilson")
    found = wilson(k, n)
    assert found.mean == k / n
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-6)


def test_wilson_of_eight_in_ten_and_of_nothing() -> None:
    assert wilson(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=5e-5)
    nothing = wilson(0, 0)
    assert math.isnan(nothing.mean) and nothing[1:] == (0.0, 1.0)


def test_wilson_is_symmetric_and_stays_within_0_and_1() -> None:
    for n in (1, 2, 7, 50):
        for k in range(n + 1):
            a, b = wilson(k, n), wilson(n - k, n)
            assert 0 <= a.low <= a.mean <= a.high <= 1
            assert (a.low, a.high) == pytest.approx((1 - b.high, 1 - b.low))


def test_the_bootstrap_contains_the_mean_and_shrinks_with_n() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 1600)
    widths = []
    for n in (25, 100, 400, 1600):
        found = bootstrap(values[:n])
        assert found.mean == pytest.approx(values[:n].mean()) and found.low < found.mean < found.high
        normal = 2 * 1.96 * values[:n].std() / math.sqrt(n)
        assert found.high - found.low == pytest.approx(normal, rel=0.15)
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)


def test_the_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    draws = np.random.default_rng(1).normal(0.0, 1.0, (300, 60))
    covered = sum(i.low <= 0 <= i.high for i in (bootstrap(row, draws=500) for row in draws))
    assert 0.90 <= covered / 300 <= 0.985


def test_the_bootstrap_is_seeded_and_leaves_nan_out() -> None:
    values = [1.0, math.nan, 2.0, 4.0, math.nan]
    assert bootstrap(values) == bootstrap([1.0, 2.0, 4.0]) == bootstrap(values, seed=0)
    assert bootstrap(np.arange(30.0)) != bootstrap(np.arange(30.0), seed=1)
    assert bootstrap([5.0, 5.0]) == (5.0, 5.0, 5.0)
    assert all(map(math.isnan, bootstrap([]))) and all(map(math.isnan, bootstrap([math.nan])))


def test_cosine_of_tiny_vectors() -> None:
    a = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(cosine(1e-15 * a, 1e-15 * a), torch.ones(3), atol=1e-5)


def test_cosine_per_sample() -> None:
    a = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(cosine(a, 3 * a), torch.ones(4)) and torch.allclose(cosine(a, -a), -torch.ones(4))
    assert torch.equal(cosine(a, torch.zeros_like(a)), torch.zeros(4))
    flat = a.flatten(1).numpy()
    want = (flat[0] @ flat[1]) / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert float(cosine(a[:1], a[1:2])) == pytest.approx(float(want), abs=1e-6)


def test_holm_is_the_step_down_rule_and_leaves_nan_out() -> None:
    # 0.01·4, 0.02·3, 0.03·2, 0.04·1, each at least the one before
    adjusted = holm([[0.01, 0.04], [np.nan, 0.03], [0.02, np.nan]])
    assert np.allclose(adjusted, [[0.04, 0.06], [np.nan, 0.06], [0.06, np.nan]], equal_nan=True)
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0] and holm([]).size == 0


def test_paired_differences_have_the_interval_of_the_bootstrap_and_p_of_their_size() -> None:
    rng = np.random.default_rng(0)
    d = np.stack([rng.normal(0, 1, 200), rng.normal(0.5, 1, 200), np.zeros(200), np.full(200, 0.2), np.full(200, np.nan)], 1)
    d[:50, 1] = np.nan
    found = paired(d, draws=4000)
    assert found.n.tolist() == [200, 150, 200, 200, 0] and np.allclose(found.mean[:4], np.nanmean(d[:, :4], 0))
    one = bootstrap(d[:, 1], draws=4000)
    assert abs(found.low[1] - one.low) < 0.03 and abs(found.high[1] - one.high) < 0.03
    assert found.p[0] > 0.05 and found.p[1] < 0.001 and found.p[2] == 1 and found.p[3] == 1 / 4001 and np.isnan(found.p[4])
    assert np.array_equal(found.p[:1], paired(d[:, :1], draws=4000).p)  # a series does not depend on those beside it


def test_p_of_no_difference_is_below_5_percent_one_time_in_20() -> None:
    d = np.random.default_rng(1).standard_t(5, (60, 400))
    share = float((paired(d, draws=1000).p < 0.05).mean())
    assert 0.025 < share < 0.095  # 0.05 ± 4 standard errors of 400 series


def test_p_allows_for_skew() -> None:
    d = np.random.default_rng(2).exponential(size=(20, 3000)) - 1
    assert float((paired(d, draws=1000).p < 0.05).mean()) < 0.068  # Student's alone: 0.08
