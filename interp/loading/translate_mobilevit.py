"""MobileViT and MobileViTv2 from Apple's cvnets and from Hugging Face transformers, as timm's ByobNet names them.

Names from apple/ml-cvnets (cvnets/models/classification/mobilevit.py, mobilevit_v2.py; cvnets/modules/mobilevit_block.py,
mobilenetv2.py, transformer.py) and transformers (models/mobilevit, models/mobilevitv2). All three libraries use LayerNorm and
BatchNorm with eps 1e-5 here, SiLU and four heads, so no arguments are needed.

Channel order: Apple's MobileViT files are from cvnets v0.1, which read images with OpenCV (BGR); v0.2, with which MobileViTv2
was published, reads them with PIL (docs/source/en/general/README-model-zoo.md), while transformers flips them to BGR for both.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from interp.loading.translate_rules import Translation, has, rules, translate

_WORDS = {
    "stage": {str(i): str(i - 1) for i in range(1, 6)},  # cvnets counts from 1
    "unit": {"conv": "conv", "norm": "bn"},
    "inverted": {"exp_1x1": "conv1_1x1", "conv_3x3": "conv2_kxk", "red_1x1": "conv3_1x1"},
    "out": {"conv_proj": "conv_proj", "fusion": "conv_fusion"},
    "v1": {
        "pre_norm_mha.0": "norm1",
        "pre_norm_mha.1.qkv_proj": "attn.qkv",
        "pre_norm_mha.1.out_proj": "attn.proj",
        "pre_norm_ffn.0": "norm2",
        "pre_norm_ffn.1": "mlp.fc1",
        "pre_norm_ffn.4": "mlp.fc2",
    },
    "v2": {
        "pre_norm_attn.0": "norm1",
        "pre_norm_attn.1.qkv_proj.block.conv": "attn.qkv_proj",
        "pre_norm_attn.1.out_proj.block.conv": "attn.out_proj",
        "pre_norm_ffn.0": "norm2",
        "pre_norm_ffn.1.block.conv": "mlp.fc1",
        "pre_norm_ffn.3.block.conv": "mlp.fc2",
    },
}
_CVNETS = rules(
    _WORDS,
    (r"conv_1\.block\.%unit%\.(?P<p>\w+)", "stem.{unit}.{p}"),
    (r"layer_%stage%\.(?P<i>\d)\.block\.%inverted%\.block\.%unit%\.(?P<p>\w+)", "stages.{stage}.{i}.{inverted}.{unit}.{p}"),
    (r"layer_%stage%\.1\.local_rep\.(conv_3x3|0)\.block\.%unit%\.(?P<p>\w+)", "stages.{stage}.1.conv_kxk.{unit}.{p}"),
    (r"layer_%stage%\.1\.local_rep\.(conv_1x1|1)\.block\.conv\.(?P<p>\w+)", "stages.{stage}.1.conv_1x1.{p}"),
    (r"layer_%stage%\.1\.global_rep\.(?P<i>\d)\.%v1%\.(?P<p>\w+)", "stages.{stage}.1.transformer.{i}.{v1}.{p}"),
    (r"layer_%stage%\.1\.global_rep\.(?P<i>\d)\.%v2%\.(?P<p>\w+)", "stages.{stage}.1.transformer.{i}.{v2}.{p}"),
    (r"layer_%stage%\.1\.global_rep\.\d\.(?P<p>weight|bias)", "stages.{stage}.1.norm.{p}"),
    (r"layer_%stage%\.1\.%out%\.block\.%unit%\.(?P<p>\w+)", "stages.{stage}.1.{out}.{unit}.{p}"),
    (r"conv_1x1_exp\.block\.%unit%\.(?P<p>\w+)", "final_conv.{unit}.{p}"),
    (r"classifier\.(fc|1)\.(?P<p>\w+)", "head.fc.{p}"),
)
_HF_WORDS = {
    "unit": {"convolution": "conv", "normalization": "bn"},
    "inverted": {"expand_1x1": "conv1_1x1", "conv_3x3": "conv2_kxk", "reduce_1x1": "conv3_1x1"},
    "out": {"conv_kxk": "conv_kxk", "conv_projection": "conv_proj", "fusion": "conv_fusion"},
    "qkv": {"query": "0", "key": "1", "value": "2"},
    "part": {
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.qkv_proj.convolution": "attn.qkv_proj",
        "attention.out_proj.convolution": "attn.out_proj",
        "ffn.conv1.convolution": "mlp.fc1",
        "ffn.conv2.convolution": "mlp.fc2",
    },
}
_S = r"mobilevit(v2)?\.encoder\.layer\.(?P<s>\d)\."
_T = _S + r"transformer\.layer\.(?P<i>\d)\."
_HF = rules(
    _HF_WORDS,
    (r"mobilevit(v2)?\.conv_stem\.%unit%\.(?P<p>\w+)", "stem.{unit}.{p}"),
    (_S + r"layer\.(?P<i>\d)\.%inverted%\.%unit%\.(?P<p>\w+)", "stages.{s}.{i}.{inverted}.{unit}.{p}"),
    (_S + r"downsampling_layer\.%inverted%\.%unit%\.(?P<p>\w+)", "stages.{s}.0.{inverted}.{unit}.{p}"),
    (_S + r"conv_1x1\.convolution\.(?P<p>\w+)", "stages.{s}.1.conv_1x1.{p}"),
    (_S + r"%out%\.%unit%\.(?P<p>\w+)", "stages.{s}.1.{out}.{unit}.{p}"),
    (_T + r"attention\.attention\.%qkv%\.(?P<p>\w+)", "stages.{s}.1.transformer.{i}.attn.qkv.{p}#{qkv}"),
    (_T + r"%part%\.(?P<p>\w+)", "stages.{s}.1.transformer.{i}.{part}.{p}"),
    (_S + r"layernorm\.(?P<p>\w+)", "stages.{s}.1.norm.{p}"),
    (r"mobilevit\.conv_1x1_exp\.%unit%\.(?P<p>\w+)", "final_conv.{unit}.{p}"),
    (r"classifier\.(?P<p>\w+)", "head.fc.{p}"),
)
_V2_CHANNELS = (
    "MobileViTv2's channel order is in no file: Apple trained it on RGB images (cvnets v0.2 reads with PIL), "
    "transformers' image processor feeds it BGR"
)


def is_cvnets_mobilevit(tensors: Mapping[str, Tensor]) -> bool:
    """MobileViT as Apple's cvnets writes it."""
    return has(tensors, r"conv_1\.block\.conv\.weight", r"layer_3\.1\.local_rep\.conv_1x1\.block\.conv\.weight")


def from_cvnets_mobilevit(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's mobilevit_xxs, mobilevit_xs or mobilevit_s; BGR, as the published files are."""
    note = "Apple's MobileViT files read BGR images (OpenCV, cvnets v0.1); one trained with cvnets v0.2 or later reads RGB"
    return translate(tensors, _CVNETS, channels="bgr", note=note)


def is_cvnets_mobilevitv2(tensors: Mapping[str, Tensor]) -> bool:
    """MobileViTv2 as Apple's cvnets writes it."""
    return has(tensors, r"conv_1\.block\.conv\.weight", r"layer_3\.1\.local_rep\.1\.block\.conv\.weight")


def from_cvnets_mobilevitv2(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's mobilevitv2_050 … mobilevitv2_200; the channel order is left open, see the note."""
    return translate(tensors, _CVNETS, channels="either", note=_V2_CHANNELS)


def is_hf_mobilevit(tensors: Mapping[str, Tensor]) -> bool:
    """MobileViT as transformers writes it."""
    return has(tensors, r"mobilevit\.conv_stem\.convolution\.weight")


def from_hf_mobilevit(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's mobilevit_xxs, mobilevit_xs or mobilevit_s; BGR: the weights are Apple's and the image processor flips."""
    return translate(tensors, _HF, channels="bgr", note="transformers' MobileViT image processor feeds the model BGR images")


def is_hf_mobilevitv2(tensors: Mapping[str, Tensor]) -> bool:
    """MobileViTv2 as transformers writes it."""
    return has(tensors, r"mobilevitv2\.conv_stem\.convolution\.weight")


def from_hf_mobilevitv2(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's mobilevitv2_050 … mobilevitv2_200; the channel order is left open, see the note."""
    return translate(tensors, _HF, channels="either", note=_V2_CHANNELS)
