"""The attention weights of every layer of a pass, whether timm fuses its attention or not.

Fused attention (`scaled_dot_product_attention`) never forms the weights, and hooks on the softmax then see nothing. So a
forward hook on each attention module recomputes them from the module's own input and parameters:

    A = softmax(q·kᵀ/√d)                (ViT, MobileViT, class attention)
    A = softmax(q̂·k̂ᵀ·τ)                 (XCA, arXiv 2106.09681, eq. 2; q̂, k̂ of unit length over the tokens, τ learnt)
    A = W_w·softmax(W_l·q·kᵀ/√d)        (talking heads of CaiT, arXiv 2003.02436; its rows need not sum to 1)

Nothing inside the model is replaced, so its logits are those of a pass without capture, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.attention.layout import Grid, Kind, attention_layers, layout_of, patch_grid
from interp.attention.maps import Unfolding
from interp.types import InputError

if TYPE_CHECKING:
    from interp.models.model import Model


@dataclass(frozen=True, eq=False)
class Captured:
    """One attention layer in one pass, without gradient.

    name: its path inside `model.net`. weights (n, heads, queries, keys) and values (n, heads, keys, d): their product, heads
    joined, is what the module's output projection is given. For kind "channel" queries, keys are channels of a head and
    d counts tokens; for "unfold" n is images × pixels per patch. grid: rows and columns of patches, where kind is
    "class" or "self". prefix: tokens before the patches; class_token: whether the first of them is the class token.
    unfolding: how a MobileViT block cut its feature map.
    """

    name: str
    kind: Kind
    weights: Tensor
    values: Tensor
    grid: Grid | None = None
    prefix: int = 0
    class_token: bool = False
    unfolding: Unfolding | None = None


@dataclass(eq=False)
class Recorder:
    """What `capture` yields: `layers` of the latest forward pass, in the order in which they ran."""

    layers: list[Captured] = field(default_factory=list)

    def of_kind(self, kind: Kind) -> list[Captured]:
        """The layers of one kind, in order."""
        return [layer for layer in self.layers if layer.kind == kind]


# Below, `.forward` is called instead of the submodule so that hooks other code has set do not see the second computation.


def _qkv(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value of a joint projection, each (n, heads, tokens, d)."""
    q, k, v = module.qkv.forward(x).unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _self_attention(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = _qkv(module, x)
    q, k = module.q_norm.forward(q), module.k_norm.forward(k)
    return (q * module.scale @ k.transpose(-2, -1)).softmax(-1), v


def _class_attention(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (
        p.forward(t).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for p, t in ((module.q, x[:, :1]), (module.k, x), (module.v, x))
    )
    return (q * module.scale @ k.transpose(-2, -1)).softmax(-1), v


def _cross_covariance(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (t.transpose(-2, -1) for t in _qkv(module, x))
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * module.temperature).softmax(-1), v


def _talking_heads(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = _qkv(module, x)
    scores = module.proj_l.forward((q * module.scale @ k.transpose(-2, -1)).permute(0, 2, 3, 1))
    return module.proj_w.forward(scores.softmax(2)).permute(0, 3, 1, 2), v


# timm class → its weights and values from its input; the names are those of the rows in layout.py.
_FORMULAS: dict[str, Callable[[Any, Tensor], tuple[Tensor, Tensor]]] = {
    "Attention": _self_attention,
    "ClassAttn": _class_attention,
    "XCA": _cross_covariance,
    "TalkingHeadAttn": _talking_heads,
}


@torch.no_grad()
def attention_weights(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (n, heads, queries, keys) and values (n, heads, keys, d) of one timm attention module for its input x."""
    formula = _FORMULAS.get(type(module).__name__)
    if formula is None:
        raise InputError(f"{type(module).__name__} is no attention known here; expected one of {', '.join(_FORMULAS)}")
    return formula(module, x)


class _Pass:
    """The hooks of one capture: geometry is noted where it arises and joined to the weights of the layers after it."""

    def __init__(self, net: nn.Module) -> None:
        self.recorder = Recorder()
        self.has_class_token = bool(getattr(net, "has_class_token", True))
        self.grid: Grid | None = None
        self.unfolding: Unfolding | None = None

    def begin(self, _net: nn.Module, _args: tuple[Any, ...]) -> None:
        self.recorder.layers = []
        self.grid = self.unfolding = None

    def note_grid(self, embed: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.grid = patch_grid(embed, args, output)

    def note_unfolding(self, block: Any) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(_conv: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            n, _, h, w = output.shape
            self.unfolding = Unfolding(n, (h, w), (int(block.patch_size[0]), int(block.patch_size[1])))

        return hook

    def note_weights(self, name: str, kind: Kind) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
            masks = [*args[1:], *kwargs.values()]
            if any(m is not None and m is not False for m in masks):
                raise InputError(f"attention layer {name} was called with a mask, which capture does not know; call it without")
            weights, values = attention_weights(module, args[0])
            if kind == "unfold":
                captured = Captured(name, kind, weights, values, unfolding=self.unfolding)
            elif kind == "channel" or self.grid is None:
                captured = Captured(name, kind, weights, values)
            else:
                prefix = weights.shape[-1] - self.grid[0] * self.grid[1]
                class_token = kind == "class" or (prefix > 0 and self.has_class_token)
                captured = Captured(name, kind, weights, values, self.grid, prefix, class_token)
            self.recorder.layers.append(captured)

        return hook


@contextmanager
def capture(model: Model, *, layers: Sequence[str] | None = None) -> Iterator[Recorder]:
    """Record the attention of every forward pass inside the context: `with capture(model) as rec: model(x)`.

    layers: names to record (see `attention_layers`), all by default; recording few saves memory. `rec.layers` is kept after
    the context ends; a new pass replaces it. Logits do not change, and the hooks come off also when the model raises.
    Raises InputError where the model has no attention or a name is unknown.
    """
    found = attention_layers(model)
    unknown = [name for name in layers or () if name not in found]
    if unknown:
        raise InputError(f"no attention layer is called {', '.join(unknown)}; model {model.card.id} has {', '.join(found)}")
    wanted = found if layers is None else {name: found[name] for name in layers}
    block_class, modules = layout_of(model).block, dict(model.net.named_modules())
    state = _Pass(model.net)
    with ExitStack() as stack:
        stack.enter_context(model.net.register_forward_pre_hook(state.begin))
        if "patch_embed" in modules:
            stack.enter_context(modules["patch_embed"].register_forward_hook(state.note_grid))
        for module in modules.values():
            if block_class and type(module).__name__ == block_class:
                conv: Any = module.conv_1x1  # its output is what the block unfolds
                stack.enter_context(conv.register_forward_hook(state.note_unfolding(module)))
        for name, kind in wanted.items():
            stack.enter_context(modules[name].register_forward_hook(state.note_weights(name, kind), with_kwargs=True))
        yield state.recorder
