"""Tables as heat maps: measures × models, and which model's perturbations which judge recognises."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from interp.plots.style import Drawing, labels, look, rows, wrap
from interp.result import Result

NEUTRAL = "cividis"


def measures(result: Result) -> Figure:
    """Model × measure. Text: mean and 95 % interval; colour: within a column, from worst to best of the rows shown."""
    data = result.data
    names = [m for m in result.measures if data[m].dims == ("model",)]
    order = rows(data)
    with look():
        fig = Drawing(figsize=(1.6 + 1.42 * len(names), 0.7 + 0.42 * len(order)))
        ax = fig.add_axes((0, 0, 1, 1))
        for c, name in enumerate(names):
            v = data[name].values[order]
            low, high = data[f"{name}_low"].values[order], data[f"{name}_high"].values[order]
            shade = _shades(v, lower_is_better=data[name].attrs["better"] == "lower")
            for r in range(len(order)):
                if np.isnan(v[r]):
                    ax.text(c + 0.5, r + 0.5, "–", ha="center", va="center")
                    continue
                ax.imshow([[shade[r]]], extent=(c, c + 1, r + 1, r), cmap=NEUTRAL, vmin=0, vmax=1, aspect="auto")
                ink = "white" if shade[r] < 0.55 else "black"
                ax.text(c + 0.5, r + 0.38, f"{v[r]:.3f}", ha="center", va="center", color=ink, weight="bold")
                ax.text(c + 0.5, r + 0.72, f"[{low[r]:.3f}, {high[r]:.3f}]", ha="center", va="center", color=ink, fontsize=6)
        ax.set_xlim(0, len(names))
        ax.set_ylim(len(order), 0)
        ax.set_yticks(np.arange(len(order)) + 0.5, [labels(data)[m] for m in order])
        arrows = {"higher": "↑", "lower": "↓", "none": ""}
        heads = [f"{wrap(data[m].attrs['long_name'])}\n{data[m].attrs['unit']} {arrows[data[m].attrs['better']]}" for m in names]
        ax.set_xticks(np.arange(len(names)) + 0.5, heads)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
        n = data[names[0]].attrs["n"]
        note = f"n = {n} images, mean and 95 % bootstrap interval. Colour: from the worst to the best mean of each column."
        ax.text(0, len(order) + 0.35, note, fontsize=6.5, va="center")
    return fig


def _shades(v: np.ndarray, *, lower_is_better: bool) -> np.ndarray:
    """Values of a column on [0, 1], 1 the best; 0.5 where all are equal, NaN stays."""
    if np.isnan(v).all() or np.nanmax(v) == np.nanmin(v):
        return np.where(np.isnan(v), np.nan, 0.5)
    shade = (v - np.nanmin(v)) / (np.nanmax(v) - np.nanmin(v))
    return 1 - shade if lower_is_better else shade


def judges(result: Result, *, name: str = "classified_by") -> Figure:
    """Generator × judge: share of perturbations read as the target, chance marked; a model judging itself is framed."""
    data = result.data
    order = rows(data)
    columns = [m for m in order if labels(data)[m] != labels(data)[-1]]
    matrix = data[name].values[np.ix_(order, columns)]
    chance = float(data.attrs["chance"])
    with look():
        fig = Drawing(figsize=(1.9 + 0.72 * len(columns), 1.1 + 0.42 * len(order)))
        ax = fig.add_axes((0, 0, 1, 1))
        picture = ax.imshow(matrix, cmap=NEUTRAL, vmin=0, vmax=1, aspect="auto")
        for r, g in enumerate(order):
            for c, j in enumerate(columns):
                ink = "white" if matrix[r, c] < 0.55 else "black"
                ax.text(c, r, f"{matrix[r, c]:.2f}", ha="center", va="center", color=ink, weight="bold" if g == j else "normal")
                if g == j:
                    ax.add_patch(_frame(c, r))
        ax.set_xticks(range(len(columns)), [wrap(labels(data)[m]) for m in columns], rotation=0, fontsize=7)
        ax.set_yticks(range(len(order)), [labels(data)[m] for m in order])
        ax.set_xlabel("judge (framed: the generator itself)")
        ax.set_ylabel("generator of δ")
        ax.tick_params(length=0)
        fig.colorbar(picture, ax=ax, pad=0.02, fraction=0.04, label=f"share read as the target (chance {chance:.2f})")
    return fig


def _frame(c: int, r: int) -> Rectangle:
    return Rectangle((c - 0.48, r - 0.46), 0.96, 0.92, fill=False, edgecolor="white", linewidth=1.4)
