"""How far an attack moves attention: over which layers each model's mean goes, and that this is said."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.models.model import Model
from interp.robustness.shift import BETWEEN, PLACED
from interp.types import Batch
from tests.timm_nets import make as between
from tests.timm_nets import of as images_of

SHIFT = interp.Shift((16 / 255,), interp.PGD(16 / 255, steps=3))


@pytest.fixture(scope="module")
def mixed(tiny: Callable[..., Model], samples: Batch) -> xr.Dataset:
    return interp.attention_shift([tiny("xcit"), tiny("mobilevit"), tiny("resnet")], samples[:3], SHIFT).data


def test_attention_between_channels_has_no_part_in_the_mean_of_a_model_that_has_other(mixed: xr.Dataset) -> None:
    kinds = mixed["kind"].values[0]
    assert {*kinds} >= {"channel", "class"}
    of_class, all_of_it = (mixed["divergence"].values[0, taken, 1].mean() for taken in (kinds == "class", kinds != ""))
    assert mixed["moved"].values[0, 1] == pytest.approx(of_class, rel=1e-4)
    assert abs(of_class - all_of_it) > 0.1 * of_class  # which of the two it is can be told
    assert mixed["moved"].values[1, 1] == pytest.approx(np.nanmean(mixed["divergence"].values[1, :, 1]), rel=1e-4)


def test_it_is_said_over_which_layers_the_mean_goes(mixed: xr.Dataset) -> None:
    assert mixed["over"].values.tolist() == [PLACED, PLACED, ""]
    assert np.isnan(mixed["moved"].values[2]).all()
    assert "over" in mixed["moved"].attrs["long_name"]


def test_a_model_of_attention_between_channels_alone_is_averaged_over_that_and_says_so() -> None:
    batch = Batch(images_of("edgenext"), torch.tensor([0, 1]), ids=("a", "b"))
    data = interp.attention_shift([between("edgenext")], batch, SHIFT).data
    assert {*data["kind"].values[0]} == {"channel"}
    assert data["over"].values.tolist() == [BETWEEN]
    assert data["moved"].values[0, 1] == pytest.approx(data["divergence"].values[0, :, 1].mean(), rel=1e-4)
    assert data["moved"].values[0, 1] > 0
