"""Concepts found in features: planted parts, the search for their number, and what two models share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp.attributes.discovery import Needed, crops, discover, parted, spatial, strongest
from interp.attributes.discovery import concepts_needed as needed
from interp.attributes.groups import Sizes, found_concepts
from interp.attributes.matching import shared
from interp.models.model import Model
from interp.models.randomise import fully_randomised
from interp.types import Batch, Card, InputError, Preprocess


def planted(k: int, *, places: int = 400, each: int = 4, seed: int = 0) -> np.ndarray:
    """Sums of k parts of `each` channels of their own, with amounts that are often 0."""
    rng = np.random.default_rng(seed)
    parts = np.kron(np.eye(k), np.ones((1, each))) * rng.uniform(0.5, 1.5, k * each)
    return (rng.exponential(size=(places, k)) * (rng.random((places, k)) < 0.5)) @ parts


class Marks(nn.Module):
    """Features of a place: how red, green and blue it is, in two channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.AvgPool2d(4)
        self.twice = nn.Upsample(scale_factor=1)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.body(x)
        self.twice(torch.cat([pooled, 2 * pooled], 1))
        return self.head(pooled.mean((2, 3)))


@pytest.fixture(scope="module")
def marks() -> tuple[Model, Tensor, np.ndarray]:
    """The model, 30 black images with one patch of one colour each, and colour, row and column of the patch."""
    rng = np.random.default_rng(0)
    where = np.stack([np.arange(30) % 3, rng.integers(0, 4, 30), rng.integers(0, 4, 30)], 1)
    x = torch.zeros(30, 3, 16, 16)
    for image, (colour, row, column) in enumerate(where):
        x[image, colour, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.4 + 0.02 * image
    return Model(Marks(), Card(id="marks", arch="none", num_classes=3, preprocess=Preprocess(16, 16))), x, where


PLACES = np.arange(400) // 4


def concepts_needed(matrix: np.ndarray, **wanted: Any) -> Needed:
    """Of 100 images with four places each."""
    return needed(matrix, PLACES, images=100, **wanted)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_k_planted_parts_need_k_concepts(k: int) -> None:
    found = concepts_needed(planted(k), share=0.999)
    assert (found.low, found.k, found.high) == (k, k, k)
    assert found.least <= k
    assert max(found.tried.values()) <= 1 + 1e-9
    assert found.why == ""


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_all_features_are_enough_whatever_the_share(share: float) -> None:
    """As many parts as channels: each channel is one."""
    matrix = np.random.default_rng(0).exponential(size=(400, 30))
    found = concepts_needed(matrix, share=share)
    assert found.least <= found.low <= found.k <= found.high <= 30
    assert list(found.tried.values()) == sorted(found.tried.values())


def test_growing_does_about_as_well_as_scikit_learn() -> None:
    """With as many parts as growing needs for 90 %, a factorisation of scikit-learn's explains hardly more."""
    from sklearn.decomposition import NMF

    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(400, 64)) @ rng.normal(size=(64, 64))).clip(0)
    found = concepts_needed(matrix, share=0.9)
    k = int(found.k)
    theirs = NMF(k, init="nndsvda", random_state=0, max_iter=300, tol=1e-4).fit(matrix).reconstruction_err_ ** 2
    assert 1 - theirs / np.square(matrix - matrix.mean(0)).sum() < 0.9 + 0.02
    assert found.k < 64


def test_shuffled_channels_need_more_concepts_than_planted_ones() -> None:
    matrix = planted(4)
    shuffled = np.random.default_rng(1).permuted(matrix, axis=0)
    assert concepts_needed(matrix, most=16).k <= 4
    assert concepts_needed(shuffled, most=16).k > 8


def test_the_interval_grows_with_how_much_images_differ() -> None:
    """Every tenth image is ten times as strong, so that few images decide."""
    parts = planted(40, places=400, each=2)
    same = concepts_needed(parts, share=0.9)
    uneven = parts * np.where(PLACES % 10 == 0, 10, 1)[:, None]
    found = concepts_needed(uneven, share=0.9)
    assert found.high - found.low > same.high - same.low > 0
    assert found.low <= found.k <= found.high


def test_the_values_of_images_have_the_number_for_their_mean_and_its_spread_for_theirs() -> None:
    """The crossing of resampled images, computed anew each time, beside the bootstrap of one value per image."""
    from interp.attributes.discovery import _crossing

    rng = np.random.default_rng(0)
    spread = rng.gamma(2, size=200)
    few, many = spread * rng.uniform(0.1, 0.25, 200), spread * rng.uniform(0.02, 0.1, 200)
    values = _crossing([40, 44], [few, many], spread, 0.9)
    assert values.mean() == pytest.approx(40 + 4 * (0.9 - (1 - few.sum() / spread.sum())) / ((few - many).sum() / spread.sum()))
    drawn = rng.integers(0, 200, (2000, 200))
    anew = [_crossing([40, 44], [few[d], many[d]], spread[d], 0.9).mean() for d in drawn]
    assert values.std() / np.sqrt(200) == pytest.approx(np.std(anew), rel=0.05)
    assert np.corrcoef(values[drawn].mean(1), anew)[0, 1] > 0.99
    assert (_crossing([7], [many], spread, 0.9) == 7).all()


def test_images_of_which_no_place_was_drawn_have_no_influence() -> None:
    found = needed(planted(20), PLACES, images=130)
    assert found.values.shape == (130,)
    assert np.ptp(found.values[100:]) == 0
    assert found.values.mean() == pytest.approx(concepts_needed(planted(20)).values.mean())
    assert found.k == np.ceil(found.values.mean())


def test_a_search_that_ends_below_the_share_says_so() -> None:
    found = concepts_needed(planted(8), share=0.999, most=4)
    assert np.isnan([found.k, found.low, found.high]).all()
    assert found.least > 4
    assert found.tried == {}  # singular vectors alone rule it out
    assert found.why == f"more than 4 concepts: at least {found.least}, by singular vectors"
    noise = np.random.default_rng(0).exponential(size=(400, 30))
    least = concepts_needed(noise).least
    found = concepts_needed(noise, most=least)
    assert np.isnan(found.k)
    assert found.why == f"more than {least} concepts, which explain {found.tried[least]:.0%}"


def test_planted_colours_are_found_where_they_are(marks: tuple[Model, Tensor, np.ndarray]) -> None:
    model, x, where = marks
    found = discover(model, x, layer="twice", k=3, share=0.99, top=4)
    assert found.needed.k == 3
    assert found.explained == pytest.approx(np.ones(30), abs=1e-3)
    colours = found.parts.argmax(1) % 3
    assert sorted(colours) == [0, 1, 2]
    for concept, colour in enumerate(colours):
        brightest = np.flatnonzero(where[:, 0] == colour)[::-1][:4]
        assert found.top[concept].tolist() == [[i, *where[i, 1:]] for i in brightest]
    cut = crops(x, found, size=4)
    assert cut.shape == (3, 4, 4, 4, 3)
    assert (cut.mean((2, 3)).argmax(2) == colours[:, None]).all()
    assert (cut.reshape(12, 16, 3).max(2).std(1) < 1e-6).all()  # the patch and nothing around it


def test_shuffled_features_and_few_concepts_explain_less(marks: tuple[Model, Tensor, np.ndarray]) -> None:
    model, x, _ = marks
    plain, two, shuffled = (
        discover(model, x, layer="twice", k=k, shuffled=s).explained.mean() for k, s in ((3, False), (2, False), (3, True))
    )
    assert plain > two + 0.1
    assert plain > shuffled + 0.1


@pytest.mark.parametrize("family", ["xcit", "mobilevit", "resnet"])
def test_every_family_gives_places_also_with_random_parameters(family: str, tiny: Callable[..., Model], samples: Batch) -> None:
    model = tiny(family)
    found = [discover(m, samples.images, k=3, rows=200) for m in (model, fully_randomised(model))]
    for f in found:
        assert f.activations.shape[0] == len(samples)
        assert f.by_image.shape == (len(samples), 3)
        assert (f.activations >= 0).all()
        assert f.explained.shape == (len(samples),)
    cka, match = shared([f.features for f in found], [f.by_image for f in found])
    cka = cka.mean(2)
    assert np.diag(cka) == pytest.approx([1, 1])
    assert np.diag(match) == pytest.approx([1, 1])
    assert cka[0, 1] < 0.99
    assert not any(m._forward_hooks for m in model.modules())


def test_features_are_those_of_the_layer_in_any_chunks(tiny: Callable[..., Model], samples: Batch) -> None:
    model, seen = tiny("xcit"), []
    handle = model.net.blocks[-1].register_forward_hook(lambda _m, _a, out: seen.append(out))
    model(samples.images)
    handle.remove()
    one, other = (spatial(model, samples.images, "blocks.-1", c) for c in (64, 7))
    assert one == pytest.approx(other, abs=1e-4)
    assert one.reshape(seen[0].shape) == pytest.approx(seen[0].numpy(), abs=1e-4)  # patches row by row


def test_parts_of_both_signs_keep_all_there_is() -> None:
    signed = np.random.default_rng(0).normal(size=(5, 3))
    both = parted(signed)
    assert both.min() >= 0
    assert np.array_equal(both[:, :3] - both[:, 3:], signed)
    assert parted(abs(signed)).shape == (5, 3)


def test_strongest_places_are_one_per_image_in_order() -> None:
    activations = np.zeros((3, 2, 2, 1))
    activations[0, 1, 0], activations[2, 0, 1], activations[2, 1, 1] = 1, 3, 2
    assert strongest(activations, 2).tolist() == [[[2, 0, 1], [0, 1, 0]]]


def test_images_in_another_order_share_nothing(marks: tuple[Model, Tensor, np.ndarray]) -> None:
    model, x, _ = marks
    found = discover(model, x, layer="twice", k=3)
    cka, match = shared([found.features] * 2, [found.by_image] * 2, seed=1)
    assert np.abs(cka.mean(2)).max() < 0.3
    assert match.max() < 0.7


def test_the_number_of_concepts_stands_beside_the_table_and_is_not_tested(tiny: Callable[..., Model], samples: Batch) -> None:
    models = [tiny("resnet"), fully_randomised(tiny("resnet"))]
    columns, extras = found_concepts(models, samples, samples.labels, Sizes(factorised=20), 64)
    assert [c.values.shape for c in columns] == [(2, 20)] * 2
    assert [c.measure.name for c in columns] == ["discovery_explained", "discovery_shared"]
    assert "parts fixed" in columns[0].measure.formula
    for name in ("concepts_needed", "concepts_needed_shuffled"):
        k, low, high = (np.asarray(extras[f"{name}{end}"][1]) for end in ("", "_low", "_high"))  # type: ignore[index]
        reasons = extras.get(f"why_{name}", ("model", ["", ""]))[1]  # type: ignore[index]
        assert [np.isnan(v) for v in k] == [bool(reason) for reason in reasons]
        assert all(a <= b <= c for a, b, c in zip(low, k, high, strict=True) if np.isfinite(b))
        assert all(v == round(v) for v in (*low, *k, *high) if np.isfinite(v))


def test_one_model_has_concepts_and_nothing_to_be_like(tiny: Callable[..., Model], samples: Batch) -> None:
    columns, extras = found_concepts([tiny("resnet")], samples, samples.labels, Sizes(factorised=20), 64)
    assert [c.measure.name for c in columns] == ["discovery_explained"]
    assert {"concepts_needed", "concepts_needed_shuffled", "concept_crop"} < set(extras)
    assert not {"cka", "best_match"} & set(extras)


@pytest.mark.parametrize(("n", "said"), [(1, "1 image came;"), (3, "3 images came;")])
def test_too_few_images_are_refused(n: int, said: str, tiny: Callable[..., Model], samples: Batch) -> None:
    with pytest.raises(InputError, match=f"{said} expected 5 at least, to leave one out: raise n"):
        found_concepts([tiny("resnet")], samples[:n], samples.labels[:n], Sizes(), 64)


def test_wrong_input_is_named(marks: tuple[Model, Tensor, np.ndarray]) -> None:
    model, x, _ = marks
    with pytest.raises(InputError, match="no places"):
        discover(model, x, layer="head")
    with pytest.raises(InputError, match="k is 7; expected 1 to 6, the places or the features of layer twice"):
        discover(model, x, layer="twice", k=7)
    with pytest.raises(InputError, match="same features at all places"):
        discover(model, torch.zeros(4, 3, 16, 16), layer="twice", k=1)
    with pytest.raises(InputError, match="pixels a side"):
        crops(x, discover(model, x, layer="twice", k=2), size=17)
