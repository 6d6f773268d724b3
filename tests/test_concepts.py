"""Sensitivity to concepts: models whose answer is known, captum's TCAV beside it, and the statistics."""

from __future__ import annotations

import colorsys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from interp.attributes.concepts import (
    DEFAULT,
    MEASURES,
    Sensitivity,
    above_chance,
    concept_vector,
    hits,
    logistic,
    middle,
    pictures_of,
    relative,
    tcav,
)
from interp.attributes.groups import Sizes, named_concepts
from interp.data.concepts import COLOURS, FAMILIES, concepts, deal, family, photographs
from interp.gradients.layers import LAST, log_odds, odds_gradients
from interp.models.model import Model
from interp.types import Batch, Card, InputError, Preprocess

PLAIN = ("red", "green", "blue", "stripes", "dots", "checks")


class ReadsColour(nn.Module):
    """Mean red, green and blue of the picture; a logit for each."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.head.weight.data.copy_(6 * torch.eye(3) - 2)
        self.head.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


class ReadsStripes(nn.Module):
    """How much neighbouring pixels of the grey picture differ, across and down: no colour, no direction of contrast."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.head.weight.data.copy_(torch.tensor([[30.0, 30.0], [-30.0, -30.0]]))
        self.head.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        grey = x.mean(1)
        return self.head(torch.stack([grey.diff(dim=d).abs().mean((1, 2)) for d in (1, 2)], 1))


def wrap(net: nn.Module, classes: int) -> Model:
    return Model(net, Card(id=type(net).__name__, arch="none", num_classes=classes, preprocess=Preprocess(32, 32)))


@pytest.fixture(scope="module")
def noisy() -> tuple[Tensor, Tensor]:
    """Colour noise stands in for images: any that are neither concept nor random pictures of the test."""
    return concepts("random", 30, 32, 99).images, torch.arange(30) % 3


@pytest.fixture(scope="module")
def batch(noisy: tuple[Tensor, Tensor]) -> Batch:
    return Batch(*noisy)


def drawn(names: Sequence[str], n: int = 7, *, seed: int = 0) -> list[Batch]:
    """Ten runs of a family."""
    return [family(names, n, 32, 10 * seed + run) for run in range(10)]


@pytest.fixture
def seven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven pictures a concept and run, to be quick."""
    monkeypatch.setattr("interp.attributes.concepts.pictures_of", lambda _: 7)


def passed(found: Sensitivity, name: str) -> np.ndarray:
    return np.isfinite(found.score[found.names.index(name)])


def test_a_model_that_reads_colour_depends_on_colours_and_on_no_texture(noisy: tuple[Tensor, Tensor]) -> None:
    (found,) = tcav(wrap(ReadsColour(), 3), *noisy, names=PLAIN, layers=[LAST])
    for k, colour in enumerate(PLAIN[:3]):
        assert found.score[k, k] == pytest.approx(1)
        assert found.sensitivity[:, k][noisy[1] == k].mean() > 0.5
        assert (found.accuracy[k] > 0.95).all(), colour
    for texture in (*PLAIN[3:], "random"):
        assert not passed(found, texture).any(), texture
        assert found.accuracy[found.names.index(texture)].mean() < 0.75
    assert found.significant[0] >= 3 / 18
    assert found.significant[1] == 0


def test_a_model_that_reads_contrast_depends_on_textures(noisy: tuple[Tensor, Tensor]) -> None:
    x, labels = noisy
    (found,) = tcav(wrap(ReadsStripes(), 2), x, labels % 2, names=PLAIN, layers=[LAST], pictures=10)
    for texture in PLAIN[3:]:
        assert found.score[found.names.index(texture)].tolist() == [1, 0]
    assert not passed(found, "random").any()


class ReadsOneColour(nn.Module):
    """How much of the picture is near each colour of its family; the logits read one of them alone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        middles = [(sum(h) / 2 % 1, sum(s) / 2, sum(v) / 2) for h, s, v in COLOURS.values()]
        self.register_buffer("hues", torch.tensor([colorsys.hsv_to_rgb(*hsv) for hsv in middles])[..., None, None])
        self.head = nn.Linear(len(COLOURS), 2)
        self.head.weight.data.zero_()
        self.head.weight.data[:, list(COLOURS).index(name)] = torch.tensor([3.0, -3.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.head((-20 * (x[:, None] - self.get_buffer("hues")).square().sum(2)).exp().mean((2, 3)))


@pytest.mark.parametrize("name", ["green", "purple"])
def test_of_a_family_the_one_concept_is_found_that_a_model_reads(noisy: tuple[Tensor, Tensor], name: str) -> None:
    x, labels = noisy
    sets = [drawn(names) for names in FAMILIES.values()]
    every = [found for (found,) in relative(wrap(ReadsOneColour(name), 2), x, labels % 2, sets, layers=[LAST])]
    colours, at = every[0], list(COLOURS).index(name)
    assert colours.names == (*COLOURS, "random")
    assert colours.score[at].tolist() == [1, 0]
    size = np.abs(colours.sensitivity).mean(0)
    assert size[at] > 0.7
    others = np.delete(colours.score[:-1], at, 0)
    assert not (others[:, 0] > 0.5).any() and not (others[:, 1] < 0.5).any()  # none moves the logits as the one does
    assert np.delete(size, at).max() < 0.35
    assert not passed(colours, "random").any()
    elsewhere = np.concatenate([found.depending for found in every[1:]])  # of stripes, textures and shapes, in any colours
    assert (elsewhere > 0).mean() <= 0.05


def test_of_a_family_of_one_and_the_same_concept_none_is_found(tiny: Callable[..., Model], samples: Batch) -> None:
    sets = [drawn([name] * 4) for name in ("circle", "dots")]
    for (found,) in relative(tiny("xcit"), samples.images, torch.arange(len(samples)) % 4, sets, layers=[LAST]):
        assert np.isfinite(found.p[:, :4]).all() and not np.isfinite(found.score).any()
        assert found.told.sum() <= 1
        assert abs(found.accuracy.mean() - 0.5) < 0.04


def test_the_control_of_a_family_passes_as_often_as_the_level_says(batch: Batch) -> None:
    from interp.attributes.concepts import _p_value

    model, p = wrap(ReadsOneColour("green"), 2), []
    for seed in range(25):
        pictures = drawn(["dots", "checks"], seed=seed)
        ((found,),) = relative(model, batch.images, batch.labels % 2, [pictures], layers=[LAST], seed=seed)
        p.append(_p_value(found.vectors[-1].T))  # of every feature, before Holm's correction
    assert 0.01 < (np.array(p) < 0.05).mean() < 0.1


def test_vectors_of_a_family_are_not_one_direction(tiny: Callable[..., Model], samples: Batch) -> None:
    """From noise, drawings of all shapes differ alike; from each other, they differ in what they are."""
    x, y, names = samples.images, samples.labels, FAMILIES["shapes"]
    (noise,) = tcav(tiny("resnet"), x, y, names=names, layers=[LAST])
    ((others,),) = relative(tiny("resnet"), x, y, [drawn(names)], layers=[LAST])
    alike, apart = (cosines(found) for found in (noise, others))
    assert alike.min() > 0.9
    assert apart.mean() < 0.2


def cosines(found: Sensitivity) -> np.ndarray:
    """Of the mean vectors of each two concepts."""
    mean = found.vectors[:-1].mean(1)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs stand-ins of 40 pixels: 60 reddish, 60 bluish and 55 of any hue, and 3 that are too few."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, n, tint in (("any", 55, (0, 0, 0)), ("blue", 60, (0, 0, 90)), ("few", 3, (0, 0, 0)), ("red", 60, (90, 0, 0))):
        (root / name).mkdir()
        for k in range(n):
            pixels = rng.integers(0, 120, (40, 40, 3)) + rng.integers(0, 40, 3) + np.array(tint)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{k:02}.png")
    return root


def test_photographs_are_the_classes_that_have_enough(folder: Path) -> None:
    preprocess = Preprocess(32, 32)
    found = photographs(f"folder:{folder}", preprocess=preprocess, least=50, most=58, seed=0)
    assert found.classes == ("any", "blue", "red")
    assert found.labels.bincount().tolist() == [55, 58, 58]
    assert found.images.shape == (171, 3, 32, 32)
    assert len(set(found.ids)) == 171
    assert all(name.split("/")[0] == found.classes[k] for name, k in zip(found.ids, found.labels.tolist(), strict=True))
    again, other = (photographs(f"folder:{folder}", preprocess=preprocess, least=50, most=20, seed=s) for s in (0, 1))
    assert again.ids != other.ids
    with pytest.raises(InputError, match=r"0 classes of folder:.* have 61 images, of \[3, 55, 60, 60\] in all"):
        photographs(f"folder:{folder}", preprocess=preprocess, least=61, most=70, seed=0)


def test_classes_of_photographs_are_concepts_told_from_the_others(folder: Path, batch: Batch) -> None:
    photos = photographs(f"folder:{folder}", preprocess=Preprocess(32, 32), least=50, most=70, seed=0)
    ((found,),) = relative(wrap(ReadsColour(), 3), batch.images, batch.labels, [deal(photos, 10)], layers=[LAST])
    assert found.names == ("any", "blue", "red", "random")
    assert (found.accuracy[1:3].mean(1) > 0.95).all()
    assert abs(found.accuracy[3].mean() - 0.5) < 0.1
    assert found.score[2, 0] == pytest.approx(1)  # red photographs, class red
    assert found.score[1, 2] == pytest.approx(1)
    assert not passed(found, "random").any()
    few = photographs(f"folder:{folder}", preprocess=Preprocess(32, 32), least=50, most=20, seed=0)
    with pytest.raises(InputError, match="run 1 has 2 pictures of concept any beside 4 others; expected 5 of both at least"):
        relative(wrap(ReadsColour(), 3), batch.images, batch.labels, [deal(few, 10)], layers=[LAST])
    with pytest.raises(InputError, match="there are 4 runs; expected 6 at least"):
        relative(wrap(ReadsColour(), 3), batch.images, batch.labels, [deal(photos, 4)], layers=[LAST])


def test_runs_of_a_family_share_no_picture() -> None:
    runs = drawn(["red", "dots", "circle"], 4)
    pictures = torch.cat([run.images for run in runs]).flatten(1)
    assert len(pictures.unique(dim=0)) == len(pictures) == 120


def test_photographs_are_dealt_evenly_and_none_twice(folder: Path) -> None:
    photos = photographs(f"folder:{folder}", preprocess=Preprocess(32, 32), least=50, most=70, seed=0)
    hands = deal(photos, 9)
    assert [h.labels.bincount().tolist() for h in hands] == [[6, 6, 6]] * 9
    assert len({name for h in hands for name in h.ids}) == 9 * 18
    assert hands[3].classes == photos.classes


@pytest.mark.usefixtures("seven")
def test_photographs_join_the_drawn_concepts_in_the_table(folder: Path, batch: Batch) -> None:
    models = [wrap(ReadsColour(), 3)] * 2
    alone, both = (
        named_concepts(models, batch, batch.labels, Sizes(tested=24, concepts=source), 64) for source in ("", f"folder:{folder}")
    )
    names = both[1]["concept"][1]  # type: ignore[index]
    assert names == [*DEFAULT, "any (photo)", "blue (photo)", "red (photo)"]
    assert len(DEFAULT) >= 24
    for few, many in zip(alone[0], both[0], strict=True):
        assert few.control is not None and many.control is not None
        assert few.values.shape == few.control.shape and many.values.shape == many.control.shape
        assert few.unit == many.unit
        if few.unit == "concept":
            assert many.values.shape == (2, len(names))
            same = few.values == many.values[:, : len(DEFAULT)]
            assert same.all() if few.measure.name.endswith("told_apart") else same.mean() > 0.8  # Holm's rule sees more tests
            assert len(set(many.control[0, len(DEFAULT) :])) == 1
            assert len(set(few.control[0, : len(COLOURS)])) == 1  # a control a family
    score = dict(zip(("dims", "values"), both[1]["concept_score"], strict=True))  # type: ignore[call-overload]
    assert score["dims"] == ("model", "concept", "tested_class")
    assert score["values"].shape == (2, len(names), 3)
    assert not [name for name in both[1] if name.startswith("why_")]


@pytest.mark.usefixtures("seven")
def test_a_model_that_sees_nothing_says_why(batch: Batch) -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(0 * x.mean((2, 3)))

    columns, extras = named_concepts([wrap(Blind(), 3)], batch, batch.labels, Sizes(tested=20), 64)
    assert np.isnan(columns[0].values).all()
    dims, reasons = extras["why_concept_sensitivity"]  # type: ignore[misc]
    assert dims == "model"
    assert reasons[0].startswith("layer '' gives the same for all pictures of red, orange")
    assert "of circle, square" in reasons[0]


def test_fewer_than_twenty_images_are_refused(batch: Batch) -> None:
    with pytest.raises(InputError, match="19 images came; expected 20 at least"):
        named_concepts([wrap(ReadsColour(), 3)], batch, batch.labels, Sizes(tested=19), 64)


@pytest.mark.usefixtures("seven")
def test_all_classes_of_a_model_have_a_column_and_few_images_no_score(noisy: tuple[Tensor, Tensor]) -> None:
    """Of five classes, red to blue have 10, 4 and 16 images, the last two none."""
    x, labels = noisy[0], torch.tensor([0] * 10 + [1] * 4 + [2] * 16)
    model = wrap(ReadsColour(), 5)
    model.net.head = nn.Linear(3, 5)
    model.net.head.weight.data.copy_(torch.cat([6 * torch.eye(3) - 2, torch.zeros(2, 3)]))
    (found,) = tcav(model, x, labels, names=PLAIN[:3], layers=[LAST])
    assert found.images.tolist() == [10, 4, 16, 0, 0]
    assert found.score.shape == found.p.shape == (4, 5)
    assert np.isfinite(found.p).all(0).tolist() == [True, False, True, False, False]
    assert np.isnan(found.score[:, [1, 3, 4]]).all() and found.score[0, 0] == pytest.approx(1)
    assert found.why_untested == ""
    columns, extras = named_concepts([model], Batch(x, labels), labels, Sizes(), 64)
    assert extras["tested_class"] == ("tested_class", ["0", "1", "2", "3", "4"])
    dims, counts = extras["tested_n"]  # type: ignore[misc]
    assert dims == "tested_class" and counts.tolist() == [10, 4, 16, 0, 0]  # type: ignore[has-type]
    assert "why_concept_significant" not in extras and np.isfinite(columns[1].values).all()


@pytest.mark.usefixtures("seven")
def test_where_all_classes_have_few_images_the_reason_is_given(noisy: tuple[Tensor, Tensor]) -> None:
    x, labels = noisy[0][:24], torch.arange(24) % 6
    model = wrap(ReadsColour(), 6)
    model.net.head = nn.Linear(3, 6)
    columns, extras = named_concepts([model], Batch(x, labels), labels, Sizes(), 64)
    by_name = {column.measure.name: column for column in columns}
    assert np.isnan(by_name["concept_significant"].values).all()
    assert np.isfinite(by_name["concept_sensitivity"].values).all()
    assert extras["why_concept_significant"] == ("model", ["classes have 4 images at most; expected 5 of one at least"])


def test_shares_over_concepts_say_that_images_are_fixed() -> None:
    said = {m.name: m.formula for m in MEASURES}
    assert said["significant"].endswith("interval over concepts, images and pictures fixed")
    assert said["told_apart"].endswith("interval over concepts, pictures fixed")


def test_a_concept_counts_once_by_the_share_of_classes_that_depend_on_it(noisy: tuple[Tensor, Tensor]) -> None:
    (found,) = tcav(wrap(ReadsColour(), 3), *noisy, names=PLAIN, layers=[LAST])
    assert found.depending.shape == (len(PLAIN) + 1,)
    assert found.depending[:-1].mean() == pytest.approx(found.significant[0])
    assert found.depending[0] == np.isfinite(found.score[0]).mean() > 0
    assert found.depending[-1] == found.significant[1]


@pytest.mark.parametrize("d", [3, 19, 200])
def test_the_regression_is_scikit_learns(d: int) -> None:
    rng = np.random.default_rng(d)
    for shift in (0, 3):
        x = rng.normal(size=(20, d)) * rng.exponential(size=(20, 1)) + shift * np.repeat([1, 0], 10)[:, None]
        x = (x - x.mean(0)) / np.sqrt(np.square(x - x.mean(0)).sum(1).mean())
        side = np.repeat([1.0, -1.0], 10)
        weights, offset = logistic(x, side)
        theirs = LogisticRegression(C=1, tol=1e-10, max_iter=10000).fit(x, side)
        assert weights == pytest.approx(theirs.coef_[0], abs=1e-6)
        assert offset == pytest.approx(theirs.intercept_[0], abs=1e-6)


def test_random_sets_rarely_pass(tiny: Callable[..., Model], samples: Batch) -> None:
    x, y = samples.images, torch.arange(len(samples)) % 4
    control = [tcav(tiny("xcit"), x, y, names=["red"], layers=[LAST], pictures=6, seed=s)[0].p[-1] for s in range(4)]
    assert np.isfinite(control).sum() == 4 * 4
    assert np.nanmean(np.array(control) < 0.05) < 0.1


def test_values_are_per_image_and_do_not_depend_on_chunks(tiny: Callable[..., Model], samples: Batch) -> None:
    for arch in ("xcit", "mobilevit"):
        one, other = (
            tcav(tiny(arch), samples.images, samples.labels, names=["red", "dots"], runs=6, pictures=4, chunk=c) for c in (64, 7)
        )
        assert [f.layer for f in one] == [middle(tiny(arch)), LAST]
        for a, b in zip(one, other, strict=True):
            assert a.sensitivity.shape == (len(samples), 3)
            assert a.sensitivity == pytest.approx(b.sensitivity, abs=2e-3)
            assert np.abs(a.sensitivity).max() <= 1


def test_scores_equal_captums(tiny: Callable[..., Model], samples: Batch) -> None:
    """The same classifier given to captum: its sign counts are our scores."""
    model, layer, n = tiny("resnet"), "layer1", 5
    labels = torch.arange(len(samples)) % 2
    (found,) = tcav(model, samples.images, labels, names=["red", "dots"], layers=[layer], runs=6, pictures=n, alpha=1.1)
    for c, name in enumerate(("red", "dots")):
        for k in range(2):
            theirs = [reference(model, layer, samples.images[labels == k], k, name, r, n) for r in range(6)]
            assert found.score[c, k] == pytest.approx(np.mean(theirs), abs=1e-6)
    assert ((found.score > 0) & (found.score < 1)).any()


def reference(model: Model, layer: str, x: Tensor, label: int, name: str, run: int, n: int) -> float:
    """Captum's share of images with a positive derivative of the log-odds of a class, toward one run's concept."""
    from captum.concept import TCAV, Classifier, Concept
    from torch.utils.data import DataLoader

    class OursTrained(Classifier):
        def __init__(self) -> None:
            self.normal = np.zeros(0)

        def train_and_eval(self, dataloader: Any, **_: Any) -> dict[str, float]:
            rows, kinds = (torch.cat(v) for v in zip(*dataloader, strict=True))
            self.normal, _ = concept_vector(rows[kinds == 0], rows[kinds == 1])
            return {"accs": 1.0}

        def weights(self) -> Tensor:
            return torch.from_numpy(np.stack([self.normal, -self.normal]))

        def classes(self) -> list[int]:
            return [0, 1]

    class Odds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, v: Tensor) -> Tensor:
            return log_odds(self.inner(v), torch.full((len(v),), label))

    sets = [concepts(what, n, 32, seed).images for what, seed in ((name, 2 * run + 1), ("random", 2 * run))]
    asked = [Concept(k, str(k), DataLoader(pictures, batch_size=64)) for k, pictures in enumerate(sets)]  # type: ignore[arg-type]
    at = f"inner.net.{layer}"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum opens files that it leaves to the collector, and hooks that warn
        judge = TCAV(Odds(), [at], model_id="m", classifier=OursTrained(), save_path=folder)
        scores = judge.interpret(x, [asked])
    return float(scores["0-1"][at]["sign_count"][0])


def test_log_odds_have_the_gradient_of_log_probabilities_direction() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    labels = torch.tensor([0, 1, 2, 3, 0])
    p = logits.softmax(1)[torch.arange(5), labels]
    assert torch.allclose(log_odds(logits, labels), (p / (1 - p)).log())
    a, b = (torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for v in (log_odds(logits, labels), p.log()))
    assert torch.allclose(nn.functional.cosine_similarity(a, b), torch.ones(5, dtype=torch.float64))


def test_a_vector_points_from_random_to_the_concept_and_is_judged_on_others() -> None:
    generator = torch.Generator().manual_seed(0)
    both = torch.cat([torch.randn(40, 6, generator=generator) + shift * torch.eye(6)[2] for shift in (8, 0)])
    positive, negative = torch.arange(40), torch.arange(40, 80)
    vector, threshold = concept_vector(both[positive[:10]], both[negative[:10]])
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert vector[2] > 0.9
    assert 2 < threshold < 6
    along = both.double() @ torch.from_numpy(vector)
    assert hits(along, threshold, positive[10:], negative[10:]) > 0.98
    assert hits(along, threshold, negative[10:], positive[10:]) < 0.02
    assert hits(along, threshold, positive, positive) == 0.5  # the others cannot be told apart
    same = torch.ones(4, 3)
    blind, at = concept_vector(same, same)
    assert np.isnan(blind).all()
    assert hits(same.double() @ torch.from_numpy(blind), at, torch.arange(2), torch.arange(2, 4)) == 0.5


def test_the_boundary_is_where_the_regression_says_one_half() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 5)) + 2 * np.repeat([1, 0], 12)[:, None] + 7
    vector, threshold = concept_vector(torch.from_numpy(x[:12]), torch.from_numpy(x[12:]))
    scale = np.sqrt(np.square(x - x.mean(0)).sum(1).mean())
    theirs = LogisticRegression(C=1, tol=1e-10, max_iter=10000).fit((x - x.mean(0)) / scale, np.repeat([1, 0], 12))
    assert np.array_equal(x @ vector > threshold, theirs.predict((x - x.mean(0)) / scale) == 1)
    on = x.mean(0) + (threshold - x.mean(0) @ vector) * vector
    assert theirs.predict_proba((on - x.mean(0))[None] / scale)[0, 1] == pytest.approx(0.5, abs=1e-5)


def test_accuracy_above_chance_is_an_exact_test() -> None:
    pairs = 6 * 5 // 2
    assert above_chance(np.stack([np.full(pairs, 0.5), np.full(pairs, 0.6), np.full(pairs, 0.4)]), 6) == pytest.approx(
        [1, 2**-5, 1]
    )
    assert above_chance(np.full((1, 13 * 6), 0.6), 13)[0] < 0.003
    rng = np.random.default_rng(0)
    one, other = np.triu_indices(8, 1)
    noise = rng.normal(size=(2000, 8, 2))  # two hidden directions in which sets of pictures differ by chance
    accuracy = 0.5 + 0.05 * np.einsum("npd,npd->np", noise[:, one], noise[:, other])
    p = above_chance(accuracy, 8)
    assert all(abs((p <= level).mean() - level) < 0.015 for level in (0.05, 0.25, 0.5))


def test_pictures_are_fewer_where_they_are_large() -> None:
    assert [pictures_of(size) for size in (32, 64, 96, 128, 224, 384)] == [40, 40, 17, 10, 7, 7]


@pytest.mark.usefixtures("seven")
def test_concepts_that_are_not_told_apart_have_no_score_and_no_part_in_the_mean(noisy: tuple[Tensor, Tensor]) -> None:
    """A model that reads colour: of shapes in any colours it tells none, and its sensitivity is that to colours."""
    x, labels = noisy
    model, few = wrap(ReadsColour(), 3), Batch(x, labels)
    columns, extras = named_concepts([model] * 2, few, labels, Sizes(tested=30), 64)
    told = np.asarray(extras["concept_told"][1])  # type: ignore[index]
    score = np.asarray(extras["concept_score"][1])  # type: ignore[index]
    assert told.dtype == bool and told.shape == (2, len(DEFAULT))
    assert told[0, : len(COLOURS)].all()
    assert told[0, -6:].sum() <= 2  # each passes by chance once in twenty
    assert np.isnan(score[~told]).all() and np.isfinite(score[told]).any()
    sets = [drawn(names) for names in FAMILIES.values()]
    every = [of for (of,) in relative(model, x, labels, sets, layers=[LAST])]
    strength = np.concatenate([np.abs(of.sensitivity[:, :-1]) for of in every], 1)
    assert columns[0].values[0] == pytest.approx(strength[:, told[0]].mean(1))
    assert columns[0].beside is not None
    assert columns[0].beside[0, 1] == pytest.approx(columns[0].values[0])


def test_two_models_are_compared_on_what_both_tell_apart() -> None:
    from interp.attributes.groups import _sensitivity

    strength = np.array([[[0.1, 0.4, 0.9]], [[0.2, 0.6, np.nan]]])
    told = np.array([[True, True, False], [False, True, False]])
    column = _sensitivity(MEASURES[1], strength, strength / 2, told)
    assert column.values.ravel() == pytest.approx([0.25, 0.6])
    assert column.control is not None
    assert column.control.ravel() == pytest.approx([0.125, 0.3])
    assert column.difference(0, 1) == pytest.approx([0.2])  # of the second alone
    none = _sensitivity(MEASURES[1], strength, strength, np.zeros((2, 3), bool))
    assert np.isnan(none.values).all() and np.isnan(none.difference(0, 1)).all()


def test_p_values_are_corrected_over_all_sets_layers_and_classes(tiny: Callable[..., Model], samples: Batch) -> None:
    from interp.attributes.concepts import _p_value
    from interp.stats import holm

    model, x, y = tiny("xcit"), samples.images, torch.arange(len(samples)) % 4
    every = relative(model, x, y, [drawn(["red", "green"], 6), drawn(["dots", "checks"], 6)])
    flat = [of for sets in every for of in sets]
    assert [of.layer for of in flat] == [middle(model), LAST] * 2
    raw = []
    for of in flat:
        gradient = odds_gradients(model, x, y, [of.layer], 64)[of.layer]
        cosines = np.einsum("nd,crd->ncr", (gradient / gradient.norm(dim=1, keepdim=True)).numpy(), of.vectors)
        raw += [_p_value(cosines[y.numpy() == k].mean(0)) for k in range(4)]
    corrected = holm(np.concatenate(raw))
    assert np.concatenate([of.p.T[np.isfinite(of.p[0])].ravel() for of in flat]) == pytest.approx(corrected, rel=1e-3, abs=1e-6)


def test_the_t_test_is_what_it_is_called() -> None:
    from interp.attributes.concepts import _p_value

    values = np.random.default_rng(0).normal(0.3, 1, (4, 9))
    assert _p_value(values) == pytest.approx(stats.ttest_1samp(values, 0, axis=1).pvalue)
    assert _p_value(np.zeros((1, 3))).tolist() == [1]


def test_wrong_input_is_named_and_no_hook_is_left(tiny: Callable[..., Model], samples: Batch) -> None:
    model, x, y = tiny("xcit"), samples.images, samples.labels
    for wrong, match in (
        ({"names": ["gold"]}, "is no concept"),
        ({"names": []}, "is no concept"),
        ({"runs": 5}, "there are 5 runs; expected 6 at least"),
        ({"pictures": 1}, "a vector needs 2"),
        ({"layers": ["blocks.9"]}, "no layer is at"),
        ({"layers": ["pos_embed.token_projection"]}, "one entry per image"),
    ):
        with pytest.raises(InputError, match=match):
            tcav(model, x, y, **({"pictures": 2, "runs": 6} | wrong))  # type: ignore[arg-type]
    for wrong_labels in (lambda: tcav(model, x, y + 10), lambda: relative(model, x, y + 10, [])):
        with pytest.raises(InputError, match="one class each"):
            wrong_labels()
    with pytest.raises(InputError, match="name the layers"):
        middle(wrap(ReadsColour(), 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
