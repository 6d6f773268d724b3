"""The analyses of attention: heads, numbers by layer, what patches attend to, change under attack; equal to their kernels."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from tqdm import tqdm

import interp
from interp.attacks.pgd import PGD
from interp.attention.attend import Attend, attend
from interp.attention.capture import capture
from interp.attention.depth import ByLayer, attention_by_layer
from interp.attention.geometry import of_patches
from interp.attention.heads import Heads, attention_heads
from interp.attention.layout import attention_layers
from interp.attention.maps import channel_readout, channel_rows, enlarge, query_rows
from interp.attention.queries import Queries, attention_queries
from interp.attention.readings import METHODS as READERS
from interp.attention.readings import How, read
from interp.attention.rollout import HEADS
from interp.attention.statistics import distance
from interp.models.model import Model, model_coords
from interp.plots.attention import channels, heads
from interp.plots.hover import page
from interp.plots.layers import layers, shift, shift_maps
from interp.result import open_result
from interp.robustness.shift import Shift, attention_shift
from interp.types import Batch, InputError
from tests.attention_nets import make as net
from tests.test_result import undescribed
from tests.timm_nets import make as between
from tests.timm_nets import of as tiny_images

FAMILIES = ("xcit", "mobilevit", "cait", "vit_reg", "swin", "mobilevitv2", "beit")


def of_family(models: list[Model], family: str) -> Model:
    return next(m for m in models if m.family == family)


def masked(batch: Batch) -> Batch:
    masks = torch.zeros(len(batch), 32, 32, dtype=torch.bool)
    masks[:-1, 8:24, 8:24] = True  # the last image shows no object
    return dataclasses.replace(batch, masks=masks)


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_of_every_family_are_its_layers_maps_of_mean_one(name: str, samples: Batch, tmp_path: Path) -> None:
    model, few = net(name), samples[:2]
    result = attention_heads([model], few)
    kinds, data = attention_layers(model), result.data
    drawn = [layer for layer, kind in kinds.items() if kind != "channel"]
    assert list(data["layer"].values) == drawn and list(data["kind"].values) == [kinds[layer] for layer in drawn]
    maps = data["head"].values
    known = np.isfinite(maps).all((2, 3, 4))
    assert known.any(1).all() and np.allclose(maps.mean((3, 4))[known], 1, atol=1e-4)
    assert np.isnan(maps[~known]).all()
    again = open_result(result.save(tmp_path))
    heads(again, 1)
    if "channel" in kinds.values():
        assert list(data["channel_layer"].values) == [layer for layer, kind in kinds.items() if kind == "channel"]
        assert np.allclose(data["channels"].sum("column"), 1, atol=1e-4)
        channels(again, 1)


def test_heads_take_one_model_a_layer_and_a_query(tiny_models: list[Model], samples: Batch) -> None:
    mobilevit, xcit = (of_family(tiny_models, family) for family in ("mobilevit", "xcit"))
    layer = list(attention_layers(mobilevit))[-1]
    asked = attention_heads([mobilevit], samples[:1], Heads((layer,), (5, 20)))
    plain = attention_heads([mobilevit], samples[:1], Heads((layer,)))
    assert asked.data.sizes["layer"] == 1 and asked.data.attrs["query"] == "5,20" and asked.key != plain.key
    assert not np.allclose(asked.data["head"], plain.data["head"])
    assert str(attention_heads([xcit], samples[:1], Heads(query=(0, 0))).data["how"].values[-1]).startswith("not read: the only")
    with pytest.raises(InputError, match="one model at a time"):
        attention_heads(tiny_models, samples[:1])
    with pytest.raises(InputError, match="no attention layer is called top"):
        attention_heads([xcit], samples[:1], Heads(("top",)))
    with pytest.raises(InputError, match="no attention"):
        attention_heads([of_family(tiny_models, "resnet")], samples[:1])


def test_channel_rows_are_readouts_of_the_channel_that_stands_out() -> None:
    grid = of_patches((2, 3))
    values = torch.full((1, 1, 6, 6), 1e-3) + torch.eye(6)  # channel i stands at token i
    weights = torch.eye(6).roll(1, 1)[None, None]  # and reads channel i + 1
    rows = channel_rows(weights, values, grid)
    assert torch.allclose(rows[0], torch.eye(6).roll(1, 1), atol=1e-4)
    weights = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).softmax(-1)
    rows = channel_rows(weights, values.expand(2, 3, -1, -1), grid)
    for channel in range(6):
        one = channel_readout(weights, values.expand(2, 3, -1, -1), grid, channel=channel).mean(1).flatten(1)
        assert torch.allclose(rows[:, channel], one, atol=1e-6)
    assert torch.allclose(rows.sum(-1), torch.ones(2, 6))
    uniform = torch.full((1, 1, 6, 6), 1 / 6)
    assert torch.allclose(channel_readout(uniform, values, grid), channel_readout(uniform, values, grid, channel=2))


def test_the_derived_reading_of_a_query_is_its_row_of_the_page(tiny_models: list[Model], samples: Batch) -> None:
    xcit, few = of_family(tiny_models, "xcit"), samples[:2]
    data = attention_queries([xcit], few).data
    maps = read(xcit, few.images, method="channels", how=How(query=(9, 30))).maps
    at = 2 * 8 + 7  # patches of 4 pixels
    row = data["rows"].values[0, :, at] / 255 * data["peak"].values[0, :, at, None] / 64
    assert np.allclose(row, maps.flatten(1), atol=1 / 255 * float(maps.max()))
    assert "derived" in str(data["own"].values[0])
    with pytest.raises(InputError, match="mean over heads"):
        read(xcit, few.images, method="channels", how=How(query=(0, 0), head=1))


def test_queries_hold_the_weights_to_one_part_in_255(tiny_models: list[Model], samples: Batch) -> None:
    few = samples[:3]
    data = attention_queries(tiny_models, few, Queries(chunk=2)).data
    m = [model.family for model in tiny_models].index("mobilevit")
    with torch.no_grad(), capture(tiny_models[m]) as recorder:
        tiny_models[m](few.images)
    layer = recorder.layers[-1]
    assert layer.geometry is not None and tuple(data["size"].values[m]) == layer.geometry.size
    exact, n = query_rows(layer.weights, layer.geometry), layer.geometry.positions
    read_back = data["rows"].values[m, :, :n, :n] / 255 * data["peak"].values[m, :, :n, None] / n
    assert np.allclose(read_back, exact, atol=float(exact.max()) / 500)
    resnet = [model.family for model in tiny_models].index("resnet")
    assert (
        str(data["own"].values[resnet]).startswith("not read: it has no attention module")
        and not data["rows"].values[resnet].any()
    )
    with pytest.raises(InputError, match="no model has a layer in which patches ask"):
        attention_queries([tiny_models[resnet]], few)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_page(name: str, samples: Batch) -> None:
    result = attention_queries([net(name)], samples[:1])
    assert result.data["peak"].values.min() > 0 and "</html>" in page(result)


def test_numbers_by_layer_are_those_of_the_kernels_whatever_the_chunk(tiny_models: list[Model], samples: Batch) -> None:
    few = masked(samples[:3])
    whole, parts = (attention_by_layer(tiny_models, few, ByLayer(chunk)) for chunk in (3, 2))
    assert whole.key == parts.key
    data = whole.data
    for name in ("distance", "entropy", "diversity", "focus"):
        assert np.allclose(data[f"values_{name}"], parts.data[f"values_{name}"], atol=1e-5, equal_nan=True)
    m = [model.family for model in tiny_models].index("mobilevit")
    with torch.no_grad(), capture(tiny_models[m]) as recorder:
        tiny_models[m](few.images)
    assert list(data["layer"].values[m]) == [layer.name for layer in recorder.layers]
    last = recorder.layers[-1]
    assert last.geometry is not None
    reach = distance(last.weights, last.geometry, (32, 32)).mean(1)
    assert np.allclose(data["values_distance"][m, -1], reach, atol=1e-5)
    assert np.isfinite(data["values_focus"][m, :, :2]).all() and np.isnan(data["values_focus"][m, :, 2]).all()
    assert np.allclose(data["focus_area"], [0.25, 0.25, 0])
    assert np.allclose(data["distance_uniform"][m, -1], distance(torch.full_like(last.weights, 0.25), last.geometry, (32, 32))[0])
    layers(whole)


@pytest.mark.parametrize("name", ["clip", "coat"])
def test_a_figure_without_distances_says_nothing_of_them(name: str) -> None:
    batch = Batch(tiny_images(name), torch.tensor([0, 1]), ids=("a", "b"))
    said = [text.get_text() for text in layers(attention_by_layer([between(name)], batch)).findobj(Text)]
    assert any("distance, dotted" in text for text in said) == (name == "coat")


def test_channel_and_class_attention_have_no_distance(tiny_models: list[Model], samples: Batch) -> None:
    data = attention_by_layer([of_family(tiny_models, "xcit")], samples[:2]).data
    assert list(data["kind"].values[0]) == ["channel", "channel", "class", "class"]
    assert np.isnan(data["distance"]).all() and np.isfinite(data["entropy"]).all() and "focus" not in data
    resnet = of_family(tiny_models, "resnet")
    with pytest.raises(InputError, match=f"no model has attention.*{resnet.card.id}: it has no attention module"):
        attention_by_layer([resnet], samples[:2])
    beside = attention_by_layer([of_family(tiny_models, "xcit"), resnet], samples[:2])
    assert [bool(reason) for reason in beside.data["unread"].values.tolist()] == [False, True]
    (said,) = (text.get_text() for text in layers(beside).findobj(Text) if "no attention layer" in text.get_text())
    assert "it has no attention module" in " ".join(said.split())


def test_attention_between_channels_alone_goes_through_every_analysis() -> None:
    """EdgeNeXt: auto reads channels; what needs weights of tokens is refused, and says what to take."""
    model, x = between("edgenext"), tiny_images("edgenext")
    batch = Batch(x, torch.tensor([0, 1]), ids=("a", "b"))
    asked = How(query=(5, 9))
    for how in (How(), asked, How(layer=next(iter(attention_layers(model))))):
        reading, own = read(model, x, how=how), read(model, x, method="channels", how=how)
        assert torch.equal(reading.maps, own.maps) and reading.maps.amax((1, 2)).min() > 0 and "derived" in reading.how
    data = interp.attention([model], batch, interp.Attend(("auto", "raw", "weighted"))).data
    assert np.isfinite(data["map"].values[0, 0]).all() and np.isnan(data["map"].values[0, 1:]).all()
    assert all("take channels" in str(words) for words in data["how"].values[0, 1:])
    moved = attention_shift([model], batch, Shift((8 / 255,), PGD(8 / 255, steps=2))).data
    assert np.isfinite(moved["map"]).all() and np.isfinite(moved["divergence"]).all()
    found = interp.faithfulness([model], batch, interp.Faithfulness(("raw",), steps=4, randomise=False)).data
    assert "take channels" in str(found["trusted"].values[0, 0])
    assert "derived" in str(attention_queries([model], batch).data["own"].values[0])
    drawn = attention_heads([model], batch)
    assert "head" not in drawn.data and np.allclose(drawn.data["channels"].sum("column").max(), 1, atol=1e-4)
    channels(drawn, 0)


def test_shift_is_zero_without_attack_and_grows_with_it(tiny_models: list[Model], samples: Batch) -> None:
    few = samples[:3]
    params = Shift((1 / 255, 64 / 255), PGD(1 / 255, steps=5))
    result, parts = (attention_shift(tiny_models, few, dataclasses.replace(params, chunk=chunk)) for chunk in (3, 2))
    data = result.data
    assert result.key == parts.key
    assert np.allclose(data["values_divergence"], parts.data["values_divergence"], atol=1e-5, equal_nan=True)
    for m, model in enumerate(tiny_models):
        moved = data["divergence"].values[m]
        if model.family == "resnet":
            assert np.isnan(moved).all()
            continue
        moved = moved[data["layer"].values[m] != ""]
        assert (moved[:, 0] == 0).all() and (moved[:, 2].mean() > moved[:, 1].mean() > 0)
    assert (np.diff(data["accuracy"], axis=1) <= 0).all()
    means = data["values_divergence"].where(data["kind"] != "channel").mean(("depth", "image"))
    assert np.allclose(data["moved"], means, atol=1e-6, equal_nan=True) and np.isnan(means).any()
    assert np.allclose(data["picture"][:, 0], data["original"]) and float(abs(data["picture"] - data["original"]).max()) <= 0.252
    assert np.allclose(data["map"].mean(("y", "x")), 1, atol=1e-3)
    shift(result)
    shift_maps(result, 1)


def test_maps_under_attack_explain_the_class_of_the_image_itself(tiny_models: list[Model], samples: Batch) -> None:
    model, few = of_family(tiny_models, "resnet"), samples[:4]
    data = attention_shift([model], few, Shift((0.3,), PGD(0.3, steps=5), "gradcam")).data
    own, after = (model.read(torch.tensor(data["picture"].values[0, e]).permute(0, 3, 1, 2)).argmax(1) for e in (0, 1))
    assert (own != after).any()
    x = torch.tensor(data["picture"].values[0, 1]).permute(0, 3, 1, 2).contiguous()
    maps = enlarge(read(model, x, own, method="gradcam").maps, (32, 32))
    expected = maps / maps.mean((1, 2), keepdim=True).clamp_min(1e-12)
    assert np.allclose(data["map"].values[0, 1], expected, atol=1e-3)


@pytest.mark.parametrize("eps", [(), (0.0, 0.1), (0.2, 0.1), (0.1, 0.1)])
def test_sizes_of_an_attack_grow_from_above_zero(eps: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="each larger"):
        Shift(eps)


def test_the_packages_are_called_like_their_analyses(tiny_models: list[Model], samples: Batch) -> None:
    called = interp.attention(tiny_models[:1], samples[:1], interp.Attend(("gradcam",)))
    assert called.kind == "attention" and list(called.data["reading"].values) == ["gradcam"]
    assert callable(interp.faithfulness) and interp.attention.__name__ == "interp.attention"


def test_a_called_package_has_the_signature_and_the_words_of_its_analysis() -> None:
    called: Any = interp.attention
    assert inspect.signature(called) == inspect.signature(called.__call__) == inspect.signature(attend)
    assert called.__doc__ == attend.__doc__
    for words in (called.__doc__, Attend.__doc__):
        assert all(f'"{name}"' in words for name in READERS)
    assert all(f'"{name}"' in Attend.__doc__ for name in HEADS) and "(y, x)" in Attend.__doc__
    code = "import sys, interp, interp.attention, interp.faithfulness\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_readings_are_chosen_by_name_and_come_with_what_is_read_in_the_image(tiny_models: list[Model], samples: Batch) -> None:
    few = samples[:3]
    data = interp.attention(tiny_models, few, interp.Attend(("raw", "gradcam"), chunk=2)).data
    for k, name in enumerate(("raw", "gradcam")):
        assert data["map"].sel(reading=name).identical(data["map"].isel(reading=k))
    assert data["prediction"].dims == ("model", "image")
    assert data["prediction"].values.tolist() == [m.read(few.images).argmax(1).tolist() for m in tiny_models]
    chosen = data["prediction"].sel(model=tiny_models[0].card.id)
    explained = read(tiny_models[0], few.images, torch.tensor(chosen.values), method="gradcam").on_image((32, 32))
    own = data["map"].sel(model=tiny_models[0].card.id, reading="gradcam")
    assert np.allclose(own, explained / explained.mean((1, 2), keepdim=True), atol=1e-4)


def test_everything_in_these_results_says_what_it_is(tiny_models: list[Model], samples: Batch) -> None:
    few, xcit = masked(samples[:2]), of_family(tiny_models, "xcit")
    results = [
        interp.attention(tiny_models, few),
        attention_heads([xcit], few),
        attention_by_layer(tiny_models, few),
        attention_queries(tiny_models, few),
    ]
    assert [undescribed(result.data) for result in results] == [[], [], [], []]
    assert results[0].data["map"].attrs["units"] == "× mean"  # by which xarray labels its plots
    assert "÷ the largest of its query's row × 255" in results[3].data["rows"].attrs["long_name"]


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "no chunk": (lambda: Attend(chunk=0), "chunk is 0; expected at least 1 image per pass"),
    "no chunk of heads": (lambda: Heads(chunk=0), "chunk is 0"),
    "no chunk of layers": (lambda: ByLayer(chunk=0), "chunk is 0"),
    "no chunk of queries": (lambda: Queries(chunk=True), "chunk is True"),
    "one number": (lambda: Attend(query=3), r"query is 3; expected a pixel \(y, x\)"),  # type: ignore[arg-type]
    "half a pixel": (lambda: Attend(query=(3.5, 2)), r"query is \(3\.5, 2\)"),  # type: ignore[arg-type]
    "three numbers": (lambda: Heads(query=(1, 2, 3)), r"query is \(1, 2, 3\)"),  # type: ignore[arg-type]
    "residual": (lambda: Attend(residual=3.0), r"residual is 3\.0; expected a share from 0 to 1"),
    "head": (lambda: Attend(head=True), "head is True; expected mean, max, min, or the number of a head"),
    "head's name": (lambda: Attend(head="median"), "head is 'median'"),
    "method": (lambda: Attend("rw"), "methods are rw; expected one or more of auto, raw"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters_are_refused_where_they_are_given(name: str) -> None:
    make, says = WRONG[name]
    with pytest.raises(InputError, match=says):
        make()


def test_numbers_of_numpy_are_those_of_python() -> None:
    pixel, head = np.unravel_index(40, (32, 32)), np.int64(0)
    given = Attend(head=head, query=tuple(pixel))  # type: ignore[arg-type]
    assert given == Attend(head=0, query=(1, 8)) and [type(v) for v in (given.head, *(given.query or ()))] == [int] * 3


def test_classes_are_named_only_where_all_models_have_these_names(tiny_models: list[Model], samples: Batch) -> None:
    def named(**other: object) -> object:
        card = dataclasses.replace(tiny_models[1].card, **other)  # type: ignore[arg-type]
        return model_coords([tiny_models[0], Model(tiny_models[1].net, card)]).get("class")

    own = list(tiny_models[0].card.labels)
    assert len(own) == 10 and named() == named(labels=()) == own
    assert named(labels=tuple(reversed(own))) is None and named(labels=(), num_classes=12) is None


def test_one_name_may_be_given_alone(tiny_models: list[Model]) -> None:
    assert Attend("raw").methods == ("raw",) and Attend("raw") == Attend(("raw",))  # type: ignore[arg-type]
    assert Heads("blocks.0.attn").layers == ("blocks.0.attn",)  # type: ignore[arg-type]


@pytest.mark.parametrize("analysis", [attend, attention_heads, attention_by_layer, attention_queries])
def test_models_are_a_list_of_one_or_more(analysis: Callable[..., object], tiny_models: list[Model], samples: Batch) -> None:
    with pytest.raises(InputError, match="no models were given"):
        analysis([], samples)
    with pytest.raises(InputError, match=rf"models is the model {tiny_models[0].card.id} itself; expected a list"):
        analysis(tiny_models[0], samples)


def test_the_bar_counts_every_map_of_every_model(
    tiny_models: list[Model], samples: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    class Bar(tqdm):
        def update(self, n: float = 1) -> bool | None:
            done = super().update(n)
            seen.append((self.n, self.total))
            return done

    monkeypatch.setattr("interp.attention.attend.tqdm", Bar)
    models = [of_family(tiny_models, family) for family in ("resnet", "xcit")]
    interp.attention(models, samples[:3], interp.Attend(("raw", "gradcam"), chunk=2))
    counts = [count for count, _ in seen]
    assert {total for _, total in seen} == {12} and counts == sorted(counts)
    assert {3, 5, 6, 8, 9, 11, 12} == set(counts)  # raw of the ResNet is not read; the others are in pieces of 2 and 1


def test_one_command_writes_maps_heads_numbers_page_and_attack(
    run: Callable[..., tuple[int, str, str]], checkpoints: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, said, error = run("attention", "-n", 2, "--under-attack", "8/255", "--steps", 2, "--out-dir", out)
    assert code == 0, error
    for name in (
        "attention.png",
        "heads_tiny_linf_0.png",
        "channels_tiny_standard_0.png",
        "attention_layers.png",
        "attention.html",
        "attention_shift.png",
        "attention_shift_1.png",
    ):
        assert (out / name).is_file() and name in said.replace("\n", "")
    kinds = {path.name.rpartition("-")[0] for path in (out / "results").iterdir()}
    assert kinds == {"attention", "attention_heads", "attention_layers", "attention_queries", "attention_shift"}
    (found,) = (out / "results").glob("attention_shift-*.nc")
    assert np.allclose(open_result(found).data["eps"], np.array([0, 2, 4, 8]) / 255)
