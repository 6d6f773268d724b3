"""Architectures by name: timm builds what timm has; the few it lacks are edited or written here, each with its source.

An architecture's shape-changing choices are keyword arguments (`arch_args` of a card), so that a card rebuilds its
network exactly.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import torch.nn as nn

from interp.types import InputError


def xcit_p4(*, num_classes: int, embed_dim: int = 128, depth: int = 12, num_heads: int = 4, img_size: int = 32) -> nn.Module:
    """XCiT-nano for small images: the 16-pixel patch stem with its first two strides set to 1, so patches of 4.

    The stride edit is that of Debenedetti et al. (arXiv 2209.07399, CIFAR models); keys stay those of timm's XCiT.
    """
    import timm

    net = timm.create_model(
        "xcit_nano_12_p16_224",
        num_classes=num_classes,
        img_size=img_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
    )
    for stage in (0, 2):
        net.patch_embed.proj[stage][0].stride = (1, 1)
    net.patch_embed.patch_size = 4
    return net


def mobilevit_small_images(*, num_classes: int, variant: str = "mobilevit_xs", strides: list[int]) -> nn.Module:
    """MobileViT v1 (Mehta & Rastegari, arXiv 2110.02178) with chosen strides: the stem's, then one for each of five stages.

    The published network halves the image in the stem and four stages; at 32 pixels its last transformer would see a
    single position. strides=[1, 2, 2, 2, 1, 1] leaves 4 × 4.
    """
    from timm.models.byobnet import ByobNet
    from timm.models.mobilevit import model_cfgs

    cfg = model_cfgs[variant]
    if len(strides) != len(cfg.blocks) + 1:
        raise InputError(f"{variant} takes {len(cfg.blocks) + 1} strides (stem, then stages); found {len(strides)}")

    def strided(stage: Any, s: int) -> Any:
        if isinstance(stage, tuple):
            return (dataclasses.replace(stage[0], s=s), *stage[1:])
        return dataclasses.replace(stage, s=s)

    blocks = tuple(strided(b, s) for b, s in zip(cfg.blocks, strides[1:], strict=True))
    net = ByobNet(dataclasses.replace(cfg, blocks=blocks), num_classes=num_classes)
    net.stem.conv.stride = (strides[0], strides[0])
    return net


def resnet50_small_images(*, num_classes: int, width: int = 64, stem_stride: int = 1, output_stride: int = 32) -> nn.Module:
    """ResNet-50 (He et al., arXiv 1512.03385): Bottleneck blocks [3, 4, 6, 3], a 3 × 3 stem and no max-pool.

    width: channels of the first stage's inner convolution (64 in the paper). output_stride: timm's, counted as if the
    stem had stride 4; 16 keeps the last stage at the resolution of the third (dilated).
    """
    from timm.models.resnet import Bottleneck, ResNet

    net = ResNet(
        Bottleneck,
        [3, 4, 6, 3],
        num_classes=num_classes,
        channels=(width, 2 * width, 4 * width, 8 * width),
        output_stride=output_stride,
    )
    net.conv1 = nn.Conv2d(3, 64, 3, stem_stride, 1, bias=False)
    net.maxpool = nn.Identity()
    return net


def resnet18_small_images(*, num_classes: int) -> nn.Module:
    """The CIFAR ResNet-18 of common use: 3 × 3 stem, no max-pool, stages of 64 to 512 channels.

    Written with the module names that its checkpoints carry (`shortcut`, `linear`), as in the example network of
    AutoAttack (github.com/fra31/auto-attack) and in TRADES.
    """
    from interp.models.resnet_cifar import ResNetCifar

    return ResNetCifar(blocks=(2, 2, 2, 2), num_classes=num_classes)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "xcit_nano_p4": xcit_p4,
    "mobilevit_32": mobilevit_small_images,
    "resnet50_32": resnet50_small_images,
    "resnet18_32": resnet18_small_images,
}


def build(arch: str, *, num_classes: int, arch_args: dict[str, Any] | None = None) -> nn.Module:
    """A network with random weights: one of ours by name, or any of timm's.

    Raises InputError where the name is unknown (naming the nearest ones) or an argument does not fit.
    """
    args = dict(arch_args or {})
    try:
        if arch in BUILDERS:
            return BUILDERS[arch](num_classes=num_classes, **args)
        import timm

        if not timm.is_model(arch):
            near = difflib.get_close_matches(arch, [*BUILDERS, *timm.list_models()], n=4, cutoff=0.4)
            raise InputError(f"no architecture is called {arch!r}; the nearest names are {', '.join(near) or 'none'}")
        return timm.create_model(arch, num_classes=num_classes, **args)
    except TypeError as error:
        raise InputError(f"architecture {arch!r} does not take these arguments: {args} ({error})") from error
