"""Training: a run that learns, stops and goes on; fine-tuning; a checkpoint that reloads."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import interp
from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.data.source import Pixels
from interp.loading.detect import num_classes
from interp.loading.read import read, sha256_of
from interp.models.build import build
from interp.models.model import Model
from interp.publish import as_text, checkpoint_table, publish
from interp.robustness.accuracy import correct
from interp.stats import wilson
from interp.training.loop import Diverged, train
from interp.training.recipe import Recipe
from interp.training.record import read_state, rows_of
from interp.training.start import fill
from interp.training.trainer import Trainer
from interp.types import Batch, Card, InputError, Preprocess

RECIPES = [p for p in sorted((Path(__file__).parents[1] / "recipes").glob("*.toml")) if p.stem != "ablation"]
RESNET = {"width": 4, "stem_stride": 2, "output_stride": 16}
SMALL = {"depth": 18, "width": 8, "stem_stride": 2}
QUICK = Recipe(
    "quick",
    "resnet_32",
    SMALL,
    num_classes=2,
    preprocess=Preprocess(32, 32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    epochs=4,
    batch_size=16,
    lr=5e-3,
    lr_warmup=0.4,
    ema=0.5,
)
ROBUST = dataclasses.replace(QUICK, objective="pgd", eps=8 / 255, step_size=1.25, eps_period=0.5)


def dark_and_bright(n: int = 64) -> Pixels:
    """Noise whose class is its mean brightness."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    noise = torch.randint(0, 100, (n, 3, 32, 32), generator=g)
    pixels = (noise + 140 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return Pixels(pixels, labels, tuple(map(str, range(n))), ("dark", "bright"))


def run(recipe: Recipe = QUICK, **how: Any) -> nn.Module:
    return train(recipe, dark_and_bright(), **how)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_builds_its_network(path: Path) -> None:
    recipe = Recipe.read(path)
    assert recipe.id == path.stem and (recipe.threat is None) == recipe.id.endswith("_standard")
    with torch.device("meta"):
        net = build(recipe.arch, num_classes=recipe.num_classes, arch_args=recipe.arch_args)
    assert num_classes(net.state_dict()) == recipe.num_classes
    assert Recipe.of(tomllib.loads(recipe.to_toml()), "again") == recipe


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_takes_a_step(path: Path) -> None:
    recipe = dataclasses.replace(Recipe.read(path), start="", batch_size=4, precision="float32")
    trainer = Trainer(recipe, total=10, per_epoch=0.1, device=torch.device("cpu"))
    x = torch.randint(0, 256, (4, 3, recipe.preprocess.size, recipe.preprocess.size), dtype=torch.uint8, generator=gen())
    before = [p.clone() for p in trainer.model.parameters()]
    seen = [trainer.step(x, torch.tensor([0, 1, 2, 3])) for _ in range(2)]
    assert all(torch.isfinite(s.loss) for s in seen) and seen[1].eps == (recipe.eps if recipe.threat else 0)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_recipes_come_in_twins_that_differ_only_in_how_they_train() -> None:
    assert RECIPES
    found = {p.stem: Recipe.read(p) for p in RECIPES}
    for name, recipe in found.items():
        if name.endswith("_standard"):
            robust = found[name.replace("standard", "linf")]
            assert (robust.arch, robust.arch_args, robust.preprocess) == (recipe.arch, recipe.arch_args, recipe.preprocess)


@pytest.mark.parametrize("objective", ["standard", "pgd", "trades", "mart", "score"])
def test_training_learns_what_can_be_learned(objective: str, tmp_path: Path) -> None:
    recipe = dataclasses.replace(QUICK, objective=objective, eps=8 / 255 * (objective != "standard"), epochs=4, batch_size=8)
    data = dark_and_bright()
    watch = Batch(data.pixels[:8] / 255, data.labels[:8])
    net = train(recipe, data, folder=tmp_path, watch=watch)
    model = Model(net, Card("q", recipe.arch, 2, recipe.preprocess, recipe.arch_args))
    assert (model(data.pixels / 255).argmax(1) == data.labels).float().mean() > 0.9
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    rows = rows_of(tmp_path)
    assert [int(r["step"]) for r in rows] == [8, 16, 24, 32]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) and float(rows[-1]["accuracy"]) > 0.8
    assert 1 >= float(rows[-1]["clean"]) >= float(rows[-1]["pgd10"]) >= 0
    assert Recipe.read(tmp_path / "recipe.toml") == recipe


def test_metrics_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(dataclasses.replace(QUICK, epochs=2), folder=tmp_path)
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    rows = rows_of(tmp_path)
    assert [(e.step, pytest.approx(e.value, rel=1e-4)) for e in seen.Scalars("loss")] == [
        (int(r["step"]), float(r["loss"])) for r in rows
    ]


def test_hat_learns_with_its_helper(checkpoints: Path) -> None:
    with pytest.raises(InputError, match="helper tiny_standard has 10 classes, the recipe 2"):
        run(dataclasses.replace(ROBUST, objective="hat", helper="tiny_standard"))
    ten = dataclasses.replace(ROBUST, objective="hat", helper="tiny_standard", num_classes=10, epochs=0.5)
    data = dataclasses.replace(dark_and_bright(), classes=())
    assert not same(train(ten, data), train(dataclasses.replace(ten, gamma=0.0), data))


def test_training_is_its_seed(tmp_path: Path) -> None:
    recipe = dataclasses.replace(ROBUST, epochs=0.5, drop_path=0.1, erasing=0.5, mixup=0.8, cutmix=1.0)
    torch.manual_seed(1)
    first = run(recipe)
    torch.manual_seed(2)
    assert same(first, run(recipe))
    assert not same(first, run(dataclasses.replace(recipe, seed=1)))


def test_training_leaves_the_random_generators_alone() -> None:
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    run(dataclasses.replace(ROBUST, epochs=0.25, cutmix=1.0))
    assert torch.equal(torch.rand(2), want)


def test_crafting_alone_leaves_batch_statistics_alone() -> None:
    net = build("resnet_32", num_classes=2, arch_args=SMALL)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.rand(4, 3, 32, 32, generator=gen())
    attack(net.eval(), x, torch.tensor([0, 1, 0, 1]), PGD(8 / 255, steps=2))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.train()(x)
    assert not torch.equal(net.bn1.running_mean, before["bn1.running_mean"])


@pytest.mark.parametrize("recipe", [QUICK, ROBUST, dataclasses.replace(ROBUST, awp=0.01)], ids=["standard", "pgd", "awp"])
def test_batch_statistics_see_one_batch_per_step_and_never_the_crafting(recipe: Recipe) -> None:
    net = run(dataclasses.replace(recipe, epochs=1, ema=0.0, eps_period=0.0, steps=2))
    assert int(net.bn1.num_batches_tracked) == 4


def test_the_step_size_follows_epsilon_or_not() -> None:
    """With ε = 4/255 in force of 8/255, a step of ε/2: 2/255 where it follows, else 4/255."""
    moved = {}
    for follows in (True, False):
        recipe = dataclasses.replace(ROBUST, random_start=False, step_size=0.5, eps_period=2.0, step_follows=follows)
        trainer = Trainer(recipe, total=16, per_epoch=4, device=torch.device("cpu"))
        x = torch.full((2, 3, 32, 32), 0.4)
        moved[follows] = float((trainer._craft(x, torch.tensor([0, 1]), 4 / 255) - x).abs().max()) * 255
    assert moved == {True: pytest.approx(2, rel=1e-3), False: pytest.approx(4, rel=1e-3)}


class _Stop(Exception):
    pass


def _ctrl_c_in(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a real SIGINT from inside the backward pass of that step."""
    backward, count = torch.Tensor.backward, [0]

    def interrupted(self: torch.Tensor, *args: Any, **how: Any) -> None:
        count[0] += 1
        if count[0] == steps:
            os.kill(os.getpid(), signal.SIGINT)
        backward(self, *args, **how)

    monkeypatch.setattr(torch.Tensor, "backward", interrupted)


def _stop_after(steps: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Let training end with an error once it has taken that many steps."""
    step = Trainer.step

    def stopping(self: Trainer, *batch: Any) -> Any:
        if self.index == steps:
            raise error
        return step(self, *batch)

    monkeypatch.setattr(Trainer, "step", stopping)


FULL = dataclasses.replace(
    ROBUST, drop_path=0.1, randaugment="rand-m9-mstd0.5-inc1", erasing=0.5, mixup=0.8, cutmix=1.0, awp=0.005, epochs=2
)


@pytest.mark.parametrize("recipe", [ROBUST, FULL], ids=["plain", "everything"])
def test_a_killed_run_goes_on_to_the_weights_of_an_uninterrupted_one(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(recipe, folder=tmp_path / "whole")
    with monkeypatch.context() as patch:
        _ctrl_c_in(6, patch)  # within the second epoch; the step is finished first
        with pytest.raises(KeyboardInterrupt):
            run(recipe, folder=tmp_path / "cut")
    with monkeypatch.context() as patch:
        _stop_after(7, patch, _Stop)  # as if killed: what is kept is still the state of step 6
        with pytest.raises(_Stop):
            run(recipe, folder=tmp_path / "cut")
    assert int((read_state(tmp_path / "cut", recipe) or {})["step"]) == 6
    assert same(run(recipe, folder=tmp_path / "cut"), whole)
    steps = [[r["step"] for r in rows_of(tmp_path / name) if int(r["step"]) % 4 == 0] for name in ("whole", "cut")]
    assert steps[0] == steps[1] and not list(tmp_path.rglob(".part-*"))
    assert interp.load(tmp_path / "cut" / "last.safetensors").card.training == recipe.training


def test_a_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(folder=tmp_path)
    _stop_after(0, monkeypatch, _Stop)
    assert same(run(folder=tmp_path), first)
    with pytest.raises(_Stop):
        run(folder=tmp_path, fresh=True)
    assert not (tmp_path / "state.pt").exists()


def test_another_recipe_does_not_go_on_from_a_run(tmp_path: Path) -> None:
    run(dataclasses.replace(QUICK, epochs=0.25), folder=tmp_path)
    with pytest.raises(InputError, match=r"holds a run of another recipe \(now epochs = 4.*--fresh"):
        run(folder=tmp_path)
    other = dark_and_bright()
    for data in (dataclasses.replace(other, labels=1 - other.labels), dataclasses.replace(other, pixels=255 - other.pixels)):
        with pytest.raises(InputError, match="holds a run on other training images; give another --out-dir"):
            train(dataclasses.replace(QUICK, epochs=0.25), data, folder=tmp_path)
    (tmp_path / "state.pt").write_bytes(b"half a sta")
    with pytest.raises(InputError, match=r"state\.pt cannot be read .* --fresh"):
        run(folder=tmp_path)


def test_a_loss_that_diverges_keeps_the_last_good_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = dataclasses.replace(QUICK, lr=1e30, lr_warmup=0.0, clip=0.0)
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+ of 16\. Lower lr \(now 1e\+30\)"):
        run(wild)
    step = Trainer.step

    def late(self: Trainer, *batch: Any) -> Any:
        if self.index == 6:
            with torch.no_grad():
                self.model.net.fc.weight.fill_(torch.nan)
        return step(self, *batch)

    monkeypatch.setattr(Trainer, "step", late)
    with pytest.raises(Diverged, match=r"at step 7 of 16; the last good weights are .*last\.safetensors"):
        run(folder=tmp_path)
    assert int((read_state(tmp_path, QUICK) or {})["step"]) == 4
    assert all(torch.isfinite(v).all() for v in read(tmp_path / "last.safetensors").root.values())


def test_weights_become_infinite_without_the_loss(tmp_path: Path) -> None:
    """A last step that spoils the weights shows in no loss any more: the state is checked, not only the loss."""
    recipe = dataclasses.replace(QUICK, epochs=0.25, lr=3e38, lr_warmup=0.0, clip=0.0, optimizer="sgd")
    with pytest.raises(Diverged):
        run(recipe, folder=tmp_path)
    assert not (tmp_path / "state.pt").exists()


def test_memory_that_runs_out_suggests_a_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    _stop_after(1, monkeypatch, torch.OutOfMemoryError)
    with pytest.raises(InputError, match=r"batch_size 16 does not fit into the memory of cpu; try --set batch_size=8"):
        run()


def test_training_goes_on_from_the_weights_it_is_given(tmp_path: Path) -> None:
    first = run()
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "first.safetensors")
    still = dataclasses.replace(QUICK, start=str(tmp_path / "first.safetensors"), lr=1e-12, epochs=0.25, seed=5)
    again = run(still)
    for (name, a), (_, b) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    fresh = run(dataclasses.replace(still, start=""))
    assert not torch.allclose(first.fc.weight, fresh.fc.weight, atol=1e-3)


@pytest.mark.parametrize("arch", ["xcit_p4", "xcit_p8"])
def test_an_xcit_with_patches_of_16_becomes_one_with_smaller_ones_and_a_new_head(arch: str, tmp_path: Path) -> None:
    big = timm.create_model("xcit_nano_12_p16_224", num_classes=7, depth=2, embed_dim=32)
    torch.save({"model": big.state_dict()}, tmp_path / "p16.pt")
    recipe = Recipe("x", arch, {"depth": 2, "embed_dim": 32}, start=str(tmp_path / "p16.pt"), num_classes=2)
    tuned = train(dataclasses.replace(recipe, lr=1e-12, epochs=0.25, batch_size=16), dark_and_bright())
    assert tuned.patch_embed.patch_size == int(arch[-1])
    for name, tensor in tuned.named_parameters():
        if not name.startswith("head."):
            assert torch.allclose(tensor, big.get_parameter(name), atol=1e-6), name
    assert tuned.head.weight.shape == (2, 32)


def test_a_vit_takes_another_image_size_by_interpolating_its_positions() -> None:
    args = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4}
    old = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, **args)
    new = timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=3, **args)
    assert fill(new, old.state_dict(), "old") == []
    assert new.pos_embed.shape[1] == 145 and torch.equal(new.pos_embed[:, 0], old.pos_embed[:, 0])
    same_size = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, **args)
    assert fill(same_size, old.state_dict(), "old") == ["head.weight", "head.bias"]
    assert torch.equal(same_size.pos_embed, old.pos_embed)


def test_weights_of_another_architecture_are_refused() -> None:
    net = build("resnet50_32", num_classes=2, arch_args=RESNET)
    with pytest.raises(InputError, match=r"old does not fit the recipe's architecture: missing: "):
        fill(net, {"fc.weight": torch.ones(2, 2)}, "old")
    wide = build("resnet50_32", num_classes=2, arch_args=RESNET | {"width": 8})
    with pytest.raises(InputError, match="of another shape: "):
        fill(net, wide.state_dict(), "old")
    half = build("resnet50_32", num_classes=2, arch_args=RESNET).half()
    assert fill(net, half.state_dict(), "half") == []
    assert torch.equal(net.fc.weight, half.fc.weight.float()) and net.fc.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "arch", [("xcit_p4", {"depth": 2, "embed_dim": 32}), ("resnet50_32", RESNET), ("vit_tiny_patch16_224", {})]
)
def test_drop_path_reaches_the_network_and_leaves_the_card_alone(arch: tuple[str, dict[str, Any]]) -> None:
    from interp.training.start import first_network

    recipe = Recipe("d", *arch, drop_path=0.2)
    rates = [m.drop_prob for m in first_network(recipe).modules() if type(m).__name__ == "DropPath"]
    assert rates and max(rates) == pytest.approx(0.2) and "drop_path_rate" not in recipe.arch_args


def test_l2_is_trained_and_measured_in_l2(tmp_path: Path) -> None:
    recipe = dataclasses.replace(ROBUST, norm="l2", eps=0.5, step_size=None, steps=2)
    trainer = Trainer(recipe, total=4, per_epoch=4, device=torch.device("cpu"))
    x = torch.rand(6, 3, 32, 32, generator=gen())
    moved = (trainer._craft(x, torch.arange(6) % 2, 0.5) - x).flatten(1).norm(dim=1)
    assert moved.max() <= 0.5 + 1e-5 and moved.min() > 0.1
    run(recipe, folder=tmp_path)
    assert float(rows_of(tmp_path)[-1]["accuracy"]) > 0.7


def test_weight_decay_spares_vectors_and_what_the_network_names() -> None:
    trainer = Trainer(Recipe("x", "xcit_p8", {"embed_dim": 32, "depth": 1}), total=1, per_epoch=1, device=torch.device("cpu"))
    decayed = {id(p) for p in trainer.optimiser.param_groups[0]["params"]}
    names = {name for name, p in trainer.model.net.named_parameters() if id(p) in decayed}
    assert "blocks.0.mlp.fc1.weight" in names and not names & {"cls_token", "blocks.0.norm1.weight", "head.bias"}
    assert trainer.optimiser.param_groups[1]["weight_decay"] == 0


def test_bf16_and_sgd_and_onecycle_train(tmp_path: Path) -> None:
    recipe = dataclasses.replace(ROBUST, precision="bf16", optimizer="sgd", lr=0.02, lr_schedule="onecycle", epochs=5)
    net = run(recipe, folder=tmp_path)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert float(rows_of(tmp_path)[-1]["accuracy"]) > 0.7


@pytest.mark.slow
def test_a_compiled_run_learns_as_well(tmp_path: Path) -> None:
    run(dataclasses.replace(ROBUST, compile=True, epochs=5), folder=tmp_path)
    assert float(rows_of(tmp_path)[-1]["accuracy"]) > 0.7


def test_several_processes_train_as_one(tmp_path: Path) -> None:
    """Two processes with halves of each batch, gradients averaged: the weights of one."""
    script = tmp_path / "two.py"
    script.write_text(
        "import dataclasses, sys, torch\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from tests.test_training import ROBUST, TWO, Trainer, dark_and_bright\n"
        "from interp.training.loop import train\n"
        "if __name__ == '__main__':\n"
        "    torch.set_num_threads(1)\n"
        "    net = train(TWO, dark_and_bright(), folder=Path('run'))\n"
        "    again = dataclasses.replace(ROBUST, objective='trades', awp=0.005, epochs=2)\n"  # with batch statistics
        "    other = train(again, dark_and_bright(), folder=Path('whole'))\n"
        "    step = Trainer.step\n"
        "    def stopping(self, *batch):\n"
        "        if self.index == 6:\n"
        "            raise KeyError\n"
        "        return step(self, *batch)\n"
        "    Trainer.step = stopping\n"
        "    try:\n"
        "        train(again, dark_and_bright(), folder=Path('cut'))\n"
        "    except KeyError:\n"
        "        Trainer.step = step\n"
        "    torch.distributed.barrier()\n"
        "    more = train(again, dark_and_bright(), folder=Path('cut'))\n"
        "    import os\n"
        "    torch.save([net.state_dict(), other.state_dict(), more.state_dict()], f'weights{os.environ[\"RANK\"]}.pt')\n"
        "    torch.distributed.destroy_process_group()\n"
    )
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "two.py"]
    done = subprocess.run(
        launch, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = train(TWO, dark_and_bright()).state_dict()
    both = [torch.load(tmp_path / f"weights{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, want in alone.items():
        assert torch.equal(both[0][0][name], both[1][0][name]), name
        assert torch.allclose(both[0][0][name], want, atol=2e-5), name
    assert [int(r["step"]) for r in rows_of(tmp_path / "run")] == [4, 8]
    for name, want in both[0][1].items():  # both processes hold one network, and a run cut off at step 6 goes on to it
        assert torch.equal(both[1][1][name], want) and torch.equal(both[0][2][name], want), name


TWO = Recipe(
    "two",
    "vit_tiny_patch16_224",  # no batch norm: its statistics are per process
    {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    num_classes=2,
    objective="pgd",
    eps=4 / 255,
    steps=2,
    epochs=2,
    batch_size=16,
    optimizer="sgd",
    lr=0.01,
    pad=0,
    flip=False,
    random_start=False,
)


def test_published_weights_reload_as_the_rounded_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = run(dataclasses.replace(QUICK, epochs=0.5))
    data = dark_and_bright(8)
    test = Batch(data.pixels / 255, data.labels, classes=("dark", "bright"))
    recipe = ROBUST
    card = publish(net, recipe, test, folder=tmp_path / "out", attacked=4)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["quick.safetensors", "quick.toml"]
    assert Card.read(tmp_path / "out" / "quick.toml") == card
    assert card.sha256 == sha256_of(tmp_path / "out" / "quick.safetensors") and card.labels == ("dark", "bright")
    assert card.threat == recipe.threat and card.training == recipe.training
    stored = read(tmp_path / "out" / "quick.safetensors").root
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16}

    monkeypatch.setenv("INTERP_CHECKPOINTS", str(tmp_path / "out"))
    loaded = interp.load("quick")
    rounded = build(recipe.arch, num_classes=2, arch_args=SMALL)
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
    net = build("resnet_32", num_classes=2, arch_args=SMALL)
    pixels = dark_and_bright(4).pixels
    with pytest.raises(InputError, match="test images have no labels"):
        publish(net, QUICK, Batch(pixels / 255, torch.full((4,), -1)), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
