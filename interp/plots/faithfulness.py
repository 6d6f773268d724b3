"""How far maps can be trusted: measures by method and model, and the curves behind them."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator

from interp.plots.images import readings
from interp.plots.style import NEUTRAL, PALETTE, Drawing, counted, labels, look, note, rows, small, titles, wrap
from interp.result import Result

CURVES = {"curve_deletion": "pixels taken out,\nmost relevant first", "curve_insertion": "pixels put in,\nmost relevant first"}
BETTER = {"higher": "↑ higher is better", "lower": "↓ lower is better", "zero": "nearer 0 is better", "none": ""}
FEWEST = 6  # images below which means are not told apart
UNREAD, CONTROL = "not read", "a control"  # how a verdict begins where a method has no maps, and what it says of controls
PAIRED = "Better: the 95 % bootstrap interval of the paired difference excludes 0, uncorrected for the number of comparisons."
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
ROW, HEAD = 0.31, 0.86  # inches of a row, and of what is above and below the rows of a block
LINES = (*PALETTE[:6], PALETTE[7])  # its yellow is too pale for a thin line
LETTER = 0.0415  # inches of a digit in the smallest print of a cell
PALE = 0.12  # on white to black, the tone of what is not told apart


def faithfulness(result: Result) -> Figure:
    """How far each method's map can be trusted: for each measure methods × models, with intervals, and the curves behind them.

    Colour: in each column from the worst to the best mean, so that methods are compared on one model; models are not comparable
    by these measures. A column whose means are not told apart is grey. Similarity after randomisation is the better the
    nearer it is to 0, from either side. Below, where the result has them, the words of the verdict, and the mean probability of
    the class as pixels are taken out and put in, one line per method that was read. A gap parts the controls from the methods.
    """
    data, order = result.data, rows(result.data)
    names = [m for m in result.measures if set(data[m].dims) == {"model", "reading"}]
    curves = [name for name in CURVES if name in data]
    judged = data.isel(reading=(data["trusted"] != CONTROL).any("model").values) if "trusted" in data else None
    cells = {name: _cells(data, order, name) for name in names}
    letters = max((len(line) for table in cells.values() for cell in table.flat for line in cell[1:]), default=0)
    wide, high = max(max(0.7, LETTER * (letters + 1)) * len(order), 3.0), ROW * data.sizes["reading"]
    down = -(-len(names) // 2) * (high + HEAD) + (ROW * judged.sizes["reading"] + HEAD if judged is not None else 0)
    width, height = 2 * wide + 0.3, down + 1.5 * len(curves)
    with look():
        fig = Drawing(figsize=(width, height))
        for k, name in enumerate(names):
            bottom = height - (k // 2 + 1) * (high + HEAD) + 0.2
            ax = fig.add_axes((k % 2 * (wide + 0.3) / width, bottom / height, wide / width, high / height))
            _frame(ax, data, order, name, named=k % 2 == 0)
            _values(ax, data, order, name, cells[name])
        if judged is not None:
            ax = fig.add_axes((0, (height - down + 0.2) / height, 1, ROW * judged.sizes["reading"] / height))
            _frame(ax, judged, order, "trusted", named=True)
            _verdicts(ax, judged, order)
        if curves:
            _curves(fig, data, order, curves, bottom=down + 0.1)
        note(fig, 0.55 + 0.16 * -(-len(_read(data)) // 5) if curves else 0.0, _notes(data, names))
    return fig


def _notes(data: xr.Dataset, names: list[str]) -> list[str]:
    counts = sorted({int(data[name].attrs["n"]) for name in names})
    said = (
        f"{counted(', '.join(map(str, counts)))}, mean and 95 % bootstrap interval. Colour: from the worst (dark) to the "
        "best (light) mean of each column: methods are compared on one model, not models with each other. Grey: they are not "
        f"told apart (fewer than {FEWEST} images, or no two differ: paired t-tests over images, 5 % for all pairs together)."
    )
    if any(_better(data, name) == "zero" for name in names):
        said += " Similarity after randomisation: 0 is what a map that rests on the parameters has, so colour is by its size."
    judged = [PAIRED] * ("trusted" in data)
    had = ~np.char.startswith(_words(data), UNREAD)
    of = {name: data[f"{name}_n"].transpose("reading", "model").values for name in names if f"{name}_n" in data}
    fewer = [name for name, count in of.items() if (count[had] < data[name].attrs["n"]).any()]
    notes = [f"{_title(data, name)}: of some methods the mean of fewer images, of those where it is defined" for name in fewer]
    return [said, *judged, *notes, *unread(data)]


def _words(data: xr.Dataset) -> np.ndarray:
    """The verdicts (method, model), empty where the result has none."""
    none = np.full((data.sizes["reading"], data.sizes["model"]), "")
    return data["trusted"].transpose("reading", "model").values.astype(str) if "trusted" in data else none


def in_short(words: str) -> str:
    """A verdict without the reason why a method was not read."""
    return UNREAD if words.startswith(UNREAD) else words


def unread(data: xr.Dataset) -> list[str]:
    """A sentence for each reason why methods have no maps: of which models, and the first clause of what the result says."""
    words, methods = _words(data), dict[tuple[str, str], list[str]]()
    for m in rows(data):
        for method, said in zip(readings(data), words[:, m], strict=True):
            if said.startswith(UNREAD):
                reason = said.removeprefix(f"{UNREAD}: ").replace(f"model {data['model'].values[m]}", "the model")
                first = reason.partition("; ")[0].partition(". ")[0]
                methods.setdefault((first, labels(data)[m]), []).append(method)
    models: dict[tuple[str, str], list[str]] = {}
    for (reason, model), names in methods.items():
        models.setdefault((reason, ", ".join(names)), []).append(model)
    return [f"{UNREAD.capitalize()}: {names} of {', '.join(of)}: {reason}." for (reason, names), of in models.items()]


def _frame(ax: Axes, data: xr.Dataset, order: list[int], name: str, *, named: bool) -> None:
    """The title of a block and the names of its rows and columns."""
    unit, better = data[name].attrs.get("unit", ""), BETTER[_better(data, name)]
    ax.set_title("\n".join(filter(None, (_title(data, name), ", ".join(filter(None, (unit, better)))))), fontsize=7.5)
    ax.set(xlim=(0, len(order)), ylim=(data.sizes["reading"], 0))
    size = min(small(wrap(labels(data)[m]), room=9) for m in order)
    ax.xaxis.tick_top()
    ax.set_xticks(np.arange(len(order)) + 0.5, [wrap(labels(data)[m]) for m in order], fontsize=min(6.5, size))
    methods = [wrap(method) for method in readings(data)] if named else [""] * data.sizes["reading"]
    ax.set_yticks(np.arange(data.sizes["reading"]) + 0.5, methods, fontsize=7)
    ax.tick_params(length=0, pad=2)
    for side in ax.spines.values():
        side.set_visible(False)
    if "control" in data.coords and name != "trusted":
        ax.axhline(int(np.argmax(data["control"].values)), color="white", lw=4)


def _title(data: xr.Dataset, name: str) -> str:
    return str(data[name].attrs.get("long_name", "")) or {"trusted": "verdict"}.get(name, name.replace("_", " "))


def _better(data: xr.Dataset, name: str) -> str:
    """Which values of a measure are better: 'higher', 'lower', 'zero' (the nearer to 0) or 'none'."""
    return "zero" if name == "randomisation_similarity" else str(data[name].attrs.get("better", "none"))


def _means(data: xr.Dataset, order: list[int], name: str) -> tuple[np.ndarray, ...]:
    """Means of a measure and the ends of their intervals, (method, model) each."""
    return tuple(data[name + end].transpose("reading", "model").values[:, order] for end in ("", "_low", "_high"))


def _cells(data: xr.Dataset, order: list[int], name: str) -> np.ndarray:
    """Mean and interval of every method and model in print, ("", "") where there is none.

    All of a column to the same decimals: three, or so many that the interval of median width has two digits.
    """
    v, low, high = _means(data, order, name)
    cells = np.full(v.shape, None, object)
    for c, (column, widths) in enumerate(zip(v.T, (high - low).T, strict=True)):
        known = widths[np.isfinite(widths) & (widths > 0)]
        places = min(6, max(3, 1 + int(np.ceil(-np.log10(np.median(known)))))) if known.size else 3
        for r, mean in enumerate(column):
            text = (f"{mean:.{places}f}", f"[{low[r, c]:.{places}f}, {high[r, c]:.{places}f}]")
            cells[r, c] = ("", "") if np.isnan(mean) else text
    return cells


def _apart(data: xr.Dataset, name: str, m: int) -> bool:
    """Whether any two methods of one model are told apart: Student's paired t-test over images, Bonferroni for all pairs.

    Images differ far more than methods do, so the intervals of the means do not tell; they have to where a result has no values
    of single images. Of fewer than FEWEST images nothing is told apart.
    """
    low, high = (ends[:, 0] for ends in _means(data, [m], name)[1:])
    if f"values_{name}" not in data:
        known = np.isfinite(low) & np.isfinite(high)
        return bool(known.any()) and bool(low[known].max() > high[known].min())
    values = data[f"values_{name}"].transpose("model", "reading", "image").values[m].astype(float)
    values = values[np.isfinite(values).any(1)]
    values = values[:, np.isfinite(values).all(0)]
    methods, n = values.shape
    if n < FEWEST or methods < 2:
        return False
    from scipy.special import stdtrit  # only here: it takes a tenth of a second to import

    a, b = np.triu_indices(methods, 1)
    apart = values[a] - values[b]
    error = apart.std(1, ddof=1) / np.sqrt(n)
    return bool((abs(apart.mean(1)) > stdtrit(n - 1, 1 - 0.025 / len(a)) * error).any())


def _values(ax: Axes, data: xr.Dataset, order: list[int], name: str, cells: np.ndarray) -> None:
    v, words, better = _means(data, order, name)[0], _words(data)[:, order], _better(data, name)
    columns = (abs(column) if better == "zero" else column for column in v.T)
    told = (_apart(data, name, m) for m in order)
    shades = np.stack([_shades(c, lower=better in ("lower", "zero"), apart=a) for c, a in zip(columns, told, strict=True)], 1)
    alike = np.where(np.isfinite(v) & np.isnan(shades), PALE, np.nan)
    for values, colours in ((shades, NEUTRAL), (alike, "Greys")):
        extent = (0, len(order), len(v), 0)
        ax.imshow(values, cmap=colours, vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    for r, c in np.ndindex(v.shape):
        if np.isnan(v[r, c]):
            said = UNREAD if str(words[r, c]).startswith(UNREAD) else "–"
            ax.text(c + 0.5, r + 0.5, said, ha="center", va="center", fontsize=6, color="0.4")
            continue
        ink = "white" if shades[r, c] < 0.47 else "black"
        mean, ends = cells[r, c]
        ax.text(c + 0.5, r + 0.36, mean, ha="center", va="center", color=ink, weight="bold", fontsize=6.5)
        ax.text(c + 0.5, r + 0.74, ends, ha="center", va="center", color=ink, fontsize=5.2)


def _shades(column: np.ndarray, *, lower: bool, apart: bool) -> np.ndarray:
    """A column on [0, 1], 1 the best; NaN where all are equal or not told apart."""
    known = column[np.isfinite(column)]
    if not apart or np.ptp(known) == 0:
        return np.full_like(column, np.nan)
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
    coloured = [{"color": LINES[k % len(LINES)], "ls": DASHES[k // len(LINES)]} for k in range(data.sizes["reading"] - controls)]
    return [*coloured, *({"color": "0.55", "ls": DASHES[k]} for k in range(controls))]


def _read(data: xr.Dataset) -> list[int]:
    """Positions of the methods that were read on any model."""
    return [k for k, words in enumerate(_words(data)) if not all(str(word).startswith(UNREAD) for word in words)]


def _curves(fig: Figure, data: xr.Dataset, order: list[int], names: list[str], *, bottom: float) -> None:
    """Deletion above insertion, a column per model, from 0 to its own largest; one legend of the methods under them."""
    height = fig.get_size_inches()[1]
    top = 1 - (bottom + 0.25) / height
    place = GridSpec(len(names), len(order), fig, left=0, right=1, bottom=0, top=top, hspace=0.16, wspace=0.24)
    axes = place.subplots(sharex=True, sharey="col", squeeze=False)
    kept, styles = _read(data), _styles(data)
    methods = [readings(data)[k] for k in kept]
    for line, name in zip(axes, names, strict=True):
        curves = data[name].transpose("model", "reading", "share").values
        for ax, m in zip(line, order, strict=True):
            for k, method in zip(kept, methods, strict=True):
                ax.plot(data["share"].values, curves[m, k], lw=1, label=method, **styles[k])
            ax.grid(alpha=0.25)
            ax.yaxis.set_major_locator(MaxNLocator(3))
            ax.tick_params(axis="y", labelsize=7)
        line[0].set_ylabel(CURVES[name], fontsize=7)
    for ax, m in zip(axes[0], order, strict=True):
        drawn = [data[name].transpose("model", "reading", "share").values[m] for name in names]
        ax.set_ylim(0, 1.05 * max((float(v[np.isfinite(v)].max()) for v in drawn if np.isfinite(v).any()), default=1.0) or 1.0)
    axes[0, 0].set_xlim(0, 1)
    axes[0, 0].set_xticks((0, 0.5, 1), ("0", "½", "1"))
    titles(axes[0], [labels(data)[m] for m in order])
    under = "share of the pixels changed; ordinate: mean probability of the class, on a scale of each model's own"
    fig.text(0.5, -0.3 / height, under, ha="center", va="top")
    handles, columns = axes[0, 0].get_lines(), min(5, len(methods))
    at = (0.5, -0.42 / height)
    fig.legend(handles, methods, loc="upper center", bbox_to_anchor=at, ncols=columns, frameon=False, fontsize=7)
