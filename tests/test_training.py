"""Training: the schedule's corners, an augmentation that only moves pixels, a run that learns, a checkpoint that reloads."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import interp
from interp.attacks.pgd import PGD, attack
from interp.loading.detect import num_classes
from interp.loading.read import read, sha256_of
from interp.models.build import build
from interp.models.model import Model
from interp.publish import as_text, checkpoint_table, publish
from interp.robustness.accuracy import correct
from interp.stats import wilson
from interp.training.augment import crop_and_flip
from interp.training.loop import Schedule, load_weights, train
from interp.training.recipe import Recipe
from interp.types import Batch, Card, InputError, Preprocess

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
RESNET = {"width": 4, "stem_stride": 2, "output_stride": 16}
QUICK = Recipe(
    "quick",
    "resnet50_32",
    RESNET,
    num_classes=2,
    preprocess=Preprocess(32, 32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    epochs=4,
    batch_size=16,
    lr=5e-3,
    ema=0.5,
)


def dark_and_bright(n: int = 64) -> tuple[Tensor, Tensor]:
    """Noise whose class is its mean brightness, as uint8."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    noise = torch.randint(0, 100, (n, 3, 32, 32), generator=g)
    return (noise + 140 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def run(recipe: Recipe = QUICK, **how: Any) -> nn.Module:
    return train(recipe, *dark_and_bright(), **how)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_the_schedule_rises_to_one_and_falls_to_zero() -> None:
    s = Schedule(0.25, 0.5)
    assert [s.lr(t) for t in (0, 0.125, 0.25)] == [0, 0.5, 1]
    assert s.lr(0.625) == pytest.approx(0.5) and s.lr(1) == pytest.approx(0)
    assert [s.eps(t) for t in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 1, 1]
    falling = [s.lr(0.25 + 0.75 * i / 20) for i in range(21)]
    assert falling == sorted(falling, reverse=True) and max(falling) == 1


def test_without_warm_up_the_schedule_starts_at_its_peak() -> None:
    s = Schedule(0.0, 0.0)
    assert s.lr(0) == 1 and s.eps(0) == 1 and s.eps(1) == 1 and s.lr(0.5) == pytest.approx(0.5)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_padding_and_no_flip_is_the_image() -> None:
    x = torch.rand(5, 3, 6, 8, generator=gen())
    assert torch.equal(crop_and_flip(x, pad=0, flip=False, generator=gen()), x)


def test_a_flip_mirrors_about_half_of_the_images_and_changes_no_value() -> None:
    x = torch.rand(200, 3, 4, 6, generator=gen())
    out = crop_and_flip(x, pad=0, flip=True, generator=gen(1))
    kept = (out == x).flatten(1).all(1)
    assert torch.equal(out[~kept], x[~kept].flip(3)) and 70 < int(kept.sum()) < 130


def test_every_crop_is_a_window_of_the_padded_image() -> None:
    x = torch.rand(60, 3, 5, 7, generator=gen()) + 0.1
    out = crop_and_flip(x, pad=2, flip=False, generator=gen(1))
    padded, seen = F.pad(x, (2, 2, 2, 2)), set()
    assert out.shape == x.shape
    for i in range(60):
        at = [(a, b) for a in range(5) for b in range(5) if torch.equal(out[i], padded[i, :, a : a + 5, b : b + 7])]
        assert len(at) == 1
        seen.add(at[0])
    assert {a for a, _ in seen} == {b for _, b in seen} == set(range(5))


def test_augmentation_follows_its_generator() -> None:
    x = torch.rand(9, 3, 8, 8, generator=gen())
    a, b, c = (crop_and_flip(x, pad=3, flip=True, generator=gen(s)) for s in (4, 4, 5))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('id = "a"\narch = "b"\nepoch = 3', r"has the key 'epoch'; did you mean 'epochs'\?"),
        ('id = "a"\narch = "b"\nzzz = 3', r"has the key 'zzz'; known: \['id', 'arch'"),
        ('id = "a"\narch = "b"\neps = 8', r"eps is 8; expected .* such as \"8/255\""),
        ('id = "a"\narch = "b"\neps = "-8/255"', r"eps is -0\.03"),
        ('id = "a"\narch = "b"\neps = "nan"', "eps is nan"),
        ('id = "a"\narch = "b"\neps = "eight"', "'eight' is not a number"),
        ('id = "a"\narch = "b"\nepochs = 0', "epochs and lr must be above 0"),
        ('id = "a"\narch = "b"\nbatch_size = 1', "batch_size at least 2"),
        ('id = "a"\narch = "b"\nlr = -1', "lr must be above 0"),
        ('id = "a"\narch = "b"\nepochs = "3"', "not supported between"),
        ('id = "a"', "missing 1 required positional argument: 'arch'"),
        ('id = "a"\narch = "b"\n[preprocess]\nsizes = 3', "sizes"),
        ("id = ", "is not TOML"),
        ("\x00\x01", "is not TOML"),
    ],
)
def test_bad_recipes_say_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        Recipe.read(tmp_path / "r.toml")


def test_a_missing_recipe_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no recipe at .*r\.toml"):
        Recipe.read(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not TOML"):
        Recipe.read(tmp_path / "r.toml")


def test_a_recipe_says_in_words_how_the_weights_are_made(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        'id = "a"\narch = "b"\neps = "8/255"\nsteps = 3\nstart = "runs/old.safetensors"', encoding="utf-8"
    )
    recipe = Recipe.read(tmp_path / "r.toml")
    assert recipe.threat is not None and recipe.threat.eps == 8 / 255 and recipe.preprocess == Preprocess(32, 32)
    assert recipe.training.startswith("adversarial, PGD-3") and recipe.training.endswith("from old")
    standard = dataclasses.replace(recipe, eps=0.0, start="")
    assert standard.threat is None and standard.training.startswith("standard; 5 epochs, batch 64")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_builds_its_network(path: Path) -> None:
    recipe = Recipe.read(path)
    assert recipe.id == path.stem and (recipe.threat is not None) == ("linf" in recipe.id)
    with torch.device("meta"):
        net = build(recipe.arch, num_classes=recipe.num_classes, arch_args=recipe.arch_args)
    assert 1e6 < sum(p.numel() for p in net.parameters()) < 3e6 or recipe.id.startswith("xcit_nano_d6")
    assert num_classes(net.state_dict()) == 10


def test_recipes_come_in_twins_that_differ_only_in_how_they_train() -> None:
    assert RECIPES
    found = {p.stem: Recipe.read(p) for p in RECIPES}
    for name, recipe in found.items():
        if name.endswith("_standard"):
            robust = found[name.replace("standard", "linf")]
            assert (robust.arch, robust.arch_args, robust.preprocess) == (recipe.arch, recipe.arch_args, recipe.preprocess)


@pytest.mark.parametrize("eps", [0.0, 8 / 255])
def test_training_learns_what_can_be_learned(eps: float, tmp_path: Path) -> None:
    recipe = dataclasses.replace(QUICK, eps=eps, epochs=7, batch_size=8)
    images, labels = dark_and_bright()
    net = train(recipe, images, labels, log=tmp_path / "log.csv")
    model = Model(net, Card("q", recipe.arch, 2, recipe.preprocess, recipe.arch_args))
    assert (model(images / 255).argmax(1) == labels).float().mean() > 0.9
    rows = list(csv.reader((tmp_path / "log.csv").read_text().splitlines()))
    assert rows[0] == ["step", "loss", "accuracy", "images_per_second"]
    assert rows[1][0] == "50" and float(rows[1][1]) < 0.69 and len(rows) == 2
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_training_is_its_seed(tmp_path: Path) -> None:
    recipe = dataclasses.replace(QUICK, eps=8 / 255, epochs=0.5)
    torch.manual_seed(1)
    first = run(recipe)
    torch.manual_seed(2)
    assert same(first, run(recipe))
    assert not same(first, run(dataclasses.replace(recipe, seed=1)))


def test_crafting_alone_leaves_batch_statistics_alone() -> None:
    net = build("resnet50_32", num_classes=2, arch_args=RESNET)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.rand(4, 3, 32, 32, generator=gen())
    attack(net.eval(), x, torch.tensor([0, 1, 0, 1]), PGD(8 / 255, steps=2))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.train()(x)
    assert not torch.equal(net.bn1.running_mean, before["bn1.running_mean"])


def test_batch_statistics_see_one_batch_per_step_and_never_the_crafting() -> None:
    for eps in (0.0, 8 / 255):
        net = run(dataclasses.replace(QUICK, eps=eps, epochs=1, ema=0.0, eps_warmup=0.0, steps=2))
        assert int(net.bn1.num_batches_tracked) == 4


def test_training_goes_on_from_the_weights_it_is_given(tmp_path: Path) -> None:
    first = run()
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "first.safetensors")
    still = dataclasses.replace(QUICK, start=str(tmp_path / "first.safetensors"), lr=1e-12, epochs=0.25, seed=5)
    again = run(still)
    for (name, a), (_, b) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    fresh = run(dataclasses.replace(still, start=""))
    assert not torch.allclose(first.fc.weight, fresh.fc.weight, atol=1e-3)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt does not fit the recipe's architecture: missing: "):
        run(dataclasses.replace(QUICK, start=str(tmp_path / "w.pt")))
    half = build("resnet50_32", num_classes=2, arch_args=RESNET).half()
    torch.save(half.state_dict(), tmp_path / "half.pt")
    net = build("resnet50_32", num_classes=2, arch_args=RESNET)
    load_weights(net, tmp_path / "half.pt")
    assert torch.equal(net.fc.weight, half.fc.weight.float()) and net.fc.weight.dtype == torch.float32


def test_training_refuses_labels_and_amounts_it_cannot_use() -> None:
    images, labels = dark_and_bright()
    with pytest.raises(InputError, match=r"labels go up to 2, the recipe has num_classes = 2"):
        train(QUICK, images, labels + 1)
    with pytest.raises(InputError, match="no labels"):
        train(QUICK, images, labels - 1)
    with pytest.raises(InputError, match=r"15 images do not fill one batch of 16"):
        train(QUICK, images[:15], labels[:15])


def test_a_loss_that_diverges_stops_the_run() -> None:
    with pytest.raises(FloatingPointError, match=r"at step \d+ of .*; lower lr"):
        run(dataclasses.replace(QUICK, lr=1e30, lr_warmup=0.0, clip=1e30))


def test_published_weights_reload_as_the_rounded_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = run(dataclasses.replace(QUICK, epochs=0.5))
    images, labels = dark_and_bright(8)
    test = Batch(images / 255, labels, classes=("dark", "bright"))
    recipe = dataclasses.replace(QUICK, eps=8 / 255)
    card = publish(net, recipe, test, folder=tmp_path / "out", attacked=4)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["quick.safetensors", "quick.toml"]
    assert Card.read(tmp_path / "out" / "quick.toml") == card
    assert card.sha256 == sha256_of(tmp_path / "out" / "quick.safetensors") and card.labels == ("dark", "bright")
    assert card.threat == recipe.threat and card.training == recipe.training
    stored = read(tmp_path / "out" / "quick.safetensors").root
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16}

    monkeypatch.setenv("INTERP_CHECKPOINTS", str(tmp_path / "out"))
    loaded = interp.load("quick")
    rounded = build(recipe.arch, num_classes=2, arch_args=RESNET)
    rounded.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in net.state_dict().items()})
    want = Model(rounded, card)
    assert torch.equal(loaded(test.images), want(test.images)) and loaded.robust
    assert not torch.equal(want(test.images), Model(net, card)(test.images))

    clean, pgd = card.numbers
    right, held = correct(loaded, test), correct(loaded, test[:4], PGD(8 / 255, steps=20, step_size=2 / 255))
    for number, hits in ((clean, right), (pgd, held)):
        want_rate = wilson(int(hits.sum()), len(hits))
        assert (number.value, number.low, number.high) == pytest.approx(want_rate, abs=1e-6) and number.n == len(hits)
    assert f"| `quick` | {loaded.parameters_count / 1e6:.2f} M |" in checkpoint_table([card])
    assert as_text(clean).endswith("n = 8") and as_text(None) == "–"


def test_a_failed_measurement_publishes_nothing(tmp_path: Path) -> None:
    net = build("resnet50_32", num_classes=2, arch_args=RESNET)
    images, _ = dark_and_bright(4)
    with pytest.raises(InputError, match="test images have no labels"):
        publish(net, QUICK, Batch(images / 255, torch.full((4,), -1)), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
