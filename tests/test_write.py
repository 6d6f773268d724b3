"""Attributes written by a perturbation, on a judge whose features hold each attribute linearly."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from interp.attributes.write import FATES, Probes, balanced, fit, flips, more, moved, why, written
from interp.data.attributes import Table
from interp.models.model import Model
from interp.types import Card, InputError, Preprocess

NAMES = ("top left", "top right", "bottom left")
HAS = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
TABLE = Table(NAMES, HAS, torch.ones_like(HAS))
LIFT = 0.2


def patches(attributes: Tensor) -> Tensor:
    """What attributes (n, 3) add to images (n, 3, 8, 8): a brighter patch for each."""
    lit = nn.functional.pad(attributes.float(), (0, 1)).view(-1, 1, 2, 2)
    return LIFT * lit.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    """200 noisy images of four classes, each with the patches of its attributes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    noise = 0.3 + 0.3 * torch.rand(200, 3, 8, 8, generator=generator)
    return noise + patches(HAS[:, labels].T), labels


@pytest.fixture(scope="module")
def judge() -> Model:
    """Sees the mean brightness of each patch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 4))
    return Model(net, Card(id="patches", arch="none", num_classes=4, preprocess=Preprocess(8, 8)))


@pytest.fixture(scope="module")
def probes(data: tuple[Tensor, Tensor], judge: Model) -> Probes:
    return fit(judge, *data, TABLE, seed=0)


def test_planted_attributes_are_read_without_error(probes: Probes) -> None:
    assert [at.mean for at in probes.accuracy] == [1.0] * 3
    assert probes.left_out == ()
    assert probes.why == ""
    truth = probes.has[:, probes.labels].T
    gaps = [(probes.logits[truth[:, a], a].mean() - probes.logits[~truth[:, a], a].mean()).item() for a in range(3)]
    assert gaps == pytest.approx([1, 1, 1])


def test_a_patch_added_writes_that_attribute_and_no_other(data: tuple[Tensor, Tensor], probes: Probes) -> None:
    x, labels = data
    for a in range(3):
        rows = (~HAS[a, labels]).nonzero()[:, 0]
        only = torch.zeros(len(rows), 3, dtype=torch.bool)
        only[:, a] = True
        found = moved([probes], x[rows] + patches(only), labels[rows], rows=rows)
        expected = np.zeros(3)
        expected[a] = 1
        assert found.change.mean(0) == pytest.approx(expected, abs=0.15)


def test_a_perturbation_to_another_class_is_written_and_third_classes_and_noise_are_not(
    data: tuple[Tensor, Tensor], probes: Probes
) -> None:
    x, labels = data
    goals = (labels + 1) % 4
    had, will = HAS[:, labels].T, HAS[:, goals].T
    there = moved([probes], (x + patches(will) - patches(had)).clamp(0, 1), goals)
    assert np.nanmean(there.written) == pytest.approx(1, abs=0.1)
    assert np.nanmean(there.precision) == pytest.approx(1, abs=0.02)
    assert np.nanmean(there.recall) == pytest.approx(1, abs=0.02)
    expected = np.tile([1.0, -1.0, 0.0], (3, 1))
    expected[0, 2] = np.nan  # of two neighbouring classes one has the first patch
    assert there.by_fate[:, :, 0] == pytest.approx(expected, abs=0.15, nan_ok=True)
    assert np.nanmean(there.shuffled) < 0.6  # the class left behind vanishes whatever the goal
    noise = LIFT * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - 1)
    control = moved([probes], (x + noise).clamp(0, 1), goals)
    assert abs(np.nanmean(control.written)) < 0.1
    assert np.nanmean(control.recall) < 0.1


def test_unmoved_images_change_nothing(data: tuple[Tensor, Tensor], probes: Probes) -> None:
    found = moved([probes], data[0], (data[1] + 1) % 4)
    assert np.abs(found.change).max() < 1e-9
    assert np.nanmax(np.abs(found.written)) < 1e-9
    assert np.isnan(found.precision).all()
    assert (found.recall[np.isfinite(found.recall)] == 0).all()


def test_no_image_is_read_by_a_probe_that_saw_it(data: tuple[Tensor, Tensor], judge: Model) -> None:
    """With random labels, a probe that saw its images would read them better than by chance."""
    x = data[0]
    labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(3))
    held_out = fit(judge, x, labels, TABLE)
    assert held_out.left_out == NAMES
    assert np.mean([at.mean for at in held_out.accuracy]) < 0.56
    fitted = fit(judge, x, labels, TABLE, threshold=0.0)
    seen = fitted.logits.clone()
    features = torch.nn.functional.avg_pool2d(x, 4).flatten(1).double()
    for k in range(5):
        other = (k + 1) % 5  # these probes did see fold k
        seen[fitted.fold == k] = features[fitted.fold == k] @ fitted.weights[other].T + fitted.offsets[other]
    truth = HAS[:, labels].T
    assert ((seen > 0) == truth).double().mean() > ((fitted.logits > 0) == truth).double().mean()


def test_what_cannot_be_read_is_left_out_and_named(data: tuple[Tensor, Tensor], judge: Model) -> None:
    x, labels = data
    blind = x.clone()
    blind[:, :, 4:, :4] = 0.5
    has = torch.cat([HAS[:2], ~(HAS[:1] ^ HAS[1:2])])  # the third is the equality of the others: not linear
    probes = fit(judge, blind, labels, Table(NAMES, has, torch.ones_like(has)))
    assert probes.left_out == ("bottom left",)
    assert not probes.accuracy[2].low > 0.6
    found = moved([probes], blind, (labels + 1) % 4)
    assert np.isnan(found.change).all(0).tolist() == [False, False, True]
    assert found.counts[2].tolist() == [0, 0, 0]


def test_a_judge_that_sees_nothing_leaves_all_out(data: tuple[Tensor, Tensor], judge: Model) -> None:
    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x[:, :, -1, -1])

    corner = Model(Corner(), dataclasses.replace(judge.card, id="corner"))
    found = fit(corner, *data, TABLE)
    assert found.left_out == NAMES
    assert why([], data[1]) == "there is no other model to read the pictures"
    assert found.why.startswith("corner reads none of 3 attributes: lower ends of balanced accuracies reach 0.")
    assert why([found], data[1]) == found.why
    result = moved([found], data[0], (data[1] + 1) % 4)
    assert np.isnan(result.written).all()


def test_several_judges_are_averaged_and_several_pictures_per_image_allowed(data: tuple[Tensor, Tensor], probes: Probes) -> None:
    x, labels = data
    rows = torch.arange(200).repeat_interleave(2)
    goals = (labels[rows] + 1 + torch.arange(400) % 2) % 4
    pictures = x[rows] + patches(HAS[:, goals].T) - patches(HAS[:, labels[rows]].T)
    one, two = (moved([probes] * k, pictures, goals, rows=rows, chunk=c) for k, c in ((1, 400), (2, 7)))
    assert two.written == pytest.approx(one.written, abs=1e-5, nan_ok=True)
    assert two.by_fate == pytest.approx(one.by_fate, abs=1e-5, nan_ok=True)
    assert one.counts.shape == (3, len(FATES))
    assert one.counts.max() <= 200


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8), st.floats(-2, 2))
def test_written_is_one_for_what_should_be_and_ignores_the_rest(pairs: list[tuple[bool, bool]], elsewhere: float) -> None:
    had, will = (torch.tensor(v)[None] for v in zip(*pairs, strict=True))
    change = torch.where(had == will, elsewhere, will.double() - had.double())
    should = [h != w for h, w in pairs]
    for sign in (1, -1):
        found = written(sign * change, had, will).item()
        assert found == (sign if any(should) else pytest.approx(math.nan, nan_ok=True))


def test_written_weighs_gains_and_losses_alike() -> None:
    had, will = torch.tensor([[0, 0, 0, 1]], dtype=torch.bool), torch.tensor([[1, 1, 1, 0]], dtype=torch.bool)
    assert written(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), had, will).item() == pytest.approx(0.5)
    assert written(torch.tensor([[1.0, 0.0, math.nan, 0.0]]), had, will).item() == pytest.approx(0.25)


def test_flips_count_only_what_was_read_rightly() -> None:
    had, will = torch.tensor([[0, 0, 1, 1]], dtype=torch.bool), torch.tensor([[1, 0, 0, 1]], dtype=torch.bool)
    before = torch.tensor([[-1.0, -1.0, 1.0, -1.0]])  # the last is misread
    after = torch.tensor([[1.0, 1.0, 1.0, 1.0]])  # one flipped as it should, one as it should not, one should have
    precision, recall = flips(before, after, had, will)
    assert (precision.item(), recall.item()) == (0.5, 0.5)


def test_balanced_accuracy_of_a_constant_and_of_a_missing_class() -> None:
    truth = torch.arange(100) < 10
    constant = balanced(torch.full((100,), -1.0), truth)
    assert constant.mean == 0.5
    assert constant.low < 0.5 < constant.high
    assert balanced(truth.double() - 0.5, truth).mean == 1
    assert balanced(torch.ones(5), torch.ones(5, dtype=torch.bool))[1:] == (0.0, 1.0)
    few, many = (balanced(t.double() - 0.5, t) for t in (truth[::5], truth))
    assert few.low < many.low


def test_classes_and_attributes_left_open_take_no_part(data: tuple[Tensor, Tensor], judge: Model, probes: Probes) -> None:
    """Class 3 has no row, and whether class 2 has the first patch is open: what is known of the others is read as before."""
    x, labels = data
    known = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)
    garbage = HAS.clone()
    garbage[~known] ^= True
    goals = (labels + 1) % 4
    pictures = (x + patches(HAS[:, goals].T) - patches(HAS[:, labels].T)).clamp(0, 1)
    one, other = (fit(judge, x, labels, Table(NAMES, has, known)) for has in (HAS, garbage))
    assert one.left_out == ()
    found, same = (moved([p], pictures, goals) for p in (one, other))
    for a, b in zip(dataclasses.astuple(found)[1:], dataclasses.astuple(same)[1:], strict=True):
        assert np.array_equal(a, b, equal_nan=True)  # what a table says where it knows nothing is never looked at
    outside = (labels == 3) | (goals == 3)
    for values in (found.written, found.recall, found.shuffled):
        assert np.isnan(values[outside]).all()
        assert np.isfinite(values[~outside]).all()
    assert np.isnan(found.change[labels == 1, 0]).all()
    assert np.isfinite(found.change[labels == 1, 1:]).all()
    assert why([one], goals) == ""
    toward_open = torch.full((200,), 3)
    assert why([one], toward_open).startswith("the table of attributes lacks a class of each of the 200 pictures")
    assert np.isnan(moved([one], pictures, toward_open).written).all()
    assert found.written[~outside].mean() == pytest.approx(1, abs=0.1)
    assert found.written[~outside].mean() == pytest.approx(moved([probes], pictures, goals).written[~outside].mean(), abs=0.1)


def test_the_control_draws_third_classes_that_have_rows(data: tuple[Tensor, Tensor], probes: Probes) -> None:
    from interp.attributes.write import _third

    labels, goals = probes.labels, (probes.labels + 1) % 4
    drawn = _third(probes, torch.arange(200), goals, 0)
    assert not ((drawn == labels) | (drawn == goals)).any()
    assert len({*zip(labels.tolist(), drawn.tolist(), strict=True)}) == 8  # both that are left, for each class
    three = dataclasses.replace(probes, known=torch.tensor([[1, 1, 0, 1]] * 3, dtype=torch.bool))
    drawn = _third(three, torch.arange(200), goals, 0)
    both = (labels != 2) & (goals != 2)
    assert {*zip(labels[both].tolist(), drawn[both].tolist(), strict=True)} == {(0, 3), (3, 1)}
    assert torch.equal(drawn[~both], labels[~both])


def test_wrong_input_is_named(data: tuple[Tensor, Tensor], judge: Model, probes: Probes) -> None:
    x, labels = data
    with pytest.raises(InputError, match="columns of the table"):
        fit(judge, x, labels + 2, TABLE)
    with pytest.raises(InputError, match="folds"):
        fit(judge, x, labels, TABLE, folds=1)
    with pytest.raises(InputError, match="give rows"):
        moved([probes], x[:5], labels[:5])
    with pytest.raises(InputError, match="rows reach"):
        moved([probes], x[:1], labels[:1], rows=[200])
    with pytest.raises(InputError, match="fit all judges on the same"):
        moved([probes, dataclasses.replace(probes, labels=labels.flip(0))], x, labels)


def test_what_robust_models_write_more_of_is_found_and_chance_is_not() -> None:
    """Of 30 attributes one is moved further, one as far as the twin moves it, one against what is due; the rest are noise."""
    rng = np.random.default_rng(0)
    had, will = np.zeros((60, 30), bool), np.zeros((60, 30), bool)
    will[:, :15], had[:, 15:] = True, True  # the first are due to appear, the others to vanish
    change = 0.3 * rng.standard_normal((3, 60, 30))  # standard, robust, a third of no pair
    change[1, :, 0] += 0.5
    change[:2, :, 1] += 0.5
    change[1, :, 2] -= 0.5
    change[1, :, 16] -= 0.5
    found = more(change, had, will, [(0, 1)])
    assert np.argwhere(found).tolist() == [[1, 0, 0], [1, 16, 1]]
    assert not more(change[:, :19], had[:19], will[:19], [(0, 1)]).any()  # of fewer than 20 images nothing is said
    assert not more(change, had, will, []).any()
