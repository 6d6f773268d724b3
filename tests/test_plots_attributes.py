"""Figures, page and printed table of a comparison, from tables whose values are known."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

import interp
from interp.attributes import table
from interp.attributes.compare import GROUPS
from interp.attributes.concepts import PER_CLASS
from interp.attributes.table import Column, tabulate
from interp.cli import options
from interp.plots import attributes, concepts, evidence, interactive, matrices
from interp.report import measures as page
from interp.report import words
from interp.result import Measure

MODELS = ("a_linf", "a_standard", "b_linf", "b_standard")
LABELS = ("A robust", "A standard", "B robust", "B standard")
N = 60


def row(name: str, better: str = "higher", title: str = "") -> Measure:
    return Measure(name, title or f"the {name}", f"f({name})", f"source of {name}", "share", better)


def column(measure: Measure, means: tuple[float, ...], control: float | None = 0.2, n: int = N) -> Column:
    noise = np.random.default_rng(0).normal(0, 0.02, (len(means) + 1, n))
    noise -= noise.mean(1, keepdims=True)
    against = None if control is None else np.repeat(control + noise[-1:], len(means), 0)
    return Column(
        measure,
        np.array(means)[:, None] + noise[:-1],
        against,
        "noise" if control is not None else "",
        "image" if n == N else "place",
    )


COLUMNS = {
    "perturbation": [column(row("read"), (0.9, 0.2, 0.6, 0.4)), column(row("few"), (0.9, 0.2, 0.6, 0.4), n=10)],
    "appearance": [
        column(row("rough", "lower"), (0.05, 0.1, 0.15, 0.9)),
        column(row("plain", "none"), (0.9, 0.2, 0.6, 0.4)),
        column(row("flat"), (0.2, 0.2, 0.2, 0.2)),
    ],
}


def extras(rng: np.random.Generator) -> dict[str, object]:
    """Every variable that a figure beside the table draws."""
    four = len(MODELS)
    change = np.stack([np.full((3, 3), v) for v in (0.8, 0.0, 0.8, 0.8)])  # (model, attribute, fate): only model 1 is not clear
    change[:, 2] = np.nan
    spans = {"": 0.0, "_low": -0.1, "_high": 0.1}
    found: dict[str, object] = {}
    for end, by in spans.items():
        found[f"attribute_change{end}"] = (("model", "attribute", "fate"), change + by)
        found[f"classified{end}"] = ("model", np.linspace(0.2, 0.8, four) + by)
        found[f"classified_controls{end}"] = (("model", "check"), np.full((four, 4), 0.1) + by)
        found[f"sweep_read{end}"] = (("model", "eps"), np.full((four, 3), 0.5) + by, {"n": 20})
        found[f"accuracy_by_band{end}"] = (("model", "band", "cutoff"), np.full((four, 2, 3), 0.5) + by)
        found[f"attribute_read{end}"] = (("judge", "attribute"), READ + by)
    more = np.zeros((four, 3, 3), bool)
    more[2, :2, 0] = True
    found["attribute_more"] = (("model", "attribute", "fate"), more)
    for name in ("classified_by", "transferred_to"):
        found[name] = (("model", "judge"), rng.random((four, four)), {"n": N})
    pictures = {name: (("model", "example", "y", "x", "channel"), rng.random((four, 2, 8, 8, 3))) for name in PICTURES}
    return found | pictures | {
        "attribute_kept": (("judge", "attribute"), READ > 0.6),
        "example_x": (("example", "y", "x", "channel"), rng.random((2, 8, 8, 3))),
        "synthesis": (("model", "target", "y", "x", "channel"), rng.random((four, 3, 8, 8, 3))),
        "concept_crop": (("model", "part", "top", "crop_y", "crop_x", "channel"), rng.random((four, 2, 3, 4, 4, 3))),
        "concept_score": (("model", "concept", "tested_class"), np.where(rng.random((four, 4, 3)) < 0.3, np.nan, 0.7)),
        "concept_middle_score": (("model", "concept", "tested_class"), np.full((four, 4, 3), 0.5)),
        "tested_n": ("tested_class", np.array([20, 20, 20])),
        "concepts_needed": ("model", np.array([12.0, 15, np.nan, 20])),
        "concepts_needed_low": ("model", np.array([11.0, 14, np.nan, 18])),
        "concepts_needed_high": ("model", np.array([14.0, 15, np.nan, 26])),
        "why_concepts_needed": ("model", ["", "", "more than 32 are needed", ""]),
        "concepts_needed_shuffled": ("model", np.array([30.0, 40, 50, 60])),
        "concepts_needed_shuffled_low": ("model", np.array([29.0, 39, 49, 59])),
        "concepts_needed_shuffled_high": ("model", np.array([31.0, 41, 51, 61])),
        "cka": (("model", "other"), np.eye(four)),
        "best_match": (("model", "other"), np.eye(four)),
        "spectrum": (("model", "frequency"), rng.random((four, 5))),
        "spectrum_noise": ("frequency", rng.random(5)),
        "shape_cutoff": ("model", np.array([0.05, 0.1, np.nan, 0.2])),
        "goal": ("image", np.ones(N, np.int64)),
        "truth": ("image", np.zeros(N, np.int64)),
    }  # fmt: skip


READ = np.array([[0.9, 0.5, np.nan], [0.8, 0.7, np.nan], [0.55, 0.95, np.nan], [1.0, 0.75, np.nan]])  # (judge, attribute)
PICTURES = ("example_delta", "example_gradient", "example_added")
COORDS = {
    "model": list(MODELS),
    "label": ("model", list(LABELS)),
    "robust": ("model", [True, False, True, False]),
    "group": ("model", ["a", "a", "b", "b"]),
    "class": ["cat", "dog", "owl"],
    "check": ["noise", "sign flipped", "another target", "blurred image"],
    "eps": [8 / 255, 32 / 255, 1.0],
    "band": ["low-pass", "high-pass"],
    "cutoff": [0.1, 0.2, 0.4],
    "attribute": ["wings", "wheels", "fur"],
    "fate": ["appear", "vanish", "stay"],
    "concept": ["red", "blue", "dots", "stripes"],
    "tested_class": ["cat", "dog", "owl"],
    "frequency": np.linspace(0.05, 0.45, 5),
}


def make(columns: dict[str, list[Column]]) -> interp.Result:
    data = tabulate([c for of in columns.values() for c in of], MODELS, [(1, 0), (3, 2)])
    for group, of in columns.items():
        for c in of:
            data[c.measure.name].attrs["group"] = group
    data = data.assign_coords({k: COORDS[k] for k in ("model", "label", "robust", "group", "class")})
    data.attrs |= {"chance": 0.1, "skipped": "where: there are no masks; expected some"}
    attack = {"eps": 32 / 255, "norm": "linf", "steps": 10}
    return interp.Result(
        "compare", "Semantic attributes", data, {"attack": attack}, {}, {"versions": {"numpy": "1"}, "seconds": 1}
    )


@pytest.fixture(scope="module")
def bare() -> interp.Result:
    return make(COLUMNS)


@pytest.fixture(scope="module")
def full(bare: interp.Result) -> interp.Result:
    return dataclasses.replace(bare, data=bare.data.assign_coords(COORDS).assign(extras(np.random.default_rng(1))))


def texts(fig: Figure) -> list[str]:
    return [t.get_text() for ax in fig.axes for t in ax.texts]


def in_row(fig: Figure, title: str) -> dict[float, str]:
    """The texts beside the name of a measure by their abscissa, in inches: the models, the control, the verdict."""
    (ax,) = fig.axes
    (at,) = [t.get_position()[1] for t in ax.texts if t.get_text().startswith(title)]
    beside = [t for t in ax.texts if -0.01 < t.get_position()[1] - at < matrices.ROW / 2 and t.get_position()[0] > 1]
    return {t.get_position()[0]: t.get_text() for t in beside if not t.get_text().startswith("[")}


def shades(ax: Axes, y: float) -> dict[int, float]:
    """Shade of each model's cell in the row at y, to the 256th."""
    table = colormaps[matrices.NEUTRAL](np.arange(256))
    found = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_y() < y < p.get_y() + p.get_height()]
    place = {round((p.get_x() - 0.01 - matrices.NAMES) / matrices.CELL): p.get_facecolor() for p in found}
    return {k: float(np.abs(table - np.array(colour)).sum(1).argmin()) / 255 for k, colour in place.items()}


def test_a_value_that_is_as_its_control_is_not_printed_and_the_best_has_a_star(bare: interp.Result) -> None:
    fig = matrices.measures(bare)
    line = list(in_row(fig, "the read").values())
    assert line == ["as control", "0.900 ★", "0.400", "0.600", "0.200", "higher in 2 of 2"]
    assert list(in_row(fig, "the flat").values())[:4] == ["as control"] * 4
    assert "says nothing here" in list(in_row(fig, "the flat").values())[-1]
    assert sum("★" in t for t in texts(fig)) == 2  # read and rough; plain has no better direction, few is not tested


def test_too_few_values_are_not_called_as_their_control(bare: interp.Result) -> None:
    assert matrices.FEWEST == table.FEWEST
    assert matrices.standing(bare.data, "few") == [matrices.UNTESTED] * 4
    fig = matrices.measures(bare)
    assert list(in_row(fig, "the few").values())[:4] == ["0.200 ?", "0.900 ?", "0.400 ?", "0.600 ?"]
    assert {t.get_style() for t in fig.axes[0].texts if t.get_text() == "0.900 ?"} == {"italic"}
    assert any("fewer than 20 values" in t.get_text() for t in fig.texts)


def test_shade_goes_from_worst_to_best_of_those_above_their_control(bare: interp.Result) -> None:
    (ax,) = (fig := matrices.measures(bare)).axes
    y = {t.get_text().split()[1]: t.get_position()[1] for t in ax.texts if t.get_text().startswith("the ")}
    assert shades(ax, y["read"]) == {1: 1.0, 2: 0.0, 3: pytest.approx(0.4, abs=0.01)}  # order: A standard, A robust, B …
    assert shades(ax, y["rough"]) == {0: pytest.approx(0.5, abs=0.01), 1: 1.0, 3: 0.0}  # lower is better; B standard is above
    assert shades(ax, y["plain"]) == shades(ax, y["few"]) == {}
    assert fig.get_figheight() < 11.7


def test_some_groups_can_be_drawn_and_unknown_ones_are_named(bare: interp.Result) -> None:
    assert not any("the read" in t for t in texts(matrices.measures(bare, groups=("appearance",))))
    with pytest.raises(interp.InputError, match="there is no group shape in the result; its groups are perturbation, appearance"):
        matrices.measures(bare, groups=("shape",))
    assert set(GROUPS) == set(matrices.GROUPS)


def test_other_results_have_no_table_of_measures(bare: interp.Result) -> None:
    with pytest.raises(interp.InputError, match="has no table of measures"):
        matrices.measures(dataclasses.replace(bare, data=bare.data[["plain"]]))


def test_axes_run_from_the_control_to_the_best_model(bare: interp.Result) -> None:
    (ax,) = attributes.parallel(bare).axes
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.lines if str(line.get_label()) in LABELS}
    assert lines["A robust"] == pytest.approx([1.0, 1.0], abs=1e-6)  # read (0.9), rough (0.05): the best of each
    assert lines["A standard"][0] == pytest.approx(0.0, abs=1e-6)  # as the control, 0.2
    assert lines["B robust"] == pytest.approx([(0.6 - 0.2) / 0.7, (0.2 - 0.15) / 0.15], abs=1e-6)
    assert lines["B standard"][1] == attributes.LOWEST  # 0.9 is worse than the control by more than is drawn
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [int(np.isfinite(np.asarray(c.get_ydata())).sum()) for c in crosses] == [1, 0, 1, 0]
    assert {"0.900", "0.050"} <= {t.get_text() for t in ax.texts}
    assert [t.get_text().replace("\n", " ") for t in ax.get_xticklabels()] == ["the read ↑", "the rough ↓"]


def test_without_a_measure_above_its_control_there_is_no_profile() -> None:
    flat = make({"appearance": COLUMNS["appearance"][1:]})
    with pytest.raises(interp.InputError, match="no measure with a direction differs"):
        attributes.parallel(flat)
    assert "parallel" not in [d.name for d in attributes.drawable(flat)]


def test_only_figures_with_values_are_drawn(bare: interp.Result, full: interp.Result) -> None:
    assert [d.name for d in attributes.drawable(bare)] == ["parallel"]
    assert [d.name for d in attributes.drawable(full)] == ["parallel", *(d.name for d in attributes.FIGURES)]
    lost = full.data.assign(concept_score=full.data["concept_score"] * np.nan)
    assert "concepts" not in [d.name for d in attributes.drawable(dataclasses.replace(full, data=lost))]


@pytest.mark.parametrize("drawn", attributes.FIGURES, ids=lambda d: d.name)
def test_every_figure_is_drawn(drawn: attributes.Drawn, full: interp.Result) -> None:
    fig = drawn.draw(full)
    assert fig.axes and fig.get_figwidth() < 11
    fig.canvas.draw()


def test_a_number_of_concepts_that_is_missing_is_explained(full: interp.Result) -> None:
    said = " ".join(t.get_text() for t in concepts.needed(full).texts)
    missing = LABELS[2]
    assert f"{missing}: more than 32 are needed." in " ".join(said.split())


def test_bars_of_the_number_of_concepts_say_what_they_hold_fixed(full: interp.Result) -> None:
    said = " ".join(" ".join(t.get_text() for t in concepts.needed(full).texts).split())
    assert "with the parts and the draw of places fixed, hence too narrow; nothing is tested." in said


def test_judges_frame_the_generator_and_bars_are_the_checks(full: interp.Result) -> None:
    fig = matrices.judges(full)
    matrix, _, bars = fig.axes
    frames = {(round(p.get_x() + 0.48), round(p.get_y() + 0.46)) for p in matrix.patches if isinstance(p, Rectangle)}
    assert frames == {(k, k) for k in range(4)}
    order = [1, 0, 3, 2]
    shown = np.asarray(matrix.images[0].get_array())
    assert np.allclose(shown, full.data["classified_by"].values[np.ix_(order, order)])
    widths = [bar.get_width() for bar in bars.containers[0]]
    assert widths == pytest.approx(full.data["classified"].values[order])
    assert len(matrices.judges(full, name="transferred_to").axes) == 2


def test_attributes_that_only_the_robust_twin_writes_are_framed(full: interp.Result) -> None:
    fig = attributes.written(full)
    panels = {ax.get_title(): ax for ax in fig.axes if ax.get_title()}
    assert list(panels) == ["due to appear", "due to vanish", "should stay"]
    frames = {
        name: {(round(p.get_x() + 0.46), round(p.get_y() + 0.44)) for p in ax.patches if isinstance(p, Rectangle)}
        for name, ax in panels.items()
    }
    assert frames == {"due to appear": {(3, 0), (3, 1)}, "due to vanish": set(), "should stay": set()}  # B robust is drawn last
    assert [t.get_text() for t in panels["due to appear"].texts].count("·") == 2
    assert {ax.images[0].get_clim() for ax in panels.values()} == {(-0.8, 0.8)}
    assert any("Without a value: fur" in t.get_text() for t in fig.texts)


def test_examples_show_a_standard_model_beside_its_robust_twin(full: interp.Result) -> None:
    every = evidence.examples(full).axes
    heads = [ax.get_title() for ax in every if ax.get_title()]
    assert heads[0] == "image" and heads[1] == "standard\nδ" and heads[4] == "robust\nδ" and len(heads) == 7
    assert [ax.get_ylabel()[0] for ax in every if ax.get_ylabel()] == ["A", "A", "B", "B"]  # two images of each pair of twins
    shown = np.asarray(every[3 * 7 + 6].images[0].get_array())
    assert np.allclose(shown, full.data["example_added"].values[2, 1])  # the last panel of B's second row: B robust, image 1
    assert len({id(ax) for ax in evidence.examples(full, pair=(3, 2), most=1).axes}) == 7
    assert "B robust\nΣ∇" in [ax.get_title() for ax in evidence.examples(full, pair=(3, 2)).axes]
    alone = dataclasses.replace(full, data=full.data.isel(model=[2]))
    assert len([1 for ax in evidence.examples(alone).axes if ax.get_title()]) == 4


def test_found_concepts_of_all_robust_models_are_side_by_side(full: interp.Result) -> None:
    crop = full.data["concept_crop"].values
    panels = [ax for ax in evidence.crops(full).axes if ax.images]
    shown = np.stack([np.asarray(ax.images[0].get_array()) for ax in panels])
    expected = np.concatenate([crop[[0, 2], p].reshape(-1, *crop.shape[3:]) for p in range(2)])  # A robust, then B robust
    assert np.allclose(shown, expected)
    assert len([ax for ax in evidence.crops(full, model=1).axes if ax.images]) == 6
    many = full.data.isel(model=[0, 0, 2, 2, 2])
    assert any(
        "Not shown: B robust, B robust." in t.get_text() for t in evidence.crops(dataclasses.replace(full, data=many)).texts
    )


def test_probes_that_are_left_out_are_struck_through(full: interp.Result) -> None:
    fig = attributes.probes(full)
    ax = fig.axes[0]
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    order = [1, 0, 3, 2]
    assert np.allclose(shown, np.where(READ > 0.6, READ, np.nan)[order].T, equal_nan=True)
    struck = {(round(float(np.mean(line.get_xdata()))), round(float(np.mean(line.get_ydata())))) for line in ax.lines}
    assert struck == {(1, 1), (3, 0)}  # A robust does not read wheels, B robust does not read wings
    assert [t.get_text() for t in ax.texts] == [
        "0.80",
        "0.90",
        "1.00",
        "0.55",
        "0.70",
        "0.50",
        "0.75",
        "0.95",
        "–",
        "–",
        "–",
        "–",
    ]
    assert any("–: no probe." in t.get_text() for t in fig.texts)


def overlapping(boxes: list[Bbox]) -> bool:
    return any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_judges_of_two_models_of_one_architecture_fit_and_are_not_called_of_another(full: interp.Result, tmp_path: Path) -> None:
    two = dataclasses.replace(full, data=full.data.isel(model=[0, 1], other=[0, 1], judge=[0, 1]))
    fig = matrices.judges(two)
    fig.canvas.draw()
    matrix, bar, bars = fig.axes
    legend = bars.get_legend()
    assert legend is not None and legend.get_texts()[0].get_text() == "δ, the other model"
    assert not overlapping([bar.xaxis.label.get_window_extent(), legend.get_window_extent()])
    assert not overlapping([ax.xaxis.label.get_window_extent() for ax in (matrix, bars)])
    assert matrices.judges(full).axes[2].get_legend().get_texts()[0].get_text() == "δ, judges of other architectures"  # type: ignore[union-attr]
    read = two.data["read"].assign_attrs(formula="share that models of other architectures read")
    html = page.write(dataclasses.replace(two, data=two.data.assign(read=read)), tmp_path).read_text(encoding="utf-8")
    assert "share that the other models read" in html and "other architectures" not in html
    assert "other architectures" not in words.compare(two).how and "other architectures" in words.compare(full).how


def test_ticks_of_sweeps_do_not_touch(full: interp.Result) -> None:
    wide = full.data.isel(eps=[0, 1, 1, 2]).assign_coords(eps=[8 / 255, 32 / 255, 128 / 255, 1.0])
    ax = attributes.sweeps(dataclasses.replace(full, data=wide)).axes[0]
    ax.figure.canvas.draw()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["8", "32", "128", "255"] and ax.get_xlabel() == "ε · 255"
    assert not overlapping([t.get_window_extent() for t in ax.get_xticklabels()])
    others = dataclasses.replace(full, data=wide.assign_coords(eps=[0.3, 0.5, 1.0, 2.0]))
    assert [t.get_text() for t in attributes.sweeps(others).axes[0].get_xticklabels()] == ["0.3", "0.5", "1", "2"]


def test_page_has_a_section_for_every_measure_and_needs_no_other_file(full: interp.Result, tmp_path: Path) -> None:
    html = page.write(full, tmp_path).read_text(encoding="utf-8")
    for name in ("read", "few", "rough", "plain", "flat"):
        assert (
            f'<section id="{name}">' in html
            and f'href="#{name}"' in html
            and f"f({name})" in html
            and f"source of {name}" in html
        )
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'<img src="([^"]*)"', html))
    assert "<script" not in html and "http" not in html and len(html) < 4e6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["measures.html"]
    assert html.count("<img") == 2 + len(attributes.FIGURES)
    assert "Left out: where: there are no masks; expected some." in html


def cells(html: str, name: str) -> list[list[str]]:
    section = html.split(f'<section id="{name}">')[1].split("</section>")[0]
    return [re.findall(r"<td>(.*?)</td>", line) for line in section.split("\n") if line.startswith("<tr><td>")]


def test_page_says_as_control_and_compares_twins_and_robust_models(bare: interp.Result, tmp_path: Path) -> None:
    html = page.write(bare, tmp_path).read_text(encoding="utf-8")
    lines = {line[0]: line[1:] for line in cells(html, "read")}
    assert lines["A standard"][0] == "as control" and lines["A standard"][-1] == "no"
    assert lines["A robust"][0] == "0.900" and lines["A robust"][-1] == "yes" and lines["A robust"][2] == "60"
    assert lines["A robust − A standard"][0] == "+0.700" and lines["B robust − B standard"][0] == "+0.200"
    assert lines["A robust − B robust"][0] == "+0.300" and float(lines["A robust − B robust"][-1].strip("≤ ")) < 0.05
    assert {line[1] for line in cells(html, "flat")[4:]} == {"both as control"}
    assert page.write(bare, tmp_path).read_text(encoding="utf-8") == html
    few = cells(html, "few")
    assert {line[-1] for line in few} == {"not tested"} and few[1][1] == "0.900"


def test_n_of_a_control_is_told_where_it_is_another(
    bare: interp.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrices.count(bare.data, "read") == "60"
    for n, said in ((60, "60"), (16, "60, control 16"), (0, "60")):
        counted = bare.data.assign(read_control_n=("model", np.full(4, n)))
        assert matrices.count(counted, "read") == said
    fewer = dataclasses.replace(bare, data=bare.data.assign(read_control_n=("model", np.array([16, 12, 16, 16]))))
    assert "share, n = 60, control 12–16" in texts(matrices.measures(fewer))
    assert "<dt>n</dt><dd>60, control 12–16</dd>" in page.write(fewer, tmp_path).read_text(encoding="utf-8")
    monkeypatch.setattr(options.out, "width", 120)
    options.print_measures(fewer)
    printed = capsys.readouterr().out
    assert printed.count("12–16") == 1 and max(map(len, printed.splitlines())) <= 120


def test_page_says_which_p_is_the_smallest_that_can_be_found(bare: interp.Result, tmp_path: Path) -> None:
    p = bare.data["read_p"].values.copy()
    p[0, 1] = p[1, 0] = 0.0246
    p[2, 3] = p[3, 2] = 0.03
    least = bare.data.assign(read_p=(("model", "other"), p)).assign_attrs(bare.data.attrs | {"least_p": 0.0245})
    html = page.write(dataclasses.replace(bare, data=least), tmp_path).read_text(encoding="utf-8")
    lines = {line[0]: line[1:] for line in cells(html, "read")}
    assert lines["A robust − A standard"][-1] == "≤ 0.025" and lines["B robust − B standard"][-1] == "0.030"
    assert "the larger of a bootstrap of t and Student's t" in html.replace("&#39;", "'")


@pytest.mark.parametrize("known", [True, False], ids=["difference known", "no difference"])
def test_page_says_that_models_without_judges_in_common_are_not_compared(
    known: bool, bare: interp.Result, tmp_path: Path
) -> None:
    found = bare.data.copy(deep=True)
    for name in ("read_p",) if known else ("read_p", "read_difference"):
        found[name].values[0, 1] = found[name].values[1, 0] = np.nan
    html = page.write(dataclasses.replace(bare, data=found), tmp_path).read_text(encoding="utf-8")
    lines = {line[0]: line[1:] for line in cells(html, "read")}
    assert lines["A robust − A standard"] == ["not compared", "", ""] and lines["B robust − B standard"][0] == "+0.200"


def test_page_says_over_which_images_rows_named_kept_are(tmp_path: Path) -> None:
    shaped = make({"shape": [column(row("shape_edges", "none", "kept as edge drawing"), (0.9, 0.2, 0.6, 0.4))]})
    html = page.write(shaped, tmp_path).read_text(encoding="utf-8")
    assert "differences are over the images that both get right" in html


def test_page_escapes_what_it_is_given(tmp_path: Path) -> None:
    bad = make({"<b>": [column(row("read", title="<script>alert(1)</script>"), (0.9, 0.2, 0.6, 0.4))]})
    html = page.write(bad, tmp_path).read_text(encoding="utf-8")
    assert "<script" not in html and "<b>" not in html and "&lt;script&gt;" in html


def test_words_say_what_the_verdicts_say(bare: interp.Result) -> None:
    said = words.compare(bare)
    assert "Robust models against their standard twins, by measure: higher in 2 of 2: “the read”" in said.seen
    assert "Not judged: fewer than 20 values (“the few”)." in said.seen
    assert "Says nothing here: no tested model differs from its control (“the flat”)." in said.seen
    verdicts = {v.attrs["verdict"].removeprefix(matrices.TWINS).lower() for v in bare.data.values() if "verdict" in v.attrs}
    assert all(v in said.seen.lower() for v in verdicts) and "better" not in said.seen
    assert "Left out: where: there are no masks" in said.how and "toward one other class" in said.how
    assert "δ" not in words.compare(make({"shape": [column(row("kept"), (0.9, 0.2, 0.6, 0.4))]})).how


@pytest.mark.parametrize("width", [60, 80, 120])
def test_printed_table_fits_and_says_as_control(
    width: int, bare: interp.Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options.out, "width", width)
    options.print_measures(bare)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    assert printed.count("0.900 ★") == 1 and printed.count("0.900 ?") == 1
    (line,) = [part for part in printed.splitlines() if part.startswith("the read") and "0.900" in part]
    assert "as control" in line
    assert "left out: where: there are no masks" in " ".join(printed.split())


def test_hovering_tells_no_number_that_is_as_its_control(bare: interp.Result) -> None:
    html = interactive.measures(bare)
    said = html.replace("\\u003c", "<").replace("\\u003e", ">")
    assert said.count("A standard<br>as control<br>n = 60") == 3  # read, plain, flat
    assert (
        said.count("A standard<br>0.200") == said.count("A standard<br>0.200 [0.1") == 1
    )  # few, which says that it is not tested
    assert html == interactive.measures(bare)


def test_one_model_alone_is_drawn(tiny: Callable[..., interp.Model], bare: interp.Result, tmp_path: Path) -> None:
    alone = dataclasses.replace(bare, data=bare.data.isel(model=[0], other=[0]))
    assert "–" not in list(in_row(matrices.measures(alone), "the read").values())
    assert page.write(alone, tmp_path).is_file()


def test_concepts_that_a_model_does_not_tell_apart_are_pale(full: interp.Result) -> None:
    told = np.array([[True, False, True, True]] * 3 + [[True] * 4])
    told_apart = dataclasses.replace(full, data=full.data.assign(concept_told=(("model", "concept"), told)))
    for result, rows_of in ((full, [0, 0, 0, 0]), (told_apart, [1, 1, 0, 1])):  # drawn in the order 1, 0, 3, 2
        fig = concepts.concepts(result)
        assert [len(ax.patches) for ax in fig.axes[:4]] == rows_of
        assert ("Paler" in " ".join(t.get_text() for t in fig.texts)) == any(rows_of)


def few_of(result: interp.Result, models: list[int], counts: list[int]) -> interp.Result:
    """Of some models, with as many classes as counts of images, and no score where these are fewer than five."""
    at = np.arange(len(counts)) % 3
    data = result.data.isel(model=models, other=models, tested_class=at).assign(tested_n=("tested_class", np.array(counts)))
    data = data.assign_coords(tested_class=[f"class {k}" for k in range(len(counts))])
    return dataclasses.replace(result, data=data.assign(concept_score=data["concept_score"].where(data["tested_n"] >= 5)))


def test_classes_of_few_images_are_hatched_and_all_are_drawn(full: interp.Result) -> None:
    assert concepts.PER_CLASS == PER_CLASS
    fig = concepts.concepts(few_of(full, [0, 1], [20, 4, 0]))
    for ax in fig.axes[:2]:
        hatched = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_hatch()]
        assert [round(p.get_x() + 0.5) for p in hatched] == [1, 2]
        assert [t.get_text() for t in ax.get_xticklabels()] == ["class 0", "class 1", "class 2"]
    assert "Hatched: fewer than 5 images of the class" in " ".join(" ".join(t.get_text() for t in fig.texts).split())
    assert "Hatched" not in " ".join(t.get_text() for t in concepts.concepts(full).texts)
    with pytest.raises(interp.InputError, match="no class has 5 images in this result"):
        concepts.concepts(few_of(full, [0, 1], [4, 4, 0]))


def test_of_very_many_classes_those_with_images_are_drawn(full: interp.Result) -> None:
    fig = concepts.concepts(few_of(full, [0, 1], [20, 6] + [1] * 998))
    assert [len(ax.get_xticks()) for ax in fig.axes[:2]] == [2, 2] and fig.get_figwidth() < 5
    assert "Not drawn: 998 classes of fewer than 5 images." in " ".join(" ".join(t.get_text() for t in fig.texts).split())
    assert not any(ax.patches for ax in fig.axes[:2])


@pytest.mark.parametrize("models", [[0, 1], [0, 1, 2], [0, 1, 2, 3]])
def test_titles_of_panels_do_not_overlap(models: list[int], full: interp.Result) -> None:
    long = full.data.assign_coords(label=("model", ["ResNet-50 robust", "ResNet-50 standard", "MobileViT robust", "B standard"]))
    long_named = dataclasses.replace(full, data=long)
    for fig in (
        concepts.concepts(few_of(long_named, models, [20])),
        concepts.similarity(dataclasses.replace(full, data=long.isel(model=models, other=models))),
    ):
        fig.canvas.draw()
        assert not overlapping([ax.title.get_window_extent() for ax in fig.axes if ax.get_title()])


def test_one_model_has_no_figure_of_likeness(full: interp.Result) -> None:
    alone = full.data.isel(model=[0], other=[0])
    with pytest.raises(interp.InputError, match="there is one model in the result; expected two at least"):
        concepts.similarity(dataclasses.replace(full, data=alone))
    without = dataclasses.replace(full, data=alone.drop_vars(["cka", "best_match"]))  # as `found_concepts` leaves it
    assert "similarity" not in [d.name for d in attributes.drawable(without)]
