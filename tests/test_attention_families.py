"""timm's published architectures at full size: every attention layer is found, named, placed and exact.

Their weights are random. As timm begins them attention is all but uniform, and any order of the keys could pass for exact, so
they are drawn again, larger (`sharpen`); that keys in a wrong order are seen is asserted of every layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.attention.capture import Captured, capture
from interp.attention.layout import attention_layers
from interp.models.build import build
from interp.models.model import Model
from interp.types import Card, Preprocess
from tests.attention_nets import formula, heads, images, projected

Shape = tuple[int, int, int, int]


def numbered(pattern: str, *counts: int) -> list[str]:
    """numbered("a.{0}.b.{1}", 2, 1) is a.0.b.0, a.0.b.1, a.1.b.0."""
    return [pattern.format(place, k) for place, count in enumerate(counts) for k in range(count)]


@dataclass(frozen=True)
class Family:
    """One architecture. shapes (of the weights of one image), grids (rows = columns) and kinds are (value, layers in a row)."""

    arch: str
    names: list[str]
    shapes: list[tuple[Shape, int]]
    grids: list[tuple[int, int]]
    kinds: list[tuple[str, int]]
    px: int = 224
    args: dict[str, Any] = field(default_factory=dict)
    prefix: int = 0  # of the last layer
    class_token: bool = False
    stages: tuple[int, ...] = ()  # layers of each, one stage where empty


def vit(arch: str, n_heads: int, side: int = 14, *, prefix: int = 1, class_token: bool = True, **args: Any) -> Family:
    tokens = side**2 + prefix
    names = numbered("blocks.{1}.attn", 12)
    return Family(
        arch,
        names,
        [((1, n_heads, tokens, tokens), 12)],
        [(side, 12)],
        [("self", 12)],
        args=args,
        prefix=prefix,
        class_token=class_token,
    )


def xcit(arch: str, n_heads: int, side: int = 14) -> Family:
    names = numbered("blocks.{1}.attn", 12) + numbered("cls_attn_blocks.{1}.attn", 2)
    channels = {4: 32, 8: 48}[n_heads]  # of a head
    return Family(
        arch,
        names,
        [((1, n_heads, channels, channels), 12), ((1, n_heads, 1, side**2 + 1), 2)],
        [(side, 14)],
        [("channel", 12), ("class", 2)],
        prefix=1,
        class_token=True,
    )


def mobilevit(arch: str) -> Family:
    names = [f"stages.{s}.1.transformer.{k}.attn" for s, n in ((2, 2), (3, 4), (4, 3)) for k in range(n)]
    grids = [(32, 2), (16, 4), (8, 3)]
    v2 = arch.startswith("mobilevitv2")
    shapes = [((4, 1, 1, side**2 // 4) if v2 else (4, 4, side**2 // 4, side**2 // 4), n) for side, n in grids]
    return Family(arch, names, shapes, grids, [("context" if v2 else "unfold", 9)], px=256, stages=(2, 4, 3))


def swin(arch: str, px: int, window: int) -> Family:
    names, grids = numbered("layers.{0}.blocks.{1}.attn", 2, 2, 6, 2), [(px // 4 // 2**k, n) for k, n in enumerate((2, 2, 6, 2))]
    area = window**2
    shapes = [((side**2 // area, 3 * 2**k, area, area), n) for k, (side, n) in enumerate(grids)]
    return Family(arch, names, shapes, grids, [("window", 12)], px=px, stages=(2, 2, 6, 2))


CAIT = Family(
    "cait_xxs24_224",
    numbered("blocks.{1}.attn", 24) + numbered("blocks_token_only.{1}.attn", 2),
    [((1, 4, 196, 196), 24), ((1, 4, 1, 197), 2)],
    [(14, 26)],
    [("talking", 24), ("class", 2)],
    prefix=1,
    class_token=True,
)
FAMILIES = [
    xcit("xcit_nano_12_p16_224", 4),
    xcit("xcit_small_12_p16_224", 8),
    xcit("xcit_nano_12_p8_224", 4, 28),
    xcit("xcit_small_12_p8_224", 8, 28),
    mobilevit("mobilevit_xxs"),
    mobilevit("mobilevit_xs"),
    mobilevit("mobilevit_s"),
    mobilevit("mobilevitv2_050"),
    vit("deit_small_patch16_224", 6),
    CAIT,
    swin("swin_tiny_patch4_window7_224", 224, 7),
    swin("swinv2_tiny_window8_256", 256, 8),
    vit("beit_base_patch16_224", 12, class_token=False),
    vit("eva02_tiny_patch14_224", 3, 16, class_token=False),
    vit("vit_small_patch14_reg4_dinov2", 6, 16, prefix=5, img_size=224),
]
EXACT = 1e-5  # relative error of one product
SAME = 1e-4  # relative error after layers of different kernels: other sizes of batch, other formulas
WRONG = 0.05


def each(coded: list[tuple[Any, int]]) -> list[Any]:
    return [value for value, n in coded for _ in range(n)]


def sharpen(net: nn.Module) -> None:
    """Weights so large that tokens differ at every depth and attention is far from uniform."""
    for m in net.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            spatial = isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)
            nn.init.normal_(m.weight, std=(2.0 if spatial else 3.0) / m.weight[0].numel() ** 0.5)
    for name, p in net.named_parameters():
        if name.endswith("temperature"):  # of XCiT's cosines
            nn.init.constant_(p, 10.0)
        if name.endswith(("_token", "pos_embed")):  # class tokens and registers begin as one and the same
            nn.init.normal_(p)


def full_size(family: Family) -> Model:
    torch.manual_seed(0)
    net = build(family.arch, num_classes=10, arch_args=family.args)
    sharpen(net)
    centred = Preprocess(family.px, family.px, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # a mean would be common to all tokens
    return Model(net, Card(id="t", arch=family.arch, num_classes=10, preprocess=centred))


def error(found: Tensor, want: Tensor) -> Tensor:
    """Of each image, or group of its tokens: the norm of the difference over the norm of what is wanted."""
    return (found - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)


def effective(weights: Tensor) -> float:
    """How many keys a query attends to, (Σ|w|)² / Σw², as a share of all; 1 where it attends to all alike."""
    return ((weights.abs().sum(-1) ** 2 / (weights**2).sum(-1)).mean() / weights.shape[-1]).item()


def layers(model: Model, x: Tensor) -> list[Captured]:
    with capture(model) as rec:
        model(x)
    return rec.layers


def assert_exact(c: Captured, module: Any, given: Tensor, out: Tensor) -> None:
    """Weights · values give what the module gave, and would not with the keys of one of the two moved by one."""

    def of_module(weights: Tensor, values: Tensor) -> Tensor:
        return error(projected(module, given, c.kind, weights @ values), out)

    assert effective(c.weights) < 0.7, c.name
    assert error(c.weights @ c.values, c.output).max() < EXACT, c.name
    assert of_module(c.weights, c.values).max() < EXACT, c.name
    assert of_module(c.weights.roll(1, -1), c.values).min() > WRONG, c.name
    assert of_module(c.weights, c.values.roll(1, -2)).min() > WRONG, c.name


def assert_by_formula(c: Captured, module: Any, given: Tensor, model: Model) -> None:
    """Weights and values are those of the paper's formula: their product is the same with the keys of both moved."""
    if model.card.arch.startswith(("beit", "eva")):  # the formulas of their weights are written for one small grid
        assert error(c.values, heads(module, given)[2]).max() < SAME, c.name
    else:
        weights, values = formula(model.card.arch, c.kind)(module, given, model.net, c.name)
        assert error(c.weights, weights).max() < SAME, c.name
        assert error(c.values, values).max() < SAME, c.name


def assert_rows(both: Captured, first: Captured, second: Captured) -> None:
    """A batch of two holds what each image gives alone, one after the other, and the two differ."""
    for of in ("weights", "values", "output"):
        rows = [t.flatten()[None] for t in getattr(both, of).chunk(2)]
        alone = [getattr(c, of).flatten()[None] for c in (first, second)]
        assert all(error(*pair) < SAME for pair in zip(rows, alone, strict=True)), (both.name, of)
        assert error(*rows) > WRONG, (both.name, of)


@pytest.mark.parametrize("family", [pytest.param(f, id=f.arch) for f in FAMILIES])
def test_every_layer_is_found_named_placed_and_exact(family: Family) -> None:
    model, x = full_size(family), images(2, (family.px, family.px))
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    modules = {path: model.net.get_submodule(path) for path in family.names}
    with torch.no_grad():
        alone = [layers(model, x[:1]), layers(model, x[1:])]
        before = model(x)
        for path, module in modules.items():
            module.register_forward_hook(lambda _m, a, out, path=path: seen.__setitem__(path, (a[0], out)))
        with capture(model) as rec:
            assert torch.equal(model(x), before)
        for c, *single in zip(rec.layers, *alone, strict=True):
            assert_exact(c, modules[c.name], *seen[c.name])
            assert_by_formula(c, modules[c.name], seen[c.name][0], model)
            assert_rows(c, *single)
    assert [[c.name for c in found] for found in (rec.layers, *alone)] == [family.names] * 3
    assert family.names == list(attention_layers(model))
    assert [c.weights.shape for c in alone[0]] == each(family.shapes)
    assert [c.weights.shape for c in rec.layers] == [(2 * shape[0], *shape[1:]) for shape in each(family.shapes)]
    assert [c.kind for c in rec.layers] == each(family.kinds)
    assert [c.geometry and c.geometry.size for c in rec.layers] == [(side, side) for side in each(family.grids)]
    assert [c.stage for c in rec.layers] == each(list(enumerate(family.stages or (len(family.names),))))
    last = rec.layers[-1].geometry
    assert last is not None and (last.prefix, last.class_token) == (family.prefix, family.class_token)
