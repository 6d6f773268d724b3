"""What is shipped: every card true to its file, every robust model above its twin."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import interp
from interp.models.load import contrast, locate
from interp.models.model import model_coords
from interp.robustness.accuracy import correct
from interp.training.recipe import Recipe
from interp.types import Batch, Card

ROOT = Path(__file__).parents[1]
CARDS = [Card.read(path) for path in interp.shipped().values()]
CONTRAST = [Card.read(path) for path in contrast().values()]
TWINS = [(c.id.removesuffix("_linf") + "_standard", c.id) for c in CARDS if c.id.endswith("_linf")]

pytestmark = pytest.mark.weights


def test_three_pairs_of_twins_are_shipped_and_stay_small() -> None:
    assert len(CARDS) == 6
    assert len(TWINS) == 3
    files = [p for folder in ("", "contrast") for p in (ROOT / "checkpoints" / folder).glob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 32 * 2**20


@pytest.mark.parametrize("card", CARDS + CONTRAST, ids=lambda c: c.id)
def test_a_copy_without_its_card_is_known_by_its_bytes(card: Card, tmp_path: Path) -> None:
    copy = tmp_path / "renamed.safetensors"
    shutil.copy(locate(card.id), copy)
    assert interp.load(copy).digest == interp.load(card.id).digest


@pytest.mark.parametrize("card", CARDS + CONTRAST, ids=lambda c: c.id)
def test_card_is_complete_and_true_to_its_file(card: Card, samples: Batch) -> None:
    model = interp.load(card.id)  # also compares the sha256
    assert model.card == card
    assert 0.3e6 < model.parameters_count < 3.5e6
    assert card.licence and card.training and card.sha256
    recipe = Path(card.trained["recipe"]).name
    assert (ROOT / "recipes" / recipe).is_file() and f"recipes/{recipe}" in card.trained["command"]
    assert card.trained["hardware"] and card.trained["minutes"] > 0 and card.trained["epochs"] > 0
    for name, least in (("clean", 1000), ("pgd20", 1000)):
        number = card.number(name)
        assert number is not None
        assert number.n >= least
        assert number.low <= number.value <= number.high
    clean = card.number("clean")
    assert clean is not None
    found = correct(model, samples).mean()  # 20 images: within four standard errors of the card's own number
    assert abs(found - clean.value) < 4 * (clean.value * (1 - clean.value) / len(samples)) ** 0.5 + 0.05


@pytest.mark.parametrize(("standard", "robust"), TWINS)
def test_robust_model_stands_clearly_above_its_twin(standard: str, robust: str) -> None:
    a, b = (interp.load(i) for i in (standard, robust))
    assert a.card.arch_args == b.card.arch_args
    assert not a.robust
    assert b.robust
    low, high = b.card.number("pgd20"), a.card.number("pgd20")
    assert low is not None
    assert high is not None
    assert low.value >= 0.3
    assert high.value <= 0.02
    assert model_coords([a, b])["group"][1] == [robust.removesuffix("_linf")] * 2


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.id)
def test_recipe_says_what_the_card_says(card: Card) -> None:
    recipe = Recipe.read(ROOT / "recipes" / f"{card.id}.toml")
    assert (recipe.arch, recipe.arch_args, recipe.threat) == (card.arch, card.arch_args, card.threat)
    assert (recipe.preprocess, recipe.training) == (card.preprocess, card.training)


def test_the_examples_have_ids_of_their_own() -> None:
    assert not {c.id for c in CONTRAST} & {c.id for c in CARDS}
    assert all(locate(c.id).parent.name == "contrast" for c in CONTRAST)


def test_readme_table_is_the_cards() -> None:
    from interp.publish import checkpoint_tables

    assert checkpoint_tables(CARDS, CONTRAST) in (ROOT / "checkpoints" / "README.md").read_text(encoding="utf-8")
