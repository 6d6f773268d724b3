"""Signatures of the architectures that we build ourselves: shapes → candidates, the commonest first.

Depth, width, heads and variants are read from the shapes; layouts of names are those named in `interp/models`. Activations
and strides leave no trace in shapes: where files of one layout are published with several, each comes as a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from interp.loading.candidate import Candidate, Shapes, count

XCIT = {  # timm's variants with patches of 16: width, depth, heads
    "xcit_nano_12_p16_224": (128, 12, 4),
    "xcit_tiny_12_p16_224": (192, 12, 4),
    "xcit_tiny_24_p16_224": (192, 24, 4),
    "xcit_small_12_p16_224": (384, 12, 8),
    "xcit_small_24_p16_224": (384, 24, 8),
    "xcit_medium_24_p16_224": (512, 24, 8),
    "xcit_large_24_p16_224": (768, 24, 16),
}
MOBILEVIT = {24: "mobilevit_xxs", 48: "mobilevit_xs", 64: "mobilevit_s"}  # channels after the second stage
DEPTHS: dict[tuple[int, ...], int] = {  # bottleneck, blocks per stage
    (False, 2, 2, 2, 2): 18,
    (False, 3, 4, 6, 3): 34,
    (True, 3, 4, 6, 3): 50,
    (True, 3, 4, 23, 3): 101,
    (True, 3, 8, 36, 3): 152,
}
CONVNEXT_CONVSTEM = {(96, 9): "tiny", (96, 27): "small", (128, 27): "base", (192, 27): "large"}
VIT_CONVSTEM = {384: "small", 512: "medium", 768: "base"}
RELU_KNOWN = "ReLU, as every published source of this layout has it"

Answers = tuple[tuple[str, dict[str, Any]], ...]
ACTIVATIONS_DM: Answers = (("silu", {"activation": "silu"}), ("relu", {"activation": "relu"}))
LENGTHS: Answers = (("yes", {"normalise_last": True}), ("no", {}))  # Pang et al. 2020
STANDARDISED: Answers = (("yes", {"standardise": True}), ("no", {}))  # Ding et al. 2020, the published models of that size


def _size(shapes: Shapes, key: str, axis: int = 0) -> int:
    """Length of one axis of a weight, 0 where the weight or the axis is missing: files may hold anything under any name."""
    found = shapes.get(key, ())
    return int(found[axis]) if -len(found) <= axis < len(found) else 0


def xcit_p4(shapes: Shapes) -> list[Candidate]:
    """XCiT with the 16-pixel stem's first two strides set to 1 (Debenedetti et al., arXiv 2209.07399): CIFAR models."""
    stem = all(f"patch_embed.proj.{i}.0.weight" in shapes for i in (0, 2, 4, 6))
    if not stem or "blocks.0.attn.temperature" not in shapes or "cls_token" not in shapes:
        return []
    width, depth = _size(shapes, "cls_token", -1), count(shapes, "blocks")
    heads = _size(shapes, "blocks.0.attn.temperature")
    evidence = (
        f"class token of width {width}, {depth} blocks, {heads} heads in attn.temperature",
        "four convolutions in the patch stem: patches of 4 where the first two have stride 1",
    )
    classes, open_ = _size(shapes, "head.weight"), {"patch stride": "4"}
    alike = [name for name, (w, _, h) in XCIT.items() if (w, h) == (width, heads)]
    if alike and depth in (12, 24):
        name = min(alike, key=lambda n: XCIT[n][1] != depth)
        args: dict[str, Any] = {} if name == "xcit_nano_12_p16_224" else {"variant": name}
        args |= {} if XCIT[name][1] == depth else {"depth": depth}
        return [Candidate("xcit_p4", classes, args, evidence, open_, 32)]
    own = {"embed_dim": (width, 128), "depth": (depth, 12), "num_heads": (heads, 4)}
    args = {k: found for k, (found, default) in own.items() if found != default}
    norms: Answers = (("False", {}), ("True", {"tokens_norm": True}))
    return [Candidate("xcit_p4", classes, args | extra, evidence, open_ | {"tokens_norm": word}, 32) for word, extra in norms]


def mobilevit_32(shapes: Shapes) -> list[Candidate]:
    """MobileViT v1 (arXiv 2110.02178) with the strides of this project's CIFAR models."""
    last = _size(shapes, "stages.1.0.conv3_1x1.conv.weight")
    if "stages.2.1.conv_fusion.conv.weight" not in shapes or last not in MOBILEVIT:
        return []
    variant = MOBILEVIT[last]
    evidence = (f"transformers with conv_fusion, {last} channels after the second stage: {variant}",)
    args: dict[str, Any] = {"variant": variant, "strides": [1, 2, 2, 2, 1, 1]}
    return [Candidate("mobilevit_32", _size(shapes, "head.fc.weight"), args, evidence, {"strides": "1 2 2 2 1 1"}, 32)]


def _depth(shapes: Shapes) -> int | None:
    """Depth of a ResNet with stages layer1 … layer4, None where none of that shape has a name."""
    return DEPTHS.get(("layer1.0.conv3.weight" in shapes, *(count(shapes, f"layer{i}") for i in range(1, 5))))


def _small_stem(shapes: Shapes) -> bool:
    return tuple(shapes.get("conv1.weight", ())) == (64, 3, 3, 3)


def resnet_cifar(shapes: Shapes) -> list[Candidate]:
    """ResNet under the names of pytorch-cifar: TRADES, AutoAttack's example, MadryLab's CIFAR models, RobustBench."""
    depth = _depth(shapes)
    if not _small_stem(shapes) or depth is None or "linear.weight" not in shapes or "bn1.weight" not in shapes:
        return []
    if "layer2.0.shortcut.1.weight" not in shapes or "layer1.0.bn0.weight" in shapes:
        return []
    evidence = (f"3 × 3 stem, blocks per stage and names of blocks: depth {depth}", "names `shortcut` and `linear`", RELU_KNOWN)
    return [Candidate("resnet_cifar", _size(shapes, "linear.weight"), {"depth": depth}, evidence, {}, 32)]


def preact_resnet(shapes: Shapes) -> list[Candidate]:
    """Pre-activation ResNet (arXiv 1603.05027) in RobustBench's layout; what the projection reads leaves no trace."""
    depth = _depth(shapes)
    if not _small_stem(shapes) or depth is None or "linear.weight" not in shapes or "bn1.weight" in shapes:
        return []
    if "layer2.0.shortcut.0.weight" not in shapes or "layer2.0.shortcut.1.weight" in shapes:
        return []
    last = "bn.weight" in shapes
    evidence = (
        f"no batch norm after the stem, projections without one: pre-activation, depth {depth}",
        f"{'a' if last else 'no'} batch norm before the classifier",
        RELU_KNOWN,
    )
    args: dict[str, Any] = {"depth": depth} | ({"bn_before_fc": True} if last else {})
    found = Candidate("preact_resnet", _size(shapes, "linear.weight"), args, evidence, {}, 32)
    reads: Answers = (("the input", {}), ("the activated input", {"out_shortcut": True}))
    return _open(found, "projection reads", reads[::-1] if last or depth >= 50 else reads)  # as RobustBench's models come


def resnet_32(shapes: Shapes) -> list[Candidate]:
    """ResNet under timm's and torchvision's names with a 3 × 3 stem; strides and GELU leave no trace."""
    depth = _depth(shapes)
    if not _small_stem(shapes) or depth is None or "fc.weight" not in shapes or "layer2.0.downsample.1.weight" not in shapes:
        return []
    inner = _size(shapes, "layer1.0.conv1.weight")
    width = _size(shapes, "layer1.0.conv3.weight") // 4 if depth >= 50 else inner
    if width == 0 or (64 * inner) % width:
        return []
    base = 64 * inner // width
    evidence = (f"3 × 3 stem, names `downsample` and `fc`: depth {depth}", f"{width} channels in the first stage")
    args: dict[str, Any] = {"width": width} if width != 64 else {}
    arch = "resnet50_32" if depth == 50 and base == 64 else "resnet_32"
    if arch == "resnet_32":
        args |= {"depth": depth} | ({"base_width": base} if base != 64 else {})
    ends = (32, 16) if depth >= 50 else (32,)
    found = [
        Candidate(
            arch,
            _size(shapes, "fc.weight"),
            args | ({"stem_stride": stem} if stem != 1 else {}) | ({"output_stride": end} if end != 32 else {}),
            evidence,
            {"stem stride": str(stem), "output stride": str(end), "activation": "relu"},
            32,
        )
        for stem, end in ((s, e) for s in (1, 2) for e in ends)
    ]
    gelu = {"stem stride": "1", "output stride": "32", "activation": "gelu"}
    return [*found, Candidate(arch, _size(shapes, "fc.weight"), args | {"activation": "gelu"}, evidence, gelu, 32)]


def _open(found: Candidate, question: str, answers: Answers) -> list[Candidate]:
    """The candidate once per answer to what its shapes leave open."""
    return [replace(found, arch_args=found.arch_args | extra, choice={question: word}) for word, extra in answers]


def wide_resnet(shapes: Shapes) -> list[Candidate]:
    """Wide ResNet (arXiv 1605.07146) under the names of TRADES and RobustBench."""
    stages = [count(shapes, f"block{i}.layer") for i in (1, 2, 3)]
    last = _size(shapes, "bn1.weight")
    if "block1.layer.0.bn1.weight" not in shapes or "fc.weight" not in shapes or len(set(stages)) != 1 or last % 64 or not last:
        return []
    args: dict[str, Any] = {"depth": 6 * stages[0] + 4, "width": last // 64}
    evidence = [f"{stages[0]} blocks per stage: depth {args['depth']}", f"{last} channels at the end: width {last // 64}"]
    if "sub_block1.layer.0.bn1.weight" in shapes:
        args["sub_block1"] = True
        evidence.append("an unused sub_block1, as in TRADES")
    pssilu = "activation.alpha" in shapes
    if pssilu:
        args["activation"] = "pssilu"
    evidence.append("activation.alpha and beta: PSSiLU (Dai et al. 2021)" if pssilu else RELU_KNOWN)
    if "fc.bias" not in shapes:
        args["bias_last"] = False
    found = Candidate("wide_resnet", _size(shapes, "fc.weight"), args, tuple(evidence), {}, 32)
    if "fc.bias" not in shapes:
        return _open(found, "features and classifier rows are scaled to length 1", LENGTHS)
    if (args["depth"], args["width"]) == (28, 4):
        return _open(found, "the network standardises each image itself", STANDARDISED)
    return [found]


def wide_resnet_stages(shapes: Shapes) -> list[Candidate]:
    """Wide ResNet with a width and depth per stage (Huang et al. 2021, arXiv 2110.03825) in RobustBench's layout."""
    depths = [count(shapes, f"blocks.{i}.layer") for i in range(3)]
    if "stem_conv.weight" not in shapes or "fc.weight" not in shapes or not all(depths) or count(shapes, "blocks") != 3:
        return []
    widths = [_size(shapes, "stem_conv.weight"), *(_size(shapes, f"blocks.{i}.layer.0.conv1.weight") for i in range(3))]
    evidence = (f"stem_conv and three stages of widths {widths[1:]} and depths {depths}", RELU_KNOWN)
    args = {"widths": widths, "depths": depths}
    return [Candidate("wide_resnet_stages", _size(shapes, "fc.weight"), args, evidence, {}, 32)]


def wide_resnet_dm(shapes: Shapes) -> list[Candidate]:
    """Wide ResNet under the names of Gowal et al. 2020 and their successors; SiLU (Swish) in all published ones."""
    stages = [count(shapes, f"layer.{i}.block") for i in range(3)]
    last = _size(shapes, "batchnorm.weight")
    if "init_conv.weight" not in shapes or "logits.weight" not in shapes or len(set(stages)) != 1 or last % 64 or not last:
        return []
    args = {"depth": 6 * stages[0] + 4, "width": last // 64}
    evidence = (f"{stages[0]} blocks per stage: depth {args['depth']}", f"{last} channels at the end: width {args['width']}")
    found = Candidate("wide_resnet_dm", _size(shapes, "logits.weight"), args, evidence, {}, 32)
    return _open(found, "activation", ACTIVATIONS_DM)


def preact_resnet_dm(shapes: Shapes) -> list[Candidate]:
    """Pre-activation ResNet under the names of Gowal et al. 2020 (Rebuffi, Rade); SiLU in all published ones."""
    stages = tuple(count(shapes, f"layer_{i}") for i in range(4))
    depth = DEPTHS.get((False, *stages))
    if "conv_2d.weight" not in shapes or "logits.weight" not in shapes or depth is None:
        return []
    evidence = (f"conv_2d and {stages} blocks in layer_0 … layer_3: depth {depth}",)
    found = Candidate("preact_resnet_dm", _size(shapes, "logits.weight"), {"depth": depth}, evidence, {}, 32)
    return _open(found, "activation", ACTIVATIONS_DM)


def convnext_convstem(shapes: Shapes) -> list[Candidate]:
    """ConvNeXt with the ConvStem of Singh et al. 2023 (arXiv 2303.01870)."""
    stem = _size(shapes, "stem.stem.0.weight")
    width = _size(shapes, "stages.0.blocks.0.conv_dw.weight")
    variant = CONVNEXT_CONVSTEM.get((width, count(shapes, "stages.2.blocks")))
    if stem == 0 or variant is None:
        return []
    evidence = (f"convolutional stem from {stem} channels, {width} in the first stage, blocks per stage: {variant}",)
    return [Candidate("convnext_convstem", _size(shapes, "head.fc.weight"), {"variant": variant}, evidence, {}, 224)]


def vit_convstem(shapes: Shapes) -> list[Candidate]:
    """ViT with the ConvStem of Singh et al. 2023; the number of position embeddings gives the input size."""
    positions, width = _size(shapes, "pos_embed", 1), _size(shapes, "cls_token", -1)
    variant = VIT_CONVSTEM.get(width)
    if "patch_embed.proj.stem.0.weight" not in shapes or positions == 0 or variant is None or count(shapes, "blocks") != 12:
        return []
    size = 16 * math.isqrt(positions)  # a class token among them leaves the root's whole part as it is
    args: dict[str, Any] = {"variant": variant} | ({"img_size": size} if size != 224 else {})
    evidence = (f"convolutional stem, width {width}: {variant}", f"{positions} positions: {size} pixels")
    return [Candidate("vit_convstem", _size(shapes, "head.weight"), args, evidence, {}, size)]


SIGNATURES_SMALL: tuple[Callable[[Shapes], list[Candidate]], ...] = (
    xcit_p4,
    resnet_cifar,
    wide_resnet,
    wide_resnet_dm,
    preact_resnet,
    preact_resnet_dm,
    resnet_32,
    convnext_convstem,
    vit_convstem,
    wide_resnet_stages,
    mobilevit_32,
)
