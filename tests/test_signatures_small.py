"""Signatures of our own architectures: shapes of a built network → candidates that rebuild exactly those shapes."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch

from interp.loading.candidate import Candidate, Shapes
from interp.loading.signatures_small import SIGNATURES_SMALL
from interp.models.build import BUILDERS, build, resolve
from interp.models.load import shipped
from interp.types import Card


@functools.cache
def _shapes(arch: str, args: str, classes: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        net = build(arch, num_classes=classes, arch_args=json.loads(args))
        return {k: v.shape for k, v in net.state_dict().items()}


def shapes_of(arch: str, args: dict[str, Any], classes: int = 10) -> dict[str, torch.Size]:
    return _shapes(arch, json.dumps(args), classes)


def detect(shapes: Shapes) -> list[Candidate]:
    return [c for signature in SIGNATURES_SMALL for c in signature(shapes)]


BUILT: list[tuple[str, dict[str, Any], int]] = [
    ("xcit_p4", {}, 10),
    ("xcit_p4", {"embed_dim": 64, "depth": 6}, 10),
    ("xcit_p4", {"embed_dim": 32, "depth": 2}, 10),
    ("xcit_p4", {"embed_dim": 96, "num_heads": 6, "depth": 3, "tokens_norm": True}, 10),
    ("xcit_p4", {"depth": 3}, 10),
    ("xcit_p4", {"variant": "xcit_tiny_24_p16_224"}, 100),
    ("xcit_p4", {"variant": "xcit_small_12_p16_224"}, 10),
    ("xcit_p4", {"variant": "xcit_medium_24_p16_224", "depth": 12}, 10),
    ("xcit_p4", {"variant": "xcit_large_24_p16_224", "depth": 12}, 100),
    ("xcit_p4", {"embed_dim": 768, "num_heads": 8, "tokens_norm": True}, 10),
    ("xcit_p4", {"depth": 24}, 10),
    *(("mobilevit_32", {"variant": f"mobilevit_{v}", "strides": [1, 2, 2, 2, 1, 1]}, 10) for v in ("xxs", "xs", "s")),
    ("resnet50_32", {}, 10),
    ("resnet50_32", {"width": 16, "stem_stride": 2, "output_stride": 16}, 10),
    ("resnet50_32", {"activation": "gelu"}, 10),
    ("resnet_32", {"depth": 18}, 10),
    ("resnet_32", {"depth": 34, "width": 32, "stem_stride": 2}, 10),
    ("resnet_32", {"depth": 50, "base_width": 128}, 10),
    ("resnet_32", {"depth": 101}, 10),
    *(("resnet_cifar", {"depth": depth}, 10) for depth in (18, 34, 50, 101, 152)),
    *(("preact_resnet", {"depth": depth}, 10) for depth in (18, 34)),
    ("preact_resnet", {"depth": 50, "out_shortcut": True}, 100),
    ("preact_resnet", {"depth": 18, "bn_before_fc": True, "out_shortcut": True}, 100),
    ("preact_resnet", {"depth": 18, "bn_before_fc": True}, 100),
    *(("preact_resnet_dm", {"depth": depth, "activation": act}, 10) for depth in (18, 34) for act in ("silu", "relu")),
    *(
        ("wide_resnet", {"depth": d, "width": w}, 10)
        for d, w in ((28, 10), (28, 4), (34, 10), (34, 15), (34, 20), (40, 2), (70, 16))
    ),
    ("wide_resnet", {"depth": 34, "width": 10, "sub_block1": True}, 100),
    ("wide_resnet", {"depth": 28, "width": 4, "standardise": True}, 10),
    ("wide_resnet", {"depth": 34, "width": 20, "sub_block1": True, "bias_last": False, "normalise_last": True}, 10),
    ("wide_resnet", {"depth": 28, "width": 10, "activation": "pssilu"}, 10),
    *(
        ("wide_resnet_dm", {"depth": d, "width": w, "activation": "silu"}, 10)
        for d, w in ((28, 10), (34, 20), (70, 16), (94, 16))
    ),
    ("wide_resnet_dm", {"depth": 28, "width": 10, "activation": "relu"}, 100),
    ("wide_resnet_stages", {"widths": [16, 320, 640, 512], "depths": [5, 5, 5]}, 10),
    *(("convnext_convstem", {"variant": v}, 1000) for v in ("tiny", "small", "base", "large")),
    *(("vit_convstem", {"variant": v}, 1000) for v in ("small", "medium", "base")),
    ("vit_convstem", {"variant": "small", "img_size": 384}, 10),
]


def test_every_builder_is_among_those_built_here() -> None:
    assert {arch for arch, _, _ in BUILT} == set(BUILDERS) - {"xcit_p8"}  # its names and shapes are those of xcit_p4


def test_patches_of_8_have_the_shapes_of_patches_of_4() -> None:
    args = {"embed_dim": 64, "depth": 6}
    assert shapes_of("xcit_p8", args) == shapes_of("xcit_p4", args)


@pytest.mark.parametrize(("arch", "args", "classes"), BUILT, ids=lambda v: str(v))
def test_shapes_of_a_built_network_give_it_back(arch: str, args: dict[str, Any], classes: int) -> None:
    shapes = shapes_of(arch, args, classes)
    found = detect(shapes)
    assert any(c.arch == arch and c.arch_args == args for c in found), found
    for c in found:
        assert shapes_of(c.arch, c.arch_args, c.num_classes) == shapes
        assert c.num_classes == classes and c.evidence and all(c.evidence)
        assert resolve(c.arch)[0] == c.arch, "an alias would make one network of two names"
    questions = [tuple(sorted(c.choice)) for c in found]
    assert len(set(questions)) == 1, "candidates are told apart by the same questions"
    assert len({tuple(sorted(c.choice.items())) for c in found}) == len(found), "and by different answers"
    assert len(found) == 1 or questions[0], "more than one candidate leaves something open"


def test_the_first_candidate_is_the_commonest() -> None:
    first = {
        ("wide_resnet_dm", "silu"): shapes_of("wide_resnet_dm", {"depth": 28, "width": 10}),
        ("preact_resnet_dm", "silu"): shapes_of("preact_resnet_dm", {}),
        ("preact_resnet", "the input"): shapes_of("preact_resnet", {}),
        ("preact_resnet", "the activated input"): shapes_of("preact_resnet", {"bn_before_fc": True}),
        ("wide_resnet", "yes"): shapes_of("wide_resnet", {"depth": 28, "width": 4}),
    }
    for (arch, answer), shapes in first.items():
        found = detect(shapes)[0]
        assert found.arch == arch and answer in found.choice.values()
    strides = [c.choice for c in detect(shapes_of("resnet50_32", {}))]
    assert strides[0] == {"stem stride": "1", "output stride": "32", "activation": "relu"}
    assert {"stem stride": "2", "output stride": "16", "activation": "relu"} in strides


def test_sizes_are_those_of_the_definition() -> None:
    assert {c.size for c in detect(shapes_of("vit_convstem", {"variant": "small", "img_size": 384}))} == {384}
    assert {c.size for c in detect(shapes_of("convnext_convstem", {}))} == {224}
    assert {c.size for c in detect(shapes_of("wide_resnet", {"depth": 28, "width": 10}))} == {32}


@pytest.mark.parametrize(
    "arch", ["resnet50", "resnet18", "deit_small_patch16_224", "convnext_tiny", "xcit_nano_12_p8_224", "mobilevitv2_050", "vgg11"]
)
def test_other_architectures_are_not_ours(arch: str) -> None:
    assert detect(shapes_of(arch, {})) == []


@pytest.mark.parametrize(
    "arch", ["wide_resnet", "wide_resnet_dm", "preact_resnet", "preact_resnet_dm", "resnet_cifar", "resnet_32", "xcit_p4"]
)
def test_incomplete_shapes_raise_nothing(arch: str) -> None:
    shapes = shapes_of(arch, {})
    for dropped in shapes:
        for c in detect({k: v for k, v in shapes.items() if k != dropped}):
            assert c.arch and c.evidence
    for reshaped in (k for k in shapes if k.endswith("weight")):
        detect(shapes | {reshaped: torch.Size(())})
        detect(shapes | {reshaped: torch.Size((0,))})
    assert detect({}) == []


def test_shipped_models_are_found_from_their_shapes() -> None:
    for card in (Card.read(p) for p in shipped().values()):
        name, args = resolve(card.arch, card.arch_args)
        found = detect(shapes_of(name, args, card.num_classes))
        assert any(c.arch == name and c.arch_args == args for c in found), (card.id, found)
