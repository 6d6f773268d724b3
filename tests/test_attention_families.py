"""timm's published architectures at full size, random weights: every attention layer is found, named, placed and exact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.attention.capture import capture
from interp.attention.layout import attention_layers
from interp.models.build import build
from tests.attention_nets import images, projected, wrap

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


def vit(arch: str, heads: int, side: int = 14, *, prefix: int = 1, class_token: bool = True, **args: Any) -> Family:
    tokens = side**2 + prefix
    names = numbered("blocks.{1}.attn", 12)
    return Family(
        arch,
        names,
        [((1, heads, tokens, tokens), 12)],
        [(side, 12)],
        [("self", 12)],
        args=args,
        prefix=prefix,
        class_token=class_token,
    )


def xcit(arch: str, heads: int, *, px: int = 224, side: int = 14) -> Family:
    names = numbered("blocks.{1}.attn", 12) + numbered("cls_attn_blocks.{1}.attn", 2)
    channels = {4: 32, 8: 48}[heads]  # of a head
    return Family(
        arch,
        names,
        [((1, heads, channels, channels), 12), ((1, heads, 1, side**2 + 1), 2)],
        [(side, 14)],
        [("channel", 12), ("class", 2)],
        px=px,
        args={"img_size": px},
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
    xcit("xcit_small_12_p8_224", 8, px=112),
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
SLOW = {
    "xcit_small_12_p16_224",
    "xcit_small_12_p8_224",
    "beit_base_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "swinv2_tiny_window8_256",
}


def each(coded: list[tuple[Any, int]]) -> list[Any]:
    return [value for value, n in coded for _ in range(n)]


@pytest.mark.parametrize(
    "family", [pytest.param(f, id=f.arch, marks=[pytest.mark.slow] if f.arch in SLOW else []) for f in FAMILIES]
)
def test_every_layer_is_found_named_placed_and_exact(family: Family) -> None:
    torch.manual_seed(0)
    model, x = wrap(build(family.arch, num_classes=10, arch_args=family.args), family.px), images(1, (family.px, family.px))
    outputs: dict[str, tuple[Tensor, Tensor]] = {}
    for path in family.names:
        model.net.get_submodule(path).register_forward_hook(lambda _m, a, out, path=path: outputs.__setitem__(path, (a[0], out)))
    with torch.no_grad():
        before = model(x)
        with capture(model) as rec:
            assert torch.equal(model(x), before)
        for c in rec.layers:
            given, out = outputs[c.name]
            assert torch.allclose(c.weights @ c.values, c.output, atol=1e-5), c.name
            assert torch.allclose(projected(model.net.get_submodule(c.name), given, c.kind, c.output), out, atol=1e-5), c.name
    assert [c.name for c in rec.layers] == family.names == list(attention_layers(model))
    assert [c.weights.shape for c in rec.layers] == each(family.shapes)
    assert [c.kind for c in rec.layers] == each(family.kinds)
    assert [c.geometry and c.geometry.size for c in rec.layers] == [(side, side) for side in each(family.grids)]
    assert [c.stage for c in rec.layers] == each(list(enumerate(family.stages or (len(family.names),))))
    last = rec.layers[-1].geometry
    assert last is not None and (last.prefix, last.class_token) == (family.prefix, family.class_token)
