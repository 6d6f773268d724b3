"""Tiny networks of timm's other transformers, one per way of cutting a map into tokens, whose attention is far from uniform.

A network that the installed timm lacks is skipped as it is made.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import timm
import torch
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.coat import CoaT
from timm.models.convit import ConVit
from timm.models.crossvit import CrossVit
from timm.models.csatv2 import CSATv2
from timm.models.davit import DaVit
from timm.models.edgenext import EdgeNeXt
from timm.models.efficientformer import EfficientFormer
from timm.models.efficientformer_v2 import EfficientFormerV2
from timm.models.efficientvit_mit import EfficientVit
from timm.models.efficientvit_msra import EfficientVitMsra
from timm.models.gcvit import GlobalContextVit
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from timm.models.levit import Levit
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from timm.models.metaformer import Attention as MetaAttention
from timm.models.metaformer import LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nest import Nest
from timm.models.nextvit import NextViT
from timm.models.pit import PoolingVisionTransformer
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.shvit import SHViT
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.tiny_vit import TinyVit
from timm.models.tnt import TNT
from timm.models.twins import Twins
from timm.models.visformer import Visformer
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from timm.models.volo import VOLO
from torch import Tensor, nn

from interp.attention.layout import attention_layers
from interp.models.model import Model
from interp.types import Card, Preprocess

# before, timm gives windows of GCViT the query of another image of the batch, and Swin v2 CR cannot pad windows that do not fit
MENDED = tuple(int(part) for part in timm.__version__.split(".")[:3]) >= (1, 0, 31)
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
DIMS: dict[str, Any] = {"embed_dims": (16, 32, 32, 32), "num_heads": (1, 2, 2, 2)}


COAT: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 4,
    "embed_dims": (16, 32, 32, 32),
    "num_heads": 2,
    "crpe_window": {3: 1, 5: 1},
}


def net(make: str | Callable[..., nn.Module], size: int = 64, **args: Any) -> tuple[Callable[[], nn.Module], int]:
    """How to make a network of ten classes, and the size of its images. make: a class, or where timm may lack it its name of a
    model or `module.Class`."""
    return lambda: (found(make) if isinstance(make, str) else make)(num_classes=10, **args), size


def found(name: str) -> Callable[..., nn.Module]:
    """What makes the networks of that name; skips the test where the installed timm has none."""
    module, _, owner = name.rpartition(".")
    if not (importlib.util.find_spec(f"timm.models.{module}") if module else timm.is_model(name)):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    if module:
        return getattr(importlib.import_module(f"timm.models.{module}"), owner)
    return partial(timm.create_model, name)


def prr(**args: Any) -> nn.Module:
    if not hasattr(timm.layers, "AttentionPoolPrr"):
        pytest.skip(f"timm {timm.__version__} has no AttentionPoolPrr")
    return VisionTransformer(global_pool="prr", **args)


def maxvit(*types: Any, **args: Any) -> tuple[Callable[[], nn.Module], int]:
    attend = MaxxVitTransformerCfg(dim_head=16, window_size=(4, 4), grid_size=(4, 4), **args)
    cfg = MaxxVitCfg((32, 32), (1, 1), types, stem_width=16, transformer_cfg=attend)
    return net(MaxxVit, 64, cfg=cfg, img_size=64)


def mvit(**args: Any) -> tuple[Callable[[], nn.Module], int]:
    cfg = MultiScaleVitCfg((1, 2), (16, 32), (1, 2), stride_q=((1, 1), (2, 2)), stride_kv_adaptive=(2, 2), **args)  # type: ignore[arg-type]
    return net(MultiScaleVit, 64, cfg=cfg, img_size=(64, 64))


def byob(*blocks: ByoBlockCfg, head: str = "", **args: Any) -> tuple[Callable[[], nn.Module], int]:
    cfg = ByoModelCfg(blocks, stem_chs=16, stem_type="", stem_pool="", head_type=head or "classifier", **args)
    return net(ByobNet, 64, cfg=cfg, **({"img_size": 64} if head else {}))


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "relpos": net("vit_relpos_small_patch16_224", 32, **VIT),
    "relpos_cls": net("vit_relpos_base_patch16_cls_224", 32, **VIT),
    "vit22b": net(VisionTransformer, 32, block_fn=ParallelScalingBlock, **VIT),
    "map": net(VisionTransformer, 32, class_token=False, global_pool="map", **VIT),
    "map_prefix": net(VisionTransformer, 32, reg_tokens=2, global_pool="map", **VIT),
    "map_with_prefix": net(
        VisionTransformer, 32, reg_tokens=2, global_pool="map", pool_include_prefix=True, dynamic_img_size=True, **VIT
    ),
    "prr": net(prr, 32, **VIT),
    "prr_avg": net(prr, 32, class_token=False, **VIT),
    "diff": net(VisionTransformer, 32, attn_layer="diff", class_token=False, global_pool="avg", **VIT),
    "diff_parallel": net("vit_dpwee_patch16_reg1_gap_256", 32, **VIT),
    "pe": net("vit_pe_core_tiny_patch16_384", 32, **VIT),
    "naflex_map": net("naflexvit_base_patch16_map", 32, **VIT),
    "clip": byob(ByoBlockCfg("bottle", d=1, c=32, s=2, br=0.5), ByoBlockCfg("bottle", d=1, c=128, s=2, br=0.25), head="attn_abs"),
    "clip_rot": byob(
        ByoBlockCfg("bottle", d=1, c=32, s=2, br=0.5), ByoBlockCfg("bottle", d=1, c=128, s=2, br=0.25), head="attn_rot"
    ),
    "halo": byob(
        ByoBlockCfg("bottle", d=1, c=32, s=2, br=0.5),
        ByoBlockCfg("self_attn", d=3, c=64, s=2, br=0.5),
        self_attn_layer="halo",
        self_attn_kwargs={"block_size": 4, "halo_size": 2, "num_heads": 2},
    ),
    "efficientvit": net(EfficientVit, 64, widths=(8, 16, 32, 32), depths=(1, 1, 2, 2), head_dim=8, head_widths=(16, 16)),
    "coat": net(CoaT, 64, **COAT, serial_depths=(1, 1, 2, 2)),
    "coat_parallel": net(CoaT, 64, **COAT, serial_depths=(1, 1, 1, 1), parallel_depth=1),
    "naflex": net("naflexvit_base_patch16_gap", 32, **VIT),
    "convit": net(ConVit, 32, img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4, local_up_to_layer=1),
    "deepseek": net("deepseek_vit_412m", 32, **VIT),
    "qwen": net("qwen3_vit_306m", 32, **VIT),
    "gemma": net("gemma4_vit_167m", 32, head_dim=16, intermediate_size=32, **VIT),
    "sam": net(VisionTransformerSAM, 32, window_size=3, global_attn_indexes=(1,), use_rel_pos=True, neck_chans=16, **VIT),
    "tnt": net(TNT, 32, inner_dim=8, num_heads_inner=2, num_heads_outer=2, img_size=32, patch_size=8, depth=2, embed_dim=32),
    "crossvit": net(CrossVit, 48, img_size=48, img_scale=(1.0, 2 / 3), embed_dim=(16, 32), depth=((1, 2, 0),), num_heads=(2, 2)),
    "pit": net(PoolingVisionTransformer, 48, img_size=48, patch_size=8, base_dims=(16, 16), depth=(1, 2), heads=(1, 2)),
    "visformer": net(Visformer, 64, img_size=64, init_channels=8, embed_dim=64, depth=(1, 1, 1), num_heads=2),
    "volo": net(VOLO, 64, img_size=64, layers=(1, 1, 1, 1), embed_dims=(16, 32, 32, 32), num_heads=(2, 2, 2, 2)),
    "pvt": net(PyramidVisionTransformerV2, 64, depths=(1, 1, 1, 2), **DIMS),
    "pvt_linear": net(PyramidVisionTransformerV2, 64, depths=(1, 1, 1, 1), linear=True, **DIMS),
    "twins": net(Twins, 64, img_size=64, depths=(2, 2, 2, 2), wss=(3, 7, 7, 7), **DIMS),
    "twins_pcpvt": net(Twins, 64, img_size=64, depths=(1, 1, 1, 2), **DIMS),
    "mvit": mvit(),
    "mvit_cls": mvit(use_cls_token=True),
    "hiera": net(Hiera, 64, img_size=(64, 64), embed_dim=16, stages=(1, 2, 2, 2)),
    "hieradet": net(HieraDet, 64, embed_dim=16, stages=(1, 2, 2), window_spec=(8, 6, 4), global_att_blocks=(4,), q_pool=2),
    "levit": net(Levit, 64, img_size=64, embed_dim=(32, 48), key_dim=8, depth=(1, 2), num_heads=(2, 3), stem_type="s8"),
    "levit_conv": net(
        Levit, 64, img_size=64, embed_dim=(32, 48), key_dim=8, depth=(1, 2), num_heads=(2, 3), stem_type="s8", use_conv=True
    ),
    "efficientformer": net(EfficientFormer, 224, depths=(1, 1, 1, 2), embed_dims=(8, 8, 8, 32), num_vit=2),
    "efficientformerv2": net(
        EfficientFormerV2, 128, img_size=128, depths=(1, 1, 2, 2), embed_dims=(8, 8, 16, 32), num_vit=1, mlp_ratios=2
    ),
    "nextvit": net(NextViT, 64, in_chans=3, stem_chs=(8, 8, 8), depths=(1, 1, 5, 2), head_dim=8),
    "fastvit": net(
        "fastvit_sa12", 64, layers=(1, 1, 1, 2), embed_dims=(8, 16, 32, 32), token_mixers=("repmixer",) * 3 + ("attention",)
    ),
    "metaformer": net(
        MetaFormer,
        64,
        depths=(1, 1, 1, 2),
        dims=(8, 16, 32, 64),
        token_mixers=[SepConv, SepConv, MetaAttention, MetaAttention],
        norm_layers=[LayerNorm2dNoBias, LayerNorm2dNoBias, LayerNormNoBias, LayerNormNoBias],
    ),
    "shvit": net(SHViT, 128, embed_dim=(16, 32, 32), partial_dim=(8, 16, 24), depth=(1, 1, 1)),
    "lowformer": net("lowformer.LowFormer", 128, width_list=(8, 8, 16, 64, 64), depth_list=(0, 1, 1, 1, 1), head_widths=(32, 32)),
    "cpubone": net("cpubone.CPUBone", 128, width_list=(8, 8, 16, 64, 64), depth_list=(0, 1, 1, 1, 1), head_widths=(32, 32)),
    "csatv2": net(CSATv2, 128, dims=(8, 16, 32, 32), depths=(1, 1, 1, 1), transformer_depths=(0, 0, 1, 1)),
    "swincr": net(
        SwinTransformerV2Cr, 64, img_size=64, window_size=5 if MENDED else 4, embed_dim=16, depths=(2, 2), num_heads=(1, 2)
    ),
    "nest": net(Nest, 64, img_size=64, patch_size=2, depths=(1, 2, 1), embed_dims=(16, 32, 32), num_heads=(1, 2, 2)),
    "tinyvit": net(TinyVit, 64, depths=(1, 2, 2, 1), window_sizes=(3, 3, 3, 3), **DIMS),
    "gcvit": net(GlobalContextVit, 64, img_size=64, depths=(2, 2), embed_dim=16, num_heads=(1, 2), window_ratio=(16, 16)),
    "maxvit": maxvit("M", "M"),
    "maxvit_first": maxvit("M", "M", use_nchw_attn=True),
    "maxvit_parallel": maxvit("PM", "PM"),
    "coatnet": maxvit("C", "T"),
    "davit": net(DaVit, 64, depths=(1, 1, 1, 1), window_size=3, **DIMS),
    "davit_v2": net(DaVit, 64, depths=(1, 1, 1, 1), channel_attn_v2=True, **DIMS),
    "msra": net(EfficientVitMsra, 128, img_size=128, embed_dim=(32, 32), depth=(1, 1), num_heads=(2, 2), window_size=(5, 7)),
    "iformer": net("iformer.IFormer", 64, dims=(8, 16, 32, 32), depths=(1, 1, 4, 4), attn_groups=(0, 0, 1, 1)),
    "edgenext": net(EdgeNeXt, 64, dims=(8, 16, 32, 32), depths=(1, 1, 1, 1), heads=(2, 2, 2, 2)),
    "mobilenetv4": net("mobilenetv4_hybrid_medium_075", 128),
    "botnet": net("botnet26t_256", 64, img_size=64),
}


@cache
def _built(name: str) -> Model:
    make, size = NETS[name]
    torch.manual_seed(0)
    model = Model(make().eval(), Card(id="t", arch="x", num_classes=10, preprocess=Preprocess(size, size)))
    for path in attention_layers(model):
        for key, p in model.net.get_submodule(path).named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=1.5 / p[0].numel() ** 0.5)
            elif "lambda" in key:
                nn.init.uniform_(p, 0.0, 0.4)
            elif key.endswith("bias"):
                nn.init.normal_(p, std=0.2)
            else:
                nn.init.uniform_(p, 1.0, 3.0)
        whole(model.net.get_submodule(path))
    for key, p in model.net.named_parameters():
        if "gamma" in key:  # layer scales, which begin near zero
            nn.init.ones_(p)
        if "head" in key and p.ndim == 2:  # some begin at zero
            nn.init.normal_(p, std=0.3)
        if p.ndim == 1 and key.endswith("weight") and not p.any():  # of a residual branch
            nn.init.ones_(p)
    settled(model, size)
    return model


def settled(model: Model, size: int) -> None:
    """Batch norms as after training: their running statistics are those of what they see."""
    norms = [m for m in model.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    with torch.no_grad():
        model(torch.rand(8, 3, size, size))
    model.eval()


def whole(module: Any) -> None:
    """Leave out what some modules add to the output of their heads before the projection."""
    if hasattr(module, "residual_pooling"):  # MViT v2 adds the queries
        module.residual_pooling = False
    if hasattr(module, "crpe"):  # CoaT one of the values
        for p in module.crpe.parameters():
            nn.init.zeros_(p)
    if hasattr(module, "v_local"):  # EfficientFormer v2 adds a convolution of the values
        module.act = nn.Identity()
        for p in module.v_local.parameters():
            nn.init.zeros_(p)


def make(name: str) -> Model:
    """A tiny model whose attention is far from uniform and differs between heads."""
    return copy.deepcopy(_built(name))


def of(name: str, n: int = 2) -> Tensor:
    size = NETS[name][1]
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))
