"""Signatures of the architectures that timm builds: shapes → candidates.

Widths, depths and heads are read from the shapes and compared with the published variants of each family; the sources are the
papers named at each function, the values timm's. Where a file's widths match no published variant, nothing is returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from interp.loading.candidate import Candidate, Shapes, count, rows

XCIT = {128: "nano", 192: "tiny", 384: "small", 512: "medium", 768: "large"}
XCIT_IN_TIMM = {("nano", 12), ("tiny", 12), ("tiny", 24), ("small", 12), ("small", 24), ("medium", 24), ("large", 24)}
VIT = {192: ("tiny", 12, 3), 384: ("small", 12, 6), 768: ("base", 12, 12), 1024: ("large", 24, 16)}
CAIT = {192: "xxs", 288: "xs", 384: "s", 768: "m"}
CAIT_IN_TIMM = {
    ("xxs", 24): 224,
    ("xxs", 36): 224,
    ("xs", 24): 384,
    ("s", 24): 224,
    ("s", 36): 384,
    ("m", 36): 384,
    ("m", 48): 448,
}
MOBILEVIT = {(16, 320): "xxs", (16, 384): "xs", (16, 640): "s"}
SWIN = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}
CONVNEXT = {(96, 9): "tiny", (96, 27): "small", (128, 27): "base", (192, 27): "large", (256, 27): "xlarge"}
RESNET: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


def xcit(shapes: Shapes) -> list[Candidate]:
    """XCiT (El-Nouby et al., arXiv 2106.09681): class token, temperature per head, a stem of 3 × 3 convolutions."""
    if "blocks.0.attn.temperature" not in shapes or "cls_token" not in shapes:
        return []
    width, depth = shapes["cls_token"][-1], count(shapes, "blocks")
    heads = shapes["blocks.0.attn.temperature"][0]
    convolutions = sum(k.startswith("patch_embed.proj.") and k.endswith(".0.weight") for k in shapes)
    patch = {4: 16, 3: 8}.get(convolutions)
    if patch is None:
        return []
    evidence: tuple[str, ...] = (
        f"class token of width {width}, {depth} blocks, {heads} heads in attn.temperature",
        f"{convolutions} convolutions in the patch stem: patches of {patch} with the published strides",
    )
    open_ = {"patch stride": "16"} if patch == 16 else {}
    name = XCIT.get(width)
    published_heads = {"nano": 4, "tiny": 4, "small": 8, "medium": 8, "large": 16}
    classes = rows(shapes, "head.weight")
    if name is not None and published_heads[name] == heads and depth in (12, 24):
        base = name, depth if (name, depth) in XCIT_IN_TIMM else 36 - depth
        args: dict[str, Any] = {} if base[1] == depth else {"depth": depth}
        evidence = (*evidence, "tokens_norm is not in the shapes: as published; sizes 224 and 384 have the same shapes")
        return [Candidate(f"xcit_{name}_{base[1]}_p{patch}_224", classes, args, evidence, open_, 224)]
    own: dict[str, Any] = {"embed_dim": width, "depth": depth, "num_heads": heads}
    return [
        Candidate(
            f"xcit_nano_12_p{patch}_224", classes, own | {"tokens_norm": norm}, evidence, open_ | {"tokens_norm": str(norm)}, 224
        )
        for norm in (True, False)
    ]


def vit(shapes: Shapes) -> list[Candidate]:
    """ViT and DeiT (arXiv 2010.11929, 2012.12877), one network in timm; heads are width / 64 in every published variant."""
    stem, positions = shapes.get("patch_embed.proj.weight"), shapes.get("pos_embed")
    if stem is None or positions is None or "blocks.0.attn.qkv.weight" not in shapes or "blocks.0.gamma_1" in shapes:
        return []
    width, patch, depth = stem[0], stem[-1], count(shapes, "blocks")
    known = VIT.get(width)
    if known is None:
        return []
    distilled = "dist_token" in shapes or "head_dist.weight" in shapes
    side = math.isqrt(positions[1])
    size = side * patch
    args: dict[str, Any] = {"img_size": size} if size != 224 else {}
    if "fc_norm.weight" in shapes:
        args["global_pool"] = "avg"
    evidence: tuple[str, ...] = (
        f"patches of {patch}, width {width}, {depth} blocks; heads are not in the shapes: {known[2]} as published",
        f"{positions[1]} positions: {size} pixels",
    )
    arch = f"vit_{known[0]}_patch16_224"
    args |= {"patch_size": int(patch)} if patch != 16 else {}
    if distilled:
        arch = f"deit_{known[0]}_distilled_patch16_224"
        evidence = (*evidence, "distillation token and head")
    elif patch == 16 and known[0] != "large":
        evidence = (*evidence, f"deit_{known[0]}_patch16_224 is the same network")
    classes = rows(shapes, "head.weight")
    if depth == known[1]:
        return [Candidate(arch, classes, args, evidence, {}, size)]
    args |= {"depth": depth}  # not published: the heads, which shapes do not show, are anyone's guess
    return [
        Candidate(arch, classes, args | {"num_heads": width // each}, evidence[1:], {"heads": str(width // each)}, size)
        for each in (64, 32, 48)
        if width % each == 0
    ]


def cait(shapes: Shapes) -> list[Candidate]:
    """CaiT (Touvron et al., arXiv 2103.17239): talking heads and class-attention blocks."""
    if "blocks.0.attn.proj_l.weight" not in shapes or "blocks_token_only.0.gamma_1" not in shapes:
        return []
    width, depth = shapes["pos_embed"][-1], count(shapes, "blocks")
    heads, positions = shapes["blocks.0.attn.proj_l.weight"][0], shapes["pos_embed"][1]
    name = CAIT.get(width)
    if name is None or heads != width // 48:
        return []
    size = math.isqrt(positions) * 16
    base = next((d for n, d in CAIT_IN_TIMM if n == name and d == depth), None) or next(d for n, d in CAIT_IN_TIMM if n == name)
    default = CAIT_IN_TIMM[name, base]
    args: dict[str, Any] = ({"depth": depth} if base != depth else {}) | ({"img_size": size} if size != default else {})
    evidence = (
        f"talking heads ({heads}), width {width}, {depth} blocks",
        f"{positions} positions: {size} pixels",
    )
    return [Candidate(f"cait_{name}{base}_{default}", rows(shapes, "head.weight"), args, evidence, {}, size)]


def mobilevit(shapes: Shapes) -> list[Candidate]:
    """MobileViT v1 and v2 (arXiv 2110.02178, 2206.02680); strides are those published, for 256 pixels."""
    stem, head = shapes.get("stem.conv.weight"), shapes.get("head.fc.weight")
    if stem is None or head is None:
        return []
    open_ = {"strides": "2 1 2 2 2 2"}
    if "stages.2.1.transformer.0.attn.qkv_proj.weight" in shapes:
        multiplier = head[1] / 512
        evidence = (f"separable attention (qkv_proj), {head[1]} features at the head: width multiplier {multiplier:g}",)
        return [Candidate(f"mobilevitv2_{round(multiplier * 100):03d}", head[0], {}, evidence, {}, 256)]
    final = shapes.get("final_conv.conv.weight")
    if final is None or "stages.2.1.transformer.0.attn.qkv.weight" not in shapes:
        return []
    name = MOBILEVIT.get((stem[0], final[0]))
    evidence = (f"transformers inside inverted-residual stages, {stem[0]} stem and {final[0]} last channels",)
    return [Candidate(f"mobilevit_{name}", head[0], {}, evidence, open_, 256)] if name else []


def swin(shapes: Shapes) -> list[Candidate]:
    """Swin transformer (Liu et al., arXiv 2103.14030): windows by the size of the position-bias table."""
    table, stem = shapes.get("layers.0.blocks.0.attn.relative_position_bias_table"), shapes.get("patch_embed.proj.weight")
    if table is None or stem is None:
        return []
    window = (math.isqrt(table[0]) + 1) // 2
    name = SWIN.get((stem[0], count(shapes, "layers.2.blocks")))
    if name is None or window not in (7, 12, 14) or stem[-1] != 4:
        return []
    arch = f"swin_{name}_patch4_window7_224"
    args: dict[str, Any] = {}
    size = 384 if window == 12 else 224
    if window == 14:
        args = {"window_size": 14}
    if window == 12:
        arch, args = (
            (f"swin_{name}_patch4_window12_384", {})
            if name in ("base", "large")
            else (arch, {"img_size": 384, "window_size": 12})
        )
    evidence = (f"width {stem[0]}, {count(shapes, 'layers.2.blocks')} blocks in the third stage, windows of {window}",)
    return [Candidate(arch, rows(shapes, "head.fc.weight"), args, evidence, {}, size)]


def convnext(shapes: Shapes) -> list[Candidate]:
    """ConvNeXt (Liu et al., arXiv 2201.03545) and V2 (arXiv 2301.00808, told by its response normalisation)."""
    stem = shapes.get("stem.0.weight")
    if stem is None or stem[-1] != 4 or "stages.0.blocks.0.conv_dw.weight" not in shapes:
        return []
    blocks = count(shapes, "stages.2.blocks")
    name = CONVNEXT.get((stem[0], blocks))
    second = "stages.0.blocks.0.mlp.grn.weight" in shapes
    if name is None or (second and name in ("small", "xlarge")):
        return []
    evidence = (f"7 × 7 depthwise convolutions, width {stem[0]}, {blocks} blocks in the third stage, a 4 × 4 stem",)
    arch = f"convnextv2_{name}" if second else f"convnext_{name}"
    return [Candidate(arch, rows(shapes, "head.fc.weight"), {}, evidence, {}, 224)]


def resnet(shapes: Shapes) -> list[Candidate]:
    """ResNet with the 7 × 7 stem (arXiv 1512.03385), wide (1605.07146), grouped (1611.05431); timm's and torchvision's names."""
    stem, first = shapes.get("conv1.weight"), shapes.get("layer1.0.conv2.weight")
    if stem is None or first is None or stem[-1] != 7 or "fc.weight" not in shapes:
        return []
    bottleneck = "layer1.0.conv3.weight" in shapes
    blocks = tuple(count(shapes, f"layer{i}") for i in (1, 2, 3, 4))
    depth = RESNET.get((bottleneck, blocks))
    if depth is None:
        return []
    inner, groups = first[0], first[0] // first[1]
    arch, args = f"resnet{depth}", {}
    if bottleneck and groups > 1:
        args = {"cardinality": groups, "base_width": inner // groups}
        arch, args = (f"resnext{depth}_32x4d", {}) if (depth, groups, inner) == (50, 32, 128) else (arch, args)
    elif bottleneck and inner == 128 and depth in (50, 101):
        arch = f"wide_resnet{depth}_2"
    elif bottleneck and inner != 64:
        args = {"base_width": inner}
    evidence = (f"7 × 7 stem, {'bottleneck' if bottleneck else 'basic'} blocks {blocks}, {inner} channels inside the first",)
    classes = rows(shapes, "fc.weight")
    gelu = args | {"act_layer": "gelu"}
    return [
        Candidate(arch, classes, args, evidence, {"activation": "relu"}, 224),
        Candidate(arch, classes, gelu, evidence, {"activation": "gelu"}, 224),
    ]


SIGNATURES: tuple[Callable[[Shapes], list[Candidate]], ...] = (xcit, vit, cait, mobilevit, swin, convnext, resnet)
