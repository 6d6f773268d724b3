"""Measures on cases whose answer is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

import interp
from interp.attacks.pgd import PGD
from interp.attributes.classify import as_image, read_as
from interp.attributes.compare import PER_IMAGE, Compare, compare, goals_of
from interp.attributes.edges import alignment, sobel
from interp.attributes.groups import Sizes
from interp.attributes.table import Column, tabulate
from interp.gradients.spectrum import centroid, energy, radial
from interp.models.model import judges_of
from interp.result import Measure
from interp.types import Batch


def noise(n: int, size: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_energy_obeys_parseval() -> None:
    v = noise(3)
    centred = v - v.mean((2, 3), keepdim=True)
    assert torch.allclose(energy(v)[1].sum((1, 2)), 32 * 32 * centred.square().sum((1, 2, 3)), rtol=1e-4)


def test_centroid_of_a_wave_is_its_frequency() -> None:
    for k in (1, 5, 12):
        wave = torch.sin(2 * torch.pi * k * torch.arange(32) / 32).expand(1, 3, 32, 32)
        assert centroid(wave).item() == pytest.approx(k / 32, abs=1e-4)
        assert radial(wave)[1].max().item() == pytest.approx(1.0, abs=1e-4)


def test_centroid_of_white_noise_is_the_mean_frequency() -> None:
    assert centroid(noise(64)).mean().item() == pytest.approx(0.3826, abs=0.003)


def test_blur_lowers_the_centroid() -> None:
    v = noise(4)
    assert (centroid(torch.nn.functional.avg_pool2d(v, 5, 1, 2)) < centroid(v)).all()


def test_edges_align_with_themselves_and_not_with_noise(samples: Batch) -> None:
    x = samples.images
    assert torch.allclose(alignment(sobel(x)[:, None], x), torch.ones(len(x)), atol=1e-5)
    assert alignment(noise(len(x)), x).abs().mean() < 0.06


def test_sobel_finds_a_step_and_nothing_on_a_plain() -> None:
    x = torch.zeros(1, 3, 8, 8)
    x[..., 4:] = 1
    found = sobel(x)[0]
    assert (found[:, 3:5] == 4).all()
    assert (found[:, :3] == 0).all()
    assert (found[:, 5:] == 0).all()


def test_perturbation_as_image_maps_zero_to_grey_and_ends_to_ends() -> None:
    assert torch.allclose(as_image(torch.tensor([-0.1, 0.0, 0.1]), 0.1), torch.tensor([0.0, 0.5, 1.0]))


def test_judges_read_in_chunks_what_they_read_at_once(tiny_models: list[interp.Model], samples: Batch) -> None:
    a, b = (read_as(tiny_models[0], samples.images, samples.labels, chunk=c) for c in (20, 3))
    assert torch.equal(a, b)


ONE = Compare(
    PGD(32 / 255, steps=2, targeted=True), PGD(8 / 255, steps=2), ("perturbation", "appearance", "alignment"), (0.1,), 4
)


def test_comparison_is_complete_and_does_not_depend_on_the_chunk(tiny_models: list[interp.Model], samples: Batch) -> None:
    result, parts = (compare(tiny_models, samples, dataclasses.replace(ONE, chunk=chunk)) for chunk in (20, 7))
    data = result.data
    assert result.key == parts.key
    names = [m.name for group in ONE.groups for m in PER_IMAGE[group]]
    assert [m for m in result.measures if data[m].dims == ("model",)] == names
    for name in names:
        assert np.isfinite(data[name]).all()
        assert (data[f"{name}_low"] <= data[name]).all() and (data[name] <= data[f"{name}_high"]).all()
        assert np.allclose(data[f"values_{name}"].mean("image"), data[name], atol=1e-5)
        close = np.isclose(data[f"values_{name}"], parts.data[f"values_{name}"], atol=2e-3, equal_nan=True)
        assert close.mean() > 0.95  # a random network's first choice may turn on rounding
        apart = data[f"{name}_difference"].values
        assert np.allclose(apart, -apart.T, equal_nan=True)
    assert data["centroid_control"].values[0] == pytest.approx(0.3826, abs=0.02)
    assert abs(data["edges_control"].values[0]) < 0.1 and abs(data["persistence_control"].values[0]) < 0.05
    assert abs(data["class_part_control"].values[0]) < 0.02
    assert set(result.table().columns) >= {"model", "measure", "value", "low", "high", "n", "unit", "better"}
    result.plot()


def test_the_generator_is_not_its_own_independent_judge(tiny_models: list[interp.Model], samples: Batch) -> None:
    """The mean over independent judges is the mean of the matrix row without its diagonal."""
    data = compare(tiny_models, samples[:6], dataclasses.replace(ONE, groups=("perturbation",))).data
    for g in range(len(tiny_models)):
        others = [j for j in range(len(tiny_models)) if j != g]
        assert data["transferred"].values[g] == pytest.approx(data["transferred_to"].values[g, others].mean(), abs=1e-6)
        assert data["transferred_own"].values[g] == pytest.approx(data["transferred_to"].values[g, g])


def test_goals_reach_every_other_class_evenly() -> None:
    labels = torch.arange(10).repeat(18)
    goals = goals_of(labels, 10)
    pairs = torch.stack([labels, goals], 1).unique(dim=0, return_counts=True)
    assert len(pairs[0]) == 90 and (pairs[1] == 2).all() and (goals != labels).all()


def test_all_groups_run_on_tiny_models_or_say_why_not(tiny_models: list[interp.Model], samples: Batch) -> None:
    sizes = Sizes(20, 20, 20, 4, 2, PGD(15.0, steps=2, targeted=True))
    groups = ("written", "pictures", "where", "distances")
    result = compare(tiny_models, samples, dataclasses.replace(ONE, groups=groups, sizes=sizes))
    assert "where: the images have no masks" in result.data.attrs["skipped"]
    assert {"picture_read_accuracy", "alignment"} <= set(result.measures)
    masks = torch.zeros(20, 32, 32, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    found = compare(tiny_models, dataclasses.replace(samples, masks=masks), dataclasses.replace(ONE, groups=("where",)))
    assert {"gradient_mass", "map_pointing"} <= set(found.measures)


def test_a_measure_equal_to_its_control_says_nothing_and_the_best_is_better_than_all() -> None:
    rng = np.random.default_rng(0)
    m = Measure("m", "m", "", "", "", "lower")
    control = rng.normal(1, 0.1, (3, 60))
    same = tabulate([Column(m, rng.normal(1, 0.1, (3, 60)), control, "noise")], ["a", "b", "c"], [(0, 1)])
    assert not same["m_above"].any() and same["m"].attrs["verdict"].startswith("says nothing") and same["m"].attrs["best"] == ""
    values = np.stack([rng.normal(mean, 0.1, 60) for mean in (0.8, 0.5, 0.2)])
    data = tabulate([Column(m, values, control, "noise")], ["a", "b", "c"], [(0, 1), (1, 2)])
    assert data["m_above"].all() and data["m"].attrs["best"] == "c"
    assert data["m"].attrs["verdict"] == "robust against standard: lower in 2 of 2"
    few = tabulate([Column(m, values[:, :10], control[:, :10], "noise")], ["a", "b", "c"], [(0, 1)])
    assert few["m"].attrs["verdict"].startswith("not judged") and few["m"].attrs["best"] == ""


def test_twins_have_the_same_judges(tiny: Callable[..., interp.Model]) -> None:
    models = [tiny("xcit", id="x_linf"), tiny("xcit", id="x_standard"), tiny("resnet"), tiny("mobilevit")]
    assert judges_of(models, 0) == judges_of(models, 1) == [2, 3]
    assert judges_of(models[:2], 0) == [1]
    assert judges_of(models[:1], 0) == []
    assert judges_of(models, None) == [0, 1, 2, 3]


def test_one_model_alone_has_no_independent_judge(tiny_models: list[interp.Model], samples: Batch) -> None:
    result = compare(tiny_models[:1], samples[:2], dataclasses.replace(ONE, groups=("perturbation",)))
    assert np.isnan(result.data["classified"].values[0])
    result.plot()  # draws a dash for what is not defined


def test_unlabelled_images_are_refused(tiny_models: list[interp.Model], samples: Batch) -> None:
    with pytest.raises(interp.InputError, match="labelled"):
        compare(tiny_models, Batch(samples.images[:1], torch.tensor([-1])))
