"""What two models share: CKA and best matches against their formulas, and the values per image that stand for CKA."""

from __future__ import annotations

import numpy as np
import pytest

from interp.attributes.groups import _likeness
from interp.attributes.matching import MEASURES, best_matches, cka_by_image, linear_cka, shared
from interp.types import InputError


def test_cka_ignores_rotation_and_scale_and_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 5)), rng.normal(size=(20, 8))
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for unbiased in (True, False):
        assert linear_cka(x, 3 * x @ turn + 7, unbiased=unbiased) == pytest.approx(1)
    a, b = x - x.mean(0), y - y.mean(0)
    formula = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert linear_cka(x, y, unbiased=False) == pytest.approx(formula)


def test_unbiased_cka_of_unrelated_features_is_near_zero_and_the_plain_one_is_not() -> None:
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(30, 200)), rng.normal(size=(30, 200))) for _ in range(20)]
    assert abs(np.mean([linear_cka(*d) for d in draws])) < 0.02
    assert np.mean([linear_cka(*d, unbiased=False) for d in draws]) > 0.7


def test_best_matches_find_a_permuted_concept() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((50, 4))
    assert best_matches(a, 2 * a[:, [2, 0, 3, 1]] + 1) == pytest.approx(np.ones(4))
    assert best_matches(a, rng.random((50, 4))).max() < 0.6
    a[:, 1] = 5
    assert np.isnan(best_matches(a, a)).tolist() == [False, True, False, False]


def test_values_of_images_are_the_jackknifes() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 5))
    y = x @ rng.normal(size=(5, 7)) + rng.normal(size=(12, 7))
    without = np.array([linear_cka(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(12)])
    values = cka_by_image(x, y)
    assert values == pytest.approx(linear_cka(x, y) + 11 * (without.mean() - without))
    assert values.mean() == pytest.approx(linear_cka(x, y))
    assert cka_by_image(x, -2 * x + 1) == pytest.approx(np.ones(12))


def test_their_spread_is_that_of_cka_over_other_images() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 7))

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(n, 5)) * rng.exponential(size=(n, 1))
        return x, x @ mix + 2 * rng.normal(size=(n, 7))

    anew = np.std([linear_cka(*draw(100)) for _ in range(300)])
    said = np.mean([cka_by_image(*draw(100)).std(ddof=1) / 10 for _ in range(20)])
    assert said == pytest.approx(anew, rel=0.2)


def test_a_model_is_compared_with_another_by_what_the_rest_share() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(30, 6))
    features = [one, one + 0.5 * rng.normal(size=(30, 6)), rng.normal(size=(30, 6))]
    cka, match = shared(features, [np.abs(f) for f in features])
    strange, _ = shared(features, features, seed=1)
    assert cka.shape == strange.shape == (3, 3, 30)
    assert np.diag(match) == pytest.approx([1, 1, 1])
    column = _likeness(MEASURES[0], cka, strange)
    mean = cka.mean(2)
    assert column.values.mean(1) == pytest.approx(
        [(mean[0, 1] + mean[0, 2]) / 2, (mean[0, 1] + mean[1, 2]) / 2, mean[2, :2].mean()]
    )
    assert column.difference(0, 2).mean() == pytest.approx(mean[2, 1] - mean[0, 1])
    assert column.control is not None
    assert np.abs(column.control.mean(1)).max() < 0.3
    two = _likeness(MEASURES[0], cka[:2, :2], strange[:2, :2])
    assert two.values.mean(1) == pytest.approx([mean[0, 1]] * 2)
    assert np.isnan(two.difference(0, 1)).all()


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match="4 at least"):
        linear_cka(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(InputError, match="of 4 and 4 images; expected the same, 5 at least"):
        cka_by_image(np.ones((4, 2)), np.ones((4, 2)))
    with pytest.raises(InputError, match="expected the same"):
        best_matches(np.ones((3, 2)), np.ones((4, 2)))
