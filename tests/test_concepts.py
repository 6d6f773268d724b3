"""Sensitivity to concepts: models whose answer is known, captum's TCAV beside it, and the statistics."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from interp.attributes.concepts import LAST, Sensitivity, concept_vector, log_odds, middle, tcav
from interp.data.concepts import concepts
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
def photographs() -> tuple[Tensor, Tensor]:
    """Colour noise stands in for images: any that are neither concept nor random pictures of the test."""
    return concepts("random", 30, 32, 99).images, torch.arange(30) % 3


def passed(found: Sensitivity, name: str) -> np.ndarray:
    return np.isfinite(found.score[found.names.index(name)])


def test_a_model_that_reads_colour_depends_on_colours_and_on_no_texture(photographs: tuple[Tensor, Tensor]) -> None:
    (found,) = tcav(wrap(ReadsColour(), 3), *photographs, names=PLAIN, layers=[LAST])
    for k, colour in enumerate(PLAIN[:3]):
        assert found.score[k, k] == pytest.approx(1)
        assert found.sensitivity[:, k][photographs[1] == k].mean() > 0.5
        assert (found.accuracy[k] > 0.95).all(), colour
    for texture in (*PLAIN[3:], "random"):
        assert not passed(found, texture).any(), texture
        assert found.accuracy[found.names.index(texture)].mean() < 0.75
    assert found.significant[0] >= 3 / 18
    assert found.significant[1] == 0


def test_a_model_that_reads_contrast_depends_on_textures(photographs: tuple[Tensor, Tensor]) -> None:
    x, labels = photographs
    (found,) = tcav(wrap(ReadsStripes(), 2), x, labels % 2, names=PLAIN, layers=[LAST])
    for texture in PLAIN[3:]:
        assert found.score[found.names.index(texture)].tolist() == [1, 0]
    assert not passed(found, "random").any()


def test_random_sets_rarely_pass(tiny: Callable[..., Model], samples: Batch) -> None:
    x, y = samples.images, samples.labels
    control = [tcav(tiny("xcit"), x, y, names=["red"], layers=[LAST], pictures=6, seed=s)[0].p[-1] for s in range(4)]
    assert np.nanmean(np.array(control) < 0.05) < 0.1


def test_values_are_per_image_and_do_not_depend_on_chunks(tiny: Callable[..., Model], samples: Batch) -> None:
    for family in ("xcit", "mobilevit"):
        one, other = (
            tcav(tiny(family), samples.images, samples.labels, names=["red", "dots"], runs=3, pictures=4, chunk=c)
            for c in (64, 7)
        )
        assert [f.layer for f in one] == [middle(tiny(family)), LAST]
        for a, b in zip(one, other, strict=True):
            assert a.sensitivity.shape == (len(samples), 3)
            assert a.sensitivity == pytest.approx(b.sensitivity, abs=2e-3)
            assert np.abs(a.sensitivity).max() <= 1
            assert {v.shape for v in a.values.values()} == {(len(samples),)}


def test_scores_equal_captums(tiny: Callable[..., Model], samples: Batch) -> None:
    """The same classifier given to captum: its sign counts are our scores."""
    model, layer, n = tiny("resnet"), "layer1", 5
    labels = torch.arange(len(samples)) % 2
    (found,) = tcav(model, samples.images, labels, names=["red", "dots"], layers=[layer], runs=3, pictures=n, alpha=1.1)
    for c, name in enumerate(("red", "dots")):
        for k in range(2):
            theirs = [reference(model, layer, samples.images[labels == k], k, name, r, n) for r in range(3)]
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
            self.normal, accuracy = concept_vector(rows[kinds == 0], rows[kinds == 1], slice(0, n))
            return {"accs": accuracy}

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

    mine = slice(run * n, (run + 1) * n)
    rest = [k for k in range(3 * n) if not mine.start <= k < mine.stop]  # so that the run's own pictures come first
    sets = [concepts(what, 3 * n, 32, seed).images for what, seed in ((name, 1), ("random", 0))]
    sets = [torch.cat([pictures[mine], pictures[rest]]) for pictures in sets]
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
    positive, negative = (torch.randn(40, 6, generator=generator) + shift * torch.eye(6)[2] for shift in (8, 0))
    vector, accuracy = concept_vector(positive, negative, slice(0, 10))
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert vector[2] > 0.9
    assert accuracy > 0.98
    positive[10:] = negative[10:]  # the others cannot be told apart
    assert concept_vector(positive, negative, slice(0, 10))[1] == 0.5
    same = torch.ones(4, 3)
    assert np.isnan(concept_vector(same, same, slice(0, 2))[0]).all()


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
        ({"runs": 2}, "at least 3 runs"),
        ({"layers": ["blocks.9"]}, "no layer is at"),
        ({"layers": ["pos_embed.token_projection"]}, "one entry per image"),
    ):
        with pytest.raises(InputError, match=match):
            tcav(model, x, y, **({"pictures": 2, "runs": 3} | wrong))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one class each"):
        tcav(model, x, y + 10)
    with pytest.raises(InputError, match="name the layers"):
        middle(wrap(ReadsColour(), 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
