"""The table of a comparison, measures × models, and which model's perturbations which judge recognises."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from interp.errors import InputError
from interp.plots.style import NEUTRAL, PALETTE, Drawing, labels, look, note, rows, small, wrap
from interp.result import Result

FEWEST = 20  # values of which a measure is tested, as in the table of attributes
ABOVE, LIKE_CONTROL, UNTESTED, UNDEFINED = "above", "as control", "not tested", "–"
ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
GROUPS = {
    "perturbation": "What other models read in perturbations",
    "appearance": "How gradients and perturbations look",
    "alignment": "Where the gradient points",
    "written": "Attributes that perturbations write",
    "pictures": "Pictures drawn from noise",
    "where": "On the object",
    "distances": "Distances to the boundary",
    "shape": "Shape or texture",
    "concepts": "Dependence on concepts",
    "discovery": "Concepts found in the features",
}
TWINS = "robust against standard: "  # how a verdict on twins begins
NAMES, CELL, VERDICT, ROW, HEAD = 1.78, 0.66, 1.62, 0.225, 0.2  # inches: widths of columns, heights of a row, of a group's title
NARROWEST = 2.1  # inches of the matrix of judges: the name of its axis fits
RULES = (
    "Mean and 95 % bootstrap interval. ★ better than every other model, ↑ where higher is better, ↓ where lower is. "
    "“as control”: not shown to differ from the control as it should. p < 0.05 after Holm's correction over all measures, p the "
    "larger of a bootstrap of t over the units and of Student's t. Shade: from the worst (dark) to the best of a row's models "
    "that differ from their control; none where no direction is better. Verdict: robust models against their standard twins."
)


def by_group(result: Result) -> dict[str, list[str]]:
    """The measures of the comparison's table, group by group."""
    found: dict[str, list[str]] = {}
    for name in result.measures:
        if f"{name}_above" in result.data:
            found.setdefault(str(result.data[name].attrs.get("group", "")), []).append(name)
    if not found:
        raise InputError(f"a result of kind {result.kind!r} has no table of measures; expected one that `interp compare` wrote")
    return found


def standing(data: xr.Dataset, name: str) -> list[str]:
    """What each model's value of a measure is worth: above (its control), as control, not tested (too few values), or –."""
    v, above = (data[name + end].values for end in ("", "_above"))
    n = data[f"{name}_tested" if f"{name}_tested" in data else f"{name}_n"].values
    return [
        UNDEFINED if np.isnan(v[m]) else ABOVE if above[m] else UNTESTED if n[m] < FEWEST else LIKE_CONTROL for m in range(len(v))
    ]


def form(values: np.ndarray) -> str:
    """How numbers of one row are written: three decimals, fewer where they are large."""
    top = np.nanmax(np.abs(values), initial=0)
    return ".3f" if top < 10 else ".2f" if top < 100 else ".1f"


def span(values: np.ndarray) -> str:
    """One number, or from the lowest to the highest where they differ."""
    known = values[np.isfinite(values)]
    ends = list(dict.fromkeys(f"{end:{form(known)}}" for end in (known.min(), known.max()))) if known.size else [UNDEFINED]
    return " to ".join(ends)


def heads(data: xr.Dataset, order: Sequence[int]) -> list[str]:
    """The models' names on two lines where they have two words."""
    return [_on_two_lines(labels(data)[m]) for m in order]


def _on_two_lines(label: str) -> str:
    return label.replace(" ", "\n") if label.count(" ") == 1 else wrap(label)


def panel(data: xr.Dataset) -> list[int]:
    """Positions of the judges in reading order: the models as they are drawn, then further judges."""
    return [*rows(data), *range(data.sizes["model"], data.sizes["judge"])]


def readers_named(data: xr.Dataset) -> list[str]:
    """The judges' names in reading order, on two lines where they have two words."""
    names = [str(v) for v in data["judge_label" if "judge_label" in data else "label"].values]
    return [_on_two_lines(names[j]) for j in panel(data)]


def count(data: xr.Dataset, name: str) -> str:
    """n of a measure, from the fewest to the most where models differ, and that of its control where it is another."""
    n = data[f"{name}_n"].values
    of_control = data[f"{name}_control_n"].values if f"{name}_control_n" in data else n
    same = np.array_equal(n, of_control) or not of_control.any()
    return _fewest_to_most(n) + ("" if same else f", control {_fewest_to_most(of_control)}")


def _fewest_to_most(n: np.ndarray) -> str:
    return f"{n.min()}" if n.min() == n.max() else f"{n.min()}–{n.max()}"


def cell(data: xr.Dataset, name: str, m: int) -> str:
    """What is said of one model by a measure: mean and interval on two lines, or that it is as its control."""
    stand, spec = standing(data, name)[m], form(data[name].values)
    if stand in (UNDEFINED, LIKE_CONTROL):
        return stand
    v, low, high = (data[name + end].values[m] for end in ("", "_low", "_high"))
    mark = " ?" if stand == UNTESTED else " ★" if data[name].attrs["best"] == str(data["model"].values[m]) else ""
    return f"{v:{spec}}{mark}\n[{low:{spec}}, {high:{spec}}]"


def measures(result: Result, *, groups: Sequence[str] = ()) -> Figure:
    """The table: a row per measure, a column per model, then the control and the verdict; some groups, or all.

    A value that does not differ from its control is not printed; the best model, where there is one, has a star.
    """
    data, order, found = result.data, rows(result.data), by_group(result)
    unknown = [name for name in groups if name not in found]
    if unknown:
        raise InputError(f"there is no group {', '.join(unknown)} in the result; its groups are {', '.join(found)}")
    shown = {name: found[name] for name in groups or found}
    width = NAMES + CELL * (len(order) + 1) + VERDICT
    height = 0.42 + sum(HEAD + ROW * len(names) for names in shown.values())
    with look():
        fig = Drawing(figsize=(width, height))
        ax = fig.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, width), ylim=(height, 0))
        ax.axis("off")
        _heads(ax, data, order)
        y = 0.42
        for group, names in shown.items():
            ax.text(0, y + HEAD / 2 + 0.02, GROUPS.get(group, group), va="center", weight="bold", color=PALETTE[0], fontsize=7)
            y += HEAD
            for name in names:
                _row(ax, data, order, name, y)
                y += ROW
        said = [RULES]
        if any(UNTESTED in standing(data, name) for names in shown.values() for name in names):
            said.append(f"?: fewer than {FEWEST} values, not tested against the control.")
        note(fig, 0.06, said)
    return fig


def _heads(ax: Axes, data: xr.Dataset, order: list[int]) -> None:
    named = heads(data, order)
    size = min(small(head, room=10) for head in named)
    for k, head in enumerate([*named, "control"]):
        ax.text(NAMES + CELL * (k + 0.5), 0.38, head, ha="center", va="bottom", fontsize=min(6.5, size), linespacing=1.05)
    ax.text(NAMES + CELL * (len(order) + 1) + 0.08, 0.38, "verdict on robust twins", va="bottom", fontsize=6.5)


def _row(ax: Axes, data: xr.Dataset, order: list[int], name: str, y: float) -> None:
    """One measure: its name and unit, a cell per model, the control, the verdict."""
    attrs, stand = data[name].attrs, [standing(data, name)[m] for m in order]
    ax.hlines(y, 0, ax.get_xlim()[1], color="0.88", lw=0.5)
    title = f"{attrs['long_name']} {ARROWS[attrs['better']]}".strip()
    ax.text(0, y + 0.075, title, va="center", fontsize=min(6.5, small(title, room=29)))
    ax.text(0, y + 0.165, f"{attrs['unit']}, n = {count(data, name)}", va="center", fontsize=5, color="0.4")
    v = np.where([s == ABOVE for s in stand], data[name].values[order], np.nan)
    shade = _shades(v, lower_is_better=attrs["better"] == "lower") if attrs["better"] != "none" else np.full(len(v), np.nan)
    for k, m in enumerate(order):
        x = NAMES + CELL * k
        if np.isfinite(shade[k]):
            fill = colormaps[NEUTRAL](float(shade[k]))
            ax.add_patch(Rectangle((x + 0.01, y + 0.01), CELL - 0.02, ROW - 0.02, color=fill, linewidth=0))
        if stand[k] in (UNDEFINED, LIKE_CONTROL):
            ax.text(x + CELL / 2, y + ROW / 2, stand[k], ha="center", va="center", color="0.55", fontsize=5.8)
            continue
        ink = "0.5" if stand[k] == UNTESTED else "white" if shade[k] < 0.55 else "black"
        _number(ax, data, name, m, x, y, ink, italic=stand[k] == UNTESTED)
    if f"{name}_control" in data:
        _control(ax, data, order, name, NAMES + CELL * len(order), y)
    said = str(attrs["verdict"]).removeprefix(TWINS)
    ax.text(
        NAMES + CELL * (len(order) + 1) + 0.08,
        y + ROW / 2,
        "\n".join(textwrap.wrap(said, 42)),
        va="center",
        fontsize=5,
        linespacing=1.1,
    )


def _number(ax: Axes, data: xr.Dataset, name: str, m: int, x: float, y: float, colour: str, *, italic: bool) -> None:
    mean, interval = cell(data, name, m).split("\n")
    at: dict[str, Any] = {"ha": "center", "va": "center", "color": colour, "style": "italic" if italic else "normal"}
    ax.text(x + CELL / 2, y + 0.075, mean, weight="bold" if "★" in mean else "normal", fontsize=6.5, **at)
    ax.text(x + CELL / 2, y + 0.165, interval, fontsize=4.8, **at)


def _control(ax: Axes, data: xr.Dataset, order: list[int], name: str, x: float, y: float) -> None:
    """The control's mean, from the lowest to the highest where it differs from model to model."""
    v = data[f"{name}_control"].values[order]
    at: dict[str, Any] = {"ha": "center", "va": "center", "color": "0.35", "fontsize": 5.6, "linespacing": 1.05}
    ax.text(x + CELL / 2, y + ROW / 2, span(v).replace(" to", "\nto"), **at)


def _shades(v: np.ndarray, *, lower_is_better: bool) -> np.ndarray:
    """Values of a row on [0, 1], 1 the best; 0.5 where all are equal, NaN stays."""
    if np.isnan(v).all() or np.nanmax(v) == np.nanmin(v):
        return np.where(np.isnan(v), np.nan, 0.5)
    shade = (v - np.nanmin(v)) / (np.nanmax(v) - np.nanmin(v))
    return 1 - shade if lower_is_better else shade


def judges(result: Result, *, name: str = "classified_by") -> Figure:
    """Generator × judge: share of perturbations read as the target; a model judging itself is framed.

    classified_by, δ shown alone, has the checks beside it: what the mean judge reads in δ and in the control of each check.
    """
    data, order, readers = result.data, rows(result.data), panel(result.data)
    matrix = data[name].values[np.ix_(order, readers)]
    checked = name == "classified_by" and "classified_controls" in data and "classified" in data
    wide, high = max(NARROWEST, 0.62 * len(readers)), max(1.0, (0.5 if checked else 0.36) * len(order))
    with look():
        fig = Drawing(figsize=(wide + (2.6 if checked else 0), high))
        ax = fig.add_axes((0, 0, wide / fig.get_figwidth(), 1))
        picture = ax.imshow(matrix, cmap=NEUTRAL, vmin=0, vmax=1, aspect="auto")
        for r, c in np.ndindex(matrix.shape):
            ink, weight = "white" if matrix[r, c] < 0.55 else "black", "bold" if r == c else "normal"
            ax.text(c, r, f"{matrix[r, c]:.2f}", ha="center", va="center", color=ink, weight=weight)
            if r == c:
                ax.add_patch(_frame(c, r))
        named = readers_named(data)
        ax.set_xticks(range(len(readers)), named, fontsize=min(6.5, *(small(head, room=10) for head in named)))
        ax.set_yticks(range(len(order)), [labels(data)[m] for m in order])
        ax.set_xlabel("judge (framed: the generator itself)")
        ax.set_ylabel("generator of δ")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        what = "δ alone" if name == "classified_by" else "x + δ"
        bar = fig.add_axes((0, 1 + 0.1 / high, wide / fig.get_figwidth(), 0.09 / high))
        label = f"share of {what} read as the target (chance {data.attrs['chance']:.2f}, n = {data[name].attrs['n']})"
        fig.colorbar(picture, cax=bar, orientation="horizontal", label="\n".join(textwrap.wrap(label, int(wide / 0.062))))
        bar.xaxis.set_ticks_position("top")
        bar.xaxis.set_label_position("top")
        if checked:
            _checks(fig.add_axes(((wide + 0.25) / fig.get_figwidth(), 0, 2.35 / fig.get_figwidth(), 1)), data, order)
    return fig


def _checks(ax: Axes, data: xr.Dataset, order: list[int]) -> None:
    """Bars beside the matrix's rows: δ, then each check, as the mean over a model's judges, with intervals."""
    names = [f"δ, {who_judges(data)}", *map(str, data["check"].values)]
    tables = [
        np.column_stack([data[f"classified{end}"].values, data[f"classified_controls{end}"].values])[order]
        for end in ("", "_low", "_high")
    ]
    v, low, high = tables
    thick = 0.84 / len(names)
    for k, name in enumerate(names):
        at = np.arange(len(order)) - 0.42 + thick * (k + 0.5)
        colour = (PALETTE[0], "0.35", "0.55", "0.7", "0.83")[k % 5]
        ax.barh(at, v[:, k], thick * 0.9, color=colour, label=name)
        ax.errorbar(v[:, k], at, xerr=np.abs(np.stack([v - low, high - v])[:, :, k]), fmt="none", ecolor="black", elinewidth=0.7)
    ax.axvline(float(data.attrs["chance"]), color="black", ls=":", lw=0.9)
    ax.set(ylim=(len(order) - 0.5, -0.5), yticks=[], xlabel="share read as the target (dotted: chance)")
    ax.set_xlim(left=0)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.03, 1.0), frameon=False, fontsize=6, handlelength=1, labelspacing=0.25)


def who_judges(data: xr.Dataset) -> str:
    """Who reads what a model made: models of other architectures, or where there is one architecture the other models."""
    if len(set(data["judge_group" if "judge_group" in data else "group"].values.tolist())) > 1:
        return "judges of other architectures"
    return "the other model" if data.sizes.get("judge", data.sizes["model"]) == 2 else "the other models"


def further_judges(data: xr.Dataset) -> list[str]:
    """Names of the judges that are not compared."""
    return [str(v) for v in data["judge_label"].values[data.sizes["model"] :]] if "judge_label" in data else []


def _frame(c: int, r: int) -> Rectangle:
    return Rectangle((c - 0.48, r - 0.46), 0.96, 0.92, fill=False, edgecolor="white", linewidth=1.4)
