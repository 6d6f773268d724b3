"""A model cut off at a layer: what feature inversion compares (Mahendran & Vedaldi, arXiv 1412.0035)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from interp.models.model import Model, eager
from interp.types import Images, InputError


class _Cut(nn.Module):
    """The network whose output is what the watched layer gave in the pass; its hooks are methods, so that copies are cut too."""

    def __init__(self, net: nn.Module, layer: str) -> None:
        super().__init__()
        self.net, self.layer = net, layer
        self.seen: Any = None

    def forward(self, x: Images) -> Tensor:
        self.seen = None
        self.net(x)
        seen, self.seen = self.seen, None
        if isinstance(seen, tuple):  # XCiT's and others' blocks carry their grid along
            seen = seen[0]
        if not isinstance(seen, Tensor) or seen.shape[:1] != x.shape[:1]:
            raise InputError(f"layer {self.layer!r} gives no tensor with one entry per image in this model's forward pass")
        return seen.flatten(1)

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.seen = inputs[0]

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.seen = output


@contextmanager
def cut(net: nn.Module, layer: str) -> Iterator[nn.Module]:
    """Inside, a module (n, 3, h, w) → (n, features): the flattened output of the layer of that name.

    layer as in `model.net.named_modules()`; '' stands for the input of the last linear layer. The hook is off again afterwards,
    whatever happens. Raises InputError for an unknown layer.
    """
    layers = dict((net.net if isinstance(net, Model) else net).named_modules())
    watched = _last_linear(layers) if layer == "" else layer
    if watched not in layers or watched == "":
        near = [name for name in layers if layer.split(".")[0] in name][:8] or list(layers)[1:9]
        raise InputError(f"there is no layer {layer!r}; layers are named like {', '.join(near)}")
    cutting, module = _Cut(net, watched), layers[watched]
    handle = module.register_forward_pre_hook(cutting.before) if layer == "" else module.register_forward_hook(cutting.after)
    with handle, eager():
        yield cutting


def _last_linear(layers: dict[str, nn.Module]) -> str:
    linear = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError("this model has no linear layer whose input could be inverted; name a layer")
    return linear[-1]
