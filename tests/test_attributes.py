"""Measures on cases whose answer is known."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr
from matplotlib.text import Text
from PIL import Image
from torch import Tensor, nn

import interp
from interp.attacks.pgd import PGD
from interp.attributes.classify import as_image, choices
from interp.attributes.compare import GROUPS, PER_IMAGE, Compare, compare, goals_of, twins
from interp.attributes.edges import alignment, sobel
from interp.attributes.groups import Sizes
from interp.data.labels import CIFAR10
from interp.data.synthetic import shapes
from interp.gradients.spectrum import centroid, energy, radial
from interp.models.model import Model, judges_of
from interp.plots.matrices import judges as matrix_of_judges
from interp.result import Result
from interp.types import Batch, Card, InputError, Preprocess, Threat, pixels


def noise(n: int, size: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_energy_obeys_parseval() -> None:
    v = noise(3)
    centred = v - v.mean((2, 3), keepdim=True)
    assert torch.allclose(energy(v)[1].sum((1, 2)), 32 * 32 * centred.square().sum((1, 2, 3)), rtol=1e-4)


def test_centroid_of_a_wave_is_its_frequency() -> None:
    for k in (1, 5, 12):
        wave = torch.sin(2 * torch.pi * k * torch.arange(32) / 32).expand(1, 3, 32, 32)
        assert centroid(wave).item() == pytest.approx(k / 32, abs=1e-4)
        assert radial(wave)[1].max().item() == pytest.approx(1.0, abs=1e-4)


def test_centroid_of_white_noise_is_the_mean_frequency() -> None:
    assert centroid(noise(64)).mean().item() == pytest.approx(0.3826, abs=0.003)


def test_blur_lowers_the_centroid() -> None:
    v = noise(4)
    assert (centroid(torch.nn.functional.avg_pool2d(v, 5, 1, 2)) < centroid(v)).all()


def test_edges_align_with_themselves_and_not_with_noise(samples: Batch) -> None:
    x = samples.images
    assert torch.allclose(alignment(sobel(x)[:, None], x), torch.ones(len(x)), atol=1e-5)
    assert alignment(noise(len(x)), x).abs().mean() < 0.06


def test_sobel_finds_a_step_and_nothing_on_a_plain() -> None:
    x = torch.zeros(1, 3, 8, 8)
    x[..., 4:] = 1
    found = sobel(x)[0]
    assert (found[:, 3:5] == 4).all()
    assert (found[:, :3] == 0).all()
    assert (found[:, 5:] == 0).all()


def test_perturbation_as_image_maps_zero_to_grey_and_ends_to_ends() -> None:
    assert torch.allclose(as_image(torch.tensor([-0.1, 0.0, 0.1]), 0.1), torch.tensor([0.0, 0.5, 1.0]))


def test_judges_read_in_chunks_what_they_read_at_once(tiny_models: list[interp.Model], samples: Batch) -> None:
    a, b = (choices(tiny_models, samples.images, chunk=c) for c in (20, 3))
    assert torch.equal(a, b)


LOOKS = ("perturbation", "appearance", "alignment")
ONE = Compare(PGD(32 / 255, steps=1, targeted=True), PGD(8 / 255, steps=2), LOOKS, sweep=(), chunk=24)
SMALL = dataclasses.replace(ONE, sizes=Sizes(24, 24, 24, 24, 2, PGD(15.0, steps=2, targeted=True)))
WHOLE = (
    "classified",
    "transferred",
    "became",
    "removed",
    "fooled",
    "precision",
    "recall",
    "picture_read_accuracy",
    "map_pointing",
)
"""Measures that count hits."""


class Small(nn.Module):
    """A network of a few thousand parameters, so that a comparison takes a second."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.ReLU())
        self.fc = nn.Linear(width * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.functional.relu(self.layer4(x)).flatten(1))


class ResNet(Small):
    """Named as a family of which the layer of Grad-CAM is known."""


def small(name: str, *, width: int = 12, robust: bool = False, classes: int = 4, kind: type[Small] = ResNet) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        net = kind(width, classes)
    threat = Threat("linf", 8 / 255) if robust else None
    known = Card(id=name, arch="small", arch_args={"width": width}, num_classes=classes, preprocess=Preprocess(16, 16))
    return Model(net, dataclasses.replace(known, threat=threat, training="pgd" if robust else "standard"))


@pytest.fixture(scope="module")
def smalls() -> list[Model]:
    """A standard model with its robust twin, and a third of another architecture."""
    return [small("a_standard"), small("a_linf", robust=True), small("b", width=24)]


def pictures(n: int = 24) -> Batch:
    """Noise of four colours, with a mask each."""
    labels, masks = torch.arange(n) % 4, torch.zeros(n, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 4:12] = True
    tint = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.3], [0.0, 0.0, 0.0]])[labels, :, None, None]
    return Batch((0.5 + tint + 0.1 * noise(n, 16)).clamp(0, 1), labels, masks=masks)


def write_masked(path: Path, n: int) -> Path:
    """A parquet file of noise with a box each, of no class that a model here knows."""
    cells = []
    for picture in pixels((noise(n, 16).clamp(0, 1) * 255).byte()):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        cells.append({"bytes": file.getvalue()})
    pq.write_table(pa.table({"img": cells, "label": [150] * n, "box_xyxy": [[2, 2, 9, 9]] * n}), path)
    return path


def rows_of(result: Result) -> list[str]:
    return [m for m in result.measures if result.data[m].dims == ("model",)]


def assert_same(one: xr.Dataset, other: xr.Dataset, names: list[str]) -> None:
    for name in names:
        for end in (f"values_{name}", name, f"{name}_control", f"{name}_control_high"):
            atol = 0 if name in WHOLE and end.startswith("values") else 1e-4
            assert np.allclose(one[end], other[end], atol=atol, rtol=1e-4, equal_nan=True), end


def assert_complete(result: Result, params: Compare) -> None:
    """A group is there or has a reason; NaN stands where nothing was counted; what lies between is in order."""
    data, skipped = result.data, result.data.attrs["skipped"]
    for group in params.groups:
        assert (group in {data[m].attrs["group"] for m in rows_of(result)}) != (f"{group}: " in skipped), group
    for name in rows_of(result):
        counted = data[f"{name}_n"].values > 0
        assert np.array_equal(np.isfinite(data[name].values), counted), name
        assert counted.any() or data[name].attrs["verdict"].startswith("not judged"), name
        low, mean, high = (data[f"{name}{end}"].values[counted] for end in ("_low", "", "_high"))
        assert (low <= mean + 1e-12).all() and (mean <= high + 1e-12).all(), name
        values = data[f"values_{name}"].values[counted]
        assert np.allclose(np.nanmean(values, 1), mean, atol=1e-5, rtol=1e-5), name
        assert {"control", "best", "verdict", "formula", "source", "unit", "better"} <= data[name].attrs.keys(), name


def test_comparison_of_the_families_and_a_twin_is_complete_whatever_the_chunk(
    tiny: Callable[..., Model], tiny_models: list[Model], samples: Batch
) -> None:
    models = [
        *tiny_models,
        tiny("xcit", seed=1, id="tiny_xcit_linf", labels=tiny_models[0].card.labels, threat=Threat("linf", 8 / 255)),
    ]
    batch = samples[:8]
    whole, parts = (compare(models, batch, dataclasses.replace(ONE, chunk=chunk)) for chunk in (24, 5))
    assert rows_of(whole) == [m.name for group in LOOKS for m in PER_IMAGE[group]]
    assert whole.key == parts.key  # the chunk is no part of the question
    assert_complete(whole, ONE)
    assert_same(whole.data, parts.data, rows_of(whole))
    assert whole.data.attrs["skipped"] == "" and whole.data["centroid_n"].values.tolist() == [8] * 4
    for name in ("example_delta", "example_gradient", "example_added", "spectrum", "classified_by"):
        assert np.allclose(whole.data[name], parts.data[name], atol=1e-4), name
    assert abs(whole.data["class_part_control"].values[0]) < 0.02
    assert whole.data["edges"].attrs["control"].endswith("random parameters")
    assert whole.data["persistence_control"].values[0] > 0.3
    assert twins(models) == [(0, 3)]
    assert set(whole.table().columns) >= {"model", "measure", "value", "low", "high", "n", "unit", "better"}
    whole.plot()


@pytest.fixture(scope="module")
def everything(smalls: list[Model]) -> Result:
    """All groups that such small models can be asked."""
    params = dataclasses.replace(SMALL, groups=("perturbation", "written", "pictures", "where", "distances"))
    return compare(smalls, pictures(), params)


def test_groups_run_or_say_why_not(smalls: list[Model], everything: Result) -> None:
    data = everything.data
    groups = ("perturbation", "written", "pictures", "where", "distances")
    assert_complete(everything, dataclasses.replace(SMALL, groups=groups))
    assert "written: " in data.attrs["skipped"]  # the classes have no names, so no attributes
    assert {"picture_read_accuracy", "gradient_mass", "map_pointing", "alignment"} <= set(rows_of(everything))


def test_where_takes_the_pictures_with_masks_that_it_is_given(smalls: list[Model], tmp_path: Path) -> None:
    def found(batch: Batch, **sizes: object) -> xr.Dataset:
        params = dataclasses.replace(SMALL, groups=("where",), sizes=dataclasses.replace(SMALL.sizes, **sizes))
        return compare(smalls, batch, params).data

    unmasked = dataclasses.replace(pictures(), masks=None)
    drawn = found(unmasked, located=9)
    assert drawn["values_gradient_mass"].dims == ("model", "located") and drawn.sizes["located"] == 9
    assert "drawn shapes" in drawn["gradient_mass"].attrs["control"]
    assert np.allclose(drawn["mask_area"], shapes(9, 16, 0, background="mixed").masks.float().mean((1, 2)))
    file = write_masked(tmp_path / "masked.parquet", n=7)
    given = found(pictures(), masked=f"parquet:{file}", located=5)
    before = Sizes(masked=f"parquet:{file}")
    write_masked(file, n=8)
    assert Sizes(masked=f"parquet:{file}") != before and before.stamp  # so that other files are not taken for these
    assert given.sizes["located"] == 5 and "masked.parquet" in given["map_pointing"].attrs["control"]
    with pytest.raises(InputError, match=r"samples:cifar10 has no masks; expected"):
        found(pictures(), masked="samples:cifar10")


@pytest.mark.parametrize("chunk", [24, 5])
def test_a_group_says_the_same_alone_in_pieces_and_among_others(smalls: list[Model], everything: Result, chunk: int) -> None:
    for group in ("perturbation", "pictures", "where", "distances"):
        alone = compare(smalls, pictures(), dataclasses.replace(SMALL, groups=(group,), chunk=chunk))
        assert rows_of(alone) == [m for m in rows_of(everything) if everything.data[m].attrs["group"] == group]
        assert_same(alone.data, everything.data, rows_of(alone))


def test_twice_the_same_is_the_same_and_comes_back_from_a_file(smalls: list[Model], tmp_path: Path) -> None:
    params = dataclasses.replace(SMALL, groups=("perturbation", "where"))
    first, again = (compare(smalls, pictures(), params) for _ in range(2))
    assert first.key == again.key
    xr.testing.assert_identical(first.data, again.data)
    back = interp.open(again.save(tmp_path))
    assert back.key == again.key and back.title == again.title and back.measures == again.measures
    xr.testing.assert_equal(back.data, again.data)
    for name in rows_of(again):
        assert back.data[name].attrs == again.data[name].attrs, name
    assert twins(smalls) == [(0, 1)] and back.data["robust"].values.tolist() == [False, True, False]


def test_attributes_are_written_by_models_of_named_classes() -> None:
    """Classes differ by their brightness, which every attribute of them can be read from."""
    models = [small(name, width=width, classes=10) for name, width in (("a", 12), ("b", 24))]
    params = dataclasses.replace(ONE, groups=("written",), chunk=16)
    result, whole = (compare(models, bright(40), dataclasses.replace(params, chunk=c)) for c in (16, 40))
    assert_complete(result, params)
    assert_same(result.data, whole.data, rows_of(result))
    data = result.data
    assert rows_of(result) == [m.name for m in PER_IMAGE["written"]] and data.attrs["skipped"] == ""
    assert (data["written_n"] > 20).all()
    change = data["attribute_change"]
    assert change.dims == ("model", "attribute", "fate") and np.isfinite(change).any()
    known = np.isfinite(change.values)
    assert (data["attribute_change_low"].values[known] <= change.values[known] + 1e-12).all()


def test_the_sweep_reads_as_the_comparison_does(smalls: list[Model]) -> None:
    """Where both attacks of the comparison have that ε, and the one step of which half is one."""
    params = dataclasses.replace(ONE, attack=PGD(0.2, steps=1, targeted=True), away=PGD(0.2, steps=1), groups=("perturbation",))
    data = compare(smalls, pictures(), dataclasses.replace(params, sweep=(0.05, 0.5), swept=24)).data
    assert data["eps"].values.tolist() == [0.05, 0.2, 0.5]
    for m in PER_IMAGE["perturbation"]:
        assert np.allclose(data[f"sweep_{m.name}"].sel(eps=0.2), data[m.name], equal_nan=True), m.name
        assert np.allclose(data[f"sweep_{m.name}_high"].sel(eps=0.2), data[f"{m.name}_high"], equal_nan=True), m.name


def test_the_generator_is_not_its_own_independent_judge(smalls: list[Model], everything: Result) -> None:
    """A model's mean is that of its row of the matrix over models of other architectures: neither itself nor its twin."""
    data = everything.data
    for name, matrix in (("classified", "classified_by"), ("transferred", "transferred_to")):
        for g, judges in ((0, [2]), (1, [2]), (2, [0, 1])):
            assert data[name].values[g] == pytest.approx(data[matrix].values[g, judges].mean(), abs=1e-6)
        assert np.allclose(data[f"{name}_own"], np.diagonal(data[matrix]))
    batch = pictures()
    right = np.stack([(m.read(batch.images).argmax(1) == batch.labels).numpy() for m in smalls])
    able = np.stack([right[2], right[2], right[:2].any(0)])  # only who reads the image rightly can be fooled
    assert np.array_equal(np.isfinite(data["values_fooled"].values), able) and 0 < able.mean() < 1


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_goals_reach_every_other_class_evenly_and_never_the_label(classes: int) -> None:
    order = torch.randperm(classes * 2 * (classes - 1), generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(classes).repeat(2 * (classes - 1)))[order]
    goals = goals_of(labels, classes)
    pairs, counts = torch.stack([labels, goals], 1).unique(dim=0, return_counts=True)
    assert len(pairs) == classes * (classes - 1) and (counts == 2).all() and (goals != labels).all()
    assert torch.equal(goals_of(labels[:5], classes), goals[:5])  # more images change nothing of the first


def test_twins_have_the_same_judges(tiny: Callable[..., interp.Model]) -> None:
    models = [tiny("xcit", id="x_linf"), tiny("xcit", id="x_standard"), tiny("resnet"), tiny("mobilevit")]
    assert judges_of(models, 0) == judges_of(models, 1) == [2, 3]
    assert judges_of(models[:2], 0) == [1]
    assert judges_of(models[:1], 0) == []
    assert judges_of(models, None) == [0, 1, 2, 3]


def test_one_model_alone_has_no_independent_judge(smalls: list[Model]) -> None:
    params = dataclasses.replace(SMALL, groups=("perturbation", "pictures"))
    result = compare(smalls[:1], pictures(6), params)
    assert np.isnan(result.data["classified"].values[0]) and result.data["classified"].attrs["verdict"].startswith("not judged")
    assert np.isfinite(result.data["classified_own"].values[0])
    assert "pictures: pictures are read by other models" in result.data.attrs["skipped"]
    result.plot()  # draws a dash for what is not defined


def test_further_judges_read_as_models_do_and_are_not_compared(smalls: list[Model]) -> None:
    """Twins with the third model as their judge are read as among the three, and so compared, which they are not alone."""
    groups = ("perturbation", "pictures")
    among_three = compare(smalls, pictures(), dataclasses.replace(SMALL, groups=groups, sweep=(0.05,))).data
    result = compare(smalls[:2], pictures(), dataclasses.replace(SMALL, groups=groups, sweep=(0.05,), judges=(smalls[2],)))
    data, twins_alone = result.data, compare(smalls[:2], pictures(), dataclasses.replace(SMALL, groups=groups)).data
    assert data["model"].values.tolist() == ["a_standard", "a_linf"] and data["judge"].values.tolist()[2] == "b"
    names = [*(m.name for m in PER_IMAGE["perturbation"]), "picture_read_accuracy", "picture_diversity"]
    assert_same(data, among_three.isel(model=[0, 1]), names)
    assert np.isfinite(data["transferred_p"].values[0, 1]) and np.isnan(twins_alone["transferred_p"].values[0, 1])
    assert np.allclose(data["classified_by"], among_three["classified_by"][:2])
    assert np.allclose(data["sweep_transferred"], among_three["sweep_transferred"][:2])
    assert result.params["judges"] == [smalls[2].digest]  # another judge, another question
    assert {"a_standard", "ResNet\nrobust", "b"} <= {text.get_text() for text in matrix_of_judges(result).findobj(Text)}


def bright(n: int) -> Batch:
    """Images of CIFAR-10's classes, which differ by their brightness, so that attributes can be read from it."""
    labels = torch.arange(n) % 10
    return Batch((0.1 + 0.08 * labels[:, None, None, None] + 0.02 * noise(n, 16)).clamp(0, 1), labels, classes=CIFAR10)


def test_twins_without_a_common_judge_are_not_said_to_write_more() -> None:
    pair = [small("s", classes=10), small("r", robust=True, classes=10)]
    params = dataclasses.replace(ONE, groups=("written",))
    judged = dataclasses.replace(params, judges=(small("j", width=24, classes=10),))
    alone, read = (compare(pair, bright(80), p).data for p in (params, judged))
    assert np.isnan(alone["written_p"].values[0, 1]) and "attribute_more" not in alone
    assert read["attribute_more"].dims == ("model", "attribute", "fate") and not read["attribute_more"].values[0].any()
    counts, values = read["attribute_change_n"].values, read["attribute_change"].values
    assert np.array_equal(counts > 0, np.isfinite(values)) and (counts.sum(2) <= 80).all()


def test_what_nobody_can_read_is_left_out_with_the_reason(smalls: list[Model]) -> None:
    params = dataclasses.replace(ONE, groups=("written", "appearance"))
    data = compare([small("s", classes=10)], bright(40), params).data
    assert "written: there is no other model to read the pictures" in data.attrs["skipped"]
    one = dataclasses.replace(bright(40), labels=torch.zeros(40, dtype=torch.long))
    models = [small("s", classes=10), small("j", width=24, classes=10)]
    data = compare(models, one, dataclasses.replace(params, groups=("written", "alignment"))).data
    assert "written: s reads none of" in data.attrs["skipped"] or "written: j reads none of" in data.attrs["skipped"]
    assert "alignment: no image has a value" in data.attrs["skipped"]
    with pytest.raises(InputError, match=r"nothing could be measured: written: there is no other model"):
        compare(models[:1], bright(40), dataclasses.replace(params, groups=("written",)))


def test_one_model_is_read_by_further_judges(smalls: list[Model]) -> None:
    data = compare(smalls[:1], pictures(6), dataclasses.replace(ONE, groups=("perturbation",), judges=tuple(smalls[2:]))).data
    assert data["classified"].values[0] == pytest.approx(data["classified_by"].sel(judge="b").values[0])


def test_what_cannot_be_compared_is_refused(smalls: list[Model]) -> None:
    batch = pictures(4)
    with pytest.raises(InputError, match="labelled"):
        compare(smalls, dataclasses.replace(batch, labels=torch.tensor([0, 1, -1, 2])), ONE)
    with pytest.raises(InputError, match=r"\[4, 5\] classes"):
        compare([smalls[0], small("five", classes=5)], batch, ONE)
    with pytest.raises(InputError, match=r"a_linf is given twice"):
        compare(smalls, batch, dataclasses.replace(ONE, judges=(smalls[1],)))
    with pytest.raises(InputError, match=r"\[4, 4, 4, 5\] classes"):
        compare(smalls, batch, dataclasses.replace(ONE, judges=(small("five", classes=5),)))
    with pytest.raises(InputError, match="label 4"):
        compare(smalls, dataclasses.replace(batch, labels=torch.tensor([0, 1, 4, 2])), ONE)
    with pytest.raises(InputError, match="takes images"):
        compare(smalls, Batch(noise(4, 8).clamp(0, 1), batch.labels), ONE)


def test_parameters_that_make_no_sense_are_refused() -> None:
    toward, away = PGD(0.1, targeted=True), PGD(0.1)
    for attacks in ((away, away), (toward, toward), (PGD(0.0, targeted=True), away)):
        with pytest.raises(InputError, match="targeted"):
            Compare(*attacks)
    with pytest.raises(InputError, match="ε above 0"):
        Compare(toward, away, sweep=(0.0,))
    for groups in ((), ("perturbation", "perturbation"), ("beauty",)):
        with pytest.raises(InputError, match=f"expected some of {', '.join(GROUPS)}"):
            Compare(groups=groups)


def test_models_side_by_side_say_what_they_say_one_after_another(smalls: list[Model]) -> None:
    params = dataclasses.replace(
        SMALL, groups=("perturbation", "appearance", "alignment", "pictures", "distances"), sweep=(0.05,), swept=6
    )
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(compare(smalls, pictures(), params).data)
    finally:
        torch.set_num_threads(before)
    for name in found[0].data_vars:
        if found[0][name].dtype.kind == "f":
            for other in found[1:]:
                assert np.allclose(found[0][name], other[name], atol=1e-5, equal_nan=True), name
