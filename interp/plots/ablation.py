"""The runs of an ablation side by side: what was on in each, how accurate and how robust it came out."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interp.plots.style import PALETTE, Drawing, look
from interp.result import Result

NAMES = {
    "cutmix": "CutMix",
    "mixup": "MixUp",
    "randaugment": "RandAugment",
    "erasing": "Random Erasing",
    "eps_period": "ε warm-up",
    "weight_decay": "weight decay",
    "label_smoothing": "label smoothing",
}
NORMS = {"linf": "L∞", "l2": "L2"}
MARKS = (("clean", "o", 4.5, "clean"), ("pgd20", "s", 4, "PGD-20"), ("fgsm", "|", 9, "FGSM (one step)"))


def runs(result: Result) -> Figure:
    """One row per run, the most robust on top: a dot for each choice that is on (or its value), accuracies with intervals."""
    data, keys = result.data, list(result.params["grid"])
    order = np.argsort(data["pgd20"].values, kind="stable")
    with look():
        fig = Drawing(figsize=(7.2, 0.9 + 0.2 * len(order)))
        left = fig.add_axes((0, 0, 0.06 * len(keys), 1))
        right = fig.add_axes((0.06 * len(keys) + 0.02, 0, 1 - 0.06 * len(keys) - 0.02, 1))
        _choices(left, data, keys, order)
        _accuracies(right, data, order)
        n, attacked = data["clean"].attrs["n"], data["pgd20"].attrs["n"]
        base = result.params["base"]
        ball = "" if {"eps", "norm"} & {*keys} else f" at {NORMS[base.get('norm', 'linf')]} {base.get('eps', '')}"
        right.set_xlabel(f"accuracy (clean: n = {n:,}; attacked{ball}: n = {attacked:,}; 95 % Wilson intervals)")
    return fig


def _choices(ax: Axes, data: xr.Dataset, keys: list[str], order: np.ndarray) -> None:
    for column, key in enumerate(keys):
        values = data[key].values
        switch = len({*values.tolist()} - {0.0, ""}) <= 1
        for row, run in enumerate(order):
            if not switch:
                value = values[run]
                ax.text(column, row, value if isinstance(value, str) else f"{value:g}", ha="center", va="center", fontsize=6.5)
            elif values[run] not in (0.0, ""):
                ax.plot(column, row, "o", color="black", markersize=4.5)
            else:
                ax.plot(column, row, "o", color="0.87", markersize=4.5)
    ax.set_xlim(-0.5, len(keys) - 0.5)
    ax.set_ylim(-0.7, len(order) - 0.3)
    ax.set_xticks(range(len(keys)), [NAMES.get(key, key) for key in keys], rotation=40, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.set_yticks([])
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def _accuracies(ax: Axes, data: xr.Dataset, order: np.ndarray) -> None:
    at = np.arange(len(order))
    for name, mark, size, label in MARKS:
        value = data[name].values[order]
        if name == "fgsm":  # a second reading of the same images: no interval of its own
            ax.plot(value, at, mark, color=PALETTE[5], markersize=size, markeredgewidth=1.5, label=label, zorder=3)
            continue
        ends = np.abs(np.stack([data[f"{name}_low"].values[order], data[f"{name}_high"].values[order]]) - value)
        face = "white" if name == "clean" else PALETTE[0]
        ax.errorbar(value, at, xerr=ends, fmt=mark, color=PALETTE[0], markerfacecolor=face, markersize=size, lw=1, label=label)
    ax.set_ylim(-0.7, len(order) - 0.3)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", alpha=0.25)
    ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=7)
