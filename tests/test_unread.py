"""A model whose attention nobody reads yet does not stop the others from being shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from interp.attention.attend import Attend, attend
from interp.attention.layout import LAYOUTS
from interp.data.labels import CIFAR10
from interp.models.build import build
from interp.models.model import Model
from interp.types import Batch, Card, Preprocess


class Plain(nn.Module):
    """A network that is none of timm's, without attention or a list of features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return logits


def plain() -> Model:
    torch.manual_seed(0)
    return Model(Plain(), Card("plain", "plain", 10, Preprocess(32, 32), labels=CIFAR10))


def test_it_is_marked_and_the_others_are_drawn(tiny: Callable[..., Model], samples: Batch) -> None:
    result = attend([plain(), tiny("xcit", labels=CIFAR10)], samples[:1])
    unread, read = result.data["map"].values
    assert np.isnan(unread).all() and np.isfinite(read).all()
    assert "not read: model plain is of the family 'plain', whose attention is unknown" in str(result.data["how"].values[0, 0])
    texts = {text.get_text() for ax in result.plot().axes for text in ax.texts}
    assert "not read" in texts


def test_a_class_activation_map_at_a_named_layer_needs_no_row(samples: Batch) -> None:
    data = attend([plain()], samples[:1], Attend(("raw", "gradcam"), layer="conv")).data
    assert "(Grad-CAM) and name its layer" in str(data["how"].values[0, 0])
    assert np.isfinite(data["map"].values[0, 1]).all() and data["map"].values[0, 1].std() > 0


def test_of_timms_other_families_the_last_feature_is_read(samples: Batch) -> None:
    torch.manual_seed(0)
    net = build("mixer_s16_224", num_classes=10, arch_args={"img_size": 32})
    mixer = Model(net, Card("mixer", "mixer_s16_224", 10, Preprocess(32, 32), {"img_size": 32}, CIFAR10))
    assert mixer.family not in LAYOUTS
    nn.init.normal_(net.head.weight, std=0.1)  # type: ignore[union-attr, arg-type]  # it begins at zero
    data = attend([mixer], samples[:1]).data
    assert str(data["how"].values[0, 0]) == "Grad-CAM of the predicted class's logit at layer blocks.7"
    assert np.isfinite(data["map"].values).all()
