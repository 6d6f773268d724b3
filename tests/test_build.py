"""Architectures: published parameter counts, published names of weights, aliases, and errors that say what was expected."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import timm
import tomli_w
import torch

from interp.models.build import ALIASES, BUILDERS, build, resolve
from interp.types import InputError

TIMM = "timm, results/benchmark csv"
ROBUSTBENCH = "counted on RobustBench 1.1.1's own module"
LIGHT = "counted on timm's class with the arguments of vits-robustness-torch, src/models/models.py"
PARAMETERS: list[tuple[str, dict[str, Any], int, float, str]] = [
    # name, arch_args, classes, millions of parameters, where the number is from
    ("xcit_nano_12_p16_224", {}, 1000, 3.05, TIMM),
    ("xcit_small_12_p16_224", {}, 1000, 26.25, TIMM),
    ("xcit_small_24_p16_224", {}, 1000, 47.67, TIMM),
    ("xcit_medium_24_p16_224", {}, 1000, 84.40, TIMM),
    ("xcit_large_24_p16_224", {}, 1000, 189.10, TIMM),
    ("xcit_medium_12_p16_224", {}, 1000, 46.40, LIGHT),
    ("xcit_large_12_p16_224", {}, 1000, 103.79, LIGHT),
    ("xcit_small_12_p4_32", {}, 10, 25.87, LIGHT),
    ("xcit_medium_12_p4_32", {}, 10, 45.89, LIGHT),
    ("xcit_large_12_4_32", {}, 10, 103.03, LIGHT),
    ("deit_small_patch16_224", {}, 1000, 22.05, TIMM),
    ("cait_s12_224", {}, 1000, 25.61, LIGHT),
    ("mobilevit_xxs", {}, 1000, 1.27, TIMM),
    ("mobilevit_xs", {}, 1000, 2.32, TIMM),
    ("mobilevit_s", {}, 1000, 5.58, TIMM),
    ("mobilevitv2_050", {}, 1000, 1.37, TIMM),
    ("mobilevitv2_100", {}, 1000, 4.90, TIMM),
    ("mobilevitv2_200", {}, 1000, 18.45, TIMM),
    ("resnet50", {}, 1000, 25.56, TIMM),
    ("resnet_50_gelu", {}, 1000, 25.56, "as resnet50: an activation has no parameters"),
    ("wide_resnet50_2", {}, 1000, 68.88, TIMM),
    ("convnext_tiny", {}, 1000, 28.59, TIMM),
    ("swin_base_patch4_window7_224", {}, 1000, 87.77, TIMM),
    ("swin_large_patch4_window7_224", {}, 1000, 196.53, TIMM),
    ("resnet18_cifar", {}, 10, 11.17, "github.com/kuangliu/pytorch-cifar: 11,173,962"),
    ("resnet34_cifar", {}, 10, 21.28, ROBUSTBENCH),
    ("resnet50_cifar", {}, 10, 23.52, "github.com/kuangliu/pytorch-cifar: 23,520,842"),
    ("resnet101_cifar", {}, 10, 42.51, ROBUSTBENCH),
    ("resnet152_cifar", {}, 10, 58.16, ROBUSTBENCH),
    ("resnet_50_32", {}, 10, 23.52, "the same network as resnet50_cifar, other names"),
    ("preactresnet18", {}, 10, 11.17, "github.com/kuangliu/pytorch-cifar: 11,171,146"),
    ("preact_resnet", {"bn_before_fc": True, "out_shortcut": True}, 10, 11.17, ROBUSTBENCH),
    ("preact_resnet_dm", {}, 10, 12.55, ROBUSTBENCH),
    ("wrn_28_4", {}, 10, 5.85, ROBUSTBENCH),
    ("wrn_28_10", {}, 10, 36.48, "Zagoruyko & Komodakis (arXiv 1605.07146), table 4: 36.5 M"),
    ("wrn_34_10", {}, 10, 46.16, ROBUSTBENCH),
    ("wrn_70_16", {}, 10, 266.80, ROBUSTBENCH),
    ("wide_resnet_dm", {"depth": 28, "width": 10}, 10, 36.48, "as wrn_28_10: the same widths"),
    ("wide_resnet_dm", {"depth": 70, "width": 16}, 10, 266.80, "as wrn_70_16: the same widths"),
    ("wide_resnet_stages", {}, 10, 68.12, ROBUSTBENCH),
    ("convnext_t_cvst", {}, 1000, 28.63, ROBUSTBENCH),
    ("convnext_s_cvst", {}, 1000, 50.26, ROBUSTBENCH),
    ("convnext_b_cvst", {}, 1000, 88.75, ROBUSTBENCH),
    ("convnext_l_cvst", {}, 1000, 198.13, ROBUSTBENCH),
    ("vit_s_cvst", {}, 1000, 22.78, ROBUSTBENCH),
    ("vit_b_cvst", {}, 1000, 87.15, ROBUSTBENCH),
    ("vit_m_cvst", {}, 1000, 39.53, "counted on timm's DeiT-III-M with the stem of nmndeep/revisiting-at"),
    ("mobilevit_32", {"strides": [1, 2, 2, 2, 1, 1]}, 1000, 2.32, "as mobilevit_xs: strides have no parameters"),
]


@pytest.mark.parametrize(("arch", "args", "classes", "millions", "source"), PARAMETERS)
def test_parameter_counts_are_the_published_ones(
    arch: str, args: dict[str, Any], classes: int, millions: float, source: str
) -> None:
    with torch.device("meta"):
        net = build(arch, num_classes=classes, arch_args=args)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.0051), source


PUBLISHED_NAMES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "resnet_cifar": (
        {"depth": 50},
        {"conv1.weight", "bn1.running_mean", "layer1.0.shortcut.0.weight", "layer1.0.shortcut.1.bias", "layer4.2.conv3.weight"},
    ),
    "preact_resnet": (
        {"bn_before_fc": True},
        {
            "conv1.weight",
            "layer1.0.bn1.weight",
            "layer2.0.shortcut.0.weight",
            "layer4.1.conv2.weight",
            "bn.weight",
            "linear.bias",
        },
    ),
    "preact_resnet_dm": (
        {},
        {
            "conv_2d.weight",
            "layer_0.0.batchnorm_0.weight",
            "layer_1.0.conv_2d_1.weight",
            "layer_1.0.shortcut.weight",
            "logits.bias",
        },
    ),
    "wide_resnet": (
        {"depth": 10, "width": 1, "sub_block1": True, "activation": "pssilu"},
        {
            "block1.layer.0.bn1.weight",
            "sub_block1.layer.0.conv2.weight",
            "block2.layer.0.convShortcut.weight",
            "bn1.bias",
            "fc.bias",
        }
        | {"activation.alpha", "activation.beta", "block1.layer.0.activation.alpha"},
    ),
    "wide_resnet_dm": (
        {"depth": 10, "width": 1},
        {
            "init_conv.weight",
            "layer.0.block.0.batchnorm_0.weight",
            "layer.1.block.0.conv_0.weight",
            "layer.1.block.0.shortcut.weight",
        }
        | {"batchnorm.bias", "logits.weight"},
    ),
    "wide_resnet_stages": ({}, {"stem_conv.weight", "blocks.0.layer.0.bn1.weight", "blocks.2.layer.4.conv2.weight", "fc.bias"}),
    "convnext_convstem": ({}, {"stem.stem.0.weight", "stem.stem.4.bias", "stages.3.blocks.2.gamma", "head.fc.weight"}),
    "vit_convstem": (
        {},
        {"patch_embed.proj.stem.12.weight", "patch_embed.proj.stem.10.bias", "blocks.11.attn.qkv.bias", "norm.weight"},
    ),
}


@pytest.mark.parametrize("arch", PUBLISHED_NAMES)
def test_weights_carry_the_names_of_published_files(arch: str) -> None:
    args, expected = PUBLISHED_NAMES[arch]
    with torch.device("meta"):
        found = set(build(arch, num_classes=10, arch_args=args).state_dict())
    assert expected <= found
    assert not any(k.startswith(("act.", "mean", "std")) for k in found)


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_stand_for_what_can_be_built(alias: str) -> None:
    name, args = resolve(alias)
    assert name in BUILDERS or timm.is_model(name)
    assert name not in ALIASES and not timm.is_model(alias)
    assert tomllib.loads(tomli_w.dumps(args)) == args, "a card must be able to hold the arguments"
    assert resolve(alias, {"x": 1}) == (name, args | {"x": 1})


def test_every_alias_builds() -> None:
    counted = [resolve(arch, args) for arch, args, _, _, _ in PARAMETERS]
    others = {repr(built): built for built in map(resolve, ALIASES) if built not in counted}
    with torch.device("meta"):
        for arch, args in others.values():
            small = args | {"depth": 10} if arch == "wide_resnet" else args  # the rest of its blocks are alike
            assert build(arch, num_classes=3, arch_args=small)


def test_given_arguments_replace_those_of_an_alias() -> None:
    assert resolve("wrn_28_10", {"width": 2}) == ("wide_resnet", {"depth": 28, "width": 2})
    assert resolve("resnet50", {"a": 1}) == ("resnet50", {"a": 1})
    with torch.device("meta"):
        assert build("wrn_28_10", num_classes=10, arch_args={"width": 2}).fc.in_features == 128
        m12 = build("xcit_p4", num_classes=10, arch_args={"variant": "xcit_medium_12_p16_224"})
    assert len(m12.blocks) == 12 and m12.embed_dim == 512


def test_resolving_gives_arguments_of_ones_own() -> None:
    resolve("wrn_28_10")[1]["depth"] = 1
    assert resolve("wrn_28_10") == ("wide_resnet", {"depth": 28, "width": 10})


@pytest.mark.parametrize(
    ("arch", "args", "said"),
    [
        ("wide_resnt", {}, r"no architecture is called 'wide_resnt'; the nearest names are .*wide_resnet"),
        ("xcit_smal_12_p4_32", {}, r"nearest names are xcit_small_12_p4_32"),
        ("zzzz", {}, r"the nearest names are none"),
        ("wide_resnet", {"depth": 29}, r"depth 6·n \+ 4 .* found 29"),
        ("wide_resnet", {"widen_factor": 10}, r"does not take these arguments: \{'widen_factor': 10\}"),
        ("wide_resnet", {"activation": "sine"}, r"no activation is called 'sine'; expected one of relu, silu"),
        ("wide_resnet_stages", {"widths": [16, 320]}, r"widths of the stem and three stages .* found \[16, 320\]"),
        ("resnet_cifar", {"depth": 20}, r"no ResNet of depth 20; expected one of 18, 34, 50"),
        ("preact_resnet_dm", {"depth": 50}, r"depth 18 or 34; found 50"),
        ("convnext_convstem", {"variant": "huge"}, r"variants tiny, small, base, large; found 'huge'"),
        ("vit_convstem", {"variant": "tiny"}, r"variants small, medium, base; found 'tiny'"),
        (
            "xcit_p4",
            {"variant": "xcit_small_12_p8_224"},
            r"patches of 16, found variant 'xcit_small_12_p8_224'; .*xcit_nano_12_p16_224",
        ),
        ("mobilevit_32", {"variant": "mobilevit_m", "strides": [1]}, r"mobilevit_xxs, .*found 'mobilevit_m'"),
    ],
)
def test_wrong_names_and_arguments_say_what_was_expected(arch: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(arch, num_classes=10, arch_args=args)
