"""ResNets whose normalisation and activation come before each convolution (He et al., arXiv 1603.05027), for 32 × 32 images.

Two layouts of names are published: that of RobustBench `architectures/resnet.py` (from kuangliu/pytorch-cifar), and that of
Gowal et al. (google-deepmind/deepmind-research, `adversarial_robustness/pytorch/model_zoo.py`), which also pads as
TensorFlow does and projects with 3 × 3 convolutions.
"""

from __future__ import annotations

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from interp.models.activations import activation_by_name
from interp.models.resnet_cifar import blocks_of
from interp.types import InputError


def pad_same(x: Tensor, stride: int) -> Tensor:
    """Zeros around an image of even size so that a 3 × 3 convolution of stride 1 or 2 sees what TensorFlow's SAME shows it."""
    return F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


class PreActBlock(nn.Module):
    """Two (or, as a bottleneck, three) convolutions, each after its batch norm and activation.

    out_shortcut: the projection reads the first activation instead of the block's input. Blocks that project nothing add
    their input in either case.
    """

    def __init__(self, inputs: int, inner: int, stride: int, *, bottleneck: bool, out_shortcut: bool, activation: str) -> None:
        super().__init__()
        outputs = 4 * inner if bottleneck else inner
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = (inputs, inner, inner, outputs) if bottleneck else (inputs, inner, outputs)
        self.depth = len(kernels)
        self.out_shortcut = out_shortcut
        for i, kernel in enumerate(kernels, 1):
            step = stride if i == len(kernels) - 1 else 1
            self.add_module(f"bn{i}", nn.BatchNorm2d(widths[i - 1]))
            self.add_module(f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], kernel, step, kernel // 2, bias=False))
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
        self.act = activation_by_name(activation)

    def forward(self, x: Tensor) -> Tensor:
        first = inner = self.act(self.get_submodule("bn1")(x))
        inner = self.get_submodule("conv1")(inner)
        for i in range(2, self.depth + 1):
            inner = self.get_submodule(f"conv{i}")(self.act(self.get_submodule(f"bn{i}")(inner)))
        if self.shortcut is None:
            return inner + x
        return inner + self.shortcut(first if self.out_shortcut else x)


class PreActResNet(nn.Module):
    """RobustBench's layout: conv1, layer1.0.bn1 …, bn (where bn_before_fc), linear: (n, 3, 32, 32) → (n, num_classes).

    bn_before_fc, out_shortcut: RobustBench's words; its `PreActBlockV2` is out_shortcut = true. depth 18 to 152.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 18,
        bn_before_fc: bool = False,
        out_shortcut: bool = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        bottleneck = depth >= 50
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        inputs = 64
        for stage, count in enumerate(blocks_of(depth), 1):
            inner = 32 * 2**stage
            layers = []
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                layers.append(
                    PreActBlock(inputs, inner, stride, bottleneck=bottleneck, out_shortcut=out_shortcut, activation=activation)
                )
                inputs = 4 * inner if bottleneck else inner
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(inputs) if bn_before_fc else None
        self.act = activation_by_name(activation)
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        if self.bn is not None:
            x = self.act(self.bn(x))
        return self.linear(x.mean((2, 3)))


class PreActBlockDM(nn.Module):
    """Gowal et al.'s block: paddings as TensorFlow's, the projection a 3 × 3 convolution of the block's input."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_2d_1 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_2d_2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        projects = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 3, stride, bias=False) if projects else None
        self.act = activation_by_name(activation)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv_2d_1(pad_same(self.act(self.batchnorm_0(x)), self.stride))
        inner = self.conv_2d_2(self.act(self.batchnorm_1(inner)))
        return inner + (x if self.shortcut is None else self.shortcut(pad_same(x, self.stride)))


class PreActResNetDM(nn.Module):
    """Gowal et al.'s layout: conv_2d, layer_0.0.batchnorm_0 …, batchnorm, logits: (n, 3, 32, 32) → (n, num_classes).

    depth 18 or 34. Their files may hold `mean` and `std`; the normalisation is left to the card.
    """

    def __init__(self, *, num_classes: int, depth: int = 18, activation: str = "silu") -> None:
        super().__init__()
        if depth not in (18, 34):
            raise InputError(f"preact_resnet_dm has depth 18 or 34; found {depth}")
        self.conv_2d = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        inputs = 64
        for stage, count in enumerate(blocks_of(depth)):
            outputs = 64 * 2**stage
            layers = []
            for i in range(count):
                layers.append(PreActBlockDM(inputs, outputs, 2 if stage > 0 and i == 0 else 1, activation))
                inputs = outputs
            self.add_module(f"layer_{stage}", nn.Sequential(*layers))
        self.batchnorm = nn.BatchNorm2d(inputs)
        self.act = activation_by_name(activation)
        self.logits = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_2d(x)
        for stage in range(4):
            x = self.get_submodule(f"layer_{stage}")(x)
        return self.logits(self.act(self.batchnorm(x)).mean((2, 3)))
