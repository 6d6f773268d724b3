"""Layers written with others that compute the same and for which captum's rules hold."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from interp.types import InputError

LOW = -1e6  # below any activation


class Through(nn.Module):
    """A layer without weights that LRP passes through: captum sees the dropout, which does nothing."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.seen, self.hidden = nn.Dropout().eval(), (layer,)

    def forward(self, x: Tensor) -> Tensor:
        return self.seen(self.hidden[0](x))


class Largest(nn.Module):
    """Max pooling by max(a, b) = a + relu(b − a), down the columns of a window and then along its rows.

    Captum's own rule loses part of the sum where windows overlap or an input does not change (captum issue 1276).
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        if pool.ceil_mode or pool.dilation not in (1, (1, 1)):
            raise InputError(f"there is no rule for {pool}")
        self.window, self.stride, self.padding = (
            (v, v) if isinstance(v, int) else v for v in (pool.kernel_size, pool.stride, pool.padding)
        )
        self.relus = nn.ModuleList(nn.ModuleList(nn.ReLU() for _ in range(k - 1)) for k in self.window)

    def forward(self, x: Tensor) -> Tensor:
        return self._along(self._along(x.transpose(2, 3), 0).transpose(2, 3), 1)

    def _along(self, x: Tensor, axis: int) -> Tensor:
        k, stride, padding = self.window[axis], self.stride[axis], self.padding[axis]
        x = F.pad(x, (padding, padding), value=LOW)
        reach = x.shape[3] - k + 1
        parts = [x[..., j : j + reach : stride] for j in range(k)]
        largest = parts.pop(k // 2)  # never padding alone
        for relu, part in zip(self.relus[axis].children(), parts, strict=True):
            largest = largest + relu(part - largest)
        return largest


def for_relevance(net: nn.Module) -> None:
    """Give LRP layers that it knows, in place."""
    for name, child in list(net.named_children()):
        if isinstance(child, nn.Identity | nn.Flatten) or (isinstance(child, nn.Sequential) and not len(child)):
            setattr(net, name, Through(child))
        elif not isinstance(child, Through):
            for_relevance(child)


def for_differences(net: nn.Module) -> None:
    """Give DeepLift maxima that its rule for ReLU holds for, in place."""
    for name, child in list(net.named_children()):
        if isinstance(child, nn.MaxPool2d):
            setattr(net, name, Largest(child))
        else:
            for_differences(child)
