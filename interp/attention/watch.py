"""What one attention module computes while it runs: its weights and values, read off torch's own functions.

    output = weights · values        each (n, heads, …), what the module's heads give to its output projection

    A = softmax(q·kᵀ/√d + bias)      ViT, BEiT, EVA, MobileViT, Swin, pooled keys, class attention
    A ∝ (1 − σ)·softmax(q·kᵀ/√d) + σ·softmax(p)    GPSA (ConViT, arXiv 2103.10697, eq. 7; p scores of relative position)
    A = softmax(q̂·k̂ᵀ·τ)              XCA (arXiv 2106.09681, eq. 2; q̂, k̂ of unit length over the tokens, τ learnt)
    A = W_w·softmax(W_l·q·kᵀ/√d)     talking heads (arXiv 2003.02436; rows need not sum to 1)
    A = softmax(q₁·k₁ᵀ/√d) − λ·softmax(q₂·k₂ᵀ/√d)  differential attention (arXiv 2410.05258, eq. 1)
    A = softmax(W·x)                 outlook attention, k² × k² in a window of k × k, x its centre (arXiv 2106.13112, section 3.1)
    A = relu(q)·relu(k)ᵀ / their sum over keys    linear attention of EfficientViT (arXiv 2205.14756, section 3.1)
    A = q·softmax(k)ᵀ/√d             factorised attention, softmax over tokens (CoaT, arXiv 2104.06399)
    c = softmax(q), one q per token  MobileViT v2 (arXiv 2206.02680, section 3.1): values are its keys
    A = softmax(kᵀ·v/√d)             channels of DaViT v1 (as timm has arXiv 2204.03645): values are its q

Linear and factorised attention compute q·(kᵀ·v) and never form weights of tokens on tokens. Their A is derived here from the
same q and k: it takes tokens² numbers for each head and image, which the model itself does not; more than MOST are refused.

In some families more happens between the heads and the projection, which no weights tell of: MViT v2 adds the queries,
EfficientFormer v2 and CoaT a convolution of the values, iFormer multiplies with a gate, and differential attention divides each
head's output by its root mean square. Outlook attention adds up what a position gets in several windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.attention.layout import Kind
from interp.types import InputError

MOST = 2**28  # derived weights of one layer in one pass: 1 GiB


class TooManyWeights(InputError):
    """A layer that forms no weights would need more than MOST to derive them in one pass: fewer images may do."""


@dataclass(frozen=True, eq=False)
class Product:
    """Weights, values and their product, of one attention."""

    weights: Tensor
    values: Tensor
    output: Tensor


class Watch(TorchFunctionMode):
    """Sees every torch function of one attention module and keeps the products of softmaxed weights with values.

    rows: how many n·groups are, known as the module attends. heads: the axis of the heads where there are more than four.
    gradients: what the model goes on with is made of the arranged output, the same numbers, so that this is part of the graph.
    """

    def __init__(self, module: nn.Module, kind: Kind, rows: Callable[[], int], *, heads: int, gradients: bool) -> None:
        self.module, self.kind, self.rows, self.heads, self.gradients = module, kind, rows, heads, gradients
        self.products: list[Product] = []
        self.single = False  # whether weights came without an axis of heads
        self._softmaxed: Tensor | None = None
        self._factor: Tensor | None = None  # of the second product of a difference
        self._inner: Product | None = None  # kᵀ, v and kᵀ·v of linear attention
        self._outer: tuple[Tensor, Tensor] | None = None  # its q and q·(kᵀ·v)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, soft = getattr(func, "__name__", "").strip("_"), self._softmaxed
        if name == "scaled_dot_product_attention":
            return self._keep(*fused_weights(*args, **(kwargs or {})), out)
        if name == "softmax":
            self._softmaxed = out
        elif self.kind in ("linear", "factorised"):
            self._derive(name, args, out)
        elif self.kind == "difference" and len(self.products) == 2:
            self._subtract(name, args, out)
        elif soft is not None and name in ("matmul", "bmm"):
            if _same(args[1], soft.mT):  # values · weightsᵀ
                return self._keep(args[1].mT, args[0].mT, out.mT).mT
            if args[0].shape[-2:] == soft.shape[-2:]:
                return self._keep(args[0], args[1], out)
        elif soft is not None and self.kind == "context" and name == "mul" and _same(args[1], soft):
            self.products.append(_context(args[1], args[0]))
            self._softmaxed = None
        return out

    def _keep(self, weights: Tensor, values: Tensor, out: Tensor) -> Tensor:
        """Note one product; returns the output that the model goes on with."""
        self._softmaxed, self.single = None, weights.ndim == 3
        parts = [_single(weights.detach()), _single(values.detach()), out]
        if self.kind == "halo":  # whose batch is that of images and heads
            parts = [t.unflatten(0, (self.rows() // t.shape[1], -1)) for t in parts]
        weights, values, output = (_arranged(t, self.rows(), self.heads) for t in parts)
        if self.kind == "mean":  # the module drops the other rows
            weights, first = weights[:, :, :1], output[:, :, :1]
            self.products.append(Product(weights, values, first))
            output = torch.cat([first, output[:, :, 1:]], 2)
        else:
            self.products.append(Product(weights, values, output))
        if not self.gradients:
            return out
        on = _restored(output, parts[-1].shape, self.heads)
        return on.flatten(0, 1) if self.kind == "halo" else on

    def _subtract(self, name: str, args: Any, out: Tensor) -> None:
        """Of two fused products o₁ and o₂: note λ in λ·o₂, and in o₁ − λ·o₂ make them one product."""
        first, second = self.products
        if name == "mul" and _same(args[1], second.output):
            self._factor = args[0].detach()
        elif name == "sub" and self._factor is not None and _same(args[0], first.output):
            self.products = [Product(first.weights - self._factor * second.weights, first.values, out)]

    def _derive(self, name: str, args: Any, out: Tensor) -> None:
        """Of q·(kᵀ·v), and of what the model divides or multiplies it by: note the weights that have this product."""
        if name == "matmul" and self._inner is not None and _same(args[1], self._inner.output):
            self._outer = args[0].detach(), out
        elif name == "matmul":
            self._inner = Product(args[0].detach(), args[1].detach(), out)
        elif self._inner is not None and self._outer is not None and name in ("div", "truediv", "mul", "rmul"):
            by = [a.detach() if isinstance(a, Tensor) else a for a in args if not _begins(a, self._outer[1])]
            if len(by) == 1 == len(args) - 1:
                weights = self._formed(self._outer[0], self._inner.weights)
                weights = weights / by[0] if "div" in name else weights * by[0]
                self.products.append(Product(_single(weights), _single(self._inner.values[..., : out.shape[-1]]), out))
                self._outer = None

    def _formed(self, query: Tensor, key: Tensor) -> Tensor:
        """q·kᵀ (…, tokens, tokens); raises TooManyWeights for more numbers than MOST."""
        many = query.shape[:-1].numel() * key.shape[-1]
        if many > MOST:
            raise TooManyWeights(
                f"{many} weights would be derived of a layer that forms none ({type(self.module).__name__}); at most {MOST} "
                "are in one pass. Give fewer images at a time (chunk), or leave the layer out: capture(model, layers=[…])"
            )
        return query @ key

    def product(self, name: str) -> Product:
        """The product of the module that ran; of several, one for each head, all heads together. Raises InputError for others."""
        if len(self.products) == 1:
            return self.products[0]
        owner, shapes = f"layer {name} ({type(self.module).__name__})", {found.weights.shape for found in self.products}
        if not self.products or not self.single or len(shapes) > 1:
            raise InputError(
                f"{owner} ran {len(self.products)} products of a softmax with values; capture knows attention of one. Leave the "
                "layer out: capture(model, layers=[…])"
            )
        if self.gradients:
            raise InputError(
                f"{owner} runs its heads one after another, so that its gradient is not that of one product; take a method "
                "without gradients of attention: raw, rollout or a class activation map"
            )
        return Product(*(torch.cat([getattr(p, part) for p in self.products], 1) for part in ("weights", "values", "output")))


def _single(t: Tensor) -> Tensor:
    """In float32 where the precision is half."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _arranged(t: Tensor, rows: int, heads: int) -> Tensor:
    """(…, a, b) as (n·groups, heads, a, b): rows, how many n·groups are; heads, the axis of these where there are over four."""
    if t.ndim == 3:
        return t.unflatten(0, (rows, -1))
    return t.movedim(heads, -3).flatten(0, -4) if t.ndim > 4 else t


def _restored(arranged: Tensor, shape: torch.Size, heads: int) -> Tensor:
    """`_arranged` undone."""
    if len(shape) == 3:
        return arranged.flatten(0, 1)
    if len(shape) == 4:
        return arranged
    groups = [n for axis, n in enumerate(shape[:-2]) if axis != heads % len(shape)]
    return arranged.unflatten(0, groups).movedim(-3, heads)


def _same(operand: Any, tensor: Tensor) -> bool:
    """Whether an operand is this very view of the same numbers."""
    alike = isinstance(operand, Tensor) and operand.data_ptr() == tensor.data_ptr()
    return alike and operand.shape == tensor.shape and operand.stride() == tensor.stride()


def _begins(operand: Any, tensor: Tensor) -> bool:
    """Whether an operand is these numbers, or all columns of them but the last."""
    return isinstance(operand, Tensor) and (_same(operand, tensor) or _same(operand, tensor[..., :-1]))


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
    """The weights (…, queries, keys) that `scaled_dot_product_attention` of these arguments uses, and its values.

    Both in float32 where the arguments have a half precision, as fused kernels add up. Raises InputError for dropout.
    """
    if dropout_p:
        raise InputError(f"attention drops weights at random (dropout {dropout_p:g}), which nobody sees; call model.eval()")
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
    query, key, value = (_single(t) for t in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.softmax(scores, -1, out=scores), value.detach()


def _context(scores: Tensor, keys: Tensor) -> Product:
    """MobileViT v2's scores (n, 1, pixels, patches) and keys (n, d, pixels, patches) as weights and values of one query."""
    weights = scores.permute(0, 2, 1, 3).flatten(0, 1)[:, None]
    values = keys.permute(0, 2, 3, 1).flatten(0, 1)[:, None]
    return Product(_single(weights.detach()), _single(values.detach()), weights @ values)
