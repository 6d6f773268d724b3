"""Identities of roll-out, gradient × attention and the numbers of attention; every method on every tiny family."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interp.attention.attend import Attend, attend
from interp.attention.capture import Captured, capture
from interp.attention.geometry import Geometry, of_patches, of_pixels, of_windows
from interp.attention.readings import CAMS, METHODS, How, read
from interp.attention.rollout import gradient_weighted, last_stage, relevance, rollout
from interp.attention.statistics import distance, divergence, diversity, entropy, focus
from interp.models.model import Model
from interp.types import Batch, InputError
from tests.attention_nets import images, make, of

GRID = of_patches((3, 4))


def layer(weights: Tensor, geometry: Geometry = GRID, kind: str = "self") -> Captured:
    values = torch.zeros(*weights.shape[:2], weights.shape[-1], 2)
    return Captured("layer", kind, 0, weights, values, weights @ values, geometry)  # type: ignore[arg-type]


def random_weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


def test_rollout_of_one_layer_is_its_weights_and_of_the_residual_alone_the_identity() -> None:
    one, two = (layer(random_weights(2, 3, 12, 12, seed=s)) for s in range(2))
    assert torch.allclose(rollout([one], residual=0), one.weights.mean(1), atol=1e-6)
    assert torch.allclose(rollout([one, two], residual=1), torch.eye(12).expand(2, 12, 12), atol=1e-6)
    half = [0.5 * c.weights.mean(1) + 0.5 * torch.eye(12) for c in (one, two)]
    flow = rollout([one, two])
    assert torch.allclose(flow, half[1] @ half[0], atol=1e-6)  # the later layer on the left
    assert torch.allclose(flow.sum(-1), torch.ones(2, 12), atol=1e-5)


def test_class_attention_moves_only_the_class_token() -> None:
    geometry = GRID.with_prefix(13, class_token=True)
    one = layer(random_weights(2, 3, 1, 13), geometry, "class")
    flow = rollout([one])
    assert torch.allclose(flow[:, 1:, 1:], torch.eye(12).expand(2, 12, 12))
    assert torch.allclose(flow[:, 0, 1:], 0.5 * one.weights.mean(1)[:, 0, 1:], atol=1e-6)


def test_relevance_of_two_layers_is_the_product_rule() -> None:
    one, two = (layer(random_weights(1, 1, 12, 12, seed=s)) for s in range(2))
    a, b = one.weights[:, 0], two.weights[:, 0]
    eye = torch.eye(12)
    assert torch.allclose(relevance([one, two], [a, b]), (eye + b) @ (eye + a) - eye, atol=1e-6)


def test_gradient_of_the_weights_is_that_of_an_explicit_product() -> None:
    weights = random_weights(2, 3, 12, 12).requires_grad_(True)
    values = torch.randn(2, 3, 12, 5, generator=torch.Generator().manual_seed(3))
    output = weights @ values
    score = (output**2).sum()
    (direct,) = torch.autograd.grad(score, weights, retain_graph=True)
    found = gradient_weighted([Captured("l", "self", 0, weights.detach(), values, output, GRID)], score)[0]
    assert torch.allclose(found, (direct * weights).clamp_min(0).mean(1).detach(), atol=1e-5)


@pytest.mark.parametrize("geometry", [GRID, of_pixels((4, 6), (2, 2)), of_windows((5, 4), (3, 3), (1, 1))])
def test_distance_of_attention_to_itself_is_zero_and_uniform_is_the_mean_of_all_pairs(geometry: Geometry) -> None:
    tokens = geometry.places.shape[1]
    itself = torch.eye(tokens).expand(geometry.groups, 2, -1, -1)
    assert torch.allclose(distance(itself, geometry, (32, 32)), torch.zeros(1, 2))
    real = geometry.places >= 0
    uniform = (real[:, None, None] / real.sum(1)[:, None, None, None]).expand(-1, 2, tokens, -1)
    reaches = []
    for group in geometry.places:
        at = [(int(p) // geometry.size[1], int(p) % geometry.size[1]) for p in group if p >= 0]
        pixel = 32 / geometry.size[0], 32 / geometry.size[1]
        for y, x in at:
            apart = [math.hypot((y - v) * pixel[0], (x - u) * pixel[1]) for v, u in at]
            reaches.append(sum(apart) / len(apart))
    assert torch.allclose(distance(uniform, geometry, (32, 32)), torch.full((1, 2), sum(reaches) / len(reaches)), atol=1e-4)


def test_entropy_diversity_and_divergence_at_their_ends() -> None:
    uniform, sharp = torch.full((1, 2, 4, 4), 0.25), torch.eye(4).expand(1, 2, 4, 4)
    assert torch.allclose(entropy(uniform), torch.ones(1, 2)) and torch.allclose(entropy(sharp), torch.zeros(1, 2))
    other = torch.eye(4).roll(1, 0).expand(1, 2, 4, 4)
    assert torch.allclose(divergence(sharp, other), torch.ones(1, 2)) and torch.allclose(
        divergence(sharp, sharp), torch.zeros(1, 2)
    )
    apart = torch.stack([sharp[0, 0], other[0, 0]])[None]
    assert torch.allclose(diversity(apart), torch.ones(1)) and torch.allclose(diversity(sharp), torch.zeros(1))
    assert diversity(sharp[:, :1]).isnan().all()
    with pytest.raises(InputError, match="the same layer twice"):
        divergence(sharp, sharp[:, :1])


def test_focus_of_a_uniform_map_is_the_share_of_the_area() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2, :3] = True
    assert focus(torch.ones(1, 4, 4), mask).item() == pytest.approx(6 / 16)
    assert focus(mask.float(), mask).item() == 1
    with pytest.raises(InputError, match="not empty"):
        focus(torch.ones(1, 4, 4), ~mask & mask)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reads_each_image_on_its_own_or_says_why_not(method: str, tiny_models: list[Model], samples: Batch) -> None:
    x = samples.images[:3]
    for model in tiny_models:
        if method not in ("auto", *CAMS) and (model.family == "resnet" or (method == "channels" and model.family != "xcit")):
            with pytest.raises(InputError, match="no attention"):
                read(model, x, method=method)
            continue
        reading = read(model, x, method=method)
        assert reading.maps.min() >= 0 and len(reading.maps) == 3 and reading.how
        alone = torch.cat([read(model, one[None], method=method).maps for one in x])
        assert torch.allclose(alone, reading.maps, atol=1e-5 * float(reading.maps.max()) + 1e-9)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("method", ["weighted", "chefer", "gradcam"])
def test_targets_are_checked_and_default_to_the_prediction(method: str, tiny_models: list[Model], samples: Batch) -> None:
    x, model = samples.images[:2], tiny_models[0]
    predicted = model.read(x).argmax(1)
    assert torch.equal(read(model, x, method=method).maps, read(model, x, predicted, method=method).maps)
    with pytest.raises(InputError, match="the model has classes 0 to 9"):
        read(model, x, torch.tensor([0, 10]), method=method)


def test_a_query_asks_for_its_own_row(tiny_models: list[Model], samples: Batch) -> None:
    mobilevit = next(m for m in tiny_models if m.family == "mobilevit")
    x = samples.images[:2]
    with torch.no_grad(), capture(mobilevit) as recorder:
        mobilevit(x)
    assert {c.stage for c in last_stage(recorder.layers)} == {recorder.layers[-1].stage}
    one, other = (read(mobilevit, x, method="raw", how=How(query=q)) for q in ((0, 0), (0, 31)))
    assert torch.allclose(one.maps.sum((1, 2)), torch.ones(2), atol=1e-5)
    assert not torch.equal(one.maps, other.maps) and "row 1, column 1" in one.how
    with pytest.raises(InputError, match="outside the image"):
        read(mobilevit, x, method="raw", how=How(query=(0, 32)))


def test_a_query_is_asked_where_patches_ask_not_of_the_class_attention_behind() -> None:
    cait, x = make("cait"), images(2)
    assert "blocks_token_only.1.attn" in read(cait, x, method="raw").how
    for method in ("raw", "weighted"):
        asked = read(cait, x, method=method, how=How(query=(0, 31)))
        assert asked.how.endswith("at layer blocks.1.attn")
        named = read(cait, x, method=method, how=How(layer="blocks.1.attn", query=(0, 31)))
        assert torch.equal(asked.maps, named.maps) and asked.maps.max() > 0
    with pytest.raises(InputError, match="no other position asks"):
        read(make("xcit"), x, method="raw", how=How(query=(0, 31)))


def test_auto_puts_a_query_to_channels_where_no_patch_asks(tiny_models: list[Model], samples: Batch) -> None:
    xcit, x = next(m for m in tiny_models if m.family == "xcit"), samples.images[:2]
    asked, derived = (read(xcit, x, method=method, how=How(query=(9, 20))) for method in ("auto", "channels"))
    assert torch.equal(asked.maps, derived.maps) and "derived" in asked.how
    assert "class token" in read(xcit, x, method="auto").how


def test_attend_marks_what_was_not_read_and_refuses_when_nothing_was(tiny_models: list[Model], samples: Batch) -> None:
    few = samples[:2]
    result = attend(tiny_models, few, Attend(("raw", "gradcam")))
    data = result.data
    resnet = [m.family for m in tiny_models].index("resnet")
    assert bool(data["map"][resnet, 0].isnull().all()) and str(data["how"].values[resnet, 0]).startswith("not read: ")
    means = data["map"].mean(("y", "x"))
    assert bool((abs(means - 1) < 1e-3)[:, 1].all())
    with pytest.raises(InputError, match="no method could read"):
        attend([tiny_models[resnet]], few, Attend(("raw",)))
    asked = attend(tiny_models, few, Attend(query=(3, 4))).data
    assert "no queries" in str(asked["how"].values[resnet, 0]) and asked.attrs["query"] == "3,4"
    with pytest.raises(InputError, match="32 × 32 pixels"):
        attend(tiny_models, few, Attend(query=(3, 32)))
    with pytest.raises(InputError, match="expected one or more of auto, raw"):
        Attend(("row",))


@pytest.mark.parametrize("method", ["raw", "weighted", "rollout", "chefer"])
def test_words_say_whose_row_and_which_logit_is_read(method: str) -> None:
    model, x, some = make("vit_avg"), of("vit_avg"), torch.tensor([1, 2, 3])
    own, given = (read(model, x, targets, method=method, how=How(query=(9, 30))).how for targets in (None, some))
    assert "the patch in row 2, column 4 of 4 × 4" in own and "the patch in" not in read(model, x, method=method).how
    if method in ("weighted", "chefer"):
        assert "the predicted class's logit" in own and "the target's logit" in given
