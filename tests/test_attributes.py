"""Measures on cases whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import interp
from interp.attacks.pgd import PGD
from interp.attributes.classify import as_image, read_as
from interp.attributes.compare import CONTROL, MEASURES, Compare, compare
from interp.attributes.edges import alignment, sobel
from interp.gradients.spectrum import centroid, energy, radial
from interp.models.model import judges_of
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


def test_comparison_is_complete_and_the_control_scores_like_noise(tiny_models: list[interp.Model], samples: Batch) -> None:
    params = Compare(PGD(32 / 255, steps=2, targeted=True), PGD(8 / 255, steps=2), targets=2)
    result = compare(tiny_models, samples[:6], params)
    data = result.data
    assert data["model"].values.tolist()[-1] == CONTROL
    for m in MEASURES:
        assert np.isfinite(data[m.name]).all()
        assert (data[f"{m.name}_low"] <= data[m.name]).all()
        assert (data[m.name] <= data[f"{m.name}_high"]).all()
        assert np.allclose(data[f"values_{m.name}"].mean("image"), data[m.name], atol=1e-5)
    control = data.isel(model=-1)
    assert control["centroid"].item() == pytest.approx(0.3826, abs=0.02)
    assert abs(control["edges"].item()) < 0.1
    assert abs(control["persistence"].item()) < 0.05
    rows = result.table()
    assert set(rows.columns) >= {"model", "measure", "value", "low", "high", "n", "unit", "better"}


def test_the_generator_is_not_its_own_independent_judge(tiny_models: list[interp.Model], samples: Batch) -> None:
    """The mean over independent judges is the mean of the matrix row without its diagonal."""
    data = compare(tiny_models, samples[:6], Compare(PGD(0.2, steps=2, targeted=True), PGD(0.1, steps=2), targets=2)).data
    for g in range(len(tiny_models)):
        others = [j for j in range(len(tiny_models)) if j != g]
        assert data["transferred"].values[g] == pytest.approx(data["transferred_to"].values[g, others].mean(), abs=1e-6)


def test_twins_have_the_same_judges(tiny: Callable[..., interp.Model]) -> None:
    models = [tiny("xcit", id="x_linf"), tiny("xcit", id="x_standard"), tiny("resnet"), tiny("mobilevit")]
    assert judges_of(models, 0) == judges_of(models, 1) == [2, 3]
    assert judges_of(models[:2], 0) == [1]
    assert judges_of(models[:1], 0) == []
    assert judges_of(models, None) == [0, 1, 2, 3]


def test_one_model_alone_has_no_independent_judge(tiny_models: list[interp.Model], samples: Batch) -> None:
    params = Compare(PGD(0.1, steps=1, targeted=True), PGD(0.1, steps=2), targets=1)
    result = compare(tiny_models[:1], samples[:2], params)
    assert np.isnan(result.data["classified"].values[0])
    result.plot()  # draws a dash for what is not defined


def test_unlabelled_images_are_refused(tiny_models: list[interp.Model], samples: Batch) -> None:
    with pytest.raises(interp.InputError, match="labelled"):
        compare(tiny_models, Batch(samples.images[:1], torch.tensor([-1])))
