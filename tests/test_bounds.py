"""Files and cards that ask for the absurd: a typed error or an answer, soon, in little memory, and nothing fetched."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import tomli_w
import torch
from safetensors.torch import save_file
from torch import Tensor

import interp
from interp.loading.detect import detect
from interp.models.answers import Said
from interp.models.build import build
from interp.models.describe import as_json, as_text
from interp.models.inspect import inspect
from interp.models.known import CARD, sidecar
from interp.types import Card, InputError, Preprocess
from tests.test_origins import network

SECONDS = 20  # a hang, not a timing: each of these takes a fraction of a second


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a checkpoint made the program open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def plain_card(**changes: Any) -> dict[str, Any]:
    card = {"id": "x", "arch": "resnet_cifar", "num_classes": 10, "arch_args": {"depth": 18}}
    return card | {"preprocess": {"size": 32, "resize": 32, "mean": [0.0] * 3, "std": [1.0] * 3}} | changes


CARDS: dict[str, dict[str, Any]] = {
    "fetches weights": {
        "arch": "resnet18",
        "arch_args": {"pretrained": True, "pretrained_cfg": {"url": "http://127.0.0.1:9/evil.pth"}},
    },
    "reads a path": {"arch": "resnet18", "arch_args": {"checkpoint_path": "/etc/passwd"}},
    "deep": {"arch_args": {"depth": 20_000}},
    "deep list": {"arch": "wide_resnet_stages", "arch_args": {"widths": [16, 16, 16, 16], "depths": [199, 199, 199]}},
    "wide": {"arch": "xcit_p4", "arch_args": {"embed_dim": 10**9}},
    "many classes": {"num_classes": 10**14},
    "words for numbers": {"num_classes": "10"},
    "no such tag": {"arch": "resnet18.evil"},
    "no word": {"arch": 5},
    "code for a word": {"arch": "resnet18", "arch_args": {"act_layer": "__import__('os').system('true')"}},
    "arguments no dict": {"arch_args": "abc"},
    "a date": {"arch_args": {"depth": __import__("datetime").date(2020, 1, 1)}},
    "labels no list": {"labels": "abcdefghij"},
    "threat of nothing": {"threat": {"norm": "linf", "eps": 0.0}},
    "threat in words": {"threat": {"norm": "linf", "eps": "x"}},
    "mean that is no number": {"preprocess": {"mean": [float("nan")] * 3}},
    "std without end": {"preprocess": {"std": [float("inf")] * 3}},
    "half a pixel": {"preprocess": {"size": 32.5}},
    "all the pixels": {"preprocess": {"size": 10**9, "resize": 10**9}},
}


@pytest.mark.parametrize("place", ["beside", "inside"])
@pytest.mark.parametrize("name", CARDS)
def test_an_absurd_card_is_refused(name: str, place: str, tmp_path: Path) -> None:
    weights = {k: v.contiguous() for k, v in build("resnet_cifar", num_classes=10).state_dict().items()}
    text = tomli_w.dumps(plain_card(**CARDS[name]))
    path = tmp_path / "x.safetensors"
    save_file(weights, path, metadata={CARD: text} if place == "inside" else None)
    if place == "beside":
        (tmp_path / "x.toml").write_text(text, encoding="utf-8")
    start = time.monotonic()
    with pytest.raises(InputError):
        as_text(inspect(path))
    with pytest.raises(InputError):
        interp.load(path)
    assert time.monotonic() - start < SECONDS


def repeated(names: dict[str, tuple[int, ...]], block: str, like: dict[str, tuple[int, ...]], times: int) -> dict[str, Tensor]:
    """A state dict of some named shapes, and one block repeated."""
    shapes = names | {f"{block}.{i}.{k}": v for i in range(times) for k, v in like.items()}
    return {k: torch.zeros(v) for k, v in shapes.items()}


DEEP: dict[str, Callable[[], dict[str, Tensor]]] = {
    "xcit": lambda: repeated(
        {"cls_token": (1, 1, 128), "head.weight": (10, 128)}
        | {f"patch_embed.proj.{i}.0.weight": (1, 1, 3, 3) for i in (0, 2, 4, 6)},
        "blocks",
        {"attn.temperature": (4, 1, 1)},
        3000,
    ),
    "cait": lambda: repeated(
        {"pos_embed": (1, 196, 192), "blocks_token_only.0.gamma_1": (192,), "head.weight": (10, 192)},
        "blocks",
        {"attn.proj_l.weight": (4, 4)},
        3000,
    ),
    "wide resnet": lambda: repeated(
        {"conv1.weight": (16, 3, 3, 3), "fc.weight": (10, 64)}, "block1.layer", {"bn1.weight": (16,)}, 3000
    ),
    "layers": lambda: repeated({"fc.weight": (10, 4)}, "layer", {"w": (1,)}, 5000),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_tower_of_names_builds_nothing(name: str, tmp_path: Path) -> None:
    torch.save(DEEP[name](), tmp_path / "m.pt")
    start = time.monotonic()
    with pytest.raises(InputError):
        inspect(tmp_path / "m.pt")
    assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (2, 0, 0, 0)])
@pytest.mark.parametrize(
    "arch", ["xcit_nano_12_p16_224", "deit_tiny_patch16_224", "mobilevit_xxs", "resnet18", "resnet_cifar", "wide_resnet"]
)
def test_known_names_with_other_shapes_are_recognised_as_nothing_or_refused(arch: str, shape: tuple[int, ...]) -> None:
    args = {"depth": 16, "width": 1} if arch == "wide_resnet" else {}
    with torch.device("meta"):
        names = build(arch, num_classes=10, arch_args=args).state_dict()
    for key in list(names)[:40] + list(names)[-4:]:
        assert isinstance(detect({k: torch.zeros(shape) if k == key else torch.empty_like(v) for k, v in names.items()}), list)


@pytest.mark.parametrize(
    "arch", ["cait_xxs24_224", "pit_ti_224", "swin_tiny_patch4_window7_224", "efficientnet_b0", "regnety_002"]
)
def test_any_of_timms_is_described(arch: str, tmp_path: Path) -> None:
    torch.save(timm.create_model(arch, num_classes=7).state_dict(), tmp_path / "m.pt")
    found = inspect(tmp_path / "m.pt", Said(arch=arch, normalise="imagenet"))
    assert found.settled and found.classes == 7
    assert as_json(found)["macs"] > 1e6 and arch in as_text(found)


def test_a_size_that_the_network_does_not_take_is_refused(tmp_path: Path) -> None:
    torch.save(network("deit_tiny_patch16_224", {}).state_dict(), tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"does not take images of 100 × 100 pixels.*say another --size"):
        interp.load(tmp_path / "m.pt", normalise="none", size=100)
    with pytest.raises(InputError, match=r"does not take images of 100 × 100 pixels"):
        as_text(inspect(tmp_path / "m.pt", Said(normalise="none", size=100)))


def test_a_network_without_classes_is_refused(tmp_path: Path) -> None:
    for classes, says in ((0, "no classifier"), (1, r"ends in 1 outputs")):
        torch.save(timm.create_model("resnet18", num_classes=classes).state_dict(), tmp_path / "m.pt")
        with pytest.raises(InputError, match=says):
            inspect(tmp_path / "m.pt")


@pytest.mark.parametrize(("eps", "expected"), [(4, 4 / 255), (8.0, 8 / 255), (1, 1 / 255), (4 / 255, 4 / 255)])
def test_the_light_recipes_eps_is_in_255ths(eps: float, expected: float, tmp_path: Path) -> None:
    options = {"model": "resnet18", "adv_training": "pgd", "attack_eps": eps, "attack_norm": "linf", "no_normalize": True}
    torch.save({"model": network("resnet18", {}).state_dict(), "version": 3, "hparams": options}, tmp_path / "m.pt")
    found = inspect(tmp_path / "m.pt")
    assert found.threat is not None and found.threat.value.norm == "linf"
    assert found.threat.value.eps == pytest.approx(expected)


def test_a_card_belongs_to_the_whole_name(tmp_path: Path) -> None:
    assert sidecar(tmp_path / "m.linf.pt").name == "m.linf.toml" and sidecar(tmp_path / "m.pth.tar").name == "m.toml"
    path = tmp_path / "m.pt"
    torch.save(build("resnet_cifar", num_classes=10).state_dict(), path)
    (tmp_path / "m.toml").write_text("[project]\nname = 'another program'\n")
    assert inspect(path).card is None
    card = Card("m", "resnet_cifar", 10, Preprocess(32, 32), {"depth": 18})
    (tmp_path / "m.toml").write_text(card.to_toml(), encoding="utf-8")
    assert inspect(path).settled
    (tmp_path / "m.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"m\.toml is no text"):
        inspect(path)


@pytest.mark.parametrize("name", ["a\x1b[2J", "x" * 500, "a\nb"])
def test_names_that_are_no_names_are_refused_without_printing_them(name: str, tmp_path: Path) -> None:
    torch.save({name: torch.ones(1), "fc.weight": torch.ones(3, 3)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"which is no name") as caught:
        inspect(tmp_path / "m.pt")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_two_names_that_become_one_are_refused(tmp_path: Path) -> None:
    torch.save({1: torch.ones(1), "1": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match="two weights are called 1"):
        inspect(tmp_path / "m.pt")


def test_numbers_beyond_single_precision_and_negative_variances_are_refused(tmp_path: Path) -> None:
    weights = build("resnet_cifar", num_classes=10).double().state_dict()
    for key, value, says in (("fc.weight", 1e300, "beyond single precision"), ("bn1.running_var", -1.0, "variances below zero")):
        key = key.replace("fc", "linear")
        torch.save({k: torch.full_like(v, value) if k == key else v for k, v in weights.items()}, tmp_path / "m.pt")
        with pytest.raises(InputError, match=says):
            interp.load(tmp_path / "m.pt", normalise="none")


def test_names_beside_the_network_are_told_and_printable(tmp_path: Path) -> None:
    weights = {f"model.{k}": v for k, v in build("resnet_cifar", num_classes=10).state_dict().items()}
    content = {"pytorch-lightning_version": "2", "state_dict": weights | {"loss\x1b[2J.weight": torch.ones(2)}}
    torch.save(content, tmp_path / "m.ckpt")
    found = inspect(tmp_path / "m.ckpt", Said(normalise="none"))
    assert "model.* was taken; the LightningModule also holds loss" in found.weights.notes[0]
    assert all(name.isprintable() for name in found.weights.dropped) and len(found.weights.dropped) == 1
