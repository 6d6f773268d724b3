"""Picture grids: perturbations as ε grows, synthesis from noise, accumulated gradients, attention over the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from interp.plots.style import epsilon, grid, labels, look, row_names, rows, wrap
from interp.result import Result

DIVERGING = "RdBu_r"
SEQUENTIAL = "inferno"


def class_names(data: xr.Dataset) -> list[str]:
    """Class names stored with a result, or an empty list."""
    return [str(v) for v in data["class"].values] if "class" in data.coords else []


def name_of(data: xr.Dataset, index: int) -> str:
    """Name of a class, its number where names are unknown, '?' for an unknown label."""
    names = class_names(data)
    return "?" if index < 0 else names[index] if index < len(names) else str(index)


def strip(result: Result, *, image: int = 0) -> Figure:
    """One image under every model: columns the original, then each ε away from its class, then toward the target."""
    data = result.data.isel(image=image)
    order, eps = rows(data), data["eps"].values
    with look():
        fig, axes = grid(len(order), 1 + 2 * len(eps), top=0.62, gap=0.2)
        for r, m in enumerate(order):
            axes[r, 0].imshow(data["original"].values)
            columns = [(d, e) for d in range(2) for e in range(len(eps))]
            for ax, (d, e) in zip(axes[r, 1:], columns, strict=True):
                ax.imshow(data["picture"].values[m, d, e])
                seen = name_of(data, int(data["predicted"].values[m, d, e]))
                ax.set_xlabel(f"{seen} {data['confidence'].values[m, d, e]:.0%}", labelpad=2, fontsize=6.5)
        axes[0, 0].set_title(f"{name_of(data, int(data['truth']))}\n(original)")
        for c, (_, e) in enumerate(columns, 1):
            axes[0, c].set_title(epsilon(float(eps[e])).replace(" (", "\n("))
        row_names(axes, [labels(data)[m] for m in order])
        goals = {name_of(data, int(t)) for t in data["target"].values}
        goal = goals.pop() if len(goals) == 1 else "the target"
        steps, norm = result.params["attack"]["steps"], result.params["attack"]["norm"].replace("linf", "L∞").replace("l2", "L2")
        for d, text in enumerate((f"away from {name_of(data, int(data['truth']))}", f"toward {goal}")):
            first, last = axes[0, 1 + d * len(eps)], axes[0, (d + 1) * len(eps)]
            x = (first.get_position().x0 + last.get_position().x1) / 2
            fig.text(x, 0.998, f"{text}  ({norm}, {steps} steps)", ha="center", va="top", weight="bold")
    return fig


def synthesis(result: Result, *, seed: int = 0) -> Figure:
    """Pictures drawn from noise, models × target classes; under each the model's own and the others' confidence."""
    data = result.data.isel(seed=seed)
    order = rows(data)
    with look():
        fig, axes = grid(len(order), data.sizes["target"], top=0.3, gap=0.32)
        for r, m in enumerate(order):
            for c, ax in enumerate(axes[r]):
                ax.imshow(data["picture"].values[m, c])
                own, others = data["own"].values[m, c], data["others"].values[m, c]
                seen = str(data["target"].values[int(data["predicted"].values[m, c])])
                text = f"{seen}\nown {own:.0%}" + ("" if np.isnan(others) else f", others {others:.0%}")
                ax.set_xlabel(text, labelpad=2, fontsize=6, linespacing=0.95)
        for ax, name in zip(axes[0], data["target"].values, strict=True):
            ax.set_title(str(name))
        row_names(axes, [labels(data)[m] for m in order])
    return fig


def gradients(result: Result, *, most: int = 6, limit: float = 3.0) -> Figure:
    """Mean input gradient, images × models, standard beside robust.

    Summed over channels, each panel in units of its own root mean square (printed below it), all on one scale of ±limit.
    """
    data = result.data.isel(image=slice(0, most))
    order = rows(data)
    signed = data["mean"].values.sum(-1)
    sizes = np.sqrt((signed**2).mean((-2, -1)))
    with look():
        fig, axes = grid(data.sizes["image"], 1 + len(order), left=0.75, top=0.42, gap=0.14)
        for i, line in enumerate(axes):
            line[0].imshow(data["original"].values[i])
            for ax, m in zip(line[1:], order, strict=True):
                unit = signed[m, i] / max(sizes[m, i], np.finfo(np.float32).tiny)
                ax.imshow(unit, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
                ax.set_xlabel(f"rms {sizes[m, i]:.1e}", labelpad=1.5, fontsize=6)
        _head(axes, data, order)
        row_names(axes, [name_of(data, int(v)) for v in data["truth"].values])
        _bar(fig, axes, DIVERGING, (-limit, limit), "gradient / its rms over the panel; one scale for all panels")
    return fig


def attention(result: Result, *, most: int = 6, limit: float = 4.0) -> Figure:
    """What each model looks at, images × models, over the dimmed image, on one scale of multiples of the mean."""
    data = result.data.isel(image=slice(0, most))
    order = rows(data)
    with look():
        fig, axes = grid(data.sizes["image"], 1 + len(order), left=0.75, top=0.42, gap=0.06)
        for i, line in enumerate(axes):
            original = data["original"].values[i]
            line[0].imshow(original)
            grey = np.repeat(original.mean(-1, keepdims=True), 3, -1)
            for ax, m in zip(line[1:], order, strict=True):
                ax.imshow(0.35 + 0.65 * grey)
                if np.isnan(data["map"].values[m, i]).all():
                    ax.text(0.5, 0.5, "not read", transform=ax.transAxes, ha="center", va="center")
                    continue
                ax.imshow(data["map"].values[m, i], cmap=SEQUENTIAL, vmin=0, vmax=limit, alpha=0.72, interpolation="bilinear")
        _head(axes, data, order)
        row_names(axes, [name_of(data, int(v)) for v in data["truth"].values])
        _bar(fig, axes, SEQUENTIAL, (0, limit), "attention / its mean over the image; 1 is uniform; one scale for all panels")
    return fig


def _head(axes: np.ndarray, data: xr.Dataset, order: list[int]) -> None:
    axes[0, 0].set_title("image")
    for ax, m in zip(axes[0, 1:], order, strict=True):
        ax.set_title(wrap(labels(data)[m]))


def _bar(fig: Figure, axes: np.ndarray, cmap: str, limits: tuple[float, float], text: str) -> None:
    """One horizontal colour bar under the grid, as wide as the model columns."""
    height = fig.get_size_inches()[1]
    left, right = axes[-1, 1].get_position().x0, axes[-1, -1].get_position().x1
    at: Any = fig.add_axes((left, -0.28 / height, right - left, 0.1 / height))
    fig.colorbar(
        ScalarMappable(Normalize(*limits), cmap),
        cax=at,
        orientation="horizontal",
        label=text,
        extend="max" if limits[0] == 0 else "both",
    )
