"""The whole comparison on models of which it is known what they see: planted templates, a corner, colour, nothing at all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from interp.attacks.pgd import PGD
from interp.attributes import appearance, edges
from interp.attributes.compare import Compare, compare
from interp.models.model import Model
from interp.models.randomise import fully_randomised
from interp.types import Batch, Card, Preprocess

SIZE, CLASSES, N = 16, 10, 40
PLAIN = Compare(
    PGD(32 / 255, steps=6, targeted=True), PGD(8 / 255, steps=4), ("perturbation", "appearance", "alignment"), sweep=(), chunk=N
)
READ = ("classified", "transferred", "removed")
POINTS = ("toward_mean", "toward_nearest", "class_part")


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(v: Tensor) -> Tensor:
    return v / v.flatten(1).norm(dim=1)[:, None, None, None]


def templates(extra: float = 0.0, seed: int = 0) -> Tensor:
    """Unit patterns (classes, 3, h, w) of no mean colour, with a share of noise added."""
    planted = normals(CLASSES, 3, SIZE, SIZE)
    planted = unit(planted - planted.mean((2, 3), keepdim=True))
    return unit(planted + extra * unit(normals(CLASSES, 3, SIZE, SIZE, seed=seed + 1)))


def card(name: str, arch: str) -> Card:
    return Card(id=name, arch=arch, num_classes=CLASSES, preprocess=Preprocess(SIZE, SIZE))


def linear(name: str, weight: Tensor, arch: str = "generator") -> Model:
    layer = nn.Linear(weight[0].numel(), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(8 * weight.flatten(1))
    return Model(nn.Sequential(nn.Flatten(), layer), card(name, arch))


def window() -> Tensor:
    """A broad Gaussian (h, w): what lies under it is averaged."""
    bump = torch.exp(-(((torch.arange(SIZE) - (SIZE - 1) / 2) / 5) ** 2) / 2)
    return bump[:, None] * bump


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.fc = nn.Linear(16 * (SIZE // 4) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x - 0.5))


def ignorant(seed: int) -> Model:
    """A network with random parameters."""
    found = fully_randomised(Model(Convolutions(), card("", "generator")), seed=seed)
    found.card = card(f"random {seed}", "generator")
    return found


class ResNet(nn.Module):
    """Reads one quarter of a side, squared: from `at` on in both directions. Named so that Grad-CAM knows its layer."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.rows = slice(at, at + SIZE // 4)
        self.layer4 = nn.Conv2d(3, 8, 1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.zeros_like(x)
        seen[..., self.rows, self.rows] = x[..., self.rows, self.rows]
        return self.fc(torch.relu(self.layer4(seen) - self.layer4.bias[:, None, None]).mean((2, 3)))


def looking(name: str, at: int) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(ResNet(at), card(name, name))


def world(n: int = N) -> Batch:
    """Images of the planted patterns in noise, around grey; nothing reaches 0 or 1."""
    labels = torch.arange(n) % CLASSES
    x = 0.5 + 1.4 * templates()[labels] + 0.05 * normals(n, 3, SIZE, SIZE, seed=7)
    return Batch(x.clamp(0.02, 0.98), labels)


JUDGES = [linear("judge", templates(0.5, seed=1), "judge"), linear("other judge", templates(0.5, seed=2), "other")]


RANDOM = tuple(f"random {k}" for k in range(2))


def colour() -> Model:
    """Reads the mean colour under a broad window."""
    return linear("colour", unit(normals(CLASSES, 3, 1, 1, seed=5) * window()))


@pytest.fixture(scope="module")
def found() -> xr.Dataset:
    """Generators of one architecture, so that the same two judges read them all."""
    generators = [linear("planted", templates()), linear("partly", templates(2.0, seed=3)), colour()]
    return compare([*generators, *map(ignorant, range(2)), *JUDGES], world(), PLAIN).data


def of(data: xr.Dataset, name: str, *models: str) -> np.ndarray:
    return data[name].sel(model=list(models)).values


def test_judges_that_share_the_templates_read_the_perturbation_as_its_target(found: xr.Dataset) -> None:
    for name in READ:
        assert of(found, name, "planted") > 0.9 and of(found, f"{name}_above", "planted"), name
    assert of(found, "classified_own", "planted") > 0.9
    spread = 3 * np.sqrt(0.1 * 0.9 / N)
    checks = found["classified_controls"].sel(model="planted")
    assert abs(float(checks.sel(check="noise")) - 1 / CLASSES) < spread
    for check in ("another target", "sign flipped", "blurred image"):  # what is surely the target is nothing else
        assert float(checks.sel(check=check)) < 1 / CLASSES + spread, check


def test_a_random_network_scores_as_its_control(found: xr.Dataset) -> None:
    for name in (*READ, "became", "fooled", *POINTS):
        assert not of(found, f"{name}_above", *RANDOM).any(), name
    for name in READ:
        assert np.abs(of(found, name, *RANDOM) - of(found, f"{name}_control", *RANDOM)).max() < 0.15, name
    assert np.abs(of(found, "class_part", *RANDOM)).max() < 0.03


def test_scores_rise_with_what_was_planted(found: xr.Dataset) -> None:
    for name in ("transferred", *POINTS):
        whole, part, *none = of(found, name, "planted", "partly", *RANDOM)
        assert whole > part > max(none), name
        p = found[f"{name}_p"].sel(model=["planted", "partly"], other=["partly", "random 0"]).values
        assert p[0, 0] < 0.05 and p[1, 1] < 0.05, name
        assert found[name].attrs["best"] == ("" if name == "transferred" else "planted"), name  # judges have no judge in common
    whole, part, *none = of(found, "classified", "planted", "partly", *RANDOM)
    assert whole >= part > max(none) + 0.5


def test_a_model_of_colour_writes_no_class_and_has_the_smoothest_gradient(found: xr.Dataset) -> None:
    for name in (*READ, *POINTS):
        assert not of(found, f"{name}_above", "colour"), name
    for name in ("gradient_centroid", "total_variation"):
        assert of(found, name, "colour") < 0.3 * of(found, name, "planted", "partly", *RANDOM).min(), name
        assert found[name].attrs["best"] == "colour", name
    assert of(found, "persistence", "colour") > max(of(found, "persistence", *RANDOM))


def test_the_perturbation_of_a_model_of_colour_has_the_lowest_centroid() -> None:
    """In L2 and from the image itself: a δ of signs is constant, and what is left of a random start would be all there is."""
    drawn = dataclasses.replace(PLAIN, attack=PGD(1.0, norm="l2", steps=4, targeted=True, random_start=False))
    models = [linear("planted", templates()), colour(), ignorant(0), *JUDGES]
    data = compare(models, world(24), dataclasses.replace(drawn, groups=("appearance",))).data
    assert data["centroid"].attrs["best"] == "colour" and of(data, "centroid", "colour") < 0.1
    assert of(data, "centroid", "planted", "random 0").min() > 0.3
    assert of(data, "persistence", "colour") > 0.95 and of(data, "centroid_above", "colour")
    assert not of(data, "persistence_above", "planted", "colour").any()  # linear networks with random parameters have it too


def test_a_random_network_looks_like_others_of_its_architecture() -> None:
    models = [ignorant(seed) for seed in range(11, 14)]
    for model in models:
        model.card = card(model.card.id, "convolutions")
    data = compare(models, world(32), dataclasses.replace(PLAIN, groups=("appearance",))).data
    directed = [m.name for m in (*appearance.MEASURES, *edges.MEASURES) if m.better != "none"]
    above = np.array([of(data, f"{name}_above", *[m.card.id for m in models]) for name in directed])
    assert len(directed) == 7 and above.mean() < 0.25, dict(zip(directed, above.tolist(), strict=True))


@pytest.mark.parametrize(("at", "name", "other"), [(0, "corner", "centre"), (6, "centre", "corner")])
def test_a_model_that_looks_at_one_place_is_found_there_and_nowhere_else(at: int, name: str, other: str) -> None:
    masks = torch.zeros(24, SIZE, SIZE, dtype=torch.bool)
    masks[:, at : at + SIZE // 4, at : at + SIZE // 4] = True
    models = [looking("corner", 0), looking("centre", 6)]
    data = compare(models, dataclasses.replace(world(24), masks=masks), dataclasses.replace(PLAIN, groups=("where",))).data
    assert of(data, "gradient_mass", name, other).tolist() == pytest.approx([1, 0], abs=1e-6)
    assert of(data, "gradient_pointing", name, other).tolist() == [1, 0]
    assert of(data, "gradient_mass_above", name, other).tolist() == [True, False]
    assert data["gradient_mass"].attrs["best"] == name
    assert of(data, "map_pointing", name, other).tolist() == [1, 0]
    assert of(data, "map_mass", name) > of(data, "map_mass", other)
    blind = of(data, "gradient_pointing_control", name)  # of the corner an even map's, the better of the two
    assert blind == (1 if name == "centre" else pytest.approx(1 / 16))  # a map around the centre proves nothing there
    assert of(data, "gradient_pointing_above", name) == (name == "corner")
