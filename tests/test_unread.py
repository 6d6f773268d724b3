"""A model whose attention nobody reads yet does not stop the others from being shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from interp.attention.attend import attend
from interp.attention.layout import LAYOUTS
from interp.data.labels import CIFAR10
from interp.models.build import build
from interp.models.model import Model
from interp.types import Batch, Card, Preprocess


def test_it_is_marked_and_the_others_are_drawn(tiny: Callable[..., Model], samples: Batch) -> None:
    args = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    torch.manual_seed(0)
    net = build("swin_tiny_patch4_window7_224", num_classes=10, arch_args=args)
    swin = Model(net, Card("swin", "swin_tiny_patch4_window7_224", 10, Preprocess(32, 32), args, CIFAR10))
    assert swin.family not in LAYOUTS
    result = attend([swin, tiny("xcit", labels=CIFAR10)], samples[:1])
    unread, read = result.data["map"].values
    assert np.isnan(unread).all() and np.isfinite(read).all()
    assert "not read: no row for the family swintransformer" in str(result.data["method"].values[0])
    texts = {text.get_text() for ax in result.plot().axes for text in ax.texts}
    assert "not read" in texts
