"""A trained network → a checkpoint to ship: half-precision weights and a card with measured numbers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from interp.attacks.pgd import PGD
from interp.loading.read import sha256_of
from interp.models.build import build
from interp.models.known import CARD
from interp.models.model import Model
from interp.robustness.accuracy import correct
from interp.robustness.autoattack import autoattack as run_autoattack
from interp.stats import wilson
from interp.training.recipe import Recipe
from interp.types import Batch, Card, InputError, Number

PGD20 = PGD(8 / 255, "linf", steps=20, step_size=2 / 255)
PGD20_L2 = PGD(0.5, "l2", steps=20, step_size=0.1)  # RobustBench's ε for CIFAR-10 in L2
BALL = {"linf": "L∞ 8/255", "l2": "L2 0.5"}
COLUMNS = ("id", "parameters", "recipe", "hardware", "minutes", "epochs", "clean", "PGD-20", "AutoAttack", "sha256")


def publish(
    net: nn.Module,
    recipe: Recipe,
    test: Batch,
    *,
    folder: Path,
    attacked: int = 1000,
    autoattack: int = 0,
    trained: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Card:
    """Write FOLDER/ID.safetensors (fp16) and FOLDER/ID.toml, measured on `test` after rounding to half precision.

    Clean accuracy on all of `test`, PGD-20 on `attacked` of its images, AutoAttack on `autoattack` of them (`Batch.some`; 0: not
    at all), both with L∞ 8/255, or L2 0.5 where the recipe trains against L2. trained: what the run was, for the card.
    Both files are complete before either replaces an older one; should only one be replaced, the card's sha256 makes loading
    refuse the pair.
    """
    check_test_images(recipe, test)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: _half(v).contiguous() for k, v in net.state_dict().items()}
    rounded = build(recipe.arch, num_classes=recipe.num_classes, arch_args=recipe.arch_args)
    rounded.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    card = recipe.card(
        labels=test.classes, weights=f"{recipe.id}.safetensors", origin="interp train", trained=dict(trained or {})
    )
    card = dataclasses.replace(card, numbers=_measure(Model(rounded, card).to(device), test, attacked, autoattack))
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
    if int(test.labels.max()) >= recipe.num_classes:
        raise InputError(f"recipe {recipe.id} has {recipe.num_classes} classes, test labels go up to {int(test.labels.max())}")


def _half(v: torch.Tensor) -> torch.Tensor:
    """Half precision where every value fits into it."""
    half = v.half() if v.is_floating_point() else v
    return half if bool(torch.isfinite(half).all()) else v


def _measure(model: Model, test: Batch, attacked: int, autoattack: int) -> tuple[Number, ...]:
    threat = model.card.threat
    pgd = PGD20_L2 if threat and threat.norm == "l2" else PGD20
    steps = "20 steps of 0.1" if pgd is PGD20_L2 else "20 steps of 2/255"
    numbers = [_number("clean", correct(model, test), "")]
    if attacked > 0:
        held = correct(model, test.some(attacked), pgd)
        numbers.append(_number("pgd20", held, f": {BALL[pgd.norm]}, {steps}, random start"))
    if autoattack > 0:
        held = run_autoattack(model, test.some(autoattack), norm=pgd.norm, eps=pgd.eps)
        how = f": AutoAttack, standard version, {BALL[pgd.norm]}, {len(held)} test images"
        numbers.append(_number("autoattack", held, how))
    return tuple(numbers)


def _number(name: str, right: np.ndarray, how: str) -> Number:
    rate = wilson(int(right.sum()), len(right))
    source = f"measured by interp train{how}"
    return Number(name, round(rate.mean, 6), len(right), round(rate.low, 6), round(rate.high, 6), source)


def checkpoint_tables(shipped: Sequence[Card], contrast: Sequence[Card]) -> str:
    """The tables of checkpoints/README.md: the default models and, where there are any, the examples under their own heading."""
    examples = ["## Contrast", checkpoint_table(contrast)] if contrast else []
    return "\n\n".join([checkpoint_table(shipped), *examples])


def checkpoint_table(cards: Sequence[Card]) -> str:
    """The cards as a Markdown table: what each model is, how it was trained, what it is worth; then how to train it again."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_row, cards)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    commands = [f"- `{c.id}`: `{c.trained['command']}`" for c in cards if c.trained.get("command")]
    return "\n\n".join([table, *(["\n".join(commands)] if commands else [])])


def _row(card: Card) -> tuple[str, ...]:
    """A card's cells, as in COLUMNS."""
    with torch.device("meta"):
        net = build(card.arch, num_classes=card.num_classes, arch_args=card.arch_args)
    count = sum(p.numel() for p in net.parameters())
    how = (card.training, *(_said(card.trained.get(key)) for key in ("hardware", "minutes", "epochs")))
    numbers = (as_text(card.number(name)) for name in ("clean", "pgd20", "autoattack"))
    return (f"`{card.id}`", f"{count / 1e6:.2f} M", *how, *numbers, f"`{card.sha256[:12]}…`")


def _said(value: Any) -> str:
    """What a card says of its training, or a dash."""
    if isinstance(value, (int, float)):
        return f"{round(value, 1):g}"
    return "–" if value is None else str(value).replace("|", "\\|")


def as_text(number: Number | None) -> str:
    """A rate with its interval and n, and its ball where that is not the table's L∞ 8/255; or a dash."""
    if number is None:
        return "–"
    return f"{number.value:.1%} [{number.low:.1%}, {number.high:.1%}], n = {number.n:,}{elsewhere(number)}"


def elsewhere(number: Number) -> str:
    """', L2 0.5' for a number measured in that ball, nothing for all others."""
    return f", {BALL['l2']}" if BALL["l2"] in number.source else ""
