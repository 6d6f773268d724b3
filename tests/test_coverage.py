"""95 % intervals contain the truth in about 95 of 100 repetitions, where it is known.

The band allows for chance in the repetitions, ± 3·√(0.95·0.05 / 400) = 0.033, and for what a percentile bootstrap of 100 values
lacks by theory (half a point for normal values, one to two for skewed ones).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from interp.stats import Interval, bootstrap, wilson

N, REPETITIONS, DRAWS = 100, 400, 400
LOW, HIGH = 0.90, 0.985
Draw = Callable[[np.random.Generator], np.ndarray]
WORLDS: dict[str, tuple[Draw, float]] = {
    "Bernoulli 0.1": (lambda g: (g.random(N) < 0.1).astype(float), 0.1),
    "Bernoulli 0.5": (lambda g: (g.random(N) < 0.5).astype(float), 0.5),
    "normal": (lambda g: g.normal(3.0, 2.0, N), 3.0),
    "lognormal": (lambda g: g.lognormal(0.0, 0.5, N), float(np.exp(0.125))),
}


def coverage(world: str, interval: Callable[[np.ndarray], Interval]) -> float:
    draw, truth = WORLDS[world]
    generator = np.random.default_rng(1)
    found = [interval(draw(generator)) for _ in range(REPETITIONS)]
    return float(np.mean([i.low <= truth <= i.high for i in found]))


def of_bootstrap(values: np.ndarray) -> Interval:
    return bootstrap(values, draws=DRAWS)


def of_wilson(values: np.ndarray) -> Interval:
    return wilson(int(values.sum()), len(values))


@pytest.mark.parametrize("world", WORLDS)
def test_the_bootstrap_covers_the_truth(world: str) -> None:
    assert LOW <= coverage(world, of_bootstrap) <= HIGH


@pytest.mark.parametrize("world", ["Bernoulli 0.1", "Bernoulli 0.5"])
def test_wilson_covers_the_truth(world: str) -> None:
    assert LOW <= coverage(world, of_wilson) <= HIGH


@pytest.mark.parametrize("p", [0.02, 0.1, 0.3, 0.5])
def test_wilson_covers_exactly_computed(p: float) -> None:
    """Σ_k P(k)·[p in the interval of k], without any simulation."""
    covered = sum(binom.pmf(k, N, p) for k in range(N + 1) if wilson(k, N).low <= p <= wilson(k, N).high)
    assert 0.92 <= covered <= 0.98


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("factor", [0.7, 1.5])
def test_the_band_would_notice_intervals_of_a_wrong_width(world: str, factor: float) -> None:
    def wrong(values: np.ndarray) -> Interval:
        i = of_bootstrap(values)
        return Interval(i.mean, i.mean + factor * (i.low - i.mean), i.mean + factor * (i.high - i.mean))

    assert not LOW <= coverage(world, wrong) <= HIGH


def test_differences_of_pairs_are_covered_though_their_parts_vary_more() -> None:
    """The comparison of two models on the same images: a shared difficulty cancels, and the interval is narrower for it."""
    generator, covered, widths = np.random.default_rng(2), 0, []
    for _ in range(REPETITIONS):
        difficulty = generator.normal(0.0, 3.0, N)
        a, b = difficulty + generator.normal(0.5, 1.0, N), difficulty + generator.normal(0.0, 1.0, N)
        paired = of_bootstrap(a - b)
        covered += paired.low <= 0.5 <= paired.high
        widths.append((paired.high - paired.low) / (of_bootstrap(a).high - of_bootstrap(a).low))
    assert LOW <= covered / REPETITIONS <= HIGH
    assert np.mean(widths) < 0.6
