"""Parameter names of other libraries → timm's: one pure `is_x`, `from_x` pair for each origin, after wrappers are removed.

No translation is needed, since the names are timm's: torchvision's ResNets, Facebook's DeiT and CaiT, and what timm itself wrote
since 0.4 for ResNet, XCiT, CaiT, DeiT, ViT, ConvNeXt and MobileViT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from interp.loading import translate_mobilevit as mobilevit
from interp.loading import translate_stages as stages
from interp.loading import translate_vit as vit
from interp.loading.translate_rules import JOINED, Translation

__all__ = ["JOINED", "TRANSLATIONS", "Translation", "translation"]

Is = Callable[[Mapping[str, Tensor]], bool]
From = Callable[[Mapping[str, Tensor]], Translation]

TRANSLATIONS: tuple[tuple[str, Is, From], ...] = (
    ("Facebook XCiT", vit.is_facebook_xcit, vit.from_facebook_xcit),
    ("Facebook DeiT III", vit.is_facebook_deit3, vit.from_facebook_deit3),
    ("Facebook ConvNeXt", stages.is_facebook_convnext, stages.from_facebook_convnext),
    ("Apple cvnets MobileViT", mobilevit.is_cvnets_mobilevit, mobilevit.from_cvnets_mobilevit),
    ("Apple cvnets MobileViTv2", mobilevit.is_cvnets_mobilevitv2, mobilevit.from_cvnets_mobilevitv2),
    ("Hugging Face MobileViT", mobilevit.is_hf_mobilevit, mobilevit.from_hf_mobilevit),
    ("Hugging Face MobileViTv2", mobilevit.is_hf_mobilevitv2, mobilevit.from_hf_mobilevitv2),
    ("Hugging Face ViT", vit.is_hf_vit, vit.from_hf_vit),
    ("torchvision ViT", vit.is_torchvision_vit, vit.from_torchvision_vit),
    ("torchvision Swin", stages.is_torchvision_swin, stages.from_torchvision_swin),
    ("torchvision ConvNeXt", stages.is_torchvision_convnext, stages.from_torchvision_convnext),
    ("Swin of Microsoft or timm before 0.9", stages.is_old_swin, stages.from_old_swin),
)


def translation(tensors: Mapping[str, Tensor]) -> tuple[str, Translation] | None:
    """The first origin that recognises a state dict, with the result; None where the names are timm's or unknown."""
    return next(((name, convert(tensors)) for name, known, convert in TRANSLATIONS if known(tensors)), None)
