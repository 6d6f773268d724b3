"""Faithfulness on models whose answer is known, and against quantus."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor, nn

import interp
from interp.attention.maps import enlarge
from interp.attention.readings import read
from interp.attributes.edges import sobel
from interp.cli import attention
from interp.faithfulness.baselines import centre, edges, flat, noise, smooth_noise
from interp.faithfulness.curves import Flips, deletion, filling, flipped, insertion, pixel_flipping, ranks
from interp.faithfulness.faithfulness import MEASURES, RANDOMISATION, Faithfulness, faithfulness
from interp.faithfulness.methods import CONTROLS, DEFAULT, METHODS, READINGS, named, saliency
from interp.faithfulness.randomisation import by_layer, spearman, ssim
from interp.models.model import Model
from interp.models.randomise import fully_randomised, randomised
from interp.plots.faithfulness import unread
from interp.types import Batch, Card, InputError, Preprocess
from tests.test_result import undescribed

SIDE, SQUARE = 16, (slice(4, 8), slice(4, 12))  # a planted square of 32 of 256 pixels


def planted() -> Tensor:
    """The map of the square."""
    m = torch.zeros(SIDE, SIDE)
    m[SQUARE] = 1
    return m


class Planted(nn.Module):
    """Class 0 has the mean of the square as its logit, class 1 has 0; remembers the largest batch that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3 * SIDE**2, 2)
        weights = planted().expand(3, -1, -1).flatten()
        self.last.weight.data = torch.stack([weights / weights.sum(), torch.zeros_like(weights)])
        self.last.bias.data.zero_()
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        return self.last(x.flatten(1))


def white(n: int) -> Tensor:
    """Images that are white in the square and differ outside it, and so in their random draws."""
    x = torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    x[:, :, *SQUARE] = 1
    return x


def some_maps(n: int, side: int) -> Tensor:
    return torch.randn(n, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def quantus() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("quantus")


def zeros(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_the_square_is_deleted_first_as_computed_by_hand(score: str) -> None:
    x, y = white(3), zeros(3)
    found = deletion(Planted(), x, y, planted().expand(3, -1, -1), baseline="black", how=Flips(256, score=score))
    left = (1 - torch.arange(257) / 32).clamp_min(0)
    expected = left if score == "logit" else left.sigmoid()
    assert torch.allclose(found.scores, expected.expand(3, -1), atol=1e-6)
    assert torch.equal(found.share, torch.arange(257) / 256)
    if score == "logit":
        assert torch.allclose(found.area, torch.full((3,), 32 / 256 / 2), atol=1e-6)
        assert torch.allclose(found.drop, 1 - left.mean().expand(3), atol=1e-6)


def test_no_map_is_better_than_the_square() -> None:
    x, y, how = white(8), zeros(8), Flips(64)
    best, others = planted().expand(8, -1, -1), (some_maps(8, SIDE), centre(x), edges(x), -planted().expand(8, -1, -1))
    for other in others:
        for judge, sign in ((deletion, -1), (insertion, 1)):
            areas = [judge(Planted(), x, y, m, baseline="black", how=how).area * sign for m in (best, other)]
            assert (areas[0] > areas[1]).all()
        drops = [pixel_flipping(Planted(), x, y, m, baseline="black").drop for m in (best, other)]
        assert (drops[0] > drops[1]).all()


def test_a_map_of_zeros_is_a_random_order_drawn_for_each_image() -> None:
    x, maps, how = white(200), torch.zeros(200, SIDE, SIDE), Flips(32, score="logit")
    found = deletion(Planted(), x, zeros(200), maps, baseline="black", how=how)
    assert torch.allclose(found.scores.mean(0), 1 - found.share, atol=0.03)  # hypergeometric: σ of a mean below 0.006
    places = ranks(maps, x)
    assert places.flatten(1).unique(dim=0).shape[0] == 200
    assert torch.equal(ranks(maps[:1], x[:1]), places[:1])
    assert not torch.equal(ranks(maps, x, Flips(seed=1)), places)


def test_ranks_follow_the_map_and_break_only_ties() -> None:
    x, maps = white(4), some_maps(4, SIDE).round()  # about six values
    place = ranks(maps, x).flatten(1).long()
    assert torch.equal(place.sort(1).values, torch.arange(256).expand(4, -1))
    in_order = torch.zeros(4, 256).scatter_(1, place, maps.flatten(1))
    assert (in_order.diff(dim=1) <= 0).all()


def test_patches_change_together_in_the_order_of_their_sums() -> None:
    x = white(2)
    maps = torch.arange(16.0).view(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1).expand(2, -1, -1)
    place = ranks(maps, x, Flips(patch=4))
    assert torch.equal(place[:, 0].float(), 15 - maps)
    found = deletion(Planted(), x, zeros(2), planted().expand(2, -1, -1), baseline="black", how=Flips(16, 4, "logit"))
    assert torch.allclose(found.scores, (1 - torch.arange(17) / 2).clamp_min(0).expand(2, -1), atol=1e-6)  # two patches


@pytest.mark.parametrize("patch", [1, 4])
def test_insertion_and_deletion_are_complements_on_a_linear_model(patch: int) -> None:
    torch.manual_seed(0)
    model, x, y, how = (
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 5)),
        white(6),
        torch.arange(6) % 5,
        Flips(16, patch, "logit"),
    )
    for baseline in ("black", "mean", "blur", "noise"):
        both = sum(judge(model, x, y, some_maps(6, SIDE), baseline=baseline, how=how).scores for judge in (deletion, insertion))
        ends = model(torch.stack([x, filling(baseline, x)]).flatten(0, 1)).view(2, 6, 5).sum(0).gather(1, y[:, None])
        assert torch.allclose(both, ends.detach().expand_as(both), atol=2e-6)


def test_curves_begin_and_end_where_they_should(tiny: Callable[..., Model], samples: Batch) -> None:
    model, x, y, maps = tiny("xcit"), samples.images[:3], samples.labels[:3], some_maps(3, 32)
    for judge, name in ((deletion, "mean"), (insertion, "blur")):
        found = judge(model, x, y, maps, how=Flips(7)).scores
        image, base = (model(z).softmax(1).gather(1, y[:, None])[:, 0] for z in (x, filling(name, x)))
        first, last = (image, base) if judge is deletion else (base, image)
        assert torch.allclose(found[:, 0], first, atol=1e-5)
        assert torch.allclose(found[:, -1], last, atol=1e-5)


def test_fillings() -> None:
    x = white(3)
    assert (filling("black", x) == 0).all()
    assert torch.allclose(filling("mean", x)[1, :, 3, 5], x[1].mean((1, 2)))
    assert filling("blur", x).var((2, 3)).max() < 0.1 * x.var((2, 3)).min()
    assert filling("noise", x).mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(filling(torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), x)[2, :, 0, 0], torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_neither_the_chunk_nor_the_batch_matters(tiny: Callable[..., Model], samples: Batch, score: str) -> None:
    model, x, y, maps = tiny("xcit"), samples.images[:4], samples.labels[:4], some_maps(4, 32).round()
    how = Flips(6, 2, score)
    whole = pixel_flipping(model, x, y, maps, how=how).scores
    for chunk in (1, 5, 100):
        cut = pixel_flipping(model, x, y, maps, how=dataclasses.replace(how, chunk=chunk)).scores
        assert torch.allclose(cut, whole, atol=1e-5)
    each = torch.cat([pixel_flipping(model, x[[i]], y[[i]], maps[[i]], how=how).scores for i in range(4)])
    assert torch.allclose(each, whole, atol=1e-5)


def test_no_pass_is_larger_than_the_chunk() -> None:
    model = Planted()
    deletion(model, white(5), zeros(5), some_maps(5, SIDE), how=Flips(10, chunk=7))
    assert model.largest == 7


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ties", [False, True])
def test_pixel_flipping_is_that_of_quantus(
    quantus: Any, tiny: Callable[..., Model], samples: Batch, ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """quantus 0.6 integrates with np.trapz, which numpy 2.4 no longer has: it gets its successor. Its black is the least value
    of each image as it is by then, so it is given 0.
    """
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    model, x, y, maps = tiny("resnet"), samples.images[:3], samples.labels[:3], some_maps(3, 32)
    maps = maps.round() if ties else maps
    how = Flips(24, ties="argsort")
    ours = deletion(model, x, y, maps, baseline="black", how=how)
    given = {"features_in_step": 128, "normalise": False, "perturb_baseline": 0.0, "disable_warnings": True}
    batch = {"x_batch": x.numpy(), "y_batch": y.numpy(), "a_batch": maps[:, None].numpy(), "softmax": True, "device": "cpu"}
    curve = quantus.PixelFlipping(**given)(model, **batch)
    assert np.allclose(ours.scores[:, 1:], curve, atol=1e-5)
    area = quantus.PixelFlipping(**given, return_auc_per_sample=True)(model, **batch)
    without_start = torch.trapezoid(ours.scores[:, 1:])  # quantus leaves the untouched image out, and counts in steps
    assert np.allclose(without_start, area, atol=1e-5)
    assert torch.allclose(ours.area * 24, without_start + ours.scores[:, :2].mean(1), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_regions_are_those_of_quantus(quantus: Any, tiny: Callable[..., Model], samples: Batch) -> None:
    model, x, y, maps = tiny("xcit"), samples.images[:3], samples.labels[:3], some_maps(3, 32)
    ours = deletion(model, x, y, maps, baseline="black", how=Flips(16, 8, ties="argsort")).scores
    given = {"patch_size": 8, "normalise": False, "perturb_baseline": 0.0, "disable_warnings": True}
    batch = {"x_batch": x.numpy(), "y_batch": y.numpy(), "a_batch": maps[:, None].numpy(), "softmax": True, "device": "cpu"}
    assert np.allclose(ours[:, 1:], quantus.Selectivity(**given)(model, **batch), atol=1e-5)
    drops = quantus.RegionPerturbation(**given, regions_evaluation=16)(model, **batch)
    assert np.allclose(ours[:, :1] - ours[:, 1:], drops, atol=1e-5)
    assert np.allclose(
        deletion(model, x, y, maps, baseline="black", how=Flips(16, 8)).drop, np.mean(drops, 1) * 16 / 17, atol=1e-5
    )


def plain_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_(True)
    (g,) = torch.autograd.grad(model(x).gather(1, y[:, None]).sum(), x)
    return g.abs().sum(1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_randomisation_is_that_of_quantus(quantus: Any, samples: Batch, order: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(392, 10)
    ).eval()
    x, y = samples.images[:4], samples.labels[:4]

    def explained(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: Any) -> np.ndarray:
        return plain_gradient(model, torch.as_tensor(inputs), torch.as_tensor(targets))[:, None].numpy()

    test = quantus.MPRT(
        layer_order={"cascading": "top_down", "independent": "independent"}[order], seed=6, normalise=False, disable_warnings=True
    )
    theirs = test(model, x.numpy(), y.numpy(), explain_func=explained, device="cpu")
    ours = dict(by_layer(plain_gradient, model, x, y, order=order, seed=7, apart=False))
    if order == "cascading":
        assert list(ours) == [name for name in theirs if name != "original"]
    assert ours.keys() == theirs.keys() - {"original"}
    for name, values in ours.items():
        assert np.allclose(values, theirs[name], atol=1e-5)


def test_correlation_is_that_of_scipy_with_ties() -> None:
    a, b = some_maps(4, 12), some_maps(8, 12)[4:].round()
    for absolute in (False, True):
        found = spearman(a, b, absolute=absolute)
        expected = [
            spearmanr(*(v.abs() if absolute else v for v in (p.flatten(), q.flatten()))).statistic
            for p, q in zip(a, b, strict=True)
        ]
        assert np.allclose(found, expected, atol=1e-10)
    assert torch.allclose(spearman(a, a.exp()), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(spearman(a, -a), -torch.ones(4, dtype=torch.float64))
    assert torch.allclose(spearman(a, -a, absolute=True), torch.ones(4, dtype=torch.float64))


def test_structural_similarity_is_that_of_scikit_image() -> None:
    a, b = some_maps(3, 20), (3 * some_maps(6, 20)[3:]).abs()
    expected = []
    for one, other in zip(a.double().numpy(), b.double().numpy(), strict=True):
        one, other = one / np.abs(one).max(), other / np.abs(other).max()
        both = np.concatenate([one, other])
        expected.append(structural_similarity(one, other, data_range=both.max() - both.min()))
    assert np.allclose(ssim(a, b), expected, atol=1e-10)
    assert torch.allclose(ssim(a, 5 * a), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("family", ["xcit", "mobilevit", "resnet"])
def test_randomising_leaves_the_model_and_changes_every_layer(tiny: Callable[..., Model], family: str) -> None:
    model = tiny(family)
    digest = model.digest
    before = {name: t.clone() for name, t in model.state_dict().items()}
    last = fully_randomised(model)
    assert last.digest != digest
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    same = [name for name, p in last.named_parameters() if torch.equal(p, before[name])]
    assert all(before[name].unique().numel() == 1 for name in same)  # such as a batch norm's weight, which begins at 1
    assert fully_randomised(model).digest == last.digest
    assert fully_randomised(model, seed=1).digest != last.digest


def test_independent_layers_change_one_at_a_time(tiny: Callable[..., Model]) -> None:
    model = tiny("xcit")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    seen = []
    for name, changed in randomised(model, order="independent"):
        differing = {key for key, t in changed.state_dict().items() if not torch.equal(t, before[key])}
        assert {key.rpartition(".")[0] for key in differing} <= {name}
        seen.append(name)
    assert seen[0] == "net.head"
    assert len(seen) == len(set(seen))


def test_layers_of_one_shape_become_different() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    alike = dict(randomised(model, apart=False))["0"]
    assert torch.equal(alike[0].weight, alike[1].weight)
    apart = fully_randomised(model)
    assert not torch.equal(apart[0].weight, apart[1].weight)


def test_a_method_that_ignores_the_model_stays_the_same(samples: Batch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    for _, values in by_layer(lambda _m, x, _y: edges(x), model, samples.images[:3], samples.labels[:3]):
        assert torch.allclose(values, torch.ones(3, dtype=torch.float64))


def test_controls(samples: Batch) -> None:
    x = samples.images[:5]
    assert torch.equal(edges(x), sobel(x))
    assert torch.equal(noise(x)[2:3], noise(x[2:3]))
    assert not torch.equal(noise(x), noise(x, seed=1))
    assert abs(np.corrcoef(noise(x).flatten(), filling("noise", x)[:, 0].flatten())[0, 1]) < 0.05
    assert smooth_noise(x).diff(dim=2).abs().mean() < 0.3 * noise(x).diff(dim=2).abs().mean()
    middle = centre(x)[0]
    assert torch.allclose(middle, middle.flip(0).T)
    assert middle.max() == middle[15:17, 15:17].max()
    assert (flat(x) == 1).all()


BAD: list[tuple[str, Callable[[Tensor, Tensor, Tensor], object]]] = [
    ("maps have shape", lambda x, y, m: deletion(Planted(), x, y, m[:, :8])),
    ("not finite", lambda x, y, m: deletion(Planted(), x, y, m / 0)),
    ("not tile", lambda x, y, m: deletion(Planted(), x, y, m, how=Flips(patch=5))),
    ("fewer steps", lambda x, y, m: deletion(Planted(), x, y, m, how=Flips(steps=17, patch=4))),
    ("no class", lambda x, y, m: deletion(Planted(), x, y + 2, m)),
    ("class index", lambda x, y, m: deletion(Planted(), x, y - 1, m)),
    ("baseline is 'red'", lambda x, y, m: deletion(Planted(), x, y, m, baseline="red")),
    ("baseline has shape", lambda x, y, m: deletion(Planted(), x, y, m, baseline=torch.zeros(3, 5, 5))),
    ("steps is 0", lambda x, y, m: Flips(0)),
    ("score is", lambda x, y, m: Flips(score="loss")),
    ("ties is", lambda x, y, m: Flips(ties="none")),
    (
        "image 1 is constant: its rank correlation is undefined",
        lambda x, y, m: spearman(m, m * torch.tensor([1, 0])[:, None, None]),
    ),
    ("structural similarity is undefined", lambda x, y, m: ssim(m * 0, m)),
    ("not finite", lambda x, y, m: spearman(m, m / 0)),
    ("expected the same", lambda x, y, m: spearman(m, m[:1])),
    ("window", lambda x, y, m: ssim(m, m, window=17)),
    ("order is", lambda x, y, m: randomised(Planted(), order="random")),
    ("no parameters", lambda x, y, m: fully_randomised(nn.ReLU())),
    ("baseline is 'red'", lambda x, y, m: Faithfulness(baseline="red")),
    ("expected each once", lambda x, y, m: Faithfulness(methods=("saliency", "edges"))),
    ("steps is 0", lambda x, y, m: Faithfulness(steps=0)),
    ("chunk is 0; expected at least 1 image", lambda x, y, m: Faithfulness(chunk=0)),
    ("chunk is '4'", lambda x, y, m: Faithfulness(chunk="4")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("words", "call"), BAD)
def test_bad_input_is_named(words: str, call: Callable[[Tensor, Tensor, Tensor], object]) -> None:
    with pytest.raises(InputError, match=words):
        call(white(2), zeros(2), some_maps(2, SIDE).abs() + torch.eye(SIDE))


PLANTED = Card("planted", "planted", 2, Preprocess(SIDE, SIDE))


def test_the_table_trusts_the_planted_map_and_no_noise() -> None:
    batch = Batch(white(12), zeros(12))
    table = {
        "square": lambda _m, x, _y: planted().expand(len(x), -1, -1),
        "noise": lambda _m, x, _y: noise(x, seed=5),
        "fails": lambda _m, x, _y: (_ for _ in ()).throw(InputError("no such layer")),
    }
    whole = faithfulness([Model(Planted(), PLANTED)], batch, Faithfulness(tuple(table), 32, "black", 2), maps_of=table).data
    data = whole.isel(model=0)
    assert data["trusted"].sel({"reading": "square"}).item() == "better by all measures"
    assert data["trusted"].sel({"reading": "noise"}).item() == "not shown to be better"
    assert data["trusted"].sel({"reading": "fails"}).item() == "not read: no such layer"
    assert data["trusted"].sel({"reading": "edges"}).item() == "a control"
    assert np.isnan(data["deletion_auc"].sel({"reading": "fails"}).item())
    assert data["deletion_auc_n"].sel({"reading": "fails"}).item() == 0
    assert unread(whole) == ["Not read: fails of planted: no such layer."]
    assert data["randomisation_similarity"].sel({"reading": "square"}).item() == pytest.approx(1)
    assert np.isnan(data["randomisation_similarity"].sel({"reading": "uniform"}).item())  # undefined for a constant map
    assert data["randomisation_similarity_n"].sel({"reading": "uniform"}).item() == 0


def test_a_method_that_needs_what_was_learnt_keeps_its_other_measures() -> None:
    def only_trained(model: Model, x: Tensor, _y: Tensor) -> Tensor:
        if model.digest != trained.digest:
            raise InputError("the gradient is zero everywhere")
        return planted().expand(len(x), -1, -1)

    trained = Model(Planted(), PLANTED)
    data = faithfulness([trained], Batch(white(6), zeros(6)), Faithfulness(("it",), 8), maps_of={"it": only_trained}).data.isel(
        model=0, reading=0
    )
    assert np.isnan(data["randomisation_similarity"])
    assert np.isfinite(data["deletion_auc"])
    assert data["trusted"].item() == "better by all measures"


def test_few_images_are_not_judged() -> None:
    table = {"square": lambda _m, x, _y: planted().expand(len(x), -1, -1)}
    params = Faithfulness(("square",), 8, randomise=False)
    data = faithfulness([Model(Planted(), PLANTED)], Batch(white(5), zeros(5)), params, maps_of=table).data.isel(model=0)
    assert data["trusted"].sel({"reading": "square"}).item() == "not judged below 6 images"
    assert RANDOMISATION.name not in data


METHODS_TRIED = ("saliency", "smoothgrad", "gradcam")


@pytest.fixture(scope="module")
def judged(tiny_models: list[Model], samples: Batch) -> interp.Result:
    return faithfulness(tiny_models[::2], samples[:2], params=Faithfulness(METHODS_TRIED, steps=4, patch=8))


def test_the_result_is_complete(judged: interp.Result, tiny_models: list[Model], samples: Batch, tmp_path: Any) -> None:
    data = judged.data
    assert data["reading"].values.tolist() == [*METHODS_TRIED, *CONTROLS]
    assert judged.measures == [*(m.name for m in MEASURES), RANDOMISATION.name]
    for m in MEASURES:
        assert (data[f"{m.name}_low"] <= data[m.name] + 1e-12).all()
        assert (data[m.name] <= data[f"{m.name}_high"] + 1e-12).all()
        assert np.allclose(data[f"values_{m.name}"].mean("image"), data[m.name], atol=1e-5)
    for name in ("deletion", "insertion"):
        curve = data[f"curve_{name}"]
        assert np.allclose(np.trapezoid(curve, data["share"]), data[f"{name}_auc"], atol=1e-5)
        ends = curve.isel(share=0 if name == "deletion" else -1)
        assert np.allclose(ends, ends.isel(reading=[0]), atol=1e-5)  # the image itself, whatever the method
    assert np.allclose(np.abs(data["example"]).mean(("y", "x")), 1, atol=1e-4)
    assert data["target"].values.tolist() == [m.read(samples.images[:2]).argmax(1).tolist() for m in tiny_models[::2]]
    assert data["original"].shape == (32, 32, 3)
    for name in judged.measures:
        assert (data[f"{name}_n"] == np.isfinite(data[f"values_{name}"]).sum("image")).all()
    assert interp.open(judged.save(tmp_path)).data.identical(data)


def test_everything_in_the_result_says_what_it_is(judged: interp.Result) -> None:
    assert not undescribed(judged.data)
    assert judged.data["deletion_auc_low"].attrs["long_name"] == "deletion, lower end of its interval"
    assert judged.data["trusted"].attrs["long_name"] == "better than both random and edges?"


def test_one_method_may_be_given_alone() -> None:
    assert Faithfulness("raw").methods == ("raw",)  # type: ignore[arg-type]
    assert "Faithfulness(methods" in str(inspect.signature(interp.faithfulness)) and "trusted" in str(interp.faithfulness.__doc__)


def test_the_table_is_the_same_in_chunks(judged: interp.Result, tiny_models: list[Model], samples: Batch) -> None:
    cut = faithfulness(tiny_models[:1], samples[:2], params=Faithfulness(("smoothgrad",), steps=4, patch=8, chunk=1)).data
    whole = judged.data.isel(model=[0]).sel({"reading": cut["reading"]})
    for name in judged.measures:
        assert np.allclose(cut[f"values_{name}"], whole[f"values_{name}"], atol=1e-3, equal_nan=True), name


def test_nothing_is_left_on_the_models(tiny: Callable[..., Model], samples: Batch) -> None:
    model = tiny("xcit")
    table: dict[str, Any] = {**METHODS, "fails": lambda m, x, y: METHODS["gradcam"](m, x, y + 100)}
    before = {name: t.clone() for name, t in model.state_dict().items()}
    data = faithfulness([model], samples[:1], Faithfulness(("gradcam", "fails"), 2, patch=16), maps_of=table).data.isel(model=0)
    assert "not read" in data["trusted"].sel({"reading": "fails"}).item()
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_methods_know_their_limits() -> None:
    """On a linear model the gradient is the weight, and integrated gradients sum to the gain of the logit."""
    model, x, y = Model(Planted(), PLANTED), white(2), zeros(2)
    assert torch.allclose(saliency(model, x, y), planted().expand(2, -1, -1) / 32, atol=1e-6)
    assert torch.allclose(METHODS["smoothgrad"](model, x, y), planted().expand(2, -1, -1) / 32, atol=1e-6)
    gain = (model(x) - model(torch.full_like(x, 0.5)))[:, 0]
    assert torch.allclose(METHODS["integrated-gradients"](model, x, y).sum((1, 2)), gain, atol=1e-5)


OF_ATTENTION = ("raw", "chefer")


@pytest.fixture(scope="module")
def by_default(tiny_models: list[Model], samples: Batch) -> interp.Result:
    return faithfulness(tiny_models, samples[:1], Faithfulness(steps=2, patch=16, randomise=False))


def test_default_methods_are_read_on_all_families(by_default: interp.Result) -> None:
    data = by_default.data
    assert data["reading"].values.tolist() == [*DEFAULT, *CONTROLS]
    absent = {
        (model, method) for model in data["model"].values for method in data["reading"].values if _absent(data, model, method)
    }
    assert absent == {("tiny_resnet", method) for method in OF_ATTENTION}
    assert (np.isnan(data["deletion_auc"]) == np.isnan(data["insertion_auc"])).all()
    assert int(np.isnan(data["deletion_auc"]).sum()) == len(absent)
    (said,) = unread(data)
    assert said.startswith("Not read: attention, gradient × attention of tiny_resnet: ") and "no attention" in said


def test_the_printed_table_has_every_number_and_each_reason_once(
    by_default: interp.Result, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "out", Console(width=120))
    attention.print_verdicts(by_default)
    lines, data = capsys.readouterr().out.splitlines(), by_default.data
    assert max(map(len, lines)) <= 120
    names = [str(name) for name in data["label"].values]
    where = {line.strip(): k for k, line in enumerate(lines) if line.strip() in names}
    assert sorted(where) == sorted(names)
    for (m, name), (k, method) in itertools.product(enumerate(names), enumerate(data["reading"].values)):
        row = next(line for line in lines[where[name] :] if line.startswith(f"  {method}  "))
        shown = [data[measure.name].values[m, k] for measure in MEASURES]
        assert re.findall(r"(\S+) \[", row) == ([f"{v:.3f}" for v in shown] if np.isfinite(shown[0]) else [])
        assert ("not read" in row) == (not np.isfinite(shown[0]))
    assert " ".join(" ".join(lines).split()).count(unread(data)[0]) == 1


def _absent(data: Any, model: str, method: str) -> bool:
    return str(data["trusted"].sel({"model": model, "reading": method}).item()).startswith("not read")


@pytest.mark.parametrize(
    ("family", "name"),
    [("xcit", name) for name in READINGS]
    + [(f, name) for f in ("mobilevit", "resnet") for name in ("raw", "channels", "rollout", "chefer", "gradcam")],
)
def test_maps_are_what_is_read_enlarged_and_do_not_depend_on_the_batch(
    tiny: Callable[..., Model], samples: Batch, family: str, name: str
) -> None:
    model, x = tiny(family), samples.images[:2]
    y, method = torch.tensor([3, 1]), METHODS[name]
    try:
        expected = enlarge(read(model, x, y, method=name).maps, (32, 32))
    except InputError as reason:
        with pytest.raises(InputError) as caught:
            method(model, x, y)
        assert str(caught.value) == str(reason)
        assert (family, name) in APPLIES_NOT
        return
    assert (family, name) not in APPLIES_NOT
    found = method(model, x, y)
    assert torch.equal(found, expected)
    alone = torch.cat([method(model, x[[i]], y[[i]]) for i in range(2)])
    assert torch.allclose(alone, found, rtol=1e-4, atol=1e-4 * found.max().item())
    other = method(fully_randomised(model), x, y)
    assert other.isfinite().all() and not torch.allclose(other, found, rtol=1e-3)


APPLIES_NOT = {("resnet", name) for name in ("raw", "channels", "rollout", "chefer")} | {("mobilevit", "channels")}


@pytest.mark.parametrize("name", DEFAULT[:3])
def test_gradients_do_not_depend_on_the_batch(tiny: Callable[..., Model], samples: Batch, name: str) -> None:
    model, x, y = tiny("xcit"), samples.images[:3], torch.tensor([3, 1, 4])
    whole = METHODS[name](model, x, y)
    alone = torch.cat([METHODS[name](model, x[[i]], y[[i]]) for i in range(3)])
    assert torch.allclose(alone, whole, atol=1e-4 * whole.abs().max().item())


def test_methods_are_called_as_they_are_typed() -> None:
    assert named(["smoothgrad", "raw"]) == ("smoothgrad", "raw") and named(METHODS) == tuple(METHODS)
    assert all(f'"{name}"' in str(Faithfulness.__doc__) for name in METHODS)
    with pytest.raises(
        InputError, match=r"no method 'salience'; expected some of saliency, integrated-gradients, smoothgrad, raw,"
    ):
        named(["saliency", "salience"])


def test_wrong_questions_are_refused(tiny_models: list[Model], samples: Batch) -> None:
    with pytest.raises(InputError, match="no method 'salience'"):
        faithfulness(tiny_models, samples, params=Faithfulness(("salience",)))
    with pytest.raises(InputError, match="no models were given"):
        faithfulness([], samples)
    with pytest.raises(InputError, match=r"the model tiny_.* itself; expected a list"):
        faithfulness(tiny_models[0], samples)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="example is image 20"):
        faithfulness(tiny_models, samples, params=Faithfulness(example=20))
    with pytest.raises(InputError, match="takes images"):
        faithfulness([Model(Planted(), PLANTED)], samples)


def test_start_and_end_may_be_anything() -> None:
    x, y = white(2), zeros(2)
    found = flipped(Planted(), y, some_maps(2, SIDE), start=x, end=x, how=Flips(5, score="logit"))
    assert torch.allclose(found.scores, torch.ones(2, 6), atol=1e-6)
    assert torch.allclose(found.area, torch.ones(2), atol=1e-6)
    assert torch.allclose(found.drop, torch.zeros(2), atol=1e-6)
