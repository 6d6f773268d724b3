"""State dicts as other repositories write them, made from timm networks: the layouts that no package here can produce.

Each name is taken from the origin's own source, which the docstring quotes; what a package can write itself (torchvision,
transformers) is written by that package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def scattered(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every number drawn anew, such that signals keep their size and no normalisation is trivial."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if not tensor.is_floating_point() or name.endswith("attn_mask"):
                continue
            noise = torch.randn(tensor.shape, generator=g)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.ndim > 1 and tensor[0].numel() > 1 and "token" not in name and "pos" not in name:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            elif name.endswith("weight") or "gamma" in name:
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(0.5 * noise)
    return net.eval()


def facebook_xcit(net: nn.Module) -> dict[str, Tensor]:
    """facebookresearch/xcit, xcit.py: `self.pos_embeder = PositionalEncodingFourier`, `ClassAttention.qkv` (q, k, v rows)."""
    state = net.state_dict()
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".attn.q." in name:
            fused = [state[name.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
            out[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(fused, dim=0)
        elif ".attn.k." not in name and ".attn.v." not in name:
            out["pos_embeder" + name.removeprefix("pos_embed") if name.startswith("pos_embed.") else name] = tensor
    return out


def facebook_cait(net: nn.Module) -> dict[str, Tensor]:
    """facebookresearch/deit, cait_models.py: the model's own names, read as `checkpoint["model"]["module." + k]`."""
    return {f"module.{k}": v for k, v in net.state_dict().items()}


def facebook_deit3(net: nn.Module) -> dict[str, Tensor]:
    """facebookresearch/deit, models_v2.py: `Layer_scale_init_Block.gamma_1`, `gamma_2`."""
    return {k.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): v for k, v in net.state_dict().items()}


def facebook_convnext(net: nn.Module) -> dict[str, Tensor]:
    """facebookresearch/ConvNeXt, models/convnext.py, and ConvNeXt-V2, models/convnextv2.py (`grn.gamma` of shape 1, 1, 1, C).

    `downsample_layers[0]` is the stem; `stages[i][j]` holds dwconv, norm, pwconv1, pwconv2, gamma; then norm and head.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in net.state_dict().items():
        first, *rest = name.split(".")
        if first == "stem":
            new = ["downsample_layers", "0", *rest]
        elif first == "head":
            new = ["norm" if rest[0] == "norm" else "head", *rest[1:]]
        elif rest[1] == "downsample":
            new = ["downsample_layers", rest[0], *rest[2:]]
        else:
            new = ["stages", rest[0], *rest[2:]]
        foreign = ".".join(new).replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        if "mlp.grn" in foreign:
            foreign = foreign.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
            tensor = tensor.reshape(1, 1, 1, -1)
        out[foreign] = tensor
    return out


def cvnets_mobilevit(net: nn.Module, version: int) -> dict[str, Tensor]:
    """apple/ml-cvnets, cvnets/models/classification/mobilevit.py (version 1) and mobilevit_v2.py (2).

    conv_1, layer_1 … layer_5, (1) conv_1x1_exp, classifier.fc or (2) classifier.1; ConvLayer2d holds `block.conv` and
    `block.norm`; InvertedResidual (modules/mobilenetv2.py) holds block.exp_1x1, conv_3x3, red_1x1; MobileViTBlock
    (modules/mobilevit_block.py) holds local_rep, global_rep (the last one a norm), conv_proj, (1) fusion; TransformerEncoder
    and LinearAttnFFN (modules/transformer.py) are Sequentials norm, attention, dropout and norm, layer, [activation,]
    dropout, layer.
    """
    unit = {"conv": "block.conv", "bn": "block.norm"}
    local = {1: ("conv_3x3", "conv_1x1"), 2: ("0", "1")}[version]
    blocks = {
        1: {
            "norm1": "pre_norm_mha.0",
            "attn.qkv": "pre_norm_mha.1.qkv_proj",
            "attn.proj": "pre_norm_mha.1.out_proj",
            "norm2": "pre_norm_ffn.0",
            "mlp.fc1": "pre_norm_ffn.1",
            "mlp.fc2": "pre_norm_ffn.4",
        },
        2: {
            "norm1": "pre_norm_attn.0",
            "attn.qkv_proj": "pre_norm_attn.1.qkv_proj.block.conv",
            "attn.out_proj": "pre_norm_attn.1.out_proj.block.conv",
            "norm2": "pre_norm_ffn.0",
            "mlp.fc1": "pre_norm_ffn.1.block.conv",
            "mlp.fc2": "pre_norm_ffn.3.block.conv",
        },
    }[version]
    whole = {"stem": "conv_1", "final_conv": "conv_1x1_exp"}
    out: dict[str, Tensor] = {}
    for name, tensor in net.state_dict().items():
        path = name.split(".")
        leaf = path[-1]
        if path[0] == "head":
            new = f"classifier.{'fc' if version == 1 else '1'}.{leaf}"
        elif path[0] in whole:
            new = f"{whole[path[0]]}.{unit[path[1]]}.{leaf}"
        else:
            layer, kind = f"layer_{int(path[1]) + 1}.{path[2]}", path[3]
            if kind in ("conv1_1x1", "conv2_kxk", "conv3_1x1"):
                inverted = {"conv1_1x1": "exp_1x1", "conv2_kxk": "conv_3x3", "conv3_1x1": "red_1x1"}[kind]
                new = f"{layer}.block.{inverted}.{unit[path[4]]}.{leaf}"
            elif kind == "transformer":
                new = f"{layer}.global_rep.{path[4]}.{blocks['.'.join(path[5:-1])]}.{leaf}"
            elif kind == "norm":
                depth = len({k.split(".")[4] for k in net.state_dict() if k.startswith(".".join(path[:3]) + ".transformer.")})
                new = f"{layer}.global_rep.{depth}.{leaf}"
            elif kind == "conv_1x1":
                new = f"{layer}.local_rep.{local[1]}.block.conv.{leaf}"
            else:
                sub = {"conv_kxk": f"local_rep.{local[0]}", "conv_proj": "conv_proj", "conv_fusion": "fusion"}[kind]
                new = f"{layer}.{sub}.{unit[path[4]]}.{leaf}"
        out[new] = tensor
    return out


_V1_TO_HF = (  # transformers, models/mobilevit/convert_mlcvnets_to_pytorch.py, `rename_key`: what becomes of a name, in order
    (r"layer_(\d)\.", lambda m: f"encoder.layer.{int(m[1]) - 1}."),
    (r"conv_1\.", "conv_stem."),
    (r"\.block\.", "."),
    ("exp_1x1", "expand_1x1"),
    ("red_1x1", "reduce_1x1"),
    (r"\.local_rep\.conv_3x3\.", ".conv_kxk."),
    (r"\.local_rep\.conv_1x1\.", ".conv_1x1."),
    (r"\.norm\.", ".normalization."),
    (r"\.conv\.", ".convolution."),
    (r"\.conv_proj\.", ".conv_projection."),
    (r"\.([01])\.(\d)\.", r".\1.layer.\2."),
    (r"\.([2-5])\.0\.(expand_1x1|conv_3x3|reduce_1x1)", r".\1.downsampling_layer.\2"),
    (r"^(encoder\.layer\.[2-5])\.1\.", r"\1."),
    (r"\.global_rep\.\d\.(weight|bias)$", r".layernorm.\1"),
    (r"\.global_rep\.", ".transformer.layer."),
    (r"\.pre_norm_mha\.0\.", ".layernorm_before."),
    (r"\.pre_norm_mha\.1\.out_proj\.", ".attention.output.dense."),
    (r"\.pre_norm_ffn\.0\.", ".layernorm_after."),
    (r"\.pre_norm_ffn\.1\.", ".intermediate.dense."),
    (r"\.pre_norm_ffn\.4\.", ".output.dense."),
)
_V2_TO_HF = (  # transformers, models/mobilevitv2/convert_mlcvnets_to_pytorch.py, `create_rename_keys`
    (r"\.block\.", "."),
    (r"\.conv\.", ".convolution."),
    (r"\.norm\.", ".normalization."),
    (r"conv_1\.", "conv_stem."),
    (r"layer_([12])\.", lambda m: f"encoder.layer.{int(m[1]) - 1}.layer."),
    (r"\.exp_1x1\.", ".expand_1x1."),
    (r"\.red_1x1\.", ".reduce_1x1."),
    (r"layer_([345])\.0\.", lambda m: f"encoder.layer.{int(m[1]) - 1}.downsampling_layer."),
    (r"layer_([345])\.1\.", lambda m: f"encoder.layer.{int(m[1]) - 1}."),
    (r"local_rep\.0\.", "conv_kxk."),
    (r"local_rep\.1\.", "conv_1x1."),
    (r"global_rep\.\d\.(weight|bias)$", r"layernorm.\1"),
    (r"global_rep\.", "transformer.layer."),
    (r"\.conv_proj\.", ".conv_projection."),
    (r"pre_norm_attn\.0\.", "layernorm_before."),
    (r"pre_norm_attn\.1\.", "attention."),
    (r"pre_norm_ffn\.0\.", "layernorm_after."),
    (r"pre_norm_ffn\.1\.", "ffn.conv1."),
    (r"pre_norm_ffn\.3\.", "ffn.conv2."),
)


def as_transformers_converts(tensors: Mapping[str, Tensor], version: int) -> dict[str, Tensor]:
    """cvnets' names → transformers', as transformers' own conversion scripts do it."""
    prefix, table = {1: ("mobilevit.", _V1_TO_HF), 2: ("mobilevitv2.", _V2_TO_HF)}[version]
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("classifier."):
            out[f"classifier.{name.rsplit('.', 1)[1]}"] = tensor
            continue
        part = re.fullmatch(r"layer_(\d)\.1\.global_rep\.(\d)\.pre_norm_mha\.1\.qkv_proj\.(\w+)", name)
        if part:
            stem = f"{prefix}encoder.layer.{int(part[1]) - 1}.transformer.layer.{part[2]}.attention.attention."
            for n, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[f"{stem}{n}.{part[3]}"] = rows
            continue
        for old, new in table:
            name = re.sub(old, new, name)
        out[prefix + name] = tensor
    return out


def microsoft_swin(net: nn.Module) -> dict[str, Tensor]:
    """microsoft/Swin-Transformer, models/swin_transformer.py; also timm before 0.9 and RobustBench's MIMIR models.

    BasicLayer ends with `downsample` (PatchMerging); buffers `attn.relative_position_index` and, where windows are shifted,
    `attn_mask`; `head` is a Linear.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in net.state_dict().items():
        path = name.split(".")
        if path[0] == "head":
            path = ["head", path[-1]]
        elif path[0] == "layers" and path[2] == "downsample":
            path[1] = str(int(path[1]) - 1)
        out[".".join(path)] = tensor
    for name, block in net.named_modules():
        if hasattr(block, "shift_size") and hasattr(block, "attn"):
            side, shift = block.window_size[0], block.shift_size[0]
            out[f"{name}.attn.relative_position_index"] = swin_index(side)
            if shift:
                out[f"{name}.attn_mask"] = swin_mask(block.input_resolution[0], side, shift)
    return out


def swin_index(side: int) -> Tensor:
    places = [(y, x) for y in range(side) for x in range(side)]
    rows = [[(a - c + side - 1) * (2 * side - 1) + (b - d + side - 1) for c, d in places] for a, b in places]
    return torch.tensor(rows)


def swin_mask(size: int, side: int, shift: int) -> Tensor:
    """As `SwinTransformerBlock.__init__` marks nine regions of the shifted image and compares them within each window."""
    image = torch.zeros(size, size)
    edges = ((0, size - side), (size - side, size - shift), (size - shift, size))
    for i, (top, bottom) in enumerate(edges):
        for j, (left, right) in enumerate(edges):
            image[top:bottom, left:right] = 3 * i + j
    windows = torch.stack([t.flatten() for row in image.split(side) for t in row.split(side, dim=1)])
    return (windows[:, None, :] != windows[:, :, None]).float() * -100.0


def transformers_file(model: Any, folder: Path) -> dict[str, Tensor]:
    """What transformers itself saves, which since v5 differs from the module's names and equals the published files'."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")
