"""How far maps can be trusted: measures by method and model, and the curves behind them."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from interp.plots.style import NEUTRAL, PALETTE, Drawing, labels, look, note, rows, small, titles, wrap
from interp.result import Result

CURVES = {"curve_deletion": "pixels taken out,\nmost relevant first", "curve_insertion": "pixels put in,\nmost relevant first"}
BETTER = {"higher": "↑ higher is better", "lower": "↓ lower is better", "none": ""}
UNREAD, CONTROL = "not read", "a control"  # how a verdict begins where a method has no maps, and what it says of controls
PAIRED = "Better: the 95 % bootstrap interval of the paired difference excludes 0, uncorrected for the number of comparisons."
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
ROW, HEAD = 0.31, 0.86  # inches of a row, and of what is above and below the rows of a block
LINES = (*PALETTE[:6], PALETTE[7])  # its yellow is too pale for a thin line


def faithfulness(result: Result) -> Figure:
    """How far each method's map can be trusted: for each measure methods × models, with intervals, and the curves behind them.

    Colour: in each column from the worst to the best mean, so that methods are compared on one model; models are not comparable
    by these measures. Below, where the result has them, the words of the verdict, and the mean probability of the class as pixels
    are taken out and put in, one line per method. A gap parts the controls from the methods.
    """
    data, order = result.data, rows(result.data)
    names = [m for m in result.measures if set(data[m].dims) == {"model", "method"}]
    curves = [name for name in CURVES if name in data]
    judged = data.isel(method=(data["trusted"] != CONTROL).any("model").values) if "trusted" in data else None
    wide, high = max(0.7 * len(order), 3.0), ROW * data.sizes["method"]
    down = -(-len(names) // 2) * (high + HEAD) + (ROW * judged.sizes["method"] + HEAD if judged is not None else 0)
    width, height = 2 * wide + 0.3, down + 1.5 * len(curves)
    with look():
        fig = Drawing(figsize=(width, height))
        for k, name in enumerate(names):
            bottom = height - (k // 2 + 1) * (high + HEAD) + 0.2
            ax = fig.add_axes((k % 2 * (wide + 0.3) / width, bottom / height, wide / width, high / height))
            _frame(ax, data, order, name, named=k % 2 == 0)
            _values(ax, data, order, name)
        if judged is not None:
            ax = fig.add_axes((0, (height - down + 0.2) / height, 1, ROW * judged.sizes["method"] / height))
            _frame(ax, judged, order, "trusted", named=True)
            _verdicts(ax, judged, order)
        if curves:
            _curves(fig, data, order, curves, bottom=down + 0.1)
        note(fig, 0.55 + 0.16 * -(-data.sizes["method"] // 5) if curves else 0.0, _notes(data, names))
    return fig


def _notes(data: xr.Dataset, names: list[str]) -> list[str]:
    counts = sorted({int(data[name].attrs["n"]) for name in names})
    said = (
        f"n = {', '.join(map(str, counts))} images, mean and 95 % bootstrap interval. Colour: from the worst (dark) to the "
        "best (light) mean of each column: methods are compared on one model, not models with each other."
    )
    judged = [PAIRED] * ("trusted" in data)
    had = ~np.char.startswith(_words(data), UNREAD)
    counted = {name: data[f"{name}_n"].transpose("method", "model").values for name in names if f"{name}_n" in data}
    fewer = [name for name, count in counted.items() if (count[had] < data[name].attrs["n"]).any()]
    notes = [f"{_title(data, name)}: of some methods the mean of fewer images, of those where it is defined" for name in fewer]
    return [said, *judged, *notes, *unread(data)]


def _words(data: xr.Dataset) -> np.ndarray:
    """The verdicts (method, model), empty where the result has none."""
    none = np.full((data.sizes["method"], data.sizes["model"]), "")
    return data["trusted"].transpose("method", "model").values.astype(str) if "trusted" in data else none


def in_short(words: str) -> str:
    """A verdict without the reason why a method was not read."""
    return UNREAD if words.startswith(UNREAD) else words


def unread(data: xr.Dataset) -> list[str]:
    """A sentence for each reason why methods have no maps: of which models, and the first clause of what the result says."""
    words, methods = _words(data), dict[tuple[str, str], list[str]]()
    for m in rows(data):
        for method, said in zip(data["method"].values, words[:, m], strict=True):
            if said.startswith(UNREAD):
                reason = said.removeprefix(f"{UNREAD}: ").replace(f"model {data['model'].values[m]}", "the model")
                first = reason.partition("; ")[0].partition(". ")[0]
                methods.setdefault((first, labels(data)[m]), []).append(str(method))
    models: dict[tuple[str, str], list[str]] = {}
    for (reason, model), names in methods.items():
        models.setdefault((reason, ", ".join(names)), []).append(model)
    return [f"{UNREAD.capitalize()}: {names} of {', '.join(of)}: {reason}." for (reason, names), of in models.items()]


def _frame(ax: Axes, data: xr.Dataset, order: list[int], name: str, *, named: bool) -> None:
    """The title of a block and the names of its rows and columns."""
    unit, better = data[name].attrs.get("unit", ""), data[name].attrs.get("better", "none")
    ax.set_title("\n".join(filter(None, (_title(data, name), ", ".join(filter(None, (unit, BETTER[better])))))), fontsize=7.5)
    ax.set(xlim=(0, len(order)), ylim=(data.sizes["method"], 0))
    size = min(small(wrap(labels(data)[m]), room=9) for m in order)
    ax.xaxis.tick_top()
    ax.set_xticks(np.arange(len(order)) + 0.5, [wrap(labels(data)[m]) for m in order], fontsize=min(6.5, size))
    methods = [wrap(str(method)) for method in data["method"].values] if named else [""] * data.sizes["method"]
    ax.set_yticks(np.arange(data.sizes["method"]) + 0.5, methods, fontsize=7)
    ax.tick_params(length=0, pad=2)
    for side in ax.spines.values():
        side.set_visible(False)
    if "control" in data.coords and name != "trusted":
        ax.axhline(int(np.argmax(data["control"].values)), color="white", lw=4)


def _title(data: xr.Dataset, name: str) -> str:
    return str(data[name].attrs.get("long_name", "")) or {"trusted": "verdict"}.get(name, name.replace("_", " "))


def _values(ax: Axes, data: xr.Dataset, order: list[int], name: str) -> None:
    v, low, high = (data[name + end].transpose("method", "model").values[:, order] for end in ("", "_low", "_high"))
    words = _words(data)[:, order]
    shades = np.stack([_shades(column, lower=data[name].attrs["better"] == "lower") for column in v.T], 1)
    extent = (0, len(order), len(v), 0)
    ax.imshow(shades, cmap=NEUTRAL, vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    for r, c in np.ndindex(v.shape):
        if np.isnan(v[r, c]):
            said = UNREAD if str(words[r, c]).startswith(UNREAD) else "–"
            ax.text(c + 0.5, r + 0.5, said, ha="center", va="center", fontsize=6, color="0.4")
            continue
        ink = "white" if shades[r, c] < 0.47 else "black"
        ax.text(c + 0.5, r + 0.36, f"{v[r, c]:.3f}", ha="center", va="center", color=ink, weight="bold", fontsize=6.5)
        ends = f"[{low[r, c]:.3f}, {high[r, c]:.3f}]"
        ax.text(c + 0.5, r + 0.74, ends, ha="center", va="center", color=ink, fontsize=5.2)


def _shades(column: np.ndarray, *, lower: bool) -> np.ndarray:
    """A column on [0, 1], 1 the best; 0.5 where all are equal, NaN stays."""
    known = column[np.isfinite(column)]
    if not known.size or np.ptp(known) == 0:
        return np.where(np.isnan(column), np.nan, 0.5)
    shade = (column - known.min()) / np.ptp(known)
    return 1 - shade if lower else shade


def _verdicts(ax: Axes, data: xr.Dataset, order: list[int]) -> None:
    words = _words(data)[:, order]
    letters = int(ax.bbox.width / ax.figure.dpi / len(order) / 0.051)
    lines = [[textwrap.wrap(in_short(word), letters) for word in row] for row in words]
    size = min(6.0, 18 / max(1, *(len(cell) for row in lines for cell in row)))
    for r, c in np.ndindex(words.shape):
        ax.text(c + 0.5, r + 0.5, "\n".join(lines[r][c]), ha="center", va="center", fontsize=size, linespacing=1.1)
    ax.hlines(np.arange(len(words) + 1), 0, len(order), color="0.85", lw=0.6)


def _styles(data: xr.Dataset) -> list[dict[str, Any]]:
    """Lines of the methods in colour, of the controls in grey."""
    controls = data["control"].values.sum() if "control" in data.coords else 0
    coloured = [{"color": LINES[k % len(LINES)], "ls": DASHES[k // len(LINES)]} for k in range(data.sizes["method"] - controls)]
    return [*coloured, *({"color": "0.55", "ls": DASHES[k]} for k in range(controls))]


def _curves(fig: Figure, data: xr.Dataset, order: list[int], names: list[str], *, bottom: float) -> None:
    """Deletion above insertion, a column per model, all on [0, 1]; one legend of the methods under them."""
    height = fig.get_size_inches()[1]
    place = GridSpec(len(names), len(order), fig, left=0, right=1, bottom=0, top=1 - (bottom + 0.25) / height, hspace=0.12)
    axes = place.subplots(sharex=True, sharey=True, squeeze=False)
    methods, styles = [str(method) for method in data["method"].values], _styles(data)
    for line, name in zip(axes, names, strict=True):
        curves = data[name].transpose("model", "method", "share").values
        for ax, m in zip(line, order, strict=True):
            for k, method in enumerate(methods):
                ax.plot(data["share"].values, curves[m, k], lw=1, label=method, **styles[k])
            ax.grid(alpha=0.25)
        line[0].set_ylabel(CURVES[name], fontsize=7)
    axes[0, 0].set(xlim=(0, 1), ylim=(0, 1.02))
    axes[0, 0].set_xticks((0, 0.5, 1), ("0", "½", "1"))
    axes[0, 0].set_yticks((0, 0.5, 1), ("0", "½", "1"))
    titles(axes[0], [labels(data)[m] for m in order])
    fig.text(0.5, -0.3 / height, "share of the pixels changed; ordinate: mean probability of the class", ha="center", va="top")
    handles, columns = axes[0, 0].get_lines(), min(5, len(methods))
    at = (0.5, -0.42 / height)
    fig.legend(handles, methods, loc="upper center", bbox_to_anchor=at, ncols=columns, frameon=False, fontsize=7)
