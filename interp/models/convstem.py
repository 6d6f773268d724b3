"""ConvNeXt and ViT with a convolutional stem in place of the patch embedding (Singh et al. 2023, arXiv 2303.01870).

timm's networks with one module replaced, under the names of github.com/nmndeep/revisiting-at (`utils_architecture.py`) and
RobustBench (`architectures/convstem_models.py`): `stem.stem.0.weight …`, `patch_embed.proj.stem.0.weight …`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from interp.types import InputError

CONVNEXT: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    # variant: timm's name, widths of the stem's convolutions, their strides
    "tiny": ("convnext_tiny", (48, 96), (2, 2)),
    "small": ("convnext_small", (48, 96), (2, 2)),
    "base": ("convnext_base", (64, 96, 128), (2, 2, 1)),
    "large": ("convnext_large", (96, 144, 192), (2, 2, 1)),
}
VIT: dict[str, tuple[str, int]] = {
    # variant: timm's name, embedding size; the stem is 48, 96, 192, 384 wide in all of them
    "small": ("deit_small_patch16_224", 384),
    "medium": ("deit3_medium_patch16_224", 512),
    "base": ("vit_base_patch16_224", 768),
}


class ConvStem(nn.Module):
    """3 × 3 convolutions, each with a layer norm over channels and a GELU; then a 1 × 1 convolution to `outputs`, if given."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], outputs: int | None = None) -> None:
        super().__init__()
        from timm.layers import LayerNorm2d

        layers: list[nn.Module] = []
        inputs = 3
        for width, stride in zip(widths, strides, strict=True):
            layers += [nn.Conv2d(inputs, width, 3, stride, 1), LayerNorm2d(width, eps=1e-6), nn.GELU()]
            inputs = width
        if outputs is not None:
            layers.append(nn.Conv2d(inputs, outputs, 1))
        self.stem = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


def convnext_convstem(*, num_classes: int, variant: str = "tiny") -> nn.Module:
    """ConvNeXt-T, -S, -B or -L (`variant` 'tiny' … 'large') with the ConvStem: 224 × 224 → (n, num_classes)."""
    import timm

    if variant not in CONVNEXT:
        raise InputError(f"convnext_convstem has the variants {', '.join(CONVNEXT)}; found {variant!r}")
    name, widths, strides = CONVNEXT[variant]
    net = timm.create_model(name, num_classes=num_classes)
    net.stem = ConvStem(widths, strides)
    return net


def vit_convstem(*, num_classes: int, variant: str = "small", img_size: int = 224) -> nn.Module:
    """ViT-S, -M or -B of patch 16 (`variant` 'small', 'medium', 'base') with the ConvStem, for images of img_size pixels.

    'medium' is timm's DeiT-III-M (layer scale, no position for the class token), as in the authors' ViT-M-CvSt.
    """
    import timm

    if variant not in VIT:
        raise InputError(f"vit_convstem has the variants {', '.join(VIT)}; found {variant!r}")
    name, width = VIT[variant]
    net = timm.create_model(name, num_classes=num_classes, img_size=img_size)
    net.patch_embed.proj = ConvStem((48, 96, 192, 384), (2, 2, 2, 2), width)
    return net
