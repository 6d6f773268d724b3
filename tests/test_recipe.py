"""Recipes and schedules: the corners of each schedule, what a recipe says, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from interp.training.recipe import Recipe
from interp.training.schedule import EPS, LR, eps_share, lr_share
from interp.types import InputError, Preprocess

SHORT = 'id = "a"\narch = "b"\n'


def read(folder: Path, text: str) -> Recipe:
    (folder / "r.toml").write_text(text, encoding="utf-8")
    return Recipe.read(folder / "r.toml")


def test_cosine_rises_to_one_and_falls_to_zero() -> None:
    at = [lr_share("cosine", t, 0.25) for t in (0, 0.125, 0.25, 0.625, 1)]
    assert at == pytest.approx([0, 0.5, 1, 0.5, 0])
    falling = [lr_share("cosine", 0.25 + 0.75 * i / 20, 0.25) for i in range(21)]
    assert falling == sorted(falling, reverse=True)


def test_one_cycle_is_that_of_torch() -> None:
    import torch

    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2.0, total_steps=101, pct_start=0.3)
    for step in range(101):
        want = cycle.get_last_lr()[0]
        # torch's first phase ends a step early: at 0.3·101 − 1 of 100
        assert 2.0 * lr_share("onecycle", step / 100, (0.3 * 101 - 1) / 100) == pytest.approx(want, rel=1e-6)
        optimiser.step()
        if step < 100:
            cycle.step()


def test_steps_fall_to_a_tenth_after_each_third() -> None:
    shares = [lr_share("step", t, 0.1) for t in (0.05, 0.1, 0.29, 0.3, 0.59, 0.6, 0.9, 1)]
    assert shares == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("kind", list(LR))
def test_without_warm_up_the_learning_rate_starts_at_its_peak(kind: str) -> None:
    assert lr_share(kind, 0, 0) == pytest.approx(1)
    assert 0 <= lr_share(kind, 1, 0) <= 1e-3 + 1e-12
    assert max(lr_share(kind, t / 50, 0.2) for t in range(51)) == pytest.approx(1)


def test_epsilon_grows_over_its_period_and_stays() -> None:
    assert [eps_share("linear", e, 20) for e in (0, 5, 10, 20, 99)] == [0, 0.25, 0.5, 1, 1]
    sine = [eps_share("sine", e, 20) for e in (0, 5, 10, 15, 20, 21)]
    assert sine == pytest.approx([0, 0.5 * (1 - math.sqrt(0.5)), 0.5, 0.5 * (1 + math.sqrt(0.5)), 1, 1])
    assert eps_share("constant", 0, 20) == 1


@pytest.mark.parametrize("kind", list(EPS))
def test_a_period_of_nothing_is_no_warm_up(kind: str) -> None:
    assert eps_share(kind, 0, 0) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SHORT + "epoch = 3", r"r\.toml has the key 'epoch'; did you mean 'epochs'\?"),
        (SHORT + "weigth_decay = 0.5", "did you mean 'weight_decay'"),
        (SHORT + "zzz = 3", r"has the key 'zzz'; known: \['id', 'arch'"),
        (SHORT + 'objective = "pgd"\neps = 8', r'eps is 8; expected .* such as "8/255" .*did you mean 8/255\?'),
        (SHORT + 'objective = "pgd"\neps = "-8/255"', r"eps is -0\.03"),
        (SHORT + 'eps = "nan"', "eps is nan"),
        (SHORT + 'eps = "eight"', "'eight' is not a number"),
        (SHORT + 'eps = "8/255"', r'eps is 0\.0313725, the objective standard; say objective = "pgd"'),
        (SHORT + 'objective = "trades"', 'the objective is trades, eps is 0; say eps = "8/255"'),
        (SHORT + 'objective = "tradez"\neps = "8/255"', "objective is 'tradez'; expected one of standard, pgd, trades"),
        (SHORT + 'objective = "trades"\neps = "8/255"\nrandom_start = false', "trades needs random_start"),
        (SHORT + 'objective = "mart"\neps = "8/255"\nmixup = 0.8', "mart weighs by the true class"),
        (SHORT + 'objective = "hat"\neps = "8/255"', "objective hat needs a helper"),
        (SHORT + 'helper = "x"', "no other objective does"),
        (SHORT + 'norm = "l3"', "norm is 'l3'; expected one of linf, l2"),
        (SHORT + 'eps_schedule = "cubic"', "eps_schedule is 'cubic'; expected one of constant, linear, sine"),
        (SHORT + 'lr_schedule = "cos"', "expected one of cosine, onecycle, step"),
        (SHORT + 'optimizer = "adam"', "expected one of adamw, sgd"),
        (SHORT + 'precision = "fp16"', "expected one of float32, bf16"),
        (SHORT + "epochs = 0", "epochs and lr must be above 0"),
        (SHORT + "batch_size = 1", "batch_size at least 2"),
        (SHORT + "lr = -1", "lr must be above 0"),
        (SHORT + 'epochs = "3"', "epochs is '3'; expected float"),
        (SHORT + "flip = 1", "flip is 1; expected bool"),
        (SHORT + "steps = 1.5", "steps is 1.5; expected int"),
        (SHORT + "steps = true", "steps is True; expected int"),
        (SHORT + "drop_path = 1.0", r"drop_path is 1\.0; expected a share in \[0, 1\)"),
        (SHORT + "extra_share = -0.1", "extra_share is -0.1"),
        (SHORT + "weight_decay = -0.1", "weight_decay is -0.1; expected a number ≥ 0"),
        (SHORT + "step_size = 0.0", "step_size is 0.0; expected a share of ε above 0"),
        (SHORT + 'step_size = "2/255"', "step_size is '2/255'; expected a share of ε, 0.25 for 2/255 at ε = 8/255"),
        (SHORT + "seed = -1", "seed is -1; expected a number ≥ 0"),
        (SHORT + "resized_crop = [0.5]", r"resized_crop is \[0\.5\]; expected smallest and largest area"),
        (SHORT + "cutmix = 1.0\nbatch_size = 33", "batch_size is 33; mixup and cutmix pair images"),
        ('id = "a"', "missing 1 required positional argument: 'arch'"),
        (SHORT + "[preprocess]\nsizes = 3", "sizes"),
        ("id = ", "is not TOML"),
        ("\x00\x01", "is not TOML"),
    ],
)
def test_bad_recipes_say_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read(tmp_path, text)


def test_a_missing_recipe_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no recipe at .*r\.toml"):
        Recipe.read(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not TOML"):
        Recipe.read(tmp_path / "r.toml")


def test_a_recipe_says_in_words_how_the_weights_are_made(tmp_path: Path) -> None:
    text = SHORT + 'objective = "pgd"\neps = "8/255"\nsteps = 3\nstart = "runs/old.safetensors"\neps_period = 10\ncutmix = 1.0'
    recipe = read(tmp_path, text)
    assert recipe.threat is not None and recipe.threat.eps == 8 / 255 and recipe.preprocess == Preprocess(32, 32)
    assert recipe.training == (
        "adversarial, PGD-3 with a random start, step 0.5·ε, linear ε warm-up over 10 epochs; 5 epochs, batch 64, AdamW 0.002, "
        "weight decay 0.05, EMA 0.998; CutMix; from old"
    )
    standard = dataclasses.replace(recipe, objective="standard", eps=0.0, start="")
    assert standard.threat is None and standard.training.startswith("standard; 5 epochs, batch 64")
    trades = dataclasses.replace(recipe, objective="trades", eps_schedule="constant", awp=0.005, steps=1)
    assert trades.training.startswith("TRADES β = 6, FGSM with a random start, step 1.5·ε, no ε warm-up, AWP γ = 0.005;")


def test_keys_are_changed_on_the_way_in(tmp_path: Path) -> None:
    read(tmp_path, SHORT + 'objective = "pgd"\neps = "8/255"')
    changed = Recipe.read(tmp_path / "r.toml", {"eps": "4/255", "epochs": 2})
    assert (changed.eps, changed.epochs) == (4 / 255, 2)


def test_an_l2_recipe_may_go_beyond_one() -> None:
    assert Recipe("a", "b", objective="pgd", norm="l2", eps=3.0).threat is not None
    with pytest.raises(InputError, match="eps is 3"):
        Recipe("a", "b", objective="pgd", eps=3.0)
