"""Picture grids: accumulated gradients, attention over the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from interp.plots.style import grid, labels, look, row_names, rows, wrap
from interp.result import Result

SEQUENTIAL = "inferno"


def class_names(data: xr.Dataset) -> list[str]:
    """Class names stored with a result, or an empty list."""
    return [str(v) for v in data["class"].values] if "class" in data.coords else []


def name_of(data: xr.Dataset, index: int) -> str:
    """Name of a class, its number where names are unknown, '?' for an unknown label."""
    names = class_names(data)
    return "?" if index < 0 else names[index] if index < len(names) else str(index)


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
        head(axes, data, order)
        row_names(axes, [name_of(data, int(v)) for v in data["truth"].values])
        bar(fig, axes, SEQUENTIAL, (0, limit), "attention / its mean over the image; 1 is uniform; one scale for all panels")
    return fig


def head(axes: np.ndarray, data: xr.Dataset, order: list[int]) -> None:
    """Titles of a grid of images × models."""
    axes[0, 0].set_title("image")
    for ax, m in zip(axes[0, 1:], order, strict=True):
        ax.set_title(wrap(labels(data)[m]))


def bar(fig: Figure, axes: np.ndarray, cmap: str, limits: tuple[float, float], text: str) -> None:
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
