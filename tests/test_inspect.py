"""What is said of a file, in which order it is believed, and how labelled images settle the rest."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.loading.formats import unwrap
from interp.models.answers import Said
from interp.models.describe import as_json, as_text
from interp.models.inspect import inspect
from interp.models.load import load_as
from interp.models.model import Model
from interp.models.normalise import NORMALISERS, name_of, normaliser
from interp.models.settle import doubt
from interp.types import Batch, Card, InputError
from tests import wrappers, writers
from tests.test_origins import network

SHIPPED = Path(__file__).parents[1] / "checkpoints"
Make = Callable[..., Model]


def saved(path: Path, tensors: Any) -> Path:
    torch.save(tensors, path)
    return path


def small() -> dict[str, Tensor]:
    return {"a.weight": torch.ones(2), "b.weight": torch.ones(3)}


# ---- unwrapping --------------------------------------------------------------------------------------------------------------


def test_each_removed_wrapper_is_said_in_order() -> None:
    content = {"epoch": 1, "state_dict": {"net": {f"module._orig_mod.model.{k}": v for k, v in small().items()}}}
    found = unwrap(content)
    assert list(found.tensors) == ["a.weight", "b.weight"] and found.source["a.weight"] == "module._orig_mod.model.a.weight"
    assert found.did == ("took state_dict", "took net", "removed _orig_mod.", "removed module.", "removed model.")
    assert found.facts["epoch"] == 1


@pytest.mark.parametrize(("ema", "value", "copies"), [(None, 2.0, "ema"), (True, 2.0, "ema"), (False, 1.0, "raw")])
@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_of_two_copies_the_one_asked_for_is_taken_and_said(key: str, ema: bool | None, value: float, copies: str) -> None:
    averaged = {k: 2 * v for k, v in small().items()}
    found = unwrap({"state_dict": small(), key: averaged}, ema=ema)
    assert found.tensors["a.weight"][0] == value and found.copies == copies
    assert "holds the" in found.did[0]
    beside = {f"net.{k}": v for k, v in small().items()} | {f"ema_model.{k}": v for k, v in averaged.items()}
    inside = unwrap(beside, ema=ema)
    assert inside.tensors["a.weight"][0] == value and inside.copies == copies and len(inside.dropped) == 2


def test_a_copy_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no averaged copy.*leave --ema out"):
        unwrap({"state_dict": small()}, ema=True)
    with pytest.raises(InputError, match=r"only an averaged copy \(ema\); leave --raw out"):
        unwrap({"ema": small(), "epoch": 1}, ema=False)


def test_copies_that_should_agree_and_do_not_are_refused() -> None:
    weights = {f"model.{k}": v for k, v in small().items()}
    equal = weights | {f"attacker.model.{k}": v.clone() for k, v in small().items()}
    assert len(unwrap({"model": equal}).dropped) == 2
    with pytest.raises(InputError, match=r"attacker\.model\.b\.weight differs from model\.b\.weight"):
        unwrap({"model": equal | {"attacker.model.b.weight": torch.zeros(3)}})
    with pytest.raises(InputError, match=r"module\.a and _orig_mod\.module\.a both become|both become module\.a"):
        unwrap({"_orig_mod.module.a": torch.ones(1), "module.a": torch.ones(1)})


@pytest.mark.parametrize(
    ("names", "mean", "std"),
    [
        (("normalize.mean", "normalize.std"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
        (("normalizer.new_mean", "normalizer.new_std"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
        (("mu", "sigma"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
        (("0.mean", "0.std"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
        (("mean", "std"), (102.0, 127.5, 153.0), (51.0, 63.75, 76.5)),  # in units of 0 to 255
    ],
)
def test_a_normaliser_inside_is_read_and_left_out(names: tuple[str, str], mean: Any, std: Any) -> None:
    body = {f"1.{k}" if names[0] == "0.mean" else k: v for k, v in small().items()}
    found = unwrap(body | {names[0]: torch.tensor(mean).view(1, 3, 1, 1), names[1]: torch.tensor(std).view(1, 3, 1, 1)})
    assert found.mean == pytest.approx((0.4, 0.5, 0.6)) and found.std == pytest.approx((0.2, 0.25, 0.3))
    assert set(found.tensors) == {"a.weight", "b.weight"} and set(found.dropped) == set(names)


def test_two_normalisers_must_agree() -> None:
    one = {"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.5)}
    same = {f"normalize.{k}": v for k, v in one.items()}
    assert unwrap(small() | one | same).mean == (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match=r"two normalisers that differ: .*--normalise"):
        unwrap(small() | one | {"normalize.mean": torch.zeros(3), "normalize.std": torch.ones(3)})


# ---- whom to believe ---------------------------------------------------------------------------------------------------------


def test_training_options_answer_what_shapes_cannot(tmp_path: Path) -> None:
    net = network("xcit_nano_12_p16_224", {})
    wrappers.vits_training(net, tmp_path / "best.pth.tar", arch="xcit_nano_12_p16_224")
    found = inspect(tmp_path / "best.pth.tar")
    assert (
        found.settled
        and found.arch is not None
        and found.arch.source == "the file's training options (arch = 'xcit_nano_12_p16_224')"
    )
    assert found.normaliser is not None and found.normaliser.value == NORMALISERS["none"]
    assert found.threat is not None and found.threat.value.eps == pytest.approx(4 / 255)
    assert interp.load(tmp_path / "best.pth.tar").robust


def test_timms_training_without_a_mean_takes_the_models_own(tmp_path: Path) -> None:
    wrappers.timm_training(network("mobilevit_xxs", {}), tmp_path / "m.pth.tar", arch="mobilevit_xxs", said=False)
    found = inspect(tmp_path / "m.pth.tar")
    assert found.normaliser is not None and found.normaliser.value == NORMALISERS["none"]  # MobileViT's, as Apple trained it
    assert found.normaliser.source.startswith("timm's own for mobilevit_xxs, since")
    assert found.settled and found.weights.copies == "ema"


def test_the_callers_word_comes_first_and_a_contradiction_is_said(tmp_path: Path) -> None:
    wrappers.robustbench(network("resnet18", {}), tmp_path / "m.pt")
    own = inspect(tmp_path / "m.pt", Said(arch="resnet18"))
    assert own.normaliser is not None and own.normaliser.source == "the file's own normaliser" and not own.warnings
    told = inspect(tmp_path / "m.pt", Said(arch="resnet18_gelu", normalise="none", size=160, channels="bgr"))
    card = told.describe()
    assert card.arch_args == {"act_layer": "gelu"} and card.preprocess.mean == (0, 0, 0)
    assert card.preprocess.size == 160 and card.preprocess.channels == "bgr"
    assert "the file holds a normaliser with imagenet; yours is used" in told.warnings[0]


def test_what_is_open_is_asked_for_with_the_words_to_say(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", network("resnet18", {}).state_dict())
    found = inspect(path)
    assert not found.settled and [c.choice for c in found.fits] == [{"activation": "relu"}, {"activation": "gelu"}]
    first, second = found.questions()
    assert "--arch resnet18 (activation relu) | --arch resnet18 --arch-arg act_layer=gelu (activation gelu)" in first
    assert "--normalise none|imagenet" in second
    with pytest.raises(InputError, match=r"m\.pt: shapes cannot tell these apart.*Or give labelled images"):
        interp.load(path)
    assert inspect(path, Said(arch_args={"act_layer": "gelu"})).arch is not None  # one answer narrows the rest


def test_a_wrong_architecture_is_refused_with_those_that_fit(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", network("resnet18", {}).state_dict())
    with pytest.raises(InputError, match=r"does not fit resnet34: missing: layer1.2.*names and shapes fit --arch resnet18 \| "):
        inspect(path, Said(arch="resnet34"))
    with pytest.raises(InputError, match=r"no architecture is called 'resnet81'; the nearest names are .*resnet18"):
        inspect(path, Said(arch="resnet81"))


def test_a_name_the_weights_do_not_fit_is_not_believed(tmp_path: Path) -> None:
    net = network("resnet_cifar", {"depth": 18})
    found = inspect(saved(tmp_path / "m.pt", {"arch": "resnet50", "state_dict": net.state_dict()}))
    assert found.arch is not None and found.arch.value.arch == "resnet_cifar"
    assert "calls itself resnet50, which its weights do not fit" in found.warnings[0]


def test_counters_that_old_files_lack_are_filled_and_said(tmp_path: Path) -> None:
    wrappers.profiled(network("resnet18", {}), tmp_path / "m.pt")
    found = inspect(tmp_path / "m.pt", Said(arch="resnet18", normalise="none"))
    assert len(found.filled) == 20 and "20 counters the file lacks" in as_text(found)


def test_a_copied_file_is_known_by_its_bytes_or_by_the_card_inside(checkpoints: Path, published: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy_of.safetensors"
    shutil.copy(published / "tiny_linf.safetensors", copy)
    found = inspect(copy)
    assert found.arch is not None and found.arch.source == "the card inside the file"
    assert interp.load(copy).digest == interp.load("tiny_linf").digest
    bytes_only = saved(tmp_path / "tensors.pt", {k: v.clone() for k, v in found.weights.tensors.items()})
    assert not inspect(bytes_only).settled
    card = dataclasses.replace(Card.read(checkpoints / "tiny_linf.toml"), sha256=inspect(bytes_only).contents.sha256)
    (checkpoints / "known.toml").write_text(card.to_toml(), encoding="utf-8")
    by_bytes = inspect(bytes_only)
    assert by_bytes.settled and by_bytes.arch is not None and by_bytes.arch.source == "the card of tiny_linf (same sha256)"


# ---- settling ----------------------------------------------------------------------------------------------------------------


def test_labelled_images_settle_architecture_and_normalisation(samples: Batch, tmp_path: Path) -> None:
    """A shipped robust XCiT without its card: strides, token norm and normalisation are all open; its accuracy tells them."""
    original = interp.load("xcit_nano_d6w64_cifar10_linf")
    path = saved(tmp_path / "x.pt", original.net.state_dict())
    found = inspect(path)
    assert {c.choice.get("patch stride") for c in found.fits} == {"16", "4"} and found.normaliser is None
    model = interp.load(path, images=samples)
    assert name_of((model.card.preprocess.mean, model.card.preprocess.std)).startswith("cifar10")
    assert model.card.arch == "xcit_p4" and "settled on 20 labelled images (accuracy: xcit_p4" in model.card.origin
    right = [(m(samples.images).argmax(1) == samples.labels).float().mean() for m in (model, original)]
    assert right[0] >= right[1] >= 0.5


def test_labelled_images_settle_the_order_of_colours(tmp_path: Path) -> None:
    """Labels are what the network itself says of images in the order blue, green, red; each image has a colour of its own."""
    net = network("mobilevitv2_050", {})
    random = torch.Generator().manual_seed(3)
    x = torch.rand(48, 3, 1, 1, generator=random) + 0.3 * torch.rand(48, 3, 64, 64, generator=random)
    x = x.clamp(0, 1)
    with torch.no_grad():
        net.head.fc.bias -= net(x.flip(1)).mean(0)  # so that no class wins everywhere
        labels = net(x.flip(1)).argmax(1)
    torch.save(writers.cvnets_mobilevit(net, 2), tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"disagree on the order of colours; say --channels rgb\|bgr"):
        interp.load(tmp_path / "m.pt", normalise="none", size=64)
    model = interp.load(tmp_path / "m.pt", normalise="none", size=64, images=Batch(x, labels))
    assert model.card.preprocess.channels == "bgr" and "bgr 100%" in model.card.origin


def test_images_of_no_open_size_are_refused_with_the_sizes(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", network("xcit_p4", {"depth": 2}).state_dict())
    with pytest.raises(
        InputError, match=r"takes images .*\(n, 3, 32, 32\).*\(n, 3, 224, 224\); found \(2, 3, 48, 48\).*--size 48"
    ):
        interp.load(path, images=Batch(torch.rand(2, 3, 48, 48), torch.tensor([0, 1])))


@pytest.mark.parametrize(("said", "fault"), [("imagenet", "applied twice or wrong"), ("none", "")])
def test_a_wrong_normalisation_is_warned_of(
    said: str, fault: str, model_test: Path, samples: Batch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_as(model_test, Said(normalise=said), images=samples)
    assert (fault in caplog.text and "try --normalise none" in caplog.text) if fault else not caplog.text


def test_a_missing_normalisation_is_warned_of(samples: Batch) -> None:
    model = interp.load("xcit_nano_d6w64_cifar10_standard")
    assert doubt(model, samples) == ""
    bare = dataclasses.replace(model.card.preprocess, mean=(0, 0, 0), std=(1, 1, 1))
    without = Model(model.net, dataclasses.replace(model.card, preprocess=bare))
    assert "it seems to be missing; try --normalise" in doubt(without, samples)


def test_without_labels_confidence_speaks(model_test: Path, samples: Batch) -> None:
    unlabelled = dataclasses.replace(samples, labels=torch.full_like(samples.labels, -1))
    good = interp.load(model_test, normalise="none")
    assert doubt(good, unlabelled) == ""
    wrong = interp.load(model_test, normalise="0.9,0.1,0.9/3,3,3")
    assert "confident with normalisation 0.9,0.1,0.9/3,3,3" in doubt(wrong, unlabelled)


# ---- saying it ---------------------------------------------------------------------------------------------------------------


def test_text_and_json_say_the_same(tmp_path: Path) -> None:
    wrappers.madry(network("resnet18", {}), tmp_path / "imagenet_linf_4.pt")
    found = inspect(tmp_path / "imagenet_linf_4.pt", Said(arch="resnet18"))
    text, data = as_text(found), json.loads(json.dumps(as_json(found)))
    assert data["origin"] == ["MadryLab robustness", "DataParallel", "normaliser inside", "wrapper (model)"]
    assert data["normalisation"]["from"] == "the file's own normaliser" and data["parameters"] == 11_181_642
    assert data["refused"] == ["tests.wrappers.Parameters"]
    assert len(data["dropped"]) == 122 + 4 and data["open"] == [] and data["sha256"] == found.contents.sha256
    for piece in ("tests.wrappers.Parameters", "the attacker's copy", "11.18 M", data["sha256"], "open          nothing"):
        assert piece in text, piece


@pytest.mark.parametrize("name", NORMALISERS)
def test_a_normalisation_is_written_as_it_is_read(name: str) -> None:
    assert name_of(normaliser(name)) == name
    assert normaliser("0.1,0.2,0.3/0.4,0.5,0.6") == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    for wrong in ("imagenets", "0.1,0.2/1,1,1", "1,1,1/0,1,1", "a,b,c/1,1,1"):
        with pytest.raises(InputError, match=r"expected one of none, imagenet"):
            normaliser(wrong)
