"""Figures, films and pages of large perturbations: what is in them, that nothing overlaps, and that files are whole or absent."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import interp
from interp.plots import animate, perturbations
from interp.plots.slider import slider
from interp.types import Batch

PGD = interp.PGD(8 / 255, steps=4)
Make = Callable[..., interp.Model]
LONG = ["black-and-tan coonhound, hound", "Chesapeake Bay retriever", *(f"a class with a long name, {i}" for i in range(8))]


@pytest.fixture(scope="module")
def result(tiny_models: list[interp.Model], samples: Batch) -> interp.Result:
    """A sweep toward one class, with pictures kept along the way."""
    return interp.sweep(tiny_models, samples[:2], interp.Sweep((8 / 255, 1.0), PGD, frames=3))


@pytest.fixture(scope="module")
def each(tiny_models: list[interp.Model], samples: Batch) -> interp.Result:
    """A sweep toward every class."""
    return interp.sweep(tiny_models, samples[:3], interp.Sweep((8 / 255, 1.0), dataclasses.replace(PGD, steps=2), target="each"))


@pytest.fixture(scope="module")
def drawn(tiny_models: list[interp.Model], samples: Batch) -> interp.Result:
    attack = interp.PGD(15.0, steps=2, targeted=True)
    return interp.synthesise(tiny_models, samples, interp.Synthesis(attack, start="images", targets=(3, 8)))


@pytest.fixture(scope="module")
def inverted(tiny_models: list[interp.Model], samples: Batch) -> interp.Result:
    attack = interp.PGD(100.0, "l2", steps=2, targeted=True, random_start=False, loss="features")
    return interp.invert(tiny_models, samples[:2], interp.Invert(attack=attack))


def named(result: interp.Result, names: list[str]) -> interp.Result:
    return dataclasses.replace(result, data=result.data.assign_coords({"class": names}))


def pictures(fig: Figure) -> list[np.ndarray]:
    return [np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images]


def assert_apart(fig: Figure) -> None:
    """No two texts overlap, none lies on a picture."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    renderer = canvas.get_renderer()
    ticks = {t for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for t in axis.get_ticklabels(which="both")}
    texts = [t for t in fig.findobj(Text) if t.get_text() and t.get_visible() and t not in ticks]
    texts += [
        t for ax in fig.axes if not ax.images for t in (*ax.get_xticklabels(), *ax.get_yticklabels()) if _drawn(t, ax, renderer)
    ]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    assert len(boxes) > 3
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-0.5).overlaps(b.padded(-0.5)), f"{one!r} and {other!r} overlap"
    for text, box in boxes:
        assert not any(ax.images and ax.get_window_extent(renderer).padded(-1).overlaps(box) for ax in fig.axes), text


def _drawn(tick: Text, ax: Axes, renderer: RendererAgg) -> bool:
    """Whether a tick's label stands beside its axis and not beyond the ends, where none is drawn."""
    if not tick.get_text() or not tick.get_visible():
        return False
    box, panel = tick.get_window_extent(renderer), ax.get_window_extent(renderer).padded(2)
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return bool(panel.x0 <= x <= panel.x1 or panel.y0 <= y <= panel.y1)


def test_strip_has_every_picture_of_one_image_standard_and_robust_alike(result: interp.Result) -> None:
    shown = pictures(perturbations.strip(result, image=1))
    data = result.data.isel(image=1)
    assert len(shown) == 3 * (1 + 2 * 2)
    assert (shown[0] == data["original"].values).all()
    assert (shown[1] == data["picture"].values[perturbations.rows(data)[0], 0, 0]).all()
    assert (shown[-1] == data["picture"].values[perturbations.rows(data)[-1], 1, 1]).all()


def test_under_each_picture_stand_the_reading_and_the_judges(result: interp.Result) -> None:
    fig = perturbations.strip(result)
    data = result.data
    m = perturbations.rows(data)[0]
    name = str(data["class"].values[data["predicted"].values[m, 0, 0, 0]])
    own, others = data["confidence"].values[m, 0, 0, 0], data["others"].values[m, 0, 0, 0]
    assert fig.axes[1].get_xlabel() == f"{name} {own:.0%}\njudges {others:.0%}"
    assert [t.get_text() for t in fig.texts] == ["L∞, 4 steps", "away from cat", "toward deer"]


MANY = interp.PGD(
    0.5, "l2", 3, 0.125, random_start=False, loss="margin", rule="momentum", basis="fourier", jitter=1, blur=0.5
)  # fmt: skip


def test_every_choice_of_the_attack_is_told_and_still_nothing_overlaps(
    tiny_models: list[interp.Model], samples: Batch, tmp_path: Path
) -> None:
    params = interp.Sweep((0.5,), MANY, target="each", frames=2, precision="fast")
    found = interp.sweep(tiny_models[:2], samples[:1], params)
    told = "L2, 3 steps of 0.125, momentum rule, margin loss, from the image, fourier basis, jitter 1, blur 0.5, fast search"
    assert perturbations.how(found) == told
    draw = perturbations
    for fig in (draw.strip(found), draw.deltas(found), draw.classes(found), draw.curves(found), draw.success(found)):
        assert any(told in t.get_text() for t in fig.texts)
        assert_apart(fig)
    fig, frames = animate._drawing(found, 0, 0)
    next(frames)
    assert told in " ".join(t.get_text().replace("\n", " ") for t in fig.texts)
    assert_apart(fig)
    apgd = dataclasses.replace(found, params={"attack": found.params["attack"] | {"rule": "apgd", "step_size": None}})
    assert perturbations.how(apgd).startswith("L2, 3 steps, APGD, margin loss")


def test_goals_that_differ_from_model_to_model_are_named(result: interp.Result) -> None:
    goal = result.data["goal"].copy()
    goal[:, 1, 0] = [0, 8, 9]
    fig = perturbations.strip(dataclasses.replace(result, data=result.data.assign(goal=goal)))
    first = perturbations.rows(result.data)[0]
    assert fig.axes[3].get_xlabel().endswith(f" {('airplane', 'ship', 'truck')[first]}")
    assert fig.texts[-1].get_text() == "toward the target"
    assert_apart(fig)


def test_a_model_without_judges_has_no_line_on_them(tiny_models: list[interp.Model], samples: Batch) -> None:
    alone = interp.sweep(tiny_models[:1], samples[:1], interp.Sweep((8 / 255,), PGD))
    fig = perturbations.strip(alone)
    assert not any("judges" in ax.get_xlabel() or "nan" in ax.get_xlabel() for ax in fig.axes)
    assert_apart(fig)


@pytest.mark.parametrize("names", [None, LONG], ids=["names", "long names"])
def test_texts_do_not_overlap(
    names: list[str] | None, result: interp.Result, each: interp.Result, drawn: interp.Result, inverted: interp.Result
) -> None:
    r, e, s, v = (named(x, names) if names else x for x in (result, each, drawn, inverted))
    if names:
        e = dataclasses.replace(e, data=e.data.assign_coords(direction=["away", *(f"toward {n}" for n in names)]))
    figures = {
        "strip": perturbations.strip(r),
        "strip of each": perturbations.strip(e),
        "deltas": perturbations.deltas(r, direction=1),
        "one ε": perturbations.deltas(dataclasses.replace(r, data=r.data.isel(eps=[1]))),
        "classes": perturbations.classes(e),
        "curves": perturbations.curves(r),
        "success": perturbations.success(r),
        "success of each": perturbations.success(e),
        "synthesis": perturbations.synthesis(s),
        "inversion": perturbations.inversion(v),
    }
    for fig in figures.values():
        assert_apart(fig)


@pytest.mark.parametrize(("twins", "said"), [(2, "other model"), (3, "other models")])
def test_twins_of_one_architecture_are_not_called_judges(
    twins: int, said: str, tiny: Make, samples: Batch, tmp_path: Path
) -> None:
    models = [tiny("xcit", seed=k, id=f"xcit_{k}") for k in range(twins)]
    found = interp.sweep(models, samples[:1], interp.Sweep((0.1,), dataclasses.replace(PGD, steps=1), target="each"))
    drawn = interp.synthesise(models, samples, interp.Synthesis(interp.PGD(15.0, steps=2, targeted=True), targets=(3,)))
    for fig in (perturbations.strip(found), perturbations.classes(found), perturbations.synthesis(drawn)):
        assert_apart(fig)
        shown = " ".join(t.get_text() for t in fig.findobj(Text))
        assert said.split()[0] in shown and "judge" not in shown
    assert f"other: the {said}, of the same architecture" in shown
    page = words(slider(found, tmp_path / "page.html"))
    assert f"confidence in the goal of the {said}, of the same architecture" in page and "judge" not in page


def words(page: Path) -> str:
    """What a slider's page draws, without the library that draws it and without the breaks of its lines."""
    text = page.read_text(encoding="utf-8")
    return text[text.rindex("Plotly.newPlot") :].replace("\\u003cbr\\u003e", " ")


def test_judges_are_said_to_be_of_other_architectures(result: interp.Result, drawn: interp.Result, tmp_path: Path) -> None:
    assert any("judges: models of other architectures" in t.get_text() for t in perturbations.synthesis(drawn).texts)
    assert "of judges, models of other architectures" in words(slider(result, tmp_path / "page.html"))


@pytest.mark.parametrize(
    ("given", "leaps"),
    [
        ({"steps": 45}, True),
        ({"steps": 46}, False),
        ({"steps": 5, "step_size": 0.1}, False),
        ({"steps": 5, "rule": "apgd"}, False),
        ({"steps": 5, "norm": "l2"}, False),
    ],
)
def test_steps_that_leap_across_the_box_are_warned_of(given: dict[str, Any], leaps: bool, drawn: interp.Result) -> None:
    params = {"attack": {"eps": 15.0, "norm": "linf", "step_size": None, "rule": "pgd", "loss": "ce"} | given}
    said = perturbations.leaps(dataclasses.replace(drawn, params=params))
    assert said.startswith("steps of 0.5 leap" if leaps else "") and bool(said) == leaps


def test_a_figure_that_shows_some_images_says_so(inverted: interp.Result) -> None:
    fig = perturbations.inversion(inverted, most=1)
    assert any("the first 1 of 2 images" in t.get_text() for t in fig.texts)
    assert not any("the first" in t.get_text() for t in perturbations.inversion(inverted).texts)
    assert_apart(fig)


@pytest.mark.parametrize("ends", [(0.1, 12.0), (2.0, 30.0), (-3.0, 15.0), (0.0, 5e4), (11.0, 19.0)])
def test_a_loss_axis_has_at_least_three_ticks_and_few(ends: tuple[float, float]) -> None:
    found = perturbations.ticks(*ends)
    assert len(found) >= (3 if ends != (11.0, 19.0) else 0) and len(found) <= 8
    assert all(ends[0] <= v <= ends[1] for v in found) and found == sorted(found)


def test_success_toward_each_class_is_of_the_goals_that_count(each: interp.Result) -> None:
    data = each.data
    v, low, high = perturbations.shares(data, toward=True)
    for m in range(data.sizes["model"]):
        counted = data["counted"].values[m, 1:]
        means = [data["reached"].values[m, 1:, 1, i][counted[:, i]].mean() for i in range(data.sizes["image"])]
        assert v[m, 1] == pytest.approx(np.mean(means)) and low[m, 1] <= v[m, 1] <= high[m, 1]
    none = data.assign(counted=data["counted"] & (data["image"] != data["image"][0]))
    assert np.isfinite(perturbations.shares(none, toward=True)[0]).all()
    assert np.isnan(perturbations.shares(data.assign(counted=~data["counted"] & False), toward=True)[0]).all()


def test_overlap_is_seen() -> None:
    fig = Figure()
    for x in (0.1, 0.3, 0.5, 0.502):
        fig.text(x, 0.5, "words")
    with pytest.raises(AssertionError, match="overlap"):
        assert_apart(fig)


def test_no_change_is_grey_and_both_signs_make_white() -> None:
    assert (perturbations.delta_picture(np.zeros((4, 4, 3)), 0.1) == 128).all()
    delta = np.random.default_rng(0).uniform(-0.1, 0.1, (8, 8, 3))
    exact = (delta + 0.1) / 0.2 * 255
    shown = perturbations.delta_picture(delta, 0.1)
    assert (np.abs(shown - exact) <= 0.5).all()
    assert (np.abs((255 - shown) - (0.1 - delta) / 0.2 * 255) <= 0.5).all()
    assert perturbations.delta_picture(np.array([-0.1, 0.1]), 0.1).tolist() == [0, 255]


def test_deltas_show_both_signs_at_each_eps(result: interp.Result) -> None:
    shown = pictures(perturbations.deltas(result, direction=1))
    assert len(shown) == 3 * (1 + 2 * 2)
    data, (first, *_) = result.data, perturbations.rows(result.data)
    delta = data["picture"].values[first, 1, 0, 0] - data["original"].values[0]
    assert np.abs(shown[1] - (delta * 255 / 8 + 1) / 2 * 255).max() <= 0.5 + 1e-3
    for line in range(3):
        plus, minus = shown[5 * line + 1 : 5 * line + 3], shown[5 * line + 3 : 5 * line + 5]
        assert all((p.astype(int) + m == 255).all() for p, m in zip(plus, minus, strict=True))
    heads = [t.get_text() for t in perturbations.deltas(result).texts]
    assert heads[1:3] == ["δ = x′ − x\naway from cat", "−δ = x − x′\naway from cat"]


def test_a_ball_of_no_size_gives_grey_panels(tiny_models: list[interp.Model], samples: Batch) -> None:
    none = interp.sweep(tiny_models[:1], samples[:1], interp.Sweep((0.0,), dataclasses.replace(PGD, steps=1)))
    original, plus, minus = pictures(perturbations.deltas(none))
    assert (original == none.data["original"].values[0]).all() and (plus == 128).all() and (minus == 127).all()


@pytest.mark.parametrize(("norm", "eps", "scale"), [("linf", 0.1, 0.1), ("linf", 4.0, 1.0), ("l2", 9.0, 0.5), ("l1", 9.0, 0.5)])
def test_the_scale_of_a_column_is_shared_by_all_models(norm: str, eps: float, scale: float) -> None:
    delta = np.zeros((2, 3, 3, 3))
    delta[1, 0, 0, 0], delta[0, 0, 0, 0] = -0.5, 0.2
    assert perturbations.delta_scale(delta, norm, eps) == scale


def test_in_l2_a_large_ball_is_not_called_unbounded(tiny_models: list[interp.Model], samples: Batch) -> None:
    params = interp.Sweep((2.0,), dataclasses.replace(PGD, norm="l2", steps=1))
    fig = perturbations.deltas(interp.sweep(tiny_models[:2], samples[:1], params))
    assert fig.axes[1].get_title().startswith("ε = 2\nscale ±0.")
    assert any("largest |δ|" in t.get_text() for t in fig.texts)


def test_the_grid_of_classes_has_one_column_per_class(each: interp.Result, result: interp.Result) -> None:
    fig = perturbations.classes(each, image=1, eps=0)
    assert len(pictures(fig)) == 3 * 11
    first = perturbations.rows(each.data)[0]
    assert (pictures(fig)[4] == each.data["picture"].values[first, 4, 0, 1]).all()
    assert [ax.get_title() for ax in fig.axes[1:11]] == each.data["class"].values.tolist()
    said = f"of the row {each.data['others'].values[first, 1:, 0, 1].mean():.0%}"
    assert fig.axes[0].get_xlabel().endswith(said)
    with pytest.raises(interp.InputError, match="target 'each'"):
        perturbations.classes(result)


def test_strip_of_a_sweep_toward_each_class_shows_the_next_one(each: interp.Result) -> None:
    for i, label in enumerate(each.data["truth"].values):
        d = perturbations.chosen(each.data, i)
        assert (each.data["goal"].values[:, d, i] == (label + 1) % 10).all()


def test_toward_each_class_an_image_counts_by_its_mean_over_the_others(each: interp.Result) -> None:
    data = each.data
    mean = perturbations.per_image(data, "probability", toward=True)
    others = [d for d in range(1, 11) if d - 1 != data["truth"].values[2]]
    assert np.allclose(mean[1, 0, 2], data["probability"].values[1, others, 0, 2].mean(0))
    assert np.allclose(perturbations.per_image(data, "loss", toward=False), data["loss"].values[:, 0])


def test_a_band_is_around_the_mean_and_none_for_one_image() -> None:
    values = np.random.default_rng(1).normal(size=(200, 3))
    low, high = perturbations.band(values)
    assert (low < values.mean(0)).all() and (values.mean(0) < high).all()
    assert np.allclose(high - low, 2 * 1.96 / 200**0.5, rtol=0.25)  # of a normal mean
    one, same = perturbations.band(values[:1])
    assert np.allclose(one, values[0]) and np.allclose(same, values[0])


def test_curves_draw_every_model_in_every_panel(result: interp.Result) -> None:
    fig = perturbations.curves(result)
    assert len(fig.axes) == 4 * 2
    for ax in fig.axes:
        assert len(ax.lines) == len(ax.collections) == 3
    m = perturbations.rows(result.data)[1]
    drawn = fig.axes[7].lines[1].get_ydata()  # toward, probability, the last ε
    assert np.allclose(drawn, result.data["probability"].values[m, 1, 1].mean(0))


def test_success_is_drawn_with_its_wilson_intervals(result: interp.Result) -> None:
    away, toward = perturbations.success(result).axes
    for ax, d in ((away, 0), (toward, 1)):
        for m, (line, _, (bars,)) in zip(perturbations.rows(result.data), ax.containers, strict=True):
            assert np.allclose(line.get_ydata(), result.data["success"].values[m, d])
            ends = [segment[:, 1] for segment in bars.get_segments()]
            assert np.allclose(np.array(ends).T, [result.data[f"success_{end}"].values[m, d] for end in ("low", "high")])


def test_robust_is_solid_and_standard_dashed(result: interp.Result) -> None:
    data = result.data.assign_coords(robust=("model", [True, False, True]))
    fig = perturbations.curves(dataclasses.replace(result, data=data))
    lines = {line.get_label(): line.get_linestyle() for line in fig.axes[0].lines}
    assert [lines[name] for name in perturbations.labels(data)] == ["-", "--", "-"]


def test_synthesis_and_inversion_show_their_starts(drawn: interp.Result, inverted: interp.Result) -> None:
    shown = pictures(perturbations.synthesis(drawn))
    assert len(shown) == (1 + 3) * 2 and (shown[1] == drawn.data["start"].values[0, 1]).all()
    shown = pictures(perturbations.inversion(inverted))
    assert len(shown) == 2 * (2 + 3) and (shown[5 + 1] == inverted.data["start"].values[1]).all()


@pytest.mark.parametrize("side", [20, 224])
def test_other_sizes_of_pictures_keep_the_layout(side: int, result: interp.Result) -> None:
    at = np.arange(side) * 32 // side
    large = dataclasses.replace(result, data=result.data.drop_vars("film").isel(y=at, x=at))
    assert_apart(perturbations.strip(large))
    assert pictures(perturbations.strip(large))[0].shape == (side, side, 3)


def test_a_gif_has_a_frame_for_each_picture_kept_and_rests_on_the_last(result: interp.Result, tmp_path: Path) -> None:
    path = animate.animation(result, tmp_path / "new" / "film.gif", image=1, fps=5)
    with Image.open(path) as film:
        assert film.n_frames == 3 and film.size[0] > 3 * 96
        rests, last = [], np.zeros(0)
        for f in range(3):
            film.seek(f)
            rests.append(film.info["duration"])
            last = np.asarray(film.convert("RGB")).astype(int)
    assert rests == [200, 200, 2000]
    final = (result.data["film"].values[perturbations.rows(result.data)[0], 0, 1, 1, -1]).astype(int)
    enlarged = final.repeat(3, 0).repeat(3, 1)
    near = [np.abs(last[y : y + 96, x : x + 96] - enlarged).mean() for y in range(40, 110) for x in range(90, 120)]
    assert min(near) < 12  # 256 colours and all, the first panel shows where the run ended
    assert [p.name for p in path.parent.iterdir()] == ["film.gif"]


def test_a_film_is_an_mp4_also_where_only_the_package_has_ffmpeg(
    result: interp.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    path = animate.animation(result, tmp_path / "film.mp4")
    assert path.read_bytes()[4:8] == b"ftyp"
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


def test_without_ffmpeg_the_message_says_what_to_do_and_nothing_is_left(
    result: interp.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(interp.InputError, match=r"no ffmpeg .*robust-interp\[video\].* or write a \.gif"):
        animate.animation(result, tmp_path / "film.mp4")
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_animated_is_refused(result: interp.Result, each: interp.Result, tmp_path: Path) -> None:
    with pytest.raises(interp.InputError, match=r"film\.avi ends in '\.avi'; expected \.gif or \.mp4"):
        animate.animation(result, tmp_path / "film.avi")
    with pytest.raises(interp.InputError, match=r"Sweep\(frames=25\)"):
        animate.animation(each, tmp_path / "film.gif")
    with pytest.raises(interp.InputError, match=r"Sweep\(frames=25\)"):
        slider(each, tmp_path / "page.html", over="step")
    with pytest.raises(interp.InputError, match="over 'time'; expected eps or step"):
        slider(result, tmp_path / "page.html", over="time")
    assert not any(tmp_path.iterdir())


def test_an_error_on_the_way_leaves_the_file_that_was_there(result: interp.Result, tmp_path: Path) -> None:
    path = animate.animation(result, tmp_path / "film.gif")
    before = path.read_bytes()
    torn = dataclasses.replace(result, data=result.data.isel(step=slice(0, 3)))  # no loss for the last frame
    with pytest.raises(IndexError):
        animate.animation(torn, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["film.gif"]


@pytest.mark.parametrize(("over", "positions"), [("eps", ["ε = 8/255", "ε = 1"]), ("step", ["0", "2", "4"])])
def test_a_slider_is_one_file_with_every_position(over: str, positions: list[str], result: interp.Result, tmp_path: Path) -> None:
    html = slider(result, tmp_path / "page.html", over=over).read_text(encoding="utf-8")
    body = re.sub(r"<script[^>]*>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r'(src|href)="https?://', body) and "<script src" not in html
    page = html[html.rindex("Plotly.newPlot") :]
    assert [json.loads(label) for label in re.findall(r'"label":("[^"]*")', page)] == positions
    assert page.count("data:image\\u002fpng") == (1 + len(positions)) * 2 * 3
    assert ("judges" in page) if over == "eps" else ("loss" in page)
    subtitle = json.loads(re.search(r'"subtitle":\{"text":("[^"]*")', page)[1])  # type: ignore[index]
    wide = max(map(int, re.findall(r'"width":(\d+)', page)))
    assert subtitle.startswith("Below: ") and all(
        6 * len(line) < wide - 50 for line in subtitle.split("<br>")
    )  # 6 pixels a letter
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
