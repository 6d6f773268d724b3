"""A trained network → a checkpoint to ship: half-precision weights and a card with measured numbers."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from interp.attacks.pgd import PGD
from interp.loading.read import sha256_of
from interp.models.build import build
from interp.models.known import CARD
from interp.models.model import Model
from interp.robustness.accuracy import correct
from interp.stats import wilson
from interp.training.recipe import Recipe
from interp.types import Batch, Card, InputError, Number

PGD20 = PGD(8 / 255, "linf", steps=20, step_size=2 / 255)


def publish(net: nn.Module, recipe: Recipe, test: Batch, *, folder: Path, attacked: int = 1000) -> Card:
    """Write FOLDER/ID.safetensors (fp16) and FOLDER/ID.toml, measured on `test` after rounding to half precision.

    Clean accuracy on all of `test`, PGD-20 (L∞ 8/255, step 2/255, random start) on its first `attacked` images. Both files are
    complete before either replaces an older one; should only one be replaced, the card's sha256 makes loading refuse the pair.
    """
    check_test_images(recipe, test)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: _half(v).contiguous() for k, v in net.state_dict().items()}
    rounded = build(recipe.arch, num_classes=recipe.num_classes, arch_args=recipe.arch_args)
    rounded.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    card = Card(
        recipe.id,
        recipe.arch,
        recipe.num_classes,
        recipe.preprocess,
        recipe.arch_args,
        test.classes,
        weights=f"{recipe.id}.safetensors",
        origin="interp train",
        training=recipe.training,
        threat=recipe.threat,
        licence=recipe.licence,
    )
    card = dataclasses.replace(card, numbers=_measure(Model(rounded, card), test, attacked))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        file = Path(part) / card.weights
        save_file(weights, file, metadata={CARD: card.to_toml()})
        card = dataclasses.replace(card, sha256=sha256_of(file))
        text = Path(part) / f"{card.id}.toml"
        text.write_text(card.to_toml(), encoding="utf-8")
        file.replace(folder / file.name)
        text.replace(folder / text.name)
    return card


def check_test_images(recipe: Recipe, test: Batch) -> None:
    """Raise InputError where a recipe's model could not be measured on these images."""
    if bool((test.labels < 0).any()):
        raise InputError("the test images have no labels; give parquet: or folder:")
    if test.classes and len(test.classes) != recipe.num_classes:
        raise InputError(f"recipe {recipe.id} has {recipe.num_classes} classes, the test images {len(test.classes)}")


def _half(v: torch.Tensor) -> torch.Tensor:
    """Half precision where every value fits into it."""
    half = v.half() if v.is_floating_point() else v
    return half if bool(torch.isfinite(half).all()) else v


def _measure(model: Model, test: Batch, attacked: int) -> tuple[Number, Number]:
    some = test[: min(attacked, len(test))]
    numbers = []
    for name, right, source in (
        ("clean", correct(model, test), "measured by interp train"),
        ("pgd20", correct(model, some, PGD20), "measured by interp train: L∞ 8/255, 20 steps of 2/255, random start"),
    ):
        rate = wilson(int(right.sum()), len(right))
        numbers.append(Number(name, round(rate.mean, 6), len(right), round(rate.low, 6), round(rate.high, 6), source))
    return numbers[0], numbers[1]


def checkpoint_table(cards: list[Card]) -> str:
    """The cards as a Markdown table: what each model is, how it was trained, what it is worth."""
    head = "| id | parameters | training | clean | PGD-20 | sha256 |\n|---|---|---|---|---|---|"
    rows = []
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in build(c.arch, num_classes=c.num_classes, arch_args=c.arch_args).parameters()) for c in cards
        ]
    for card, count in zip(cards, counts, strict=True):
        numbers = [as_text(card.number(name)) for name in ("clean", "pgd20")]
        rows.append(
            f"| `{card.id}` | {count / 1e6:.2f} M | {card.training} | {numbers[0]} | {numbers[1]} | `{card.sha256[:12]}…` |"
        )
    return "\n".join([head, *rows])


def as_text(number: Number | None) -> str:
    """A rate with its interval and n, or a dash."""
    if number is None:
        return "–"
    return f"{number.value:.1%} [{number.low:.1%}, {number.high:.1%}], n = {number.n:,}"
