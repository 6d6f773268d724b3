"""Name translations: real originals where a package has them, their own key lists elsewhere, equal logits everywhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from interp.loading.translate import JOINED, TRANSLATIONS, Translation, translation
from interp.loading.translate_stages import relative_position_index, shifted_window_mask
from interp.models.build import build
from tests import writers
from tests.writers import scattered

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

CLASSES = 10
CLOSE = 1e-5  # of the largest logit


def built(arch: str, **args: Any) -> nn.Module:
    net = build(arch, num_classes=CLASSES, arch_args=args)
    return net.eval()


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in tensors.items()}


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(7))


def logits(net: nn.Module, size: int) -> Tensor:
    with torch.no_grad():
        out = net(images(size))
    return out if isinstance(out, Tensor) else out.logits


def accounted(tensors: Mapping[str, Tensor], found: Translation) -> None:
    """Every name of the file is kept, renamed or dropped, and nothing comes from nowhere."""
    olds = {k for joined in found.renamed.values() for k in joined.split(JOINED)}
    kept = {k for k in found.tensors if k not in found.renamed}
    assert olds | kept | set(found.dropped) == set(tensors)
    assert set(found.renamed) <= set(found.tensors)


def translated(tensors: Mapping[str, Tensor]) -> tuple[str, Translation]:
    result = translation(tensors)
    assert result is not None, "unknown origin"
    return result


def loaded(tensors: dict[str, Tensor], origin: str, arch: str, **args: Any) -> nn.Module:
    """timm's network with a foreign state dict, strictly; the input is left as it was."""
    before = dict(tensors)
    name, found = translated(tensors)
    assert name == origin
    assert tensors == before
    accounted(tensors, found)
    net = built(arch, **args, **found.arch_args)
    net.load_state_dict(found.tensors)
    return net


def same(net: nn.Module, other: nn.Module, size: int, close: float = CLOSE) -> None:
    a, b = logits(net, size), logits(other, size)
    assert a.std() > 1e-3, "constant logits compare nothing"
    assert (a - b).abs().max() <= close * b.abs().max(), (a - b).abs().max() / b.abs().max()


TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
HF_VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "num_labels": CLASSES,
}
TINY_SWIN = {"img_size": 112, "window_size": 7, "embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
TINY_CONVNEXT = {"depths": (1, 2, 2, 1), "dims": (8, 16, 24, 32)}


# --- transformers: the real modules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "config", "arch", "args"),
    [
        ("ViTForImageClassification", "ViTConfig", "vit_tiny_patch16_224", {}),
        ("ViTForImageClassification", "ViTConfig", "vit_tiny_patch16_224", {"qkv_bias": False}),
        ("DeiTForImageClassificationWithTeacher", "DeiTConfig", "deit_tiny_distilled_patch16_224", {}),
        ("DeiTForImageClassification", "DeiTConfig", "deit_tiny_patch16_224", {}),
    ],
)
@pytest.mark.parametrize("saved", [True, False], ids=["published names", "names since v5"])
def test_transformers_vit(model: str, config: str, arch: str, args: dict[str, Any], saved: bool, tmp_path: Path) -> None:
    original = scattered(getattr(transformers, model)(getattr(transformers, config)(**HF_VIT, **args)))
    tensors = writers.transformers_file(original, tmp_path) if saved else original.state_dict()
    published = any(".encoder.layer.0.attention.attention.query.weight" in k for k in tensors)
    assert published == saved
    same(loaded(dict(tensors), "Hugging Face ViT", arch, **TINY_VIT), original, 32)


def test_transformers_vit_has_its_own_eps() -> None:
    """1e-12 where timm has 1e-6: with weights near zero, as before training, that moves logits."""
    original = transformers.ViTForImageClassification(transformers.ViTConfig(**HF_VIT)).eval()
    assert original.config.layer_norm_eps == 1e-12
    tensors = dict(original.state_dict())
    net = loaded(tensors, "Hugging Face ViT", "vit_tiny_patch16_224", **TINY_VIT)
    same(net, original, 32)
    timms = built("vit_tiny_patch16_224", **TINY_VIT)
    timms.load_state_dict(net.state_dict())
    assert not torch.allclose(logits(timms, 32), logits(original, 32), atol=1e-6)


MOBILEVIT = {  # as transformers' conversion script sets them: hidden_sizes, neck_hidden_sizes, expand_ratio
    "mobilevit_xxs": ([64, 80, 96], [16, 16, 24, 48, 64, 80, 320], 2.0),
    "mobilevit_xs": ([96, 120, 144], [16, 32, 48, 64, 80, 96, 384], 4.0),
    "mobilevit_s": ([144, 192, 240], [16, 32, 64, 96, 128, 160, 640], 4.0),
}
MOBILEVITV2 = {"mobilevitv2_050": 0.5, "mobilevitv2_075": 0.75, "mobilevitv2_100": 1.0, "mobilevitv2_200": 2.0}


def hf_mobilevit(arch: str) -> nn.Module:
    if arch in MOBILEVITV2:
        config = transformers.MobileViTV2Config(width_multiplier=MOBILEVITV2[arch], num_labels=CLASSES)
        return scattered(transformers.MobileViTV2ForImageClassification(config))
    hidden, neck, expand = MOBILEVIT[arch]
    config = transformers.MobileViTConfig(hidden_sizes=hidden, neck_hidden_sizes=neck, expand_ratio=expand, num_labels=CLASSES)
    return scattered(transformers.MobileViTForImageClassification(config))


@pytest.mark.parametrize("arch", [*MOBILEVIT, *MOBILEVITV2])
def test_transformers_mobilevit(arch: str, tmp_path: Path) -> None:
    original = hf_mobilevit(arch)
    tensors = writers.transformers_file(original, tmp_path)
    origin = "Hugging Face MobileViTv2" if arch in MOBILEVITV2 else "Hugging Face MobileViT"
    same(loaded(tensors, origin, arch), original, 64)
    _, found = translated(tensors)
    assert found.channels == ("either" if arch in MOBILEVITV2 else "bgr")
    assert "RGB" in found.note or "BGR" in found.note


# --- cvnets: the witness is transformers' conversion script ---------------------------------------------------------------


@pytest.mark.parametrize("arch", [*MOBILEVIT, *MOBILEVITV2])
def test_cvnets_mobilevit_as_transformers_converts_it(arch: str) -> None:
    version = 2 if arch in MOBILEVITV2 else 1
    tensors = writers.cvnets_mobilevit(scattered(built(arch)), version)
    witness = hf_mobilevit(arch)
    witness.load_state_dict(writers.as_transformers_converts(tensors, version))
    origin = "Apple cvnets MobileViTv2" if version == 2 else "Apple cvnets MobileViT"
    same(loaded(tensors, origin, arch), witness, 64)
    _, found = translated(tensors)
    assert found.channels == ("either" if version == 2 else "bgr")


# --- torchvision: the real modules ----------------------------------------------------------------------------------------


def torchvision_vit() -> nn.Module:
    return scattered(VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=128, num_classes=CLASSES))


@pytest.mark.parametrize("old", [False, True], ids=["today", "mlp names before 0.13"])
def test_torchvision_vit(old: bool) -> None:
    original = torchvision_vit()
    tensors = dict(original.state_dict())
    if old:
        renamed = {k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for k, v in tensors.items()}
        again = torchvision_vit()
        again.load_state_dict(renamed)  # torchvision takes these names itself
        tensors = renamed
    same(loaded(tensors, "torchvision ViT", "vit_tiny_patch16_224", **TINY_VIT), original, 32)


def test_torchvision_swin() -> None:
    original = scattered(
        SwinTransformer([4, 4], 16, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7], stochastic_depth_prob=0.0, num_classes=CLASSES)
    )
    tensors = dict(original.state_dict())
    net = loaded(tensors, "torchvision Swin", "swin_tiny_patch4_window7_224", **TINY_SWIN | {"img_size": 224})
    same(net, original, 224)
    _, found = translated(tensors)
    assert len(found.dropped) == 8
    spoilt = tensors | {"features.1.0.attn.relative_position_index": torch.zeros(2401, dtype=torch.long)}
    _, found = translated(spoilt)
    assert "layers.0.blocks.0.attn.relative_position_index" in found.tensors, "not what timm computes"


def test_torchvision_convnext() -> None:
    block = torchvision.models.convnext.CNBlockConfig
    stages = [block(8, 16, 1), block(16, 24, 2), block(24, 32, 2), block(32, None, 1)]
    original = scattered(torchvision.models.ConvNeXt(stages, num_classes=CLASSES))
    same(loaded(dict(original.state_dict()), "torchvision ConvNeXt", "convnext_tiny", **TINY_CONVNEXT), original, 64)


@pytest.mark.parametrize(
    ("theirs", "timms"),
    [("vit_b_16", "vit_base_patch16_224"), ("swin_t", "swin_tiny_patch4_window7_224"), ("convnext_tiny", "convnext_tiny")],
)
def test_torchvision_published_sizes(theirs: str, timms: str) -> None:
    with torch.device("cpu" if "swin" in theirs else "meta"):  # Swin's buffers are compared
        tensors = torchvision.models.get_model(theirs).state_dict()
    _, found = translated(tensors)
    assert shapes(found.tensors) == shapes(timm.create_model(timms, device="meta").state_dict())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_torchvision_resnets_have_timms_names(arch: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(arch).state_dict()
    assert shapes(theirs) == shapes(timm.create_model(arch, device="meta").state_dict())
    assert translation(theirs) is None


# --- Facebook and Microsoft: the witness is timm's own conversion of the published files ----------------------------------


@pytest.mark.parametrize(
    ("writer", "origin", "arch", "args", "size"),
    [
        (writers.facebook_xcit, "Facebook XCiT", "xcit_nano_12_p16_224", {"depth": 2, "embed_dim": 32}, 32),
        (writers.facebook_xcit, "Facebook XCiT", "xcit_nano_12_p8_224", {"depth": 2, "embed_dim": 32}, 32),
        (writers.facebook_deit3, "Facebook DeiT III", "deit3_small_patch16_224", TINY_VIT, 32),
        (writers.facebook_convnext, "Facebook ConvNeXt", "convnext_tiny", TINY_CONVNEXT, 64),
        (writers.facebook_convnext, "Facebook ConvNeXt", "convnextv2_tiny", TINY_CONVNEXT, 64),
        (writers.microsoft_swin, "Swin of Microsoft or timm before 0.9", "swin_tiny_patch4_window7_224", TINY_SWIN, 112),
    ],
)
def test_as_timm_converts_it(
    writer: Callable[[nn.Module], dict[str, Tensor]], origin: str, arch: str, args: dict[str, Any], size: int
) -> None:
    original = scattered(built(arch, **args))
    tensors = writer(original)
    assert set(tensors) != set(original.state_dict())
    net = loaded(tensors, origin, arch, **args)
    same(net, original, size)
    module = __import__(type(net).__module__, fromlist=["checkpoint_filter_fn"])
    extra = {"adapt_layer_scale": True} if "deit3" in arch else {}
    converted = module.checkpoint_filter_fn(dict(tensors), net, **extra)
    _, found = translated(tensors)
    assert set(converted) == set(found.tensors)
    assert all(torch.equal(converted[k], v) for k, v in found.tensors.items())


def test_facebook_xcit_class_attention_by_its_formula() -> None:
    """xcit.py, ClassAttention: qkv(x) as (batch, token, 3, head, channel), the class token asks; rows are q, then k, then v."""
    net = built("xcit_nano_12_p16_224", depth=1, embed_dim=32)
    scattered(net)
    fused = writers.facebook_xcit(net)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    attn: Any = net.get_submodule("cls_attn_blocks.0.attn")
    q, k, v = (
        (x @ fused["cls_attn_blocks.0.attn.qkv.weight"].T + fused["cls_attn_blocks.0.attn.qkv.bias"])
        .reshape(2, 5, 3, attn.num_heads, -1)
        .permute(2, 0, 3, 1, 4)
    )
    weights = ((q[:, :, :1] * k).sum(-1) * attn.scale).softmax(-1)
    expected = attn.proj((weights.unsqueeze(2) @ v).transpose(1, 2).reshape(2, 1, 32))
    again = loaded(fused, "Facebook XCiT", "xcit_nano_12_p16_224", depth=1, embed_dim=32)
    found = again.get_submodule("cls_attn_blocks.0.attn")(x)[:, :1]
    assert torch.allclose(found, expected, atol=1e-5)


def test_facebook_names_that_are_timms() -> None:
    """Facebook's CaiT and DeiT files differ from timm's by the wrapper alone (cait_models.py; models.py builds timm's ViT)."""
    for arch, own in (
        ("cait_xxs24_224", "blocks_token_only.0.attn.q.weight"),
        ("deit_tiny_distilled_patch16_224", "head_dist.bias"),
    ):
        net = timm.create_model(arch)
        tensors = writers.facebook_cait(net)
        assert f"module.{own}" in tensors
        assert translation({k.removeprefix("module."): v for k, v in tensors.items()}) is None


def test_swin_buffers_are_what_the_origin_computes() -> None:
    for side in (2, 7, 12):
        assert torch.equal(relative_position_index(side), writers.swin_index(side))
    for side, size in ((7, 56), (4, 8), (12, 96)):
        assert torch.equal(shifted_window_mask(side, size), writers.swin_mask(size, side, side // 2))


def test_swin_mask_of_another_grid_stays() -> None:
    net = built("swin_tiny_patch4_window7_224", **TINY_SWIN)
    tensors = writers.microsoft_swin(net)
    name = "layers.0.blocks.1.attn_mask"
    _, found = translated(tensors)
    assert name in found.dropped
    for other in (tensors[name][:3], tensors[name].roll(1, 0), torch.zeros_like(tensors[name])):
        assert name in translated(tensors | {name: other})[1].tensors


# --- strictness and partial files -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals() -> dict[str, dict[str, Tensor]]:
    block = torchvision.models.convnext.CNBlockConfig
    swin = built("swin_tiny_patch4_window7_224", **TINY_SWIN)
    return {
        "Facebook XCiT": writers.facebook_xcit(built("xcit_nano_12_p16_224", depth=1, embed_dim=32)),
        "Facebook DeiT III": writers.facebook_deit3(built("deit3_small_patch16_224", **TINY_VIT)),
        "Facebook ConvNeXt": writers.facebook_convnext(built("convnext_tiny", **TINY_CONVNEXT)),
        "Apple cvnets MobileViT": writers.cvnets_mobilevit(built("mobilevit_xxs"), 1),
        "Apple cvnets MobileViTv2": writers.cvnets_mobilevit(built("mobilevitv2_050"), 2),
        "Hugging Face MobileViT": hf_mobilevit("mobilevit_xxs").state_dict(),
        "Hugging Face MobileViTv2": hf_mobilevit("mobilevitv2_050").state_dict(),
        "Hugging Face ViT": transformers.ViTForImageClassification(transformers.ViTConfig(**HF_VIT)).state_dict(),
        "torchvision ViT": torchvision_vit().state_dict(),
        "torchvision Swin": SwinTransformer([4, 4], 16, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7]).state_dict(),
        "torchvision ConvNeXt": torchvision.models.ConvNeXt([block(8, None, 2)]).state_dict(),
        "Swin of Microsoft or timm before 0.9": writers.microsoft_swin(swin),
    }


def test_each_origin_is_known_by_itself_alone(originals: dict[str, dict[str, Tensor]]) -> None:
    assert list(originals) == [name for name, _, _ in TRANSLATIONS]
    for origin, tensors in originals.items():
        assert [name for name, known, _ in TRANSLATIONS if known(tensors)] == [origin]
        _, found = translated(tensors)
        assert not [name for name, known, _ in TRANSLATIONS if known(found.tensors)], "what is timm's needs no translation"


def test_timms_own_are_left_alone() -> None:
    for arch in ("xcit_nano_12_p16_224", "mobilevit_xxs", "cait_xxs24_224", "deit_tiny_patch16_224", "convnext_atto", "resnet18"):
        assert translation(timm.create_model(arch).state_dict()) is None
    assert translation({}) is None
    assert translation({"x": torch.zeros(())}) is None


@pytest.mark.parametrize("origin", [name for name, _, _ in TRANSLATIONS])
def test_partial_and_foreign_files(origin: str, originals: dict[str, dict[str, Tensor]]) -> None:
    known, convert = next((k, c) for name, k, c in TRANSLATIONS if name == origin)
    tensors = dict(originals[origin])
    for start in range(0, len(tensors), 7):
        part = {k: v for i, (k, v) in enumerate(tensors.items()) if i < start or i % 3}
        accounted(part, convert(part))
        known(part)
    odd = tensors | {"momentum_teacher.weight": torch.ones(3)}
    found = convert(odd)
    assert found.tensors["momentum_teacher.weight"].sum() == 3 and "momentum_teacher.weight" not in found.renamed
    for other, theirs in originals.items():
        accounted(theirs, convert(theirs)), other


@pytest.mark.parametrize("origin", [name for name, _, _ in TRANSLATIONS])
def test_both_sets_of_names(origin: str, originals: dict[str, dict[str, Tensor]]) -> None:
    """A file with a network under its own and under timm's names: copies must agree; where not, nothing is overwritten."""
    convert = next(c for name, _, c in TRANSLATIONS if name == origin)
    tensors = dict(originals[origin])
    first = convert(tensors)
    changed = {
        k: v for k, v in first.tensors.items() if k in first.renamed and k not in tensors and JOINED not in first.renamed[k]
    }
    both = convert(tensors | changed)
    assert set(both.tensors) >= set(changed)
    accounted(tensors | changed, both)
    new = next(k for k in reversed(changed) if first.renamed[k] not in first.tensors)  # old Swin shifts onto its own names
    if "qkv" not in first.renamed[new]:
        assert both.dropped[first.renamed[new]] == f"the same as {new}"
        other = convert(tensors | {new: changed[new] + 1.0})
        accounted(tensors | {new: changed[new]}, other)
        assert torch.equal(other.tensors[first.renamed[new]], tensors[first.renamed[new]])
        assert torch.equal(other.tensors[new], changed[new] + 1.0)


def test_incomplete_join_keeps_its_names(originals: dict[str, dict[str, Tensor]]) -> None:
    tensors = dict(originals["Hugging Face ViT"])
    del tensors["vit.layers.1.attention.k_proj.weight"]
    _, found = translated(tensors)
    assert "blocks.1.attn.qkv.weight" not in found.tensors
    assert "vit.layers.1.attention.q_proj.weight" in found.tensors
    assert found.renamed["blocks.0.attn.qkv.weight"].count(JOINED) == 2


def test_names_that_no_rule_knows_are_reported_by_the_loader() -> None:
    tensors = writers.cvnets_mobilevit(built("mobilevit_xxs"), 1) | {"layer_9.0.block.exp_1x1.block.conv.weight": torch.zeros(1)}
    _, found = translated(tensors)
    with pytest.raises(RuntimeError, match=r"layer_9\.0\.block\.exp_1x1"):
        built("mobilevit_xxs").load_state_dict(found.tensors)
