"""Batch norms folded into the convolutions before them: the same function in eval mode, with fewer passes over memory.

    γ·(w∗x + b − μ)/√(σ² + ε) + β  =  w'∗x + b',   w' = w·γ/√(σ² + ε),   b' = (b − μ)·γ/√(σ² + ε) + β

(Jacob et al., arXiv 1712.05877, section 3.2.) Which norms follow a convolution is found by one pass, not by names or types of
architectures, and each fold is checked by computing both sides of the equation.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

log = logging.getLogger(__name__)
TOLERANCE = 1e-7  # of the largest value, in float64: rounding leaves about 1e-13, a wrong fold far more
Pair = tuple[str, str, torch.Size]  # names of convolution and norm, shape of the convolution's input


@torch.inference_mode(False)  # gradients are taken, whatever the caller's mode
def folded(net: nn.Module, example: Tensor) -> nn.Module:
    """A frozen copy of `net` in eval mode, each batch norm that directly follows a convolution folded into it.

    A norm is folded where the tensor that it receives is the one that a convolution returned, nothing else reads that
    tensor, both ran exactly once, and both sides of the equation agree on random input. What a norm does beside (timm's
    BatchNormAct2d drops and activates) stays in its place. example (n, 3, h, w) in [0, 1]: on it, in float64, logits and
    input gradient of the copy are compared with the network's; where they differ by more than 1e-7 of the largest value,
    or the network cannot compute in float64, an unfolded copy is returned and logged. Computed in float64, stored in
    the weights' dtype. `net` is not touched. Limit: without batch norms the copy computes the same bits.
    """
    plain = copy.deepcopy(net).eval().requires_grad_(False)
    device = "cpu" if example.device.type == "mps" else example.device  # which has no float64
    try:
        pairs = _followers(plain, example)
        # channels_last, since torch 2.14 differentiates an NCHW batch norm of one image wrongly where the gradient comes as NHWC
        exact = copy.deepcopy(plain).to(device, torch.float64).to(memory_format=torch.channels_last)
        x = example.to(device, torch.float64)
        pairs = [p for p in pairs if _equal(exact, p, x)]
        if not pairs:
            return plain
        before = _answers(exact, x)
        _fold(exact, pairs)
        if all(map(_close, before, _answers(exact, x))):
            return _fold(plain, pairs)
        log.warning("a copy of %s with batch norms folded computes something else; it is used unfolded", type(net).__name__)
    except Exception as error:  # noqa: BLE001 (networks raise many kinds in float64, or where a norm is missed)
        log.warning("batch norms of %s are not folded: %s", type(net).__name__, error)
    return plain


def batch_norms(net: nn.Module) -> int:
    """How many normalisations by stored statistics a network holds; the difference to its folded copy's is what was folded."""
    return sum(map(_normalises, net.modules()))


def _normalises(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor) and isinstance(getattr(module, "running_var", None), Tensor)


def _convolves(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d) and isinstance(module._parameters.get("weight"), Tensor)


class _Reads(TorchDispatchMode):
    """Counts the operations that read each of the tensors in `watched` while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}  # kept alive, so that no other tensor gets their ids
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.count.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.watched)
        return func(*args, **(kwargs or {}))


def _followers(net: nn.Module, x: Tensor) -> list[Pair]:
    """Convolutions and the norms that alone read what they return, by one pass on x."""
    reads, runs = _Reads(), Counter[str]()
    made: dict[int, tuple[str, torch.Size]] = {}
    pairs: list[tuple[int, Pair]] = []

    def convolved(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        runs[name] += 1
        reads.watched[id(output)] = output
        made[id(output)] = name, args[0].shape

    def normalising(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        runs[name] += 1
        if args and id(args[0]) in made:
            conv, shape = made[id(args[0])]
            pairs.append((id(args[0]), (conv, name, shape)))

    handles = []
    try:
        for name, module in net.named_modules():
            if _convolves(module):
                handles.append(module.register_forward_hook(partial(convolved, name)))
            elif _normalises(module):
                handles.append(module.register_forward_pre_hook(partial(normalising, name)))
        with torch.no_grad(), reads:
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return [p for key, p in pairs if reads.count[key] == 1 and runs[p[0]] == runs[p[1]] == 1]


def _merged(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """w' and b' of the equation above, in the weight's dtype and on its device."""

    def exact(tensor: Tensor | None, absent: float) -> Tensor:  # on the processor: MPS has no float64
        return torch.tensor(absent) if tensor is None else tensor.detach().to("cpu", torch.float64)

    w = exact(conv.weight, 0)
    scale = (exact(norm.running_var, 0) + norm.eps).rsqrt() * exact(norm.weight, 1)
    shift = (exact(conv.bias, 0) - exact(norm.running_mean, 0)) * scale + exact(norm.bias, 0)
    return (w * scale.view(-1, *[1] * (w.ndim - 1))).to(conv.weight), shift.to(conv.weight)


def _fold(net: nn.Module, pairs: list[Pair]) -> nn.Module:
    """Fold the pairs of `net` in place; a norm is replaced by its submodules in order, by none where it has none."""
    for conv_name, norm_name, _ in pairs:
        conv, norm = net.get_submodule(conv_name), net.get_submodule(norm_name)
        weight, bias = _merged(conv, norm)
        conv.weight, conv.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        rest = nn.Sequential(OrderedDict(norm.named_children())).eval()
        for parent in list(net.modules()):  # a norm may be known under several names
            for name, child in parent._modules.items():
                if child is norm:
                    parent._modules[name] = rest
    return net


def _equal(net: nn.Module, pair: Pair, x: Tensor) -> bool:
    """Whether the fold of one pair alone keeps what the two compute, on random input."""
    names, shape = pair[:2], pair[2]
    alone = nn.Sequential(*(copy.deepcopy(net.get_submodule(name)) for name in names))
    conv: Any = alone[0]
    extents = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    sides = [min(side, max(8, extent)) for side, extent in zip(shape[2:], extents, strict=True)]
    z = torch.randn(*shape[:2], *sides, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.device)
    with torch.no_grad():
        before = alone(z)
        return _close(before, _fold(alone, [("0", "1", shape)])(z))


def _answers(net: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of their sum, weighted unevenly, to x."""
    x = x.detach().requires_grad_(True)
    logits = net(x)
    (gradient,) = torch.autograd.grad((logits * torch.linspace(-1, 2, logits[0].numel()).to(logits)).sum(), x)
    return logits.detach(), gradient


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= TOLERANCE * a.abs().max())
