"""Sweeps: one run per image, ε and direction, read by the model itself and by others, whatever the chunk."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.attacks.sweep import Sweep, judged, labels_for, sweep, targets_of
from interp.models.model import Model, judges_of
from interp.result import as_plain, content_key
from interp.types import Batch

BUDGETS = (2 / 255, 1.0)
QUICK = Sweep(BUDGETS, PGD(8 / 255, steps=3), chunk=5)


@pytest.fixture(scope="module")
def batch(samples: Batch) -> Batch:
    return samples[:3]


@pytest.fixture(scope="module")
def found(tiny_models: list[Model], batch: Batch) -> xr.Dataset:
    return sweep(tiny_models, batch, dataclasses.replace(QUICK, frames=3)).data


def as_images(pictures: xr.DataArray) -> torch.Tensor:
    values = pictures.values.astype(np.float32)
    return torch.from_numpy(values.reshape(-1, *values.shape[-3:])).permute(0, 3, 1, 2)


def test_shapes_and_names(found: xr.Dataset, tiny_models: list[Model], batch: Batch) -> None:
    assert found["picture"].dims == ("model", "direction", "eps", "image", "y", "x", "channel")
    assert found["picture"].shape == (3, 2, 2, 3, 32, 32, 3)
    assert found["direction"].values.tolist() == ["away", "toward"]
    assert found["goal"].values.tolist() == [[batch.labels.tolist(), ((batch.labels + 1) % 10).tolist()]] * 3
    assert found["loss"].shape == found["probability"].shape == (3, 2, 2, 3, 4)
    assert found["eps"].values.tolist() == list(BUDGETS)
    assert np.array_equal(as_images(found["original"]).numpy(), batch.images.numpy())


def test_pictures_keep_the_budget(found: xr.Dataset) -> None:
    for i, eps in enumerate(BUDGETS):
        distance = np.abs(found["picture"].values[:, :, i] - found["original"].values).max()
        assert distance <= eps + 1e-6
        assert distance > 0.9 * min(eps, 0.5)
    assert found["picture"].values.min() >= 0
    assert found["picture"].values.max() <= 1


def test_what_is_said_of_a_picture_is_what_the_model_reads_in_it(found: xr.Dataset, tiny_models: list[Model]) -> None:
    for m, model in enumerate(tiny_models):
        one = found.isel(model=m)
        belief = model(as_images(one["picture"])).softmax(1).view(2, 2, 3, 10).numpy()
        assert np.array_equal(one["predicted"].values, belief.argmax(-1))
        assert np.allclose(one["confidence"].values, belief.max(-1), atol=1e-4)
        goal = np.broadcast_to(one["goal"].values[:, None], (2, 2, 3))
        assert np.array_equal(one["reached"].values[0], belief.argmax(-1)[0] != goal[0])
        assert np.array_equal(one["reached"].values[1], belief.argmax(-1)[1] == goal[1])
        own = np.take_along_axis(belief, goal[..., None], -1)[..., 0]
        assert np.allclose(one["probability"].values[..., -1], own, atol=1e-4)  # where the curve ends
        assert np.allclose(one["loss"].values[..., -1], -np.log(own), atol=1e-3)
    counted = np.broadcast_to(found["counted"].values[:, :, None], found["reached"].shape)
    assert np.allclose(found["success"].values, found["reached"].where(counted).mean("image"), equal_nan=True)


def test_curves_fall_away_and_rise_toward(found: xr.Dataset) -> None:
    gain = found["probability"].isel(step=-1) - found["probability"].isel(step=0)
    large = gain.isel(eps=1).mean(("model", "image"))
    assert large.sel(direction="away") < 0 < large.sel(direction="toward")


def test_a_run_is_the_attack_on_its_own(tiny_models: list[Model], batch: Batch, found: xr.Dataset) -> None:
    model = tiny_models[0]
    for i, eps in enumerate(BUDGETS):
        for d, targeted in enumerate((False, True)):
            pgd = dataclasses.replace(QUICK.attack, eps=eps, targeted=targeted)
            alone = attack(model, batch.images, (batch.labels + d) % 10, pgd).x
            different = (as_images(found["picture"][0, d, i]) - alone).abs() > 1e-4
            assert different.float().mean() < 0.01  # single pixels may differ where a gradient is zero up to rounding


def test_one_sweep_over_budgets_is_a_sweep_for_each(tiny_models: list[Model], batch: Batch) -> None:
    params = Sweep((0.3, 3.0), PGD(1.0, "l2", steps=3))
    both = sweep(tiny_models[:2], batch, params).data
    for i, eps in enumerate(params.eps):
        alone = sweep(tiny_models[:2], batch, dataclasses.replace(params, eps=(eps,))).data
        for name in ("picture", "probability", "loss", "others"):
            assert np.allclose(both[name].values[:, :, i], alone[name].values[:, :, 0], atol=1e-3), name


@pytest.mark.parametrize("chunk", [1, 5, 12, None])
def test_neither_the_result_nor_its_key_depends_on_chunks(tiny_models: list[Model], batch: Batch, chunk: int | None) -> None:
    params = Sweep((0.5, 2.0), PGD(1.0, "l2", steps=2), chunk=3)
    one, two = (sweep(tiny_models[:1], batch, p) for p in (params, dataclasses.replace(params, chunk=chunk)))
    assert one.key == two.key
    for name in ("picture", "probability", "loss"):
        assert np.allclose(one.data[name].values, two.data[name].values, atol=1e-3), name
    assert one.key != sweep(tiny_models[:1], batch, dataclasses.replace(params, target=3)).key


def test_each_draws_every_class(tiny_models: list[Model], batch: Batch) -> None:
    one, every = (sweep(tiny_models[:1], batch, Sweep((2.0,), PGD(1.0, "l2", steps=2), target=t)).data for t in (7, "each"))
    assert every["direction"].values.tolist() == ["away", *(f"toward {tiny_models[0].card.label(i)}" for i in range(10))]
    assert every["goal"].values[0, 1:].tolist() == [[c] * 3 for c in range(10)]
    for name in ("picture", "others", "probability"):
        assert np.allclose(one[name].values[:, 0], every[name].values[:, 0], atol=1e-3, equal_nan=True)
        assert np.allclose(one[name].values[:, 1], every[name].values[:, 8], atol=1e-3, equal_nan=True)


def test_next_likely_is_each_model_s_second_choice(tiny_models: list[Model], batch: Batch) -> None:
    data = sweep(tiny_models, batch, Sweep((0.1,), PGD(0.1, steps=1), target="next-likely")).data
    for m, model in enumerate(tiny_models):
        logits = model(batch.images)
        for i, label in enumerate(batch.labels.tolist()):
            goal = int(data["goal"].values[m, 1, i])
            assert goal != label
            assert goal == max((c for c in range(10) if c != label), key=lambda c: float(logits[i, c]))


def test_images_without_labels_move_away_from_what_the_model_sees(tiny_models: list[Model], samples: Batch) -> None:
    some = Batch(samples.images[:3], torch.tensor([-1, 4, -1]))
    seen = [m(some.images).argmax(1).tolist() for m in tiny_models]
    data = sweep(tiny_models, some, Sweep((0.1,), PGD(0.1, steps=1))).data
    for m, model in enumerate(tiny_models):
        assert data["goal"].values[m, 0].tolist() == labels_for(model, some).tolist() == [seen[m][0], 4, seen[m][2]]
    assert data["truth"].values.tolist() == [-1, 4, -1]


def test_frames_are_the_pictures_on_the_way(found: xr.Dataset, tiny_models: list[Model], batch: Batch) -> None:
    assert found["frame"].values.tolist() == [0, 2, 3]
    assert found["film"].dtype == np.uint8
    last = found["film"].isel(frame=-1).values / 255
    assert np.abs(last - found["picture"].values).max() <= 0.5 / 255 + 1e-6
    start = found["film"].isel(frame=0, eps=0).values / 255
    assert np.abs(start - found["original"].values).max() <= 2 / 255 + 0.5 / 255 + 1e-6
    assert (found["film"].isel(frame=0).values[:, 0] == found["film"].isel(frame=0).values[:, 1]).all()  # one start for all goals
    assert (found["film"].isel(frame=0).values != found["film"].isel(frame=1).values).any()
    assert "film" not in sweep(tiny_models[:1], batch, QUICK).data


@pytest.mark.parametrize(("steps", "frames", "kept"), [(10, 3, [0, 5, 10]), (2, 9, [0, 1, 2]), (5, 0, []), (7, 2, [0, 7])])
def test_which_frames_are_kept(steps: int, frames: int, kept: list[int]) -> None:
    assert Sweep((0.1,), PGD(0.1, steps=steps), frames=frames).kept == kept


def test_judges_are_the_models_of_other_architectures(
    tiny_models: list[Model], tiny: Any, batch: Batch, found: xr.Dataset
) -> None:
    """Pinned by hand: the mean of the others' softmax; a twin of the same architecture has no say."""
    twin = tiny("xcit", seed=5, id="tiny_xcit_twin", labels=tiny_models[0].card.labels)
    goals = torch.tensor([1, 2, 3])
    expected = torch.stack([m(batch.images).softmax(1)[torch.arange(3), goals] for m in tiny_models[1:]]).mean(0)
    assert torch.allclose(judged([*tiny_models, twin], 0, batch.images, goals), expected, atol=1e-6)
    assert torch.allclose(judged([*tiny_models, twin], 3, batch.images, goals), expected, atol=1e-6)
    assert judged(tiny_models[:1], 0, batch.images, goals).isnan().all()
    assert torch.allclose(  # where all are of one architecture the others judge
        judged([tiny_models[0], twin], 0, batch.images, goals), twin(batch.images).softmax(1)[torch.arange(3), goals], atol=1e-6
    )
    shown = as_images(found["picture"][1, 1, 1])
    goal = torch.from_numpy(found["goal"].values[1, 1])
    assert np.allclose(found["others"].values[1, 1, 1], judged(tiny_models, 1, shown, goal).numpy(), atol=1e-5)


def test_fast_and_float64_sweeps_show_pictures_alike(tiny_models: list[Model], batch: Batch) -> None:
    params = Sweep((1.0,), PGD(1.0, "l2", steps=2, random_start=False))
    plain, double, fast = (
        sweep(tiny_models[:1], batch, dataclasses.replace(params, precision=p)) for p in ("float32", "float64", "fast")
    )
    assert np.abs(plain.data["picture"] - double.data["picture"]).max() < 1e-3
    assert np.abs(plain.data["picture"] - fast.data["picture"]).mean() < 0.01
    assert len({plain.key, double.key, fast.key}) == 3


def test_fields_added_later_leave_old_keys_alone() -> None:
    """Also inside the attack; what says how the work is cut is in no key."""
    named = ["eps", "norm", "steps", "step_size", "targeted", "random_start", "restarts", "loss", "seed"]
    assert list(as_plain(PGD(0.1))) == named
    plain = as_plain(Sweep())
    assert list(plain) == ["eps", "attack", "target"]
    assert list(plain["attack"]) == named
    changed = as_plain(Sweep(attack=PGD(8 / 255, steps=50, rule="apgd"), frames=4, chunk=7))
    assert changed == plain | {"attack": plain["attack"] | {"rule": "apgd"}, "frames": 4}
    assert content_key("sweep", changed, {}) != content_key("sweep", plain, {})


def test_targets_outside_the_classes_are_refused(tiny_models: list[Model], batch: Batch) -> None:
    for target in (10, -1):
        with pytest.raises(interp.InputError, match="0 to 9"):
            sweep(tiny_models, batch, Sweep((0.1,), PGD(0.1, steps=1), target=target))


def test_too_many_classes_for_each_are_refused(tiny_models: list[Model], batch: Batch) -> None:
    model = Model(tiny_models[0].net, dataclasses.replace(tiny_models[0].card, num_classes=21, labels=()))
    with pytest.raises(interp.InputError, match="21 classes; 'each' draws at most 20"):
        targets_of(model, batch, "each")


def test_models_of_other_classes_or_sizes_are_refused(tiny_models: list[Model], batch: Batch) -> None:
    other = Model(tiny_models[0].net, dataclasses.replace(tiny_models[0].card, num_classes=11, labels=()))
    with pytest.raises(interp.InputError, match="one set of classes"):
        sweep([tiny_models[1], other], batch, QUICK)
    small = Batch(batch.images[..., :16, :16].contiguous(), batch.labels)
    with pytest.raises(interp.InputError, match="takes images"):
        sweep(tiny_models, small, QUICK)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"eps": ()}, "no ε was given"),
        ({"eps": (0.1, -0.1)}, "≥ 0"),
        ({"eps": (0.1, 0.2, 0.1)}, "each once"),
        ({"target": "cat"}, "each, next-likely"),
        ({"attack": PGD(0.1, loss="kl")}, "toward labels: ce, logit, margin, dlr"),
        ({"attack": PGD(0.1, restarts=2)}, "one restart, without stop"),
        ({"attack": PGD(0.1, stop=True)}, "one restart, without stop"),
        ({"frames": -1}, "frames -1"),
        ({"precision": "half"}, "precision is 'half'"),
    ],
)
def test_parameters_without_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(interp.InputError, match=said):
        Sweep(**wrong)


def test_chunks_of_nothing_are_refused(tiny_models: list[Model], batch: Batch) -> None:
    with pytest.raises(interp.InputError, match="chunk is 0"):
        sweep(tiny_models[:1], batch, dataclasses.replace(QUICK, chunk=0))


def test_images_of_the_target_s_own_class_are_no_success(tiny_models: list[Model], batch: Batch) -> None:
    label = int(batch.labels[0])
    count = (batch.labels != label) & (tiny_models[0](batch.images).argmax(1) != label)
    others = int(count.sum())
    params = Sweep((0.0, 0.1), PGD(0.1, steps=1), target=label)
    result = sweep(tiny_models[:1], batch, params)
    assert (result.data["success_n"].values[0, 1] == others).all() and (result.data["success_n"].values[0, 0] == len(batch)).all()
    reached = result.data["reached"].values[0, 1][:, count.numpy()]
    assert np.allclose(result.data["success"].values[0, 1], reached.mean(-1) if others else np.nan, equal_nan=True)
    rows = result.table().query("direction == 'toward'")
    assert set(rows["n"]) == {others}


def test_what_is_read_as_the_target_at_the_start_is_no_success(tiny_models: list[Model], samples: Batch) -> None:
    """At ε = 0 nothing moves, so nothing reaches the likeliest other class, however often the model errs."""
    some, params = samples[:8], Sweep((0.0,), PGD(0.0, steps=1), target="next-likely")
    data = sweep(tiny_models, some, params).data
    for m, model in enumerate(tiny_models):
        right = int((model(some.images).argmax(1) == some.labels).sum())
        assert right < len(some) and data["success_n"].values[m, 1, 0] == right
        assert data["reached"].values[m, 1, 0].sum() == len(some) - right
        assert data["success"].values[m, 1, 0] == 0 if right else np.isnan(data["success"].values[m, 1, 0])
        assert data["success"].values[m, 0, 0] == pytest.approx(1 - right / len(some))


def test_images_that_are_all_of_the_target_are_refused(tiny_models: list[Model], batch: Batch) -> None:
    with pytest.raises(interp.InputError, match=r"all 1 images are of the target class .*; expected some of another"):
        sweep(tiny_models, batch[:1], Sweep((0.1,), PGD(0.1, steps=1), target=int(batch.labels[0])))


@pytest.mark.parametrize("analysis", ["sweep", "synthesise", "invert", "accumulate"])
def test_no_models_are_refused(analysis: str, batch: Batch) -> None:
    with pytest.raises(interp.InputError, match="no models were given; expected at least one"):
        getattr(interp, analysis)([], batch)


def test_architectures_whose_ids_begin_alike_judge_each_other(tiny: Any) -> None:
    """Or not at all: 'a' and 'b', or 'net_a' and 'net_b', of two architectures are no group."""
    for names in ("abcd", ("net_a", "net_b", "net_c", "net_d")):
        models = [tiny(family, seed=i, id=names[i]) for i, family in enumerate(("xcit", "xcit", "resnet", "resnet"))]
        assert judges_of(models, 0) == [2, 3] and judges_of(models, 3) == [0, 1]


def test_the_arithmetic_is_on_record(tiny_models: list[Model], batch: Batch) -> None:
    result = sweep(tiny_models[2:], batch[:1], Sweep((0.1,), PGD(0.1, steps=1), precision="float64"))
    assert result.data.attrs["arithmetic"].startswith("float64") and "batch norm" in result.data.attrs["arithmetic"]


def test_reading_many_images_needs_no_more_memory_than_a_chunk(tiny_models: list[Model], samples: Batch) -> None:
    seen: list[int] = []
    handle = tiny_models[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        logits = tiny_models[0].read(samples.images[:5], chunk=2)
    finally:
        handle.remove()
    assert seen == [2, 2, 1] and torch.allclose(logits, tiny_models[0](samples.images[:5]), atol=1e-5)
