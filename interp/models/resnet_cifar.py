"""ResNet for 32 × 32 images (He et al., arXiv 1512.03385, with the widths of its ImageNet networks).

timm's ResNet computes the same function under other names; this one carries the names under which CIFAR checkpoints are
published (`shortcut`, `linear`), so that their keys load as they are: github.com/kuangliu/pytorch-cifar and, with the same
keys, TRADES, AutoAttack's example, MadryLab/robustness `cifar_models.resnet` and RobustBench `architectures/resnet.py`.
"""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor

from interp.models.activations import activation_by_name
from interp.types import InputError

BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def blocks_of(depth: int) -> tuple[int, int, int, int]:
    """Blocks per stage of the ResNet of that depth; raises InputError where He et al. define none."""
    if depth not in BLOCKS:
        raise InputError(f"there is no ResNet of depth {depth}; expected one of {', '.join(map(str, BLOCKS))}")
    return BLOCKS[depth]


class Block(nn.Module):
    """A residual branch of two 3 × 3 convolutions, or of 1 × 1, 3 × 3 and 1 × 1 (bottleneck), projected where shapes change."""

    def __init__(self, inputs: int, inner: int, stride: int, bottleneck: bool, activation: str) -> None:
        super().__init__()
        outputs = 4 * inner if bottleneck else inner
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = (inputs, inner, inner, outputs) if bottleneck else (inputs, inner, outputs)
        self.depth = len(kernels)
        for i, kernel in enumerate(kernels, 1):
            step = stride if i == len(kernels) - 1 else 1  # the (last) 3 × 3 before the end strides
            self.add_module(f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(widths[i]))
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.act = activation_by_name(activation)

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for i in range(1, self.depth + 1):
            inner = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(inner))
            if i < self.depth:
                inner = self.act(inner)
        return self.act(inner + self.shortcut(x))


class ResNetCifar(nn.Module):
    """3 × 3 stem, four stages, average pool, linear head: (n, 3, 32, 32) → (n, num_classes).

    depth 18 or 34 has basic blocks, 50, 101 or 152 bottlenecks. Raises InputError at any other depth.
    """

    def __init__(self, *, num_classes: int, depth: int = 18, activation: str = "relu") -> None:
        super().__init__()
        bottleneck = depth >= 50
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.act = activation_by_name(activation)
        inputs = 64
        for stage, count in enumerate(blocks_of(depth), 1):
            inner = 32 * 2**stage
            layers = []
            for i in range(count):
                layers.append(Block(inputs, inner, 2 if stage > 1 and i == 0 else 1, bottleneck, activation))
                inputs = 4 * inner if bottleneck else inner
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))
