"""timm's networks with the strides of their first layers changed for images of 32 pixels; names of weights stay timm's."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.nn as nn

from interp.models.resnet_cifar import blocks_of
from interp.types import InputError

XCIT_BASE = {"xcit_medium_12_p16_224": "xcit_medium_24_p16_224", "xcit_large_12_p16_224": "xcit_large_24_p16_224"}


def xcit_p4(*, num_classes: int, **args: Any) -> nn.Module:
    """XCiT for small images with patches of 4: the first two strides of its stem are set to 1; see `_xcit_small_images`."""
    return _xcit_small_images(4, num_classes=num_classes, **args)


def xcit_p8(*, num_classes: int, **args: Any) -> nn.Module:
    """XCiT for small images with patches of 8: the first stride of its stem is set to 1; see `_xcit_small_images`."""
    return _xcit_small_images(8, num_classes=num_classes, **args)


def _xcit_small_images(
    patch: int,
    *,
    num_classes: int,
    variant: str = "xcit_nano_12_p16_224",
    depth: int | None = None,
    embed_dim: int | None = None,
    num_heads: int | None = None,
    tokens_norm: bool | None = None,
    img_size: int = 32,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """XCiT with a 16-pixel patch stem whose first strides are set to 1: one of them for patches of 8, two for patches of 4.

    The edit is that of Debenedetti et al. (arXiv 2209.07399; `adapt_model_patches` in dedeswim/vits-robustness-torch and in
    RobustBench). variant: timm's name of the XCiT with patches of 16, or xcit_medium_12_p16_224 and xcit_large_12_p16_224,
    which timm lacks; depth, embed_dim, num_heads and tokens_norm (whether the class-attention blocks normalise all
    tokens or the class token alone) replace the variant's own.
    """
    import timm

    base = XCIT_BASE.get(variant, variant)
    if not (base.startswith("xcit_") and "_p16_" in base and timm.is_model(base)):
        names = ", ".join([*timm.list_models("xcit_*_p16_224"), *XCIT_BASE])
        raise InputError(f"xcit_p{patch} edits an XCiT with patches of 16, found variant {variant!r}; expected one of {names}")
    if base != variant and depth is None:
        depth = 12
    changed = {"depth": depth, "embed_dim": embed_dim, "num_heads": num_heads, "tokens_norm": tokens_norm}
    given = {k: v for k, v in changed.items() if v is not None}
    net = timm.create_model(base, num_classes=num_classes, img_size=img_size, drop_path_rate=drop_path_rate, **given)
    for stage in (0, 2)[: 1 if patch == 8 else 2]:
        net.patch_embed.proj[stage][0].stride = (1, 1)
    net.patch_embed.patch_size = patch
    return net


def mobilevit_small_images(
    *, num_classes: int, variant: str = "mobilevit_xs", strides: list[int], drop_path_rate: float = 0.0
) -> nn.Module:
    """MobileViT v1 (Mehta & Rastegari, arXiv 2110.02178) with chosen strides: the stem's, then one for each of five stages.

    The published network halves the image in the stem and four stages; at 32 pixels its last transformer would see a
    single position. strides=[1, 2, 2, 2, 1, 1] leaves 4 × 4.
    """
    from timm.models.byobnet import ByobNet
    from timm.models.mobilevit import model_cfgs

    if variant not in model_cfgs or variant.startswith("mobilevitv2"):
        raise InputError(f"mobilevit_32 has the variants mobilevit_xxs, mobilevit_xs, mobilevit_s; found {variant!r}")
    cfg = model_cfgs[variant]
    if len(strides) != len(cfg.blocks) + 1:
        raise InputError(f"{variant} takes {len(cfg.blocks) + 1} strides (stem, then stages); found {len(strides)}")

    def strided(stage: Any, s: int) -> Any:
        if isinstance(stage, tuple):
            return (dataclasses.replace(stage[0], s=s), *stage[1:])
        return dataclasses.replace(stage, s=s)

    blocks = tuple(strided(b, s) for b, s in zip(cfg.blocks, strides[1:], strict=True))
    net = ByobNet(dataclasses.replace(cfg, blocks=blocks), num_classes=num_classes, drop_path_rate=drop_path_rate)
    net.stem.conv.stride = (strides[0], strides[0])
    return net


def resnet_small_images(
    *,
    num_classes: int,
    depth: int = 18,
    width: int = 64,
    base_width: int = 64,
    stem_stride: int = 1,
    output_stride: int = 32,
    activation: str = "relu",
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """ResNet (He et al., arXiv 1512.03385) under timm's and torchvision's names, with a 3 × 3 stem and no max-pool.

    As `resnet18_32` and `resnet50_32` in dedeswim/vits-robustness-torch. width: channels of the first stage's inner
    convolution (64 in the paper); base_width: 128 for the wide ResNet-50-2. output_stride: timm's, counted as if the stem
    had stride 4; 16 keeps the last stage at the resolution of the third (dilated).
    """
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    net = ResNet(
        BasicBlock if depth < 50 else Bottleneck,
        list(blocks_of(depth)),
        num_classes=num_classes,
        channels=(width, 2 * width, 4 * width, 8 * width),
        base_width=base_width,
        output_stride=output_stride,
        act_layer=activation,
        drop_path_rate=drop_path_rate,
    )
    net.conv1 = nn.Conv2d(3, 64, 3, stem_stride, 1, bias=False)
    net.maxpool = nn.Identity()
    return net


def resnet50_small_images(
    *,
    num_classes: int,
    width: int = 64,
    stem_stride: int = 1,
    output_stride: int = 32,
    activation: str = "relu",
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """ResNet-50 for small images: Bottleneck blocks [3, 4, 6, 3], a 3 × 3 stem and no max-pool; see `resnet_small_images`."""
    return resnet_small_images(
        num_classes=num_classes,
        depth=50,
        width=width,
        stem_stride=stem_stride,
        output_stride=output_stride,
        activation=activation,
        drop_path_rate=drop_path_rate,
    )
