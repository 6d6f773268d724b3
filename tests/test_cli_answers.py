"""What files leave open, answered on the command line: of one file, of several, and what the errors advise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import interp
from interp.attention.attend import attend
from interp.cli.answers import OPTIONS, common_size, from_options, said_of
from interp.job import images_for
from interp.models.answers import Said
from interp.models.load import takes
from interp.types import Card, Preprocess
from tests.conftest import TINY, seeded
from tests.test_cli import Run, words_of_help, write_image

XCIT = {"arch": "xcit_p4", "arch_args": {"embed_dim": 32, "depth": 2}}
MOBILE = {"arch": "mobilevit_32", "arch_args": {"variant": "mobilevit_xxs", "strides": [1, 2, 2, 2, 1, 1]}}
CHEAP = ("--images", "whole.png", "-n", "1", "--grids", "0", "--out-dir", "out")


@pytest.fixture
def files(checkpoints: Path, model_test: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files without a card: two that leave their architecture open, and one (res.pt) only its normalisation."""
    there = tmp_path / "files"
    write_image(there / "whole.png", (32, 32))
    torch.save(load_file(checkpoints / "tiny_linf.safetensors"), there / "bare.pt")
    torch.save(seeded(*TINY["mobilevit"], seed=0).state_dict(), there / "mobile.pt")
    (there / "res.pt").symlink_to(model_test)
    monkeypatch.chdir(there)
    return there


def flags(known: dict[str, Any], of: str = "") -> list[str]:
    """--arch and --arch-arg, of one file where it is named."""
    args = [f"{of}{key}={value}".replace(" ", "") for key, value in known["arch_args"].items()]
    return ["--arch", f"{of}{known['arch']}", *(word for arg in args for word in ("--arch-arg", arg))]


def maps(folder: Path) -> np.ndarray:
    (saved,) = (folder / "out" / "results").glob("attention-*.nc")
    return np.asarray(interp.open(saved).data["map"].values[:, 0])


def test_each_of_several_files_is_what_is_said_of_it_alone(files: Path, run: Run) -> None:
    answers = [*flags(XCIT, "bare.pt="), *flags(MOBILE, "mobile.pt=")]
    answers += ["--normalise", "bare.pt=cifar10", "--normalise", "mobile.pt=none"]
    code, _, error = run("attention", "bare.pt", "tiny_linf", "mobile.pt", *answers, *CHEAP)
    assert code == 0, error
    bare, carded, mobile = maps(files)
    assert np.array_equal(bare, carded)  # the same weights; the card says cifar10
    model = interp.load("mobile.pt", normalise="none", **MOBILE)
    assert np.array_equal(mobile, attend([model], interp.images("whole.png")).data["map"].values[0, 0])


COMMANDS = ("report", "perturb", "synthesise", "invert", "gradients", "compare", "accuracy", "attention", "faithfulness")


@pytest.mark.parametrize("command", [*COMMANDS, "analyze", "inspect"])
def test_every_command_that_takes_models_can_be_told_what_files_leave_open(command: str) -> None:
    told = words_of_help(command)
    assert all(f"--{name.replace('_', '-')}" in told for name in OPTIONS)


@pytest.mark.parametrize(("command", "kind"), [("perturb", "sweep"), ("gradients", "gradients"), ("accuracy", "accuracy")])
def test_a_file_without_a_card_is_analysed_as_what_is_said_of_it(files: Path, run: Run, command: str, kind: str) -> None:
    """The same weights as the shipped model's, whose card says the same."""
    few = ("-n", "1", *(("--steps", "1") if command == "perturb" else ()))
    code, _, error = run(command, "bare.pt", "tiny_linf", *flags(XCIT), "--normalise", "cifar10", *few, "--out-dir", "out")
    assert code == 0, error
    (saved,) = (files / "out" / "results").glob(f"{kind}-*.nc")
    inputs = interp.open(saved).inputs["models"]
    assert len(inputs) == 2 and inputs[0] == inputs[1]


def test_a_value_for_no_file_answers_for_those_that_leave_it_open_and_for_no_others(files: Path, run: Run) -> None:
    answers = [*flags(XCIT), "--normalise", "bare.pt=cifar10", "--normalise", "none"]
    code, _, error = run("attention", "res.pt", "bare.pt", "tiny_linf", *answers, *CHEAP)
    assert code == 0, error
    residual, bare, carded = maps(files)
    assert np.array_equal(bare, carded)
    model = interp.load("res.pt", normalise="none")
    assert np.array_equal(residual, attend([model], interp.images("whole.png")).data["map"].values[0, 0])


def test_only_one_file_without_a_card_is_overruled_without_its_name(files: Path) -> None:
    def answer(*specs: str, **given: list[str]) -> list[Said]:
        options = dict.fromkeys(("arch", "args", "normalise", "size", "channels", "ema")) | given
        return said_of(specs, from_options(specs, **options))  # type: ignore[arg-type]

    assert answer("res.pt", "tiny_linf", channels=["bgr"]) == [Said(channels="bgr"), Said()]
    assert answer("res.pt", "bare.pt", channels=["res.pt=bgr"]) == [Said(channels="bgr"), Said()]
    assert answer("res.pt", "bare.pt", args=["depth=2"]) == [Said(), Said(arch_args={"depth": 2})]
    with pytest.raises(interp.InputError, match=r"none of res.pt, bare.pt leaves that open; .* overrule .* --channels res.pt=…"):
        answer("res.pt", "bare.pt", channels=["bgr"])
    with pytest.raises(interp.InputError, match="tiny_linf is no file without a card and leaves nothing open"):
        answer("res.pt", "tiny_linf", arch=["tiny_linf=xcit_p4"])
    with pytest.raises(
        interp.InputError, match=r"no model is given as other.pt; expected FILE=VALUE with one of res.pt, bare.pt"
    ):
        answer("res.pt", "bare.pt", arch=["other.pt=xcit_p4"])
    with pytest.raises(interp.InputError, match=r"--arch-arg is 'other.pt=depth=2', but no model is given as other.pt"):
        answer("res.pt", "bare.pt", args=["other.pt=depth=2"])
    with pytest.raises(interp.InputError, match="--normalise is none and half; give one, or for one of several files FILE=VALUE"):
        answer("res.pt", "bare.pt", normalise=["none", "half"])


def test_errors_about_one_of_several_files_say_how_to_answer_for_it_alone(files: Path, run: Run) -> None:
    ways = "For this file alone, of several: --arch {0}=VALUE --arch-arg {0}=KEY=VALUE"
    code, _, error = run("attention", "bare.pt", "mobile.pt", *CHEAP)
    assert code == 2 and ways.format("bare.pt") + " --normalise bare.pt=VALUE" in error
    code, _, error = run("attention", "bare.pt", "mobile.pt", *flags(XCIT), "--normalise", "none", *CHEAP)
    assert code == 2 and "mobile.pt does not fit xcit_p4" in error and ways.format("mobile.pt") in error
    code, _, error = run("attention", "bare.pt", *CHEAP)
    assert code == 2 and "say --normalise" in error and "of several" not in error
    told = words_of_help("attention")
    assert "FILE=NAME for one of several files" in told and "all files without a card" in told


def test_the_file_and_not_the_images_is_asked_about_where_their_size_is_open(files: Path, run: Run) -> None:
    write_image(files / "mixed" / "cat" / "a.png", (40, 40))
    write_image(files / "mixed" / "dog" / "b.png", (50, 60))
    code, _, error = run("attention", "mobile.pt", "--images", "folder:mixed", "--out-dir", "out")
    assert code == 2 and error.startswith("interp: mobile.pt: shapes cannot tell these apart; say which: --arch mobilevit_xxs")
    assert "say --normalise" in error and "these cannot: cat/a.png is 40×40 pixels and dog/b.png 50×60" in error
    code, _, error = run("attention", "mobile.pt", *flags(MOBILE), "--images", "folder:missing", "--out-dir", "out")
    assert code == 2 and error.startswith("interp: there is no folder missing")  # its size is known: this is about the images
    torch.save(seeded(*TINY["resnet"], seed=0).state_dict(), files / "five.pt")  # fits five architectures, of 32 pixels each
    assert images_for("five.pt", "folder:mixed").images.shape == (2, 3, 32, 32)


def test_images_of_other_classes_settle_nothing_and_what_is_open_is_said(files: Path, run: Run) -> None:
    for i in range(5):
        write_image(files / "classes" / f"class{i}" / "a.png", (32, 32), seed=i)
    code, _, error = run("attention", "res.pt", "--images", "folder:classes", "--out-dir", "out")
    assert code == 2 and error.startswith("interp: res.pt: nothing says how inputs were normalised; say --normalise none")
    assert "these do not fit: model res has 10 classes, the images come with 5" in error


def test_models_of_several_sizes_are_told_the_size_that_all_take(files: Path, run: Run) -> None:
    write_image(files / "large.png", (300, 300))
    torch.save(timm.create_model("mobilenetv3_small_050", num_classes=10).state_dict(), files / "small.pt")
    answers = ["--arch", "mobile.pt=mobilevit_xxs", "--arch", "small.pt=mobilenetv3_small_050", "--normalise", "none"]
    argv = ("attention", "mobile.pt", "small.pt", *answers, "--images", "large.png", "--grids", "0", "--out-dir", "out")
    code, _, error = run(*argv)
    assert code == 2 and "({'mobile': 256, 'small': 224}); give models of one size, or say --size 224, which all" in error
    assert run(*argv, "--size", "224")[0] == 0


def test_a_size_is_advised_only_where_all_without_a_card_take_it() -> None:
    def card(arch: str, size: int) -> Card:
        return Card(arch, arch, 10, Preprocess(size, size))

    swin, mobile, tiny = card("swin_tiny_patch4_window7_224", 224), card("mobilevit_xxs", 256), card("mobilevit_xxs", 32)
    assert not takes(swin, 256) and takes(mobile, 224)
    assert common_size([mobile, swin], [True, True]).startswith(", or say --size 224")
    assert common_size([mobile, swin], [True, False]).startswith(", or say --size 224")
    assert common_size([mobile, swin], [False, True]) == ""  # a card's size stays, and Swin does not take it
    assert common_size([mobile, tiny], [True, False]) == ""  # it would take it, at an eighth of its own


def test_a_file_that_takes_other_images_than_the_first_is_asked_about_with_its_own(files: Path, run: Run) -> None:
    for i in range(2):
        write_image(files / "ten" / f"class{i}" / "a.png", (300, 300), seed=i)
    torch.save(timm.create_model("mobilenetv3_small_050", num_classes=2).state_dict(), files / "small.pt")
    torch.save(timm.create_model("mobilevit_xxs", num_classes=2).state_dict(), files / "two.pt")
    answers = ["--arch", "two.pt=mobilevit_xxs", "--arch", "small.pt=mobilenetv3_small_050", "--normalise", "two.pt=none"]
    code, _, error = run("attention", "two.pt", "small.pt", *answers, "--images", "folder:ten", "--out-dir", "out")
    assert code == 2 and "--size 256" not in error  # which images prepared for the first would advise
    assert "answer yourself: nothing says how inputs were normalised" in error and "--normalise small.pt=VALUE" in error


@pytest.mark.parametrize(("kind", "offline"), [("ConnectError", True), ("ReadTimeout", False), (None, False)])
def test_a_hub_that_is_not_there_is_asked_once(
    kind: str | None, offline: bool, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    asked: list[bool] = []

    def answer(*_: object, **__: object) -> object:
        if kind is not None:
            raise type(kind, (Exception,), {})("no")
        return SimpleNamespace()

    def create(*_: object, **__: object) -> None:
        asked.append(constants.HF_HUB_OFFLINE)
        raise OSError("no weights")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", answer)
    monkeypatch.setattr("timm.create_model", create)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    code, _, error = run("attention", "timm:resnet18", "--out-dir", tmp_path / "out")
    assert code == 2 and "timm:resnet18 could not be loaded (no weights)" in error
    assert asked[0] is offline and constants.HF_HUB_OFFLINE is False  # its cache is asked in any case
