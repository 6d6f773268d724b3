"""Measures of how a map looks, on maps whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import comb, ellipe
from torch import Tensor

import interp
from interp.attacks.pgd import PGD
from interp.attributes.appearance import (
    KERNELS,
    MEASURES,
    anisotropy,
    hoyer,
    orientation,
    sign_agreement,
    smoothness,
    total_variation,
)
from interp.gradients.fold import fold
from interp.gradients.sources import gradient, over_steps
from interp.stats import Running
from interp.types import Batch
from tests.test_attacks import Linear, some

SIZE = 32


def noise(n: int, seed: int = 0, size: int = SIZE) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def constant(value: float = 0.3) -> Tensor:
    return torch.full((1, 3, SIZE, SIZE), value)


def pixel() -> Tensor:
    v = torch.zeros(1, 1, SIZE, SIZE)
    v[..., 9, 20] = -2.0
    return v


def wave(rows: int, columns: int, phase: float = 0.4) -> Tensor:
    """So many periods down the rows and along the columns."""
    at = torch.arange(SIZE) / SIZE
    return torch.sin(2 * math.pi * (rows * at[:, None] + columns * at[None, :]) + phase).expand(1, 3, SIZE, SIZE)


def stripes(width: int = 4) -> Tensor:
    return ((torch.arange(SIZE) // width) % 2).float().expand(1, 3, SIZE, SIZE)


def test_no_measure_sees_the_scale_or_the_sign() -> None:
    v = noise(3)
    for name, kernel in KERNELS.items():
        assert torch.allclose(kernel(v), kernel(-30 * v), rtol=1e-4), name


def test_one_image_is_measured_as_among_others() -> None:
    v = noise(3)
    for name, kernel in KERNELS.items():
        assert kernel(v).shape == (3,) and torch.allclose(kernel(v[1:2]), kernel(v)[1:2], rtol=1e-5), name


def test_total_variation_of_known_maps() -> None:
    assert total_variation(constant()).item() == 0
    inside = (SIZE / (SIZE - 1)) ** 2
    assert total_variation(pixel()).item() == pytest.approx((2 + math.sqrt(2)) * inside, rel=1e-5)
    assert total_variation(stripes(4)).item() == pytest.approx(7 / 31 / 0.5, rel=1e-5)  # 7 steps in 31 differences
    for k in (1, 5, 11):
        assert total_variation(wave(0, k)).item() == pytest.approx(2 * math.sin(math.pi * k / SIZE), rel=0.03)
    assert total_variation(noise(64)).mean().item() == pytest.approx(math.sqrt(3) * ellipe(2 / 3), rel=0.005)
    assert math.isnan(total_variation(constant(0.0)).item())


def test_blur_lowers_total_variation() -> None:
    v = noise(4)
    assert (total_variation(torch.nn.functional.avg_pool2d(v, 3, 1, 1)) < 0.6 * total_variation(v)).all()


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (5, 0), (4, 4), (-4, 4), (3, 7), (-6, 2)])
def test_a_wave_has_one_orientation(rows: int, columns: int) -> None:
    v = wave(rows, columns)
    assert anisotropy(v).item() == pytest.approx(1, abs=1e-4)
    apart = orientation(v).item() - math.atan2(rows, columns)
    assert abs(math.sin(apart)) < 1e-3  # angles of lines are equal up to half a turn
    assert 0 <= orientation(v).item() < math.pi


def test_stripes_have_one_orientation_and_turn_with_the_map() -> None:
    assert anisotropy(stripes()).item() == pytest.approx(1, abs=1e-4)
    assert abs(math.sin(orientation(stripes()).item())) < 1e-3
    assert orientation(stripes().mT).item() == pytest.approx(math.pi / 2, abs=1e-3)


def test_waves_at_right_angles_and_single_pixels_have_none() -> None:
    assert anisotropy(wave(0, 3) + wave(3, 0)).item() < 1e-4
    assert anisotropy(wave(5, 2) + wave(-2, 5)).item() < 1e-4
    assert anisotropy(pixel()).item() < 1e-4


def test_channels_do_not_cancel() -> None:
    v = wave(2, 5).clone()
    v[:, 1] *= -1
    v[:, 2] = 0
    assert anisotropy(v).item() == pytest.approx(1, abs=1e-4)


def test_anisotropy_of_noise_is_what_chance_gives() -> None:
    found = anisotropy(noise(400)).square().mean().sqrt().item()
    assert found == pytest.approx(math.sqrt(2 / (3 * SIZE * SIZE)), rel=0.1)


@pytest.mark.parametrize("value", [0.0, 0.3, 1 / 255, -7.1])
def test_a_constant_map_has_no_orientation(value: float) -> None:
    assert anisotropy(constant(value)).isnan().all() and orientation(constant(value)).isnan().all()


def test_a_small_wave_on_a_large_constant_is_seen() -> None:
    assert anisotropy(constant(1.0) + 1e-3 * wave(0, 3)).item() == pytest.approx(1, abs=1e-3)


def test_hoyer_of_known_maps() -> None:
    assert hoyer(constant()).item() == pytest.approx(0, abs=1e-6)
    assert hoyer(pixel()).item() == 1
    half = torch.zeros(1, 1, SIZE, SIZE)
    half[..., : SIZE // 2] = 5.0
    assert hoyer(half).item() == pytest.approx((SIZE - SIZE / math.sqrt(2)) / (SIZE - 1), rel=1e-5)
    ratio = 3 * math.sqrt(2 / math.pi) / math.sqrt(3 + 12 / math.pi)  # E a / √E a², a the sum of three |normal|
    assert hoyer(noise(64)).mean().item() == pytest.approx((1 - ratio) * SIZE / (SIZE - 1), rel=0.02)
    assert hoyer(constant(0.0)).isnan().all()


def running(samples: Tensor) -> Running:
    r = Running()
    r.update(samples)
    return r


def test_sign_agreement_of_steady_alternating_and_random_signs() -> None:
    v = noise(4)
    assert torch.allclose(sign_agreement(running(torch.stack([v, 3 * v, 0.1 * v]))), torch.ones(4))
    assert torch.equal(sign_agreement(running(torch.stack([v, -v]))), torch.zeros(4))
    random = sign_agreement(running(torch.stack([noise(4, seed) for seed in range(20)])))
    assert random.mean().item() == pytest.approx(comb(20, 10) / 2**20, rel=0.02)
    assert sign_agreement(running(torch.zeros(2, 1, 3, 4, 4))).isnan().all()


def test_sign_agreement_weighs_by_absolute_value() -> None:
    """A large value that keeps its sign beside a small one that does not."""
    samples = torch.tensor([[9.0, 1.0], [9.0, -1.0]]).view(2, 1, 2, 1, 1)
    assert sign_agreement(running(samples)).item() == pytest.approx(0.9)


def test_gradients_of_a_linear_model_keep_their_sign() -> None:
    x, y = some(3), torch.tensor([0, 1, 2])
    folded = fold(over_steps(Linear(), x, y, PGD(0.1, steps=3, loss="logit")))
    assert torch.allclose(sign_agreement(folded.running), torch.ones(3))
    near = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    at, beside = (gradient(Linear(), points, y, loss="logit") for points in (x, near))
    assert torch.allclose(smoothness(at, beside), torch.ones(3))


def test_smoothness_of_unrelated_opposite_and_missing_gradients() -> None:
    v, other = noise(64), noise(64, seed=1)
    found = smoothness(v, other)
    assert abs(found.mean().item()) < 3 / math.sqrt(64 * 3072)
    assert found.std().item() == pytest.approx(1 / math.sqrt(3072), rel=0.3)
    assert torch.allclose(smoothness(v, -2 * v), -torch.ones(64))
    v[0], other[1] = 0, 0
    assert smoothness(v, other).isnan().nonzero().flatten().tolist() == [0, 1]


@pytest.mark.weights
def test_a_robust_twins_gradients_look_smoother_than_a_standard_twins(samples: Batch) -> None:
    standard, robust = (
        gradient(interp.load(f"xcit_nano_d6w64_cifar10_{kind}"), samples.images, samples.labels) for kind in ("standard", "linf")
    )
    assert total_variation(robust).mean() < total_variation(standard).mean() < total_variation(noise(20)).mean()


def test_rows_and_kernels_fit() -> None:
    names = [m.name for m in MEASURES]
    assert len(set(names)) == len(names) and KERNELS.keys() | {"sign_agreement", "smoothness"} <= set(names)
    assert all(len(m.title) <= 32 and m.better in ("higher", "lower", "none") and m.source for m in MEASURES)
