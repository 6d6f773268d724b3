"""The analysis: its arrays and measures, whatever the chunk; classes, paths, precision; and the figures made of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.attacks.pgd import PGD
from interp.gradients.accumulate import PATHS, SOURCES, Accumulate, accumulate
from interp.gradients.concentration import entropy, gini
from interp.gradients.paths import RULES
from interp.gradients.sources import gradient
from interp.models.model import Model
from interp.plots.gradients import profiles
from interp.report.words import gradients as words
from interp.types import Batch, Card, Preprocess
from tests.test_attacks import some

QUICK = PGD(8 / 255, steps=4)


def quick(over: str, **given: object) -> Accumulate:
    return Accumulate(over, QUICK, n=4, **{"chunk": 4, **given})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small() -> Model:
    """A smooth network for 8 × 8 images of four classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 64, 4))
    card = Card("small", "none", 4, Preprocess(8, 8, mean=(0.5,) * 3, std=(0.25,) * 3), labels=("cat", "dog", "frog", "ship"))
    return Model(net, card)


@pytest.fixture(scope="module")
def images() -> Batch:
    return Batch(some(5, size=8), torch.tensor([0, 2, 2, 1, 0]), classes=("cat", "dog", "frog", "ship"))


@pytest.mark.parametrize("over", SOURCES)
def test_nothing_depends_on_chunks(over: str, small: Model, images: Batch) -> None:
    whole, single, tuned = (accumulate([small], images, quick(over, chunk=c)) for c in (64, 1, None))
    assert whole.key == single.key == tuned.key
    for other in (single.data, tuned.data):
        assert set(other) == set(whole.data)
        for name, v in whole.data.items():
            scale = np.nanmax(abs(v.values)) if v.dtype.kind == "f" else 0
            error = 1e-5 if "completeness" in str(name) else 2e-5 * scale  # a small difference of large sums
            np.testing.assert_allclose(other[name].values, v.values, rtol=2e-4, atol=error, err_msg=str(name))


def test_families_of_networks_do_not_depend_on_chunks_either(tiny_models: list[interp.Model], samples: Batch) -> None:
    whole, single = (accumulate(tiny_models, samples[:3], quick("steps", chunk=c)).data for c in (3, 1))
    assert abs(whole["mean"] - single["mean"]).max() < 1e-3 * abs(whole["mean"]).max()
    assert whole["cosine"].values == pytest.approx(single["cosine"].values, abs=1e-3)


def test_n_images_are_n_times_one_image(small: Model, images: Batch) -> None:
    whole = accumulate([small], images, quick("path")).data
    for i in range(len(images)):
        one = accumulate([small], images[[i]], quick("path")).data
        np.testing.assert_allclose(one["attribution"].values[0, 0], whole["attribution"].values[0, i], rtol=1e-4, atol=1e-6)
        assert float(one["entropy"][0]) == pytest.approx(float(whole["values_entropy"][0, i]), rel=1e-4)


@pytest.mark.parametrize("over", SOURCES)
def test_the_result_of_every_source(over: str, small: Model, images: Batch) -> None:
    result = accumulate([small, small], images, quick(over))
    data, n = result.data, 3 if over == "class" else 5
    assert data["mean"].dims == ("model", "image", "y", "x", "channel") and data["mean"].shape == (2, n, 8, 8, 3)
    assert data["agreement"].dims == ("model", "image", "y", "x") and float(data["agreement"].max()) <= 1
    assert (data["absolute"].values >= abs(data["mean"].values) - 1e-6).all() and (data["variance"].values >= 0).all()
    assert ("attribution" in data) == ("completeness" in data) == (over in PATHS)
    assert ("turns" in data) == (over in ("steps", "path", "blur"))
    assert data["spectrum"].sum("frequency").values == pytest.approx(1, rel=1e-5)
    assert set(result.measures) >= {"cosine", "centroid", "entropy", "gini"}
    for name in result.measures:
        low, mean, high = (float(data[name + end][0]) for end in ("_low", "", "_high"))
        assert low <= mean <= high and data[name].attrs["better"] == "none" and data[name].attrs["n"] == n
    assert result.plot().axes and profiles(result).axes
    text = words(result)
    assert "nan" not in text.seen and (over in text.how or over in ("steps", "class"))


def test_one_draw_without_width_is_the_plain_gradient(small: Model, images: Batch) -> None:
    found = accumulate([small], images, Accumulate("noise", n=1, sigma=0.0)).data
    want = gradient(small, images.images, images.labels).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found["mean"].values[0], want, rtol=1e-4, atol=1e-6)
    assert math.isnan(float(found["cosine"][0]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("loss", [None, "ce", "margin"])
def test_attributions_are_complete(rule: str, loss: str | None, small: Model, images: Batch) -> None:
    few, many = (accumulate([small], images, Accumulate("path", n=n, rule=rule, loss=loss, chunk=64)).data for n in (2, 32))
    errors = [float(data["completeness"][0]) for data in (few, many)]
    assert errors[1] < 0.02 and errors[1] < errors[0] / 3
    difference = (many["mean"] * (many["original"] - 0.5)).sum(("y", "x", "channel"))
    np.testing.assert_allclose(many["attribution"].sum(("y", "x", "channel")), -difference, rtol=1e-4)


@pytest.mark.parametrize("baseline", ["black", "white", "blur", "mean"])
def test_every_baseline_is_complete(baseline: str, small: Model, images: Batch) -> None:
    found = accumulate([small], images, Accumulate("path", n=16, baseline=baseline, precision="float64")).data
    assert float(found["completeness"][0]) < 1e-3
    assert float(accumulate([small], images, Accumulate("blur", n=32)).data["completeness"][0]) < 0.02


def test_attributions_stand_for_the_class(small: Model, images: Batch) -> None:
    """They sum to what the label's logit gains over the baseline, as captum's do."""
    found = accumulate([small], images, Accumulate("path", n=16)).data
    grey = torch.full_like(images.images, 0.5)
    gain = (small(images.images) - small(grey)).gather(1, images.labels[:, None])[:, 0]
    np.testing.assert_allclose(found["attribution"].sum(("y", "x", "channel")).values[0], gain.numpy(), rtol=1e-3, atol=1e-4)


def test_classes_are_accumulated_over_their_images(small: Model, images: Batch) -> None:
    data = accumulate([small], images, Accumulate("class")).data
    assert data["image"].values.tolist() == ["cat (2 images)", "dog (1 images)", "frog (2 images)"]
    g = gradient(small, images.images, images.labels).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(data["mean"].values[0, 2], g[[1, 2]].mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(data["variance"].values[0, 2], g[[1, 2]].var(0), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(data["original"].values[2], images.images[[1, 2]].mean(0).permute(1, 2, 0), rtol=1e-5)
    assert math.isnan(data["values_cosine"].values[0, 1])  # one image has no neighbour


def test_double_precision(small: Model, images: Batch) -> None:
    exact, plain = (accumulate([small], images, quick("path", precision=p)) for p in ("float64", "float32"))
    assert exact.data["mean"].dtype == np.float64 and plain.data["mean"].dtype == np.float32 and exact.key != plain.key
    np.testing.assert_allclose(plain.data["mean"], exact.data["mean"], rtol=1e-3, atol=1e-5)
    assert abs(plain.data["mean"] - exact.data["mean"]).max() > 0


def test_labels_of_an_unlabelled_image_are_the_models_own(tiny_models: list[interp.Model], samples: Batch) -> None:
    bare = Batch(samples.images[:2], torch.tensor([-1, -1]))
    own = Batch(samples.images[:2], tiny_models[0](bare.images).argmax(1))
    a, b = (accumulate(tiny_models[:1], batch, quick("steps")).data["mean"] for batch in (bare, own))
    assert a.equals(b)
    with pytest.raises(interp.InputError, match="labelled images"):
        accumulate(tiny_models[:1], bare, quick("class"))


def test_what_was_saved_before_keeps_its_key(small: Model, images: Batch) -> None:
    plain = accumulate([small], images, quick("noise")).params
    assert set(plain) == {"over", "attack", "n", "sigma"}
    assert accumulate([small], images, quick("noise", use="sign")).params["use"] == "sign"


def test_labels_beyond_the_classes_are_refused(small: Model, images: Batch) -> None:
    with pytest.raises(interp.InputError, match=r"a label is 4; expected −1 \(unknown\) to 3, the classes of small"):
        accumulate([small], Batch(images.images, torch.tensor([0, 2, 4, 1, 0])), quick("steps"))


@pytest.mark.parametrize("over", SOURCES)
def test_a_source_heeds_what_it_says_and_nothing_else(over: str, small: Model, images: Batch) -> None:
    """What it heeds changes the gradients, or the attribution made of them; what it does not changes nothing."""
    plain = quick(over)
    other: dict[str, object] = {"n": 3, "sigma": 0.3, "baseline": "white", "rule": "midpoint", "loss": "margin", "use": "sign"}
    other["attack"] = PGD(0.2, steps=2)
    base = accumulate([small], images, plain).data
    for name, value in other.items():
        data = accumulate([small], images, dataclasses.replace(plain, **{name: value})).data  # type: ignore[arg-type]
        assert data["mean"].equals(base["mean"]) == (name not in plain.takes), name


TOLD: dict[str, tuple[Accumulate, str, str]] = {
    "steps": (quick("steps"), "gradient", "L∞ PGD, ε = 8/255, 4 steps from a random start, cross-entropy"),
    "noise": (quick("noise", sigma=0.2), "gradient", "images with noise, 4 draws, σ = 0.2, cross-entropy"),
    "path": (
        quick("path", baseline="white", rule="midpoint"),
        "integrated gradients",
        "straight path, 4 points, from white, midpoint, the label's logit",
    ),
    "blur": (quick("blur"), "blur-path attribution", "path through blurs, 4 points, gauss-legendre, the label's logit"),
    "expected": (
        quick("expected", loss="margin"),
        "expected gradients",
        "straight paths from other images, 4 draws, margin loss",
    ),
    "augment": (quick("augment", precision="float64"), "gradient", "random views, 4 draws, cross-entropy, float64"),
    "class": (quick("class", use="sign"), "mean sign of the gradient", "images of each class, cross-entropy"),
    "captum": (
        Accumulate(method="captum:SmoothGrad", n=2),
        "SmoothGrad",
        "captum's SmoothGrad, 2 draws, σ = 0.1, the label's logit",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_figures_say_what_they_show(name: str, small: Model, images: Batch) -> None:
    params, title, told = TOLD[name]
    result = accumulate([small], images, params)
    fig, rows = result.plot(), result.data.sizes["image"]
    assert told in " ".join(fig.texts[0].get_text().split())
    assert fig.axes[-1].get_xlabel().startswith(f"{title} / its rms")
    assert f"{title}: {told}; n = {rows}" in " ".join(profiles(result).texts[0].get_text().split())


def test_all_classes_are_drawn_and_of_more_images_the_first(small: Model) -> None:
    ten = Batch(some(10, size=8), torch.arange(10))
    wide = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    model = Model(wide, dataclasses.replace(small.card, num_classes=10, labels=()))
    classes, steps = (accumulate([model], ten, quick(over)).plot() for over in ("class", "steps"))
    assert len([ax for ax in classes.axes if ax.images]) == 2 * 10 and "first" not in classes.texts[0].get_text()
    assert len([ax for ax in steps.axes if ax.images]) == 2 * 6
    assert "the first 6 of 10 images" in " ".join(steps.texts[0].get_text().split())


def test_use(small: Model, images: Batch) -> None:
    raw, sign, absolute = (accumulate([small], images, quick("noise", use=use)).data for use in ("raw", "sign", "absolute"))
    np.testing.assert_allclose(absolute["mean"], raw["absolute"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(abs(sign["mean"]).mean("channel"), raw["agreement"], atol=1e-6)
    assert sign["cosine"].equals(raw["cosine"]) and absolute["cosine"].equals(raw["cosine"])


BAD: dict[str, tuple[dict[str, object], str]] = {
    "over": ({"over": "walk"}, "over is 'walk'; expected one of steps, noise, path, blur"),
    "use": ({"use": "squared"}, "use is 'squared'; expected one of raw, sign, absolute"),
    "baseline": ({"baseline": "red"}, "baseline is 'red'; expected one of grey"),
    "rule": ({"rule": "simpson"}, "rule is 'simpson'; expected one of gauss-legendre"),
    "rule, n": ({"over": "path", "rule": "trapezoid", "n": 1}, "trapezoid with at least 2"),
    "precision": ({"precision": "half"}, "precision is 'half'; expected one of float32, float64"),
    "loss": ({"loss": "accuracy"}, "loss is 'accuracy'; expected one of ce, logit"),
    "n": ({"n": 0}, "n is 0, sigma 0.1"),
    "sigma": ({"sigma": -1.0}, "sigma -1.0"),
    "chunk": ({"chunk": 0}, "chunk 0; expected"),
    "method": ({"method": "captum:Magic"}, "method is 'captum:Magic'; expected captum:NAME with one of Saliency"),
    "restarts": ({"attack": PGD(0.1, restarts=2)}, "without restarts or stop"),
}


@pytest.mark.parametrize("name", BAD)
def test_parameters_without_sense_are_refused(name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(interp.InputError, match=message):
        Accumulate(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("params", [quick("expected"), Accumulate(method="captum:GradientShap")])
def test_one_image_has_no_other_to_begin_from(params: Accumulate, small: Model, images: Batch) -> None:
    with pytest.raises(interp.InputError, match="at least two"):
        accumulate([small], images[:1], params)


def test_images_of_another_size_are_refused(small: Model) -> None:
    with pytest.raises(interp.InputError, match=r"takes images \(n, 3, 8, 8\)"):
        accumulate([small], Batch(some(1, size=9), torch.tensor([0])))


MAPS: dict[str, tuple[Callable[[], torch.Tensor], float, float]] = {
    "uniform": (lambda: torch.full((1, 3, 4, 5), -2.0), 1.0, 0.0),
    "one pixel": (lambda: torch.eye(20)[3].view(1, 1, 4, 5), 0.0, 1 - 1 / 20),
    "half the pixels": (lambda: (torch.arange(20.0) % 2).view(1, 1, 4, 5), math.log(10) / math.log(20), 0.5),
}


@pytest.mark.parametrize("name", MAPS)
def test_concentration_of_known_maps(name: str) -> None:
    make, spread, concentrated = MAPS[name]
    assert entropy(make()).item() == pytest.approx(spread, abs=1e-6)
    assert gini(make()).item() == pytest.approx(concentrated, abs=1e-6)


def test_the_gini_index_is_half_the_relative_mean_difference() -> None:
    v = some(3, size=7) - 0.3
    a = v.abs().sum(1).flatten(1).double()
    want = (a[:, :, None] - a[:, None, :]).abs().mean((1, 2)) / (2 * a.mean(1))
    assert torch.allclose(gini(v).double(), want, atol=1e-6)
    assert torch.allclose(gini(-7 * v), gini(v), atol=1e-6)
    assert torch.isnan(gini(torch.zeros(1, 3, 4, 4))).all() and torch.isnan(entropy(torch.zeros(1, 3, 4, 4))).all()
