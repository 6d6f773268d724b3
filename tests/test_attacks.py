"""The budget, the box, the direction, and the agreement with other implementations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.attacks.norms import NORMS
from interp.attacks.pgd import LOSSES, PGD, attack, pgd_steps, start_noise
from interp.attacks.sweep import Sweep, Synthesis, sweep, synthesise
from interp.types import Batch


class Linear(nn.Module):
    """Logits of a fixed linear map: its input gradient is known exactly."""

    def __init__(self, classes: int = 4, size: int = 6, seed: int = 0) -> None:
        super().__init__()
        self.weight = 0.1 * torch.randn(classes, 3 * size * size, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


def some(n: int, size: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("eps", [0.5 / 255, 8 / 255, 0.5, 20.0])
def test_every_iterate_stays_in_ball_and_box(n: int, norm: str, targeted: bool, eps: float) -> None:
    x, y = some(n), torch.arange(n) % 4
    steps = list(pgd_steps(Linear(), x, y, PGD(eps, norm, steps=4, targeted=targeted)))
    assert [s.index for s in steps] == [0, 1, 2, 3, 4]
    for step in steps:
        assert NORMS[norm].size(step.x - x).max() <= eps * (1 + 1e-5) + 1e-7
        assert step.x.min() >= 0
        assert step.x.max() <= 1


@pytest.mark.parametrize("norm", list(NORMS))
def test_random_start_fills_the_ball_of_every_sample(norm: str) -> None:
    z, u = start_noise((400, 3, 2, 2), seed=0)
    sizes = NORMS[norm].size(NORMS[norm].start(z, u, torch.linspace(0.1, 2, 400))) / torch.linspace(0.1, 2, 400)
    assert sizes.max() <= 1 + 1e-5
    # P(size ≤ r·ε) = r^12 in 12 dimensions for both balls: the median lies at ½^(1/12)
    assert (sizes <= 0.5 ** (1 / 12)).float().mean() == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("norm", list(NORMS))
def test_projection_leaves_the_inside_alone_and_is_idempotent(norm: str) -> None:
    d, eps = some(5) - 0.5, torch.full((5,), 0.3)
    once = NORMS[norm].project(d, eps)
    assert torch.allclose(NORMS[norm].project(once, eps), once, atol=1e-7)
    tiny = d * 1e-3
    assert torch.equal(NORMS[norm].project(tiny, eps), tiny)


def test_zero_budget_returns_the_image() -> None:
    x, y = some(3), torch.zeros(3, dtype=torch.long)
    assert torch.equal(attack(Linear(), x, y, PGD(0.0, steps=3)).x, x)


def test_one_fgsm_step_on_a_linear_model_is_the_sign_of_the_known_gradient() -> None:
    model, x, y = Linear(), some(2) * 0.5 + 0.25, torch.tensor([0, 3])
    got = attack(model, x, y, PGD(0.01, steps=1, step_size=0.01, random_start=False, loss="logit")).x
    assert torch.allclose(got, x - 0.01 * model.weight[y].view_as(x).sign(), atol=1e-6)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_loss_rises_away_and_falls_toward(loss: str) -> None:
    x, y = some(4), torch.arange(4)
    away = list(pgd_steps(Linear(), x, y, PGD(0.1, steps=5, loss=loss, random_start=False)))
    toward = list(pgd_steps(Linear(), x, y, PGD(0.1, steps=5, loss=loss, random_start=False, targeted=True)))
    assert (away[-1].loss > away[0].loss).all()
    assert (toward[-1].loss < toward[0].loss).all()


def test_batch_of_n_equals_n_batches_of_one() -> None:
    x, y, pgd = some(4), torch.arange(4), PGD(0.1, steps=3, restarts=2)
    whole = attack(Linear(), x, y, pgd).x
    single = torch.cat([attack(Linear(), x[i : i + 1], y[i : i + 1], pgd, first=i).x for i in range(4)])
    assert torch.allclose(whole, single, atol=1e-6)


def test_restarts_never_lose_loss() -> None:
    x, y = some(6), torch.arange(6) % 4
    one, three = (attack(Linear(), x, y, PGD(0.3, steps=2, restarts=r)).loss for r in (1, 3))
    assert (three >= one - 1e-6).all()


def test_a_given_start_is_projected_and_used() -> None:
    x = some(2)
    steps = list(pgd_steps(Linear(), x, torch.zeros(2, dtype=torch.long), PGD(0.1, steps=1), start=1 - x))
    assert torch.allclose(steps[0].x, (x + (1 - 2 * x).clamp(-0.1, 0.1)).clamp(0, 1))


def test_unbounded_synthesis_starts_with_a_thirtieth_of_its_pixels_inside() -> None:
    """With ε = 15, x + U(−15, 15) lies inside (0, 1) with probability 1/30 for every x in [0, 1]."""
    x = some(40, size=16)
    start = next(iter(pgd_steps(Linear(size=16), x, torch.zeros(40, dtype=torch.long), PGD(15.0, steps=1)))).x
    inside = ((start > 0) & (start < 1)).float()
    assert inside.mean().item() == pytest.approx(1 / 30, abs=4 * (1 / 30 / inside.numel()) ** 0.5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_agrees_with_foolbox_from_the_same_start(tiny_models: list[interp.Model], norm: str) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x, y = tiny_models[2], some(3, size=32), torch.tensor([1, 5, 9])
    eps = 8 / 255 if norm == "linf" else 0.5
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    theirs = kind(abs_stepsize=eps / 4, steps=4, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, expected, _ = theirs(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=eps)
    ours = attack(model, x, y, PGD(eps, norm, steps=4, step_size=eps / 4, random_start=False)).x
    assert (ours - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"eps": -8 / 255}, "≥ 0"),
        ({"eps": float("nan")}, "≥ 0"),
        ({"norm": "l7"}, "linf"),
        ({"loss": "hinge"}, "margin"),
        ({"steps": 0}, "at least 1"),
        ({"step_size": -1.0}, "> 0"),
    ],
)
def test_parameters_without_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(interp.InputError, match=said):
        PGD(**({"eps": 0.1} | wrong))  # type: ignore[arg-type]


def test_sweep_keeps_the_budget_and_reads_what_it_shows(tiny_models: list[interp.Model], samples: Batch) -> None:
    batch, params = samples[:3], Sweep((8 / 255, 1.0), PGD(8 / 255, steps=2), chunk=2)
    result = sweep(tiny_models, batch, params)
    original = result.data["original"].values
    for i, eps in enumerate(params.eps):
        distance = np.abs(result.data["picture"].values[:, :, i] - original).max()
        assert distance <= eps + 1e-6
    shown = torch.from_numpy(result.data["picture"].values[0, 1, 1]).permute(0, 3, 1, 2)
    assert (tiny_models[0](shown).argmax(1).numpy() == result.data["predicted"].values[0, 1, 1]).all()
    assert (result.data["target"].values == (batch.labels.numpy() + 1) % 10).all()
    assert set(result.table()["measure"]) == {"success"}


def test_sweep_does_not_depend_on_chunks(tiny_models: list[interp.Model], samples: Batch) -> None:
    params = Sweep((0.1,), PGD(0.1, steps=1))
    whole, pieces = (sweep(tiny_models[1:2], samples[:4], dataclasses.replace(params, chunk=c)).data for c in (4, 1))
    different = np.abs(whole["picture"].values - pieces["picture"].values) > 1e-4
    assert different.mean() < 0.01  # single pixels may differ where a gradient is zero up to rounding


def test_targets_outside_the_classes_are_refused(tiny_models: list[interp.Model], samples: Batch) -> None:
    with pytest.raises(interp.InputError, match="0 to 9"):
        sweep(tiny_models, samples[:1], Sweep((0.1,), PGD(0.1, steps=1), target=10))


def test_synthesis_raises_the_models_own_confidence(tiny_models: list[interp.Model], samples: Batch) -> None:
    short, longer = (
        synthesise(tiny_models, samples[:1], Synthesis(PGD(15.0, steps=s, step_size=0.05, targeted=True))).data for s in (1, 12)
    )
    assert (longer["own"].mean("target") > short["own"].mean("target")).all()
    assert longer["picture"].shape == (3, 1, 10, 32, 32, 3)
