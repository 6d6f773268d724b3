"""Shape or texture: models of which it is known, by construction, what they see."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interp
from interp.attributes.groups import Sizes, shape_or_texture
from interp.attributes.shape import (
    MEASURES,
    control,
    cue_classes,
    cue_conflict,
    curve,
    cutoff,
    decisions,
    drawn_cues,
    half,
    kept,
    ladder,
    right,
    shape_bias,
    unread,
    views,
)
from interp.data.conflicts import CLASSES16, IMAGENET16, Conflict, sixteen
from interp.data.labels import CIFAR10
from interp.data.outlines import SHAPES, inside
from interp.data.synthetic import cue_conflicts, shapes
from interp.data.transforms import band_limited
from interp.models.model import Model
from interp.models.randomise import fully_randomised
from interp.stats import bootstrap
from interp.types import Batch, Card, Preprocess

CUTOFFS = ladder(32)
CUES = ("cue_bias", "cue_decided", "cue_consistent", "cue_silhouette")


def wrap(net: nn.Module, labels: tuple[str, ...] = SHAPES) -> Model:
    return Model(net, Card("known", "known", len(labels), Preprocess(32, 32), labels=labels))


def linear(inputs: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(inputs, 8, bias=False)


class Templates(nn.Module):
    """All that is not the ground's colour, put to one place and size, against outlines in 24 rotations: sees shape alone."""

    def __init__(self) -> None:
        super().__init__()
        at = (torch.arange(97) - 48) / 40
        x, y = at.expand(97, 97), at[:, None].expand(97, 97)
        turns = [2 * math.pi * k / 24 for k in range(24)]
        drawn = [
            inside(s, x * math.cos(t) + y * math.sin(t), y * math.cos(t) - x * math.sin(t)).float() for s in SHAPES for t in turns
        ]
        self.templates = nn.Buffer(self.canonical(torch.stack(drawn)).view(8, 24, -1))
        self.head = nn.Linear(8, 8)
        self.head.load_state_dict({"weight": 10 * torch.eye(8), "bias": torch.zeros(8)})

    @staticmethod
    def canonical(mask: Tensor) -> Tensor:
        """Masks (n, h, w) about their centroid, as large as their area says, as unit vectors."""
        n, h, w = mask.shape
        at_x, at_y = ((2 * torch.arange(k) + 1) / k - 1 for k in (w, h))
        area = mask.sum((1, 2)).clamp_min(1)
        x, y = (mask.sum(1) * at_x).sum(1) / area, (mask.sum(2) * at_y).sum(1) / area
        reach = 2 * (4 * area / (h * w) / math.pi).sqrt()
        zero = torch.zeros(n)
        theta = torch.stack([torch.stack([reach, zero, x], 1), torch.stack([zero, reach, y], 1)], 1)
        seen = F.grid_sample(mask[:, None], F.affine_grid(theta, [n, 1, 24, 24], align_corners=False), align_corners=False)
        return F.normalize(seen.flatten(1) - seen.flatten(1).mean(1, keepdim=True), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        mask = ((x - x[:, :, :1, :1]).abs().amax(1) > 0.02).float()
        return self.head(torch.einsum("nd,krd->nkr", self.canonical(mask), self.templates).amax(2))


class Bag(nn.Module):
    """Energies of small random filters, averaged over the picture: sees what local textures there are, not where."""

    def __init__(self) -> None:
        super().__init__()
        filters = torch.randn(96, 1, 7, 7, generator=torch.Generator().manual_seed(0))
        self.filters = nn.Buffer(filters - filters.mean((2, 3), keepdim=True))
        self.head = linear(96)

    def forward(self, x: Tensor) -> Tensor:
        energy = F.conv2d(x.mean(1, keepdim=True), self.filters).square().mean((2, 3))
        return self.head((energy / (energy.sum(1, keepdim=True) + 1e-9) + 1e-9).log())


class Colours(nn.Module):
    """A histogram of colours: exactly the same for any order of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = linear(24)

    def forward(self, x: Tensor) -> Tensor:
        bins = (x.mul(8).long().clamp(max=7)[:, :, None] == torch.arange(8).view(1, 1, 8, 1, 1)).sum((3, 4))
        return self.head(bins.flatten(1).float() / 64)


class Band(nn.Module):
    """A linear model of the frequencies below or above one limit."""

    def __init__(self, **limits: float) -> None:
        super().__init__()
        self.limits = limits
        self.head = linear(3 * 32 * 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(band_limited(x - x.mean((2, 3), keepdim=True), clip=False, **self.limits).flatten(1))


class Corner(nn.Module):
    """Sees the colour of one pixel, which in drawn stimuli is ground."""

    def __init__(self) -> None:
        super().__init__()
        self.head = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[:, :, 0, 0])


@cache
def templates() -> Model:
    return wrap(Templates())


@cache
def seen() -> tuple[Batch, dict[str, np.ndarray]]:
    batch = shapes(96, 32, 5)
    return batch, decisions(templates(), batch)


def own(model: Model, images: Tensor) -> Batch:
    """The images with what the model says of them as labels."""
    return Batch(images, model.read(images).argmax(1))


def faint(n: int) -> Tensor:
    """Noise around grey, of so little contrast that no band of it leaves [0, 1]."""
    return 0.5 + 0.02 * torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_model_of_outlines_keeps_silhouettes_and_loses_shuffled_patches() -> None:
    batch, decided = seen()
    rights = right(decided, batch.labels)
    rows = kept(rights)
    assert rights["clean"].mean() > 0.85
    assert np.nanmean(rows["silhouettes"]) == 1  # its mask is the same
    assert np.nanmean(rows["shuffled_2"]) < 0.5
    assert np.nanmean(rows["shuffled_4"]) < 0.4
    assert np.array_equal(np.isnan(rows["edges"]), rights["clean"] == 0)


def test_a_model_of_colours_does_not_notice_shuffled_patches_and_loses_the_silhouette() -> None:
    model = wrap(Colours())
    drawn = shapes(64, 32, 0, background="texture")
    labels = model.read(drawn.images).argmax(1)
    rows = kept(right(decisions(model, Batch(drawn.images, labels, masks=drawn.masks)), labels))
    assert (rows["shuffled_2"] == 1).all() and (rows["shuffled_4"] == 1).all()
    assert rows["silhouettes"].mean() < 0.6
    assert len(np.unique(labels)) > 2  # so that this is no constant answer


def test_a_low_pass_model_loses_nothing_under_low_pass_and_all_under_high_pass() -> None:
    limit = CUTOFFS[2]
    model = wrap(Band(high=limit))
    batch = own(model, faint(128))
    rights = right(decisions(model, batch), batch.labels)
    for k, at in enumerate(CUTOFFS):
        if at >= limit:
            assert rights[f"low_{k}"].mean() == 1
            assert rights[f"high_{k}"].mean() < 0.35  # it sees nothing: one constant answer
    found = bootstrap(cutoff(rights, CUTOFFS, chance=1 / 8))
    assert found.low <= found.mean <= found.high <= limit
    assert np.nanmean(kept(rights)["low_pass"]) > np.nanmean(kept(rights)["high_pass"])


def test_a_high_pass_model_is_the_reverse() -> None:
    limit = CUTOFFS[3]
    model = wrap(Band(low=limit))
    batch = own(model, faint(128))
    rights = right(decisions(model, batch), batch.labels)
    assert all(rights[f"high_{k}"].mean() == 1 for k in (1, 2, 3))
    assert all(rights[f"low_{k}"].mean() < 0.35 for k in (0, 1, 2, 3))
    assert bootstrap(cutoff(rights, CUTOFFS, chance=1 / 8)).low > limit


def test_with_other_labels_all_is_at_chance() -> None:
    batch, decided = seen()
    rows = kept(control(decided, batch.labels))
    assert all(np.nanmean(row) == pytest.approx(1 / 8) for row in rows.values())  # exactly, as each shape comes as often
    some = batch.labels.clone()
    some[:48] = 0
    order = torch.stack([some[torch.randperm(96, generator=torch.Generator().manual_seed(k))] for k in range(400)])
    drawn = np.mean([right(decided, labels)["edges"].mean() for labels in order])
    assert control(decided, some)["edges"].mean() == pytest.approx(drawn, abs=0.01)
    assert np.array_equal(control(decided, some)["clean"], right(decided, some)["clean"])


def test_views_are_complete_and_decisions_do_not_depend_on_the_chunk() -> None:
    batch, decided = seen()
    names = [name for name, _ in views(batch)]
    assert names == list(decided)
    assert {m.name for m in MEASURES[:6]} == set(kept(right(decided, batch.labels)))
    assert sum(name.startswith("low_") for name in names) == len(CUTOFFS) == sum(name.startswith("high_") for name in names) + 1
    part = batch[:20]
    assert all(np.array_equal(v, decided[name][:20]) for name, v in decisions(templates(), part, chunk=7).items())


def test_the_curve_is_the_accuracy_with_wilson_s_interval() -> None:
    batch, decided = seen()
    rights = right(decided, batch.labels)
    found = curve(rights, "low")
    assert found.shape == (len(CUTOFFS), 3) and curve(rights, "high").shape == (len(CUTOFFS) - 1, 3)
    assert found[2, 0] == (decided["low_2"] == batch.labels.numpy()).mean()
    assert (found[:, 1] < found[:, 0]).all() or found[:, 0].min() == 0


def test_empty_masks_have_no_silhouette() -> None:
    batch, _ = seen()
    assert batch.masks is not None
    masks = batch.masks[:3].clone()
    masks[1], masks[2] = False, True
    rights = right(decisions(templates(), Batch(batch.images[:3], batch.labels[:3], masks=masks)), batch.labels[:3])
    assert np.isnan(rights["silhouettes"]).tolist() == [False, True, True]
    assert "silhouettes" not in decisions(templates(), Batch(batch.images[:3], batch.labels[:3]))


@pytest.mark.parametrize(
    ("low", "clean", "found"),
    [
        ((0.0, 0.2, 0.6, 0.8), 0.8, 0.25),  # 0.4 lies halfway from 0.2 at 0.2 to 0.6 at 0.3
        ((0.0, 0.5, 0.1, 0.8), 0.8, 0.3 + 0.1 * 3 / 7),  # the highest crossing counts
        ((0.5, 0.5, 0.5, 0.5), 0.8, 0.1),  # all of it is below the lowest cutoff
        ((0.0, 0.0, 0.0, 0.0), 0.8, 0.4 + (math.sqrt(0.5) - 0.4) / 2),
        ((0.0, 0.0, 0.0, 0.0), 0.19, math.nan),  # half of it is what a blank image earns
        ((0.0, 0.0, 0.0, 0.0), 0.0, math.nan),
    ],
)
def test_the_cutoff_of_known_curves(low: tuple[float, ...], clean: float, found: float) -> None:
    cutoffs = (0.1, 0.2, 0.3, 0.4)
    one = half(np.array(low), np.array(clean), cutoffs, chance=0.1)
    assert float(one) == pytest.approx(found, nan_ok=True)
    both = half(np.array([low, low]).T, np.array([clean, 0.0]), cutoffs, chance=0.1)
    assert both == pytest.approx(np.array([found, np.nan]), nan_ok=True)


def falling(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """n images, each of which needs frequencies up to its own; a tenth is wrong anyway."""
    ease, wrong = rng.random(n), rng.random(n) < 0.1
    rows = {f"low_{k}": (ease < c) & ~wrong for k, c in enumerate((0.1, 0.3, 0.5, 0.7))} | {"clean": ~wrong}
    return {name: row.astype(float) for name, row in rows.items()}


def test_the_cutoff_s_values_of_images_have_it_for_their_mean_and_its_spread_for_theirs() -> None:
    rng, cutoffs = np.random.default_rng(0), (0.1, 0.2, 0.3, 0.4)
    few, many = (cutoff(falling(n, rng), cutoffs, chance=0.1) for n in (50, 1000))
    (_, low, high), narrow = bootstrap(few), bootstrap(many)
    assert narrow.low < 0.3 < narrow.high
    assert narrow.high - narrow.low < (high - low) / 2
    rights = falling(400, rng)
    values = cutoff(rights, cutoffs, chance=0.1)
    means = np.array([rights[f"low_{k}"].mean() for k in range(4)])
    assert values.mean() == pytest.approx(float(half(means, rights["clean"].mean(), cutoffs, chance=0.1)))
    drawn = rng.integers(0, 400, (1000, 400))
    anew = [cutoff({name: row[d] for name, row in rights.items()}, cutoffs, chance=0.1).mean() for d in drawn]
    assert np.corrcoef(values[drawn].mean(1), anew)[0, 1] > 0.98
    assert values.std() / 20 == pytest.approx(np.std(anew), rel=0.15)
    assert np.isnan(cutoff(rights | {"clean": np.zeros(400)}, cutoffs, chance=0.1)).all()
    assert (cutoff({name: np.ones(400) for name in rights}, cutoffs, chance=0.1) == 0.1).all()


def test_the_cutoff_is_a_row_of_the_table_with_a_control_that_is_later() -> None:
    batch, _ = seen()
    columns, extras = shape_or_texture([templates()], batch, batch.labels, Sizes(), 64)
    (column,) = [c for c in columns if c.measure.name == "shape_cutoff"]
    assert column.control is not None
    assert column.values.shape == column.control.shape == (1, len(batch))
    assert column.values.mean() < column.control.mean()
    assert not [name for name in extras if name.startswith("shape_cutoff")]


def test_shape_bias_counts_decisions_for_either_cue() -> None:
    logits = 9 * F.one_hot(torch.tensor([0, 1, 2, 0, 3, 4]), 5).float()
    shape, texture = torch.tensor([0, 0, 0, 0, 3, 0]), torch.tensor([1, 1, 1, 0, 1, 1])
    mapped = torch.tensor([0, 1, 2, -1, 0])  # no class is cue 3; the last counts as cue 0 too
    values = shape_bias(logits, shape, texture, mapped)
    assert values[:2].tolist() == [1, 0]  # for the shape, for the texture
    assert values[2:5].isnan().all()  # for neither; no conflict; a shape that the model does not know
    assert values[5] == 1
    assert float(values.nanmean()) == pytest.approx(2 / 3)


def test_imagenet_is_read_as_its_sixteen_classes() -> None:
    mapped = cue_classes(Card("i", "i", 1000, Preprocess()), CLASSES16)
    assert [mapped[i] for i in IMAGENET16["oven"]] == [CLASSES16.index("oven")]
    assert int((mapped >= 0).sum()) == sum(map(len, IMAGENET16.values()))
    logits = 4 * torch.randn(400, 1000, generator=torch.Generator().manual_seed(0))
    choice = sixteen(logits.softmax(1)).argmax(1)
    assert (shape_bias(logits, choice, (choice + 1) % 16, mapped) == 1).all()
    assert (shape_bias(logits, (choice + 1) % 16, choice, mapped) == 0).all()
    assert shape_bias(logits, (choice + 1) % 16, (choice + 2) % 16, mapped).isnan().all()


def test_a_blind_model_has_a_bias_of_one_half() -> None:
    g = torch.Generator().manual_seed(0)
    shape = torch.randint(16, (4000,), generator=g)
    values = shape_bias(
        torch.randn(4000, 16, generator=g), shape, (shape + torch.randint(1, 16, (4000,), generator=g)) % 16, torch.arange(16)
    )
    assert float(values.nanmean()) == pytest.approx(0.5, abs=0.08)


def test_names_of_cifar10_go_to_the_sixteen_and_strangers_are_refused() -> None:
    mapped = cue_classes(Card("c", "c", 10, Preprocess(), labels=CIFAR10), CLASSES16)
    known = {CIFAR10[i]: CLASSES16[k] for i, k in enumerate(mapped.tolist()) if k >= 0}
    assert known == {
        "airplane": "airplane", "automobile": "car", "bird": "bird", "cat": "cat", "dog": "dog", "ship": "boat", "truck": "truck",
    }  # fmt: skip
    for labels in ((), ("cat", "x", "y")):
        with pytest.raises(interp.InputError, match="fewer than two"):
            cue_classes(Card("s", "s", 3, Preprocess(), labels=labels), CLASSES16)


def test_own_decisions_of_a_model_of_outlines_are_for_the_shape() -> None:
    drawn = cue_conflicts(112, 32, 4)
    with pytest.raises(interp.InputError, match="one list of classes"):
        cue_conflict(templates(), drawn)
    bias = cue_conflict(templates(), Conflict(drawn.batch, drawn.textures, SHAPES))["shape_bias"]
    assert np.isfinite(bias).mean() > 0.8
    assert np.nanmean(bias) > 0.9


def test_drawn_cues_tell_a_model_of_outlines_from_a_bag_of_local_features() -> None:
    outlines, bag = drawn_cues(templates()), drawn_cues(wrap(Bag()))
    for rows in (outlines, bag):
        assert {k: v.shape for k, v in rows.items()} == dict.fromkeys(CUES, (224,))
        assert rows["cue_consistent"].mean() > 0.5
        assert rows["cue_decided"].mean() > 0.5
        assert np.array_equal(np.isnan(rows["cue_bias"]), rows["cue_decided"] == 0)
    assert np.nanmean(outlines["cue_bias"]) > 0.9
    assert np.nanmean(bag["cue_bias"]) < 0.15
    assert outlines["cue_silhouette"].mean() == pytest.approx(outlines["cue_consistent"].mean(), abs=0.05)  # it sees no texture
    assert bag["cue_silhouette"].mean() < 0.2


def test_a_model_that_sees_one_corner_has_no_bias_and_the_reason_is_told() -> None:
    rows = drawn_cues(wrap(Corner()), train=4, test=2)
    assert np.isnan(rows["cue_bias"]).all() and np.isnan(rows["cue_silhouette"]).all()
    assert abs(rows["cue_consistent"].mean()) < 0.15
    assert rows["cue_decided"].mean() == pytest.approx(0.25, abs=0.15)
    assert "expected an interval above 0.2" in unread(rows["cue_consistent"])
    assert np.isfinite(drawn_cues(wrap(Corner()), train=4, test=2, level=-1)["cue_bias"]).any()
    assert unread(np.ones(224)) == ""


def test_drawn_cues_do_not_depend_on_the_chunk_and_a_random_network_goes_through(tiny: Callable[..., Model]) -> None:
    model = tiny("xcit")
    rows, again = (drawn_cues(model, train=1, test=1, chunk=chunk) for chunk in (20, 56))
    assert np.array_equal(rows["cue_decided"], again["cue_decided"])
    assert not any(m._forward_pre_hooks for m in model.net.modules())
    assert np.isnan(drawn_cues(fully_randomised(model), train=1, test=1)["cue_bias"]).all()
    with pytest.raises(interp.InputError, match="at least one each"):
        drawn_cues(model, train=0)


def test_what_cannot_be_read_is_refused(samples: Batch, tiny: Callable[..., Model]) -> None:
    model = tiny("resnet")
    with pytest.raises(interp.InputError, match="labelled"):
        decisions(model, Batch(samples.images[:1], torch.tensor([-1])))
    with pytest.raises(interp.InputError, match="takes images"):
        decisions(model, Batch(torch.rand(1, 3, 64, 64), torch.tensor([1])))
    with pytest.raises(interp.InputError, match="classes"):
        decisions(model, seen()[0])


def test_measures_are_a_table_that_fits_a_figure() -> None:
    assert len({m.name for m in MEASURES}) == len(MEASURES)
    assert all(len(m.title) <= 32 and m.better == "none" for m in MEASURES)
