"""Balls: the way back into ball and box, uniform starts, steepest steps; L1 beside the released code and foolbox."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.attacks.norms import NORMS, SPARSITY
from interp.attacks.pgd import start_noise

SHAPES = [(1, 3, 4, 4), (2, 3, 5, 3), (9, 3, 3, 7)]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def within(norm: str, x: Tensor, moved: Tensor, eps: Tensor) -> bool:
    slack = NORMS[norm].size(torch.full_like(x[:1], 2e-7))
    return bool((NORMS[norm].size(moved - x) <= eps * (1 + 1e-5) + slack).all()) and moved.min() >= 0 and moved.max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", list(NORMS))
def test_land_keeps_ball_and_box_of_every_sample(norm: str, shape: tuple[int, ...]) -> None:
    x, d = drawn(*shape), 3 * drawn(*shape, seed=1) - 1.5
    x[..., 0] = x[..., 0].round()  # some pixels on the border
    for scale in (1e-3, 0.1, 1.0):
        eps = scale * (0.5 + drawn(len(x), seed=2)) * NORMS[norm].size(torch.ones_like(x)) ** 0.5
        assert within(norm, x, NORMS[norm].land(x, d, eps), eps)


@pytest.mark.parametrize("norm", list(NORMS))
def test_land_leaves_the_inside_alone_and_is_idempotent(norm: str) -> None:
    x, d, eps = 0.3 + 0.4 * drawn(5, 3, 4, 6), drawn(5, 3, 4, 6, seed=1) - 0.5, torch.linspace(0.1, 0.5, 5)
    small = d * 1e-4
    assert torch.equal(NORMS[norm].land(x, small, eps), x + small)
    once = NORMS[norm].land(x, d, eps)
    assert torch.allclose(NORMS[norm].land(x, once - x, eps), once, atol=1e-6)


@pytest.mark.parametrize("norm", list(NORMS))
def test_no_budget_lands_on_the_image(norm: str) -> None:
    x = drawn(3, 3, 32, 32).round()  # every pixel on the border
    d = (16 * drawn(3, 3, 32, 32, seed=1) - 8).round() / 4  # ties, many pointing out
    assert torch.equal(NORMS[norm].land(x, d, torch.zeros(3)), x)


@pytest.mark.parametrize("norm", list(NORMS))
def test_an_unbounded_ball_leaves_only_the_box(norm: str) -> None:
    x, d = drawn(3, 3, 4, 4), 4 * drawn(3, 3, 4, 4, seed=1) - 2
    assert torch.allclose(NORMS[norm].land(x, d, torch.full((3,), 1e6)), (x + d).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_land_far_from_the_box_shortens_to_the_radius(norm: str) -> None:
    x, d, eps = torch.full((4, 3, 2, 5), 0.5), drawn(4, 3, 2, 5) - 0.5, torch.linspace(0.01, 0.2, 4)
    assert torch.allclose(NORMS[norm].size(NORMS[norm].land(x, d, eps) - x), eps, rtol=1e-5)


def nearest_in_l1(x: np.ndarray, d: np.ndarray, eps: float) -> np.ndarray:
    """argmin ‖z − d‖₂ over ‖z‖₁ ≤ ε, 0 ≤ x + z ≤ 1 by bisection on the multiplier λ of the first constraint (float64)."""

    def at(cut: float) -> np.ndarray:
        return np.clip(np.sign(d) * np.maximum(np.abs(d) - cut, 0), -x, 1 - x)

    low, high = 0.0, float(np.abs(d).max())
    if np.abs(at(0.0)).sum() <= eps:
        return at(0.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(at(middle)).sum() > eps else (low, middle)
    return at(high)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 30), st.floats(0.01, 5), st.integers(1, 4))
def test_l1_lands_on_the_nearest_point(seed: int, eps: float, scale: float, n: int) -> None:
    x, d = drawn(n, 3, 4, 2, seed=seed), scale * (2 * drawn(n, 3, 4, 2, seed=seed + 1) - 1)
    x[:, 0] = x[:, 0].round()
    d[:, 1] = d[:, 1].mul(4).round().div(4)  # ties and zeros
    radius = eps * (1 + torch.arange(n) / 3)
    ours = (NORMS["l1"].land(x, d, radius) - x).double().flatten(1).numpy()
    for i in range(n):
        expected = nearest_in_l1(x[i].double().flatten().numpy(), d[i].double().flatten().numpy(), float(radius[i]))
        assert np.abs(ours[i] - expected).max() < 1e-6


def test_no_other_point_of_ball_and_box_is_nearer_in_l1() -> None:
    x, d, eps = drawn(1, 3, 2, 2), 2 * drawn(1, 3, 2, 2, seed=1) - 1, torch.tensor([1.5])
    landed = NORMS["l1"].land(x, d, eps)
    others = landed + 0.05 * torch.randn(4000, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    others = others.clamp(0, 1)
    inside = others[NORMS["l1"].size(others - x) <= eps]
    assert len(inside) > 100
    assert ((inside - x - d).flatten(1).norm(dim=1) >= (landed - x - d).norm() - 1e-6).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.2, 2.0, 12.0])
def test_l1_lands_where_the_released_code_does(shape: tuple[int, ...], eps: float) -> None:
    from pyautoattack.autopgd_base import L1_projection

    x, d = drawn(*shape), 2 * drawn(*shape, seed=1) - 1
    expected = x + d + L1_projection(x, d, eps)
    assert (NORMS["l1"].land(x, d, torch.full((len(x),), eps)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("norm", list(NORMS))
def test_starts_are_uniform_in_the_ball_of_every_sample(norm: str) -> None:
    """In 12 dimensions P(‖δ‖ ≤ r·ε) = r¹² for all three balls: ‖δ‖¹²/ε¹² is uniform in [0, 1] (Kolmogorov's bound at 0.1 %)."""
    n = 4000
    eps = torch.linspace(0.1, 2, n)
    z, u = start_noise((n, 3, 2, 2), seed=0)
    d = NORMS[norm].start(z, u, eps)
    volume = (NORMS[norm].size(d) / eps).double().pow(12).sort().values
    assert volume[-1] <= 1 + 1e-5
    assert (volume - (torch.arange(n) + 0.5) / n).abs().max() < 1.95 / n**0.5


MARGINAL = {  # P(|δ_i| ≤ t·ε) of one coordinate of a uniform point, dimension 12
    "linf": lambda t: t,
    "l1": lambda t: 1 - (1 - t) ** 12,
    "l2": lambda t: (
        np.vectorize(lambda v: np.trapezoid((1 - np.linspace(0, v, 400) ** 2) ** 5.5, np.linspace(0, v, 400)))(t)
        / np.trapezoid((1 - np.linspace(0, 1, 4000) ** 2) ** 5.5, np.linspace(0, 1, 4000))
    ),
}


@pytest.mark.parametrize("norm", list(NORMS))
def test_single_coordinates_of_starts_have_the_ball_s_distribution(norm: str) -> None:
    """Uniform over the ball and not only of the right size: the marginals of cube, ball and cross-polytope differ."""
    n = 4000
    z, u = start_noise((n, 3, 2, 2), seed=1)
    d = NORMS[norm].start(z, u, torch.ones(n)).flatten(1)
    for i in (0, 7, 11):
        size = np.sort(d[:, i].abs().double().numpy())
        assert np.abs(MARGINAL[norm](size) - (np.arange(n) + 0.5) / n).max() < 1.95 / n**0.5
        assert float((d[:, i] > 0).float().mean()) == pytest.approx(0.5, abs=4 * 0.5 / n**0.5)
    signs = d.sign()
    assert (signs.T @ signs / n - torch.eye(12)).abs().max() < 5 / n**0.5  # coordinates' signs are independent


@pytest.mark.parametrize("norm", list(NORMS))
def test_a_step_climbs_a_plane_as_steeply_as_any_of_its_size(norm: str) -> None:
    """max ⟨g, s⟩ over ‖s‖ ≤ 1 is the dual norm of g; L1 spreads over the top per cent, so it reaches that only for one pixel."""
    g, x = drawn(4, 3, 3, 5) - 0.5, torch.full((4, 3, 3, 5), 0.5)
    step = NORMS[norm].step(g, x)
    assert torch.allclose(NORMS[norm].size(step), torch.ones(4), atol=1e-6)
    assert torch.allclose((g * step).flatten(1).sum(1), torch.linalg.vector_norm(g.flatten(1), DUAL[norm], dim=1), rtol=1e-5)


@pytest.mark.parametrize("norm", list(NORMS))
def test_a_gradient_of_zero_moves_nothing(norm: str) -> None:
    assert torch.equal(NORMS[norm].step(torch.zeros(2, 3, 4, 4), drawn(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (1, 3, 4, 4), (2, 3, 32, 20)])
def test_l1_steps_as_foolbox_does(shape: tuple[int, ...]) -> None:
    foolbox = pytest.importorskip("foolbox")
    import eagerpy as ep

    x, g = drawn(*shape), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x[..., 0], x[..., 1] = 0, 1  # where half of the gradient points out of the box
    g[..., :2] *= 10
    theirs = foolbox.attacks.SparseL1DescentAttack(quantile=SPARSITY)
    expected: Any = theirs.normalize(ep.astensor(g), x=ep.astensor(x), bounds=foolbox.types.Bounds(0, 1)).raw
    assert torch.allclose(NORMS["l1"].step(g, x), expected, atol=1e-7)


def test_an_l1_step_leaves_out_pixels_that_would_leave_the_box() -> None:
    g, x = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    g[0, 0, 0, 0], g[0, 1, 0, 0], g[0, 2, 1, 1] = 5.0, -4.0, 1.0
    x[0, 0, 0, 0], x[0, 1, 0, 0] = 1.0, 0.0
    expected = torch.zeros_like(g)
    expected[0, 2, 1, 1] = 1.0
    assert torch.equal(NORMS["l1"].step(g, x), expected)
