"""AutoAttack: exact on linear models whose robust radius is known, the package's own answer, and nothing left behind."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.models.model import Model
from interp.plots.curves import accuracies
from interp.report import words
from interp.result import as_plain
from interp.robustness.accuracy import Accuracy, accuracy
from interp.robustness.autoattack import autoattack
from interp.stats import wilson
from interp.types import Batch, Card, InputError, Preprocess

SIZE = 8
DUAL = {"linf": 1.0, "l2": 2.0}  # order of the norm that a linear model's radius is measured in


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_model(net: nn.Module, classes: int, **card: Any) -> Model:
    fields: dict[str, Any] = {"id": "analytic", "preprocess": Preprocess(SIZE, SIZE)} | card
    return Model(net, Card(arch="analytic", num_classes=classes, **fields))


def linear(classes: int, **card: Any) -> Model:
    layer = nn.Linear(3 * SIZE**2, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=seeded()) / 10)
        layer.bias.copy_(-layer.weight.sum(1) / 2)  # all logits are equal at grey
    return as_model(nn.Sequential(nn.Flatten(), layer), classes, **card)


def radius(model: Model, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Distance (n,) of images to the nearest decision boundary: least margin over the dual norm of the weights' difference."""
    weight, bias = (v.double() for v in model.net[1].parameters())
    logits = x.flatten(1).double() @ weight.T + bias
    gaps = logits.gather(1, y[:, None]) - logits
    sizes = (weight[y][:, None] - weight[None]).norm(p=DUAL[norm], dim=2)
    return (gaps / sizes).scatter(1, y[:, None], torch.inf).amin(1)


def at_distance(model: Model, distances: list[float], norm: str) -> Batch:
    """Images whose radius is as given: from grey, where it is zero, toward what a class looks for, where it grows linearly.

    A negative distance is that of an image with a wrong label.
    """
    want, classes = torch.tensor(distances).double(), model.card.num_classes
    weight = model.net[1].weight
    y = torch.arange(len(want)) % classes
    toward = (weight - weight.mean(0))[y].sign().view(-1, 3, SIZE, SIZE) / 4
    share = want.abs() / radius(model, 0.5 + toward, y, norm)
    images = 0.5 + share.float().view(-1, 1, 1, 1) * toward
    assert torch.allclose(radius(model, images, y, norm), want.abs(), rtol=1e-3)
    return Batch(images, torch.where(want < 0, (y + 1) % classes, y))


@pytest.fixture
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Square with 200 instead of 5000 queries, for tests of all but its strength."""
    usual = pyautoattack.AutoAttack._set_version

    def quick(official: Any, version: str = "standard") -> None:
        usual(official, version)
        official.square.n_queries = 200

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", quick)


def keeps_what_lies_further_than_eps(classes: int, norm: str, eps: float, version: str) -> bool:
    model = linear(classes)
    batch = at_distance(model, [1.05 * eps, 0.95 * eps, -3 * eps], norm)
    held = autoattack(model, batch, norm=norm, eps=eps, version=version)
    return held.dtype == bool and held.tolist() == [True, False, False]


@pytest.mark.parametrize(("classes", "norm"), [(5, "linf"), pytest.param(12, "l2", marks=pytest.mark.slow)])
def test_a_linear_model_keeps_what_lies_further_than_eps(classes: int, norm: str, caplog: pytest.LogCaptureFixture) -> None:
    assert keeps_what_lies_further_than_eps(classes, norm, 0.005 if norm == "linf" else 0.06, "standard")
    assert not [r for r in caplog.records if r.name.startswith("interp")]


@pytest.mark.usefixtures("few_queries")
def test_so_it_does_in_l2_and_with_other_attacks() -> None:
    assert keeps_what_lies_further_than_eps(4, "l2", 0.06, "rand")


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("classes", [2, 3])
def test_so_it_does_with_too_few_classes_for_the_dlr_loss(classes: int, caplog: pytest.LogCaptureFixture) -> None:
    assert keeps_what_lies_further_than_eps(classes, "linf", 0.005, "standard")
    (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("interp")]
    assert said.startswith(f"AutoAttack without apgd-t: the DLR loss is not defined for {classes} classes")
    assert said.endswith("left are apgd-ce, fab-t, square")


def test_no_attack_runs_whose_loss_needs_more_classes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    ran: dict[int, tuple[Any, ...]] = {}

    def record(official: Any, x: Tensor, y: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        aimed = official.apgd_targeted.n_target_classes, official.fab.n_target_classes
        ran[official.model(x).shape[1]] = (*aimed, official.attacks_to_run)
        return x, y

    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", record)
    for classes in (2, 3, 4, 10, 100):
        model = linear(classes)
        assert autoattack(model, at_distance(model, [0.1], "linf"), version="plus").all()
    last = ["fab", "square"]
    assert ran[2] == (1, 1, ["apgd-ce", *last, "fab-t"])
    assert ran[3] == (2, 2, ["apgd-ce", "apgd-dlr", *last, "fab-t"])
    assert [ran[c] for c in (4, 10, 100)] == [(n, n, ["apgd-ce", "apgd-dlr", *last, "apgd-t", "fab-t"]) for n in (3, 9, 9)]
    assert len(caplog.records) == 2


@pytest.mark.usefixtures("few_queries")
def test_agrees_with_the_package_called_directly() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 24), nn.ReLU(), nn.Linear(24, 5))
    model = as_model(net, 5)
    x = torch.rand(6, 3, SIZE, SIZE, generator=seeded())
    y = model(x).argmax(1)
    y[1] = (y[1] + 1) % 5
    held = autoattack(model, Batch(x, y), eps=0.02, chunk=3, seed=3)
    official = pyautoattack.AutoAttack(net, eps=0.02, seed=3)
    official.apgd_targeted.n_target_classes = official.fab.n_target_classes = 4
    _, predicted = official.run_standard_evaluation(x, y, batch_size=3)
    assert held.tolist() == (predicted == y).tolist()
    assert not held[1] and 0 < held.sum() < 5


def test_nothing_is_left_behind(capfd: pytest.CaptureFixture[str]) -> None:
    model = linear(5)
    batch = at_distance(model, [0.001, 0.002], "linf")
    before, tracer = model.net[1].weight.clone(), sys.gettrace()
    filters, loggers = list(warnings.filters), logging.getLogger("auto-attack").handlers[:]
    state = torch.get_rng_state()

    def trace(*_: Any) -> None:
        return None

    sys.settrace(trace)
    try:
        with torch.no_grad():
            assert not autoattack(model, batch, eps=0.1).any()
            assert not torch.is_grad_enabled()
        assert sys.gettrace() is trace
    finally:
        sys.settrace(tracer)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() and warnings.filters == filters
    assert logging.getLogger("auto-attack").handlers == loggers
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters()) and not model.training
    assert torch.equal(model.net[1].weight, before)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eps": 0.0}, r"ε is 0.0; AutoAttack needs a number > 0"),
        ({"eps": -8 / 255}, "ε is -0.03137"),
        ({"eps": float("nan")}, "ε is nan"),
        ({"norm": "l3"}, "norm is 'l3'; AutoAttack is run in one of linf, l2"),
        ({"version": "custom"}, "version is 'custom'; expected one of standard, plus, rand"),
        ({"chunk": 0}, "chunk is 0; expected at least 1"),
        ({"labels": torch.tensor([-1])}, "AutoAttack needs labelled images"),
        ({"labels": torch.tensor([5])}, "has 5 classes, the images have a label 5"),
        ({"images": torch.rand(1, 3, 9, 9)}, r"takes images \(n, 3, 8, 8\); found \(1, 3, 9, 9\)"),
    ],
)
def test_what_cannot_be_run_is_refused(change: dict[str, Any], says: str) -> None:
    data = {"images": torch.rand(1, 3, SIZE, SIZE), "labels": torch.tensor([0])}
    batch = Batch(**{k: change.get(k, v) for k, v in data.items()})
    with pytest.raises(InputError, match=says):
        autoattack(linear(5), batch, **{k: v for k, v in change.items() if k not in data})


@pytest.mark.usefixtures("few_queries")
def test_accuracy_has_it_as_a_third_measure_on_demand() -> None:
    models = [linear(4, id="a", training="standard"), linear(4, id="b")]
    eps = 0.005
    batch = at_distance(models[0], [2 * eps, 0.5 * eps, -2 * eps], "linf")
    pgd = interp.PGD(eps, steps=5)
    plain, full = (accuracy(models, batch, Accuracy(pgd, autoattack=on)) for on in (False, True))
    assert plain.measures == ["clean", "attacked"] and full.measures == ["clean", "attacked", "autoattack"]
    rows = full.table().set_index(["model", "measure"])
    for model in ("a", "b"):
        row = rows.loc[(model, "autoattack")]
        assert (row["value"], row["low"], row["high"]) == pytest.approx(tuple(wilson(1, 3)))
        assert (row["n"], row["unit"], row["better"]) == (3, "share", "higher")
    for name in plain.data.data_vars:
        assert np.array_equal(plain.data[name], full.data[name])
    drawn = {r: accuracies(result).axes[0] for r, result in (("plain", plain), ("full", full))}
    assert "◆ under AutoAttack" in drawn["full"].get_xlabel() and "AutoAttack" not in drawn["plain"].get_xlabel()
    markers = [{str(line.get_marker()) for c in ax.containers for line in [c.lines[0]]} for ax in drawn.values()]
    assert markers == [{"o", "s"}, {"o", "s", "D"}]
    assert "under AutoAttack 33% [" in words.accuracy(full).seen and "AutoAttack" not in words.accuracy(plain).seen


def test_what_is_not_asked_for_does_not_count_in_the_key() -> None:
    assert as_plain(Accuracy()) == {"attack": as_plain(Accuracy().attack)}
    assert as_plain(Accuracy(chunk=8)) == as_plain(Accuracy()) | {"chunk": 8}
    assert as_plain(Accuracy(autoattack=True)) == as_plain(Accuracy()) | {"autoattack": True}


def test_the_command_runs_it_when_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoints: Path) -> None:
    asked: list[tuple[str, float]] = []

    def all_hold(model: Model, batch: Batch, **how: Any) -> np.ndarray:
        asked.append((how["norm"], how["eps"]))
        return np.ones(len(batch), bool)

    monkeypatch.setattr("interp.robustness.accuracy.autoattack", all_hold)
    command = ["accuracy", "tiny_linf", "-n", "2", "--eps", "4/255", "--out-dir", str(tmp_path)]
    for more, calls in (([], 0), (["--autoattack"], 1)):
        done = CliRunner().invoke(app, [*command, *more])
        assert done.exit_code == 0 and len(asked) == calls and ("autoattack" in done.output) == bool(calls)
    assert asked == [("linf", 4 / 255)] and len(list((tmp_path / "results").iterdir())) == 2
    shown = CliRunner().invoke(app, ["accuracy", "--help"], env={"COLUMNS": "200"}).output
    assert "5 to 90 s per robust image" in shown
