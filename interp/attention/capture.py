"""The attention weights of every layer of a pass, whether timm fuses its attention or not.

Fused attention (`scaled_dot_product_attention`) never forms the weights, and hooks on the softmax then see nothing. Here, while
an attention module runs, torch's own functions are watched (`Watch`, where the formulas stand): a fused call gives q, k, v and
bias, of which the weights are softmax(q·kᵀ·scale + bias); an unfused one the operands of the product that follows the softmax.
Nothing inside the model is replaced and nothing is computed twice but q·kᵀ, so its logits are those of a pass without capture,
bit for bit, and what is recorded is what this version of timm computes, with its norms, rotations and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from interp.attention.geometry import Geometry, Grid, embedded
from interp.attention.layout import POOLS, Kind, Layout, attention_layers, layout_of, matching
from interp.attention.places import Told, Where
from interp.attention.watch import Product, TooManyWeights, Watch
from interp.models.model import Model, eager
from interp.types import InputError

T = TypeVar("T")


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
    computed beside the model, and never part of it. Under half precision weights and values are float32, output is the
    model's own. For kind "channel" queries and keys are channels of a head, d counts tokens, and geometry is the grid of these
    tokens. geometry: None where the grid is unknown. skip: whether a skip connection runs around the layer, as around all but
    attention pools.
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
    the model raises; a compiled model runs uncompiled inside. Raises InputError where the model has no attention, a name is
    unknown, or fused attention drops weights at random, as in training mode.
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
        stack.enter_context(eager())
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


class _Pass:
    """The hooks of one capture: the geometry is noted where it arises and joined to the layers after it."""

    def __init__(self, net: nn.Module, layout: Layout, consume: Callable[[Captured], None], *, gradients: bool) -> None:
        self.layout, self.consume, self.gradients = layout, consume, gradients
        tokens = any(name.startswith("cls_token") for name, _ in net.named_parameters(recurse=False))
        token = getattr(net, "has_class_token", tokens)
        self.reads_class_token = bool(token) and getattr(net, "global_pool", "token") in ("", "token", "prr")
        self.by_block = set(layout.modules.values()) <= {"unfold", "context"}  # tokens of a block are unfolded anew
        self.watching: list[Watch] = []
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
            self.watching.append(Watch(module, kind, rows, heads=self.layout.heads, gradients=self.gradients))
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

    def _captured(self, module: nn.Module, name: str, kind: Kind, found: Product) -> Captured:
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
