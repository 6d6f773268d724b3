"""The fastest exact version of a model for many passes, a double one, and one that searches in bfloat16.

Folding batch norms takes about as long as ten single-image passes and is done once per model. Everything here is the same
function to rounding, "fast" excepted: it may only propose, and what it proposes is read again in float32.
"""

from __future__ import annotations

import copy
import functools
import logging
import time
import warnings
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
import torch.nn as nn
from torch import Tensor

from interp.models.fold import batch_norms, folded
from interp.models.model import Model
from interp.types import InputError

log = logging.getLogger(__name__)
PRECISIONS = ("float32", "float64", "fast")
COMPILED = {"cpu": 50_000 * 224 * 224, "cuda": 20_000 * 32 * 32}
"""Image-passes × pixels from which "fast" compiles. Measured for XCiT-nano at 224 pixels on processors: 58 to 174 s for each
compilation, one for batches of 1 and one for others, to save 5 to 15 % of a pass. CUDA's is a guess: nothing was run there."""


@dataclass(frozen=True)
class Engine:
    """A model made ready for many passes; `steps` and `reader` take (n, 3, h, w) in [0, 1] of `dtype` and return logits.

    steps: what gradients are taken through. reader: what answers are read with, exact. exact: whether what steps find needs no
    confirmation by reader. dtype: of images and gradients. words: for provenance.
    """

    steps: nn.Module
    reader: nn.Module
    exact: bool
    dtype: torch.dtype
    words: str


Stamp = tuple[tuple[object, ...], ...]
_engines: WeakKeyDictionary[Model, tuple[Stamp, dict[tuple[object, ...], Engine]]] = WeakKeyDictionary()


def engine(model: nn.Module, shape: tuple[int, ...], *, precision: str = "float32", passes: int = 0) -> Engine:
    """The model for images of `shape` (…, 3, h, w) in one of PRECISIONS, on the device where it is.

    A `Model` is copied with its batch norms folded, unless it carries hooks: then it is used as it is. The copy is kept as long
    as the model, until a part of it is replaced, or parameters or buffers are written or moved (writing through `.data` is not
    seen). Any other module is used as it is, in float64 as a copy. "float64" converts before folding. "fast" takes its steps
    under bfloat16 autocast where this device computes faster in it, else as "float32" does; it compiles them where `passes`,
    the image-passes about to run, pays that back (COMPILED). Raises InputError for another precision, and for float64 on MPS.
    Limit: with no batch norms float32 logits are the model's, bit for bit.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if precision == "float64" and device.type == "mps":
        raise InputError("MPS devices have no float64; take precision 'float32', or move the model with model.to('cpu')")
    shape = shape[-3:]
    compiles = precision == "fast" and passes * shape[-2] * shape[-1] >= COMPILED.get(device.type, float("inf"))
    if not isinstance(model, Model):
        return _built(model, shape, precision, device, compiles)
    stamp = _stamp(model)
    if model not in _engines or _engines[model][0] != stamp:
        _engines[model] = stamp, {}
    kept, key = _engines[model][1], (shape, precision, compiles)
    if key not in kept:
        kept[key] = _built(model, shape, precision, device, compiles)
    return kept[key]


def _stamp(model: Model) -> Stamp:
    """What a copy of the model was made of: its parts with their hooks, and its tensors as they stood."""
    parts = ((name, id(part), type(part), _hooks(part)) for name, part in model.named_modules())
    return (*parts, *((t.data_ptr(), t._version, t.device, t.dtype) for t in (*model.parameters(), *model.buffers())))


def _hooks(part: nn.Module) -> tuple[int, ...]:
    """The numbers of all hooks on a module."""
    return (*part._forward_hooks, *part._forward_pre_hooks, *part._backward_hooks, *part._backward_pre_hooks)


@torch.inference_mode(False)
def _built(model: nn.Module, shape: tuple[int, ...], precision: str, device: torch.device, compiles: bool) -> Engine:
    if precision == "fast":
        return _searching(engine(model, shape), shape, device, compiles)
    dtype = torch.float64 if precision == "float64" else torch.float32
    net = model if precision == "float32" else copy.deepcopy(model).to(dtype).requires_grad_(False)
    if not isinstance(model, Model) or any(map(_hooks, model.modules())):
        return Engine(net, net, True, dtype, precision)
    ready = folded(net, _example((1, *shape), device, dtype))
    count = batch_norms(net) - batch_norms(ready)
    return Engine(
        ready, ready, True, dtype, f"{precision}, {count} batch norm{'s' * (count != 1)} folded" if count else precision
    )


def _searching(exact: Engine, shape: tuple[int, ...], device: torch.device, compiles: bool) -> Engine:
    """The engine whose steps are taken in bfloat16, compiled or both; `exact` itself where neither is to be had."""
    low = _bfloat16_pays(device)
    steps: nn.Module = _Bfloat16(exact.steps) if low else exact.steps
    compiled = _compiled(steps, _example((2, *shape), device, exact.dtype)) if compiles else None
    if not low and compiled is None:
        return exact
    how = f"{'bfloat16' if low else 'float32'} gradients{', compiled' if compiled else ''}"
    return replace(exact, steps=compiled or steps, exact=False, words=f"fast search: {how}, success confirmed in float32")


class _Bfloat16(nn.Module):
    """A network under bfloat16 autocast; logits are float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x).float()


class _Compiled(nn.Module):
    """A network compiled for any number of images, without CUDA graphs: they overwrite logits and gradients that callers keep."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = torch.compile(net)

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return self.net(x)


def _compiled(net: nn.Module, example: Tensor) -> nn.Module | None:
    """The network compiled and run once, forward and backward; None, logged, where that fails."""
    compiled, x = _Compiled(net), example.requires_grad_(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.autograd.grad(compiled(x).sum(), x)
    except Exception as error:  # noqa: BLE001 (the compiler's parts raise many kinds; each means that nothing is compiled)
        log.warning("the model could not be compiled and is used uncompiled: %s", str(error).partition("\n")[0])
        return None
    return compiled


def _example(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


@functools.cache
def _bfloat16_pays(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are the faster ones: processors without instructions for it take ten times longer."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _convolution(torch.bfloat16) < _convolution(torch.float32)


def _convolution(dtype: torch.dtype) -> float:
    """Least seconds of a 3 × 3 convolution of 64 channels on the processor."""
    x, w = torch.ones(4, 64, 16, 16, dtype=dtype), torch.ones(64, 64, 3, 3, dtype=dtype)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        torch.conv2d(x, w, padding=1)
        times.append(time.perf_counter() - begin)
    return min(times)
