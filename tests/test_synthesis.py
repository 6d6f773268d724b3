"""Synthesis: where it begins, toward what it goes, and who says that it got there."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp.attacks.pgd import PGD
from interp.attacks.starts import class_gaussian, other_images, uniform
from interp.attacks.sweep import judged
from interp.attacks.synthesis import Synthesis, synthesise
from interp.models.model import Model
from interp.types import Batch

STILL = PGD(15.0, steps=1, step_size=1e-7, targeted=True)  # ends where it begins


def as_images(pictures: Any) -> Tensor:
    return torch.from_numpy(pictures.values.reshape(-1, *pictures.shape[-3:])).permute(0, 3, 1, 2)


def test_it_raises_the_models_own_confidence_and_says_what_models_read(tiny_models: list[Model], samples: Batch) -> None:
    short, longer = (
        synthesise(tiny_models, samples[:1], Synthesis(PGD(15.0, steps=s, step_size=0.05, targeted=True))).data for s in (1, 12)
    )
    assert (longer["own"].mean("target") > short["own"].mean("target")).all()
    assert longer["picture"].shape == (3, 1, 10, 32, 32, 3)
    for m, model in enumerate(tiny_models):
        drawn = as_images(longer["picture"][m])
        belief = model(drawn).softmax(1)
        assert np.allclose(longer["own"].values[m, 0], belief.diagonal().numpy(), atol=1e-4)
        assert np.array_equal(longer["predicted"].values[m, 0], belief.argmax(1).numpy())
        assert np.allclose(longer["others"].values[m, 0], judged(tiny_models, m, drawn, torch.arange(10)).numpy(), atol=1e-5)


def test_it_starts_with_a_thirtieth_of_its_pixels_inside(tiny_models: list[Model], samples: Batch) -> None:
    """x + U(−15, 15), clipped, lies strictly inside (0, 1) with probability 1/30 whatever x, so where the two are independent."""
    data = synthesise(tiny_models[:1], samples[:1], Synthesis(STILL, seeds=4)).data
    inside = (data["picture"].values > 1e-5) & (data["picture"].values < 1 - 1e-5)
    assert inside.mean() == pytest.approx(1 / 30, abs=4 * (1 / 30 / inside.size) ** 0.5)
    rest = data["picture"].values[~inside].round()
    assert rest.mean() == pytest.approx(0.5, abs=4 * 0.5 / rest.size**0.5)


@pytest.mark.parametrize("random_start", [True, False])
def test_the_first_row_is_what_it_begins_from(tiny_models: list[Model], samples: Batch, random_start: bool) -> None:
    attack = dataclasses.replace(STILL, random_start=random_start)
    data = synthesise(tiny_models[:1], samples[:1], Synthesis(attack)).data
    assert np.abs(data["picture"].values[0] - data["start"].values).max() < 1e-6
    inside = ((data["start"].values > 0) & (data["start"].values < 1)).mean()
    assert inside == (pytest.approx(1 / 30, abs=0.01) if random_start else pytest.approx(1, abs=0.01))


def test_seeds_draw_other_pictures_and_the_same_ones_again(tiny_models: list[Model], samples: Batch) -> None:
    one, again = (synthesise(tiny_models[:1], samples[:1], Synthesis(STILL, seeds=2, chunk=c)).data for c in (3, 20))
    assert np.array_equal(one["start"].values, again["start"].values)
    assert np.allclose(one["picture"].values, again["picture"].values, atol=1e-5)
    assert np.abs(one["picture"].values[:, 0] - one["picture"].values[:, 1]).mean() > 0.1
    other = synthesise(tiny_models[:1], samples[:1], Synthesis(dataclasses.replace(STILL, seed=1))).data
    assert np.abs(one["start"].values[0] - other["start"].values[0]).mean() > 0.1


@pytest.mark.parametrize("start", ["gaussian", "images"])
def test_other_starts_are_begun_from_as_they_are(tiny_models: list[Model], samples: Batch, start: str) -> None:
    data = synthesise(tiny_models[:1], samples, Synthesis(STILL, start=start, targets=(3, 5), seeds=2)).data
    assert data["target"].values.tolist() == ["cat", "dog"]
    assert np.allclose(data["picture"].values[0], data["start"].values, atol=1e-6)
    if start == "images":
        for picture, target in zip(as_images(data["start"]), (3, 5, 3, 5), strict=True):
            rows = [i for i, image in enumerate(samples.images) if torch.equal(image, picture)]
            assert rows
            assert all(samples.labels[i] != target for i in rows)


def test_targets_are_all_classes_or_ten_of_many_or_those_named(tiny_models: list[Model], tiny: Any, samples: Batch) -> None:
    assert synthesise(tiny_models[:1], samples[:1], Synthesis(STILL)).data["target"].values.tolist() == list(samples.classes)
    named = synthesise(tiny_models[:1], samples[:1], Synthesis(STILL, targets=(9, 0))).data["target"].values.tolist()
    assert named == ["truck", "airplane"]
    from interp.attacks.synthesis import _aims

    assert _aims(Synthesis(), 1000) == [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert _aims(Synthesis(), 20) == list(range(20))


def test_neither_chunk_nor_fields_added_later_are_in_the_key(tiny_models: list[Model], samples: Batch) -> None:
    one, two = (synthesise(tiny_models[:1], samples[:1], Synthesis(STILL, targets=(1,), chunk=c)) for c in (1, 2))
    assert one.key == two.key
    assert set(one.params) == {"attack", "seeds", "targets"}


def test_uniform_noise_belongs_to_images_and_fills_the_box() -> None:
    whole = uniform((6, 3, 20, 20), seed=3)
    assert torch.equal(torch.cat([uniform((2, 3, 20, 20), seed=3), uniform((4, 3, 20, 20), seed=3, first=2)]), whole)
    values = whole.flatten().sort().values
    assert (values - torch.linspace(0, 1, len(values))).abs().max() < 1.95 / len(values) ** 0.5
    assert not torch.equal(uniform((6, 3, 20, 20), seed=4), whole)


def test_class_gaussian_has_the_class_s_mean_and_covariance() -> None:
    """In six dimensions and away from the box, where clipping is rare; of the other class nothing enters."""
    g = torch.Generator().manual_seed(0)
    mixed = 0.03 * torch.randn(6, 6, generator=g)
    own = (0.5 + torch.randn(9, 6, generator=g) @ mixed).clamp(0.3, 0.7).view(9, 3, 1, 2)
    batch = Batch(torch.cat([own, torch.ones(3, 3, 1, 2)]), torch.tensor([4] * 9 + [2] * 3))
    n = 8_000
    drawn = class_gaussian(batch, torch.full((n,), 4), seed=0).flatten(1).double()
    truth = own.flatten(1).double()
    covariance = truth.T.cov()
    spread = covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - truth.mean(0)).abs() < 5 * spread / n**0.5).all()
    assert ((drawn.T.cov() - covariance).abs() < 5 * torch.outer(spread, spread) * (2 / n) ** 0.5).all()
    z = ((drawn[:, 0] - truth[:, 0].mean()) / spread[0]).sort().values
    assert (torch.special.ndtr(z) - (torch.arange(n) + 0.5) / n).abs().max() < 1.95 / n**0.5
    assert torch.equal(class_gaussian(batch, torch.tensor([4, 2]), seed=0)[1], torch.ones(3, 1, 2))


def test_class_gaussian_stays_in_the_box_and_needs_two_images(samples: Batch) -> None:
    targets = torch.tensor([0, 8, 1, 6, 8])
    drawn = class_gaussian(samples, targets, seed=1)
    assert drawn.min() == 0  # some were outside
    assert drawn.max() <= 1
    assert torch.equal(class_gaussian(samples, targets[2:4], seed=1, first=2), drawn[2:4])
    assert not torch.equal(drawn[1], drawn[4])
    with pytest.raises(interp.InputError, match="has 1 images of class cat"):
        class_gaussian(samples[[samples.labels.tolist().index(3)]], torch.tensor([3]), seed=0)
    with pytest.raises(interp.InputError, match="has 0 images of class 11"):
        class_gaussian(samples, torch.tensor([11]), seed=0)


def test_other_images_take_turns_among_those_of_other_classes() -> None:
    x = torch.linspace(0, 1, 4).view(4, 1, 1, 1).expand(4, 3, 2, 2).contiguous()
    batch = Batch(x, torch.tensor([0, 1, 1, 2]))
    taken = other_images(batch, torch.tensor([1, 1, 1, 0]))
    assert taken[:, 0, 0, 0].tolist() == [x[i, 0, 0, 0].item() for i in (0, 3, 0, 1)]
    with pytest.raises(interp.InputError, match="all images of the batch are of class 1"):
        other_images(batch[[1, 2]], torch.tensor([1]))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"attack": PGD(15.0)}, "needs a targeted attack"),
        ({"attack": PGD(15.0, targeted=True, loss="squared")}, "on one of ce, logit, margin, dlr"),
        ({"seeds": 0}, "seeds is 0"),
        ({"start": "zeros"}, "noise, gaussian, images"),
    ],
)
def test_parameters_without_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(interp.InputError, match=said):
        Synthesis(**wrong)


def test_wrong_targets_and_models_of_other_classes_are_refused(tiny_models: list[Model], samples: Batch) -> None:
    with pytest.raises(interp.InputError, match=r"\[10, -1\] are outside 0 to 9"):
        synthesise(tiny_models, samples[:1], Synthesis(STILL, targets=(10, 3, -1)))
    other = Model(tiny_models[0].net, dataclasses.replace(tiny_models[0].card, num_classes=11, labels=()))
    with pytest.raises(interp.InputError, match="one set of classes"):
        synthesise([tiny_models[1], other], samples[:1], Synthesis(STILL))
