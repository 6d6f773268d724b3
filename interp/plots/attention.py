"""What models look at: maps by model, reading, head and layer.

All maps of one figure share one scale from 0, in multiples of the mean over the image (1 is what a uniform map has): up to the
99th percentile of all maps of the result, rounded up, so that the figures of its other images have it too. The scale's colours
are those of the panels over a medium grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from interp.errors import InputError
from interp.plots.attacks import short
from interp.plots.images import SEQUENTIAL, name_of, readings
from interp.plots.style import (
    NEUTRAL,
    grid,
    labels,
    look,
    note,
    row_names,
    rows,
    small,
    titles,
    wrap,
)
from interp.result import Result

COVER = 0.72  # how much of a panel is the map's colour; the rest is the photograph's grey, on [0.35, 1]
SCALE = "map / its mean over the image; 1 is uniform; one scale for all panels"
ABREAST = 12  # heads side by side; a layer of more goes on below


def attention(result: Result, image: int | str | None = None, *, most: int = 6, limit: float | None = None) -> Figure:
    """What each model looks at: images × models, or of several readings one image, models × readings.

    image: position or id; by default the first `most` images, of several readings the first. limit: upper end of the scale.
    Under the panels how each was read, or why it was not; the query, where the result has one, is a ring. What a model reads in
    an image, which is what gradients explain, stands under its map where it is not the image's class, or under its name. Raises
    InputError for an image that is not there.
    """
    data = _by_reading(result.data)
    limit = limit or upper(data["map"].values)
    with look():
        if data.sizes["reading"] == 1:
            chosen = range(min(most, data.sizes["image"])) if image is None else [position(data, image)]
            return _images_by_models(data, list(chosen), limit)
        return _models_by_readings(data, position(data, 0 if image is None else image), limit)


def _by_reading(data: xr.Dataset) -> xr.Dataset:
    """The dataset with a dimension reading, which results of one reading per model were saved without."""
    if "reading" in data.dims:
        return data
    alone = data.rename(method="how")
    return alone.assign({name: alone[name].expand_dims(reading=[""], axis=1) for name in ("map", "how")})


def _images_by_models(data: xr.Dataset, images: list[int], limit: float) -> Figure:
    order, query = rows(data), _query(data)
    apart = [[_apart(data, m, i) for m in order] for i in images]
    told = any(map(any, apart))
    fig, axes = grid(len(images), 1 + len(order), left=0.75, top=0.42, gap=0.17 if told else 0.06)
    for i, line in zip(images, axes, strict=True):
        line[0].imshow(data["original"].values[i])
        _ring(line[0], query)
        for ax, m in zip(line[1:], order, strict=True):
            panel(ax, data["original"].values[i], data["map"].values[m, 0, i], limit, query)
    for line, words in zip(axes, apart, strict=True):
        for ax, said in zip(line[1:], words, strict=True):
            ax.text(0.5, -0.03, said, transform=ax.transAxes, ha="center", va="top", fontsize=6, color="0.35")
    titles(axes[0], ["image", *(labels(data)[m] for m in order)])
    row_names(axes, [_class(data, i) for i in images])
    bar(fig, axes[:, 1:], covering(), limit, SCALE)
    note(
        fig,
        0.75,
        [*_readings(data), *[_UNDER if (data["truth"].values >= 0).any() else _UNDER.partition(",")[0]] * told, *_ringed(query)],
    )
    return fig


_UNDER = "under a map: what the model reads, where it is not the image's class"


def _apart(data: xr.Dataset, m: int, i: int) -> str:
    """'reads dog' where a model does not read an image as its class, '' where it does, or where what it reads is not known."""
    read = int(data["prediction"].values[m, i]) if "prediction" in data else int(data["truth"].values[i])
    return "" if read == int(data["truth"].values[i]) else f"reads {short(name_of(data, read))}"


def _models_by_readings(data: xr.Dataset, i: int, limit: float) -> Figure:
    order, query = rows(data), _query(data)
    fig, axes = beside(data, i, len(order), data.sizes["reading"], query=query)
    for m, line in zip(order, axes, strict=True):
        for k, ax in enumerate(line):
            panel(ax, data["original"].values[i], data["map"].values[m, k, i], limit, query)
    titles(axes[0], readings(data))
    names = [wrap(labels(data)[m]) for m in order]
    name_rows(axes, names)
    if "prediction" in data:
        for ax, m, name in zip(axes[:, 0], order, names, strict=True):
            said, below = f"reads {short(name_of(data, int(data['prediction'].values[m, i])))}", -5.5 * (2 + name.count("\n"))
            place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "va": "center"}
            ax.annotate(said, (0, 0.5), (-6, below), fontsize=6, color="0.35", **place)
    bar(fig, axes, covering(), limit, SCALE)
    note(fig, 0.75, [*_readings(data), *_ringed(query)])
    return fig


def heads(result: Result, image: int | str = 0, *, limit: float | None = None) -> Figure:
    """Every head of one model on one image, layers × heads; nothing is drawn where a layer has fewer heads.

    Layers are called by their full names; one of more than ABREAST heads takes several lines. Raises InputError where none of
    its layers can be drawn on the image.
    """
    data = result.data
    if "head" not in data or not data["head"].notnull().any():
        raise InputError("none of these layers can be drawn on the image; `channels` draws attention between channels")
    i, maps = position(data, image), data["head"].values
    limit, query = limit or upper(maps), _query(data)
    lines = _lines(np.isfinite(maps[:, :, i]).any((-2, -1)))
    with look():
        fig, axes = beside(data, i, len(lines), min(data.sizes["head"], ABREAST), cell=0.72, title=_model(data), query=query)
        for (layer, heads), line in zip(lines, axes, strict=True):
            for head, ax in zip(heads, line, strict=False):
                if np.isfinite(maps[layer, head, i]).any():
                    panel(ax, data["original"].values[i], maps[layer, head, i], limit, query)
        _name_heads(axes, data, lines, [f"{_broken(name)}\n{kind}" for name, kind in _layers(data)], room=10)
        bar(fig, axes, covering(), limit, SCALE)
        note(fig, 0.75, [*_hows(data), *_ringed(query)])
    return fig


def _lines(known: np.ndarray) -> list[tuple[int, range]]:
    """The layer and the heads of every line of a grid, of which are known those that are True in (layer, head)."""
    counts = [max(1, int(layer.nonzero()[0].max(initial=0)) + 1) for layer in known]
    return [(k, range(at, min(at + ABREAST, n))) for k, n in enumerate(counts) for at in range(0, n, ABREAST)]


def _name_heads(axes: np.ndarray, data: xr.Dataset, lines: list[tuple[int, range]], names: Sequence[str], *, room: int) -> None:
    """Heads over the columns; to the left the layers, on their further lines which heads these are."""
    titles(axes[0], [f"head {head}" for head in range(axes.shape[1])], room=room)
    name_rows(axes, [f"heads {heads[0]} to {heads[-1]}" if heads[0] else names[layer] for layer, heads in lines])


def _layers(data: xr.Dataset) -> list[tuple[str, str]]:
    return [(str(name), str(kind)) for name, kind in zip(data["layer"].values, data["kind"].values, strict=True)]


def _hows(data: xr.Dataset) -> list[str]:
    """How layers were read: a line for all that follow one another and share their words, which it names unless they are all."""
    if "how" not in data:
        return []
    read = [(str(how), str(name)) for how, name in zip(data["how"].values, data["layer"].values, strict=True)]
    runs = [(words, [name for _, name in run]) for words, run in groupby(read, lambda pair: pair[0])]
    if len(runs) == 1:
        return [runs[0][0]]
    return [f"{' to '.join(dict.fromkeys((names[0], names[-1])))}: {words}" for words, names in runs]


def channels(result: Result, image: int | str = 0) -> Figure:
    """Attention between channels on one image, layers × heads: how much each channel (row) takes from each (column).

    One scale from 0 to the 99th percentile of all weights, rounded up. Raises InputError where the model has no such attention.
    """
    data = result.data
    if "channels" not in data:
        raise InputError("this model has no attention between channels; expected one with it, such as XCiT; see `heads`")
    i, weights = position(data, image), data["channels"].values
    limit = upper(weights, least=0)
    lines = _lines(np.isfinite(weights[:, :, i]).any((-2, -1)))
    with look():
        title = "\n".join(filter(None, (_model(data), "channel × channel: no place in the image")))
        fig, axes = beside(data, i, len(lines), min(weights.shape[1], ABREAST), cell=0.9, title=title)
        for (layer, heads), line in zip(lines, axes, strict=True):
            for head, ax in zip(heads, line, strict=False):
                shown = _unpadded(weights[layer, head, i])
                if shown.size:
                    ax.imshow(shown, cmap=NEUTRAL, vmin=0, vmax=limit, interpolation="nearest")
        _name_heads(axes, data, lines, [_broken(str(name)) for name in data["channel_layer"].values], room=12)
        text = "weight of a channel (column) for a channel (row); rows sum to 1; one scale for all panels"
        bar(fig, axes, mpl.colormaps[NEUTRAL], limit, text)
    return fig


def _unpadded(matrix: np.ndarray) -> np.ndarray:
    """A matrix without the rows and columns in which nothing is a number."""
    known = np.isfinite(matrix)
    return matrix[known.any(1)][:, known.any(0)]


def upper(values: np.ndarray, *, least: float = 2.0) -> float:
    """The end of a scale that starts at 0: the 99th percentile of what is known of `values`, rounded up, `least` at least."""
    known = values[np.isfinite(values)]
    top = max(least, float(np.quantile(known, 0.99)) if known.size else 0, 1e-6)
    ends = (float(f"{step}e{k}") for k in range(-6, 12) for step in (1, 1.5, 2, 3, 4, 6, 8))
    return next(end for end in ends if end >= top * (1 - 1e-9))


def position(data: xr.Dataset, image: int | str) -> int:
    """The place of an image, given by its place or its id; raises InputError where there is none."""
    ids = [str(name) for name in data["image"].values]
    if isinstance(image, str) and image in ids:
        return ids.index(image)
    if not isinstance(image, str) and -len(ids) <= image < len(ids):
        return range(len(ids))[image]
    raise InputError(f"there is no image {image!r}; expected a place from 0 to {len(ids) - 1} or one of {', '.join(ids[:8])}")


def _broken(name: str) -> str:
    """The name of a layer, on two lines where it is long, broken behind the point nearest its middle."""
    points = [i + 1 for i, c in enumerate(name) if c == "."] if len(name) > 16 else []
    at = min(points, key=lambda i: abs(i - len(name) // 2), default=0)
    return f"{name[:at]}\n{name[at:]}".strip()


def panel(ax: Axes, picture: np.ndarray, values: np.ndarray, limit: float, query: tuple[float, float] | None = None) -> None:
    """A map over the dimmed photograph, with the query's ring; 'not read' where nothing is known."""
    ax.imshow(np.repeat(0.35 + 0.65 * picture.mean(-1, keepdims=True), 3, -1).clip(0, 1))
    if np.isnan(values).all():
        ax.text(0.5, 0.5, "not read", transform=ax.transAxes, ha="center", va="center")
        return
    ax.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=limit, alpha=COVER, interpolation="nearest")
    _ring(ax, query)


def _query(data: xr.Dataset) -> tuple[float, float] | None:
    """The query of a result (y, x) in pixels, if it has one."""
    given = str(data.attrs.get("query", ""))
    if not given:
        return None
    y, x = (float(part) for part in given.split(","))
    return y, x


def _ring(ax: Axes, query: tuple[float, float] | None) -> None:
    if query is not None:
        for colour, width in (("black", 2.6), ("white", 1.2)):
            ax.plot(query[1], query[0], "o", markersize=7, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=width)


def _ringed(query: tuple[float, float] | None) -> list[str]:
    return [] if query is None else [f"ring: the query, the pixel at y {query[0]:g}, x {query[1]:g} of the image"]


def _readings(data: xr.Dataset) -> list[str]:
    """How the panels were read, or why not: one line for the models and readings that share their words."""
    order, said = rows(data), dict[tuple[str, str], list[str]]()
    for k, name in enumerate(readings(data)):
        for m in order:
            said.setdefault((name, str(data["how"].values[m, k])), []).append(labels(data)[m])
    shared: dict[tuple[str, str], list[str]] = {}
    for (name, words), who in said.items():
        shared.setdefault((words, ", ".join(who) if len(who) < len(order) else ""), []).append(name)
    several = data.sizes["reading"] > 1
    return [
        ": ".join([*([", ".join(names)] if several else []), *([who] if who else []), words])
        for (words, who), names in shared.items()
        if words
    ]


def beside(
    data: xr.Dataset,
    i: int,
    down: int,
    across: int,
    *,
    cell: float = 1.05,
    title: str = "",
    query: tuple[float, float] | None = None,
) -> tuple[Figure, np.ndarray]:
    """A grid of panels with the photograph, its class above, to the left of the rows' names, and a title over the panels."""
    photograph, lines = 1.05, title.count("\n") + 1 if title else 0
    top = 0.4 + 0.15 * lines
    fig, axes = grid(down, across, cell=cell, gap=0.05, left=photograph + 1.15, top=top)
    width, height = fig.get_size_inches()
    ax = fig.add_axes((0, (height - top - photograph) / height, photograph / width, photograph / height))
    ax.imshow(data["original"].values[i])
    ax.axis("off")
    ax.set_title(_class(data, i))
    _ring(ax, query)
    if title:
        middle = (axes[0, 0].get_position().x0 + axes[0, -1].get_position().x1) / 2
        fig.text(middle, 0.998, title, ha="center", va="top", weight="bold")
    return fig, axes


def _class(data: xr.Dataset, i: int) -> str:
    name = name_of(data, int(data["truth"].values[i]))
    return "image" if name == "?" else short(name)


def _model(data: xr.Dataset) -> str:
    """The name of a result's only model, '' where it is not said."""
    return " ".join(labels(data.expand_dims("model") if not data["label"].dims else data)) if "label" in data.coords else ""


def name_rows(axes: np.ndarray, names: Sequence[str]) -> None:
    """Names to the left of the rows, beside the photograph, smaller where one is wider than the room there."""
    size = min(small(name, room=16) for name in names)
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=5, fontsize=size)


def covering() -> Colormap:
    """The maps' colours as they look over a medium grey."""
    seen = mpl.colormaps[SEQUENTIAL](np.linspace(0, 1, 256))
    seen[:, :3] = COVER * seen[:, :3] + (1 - COVER) * (0.35 + 0.65 * 0.5)
    return ListedColormap(seen)


def bar(fig: Figure, axes: np.ndarray, cmap: Colormap, limit: float, text: str) -> None:
    """One horizontal scale from 0 under the grid, as wide as its panels, 2 inches at least."""
    width, height = fig.get_size_inches()
    left, right = axes[-1, 0].get_position().x0, axes[-1, -1].get_position().x1
    at: Any = fig.add_axes((left, -0.22 / height, max(right - left, 2 / width), 0.1 / height))
    fig.colorbar(ScalarMappable(Normalize(0, limit), cmap), cax=at, orientation="horizontal", extend="max")
    at.set_xlabel(text, fontsize=7)
