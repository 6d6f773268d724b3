"""One look for every figure: palette, fonts, labels, and files that are the same bytes for the same result.

Colours are those of Okabe & Ito (2008), told apart with every common colour vision. Robust is drawn solid, standard dashed.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
NEUTRAL = "cividis"  # of values that are no attention: told apart without colour
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.hashsalt": "interp",
}


class Drawing(Figure):
    """A figure that a notebook shows by itself, without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def look() -> Iterator[None]:
    """The project's settings for the figures made inside; nothing outside changes."""
    with mpl.rc_context(RC):  # type: ignore[arg-type]
        yield


def save(fig: Figure, folder: Path, name: str) -> Path:
    """Write NAME.png and NAME.pdf without time stamps and return the PNG's path."""
    folder.mkdir(parents=True, exist_ok=True)
    with look():  # resolution and kind of fonts are settings of saving
        fig.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None}, bbox_inches="tight")
        fig.savefig(folder / f"{name}.png", metadata={"Software": None}, bbox_inches="tight")
    return folder / f"{name}.png"


def rows(data: xr.Dataset) -> list[int]:
    """Positions of the models in reading order: architecture by architecture, standard above robust."""
    groups = list(dict.fromkeys(data["group"].values.tolist()))
    robust = data["robust"].values
    return sorted(range(data.sizes["model"]), key=lambda i: (groups.index(str(data["group"].values[i])), bool(robust[i])))


def labels(data: xr.Dataset) -> list[str]:
    """Short names of the models, in the order of the result."""
    return [str(v) for v in data["label"].values]


def colours(data: xr.Dataset) -> list[str]:
    """One colour per architecture, in the order of the result."""
    groups = list(dict.fromkeys(data["group"].values.tolist()))
    return [PALETTE[groups.index(str(g)) % len(PALETTE)] for g in data["group"].values]


def epsilon(value: float) -> str:
    """ε as people write it: 8/255, or 'unbounded' where the box alone binds."""
    if value >= 1:
        return f"ε = {value:g} (unbounded)"
    scaled = value * 255
    return f"ε = {scaled:g}/255" if abs(scaled - round(scaled)) < 1e-6 else f"ε = {value:.4g}"


def counted(n: int | str, what: str = "image") -> str:
    """'n = 1 image', 'n = 20 images'."""
    return f"n = {n} {what}{'s' * (str(n) != '1')}"


def grid(
    n_rows: int, n_cols: int, *, cell: float = 1.05, gap: float = 0.24, left: float = 1.0, top: float = 0.4
) -> tuple[Figure, np.ndarray]:
    """A figure of square panels without ticks, with `left` inches for row names; gap inches under each panel for text."""
    width, height = left + n_cols * cell, top + n_rows * (cell + gap)
    fig = Drawing(figsize=(width, height))
    axes = np.empty((n_rows, n_cols), dtype=object)
    for r in range(n_rows):
        for c in range(n_cols):
            y = height - top - (r + 1) * (cell + gap) + gap
            box = ((left + c * cell + 0.02) / width, y / height, (cell - 0.04) / width, (cell - 0.04) / height)
            ax = axes[r, c] = fig.add_axes(box)
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
    return fig, axes


def row_names(axes: np.ndarray, names: Sequence[str]) -> None:
    """Names to the left of the rows; the architecture above, the training below, where a name has two words."""
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(wrap(name), rotation=0, ha="right", va="center", labelpad=6)


def wrap(name: str) -> str:
    """A long name on two lines, broken at a space or an underscore near the middle."""
    if len(name) <= 14:
        return name
    breaks = [i for i, c in enumerate(name) if c in " _"]
    if not breaks:
        return name
    at = min(breaks, key=lambda i: abs(i - len(name) // 2))
    return name[:at].rstrip() + "\n" + name[at:].strip(" ")


def titles(axes: np.ndarray, names: Sequence[str], *, room: int = 15) -> None:
    """Names over the columns, smaller where one is wider than the `room` letters of its column."""
    size = min(small(wrap(name), room=room) for name in names)
    for ax, name in zip(axes, names, strict=True):
        ax.set_title(wrap(name), fontsize=size)


def small(name: str, *, room: int) -> float:
    """The size of letters at which the longest line of a name fits where `room` letters of the usual size do; 8 at most."""
    return min(8.0, 8.0 * room / max(len(line) for line in name.split("\n")))


def note(fig: Figure, below: float, lines: Sequence[str], *, left: float = 0.0) -> None:
    """Small print `below` inches under the grid, as wide as the figure."""
    width, height = fig.get_size_inches()
    wrapped = [part for line in lines for part in textwrap.wrap(line, int(width / 0.056), subsequent_indent="   ")]
    fig.text(left, -below / height, "\n".join(wrapped), va="top", fontsize=6.5, linespacing=1.3)
