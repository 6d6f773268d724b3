"""A model whose attention nobody reads yet does not stop the others from being shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from interp.attention.attend import Attend, attend
from interp.attention.layout import LAYOUTS
from interp.data.labels import CIFAR10
from interp.models.build import build
from interp.models.model import Model
from interp.types import Batch, Card, Preprocess


def test_it_is_marked_and_the_others_are_drawn(tiny: Callable[..., Model], samples: Batch) -> None:
    args = {"img_size": 32}
    torch.manual_seed(0)
    net = build("mixer_s16_224", num_classes=10, arch_args=args)
    mixer = Model(net, Card("mixer", "mixer_s16_224", 10, Preprocess(32, 32), args, CIFAR10))
    assert mixer.family not in LAYOUTS
    result = attend([mixer, tiny("xcit", labels=CIFAR10)], samples[:1])
    unread, read = result.data["map"].values
    assert np.isnan(unread).all() and np.isfinite(read).all()
    assert "not read: no row for the family mlpmixer" in str(result.data["how"].values[0, 0])
    texts = {text.get_text() for ax in result.plot().axes for text in ax.texts}
    assert "not read" in texts


def test_a_class_activation_map_at_a_named_layer_needs_no_row(samples: Batch) -> None:
    torch.manual_seed(0)
    net = build("test_efficientnet", num_classes=10)
    model = Model(net, Card("efficient", "test_efficientnet", 10, Preprocess(32, 32), labels=CIFAR10))
    assert model.family not in LAYOUTS
    data = attend([model], samples[:1], Attend(("raw", "gradcam"), layer="blocks.0")).data
    assert "take gradcam and name its layer" in str(data["how"].values[0, 0])
    assert np.isfinite(data["map"].values[0, 1]).all() and data["map"].values[0, 1].std() > 0
