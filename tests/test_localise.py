"""Shares of maps inside masks: uniform maps, perfect maps, ties, and models that look where the object is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from interp.attributes.localise import MEASURES, centre, controls, localise, mass, pointing, rank
from interp.faithfulness.baselines import centre as centre_of_images
from interp.gradients.sources import gradient
from interp.types import InputError

SIZE = 16
KERNELS = {"mass": mass, "rank": rank, "pointing": pointing}


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def square(top: int, left: int, side: int) -> Tensor:
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[:, top : top + side, left : left + side] = True
    return mask


def blobs(n: int, seed: int = 0) -> Tensor:
    """Random masks from large to small, none of them empty or full."""
    masks = noise(n, seed) > torch.linspace(-1, 2, n)[:, None, None]
    masks[:, 3, 4], masks[:, 9, 1] = True, False
    return masks


@given(st.integers(0, 10_000), st.floats(0.1, 50))
@settings(max_examples=25, deadline=None)
def test_a_uniform_map_scores_the_area(seed: int, value: float) -> None:
    masks = blobs(5, seed)
    area = masks.float().mean((1, 2))
    for name, kernel in KERNELS.items():
        assert torch.allclose(kernel(torch.full(masks.shape, value), masks), area, atol=1e-5), name


def test_the_mask_itself_scores_one_and_its_complement_zero() -> None:
    masks = blobs(6)
    for name, kernel in KERNELS.items():
        assert torch.equal(kernel(masks.float(), masks), torch.ones(6)), name
        assert torch.equal(kernel((~masks).float(), masks)[3:], torch.zeros(3)), name  # masks of less than half the image
        assert torch.equal(kernel(-2 * masks.float(), masks), torch.ones(6)), name


def test_noise_scores_the_area_on_average() -> None:
    masks = square(3, 5, 6).expand(800, -1, -1)
    area = 36 / SIZE**2
    assert mass(noise(800), masks).mean().item() == pytest.approx(area, abs=0.003)
    assert rank(noise(800), masks).mean().item() == pytest.approx(area, abs=0.01)
    assert pointing(noise(800), masks).mean().item() == pytest.approx(area, abs=0.05)


def test_rank_counts_the_largest() -> None:
    """Of four places two go inside, one outside, and the last to one of three that tie for it, two of them inside."""
    mask = square(0, 0, 2)
    v = torch.zeros(1, SIZE, SIZE)
    v[0, 0] = torch.tensor([9.0, 8.0] + [0.0] * (SIZE - 2))
    v[0, 1, :2], v[0, 5, 5], v[0, 9, 9] = 1.0, 7.0, 1.0
    assert rank(v, mask).item() == pytest.approx((2 + 1 * 2 / 3) / 4)
    v[0, 9, 9] = 2.0
    assert rank(v, mask).item() == 0.5


def test_pointing_allows_a_distance_and_no_more() -> None:
    mask = square(8, 8, 1)
    for dy, dx, needed in ((0, 0, 0), (0, 2, 2), (1, 1, 2), (-3, 0, 3), (3, -4, 5)):
        v = torch.zeros(1, SIZE, SIZE)
        v[0, 8 + dy, 8 + dx] = -4.0
        hits = [pointing(v, mask, tolerance=t).item() for t in range(7)]
        assert hits == [float(t >= needed) for t in range(7)], (dy, dx)


def test_pointing_in_a_corner_ignores_what_is_beyond_the_border() -> None:
    v = torch.zeros(1, SIZE, SIZE)
    v[0, 0, 0] = 1.0
    assert pointing(v, square(SIZE - 2, SIZE - 2, 2), tolerance=3).item() == 0
    assert pointing(v, square(0, 0, 1), tolerance=3).item() == 1


def test_masks_and_maps_that_tell_nothing_apart_give_nan() -> None:
    masks = torch.cat([square(2, 2, 4), square(0, 0, 0), square(0, 0, SIZE), square(2, 2, 4)])
    maps = noise(4)
    maps[3] = 0
    for name, v in localise(maps, masks).items():
        assert np.isnan(v).tolist() == [False, True, True, True], name
        assert np.isnan(localise(maps[1:], masks[1:])[name]).all(), name


def test_gains_are_over_the_uniform_map() -> None:
    masks = torch.cat([square(3, 3, 4), square(6, 2, 8)])
    found = localise(masks.float(), masks)
    for name in KERNELS:
        assert found[f"{name}_gain"] == pytest.approx([SIZE**2 / 16, SIZE**2 / 64])
    widened = localise(masks.float(), masks, tolerance=1)
    assert widened["pointing_gain"] == pytest.approx([SIZE**2 / (16 + 16), SIZE**2 / (64 + 32)])
    assert widened["mass_gain"] == pytest.approx(found["mass_gain"])


def test_controls_score_the_area_and_the_habit_of_photographers() -> None:
    masks = torch.cat([square(4, 4, 8), square(0, 0, 4)])
    found = controls(masks)
    for name in KERNELS:
        assert found["uniform map"][name] == pytest.approx([64 / SIZE**2, 16 / SIZE**2], abs=1e-6)
        assert found["uniform map"][f"{name}_gain"] == pytest.approx([1, 1], abs=1e-6)
        assert found["centre map"][f"{name}_gain"][0] > 1.5 > 0.6 > found["centre map"][f"{name}_gain"][1]
    assert torch.equal(centre((12, 20)), centre_of_images(torch.zeros(1, 3, 12, 20))[0])


class Corner(nn.Module):
    """Reads only the pixels of one square, at (top, left)."""

    def __init__(self, top: int, left: int, side: int = 4) -> None:
        super().__init__()
        self.weight = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * square(top, left, side)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x, self.weight)


def test_models_that_look_elsewhere_score_less_than_those_that_look_at_the_object() -> None:
    x, y, masks = torch.zeros(3, 3, SIZE, SIZE), torch.tensor([0, 1, 2]), square(4, 4, 8).expand(3, -1, -1)
    corner, inside, across = (gradient(Corner(*at), x, y, loss="logit").abs().sum(1) for at in ((0, 0), (6, 6), (2, 6)))
    assert torch.equal(mass(corner, masks), torch.zeros(3)) and torch.equal(pointing(corner, masks), torch.zeros(3))
    assert torch.allclose(rank(corner, masks), torch.tensor(48 / 240))  # 16 of 64 places elsewhere, 240 zeros share the others
    assert torch.equal(mass(inside, masks), torch.ones(3)) and torch.equal(pointing(inside, masks), torch.ones(3))
    assert (rank(inside, masks) > rank(across, masks)).all() and (rank(across, masks) > rank(corner, masks)).all()
    assert ((mass(across, masks) > 0.2) & (mass(across, masks) < 0.8)).all()


def test_what_does_not_fit_is_refused() -> None:
    for maps, masks in (
        (noise(2), blobs(3)),
        (noise(2)[:, None], blobs(2)[:, None]),
        (noise(2), blobs(2).float()),
    ):
        with pytest.raises(InputError, match="expected the same"):
            localise(maps, masks)
    with pytest.raises(InputError, match="tolerance is -1"):
        pointing(noise(2), blobs(2), tolerance=-1)


def test_rows_and_values_fit() -> None:
    assert [m.name for m in MEASURES] == sorted(localise(noise(2), blobs(2)), key=[m.name for m in MEASURES].index)
    assert all(len(m.title) <= 32 and m.better == "higher" for m in MEASURES)
    values = localise(noise(2), blobs(2))
    assert all(v.dtype == np.float64 and v.shape == (2,) for v in values.values())
