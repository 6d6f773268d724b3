"""ResNet for 32 × 32 images with basic blocks (He et al., arXiv 1512.03385, section 4.2 widths of the ImageNet nets).

timm's ResNet computes the same function under other names; this one carries the names under which CIFAR checkpoints
are published, so that their keys load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with a residual connection, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNetCifar(nn.Module):
    """Stem, four stages of basic blocks, average pool, linear head: (n, 3, 32, 32) → (n, num_classes)."""

    def __init__(self, *, blocks: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.stages = [f"layer{stage}" for stage in range(1, len(blocks) + 1)]
        inputs = 64
        for stage, count in enumerate(blocks, 1):
            outputs = 32 * 2**stage
            layers = [BasicBlock(inputs if i == 0 else outputs, outputs, 2 if stage > 1 and i == 0 else 1) for i in range(count)]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            inputs = outputs
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.linear(x.mean((2, 3)))
