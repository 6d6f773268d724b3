"""ViT, DeiT, DeiT III and XCiT from transformers, torchvision and Facebook's repositories, as timm names them.

Names from transformers (models/vit, models/deit: as in the published files and as in the modules since v5), torchvision
(models/vision_transformer.py; `linear_1`, `linear_2` before v0.13), facebookresearch/deit (models.py, models_v2.py) and
facebookresearch/xcit (xcit.py). Facebook's DeiT and CaiT use timm's names and need no translation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from interp.loading.translate_rules import Translation, has, rules, translate

_HF_EPS = "LayerNorm's eps is transformers' 1e-12 unless config.json beside the file says another"
_HF_WORDS = {
    "model": {"vit": "", "deit": ""},
    "qkv": {
        "attention.attention.query": "0",
        "attention.attention.key": "1",
        "attention.attention.value": "2",
        "attention.q_proj": "0",
        "attention.k_proj": "1",
        "attention.v_proj": "2",
    },
    "part": {
        "attention.output.dense": "attn.proj",
        "attention.o_proj": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
    },
    "head": {"classifier": "head", "cls_classifier": "head", "distillation_classifier": "head_dist"},
}
_LAYER = r"%model%\.(encoder\.layer|layers)\.(?P<i>\d+)\."
_HF = rules(
    _HF_WORDS,
    (r"%model%\.embeddings\.cls_token", "cls_token"),
    (r"%model%\.embeddings\.position_embeddings", "pos_embed"),
    (r"%model%\.embeddings\.patch_embeddings\.projection\.(?P<p>\w+)", "patch_embed.proj.{p}"),
    (_LAYER + r"%qkv%\.(?P<p>\w+)", "blocks.{i}.attn.qkv.{p}#{qkv}"),
    (_LAYER + r"%part%\.(?P<p>\w+)", "blocks.{i}.{part}.{p}"),
    (r"%model%\.layernorm\.(?P<p>\w+)", "norm.{p}"),
    (r"%head%\.(?P<p>\w+)", "{head}.{p}"),
)
_TWO_HEADS = rules({}, (r"deit\.embeddings\.distillation_token", "dist_token"))
_ONE_HEAD = rules({}, (r"deit\.embeddings\.distillation_token", "reg_token"))
_TORCHVISION_WORDS = {
    "part": {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        "mlp.linear_1": "mlp.fc1",
        "mlp.linear_2": "mlp.fc2",
    },
}
_TORCHVISION = rules(
    _TORCHVISION_WORDS,
    (r"class_token", "cls_token"),
    (r"conv_proj\.(?P<p>\w+)", "patch_embed.proj.{p}"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.layers\.encoder_layer_(?P<i>\d+)\.self_attention\.in_proj_(?P<p>weight|bias)", "blocks.{i}.attn.qkv.{p}"),
    (r"encoder\.layers\.encoder_layer_(?P<i>\d+)\.%part%\.(?P<p>\w+)", "blocks.{i}.{part}.{p}"),
    (r"encoder\.ln\.(?P<p>\w+)", "norm.{p}"),
    (r"heads\.head\.(?P<p>\w+)", "head.{p}"),
)
_DEIT3 = rules({}, (r"blocks\.(?P<i>\d+)\.gamma_(?P<n>[12])", "blocks.{i}.ls{n}.gamma"))
_XCIT = rules(
    {},
    (r"pos_embeder\.(?P<rest>.+)", "pos_embed.{rest}"),
    (r"cls_attn_blocks\.(?P<i>\d+)\.attn\.qkv\.(?P<p>\w+)", "cls_attn_blocks.{i}.attn.*.{p}"),
)


def is_hf_vit(tensors: Mapping[str, Tensor]) -> bool:
    """ViT or DeiT with a classifier, as transformers writes them."""
    embedded = has(tensors, r"(vit|deit)\.embeddings\.cls_token", r"(vit|deit)\.embeddings\.patch_embeddings\.projection\.weight")
    return embedded and has(tensors, r"(cls_)?classifier\.weight")


def from_hf_vit(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's vit_*, deit_* or (with a distillation head) deit_*_distilled_*.

    A DeiT with a distillation token but one head reads the class token alone: for timm, a ViT with one register token.
    """
    args: dict[str, Any] = {"layer_norm_eps": 1e-12}
    table = _HF + _TWO_HEADS
    if "deit.embeddings.distillation_token" in tensors and "distillation_classifier.weight" not in tensors:
        args["reg_tokens"], table = 1, _HF + _ONE_HEAD
    if not has(tensors, r".+\.0\.attention\.(attention\.query|q_proj)\.bias"):
        args["qkv_bias"] = False
    return translate(tensors, table, arch_args=args, note=_HF_EPS)


def is_torchvision_vit(tensors: Mapping[str, Tensor]) -> bool:
    """ViT as torchvision writes it."""
    return has(tensors, r"class_token", r"conv_proj\.weight", r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight")


def from_torchvision_vit(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's vit_base_patch16_224 and its like; both have LayerNorm eps 1e-6."""
    return translate(tensors, _TORCHVISION)


def is_facebook_deit3(tensors: Mapping[str, Tensor]) -> bool:
    """DeiT III (layer scale as `gamma_1`), which CaiT and BEiT resemble."""
    other = has(tensors, r"blocks_token_only\..+") or has(tensors, r"blocks\.0\.attn\.(q_bias|proj_l\.weight)")
    return has(tensors, r"patch_embed\.proj\.weight", r"cls_token", r"pos_embed", r"blocks\.0\.gamma_1") and not other


def from_facebook_deit3(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's deit3_*; both have LayerNorm eps 1e-6."""
    return translate(tensors, _DEIT3)


def is_facebook_xcit(tensors: Mapping[str, Tensor]) -> bool:
    """XCiT as Facebook's repository writes it: `pos_embeder`, or class attention with fused q, k and v."""
    old = has(tensors, r"pos_embeder\..+") or has(tensors, r"cls_attn_blocks\.0\.attn\.qkv\.weight")
    return old and has(tensors, r"patch_embed\.proj\.0\.0\.weight", r"blocks\.0\.attn\.temperature")


def from_facebook_xcit(tensors: Mapping[str, Tensor]) -> Translation:
    """→ timm's xcit_*; both have LayerNorm eps 1e-6. A tensor held under both names is compared and must agree."""
    return translate(tensors, _XCIT)
