"""Swin and ConvNeXt from torchvision, Microsoft, Facebook and timm before 0.9, as timm names them today.

Names from torchvision (models/swin_transformer.py, convnext.py), microsoft/Swin-Transformer (models/swin_transformer.py, which
timm before 0.9 and RobustBench's MIMIR models share), facebookresearch/ConvNeXt (models/convnext.py) and ConvNeXt-V2.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor

from interp.loading.translate_rules import Translation, has, rules, translate

_STAGE = {str(2 * i + 1): str(i) for i in range(4)}  # torchvision: stages are features 1, 3, 5, 7 and merge before 2, 4, 6
_MERGE = {str(2 * i): str(i) for i in range(1, 4)}
_TORCHVISION_SWIN = rules(
    {
        "stage": _STAGE,
        "merge": _MERGE,
        "patch": {"0": "proj", "2": "norm"},
        "mlp": {"0": "fc1", "3": "fc2"},
    },
    (r"features\.0\.%patch%\.(?P<p>\w+)", "patch_embed.{patch}.{p}"),
    (r"features\.%stage%\.(?P<i>\d+)\.mlp\.%mlp%\.(?P<p>\w+)", "layers.{stage}.blocks.{i}.mlp.{mlp}.{p}"),
    (r"features\.%stage%\.(?P<i>\d+)\.(?P<rest>(norm[12]|attn)\..+)", "layers.{stage}.blocks.{i}.{rest}"),
    (r"features\.%merge%\.(?P<rest>(norm|reduction)\.\w+)", "layers.{merge}.downsample.{rest}"),
    (r"head\.(?P<p>\w+)", "head.fc.{p}"),
)
_OLD_SWIN = rules(
    {"next": {str(i): str(i + 1) for i in range(3)}},
    (r"layers\.%next%\.downsample\.(?P<rest>.+)", "layers.{next}.downsample.{rest}"),
    (r"head\.(?P<p>weight|bias)", "head.fc.{p}"),
)
_TORCHVISION_CONVNEXT = rules(
    {
        "stage": _STAGE,
        "merge": _MERGE,
        "part": {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"},
        "head": {"0": "head.norm", "2": "head.fc"},
    },
    (r"features\.0\.(?P<i>[01])\.(?P<p>\w+)", "stem.{i}.{p}"),
    (r"features\.%stage%\.(?P<i>\d+)\.layer_scale", "stages.{stage}.blocks.{i}.gamma~"),
    (r"features\.%stage%\.(?P<i>\d+)\.block\.%part%\.(?P<p>\w+)", "stages.{stage}.blocks.{i}.{part}.{p}"),
    (r"features\.%merge%\.(?P<i>[01])\.(?P<p>\w+)", "stages.{merge}.downsample.{i}.{p}"),
    (r"classifier\.%head%\.(?P<p>\w+)", "{head}.{p}"),
)
_B = r"stages\.(?P<s>\d)\.(?P<i>\d+)\."
_FACEBOOK_CONVNEXT = rules(
    {
        "part": {"dwconv": "conv_dw", "norm": "norm", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"},
        "grn": {"gamma": "weight", "beta": "bias"},
        "head": {"norm": "head.norm", "head": "head.fc"},
    },
    (r"downsample_layers\.0\.(?P<i>[01])\.(?P<p>\w+)", "stem.{i}.{p}"),
    (r"downsample_layers\.(?P<s>[1-3])\.(?P<i>[01])\.(?P<p>\w+)", "stages.{s}.downsample.{i}.{p}"),
    (_B + r"%part%\.(?P<p>\w+)", "stages.{s}.blocks.{i}.{part}.{p}"),
    (_B + r"grn\.%grn%", "stages.{s}.blocks.{i}.mlp.grn.{grn}~"),
    (_B + r"gamma", "stages.{s}.blocks.{i}.gamma"),
    (r"%head%\.(?P<p>weight|bias)", "{head}.{p}"),
)
_SWIN_EPS = (
    "LayerNorm's eps is not in the file: 1e-5 as Microsoft and timm have it; RobustBench's MIMIR models have 1e-6, "
    "say --arch-arg layer_norm_eps=1e-6 for them"
)


def relative_position_index(window: int) -> Tensor:
    """Row of the relative position table for each pair of places in a window: (window², window²)."""
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    dy, dx = (t[:, None] - t[None, :] + window - 1 for t in (y, x))
    return dy * (2 * window - 1) + dx


def shifted_window_mask(window: int, side: int) -> Tensor:
    """0 within and -100 between the regions of cyclically shifted windows: (windows, window², window²); side in tokens."""
    at = torch.arange(side)
    region = (at >= side - window).long() + (at >= side - window // 2).long()
    n = side // window
    of = (region[:, None] * 3 + region[None, :]).reshape(n, window, n, window).transpose(1, 2).reshape(n * n, window * window)
    return torch.where(of[:, :, None] == of[:, None, :], 0.0, -100.0)


def _computed(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Buffers that follow from the window alone and say what they should, by name; any other one is left for the loader."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.relative_position_index") and _is_index(tensor):
            found[name] = "computed from the window"
        elif name.endswith("attn_mask") and _is_mask(tensor):
            found[name] = "computed from the window and the grid"
    return found


def _is_index(tensor: Tensor) -> bool:
    window = isqrt(isqrt(tensor.numel()))
    plain = 0 < window <= 64 and tensor.numel() == window**4
    return plain and torch.equal(tensor.flatten().long(), relative_position_index(window).flatten())


def _is_mask(tensor: Tensor) -> bool:
    if tensor.ndim != 3 or not tensor.numel():
        return False
    per_side, window = isqrt(tensor.shape[0]), isqrt(tensor.shape[1])
    square = tensor.shape == (per_side**2, window**2, window**2)
    return square and torch.equal(tensor.float(), shifted_window_mask(window, per_side * window))


def is_torchvision_swin(tensors: Mapping[str, Tensor]) -> bool:
    """Swin (v1) as torchvision writes it."""
    return has(tensors, r"features\.0\.0\.weight", r"features\.1\.0\.attn\.relative_position_bias_table")


def from_torchvision_swin(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's swin_*_patch4_window7_224; both have LayerNorm eps 1e-5."""
    return translate(tensors, _TORCHVISION_SWIN, dropped=_computed(tensors))


def is_old_swin(tensors: Mapping[str, Tensor]) -> bool:
    """Swin (v1) as Microsoft's repository and timm before 0.9 write it: stages that end by merging patches."""
    v1 = has(tensors, r"patch_embed\.proj\.weight", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table")
    return v1 and has(tensors, r"layers\.0\.downsample\.reduction\.weight")


def from_old_swin(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's swin_*, whose stages begin by merging patches."""
    return translate(tensors, _OLD_SWIN, dropped=_computed(tensors), note=_SWIN_EPS)


def is_torchvision_convnext(tensors: Mapping[str, Tensor]) -> bool:
    """ConvNeXt as torchvision writes it."""
    return has(tensors, r"features\.0\.0\.weight", r"features\.1\.0\.layer_scale")


def from_torchvision_convnext(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's convnext_*; both have LayerNorm eps 1e-6."""
    return translate(tensors, _TORCHVISION_CONVNEXT)


def is_facebook_convnext(tensors: Mapping[str, Tensor]) -> bool:
    """ConvNeXt or ConvNeXt V2 as Facebook's repositories write them."""
    return has(tensors, r"downsample_layers\.0\.0\.weight", r"stages\.0\.0\.dwconv\.weight")


def from_facebook_convnext(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's convnext_* or convnextv2_*; both have LayerNorm eps 1e-6."""
    return translate(tensors, _FACEBOOK_CONVNEXT)
