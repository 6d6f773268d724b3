"""Gradient sources against what is known exactly: linear models, completeness, the sum of steps, captum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import interp
from interp.attacks.pgd import PGD, attack
from interp.gradients.accumulate import Accumulate, accumulate, fold
from interp.gradients.sources import gradient, over_noise, over_path, over_steps
from interp.types import Batch
from tests.test_attacks import Linear, some


@pytest.mark.parametrize("source", ["steps", "noise", "path"])
def test_every_source_returns_the_weight_of_a_linear_model(source: str) -> None:
    model, x, y = Linear(), some(3), torch.tensor([0, 1, 2])
    stream = {
        "steps": over_steps(model, x, y, PGD(0.1, steps=4, loss="logit")),
        "noise": over_noise(model, x, y, n=4, sigma=0.2, loss="logit"),
        "path": over_path(model, x, y, n=4, baseline=torch.zeros_like(x), loss="logit"),
    }[source]
    running, cosines = fold(stream)
    assert running.count == 4
    assert torch.allclose(running.mean, -model.weight[y].view_as(x), atol=1e-5)
    assert torch.allclose(cosines, torch.ones(3), atol=1e-5)
    assert torch.allclose(running.variance, torch.zeros_like(x), atol=1e-8)


def test_noise_without_width_is_the_plain_gradient(tiny_models: list[interp.Model]) -> None:
    x, y = some(2, size=32), torch.tensor([1, 2])
    running, _ = fold(over_noise(tiny_models[0], x, y, n=1, sigma=0.0))
    assert torch.allclose(running.mean, gradient(tiny_models[0], x, y), atol=1e-7)


def test_path_gradients_sum_to_the_difference_of_the_loss() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.Tanh(), nn.Linear(16, 4)).requires_grad_(False)
    x, y, baseline = some(3), torch.tensor([0, 1, 2]), torch.zeros(3, 3, 6, 6)
    running, _ = fold(over_path(model, x, y, n=64, baseline=baseline))
    total = (running.mean * (x - baseline)).flatten(1).sum(1)
    expected = -(model(x) - model(baseline)).gather(1, y[:, None])[:, 0]
    assert torch.allclose(total, expected, atol=1e-4)


def test_path_gradients_equal_captums_integrated_gradients() -> None:
    captum = pytest.importorskip("captum.attr")
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.Tanh(), nn.Linear(16, 4)).requires_grad_(False)
    x, y = some(3), torch.tensor([0, 1, 2])
    theirs = captum.IntegratedGradients(model).attribute(x, target=y, n_steps=20, method="riemann_middle")
    running, _ = fold(over_path(model, x, y, n=20, baseline=torch.zeros_like(x)))
    assert torch.allclose(-running.mean * x, theirs.float(), rtol=1e-5, atol=1e-6)


def test_the_sum_of_signs_is_the_perturbation_while_nothing_clips() -> None:
    """δ_T = α·Σ sign g_t as long as neither the ball nor the box is touched."""
    model, y = Linear(), torch.tensor([0, 1])
    x = torch.full((2, 3, 6, 6), 0.5)
    pgd = PGD(0.2, steps=5, step_size=0.01, random_start=False)
    total = torch.stack([g.sign() for g in over_steps(model, x, y, pgd)]).sum(0)
    assert torch.allclose(attack(model, x, y, pgd).x - x, 0.01 * total, atol=1e-6)


def test_accumulated_maps_do_not_depend_on_chunks(tiny_models: list[interp.Model], samples: Batch) -> None:
    whole, single = (
        accumulate(tiny_models[1:2], samples[:3], Accumulate(attack=PGD(0.05, steps=2), chunk=c)).data for c in (3, 1)
    )
    assert abs(whole["mean"] - single["mean"]).max() < 1e-4 * abs(whole["mean"]).max()
    assert whole["cosine"].item() == pytest.approx(single["cosine"].item(), abs=1e-4)


def test_labels_of_an_unlabelled_image_are_the_models_own(tiny_models: list[interp.Model], samples: Batch) -> None:
    bare = Batch(samples.images[:2], torch.tensor([-1, -1]))
    own = Batch(samples.images[:2], tiny_models[0](bare.images).argmax(1))
    a, b = (accumulate(tiny_models[:1], batch, Accumulate(attack=PGD(0.05, steps=2))).data["mean"] for batch in (bare, own))
    assert a.equals(b)


def test_unknown_sources_are_refused() -> None:
    with pytest.raises(interp.InputError, match="steps, noise or path"):
        Accumulate("walk")
