"""The attention weights of every layer of a pass, whether timm fuses its attention or not.

Fused attention (`scaled_dot_product_attention`) never forms the weights, and hooks on the softmax then see nothing. Here, while
an attention module runs, torch's own functions are watched (`torch.overrides.TorchFunctionMode`): a fused call gives q, k, v and
bias, of which the weights are softmax(q·kᵀ·scale + bias); an unfused one the operands of the product that follows the softmax.
Nothing inside the model is replaced and nothing is computed twice but q·kᵀ, so its logits are those of a pass without capture,
bit for bit, and what is recorded is what this version of timm computes, with its norms, rotations and biases:

    output = weights · values        each (n, heads, …), what the module's heads give to its output projection

    A = softmax(q·kᵀ/√d + bias)      ViT, BEiT, EVA, MobileViT, Swin, class attention
    A = softmax(q̂·k̂ᵀ·τ)              XCA (arXiv 2106.09681, eq. 2; q̂, k̂ of unit length over the tokens, τ learnt)
    A = W_w·softmax(W_l·q·kᵀ/√d)     talking heads (arXiv 2003.02436; rows need not sum to 1)
    c = softmax(q), one q per token  MobileViT v2 (arXiv 2206.02680, section 3.1): values are its keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.attention.geometry import Geometry, Grid, of_patches, of_pixels, of_windows, patch_grid
from interp.attention.layout import Kind, attention_layers
from interp.types import InputError

if TYPE_CHECKING:
    from interp.models.model import Model


@dataclass(frozen=True, eq=False)
class Captured:
    """One attention layer in one pass.

    name: its path inside `model.net`. stage: layers of one number run over the same tokens. weights (n·groups, heads, queries,
    keys), without gradient. values (n·groups, heads, keys, d) likewise. output (n·groups, heads, queries, d): their product as
    the model computed it, part of the graph where `capture` was asked for gradients; for kind "context" it is computed beside
    the model, and never part of it. For kind "channel" queries and keys are channels of a head, d counts tokens, and geometry is
    the grid of these tokens. geometry: None where the grid is unknown.
    """

    name: str
    kind: Kind
    stage: int
    weights: Tensor
    values: Tensor
    output: Tensor
    geometry: Geometry | None = None


@dataclass(eq=False)
class Recorder:
    """What `capture` yields: `layers` of the latest forward pass, in the order in which they ran."""

    layers: list[Captured] = field(default_factory=list)

    def of_kind(self, *kinds: Kind) -> list[Captured]:
        """The layers of some kinds, in order."""
        return [layer for layer in self.layers if layer.kind in kinds]


@contextmanager
def capture(
    model: Model,
    *,
    layers: Sequence[str] | None = None,
    consume: Callable[[Captured], None] | None = None,
    gradients: bool = False,
) -> Iterator[Recorder]:
    """Record the attention of every forward pass inside the context: `with capture(model) as rec: model(x)`.

    layers: names to record (see `attention_layers`), all by default. consume: is handed each layer as it has run, and nothing
    is kept, so that memory holds one layer's weights however deep the model is. gradients: `output` stays in the graph.
    `rec.layers` is kept after the context ends; a new pass replaces it. Logits do not change, and the hooks come off also when
    the model raises. Raises InputError where the model has no attention or a name is unknown.
    """
    found = attention_layers(model)
    unknown = [name for name in layers or () if name not in found]
    if unknown:
        raise InputError(f"no attention layer is called {', '.join(unknown)}; model {model.card.id} has {', '.join(found)}")
    recorder = Recorder()

    def keep(layer: Captured) -> None:
        recorder.layers.append(layer)

    state = _Pass(model.net, consume or keep, gradients=gradients)

    def begin(_net: nn.Module, _args: tuple[Any, ...]) -> None:
        recorder.layers = []
        state.clear()

    with ExitStack() as stack:
        stack.callback(state.clear)
        stack.enter_context(model.net.register_forward_pre_hook(begin))
        for name, module in model.net.named_modules():
            for handle in state.watch_grid(name, module):
                stack.enter_context(handle)
            if name in (found if layers is None else layers):
                stack.enter_context(module.register_forward_pre_hook(state.begin))
                stack.enter_context(module.register_forward_hook(state.end(name, found[name]), always_call=True))
        yield recorder


@dataclass(frozen=True, eq=False)
class _Product:
    """Weights, values and their product, of one attention."""

    weights: Tensor
    values: Tensor
    output: Tensor


class _Watch(TorchFunctionMode):
    """Sees every torch function of one attention module and keeps the products of softmaxed weights with values."""

    def __init__(self) -> None:
        self.products: list[_Product] = []
        self._softmaxed: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, soft = getattr(func, "__name__", ""), self._softmaxed
        if name == "scaled_dot_product_attention":
            weights, values = fused_weights(*args, **(kwargs or {}))
            self.products.append(_Product(weights, values, out))
        elif name == "softmax":
            self._softmaxed = out
        elif soft is not None and name in ("matmul", "__matmul__", "bmm") and args[0].shape[-2:] == soft.shape[-2:]:
            self.products.append(_Product(args[0].detach(), args[1].detach(), out))
            self._softmaxed = None
        elif soft is not None and name in ("mul", "__mul__") and _same(args[1], soft):
            self.products.append(_context(args[1], args[0]))
            self._softmaxed = None
        return out


def _same(operand: Any, tensor: Tensor) -> bool:
    return isinstance(operand, Tensor) and operand.data_ptr() == tensor.data_ptr()


@torch.no_grad()
def fused_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """The weights (…, queries, keys) that `scaled_dot_product_attention` of these arguments uses, and its values."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1), value.detach()


def _context(scores: Tensor, keys: Tensor) -> _Product:
    """MobileViT v2's scores (n, 1, pixels, patches) and keys (n, d, pixels, patches) as weights and values of one query."""
    weights = scores.permute(0, 2, 1, 3).flatten(0, 1)[:, None]
    values = keys.permute(0, 2, 3, 1).flatten(0, 1)[:, None]
    return _Product(weights.detach(), values.detach(), weights @ values)


class _Pass:
    """The hooks of one capture: the grid is noted where it arises and joined to the layers after it."""

    def __init__(self, net: nn.Module, consume: Callable[[Captured], None], *, gradients: bool) -> None:
        self.consume, self.gradients = consume, gradients
        token = getattr(net, "has_class_token", getattr(net, "cls_token", None) is not None)
        self.reads_class_token = bool(token) and getattr(net, "global_pool", "token") in ("", "token")
        self.watching: list[_Watch] = []
        self.clear()

    def clear(self) -> None:
        """Forget the pass before; also stop watching a module that Ctrl-C left, for which torch calls no hook."""
        self.geometry: Geometry | None = None
        self.stage = -1
        while self.watching:
            self.watching.pop().__exit__(None, None, None)

    def watch_grid(self, name: str, module: nn.Module) -> Iterator[Any]:
        """Hooks on a module that tells the grid: a patch embedding, a MobileViT block, a block of windows."""
        kind = type(module).__name__
        if name == "patch_embed":
            yield module.register_forward_hook(self._patches)
        elif kind in ("MobileVitBlock", "MobileVitV2Block"):
            yield module.conv_1x1.register_forward_hook(self._pixels(module))  # type: ignore[union-attr]  # its output is unfolded
        elif kind in ("SwinTransformerBlock", "SwinTransformerV2Block"):
            yield module.register_forward_pre_hook(self._windows)

    def _patches(self, embed: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._settle(of_patches(patch_grid(embed, args, output)), stage=0)

    def _pixels(self, block: Any) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(_conv: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            patch: Grid = (int(block.patch_size[0]), int(block.patch_size[1]))
            self._settle(of_pixels((output.shape[2], output.shape[3]), patch), stage=self.stage + 1)

        return hook

    def _windows(self, block: Any, args: tuple[Any, ...]) -> None:
        size: Grid = (args[0].shape[1], args[0].shape[2])
        same = self.geometry is not None and self.geometry.size == size
        self._settle(of_windows(size, block.window_size, block.shift_size), stage=self.stage + (not same))

    def _settle(self, geometry: Geometry, *, stage: int) -> None:
        self.geometry, self.stage = geometry, stage

    def begin(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        self.watching.append(_Watch())
        self.watching[-1].__enter__()

    def end(self, name: str, kind: Kind) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            watch = self.watching.pop()
            watch.__exit__(None, None, None)
            if output is None:  # the module raised
                return
            if len(watch.products) != 1:
                raise InputError(
                    f"layer {name} ({type(module).__name__}) ran {len(watch.products)} products of a softmax with values; "
                    "capture knows attention of one. Leave the layer out: capture(model, layers=[…])"
                )
            self.consume(self._captured(name, kind, watch.products[0]))

        return hook

    def _captured(self, name: str, kind: Kind, found: _Product) -> Captured:
        geometry, output = self.geometry, found.output if self.gradients else found.output.detach()
        if geometry is not None and kind in ("self", "talking", "class"):
            tokens = found.weights.shape[-1]
            class_token = kind == "class" or (tokens > geometry.positions and self.reads_class_token)
            geometry = geometry.with_prefix(tokens, class_token=class_token) if tokens >= geometry.positions else None
        return Captured(name, kind, self.stage, found.weights, found.values, output, geometry)
