"""Fourier steps are steepest ascent in scaled coordinates; shifts and blurs do what they say; draws belong to samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.attacks.basis import blurred, shifted, weighted
from interp.attacks.pgd import PGD, pgd_steps
from interp.gradients.spectrum import centroid
from tests.test_attacks import Curved, some

SHAPES = [(8, 8), (6, 9), (7, 4), (5, 5)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@pytest.mark.parametrize(("h", "w"), SHAPES)
@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_weighted_is_the_step_along_the_gradient_in_scaled_fourier_coordinates(h: int, w: int, decay: float) -> None:
    """x = Re F⁻¹(s·c): the picture moves along ∂x/∂c · ∇_c, which autograd gives; s(f) = max(|f|, 1/size)^−decay, up to scale."""
    g = normal(2, 3, h, w)
    f = (torch.fft.fftfreq(h)[:, None] ** 2 + torch.fft.fftfreq(w)[None] ** 2).sqrt().double()
    s = f.clamp_min(1 / max(h, w)) ** -decay
    c = torch.zeros(2, 3, h, w, dtype=torch.complex128, requires_grad=True)
    (along,) = torch.autograd.grad((torch.fft.ifft2(s * c, norm="ortho").real * g).sum(), c)
    expected = torch.fft.ifft2(s * along, norm="ortho").real
    got = weighted(g, decay)
    scale = inner(got, expected) / inner(expected, expected)
    assert torch.allclose(got, scale.view(-1, 1, 1, 1) * expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(scale, scale[:1])
    assert (scale > 0).all()


@pytest.mark.parametrize(("h", "w"), SHAPES)
def test_weighted_is_linear_self_adjoint_and_positive_and_decay_zero_changes_nothing(h: int, w: int) -> None:
    a, b = normal(3, 3, h, w), normal(3, 3, h, w, seed=1)
    assert torch.allclose(weighted(a, 0.0), a, atol=1e-12)
    assert torch.allclose(weighted(2 * a - b, 1.0), 2 * weighted(a, 1.0) - weighted(b, 1.0), atol=1e-10)
    assert torch.allclose(inner(weighted(a, 1.0), b), inner(a, weighted(b, 1.0)))
    assert (inner(a, weighted(a, 1.0)) > 0).all()


def test_weighted_multiplies_a_wave_by_its_frequency_s_weight() -> None:
    """f and 2f: with decay 1, s² falls to a quarter."""
    at = torch.arange(16).double() * 2 * torch.pi / 16
    slow, fast = ((k * at).cos().expand(1, 3, 16, 16) for k in (2, 4))
    assert torch.allclose(weighted(slow, 1.0), slow * weighted(slow, 1.0)[0, 0, 0, 0], atol=1e-6)
    assert float(weighted(slow, 1.0)[0, 0, 0, 0] / weighted(fast, 1.0)[0, 0, 0, 0]) == pytest.approx(4, rel=1e-5)


def test_fourier_steps_draw_smoother_perturbations() -> None:
    x, y = some(4, 16, width=12) * 0.2 + 0.4, torch.arange(4)
    found = []
    for basis, decay in (("pixels", 1.0), ("fourier", 0.5), ("fourier", 1.5)):
        pgd = PGD(2.0, "l2", steps=4, basis=basis, decay=decay, random_start=False)
        found.append(centroid(list(pgd_steps(Curved(shape=(16, 12)), x, y, pgd))[-1].x - x).mean())
    assert found[0] > found[1] > found[2]


def test_fourier_with_decay_zero_steps_along_the_gradient_itself() -> None:
    x, y = some(3, width=5), torch.arange(3)
    smooth, plain = (
        list(pgd_steps(Curved(), x, y, PGD(0.5, "l2", steps=4, basis=basis, decay=0.0)))[-1].x for basis in ("fourier", "pixels")
    )
    assert torch.allclose(smooth, plain, atol=1e-5)


def test_shifted_rolls_each_image_by_its_own_row() -> None:
    x, by = normal(4, 3, 5, 7), torch.tensor([[0, 0], [1, -2], [-3, 4], [5, 7]])
    expected = torch.stack([torch.roll(image, tuple(row), dims=(1, 2)) for image, row in zip(x, by.tolist(), strict=True)])
    assert torch.equal(shifted(x, by), expected)


def test_the_adjoint_of_a_shift_is_the_shift_back() -> None:
    a, b, by = normal(4, 3, 5, 7), normal(4, 3, 5, 7, seed=1), torch.tensor([[2, 1], [1, -2], [-3, 4], [0, 6]])
    assert torch.allclose(inner(shifted(a, by), b), inner(a, shifted(b, -by)))
    at = a.clone().requires_grad_(True)
    (pulled,) = torch.autograd.grad((shifted(at, by) * b).sum(), at)
    assert torch.equal(pulled, shifted(b, -by))


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.5])
@pytest.mark.parametrize(("h", "w"), [(16, 16), (16, 11)])
def test_blurred_keeps_constants_and_range_and_smooths(sigma: float, h: int, w: int) -> None:
    constant = torch.full((2, 3, h, w), 0.37, dtype=torch.float64)
    assert torch.allclose(blurred(constant, sigma), constant, atol=1e-12)
    x = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0))
    assert blurred(x, sigma).min() >= x.min() - 1e-6
    assert blurred(x, sigma).max() <= x.max() + 1e-6
    assert blurred(x, sigma).var() < x.var()
    assert blurred(x, sigma).shape == x.shape


def test_blurred_spreads_a_point_as_a_gaussian() -> None:
    point = torch.zeros(1, 3, 21, 21, dtype=torch.float64)
    point[..., 10, 10] = 1
    spread = blurred(point, 1.5)[0, 1]
    at = torch.arange(21) - 10
    assert float(spread.sum()) == pytest.approx(1)
    assert float(spread[10, 11] / spread[10, 10]) == pytest.approx(
        float(torch.exp(torch.tensor(-0.5 / 1.5**2, dtype=torch.float64)))
    )
    assert float((spread.sum(0) * at**2).sum()) == pytest.approx(1.5**2, rel=0.03)  # cut at 3σ
    assert torch.allclose(spread, spread.T)
    assert torch.equal(blurred(point, 1.5)[0, 0], spread)


def test_no_blur_changes_nothing_and_small_images_take_any() -> None:
    x = some(2, 6, width=5)
    assert torch.equal(blurred(x, 0.0), x)
    assert blurred(some(1, 2, width=3), 4.0).isfinite().all()
    assert torch.equal(blurred(some(1, 1, width=1), 4.0), some(1, 1, width=1))


def test_a_blurred_model_s_gradient_is_pulled_back_by_the_blur_s_transpose() -> None:
    x, g = normal(1, 3, 9, 8).requires_grad_(True), normal(1, 3, 9, 8, seed=1)
    (pulled,) = torch.autograd.grad((blurred(x, 0.6) * g).sum(), x)
    matrix = torch.stack([blurred(e.view(1, 1, 9, 8), 0.6).flatten() for e in torch.eye(72, dtype=torch.float64)], 1)
    assert torch.allclose(pulled.view(3, 72), g.view(3, 72) @ matrix)
    assert torch.allclose(pulled[..., 4, 4], blurred(g, 0.6)[..., 4, 4])  # symmetric away from the mirrored borders
    assert not torch.allclose(matrix, matrix.T)


def test_shifts_belong_to_samples_and_change_from_step_to_step() -> None:
    """Read off from what the model is shown: an image with one bright pixel."""
    shown: list[Tensor] = []

    class Eye(Curved):
        def forward(self, x: Tensor) -> Tensor:
            shown.append(x.detach())
            return super().forward(x)

    x = torch.zeros(5, 3, 6, 5)
    x[:, :, 2, 2] = 1
    pgd = PGD(0.0, steps=6, jitter=2)

    def places(rows: slice, first: int, restart: int = 0) -> Tensor:
        shown.clear()
        list(pgd_steps(Eye(), x[rows], torch.zeros(5, dtype=torch.long)[rows], pgd, first=first, restart=restart))
        return torch.stack([image[:, 0].flatten(1).argmax(1) for image in shown], 1)  # (n, steps + 1)

    whole = places(slice(0, 5), 0)
    assert torch.equal(torch.cat([places(slice(0, 2), 0), places(slice(2, 5), 2)]), whole)
    assert (whole[:, -1] == 12).all()  # the result is read as it is
    assert len({tuple(row) for row in whole.tolist()}) == 5
    assert len(set(whole[:, :-1].flatten().tolist())) > 12
    assert not torch.equal(places(slice(0, 5), 0, restart=1), whole)
    rows, columns = whole // 5, whole % 5
    assert ((rows - 2).abs() <= 2).all()
    assert ((columns - 2).abs() <= 2).all()
