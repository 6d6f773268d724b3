"""What is published: numbers in the recipe's own norm, a card that says what the run was, tables, and the folder of examples."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import interp
from interp.attacks.pgd import PGD
from interp.cli import app
from interp.loading.read import sha256_of
from interp.models.build import build
from interp.models.load import contrast, locate
from interp.models.model import Model
from interp.publish import COLUMNS, PGD20, PGD20_L2, as_text, checkpoint_table, checkpoint_tables, publish
from interp.robustness.accuracy import correct
from interp.stats import wilson
from interp.training.recipe import Recipe
from interp.types import Batch, Card, InputError, Number, Preprocess, Threat

RESNET = {"width": 4, "stem_stride": 2, "output_stride": 16}
PLAIN = Recipe("plain", "resnet50_32", RESNET, num_classes=4, preprocess=Preprocess(32, 32))
TRAINED = {"recipe": "r.toml", "command": "interp train r.toml", "hardware": "1 × T4 | 2 cores", "minutes": 90.04, "epochs": 2}


def against(norm: str, eps: float) -> Recipe:
    return dataclasses.replace(PLAIN, id=norm, objective="pgd", norm=norm, eps=eps)


@pytest.fixture
def six() -> Batch:
    """Six images that the network, rounded, classifies as labelled, but for the last."""
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = rounded()(images).argmax(1)
    labels[5] = (labels[5] + 1) % 4
    return Batch(images, labels)


def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build("resnet50_32", num_classes=4, arch_args=RESNET).eval()


def rounded() -> Model:
    """The network as it is after publishing."""
    net = network()
    net.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in net.state_dict().items()})
    return Model(net, Card("m", "resnet50_32", 4, Preprocess(32, 32), RESNET))


@pytest.mark.parametrize(
    ("recipe", "pgd", "ball", "steps"),
    [
        (PLAIN, PGD(8 / 255, "linf", steps=20, step_size=2 / 255), "L∞ 8/255", "20 steps of 2/255"),
        (against("linf", 4 / 255), PGD20, "L∞ 8/255", "20 steps of 2/255"),
        (against("l2", 0.25), PGD(0.5, "l2", steps=20, step_size=0.1), "L2 0.5", "20 steps of 0.1"),
    ],
    ids=["standard", "linf", "l2"],
)
def test_it_is_measured_in_the_norm_of_its_recipe(
    recipe: Recipe, pgd: PGD, ball: str, steps: str, six: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, dict[str, Any]]] = []

    def every_other(model: Model, batch: Batch, **how: Any) -> np.ndarray:
        asked.append((len(batch), how))
        return np.arange(len(batch)) % 2 == 0

    monkeypatch.setattr("interp.publish.run_autoattack", every_other)
    card = publish(network(), recipe, six, folder=tmp_path, attacked=4, autoattack=3, trained=TRAINED)
    assert asked == [(3, {"norm": pgd.norm, "eps": pgd.eps})]
    assert Card.read(tmp_path / f"{recipe.id}.toml") == card and card.trained == TRAINED
    clean, pgd20, hard = card.numbers
    assert [n.name for n in card.numbers] == ["clean", "pgd20", "autoattack"]
    assert (clean.value, clean.n, clean.source) == (round(5 / 6, 6), 6, "measured by interp train")
    assert (pgd20.value, pgd20.n) == (correct(rounded(), six.some(4), pgd).mean(), 4)
    assert pgd20.source == f"measured by interp train: {ball}, {steps}, random start"
    assert (hard.value, hard.low, hard.high) == pytest.approx(tuple(wilson(2, 3)), abs=1e-6) and hard.n == 3
    assert hard.source == f"measured by interp train: AutoAttack, standard version, {ball}, 3 test images"
    for number in (pgd20, hard):
        assert as_text(number).endswith(", L2 0.5") == (pgd.norm == "l2")


def test_without_being_asked_no_autoattack_is_run(six: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.publish.run_autoattack", None)
    card = publish(network(), PLAIN, six, folder=tmp_path, attacked=2)
    assert [n.name for n in card.numbers] == ["clean", "pgd20"] and card.trained == {}


def test_the_real_autoattack_is_measured(six: Batch, tmp_path: Path) -> None:
    """Images that are misclassified already cost nothing: none is attacked, none is robust."""
    wrong = Batch(six.images, (six.labels + 1) % 4)[:5]
    card = publish(network(), against("l2", 0.5), wrong, folder=tmp_path, attacked=2, autoattack=1000)
    found = card.number("autoattack")
    assert found is not None and (found.value, found.n) == (0.0, 5)
    assert PGD20_L2.eps == 0.5 and "L2 0.5, 5 test images" in found.source


def card_of(name: str, **fields: Any) -> Card:
    return Card(name, "resnet50_32", 4, Preprocess(32, 32), RESNET, sha256="0123456789abcdef", **fields)


def test_the_table_has_a_row_per_card_and_the_commands_below() -> None:
    numbers = (
        Number("clean", 0.5, 10000, 0.49, 0.51, "here"),
        Number("pgd20", 0.25, 1000, 0.224, 0.278, "here: L2 0.5, 20 steps"),
        Number("autoattack", 0.2, 100, 0.13, 0.29, "here: L2 0.5"),
    )
    full = card_of("full", training="adversarial; 2 epochs", trained=TRAINED, threat=Threat("l2", 0.5), numbers=numbers)
    head, rule, first, second, gap, *commands = checkpoint_table([full, card_of("bare")]).splitlines()
    assert head == "| " + " | ".join(COLUMNS) + " |" and rule.count("---") == len(COLUMNS) == 10
    millions = f"{sum(p.numel() for p in network().parameters()) / 1e6:.2f} M"
    assert first == (
        f"| `full` | {millions} | adversarial; 2 epochs | 1 × T4 \\| 2 cores | 90 | 2 | 50.0% [49.0%, 51.0%], n = 10,000 "
        "| 25.0% [22.4%, 27.8%], n = 1,000, L2 0.5 | 20.0% [13.0%, 29.0%], n = 100, L2 0.5 | `0123456789ab…` |"
    )
    assert second == f"| `bare` | {millions} |  | – | – | – | – | – | – | `0123456789ab…` |"
    assert gap == "" and commands == ["- `full`: `interp train r.toml`"]
    assert checkpoint_table([card_of("bare")]).count("\n") == 2


def test_the_examples_come_under_their_own_heading() -> None:
    twins, examples = [card_of("a"), card_of("b")], [card_of("masked")]
    assert checkpoint_tables(twins, []) == checkpoint_table(twins)
    assert checkpoint_tables(twins, examples).split("\n\n") == [
        checkpoint_table(twins),
        "## Contrast",
        checkpoint_table(examples),
    ]


@pytest.fixture
def with_example(checkpoints: Path) -> Path:
    """The published twins, of which tiny_standard is made an example."""
    (checkpoints / "contrast").mkdir()
    for path in checkpoints.glob("tiny_standard.*"):
        path.rename(checkpoints / "contrast" / path.name)
    return checkpoints


def test_an_example_is_loaded_by_name_and_never_by_default(with_example: Path, tmp_path: Path) -> None:
    assert list(interp.shipped()) == ["tiny_linf"] and list(contrast()) == ["tiny_standard"]
    assert locate("tiny_standard") == with_example / "contrast" / "tiny_standard.safetensors"
    model = interp.load("tiny_standard")
    assert model.card == Card.read(with_example / "contrast" / "tiny_standard.toml")
    with pytest.raises(InputError, match=r"'tiny_standrad' is neither .* the nearest ids are tiny_standard"):
        locate("tiny_standrad")
    bare = tmp_path / "copy.safetensors"
    shutil.copy(locate("tiny_standard"), bare)
    assert interp.load(bare).digest == model.digest


def test_an_example_is_known_by_its_bytes(with_example: Path, tmp_path: Path) -> None:
    path = locate("tiny_standard")
    save_file(load_file(path), path)  # without the card in its header
    card = Card.read(path.with_suffix(".toml"))
    path.with_suffix(".toml").write_text(dataclasses.replace(card, sha256=sha256_of(path)).to_toml(), encoding="utf-8")
    shutil.copy(path, tmp_path / "copy.safetensors")
    assert "the card of tiny_standard (same sha256)" in str(interp.inspect(tmp_path / "copy.safetensors"))


def models(*argv: str) -> str:
    done = CliRunner().invoke(app, ["models", *argv])
    assert done.exit_code == 0, done.output
    return done.output


def test_examples_are_listed_after_the_twins(with_example: Path) -> None:
    printed = models()
    assert printed.index("tiny_linf") < printed.index("tiny_standard")
    assert "(examples in contrast/, loaded by name and never by default: tiny_standard)" in printed
    assert [entry["id"] for entry in json.loads(models("--json"))[:2]] == ["tiny_linf", "tiny_standard"]
    first, second = models("--markdown").split("## Contrast")
    assert "`tiny_linf`" in first and "`tiny_standard`" in second and "`tiny_standard`" not in first


def test_without_examples_there_is_no_word_of_them(checkpoints: Path) -> None:
    assert contrast() == {} and len(interp.shipped()) == 2
    assert "contrast" not in models() + models("--markdown").lower() and models("--markdown").count("| `tiny") == 2


def test_a_threat_in_l2_is_told_in_its_own_unit(checkpoints: Path) -> None:
    path = checkpoints / "tiny_linf.toml"
    number = Number("pgd20", 0.5, 10, 0.2, 0.8, "L2 0.5, 20 steps of 0.1")
    path.write_text(dataclasses.replace(Card.read(path), threat=Threat("l2", 0.5), numbers=(number,)).to_toml(), encoding="utf-8")
    (row,) = [line for line in models().splitlines() if "tiny_linf" in line]
    assert row.split() == ["tiny_linf", "l2", "0.5", "–", "50.0%", "of", "10,", "L2", "0.5"]
