"""Tiny networks of every family whose attention is far from uniform, and what each attention computes, by its paper's formula."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.attention.layout import LAYOUTS
from interp.models.build import build
from interp.models.model import Model
from interp.types import Card, Preprocess

KINDS = {name: kind for row in LAYOUTS.values() for name, kind in row.modules.items()}
VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "xcit": ("xcit_p4", {"embed_dim": 32, "depth": 2}),
    "cait": ("cait_xxs24_224", VIT),
    "vit": ("vit_tiny_patch16_224", {**VIT, "qk_norm": True}),
    "vit_avg": ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg"}),
    "vit_reg": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 3}),
    "vit_reg_avg": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 1, "class_token": False, "global_pool": "avg"}),
    "vit_any": ("vit_tiny_patch16_224", {**VIT, "dynamic_img_size": True, "dynamic_img_pad": True}),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "beit": ("beit_base_patch16_224", VIT),
    "beit_shared": ("beit_base_patch16_224", {**VIT, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "eva": ("eva02_tiny_patch14_224", VIT),
    "eva_split": ("eva02_tiny_patch14_224", {**VIT, "qkv_fused": False, "scale_attn_inner": True}),
    "mobilevit": ("mobilevit_32", {"variant": "mobilevit_xxs", "strides": [1, 2, 2, 2, 1, 1]}),
    "mobilevitv2": ("mobilevitv2_050", {}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swinv2": ("swinv2_tiny_window8_256", SWIN),
}


@cache
def _built(name: str) -> Model:
    arch, args = NETS[name]
    torch.manual_seed(0)
    net = build(arch, num_classes=10, arch_args=args)
    for module in net.modules():
        if type(module).__name__ in KINDS:
            for key, p in module.named_parameters():
                nn.init.normal_(p, std=1.5 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.2)
                if "norm" in key or "temperature" in key or "logit_scale" in key:
                    nn.init.uniform_(p, 1.0, 3.0)
    for key, p in net.named_parameters():
        if "gamma" in key:  # layer scales, which begin at 1e-5
            nn.init.ones_(p)
        if "rel_pos_bias" in key:
            nn.init.normal_(p)
    return wrap(net)


def make(name: str) -> Model:
    """A tiny model whose attention is far from uniform and differs between heads."""
    return copy.deepcopy(_built(name))


def wrap(net: nn.Module, size: int = 32) -> Model:
    return Model(net, Card(id="t", arch="x", num_classes=10, preprocess=Preprocess(size, size)))


def images(n: int = 3, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


def of(name: str, n: int = 3) -> Tensor:
    return images(n, (64, 64) if name == "mobilevitv2" else (32, 32))


def joined(kind: str, out: Tensor) -> Tensor:
    """Outputs of heads side by side, in each attention's own order of axes: (n, queries, channels)."""
    return out.permute(0, 3, 1, 2).flatten(2) if kind == "channel" else out.transpose(1, 2).flatten(2)


def projected(module: Any, x: Tensor, kind: str, out: Tensor) -> Tensor:
    """What an attention module makes of its heads' outputs (n·groups, heads, queries, d)."""
    if kind == "context":  # relu(values) · context, eq. 4 of arXiv 2206.02680
        context = out.view(len(x), x.shape[2], -1).transpose(1, 2)[..., None]
        return module.out_proj(module.qkv_proj(x)[:, -module.embed_dim :].relu() * context)
    return module.proj(getattr(module, "norm", nn.Identity())(joined(kind, out)))


# --- weights and values of one module, from its parameters and its input, by the formulas of the papers -----------------------


def heads(module: Any, x: Tensor) -> list[Tensor]:
    """q, k, v (n, heads, tokens, d), with whatever bias the module has."""
    if getattr(module, "qkv", None) is None:
        parts = [getattr(module, f"{c}_proj")(x) for c in "qkv"]
    elif getattr(module, "q_bias", None) is not None:
        parts = [*(x @ module.qkv.weight.T + torch.cat([module.q_bias, 0 * module.q_bias, module.v_bias])).chunk(3, -1)]
    else:
        parts = [*module.qkv(x).chunk(3, -1)]
    return [part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in parts]


def plain(module: Any, x: Tensor, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    q, k, v = heads(module, x)
    if isinstance(getattr(module, "q_norm", None), nn.LayerNorm):
        q, k = module.q_norm(q), module.k_norm(k)
    return (torch.einsum("nhqd,nhkd->nhqk", q, k) / q.shape[-1] ** 0.5 + bias).softmax(-1), v


def talking(module: Any, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    q, k, v = heads(module, x)
    scores = torch.einsum("nhqd,nhkd->nhqk", q, k) / q.shape[-1] ** 0.5
    (l_w, l_b), (w_w, w_b) = ((m.weight, m.bias[:, None, None]) for m in (module.proj_l, module.proj_w))
    rows = (torch.einsum("gh,nhqk->ngqk", l_w, scores) + l_b).softmax(-1)
    return torch.einsum("gh,nhqk->ngqk", w_w, rows) + w_b, v


def class_row(module: Any, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    q, k, v = (m(t).unflatten(-1, (module.num_heads, -1)) for m, t in ((module.q, x[:, :1]), (module.k, x), (module.v, x)))
    return (torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1), v.transpose(1, 2)


def channels(module: Any, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    q, k, v = (t.transpose(-2, -1) for t in heads(module, x))
    q, k = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))
    return (torch.einsum("nhcd,nhed->nhce", q, k) * module.temperature).softmax(-1), v


def context(module: Any, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    scores, keys, _ = module.qkv_proj(x).split([1, module.embed_dim, module.embed_dim], 1)
    by_group = [t.permute(0, 2, 3, 1).flatten(0, 1)[:, None] for t in (scores, keys)]  # (n·pixels, 1, patches, c)
    return by_group[0].transpose(-2, -1).softmax(-1), by_group[1]


def apart(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows and columns from every key to every query of a grid."""
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij"))
    return y[:, None] - y, x[:, None] - x


def relative(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A table of biases, a row per offset, as (heads, queries, keys)."""
    dy, dx = apart(size)
    return table[(dy + size[0] - 1) * (2 * size[1] - 1) + dx + size[1] - 1].permute(2, 0, 1)


def beit(module: Any, x: Tensor, net: Any, _path: str) -> tuple[Tensor, Tensor]:
    """Offsets between patches; the last three rows of the table are class → patch, patch → class, class → class."""
    table = module.relative_position_bias_table if net.rel_pos_bias is None else net.rel_pos_bias.relative_position_bias_table
    bias = torch.zeros(module.num_heads, x.shape[1], x.shape[1])
    bias[:, 1:, 1:] = relative(table, (4, 4))
    bias[:, 0, 1:], bias[:, 1:, 0], bias[:, 0, 0] = table[-3][:, None], table[-2][:, None], table[-1]
    return plain(module, x, bias)


def rotary(module: Any, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Pairs of channels of q and k of a patch turned by its row, then its column, times a frequency (arXiv 2104.09864)."""
    q, k, v = heads(module, x)
    d = q.shape[-1]
    frequencies = 10000.0 ** (-torch.arange(d // 4) / (d // 4))
    y, x_ = (t.flatten() * 16 / 4 for t in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))  # trained on 16 × 16
    turn = torch.cat([y[:, None] * frequencies, x_[:, None] * frequencies], 1)
    turn = torch.polar(torch.ones(()), F.pad(turn, (0, 0, 1, 0)))  # the class token stays
    q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2) for t in (q, k))
    return (torch.einsum("nhqd,nhkd->nhqk", q, k) / d**0.5).softmax(-1), v


def parted(block: Any, size: tuple[int, int]) -> Tensor:
    """−100 between tokens of a window that the shift brought together from opposite sides, (windows, 1, tokens, tokens)."""
    window, shift = block.window_size, block.shift_size
    whole = [math.ceil(s / w) * w for s, w in zip(size, window, strict=True)]
    y, x = torch.meshgrid(*(torch.arange(n) >= n - s for n, s in zip(whole, shift, strict=True)), indexing="ij")
    side = (2 * y + x).unfold(0, window[0], window[0]).unfold(1, window[1], window[1]).flatten(2).flatten(0, 1)
    return -100.0 * (side[:, :, None] != side[:, None]).float()[:, None]


def windows(module: Any, x: Tensor, net: Any, path: str) -> tuple[Tensor, Tensor]:
    block = net.get_submodule(path.removesuffix(".attn"))
    mask = parted(block, block.input_resolution) if any(block.shift_size) else torch.zeros(1, 1, 1, 1)
    mask = mask.repeat(len(x) // len(mask), 1, 1, 1)
    if not hasattr(module, "cpb_mlp"):
        return plain(module, x, relative(module.relative_position_bias_table, module.window_size) + mask)
    q, k, v = heads(module, x)  # Swin v2, arXiv 2111.09883, section 3.3
    cosines = torch.einsum("nhqd,nhkd->nhqk", F.normalize(q, dim=-1), F.normalize(k, dim=-1))
    far = torch.stack([8 * d / (w - 1) for d, w in zip(apart(module.window_size), module.window_size, strict=True)], -1)
    bias = 16 * module.cpb_mlp(far.sign() * (far.abs() + 1).log2() / 3).sigmoid().permute(2, 0, 1)
    return (cosines * module.logit_scale.clamp(max=math.log(100)).exp() + bias + mask).softmax(-1), v


FORMULAS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    **dict.fromkeys(("xcit", "mobilevit", "vit", "deit"), lambda module, x, *_: plain(module, x)),
    **{"beit": beit, "eva": rotary, "swin": windows, "swinv2": windows},
    **{"channel": channels, "class": class_row, "talking": talking, "context": context},
}


def formula(name: str, kind: str) -> Callable[..., tuple[Tensor, Tensor]]:
    return FORMULAS.get(kind) or FORMULAS[name.partition("_")[0]]
