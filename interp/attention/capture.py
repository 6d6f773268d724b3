"""The attention weights of every layer of a pass, whether timm fuses its attention or not.

Fused attention (`scaled_dot_product_attention`) never forms the weights, and hooks on the softmax then see nothing. Here, while
an attention module runs, torch's own functions are watched (`torch.overrides.TorchFunctionMode`): a fused call gives q, k, v and
bias, of which the weights are softmax(q·kᵀ·scale + bias); an unfused one the operands of the product that follows the softmax.
Nothing inside the model is replaced and nothing is computed twice but q·kᵀ, so its logits are those of a pass without capture,
bit for bit, and what is recorded is what this version of timm computes, with its norms, rotations and biases:

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

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.attention.geometry import Geometry, Grid, embedded
from interp.attention.layout import POOLS, Kind, Layout, attention_layers, layout_of, matching
from interp.attention.places import Told, Where
from interp.types import InputError

if TYPE_CHECKING:
    from interp.models.model import Model

T = TypeVar("T")
MOST = 2**28  # derived weights of one layer in one pass: 1 GiB


class TooManyWeights(InputError):
    """A layer that forms no weights would need more than MOST to derive them in one pass: fewer images may do."""


def by_pieces(run: Callable[[slice], T], n: int, chunk: int) -> list[T]:
    """run(piece) of consecutive pieces of at most `chunk` of n images, in order.

    Where a piece has TooManyWeights it is begun again with half as many images, so run must not keep half a piece. Raises
    TooManyWeights where a single image has too many, InputError where chunk < 1.
    """
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; expected at least 1 image per pass")
    found: list[T] = []
    start = 0
    while start < n:
        piece = slice(start, min(start + chunk, n))
        try:
            found.append(run(piece))
        except TooManyWeights:
            if piece.stop - start == 1:
                raise
            chunk = (piece.stop - start) // 2
        else:
            start = piece.stop
    return found


@dataclass(frozen=True, eq=False)
class Captured:
    """One attention layer in one pass.

    name: its path inside `model.net`. stage: queries of layers of one number are on the same tokens. weights (n·groups, heads,
    queries, keys), without gradient. values (n·groups, heads, keys, d) likewise. output (n·groups, heads, queries, d): their
    product as the model computed it, part of the graph where `capture` was asked for gradients; for kind "context" it is
    computed beside the model, and never part of it. For kind "channel" queries and keys are channels of a head, d counts tokens,
    and geometry is the grid of these tokens. geometry: None where the grid is unknown. skip: whether a skip connection runs
    around the layer, as around all but attention pools.
    """

    name: str
    kind: Kind
    stage: int
    weights: Tensor
    values: Tensor
    output: Tensor
    geometry: Geometry | None = None
    skip: bool = True

    @property
    def extent(self) -> Grid | None:
        """Pixels that the grid of the keys covers, where that is not the image."""
        return None if self.geometry is None else self.geometry.extent


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

    state = _Pass(model.net, layout_of(model), consume or keep, gradients=gradients)

    def begin(_net: nn.Module, args: tuple[Any, ...]) -> None:
        recorder.layers = []
        state.clear(images=len(args[0]))

    with ExitStack() as stack:
        stack.callback(state.clear)
        stack.enter_context(model.net.register_forward_pre_hook(begin))
        for handle in placing(model.net, layout_of(model), state.settle):
            stack.enter_context(handle)
        for name in found if layers is None else set(layers):
            module = model.net.get_submodule(name)
            stack.enter_context(module.register_forward_pre_hook(state.begin(found[name])))
            stack.enter_context(module.register_forward_hook(state.end(name, found[name]), always_call=True))
        yield recorder


def placing(net: nn.Module, layout: Layout, settle: Callable[[Geometry | None], None]) -> Iterator[Any]:
    """Hooks that hand on where tokens are as it changes: at the modules that the family's row names, or the patch embedding."""
    last: list[Geometry | None] = [None]
    image: Grid = (0, 0)

    def begin(_net: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal image
        image = int(args[0].shape[-2]), int(args[0].shape[-1])

    def found(geometry: Geometry | None) -> None:
        last[0] = geometry
        settle(geometry)

    def before(owner: nn.Module, where: Where) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, args: found(where(Told(owner, args, net, last[0], image)))

    yield net.register_forward_pre_hook(begin)
    for _path, module, owner, where in matching(net, layout.places):
        yield module.register_forward_pre_hook(before(owner, where))
    for path, module in () if layout.places else net.named_modules():
        if path == "patch_embed" or hasattr(module, "dynamic_feat_size"):
            yield module.register_forward_hook(lambda *told: found(embedded(*told)))


@dataclass(frozen=True, eq=False)
class _Product:
    """Weights, values and their product, of one attention."""

    weights: Tensor
    values: Tensor
    output: Tensor


class _Watch(TorchFunctionMode):
    """Sees every torch function of one attention module and keeps the products of softmaxed weights with values.

    rows: how many n·groups are, known as the module attends. heads: the axis of the heads where there are more than four.
    gradients: what the model goes on with is made of the arranged output, the same numbers, so that this is part of the graph.
    """

    def __init__(self, module: nn.Module, kind: Kind, rows: Callable[[], int], *, heads: int, gradients: bool) -> None:
        self.module, self.kind, self.rows, self.heads, self.gradients = module, kind, rows, heads, gradients
        self.products: list[_Product] = []
        self.single = False  # whether weights came without an axis of heads
        self._softmaxed: Tensor | None = None
        self._factor: Tensor | None = None  # of the second product of a difference
        self._inner: _Product | None = None  # kᵀ, v and kᵀ·v of linear attention
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
        parts = [weights.detach(), values.detach(), out]
        if self.kind == "halo":  # whose batch is that of images and heads
            parts = [t.unflatten(0, (self.rows() // t.shape[1], -1)) for t in parts]
        weights, values, output = (_arranged(t, self.rows(), self.heads) for t in parts)
        if self.kind == "mean":  # the module drops the other rows
            weights, first = weights[:, :, :1], output[:, :, :1]
            self.products.append(_Product(weights, values, first))
            output = torch.cat([first, output[:, :, 1:]], 2)
        else:
            self.products.append(_Product(weights, values, output))
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
            self.products = [_Product(first.weights - self._factor * second.weights, first.values, out)]

    def _derive(self, name: str, args: Any, out: Tensor) -> None:
        """Of q·(kᵀ·v), and of what the model divides or multiplies it by: note the weights that have this product."""
        if name == "matmul" and self._inner is not None and _same(args[1], self._inner.output):
            self._outer = args[0].detach(), out
        elif name == "matmul":
            self._inner = _Product(args[0].detach(), args[1].detach(), out)
        elif self._inner is not None and self._outer is not None and name in ("div", "truediv", "mul", "rmul"):
            by = [a.detach() if isinstance(a, Tensor) else a for a in args if not _begins(a, self._outer[1])]
            if len(by) == 1 == len(args) - 1:
                weights = self._formed(self._outer[0], self._inner.weights)
                weights = weights / by[0] if "div" in name else weights * by[0]
                self.products.append(_Product(weights, self._inner.values[..., : out.shape[-1]], out))
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

    def product(self, name: str) -> _Product:
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
        return _Product(*(torch.cat([getattr(p, part) for p in self.products], 1) for part in ("weights", "values", "output")))


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
    """The hooks of one capture: the geometry is noted where it arises and joined to the layers after it."""

    def __init__(self, net: nn.Module, layout: Layout, consume: Callable[[Captured], None], *, gradients: bool) -> None:
        self.layout, self.consume, self.gradients = layout, consume, gradients
        tokens = any(name.startswith("cls_token") for name, _ in net.named_parameters(recurse=False))
        token = getattr(net, "has_class_token", tokens)
        self.reads_class_token = bool(token) and getattr(net, "global_pool", "token") in ("", "token", "prr")
        self.by_block = set(layout.modules.values()) <= {"unfold", "context"}  # tokens of a block are unfolded anew
        self.watching: list[_Watch] = []
        self.clear()

    def clear(self, images: int = 0) -> None:
        """Forget the pass before; also stop watching a module that Ctrl-C left, for which torch calls no hook."""
        self.images = images
        self.geometry: Geometry | None = None
        self.sizes: list[Grid | None] = []  # of the stages so far
        self.stage = 0
        while self.watching:
            self.watching.pop().__exit__(None, None, None)

    def settle(self, geometry: Geometry | None) -> None:
        """Join the layers that follow to this geometry."""
        self.geometry = geometry
        size = None if geometry is None else geometry.queries.size
        if self.by_block or size not in self.sizes:
            self.sizes.append(size)
        self.stage = len(self.sizes) - 1 if self.by_block else self.sizes.index(size)

    def begin(self, kind: Kind) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def rows() -> int:
            return self.images * (self.geometry.groups if self.geometry is not None and kind != "channel" else 1)

        def hook(module: nn.Module, _args: tuple[Any, ...]) -> None:
            self.watching.append(_Watch(module, kind, rows, heads=self.layout.heads, gradients=self.gradients))
            self.watching[-1].__enter__()

        return hook

    def end(self, name: str, kind: Kind) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if not self.watching or self.watching[-1].module is not module:  # another hook raised before it began
                return
            watch = self.watching.pop()
            watch.__exit__(None, None, None)
            if output is not None:  # else the module raised
                self.consume(self._captured(module, name, kind, watch.product(name)))

        return hook

    def _captured(self, module: nn.Module, name: str, kind: Kind, found: _Product) -> Captured:
        weights, output = found.weights, found.output if self.gradients else found.output.detach()
        values, geometry = found.values.expand(*weights.shape[:2], -1, -1), self.geometry
        if geometry is not None and kind not in ("channel", "unfold", "window", "global-query", "context", "halo", "outlook"):
            tokens = weights.shape[-1]
            extra = 0 if geometry.groups > 1 else tokens - geometry.positions
            own = geometry.class_token if geometry.prefix else self.reads_class_token
            read = kind in ("class", "mean") or (kind != "latent" and extra > 0 and own)
            geometry = geometry.with_prefix(geometry.positions + extra, class_token=read) if extra >= 0 else None
            geometry = geometry and replace(geometry, latent=kind == "latent")
        if geometry is not None and kind != "channel" and not geometry.fits(weights, self.images):
            geometry = None
        skip = type(module).__name__ not in POOLS
        return Captured(name, kind, self.stage, weights, values, output, geometry, skip)
