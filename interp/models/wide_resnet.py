"""Wide ResNets (Zagoruyko & Komodakis, arXiv 1605.07146) for 32 × 32 images, in the two layouts of names that are published.

`WideResNet` carries the names of github.com/yaodongyu/TRADES and RobustBench `architectures/wide_resnet.py`, `WideResNetDM`
those of Gowal et al. (google-deepmind/deepmind-research, `adversarial_robustness/pytorch/model_zoo.py`), used since by
Rebuffi, Rade, Pang, Wang, Cui, Bartoldson et al. The second pads strided convolutions as TensorFlow does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from interp.models.activations import activation_by_name
from interp.models.preact_resnet import pad_same
from interp.types import InputError


def blocks_per_stage(depth: int) -> int:
    """Blocks in each of the three stages; raises InputError unless the depth is 6·n + 4."""
    if depth < 10 or (depth - 4) % 6:
        raise InputError(f"a wide ResNet has depth 6·n + 4 (28, 34, 70, …); found {depth}")
    return (depth - 4) // 6


def _strides(count: int, first: int) -> list[int]:
    return [first] + [1] * (count - 1)


class WideBlock(nn.Module):
    """Two 3 × 3 convolutions after batch norm and activation; where widths change the input is activated before both paths."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.activation = activation
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        first = self.activation(self.bn1(x))
        inner = self.conv2(self.activation(self.bn2(self.conv1(first))))
        return inner + (x if self.convShortcut is None else self.convShortcut(first))


class WideStage(nn.Module):
    """A stage of wide blocks under the name `layer`."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(WideBlock(outputs if i else inputs, outputs, s, activation) for i, s in enumerate(_strides(count, stride)))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """TRADES' and RobustBench's layout: conv1, block1.layer.0.bn1 …, bn1, fc: (n, 3, 32, 32) → (n, num_classes).

    depth 6·n + 4; width: the widening factor. sub_block1: the file carries a further first stage that no image passes
    through (TRADES and its descendants). bias_last: whether the classifier has a bias. normalise_last: features and
    classifier rows are scaled to length 1 (Pang et al., arXiv 2002.08619). standardise: each image is first shifted and
    scaled to mean 0 and deviation 1 (Ding et al., arXiv 1812.02637). activation 'pssilu' adds its parameters (Dai et al.).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 28,
        width: int = 10,
        sub_block1: bool = False,
        bias_last: bool = True,
        activation: str = "relu",
        normalise_last: bool = False,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        count = blocks_per_stage(depth)
        widths = (16, 16 * width, 32 * width, 64 * width)
        act = activation_by_name(activation)  # one module for all places: PSSiLU's parameters are shared
        self.standardise, self.normalise_last = standardise, normalise_last
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.block1 = WideStage(count, widths[0], widths[1], 1, act)
        if sub_block1:
            self.sub_block1 = WideStage(count, widths[0], widths[1], 1, act)
        self.block2 = WideStage(count, widths[1], widths[2], 2, act)
        self.block3 = WideStage(count, widths[2], widths[3], 2, act)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.activation = act
        self.fc = nn.Linear(widths[3], num_classes, bias=bias_last)

    def forward(self, x: Tensor) -> Tensor:
        if self.standardise:
            deviation = x.std((1, 2, 3), keepdim=True)
            x = (x - x.mean((1, 2, 3), keepdim=True)) / deviation.clamp(min=x[0].numel() ** -0.5)
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.activation(self.bn1(x)).mean((2, 3))
        if self.normalise_last:
            return F.linear(F.normalize(x), F.normalize(self.fc.weight), self.fc.bias)
        return self.fc(x)


class WideResNetStages(nn.Module):
    """A wide ResNet whose three stages have widths and depths of their own (Huang et al. 2021, arXiv 2110.03825).

    RobustBench's layout (`architectures/robust_wide_resnet.py`): stem_conv, blocks.0.layer.0.bn1 …, bn1, fc. widths: of the
    stem and the stages; depths: blocks per stage.
    """

    def __init__(
        self, *, num_classes: int, widths: Sequence[int] = (16, 320, 640, 512), depths: Sequence[int] = (5, 5, 5)
    ) -> None:
        super().__init__()
        if len(widths) != 4 or len(depths) != 3:
            raise InputError(f"expected widths of the stem and three stages and three depths; found {widths} and {depths}")
        act = activation_by_name("relu")
        self.stem_conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(*(WideStage(depths[i], widths[i], widths[i + 1], 2 if i else 1, act) for i in range(3)))
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.activation = act
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.blocks(self.stem_conv(x))))
        return self.fc(x.mean((2, 3)))


class WideBlockDM(nn.Module):
    """The wide block under Gowal et al.'s names and with TensorFlow's paddings."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        self.act = activation_by_name(activation)

    def forward(self, x: Tensor) -> Tensor:
        first = self.act(self.batchnorm_0(x))
        inner = self.conv_1(self.act(self.batchnorm_1(self.conv_0(pad_same(first, self.stride)))))
        return inner + (x if self.shortcut is None else self.shortcut(first))


class WideStageDM(nn.Module):
    """A stage of wide blocks under the name `block`."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(WideBlockDM(outputs if i else inputs, outputs, s, activation) for i, s in enumerate(_strides(count, stride)))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class WideResNetDM(nn.Module):
    """Gowal et al.'s layout: init_conv, layer.0.block.0.batchnorm_0 …, batchnorm, logits: (n, 3, 32, 32) → (n, num_classes).

    depth 6·n + 4; width: the widening factor; activation 'silu' (their swish) or 'relu'. Their files may hold `mean` and
    `std`; the normalisation is left to the card.
    """

    def __init__(self, *, num_classes: int, depth: int = 28, width: int = 10, activation: str = "silu") -> None:
        super().__init__()
        count = blocks_per_stage(depth)
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.init_conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.layer = nn.Sequential(
            *(WideStageDM(count, widths[i], widths[i + 1], 1 if i == 0 else 2, activation) for i in range(3))
        )
        self.batchnorm = nn.BatchNorm2d(widths[3])
        self.act = activation_by_name(activation)
        self.logits = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.batchnorm(self.layer(self.init_conv(x))))
        return self.logits(x.mean((2, 3)))
