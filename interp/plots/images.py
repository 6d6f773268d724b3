"""What picture grids share: names of classes and of readings, titles, one scale under all panels."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from interp.plots.style import labels, wrap
from interp.result import READINGS

SEQUENTIAL = "inferno"


def class_names(data: xr.Dataset) -> list[str]:
    """Class names stored with a result, or an empty list."""
    return [str(v) for v in data["class"].values] if "class" in data.coords else []


def name_of(data: xr.Dataset, index: int) -> str:
    """Name of a class, 'class 243' where names are unknown, '?' for an unknown label."""
    names = class_names(data)
    return "?" if index < 0 else names[index] if index < len(names) else f"class {index}"


def readings(data: xr.Dataset) -> list[str]:
    """What the readings of a result are called, in its order."""
    return [READINGS.get(str(name), str(name)) for name in data["reading"].values]


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
