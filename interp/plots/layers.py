"""Attention in numbers: against depth, and against the ε of an attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator

from interp.errors import InputError
from interp.plots.attention import SCALE, bar, beside, covering, name_rows, panel, position, upper
from interp.plots.style import NEUTRAL, Drawing, colours, counted, epsilon, labels, look, note, rows, small, titles, wrap
from interp.result import Result

NUMBERS = {
    "distance": "mean distance (px)",
    "entropy": "entropy / its maximum",
    "diversity": "difference of heads (bits)",
    "focus": "share inside the object",
}
CHANNEL = "channel"  # the kind of layers whose rows are of channels
LACKING = {  # why layers have no such number: those of attention between channels, and others
    "distance": (
        "attention between channels has no place in the image",
        "where a class token or a pool asks, the query has none",
    ),
    "diversity": ("one head", "one head"),
    "focus": ("attention between channels has no place in the image", ""),
}


def layers(result: Result) -> Figure:
    """Distance, entropy, diversity (and focus, where images have masks) of every layer against relative depth.

    Means over images with 95 % bootstrap bands; robust solid and filled, standard dashed and hollow. A measure that no model has
    is left out; where a model lacks one (a class token has no place to measure a distance from) its line has a gap, and where
    it has none at all a line under the panels says why.
    """
    data = result.data
    shown = [name for name in NUMBERS if name in data and np.isfinite(data[name].values).any()]
    if not shown:
        raise InputError("no model of this result has a layer of attention that was measured; expected one with attention")
    with look():
        fig = Drawing(figsize=(0.2 + 2.5 * len(shown), 2.3))
        axes = fig.subplots(1, len(shown), squeeze=False, gridspec_kw={"wspace": 0.34})[0]
        for ax, name in zip(axes, shown, strict=True):
            for m in rows(data):
                v, low, high = (data[name + end].values[m] for end in ("", "_low", "_high"))
                if np.isfinite(v).any():
                    _line(ax, data, m, _depth(data, m), v, low, high)
                if name == "distance" and "distance_uniform" in data:
                    ax.plot(_depth(data, m), data["distance_uniform"].values[m], color=colours(data)[m], ls=":", lw=0.9)
            ax.set(xlabel="depth (1: the last layer)", ylabel=NUMBERS[name], xlim=(0, 1.04))
            ax.set_ylim(bottom=0, top=1.03 if name == "entropy" else None)
            ax.grid(alpha=0.25)
        if "focus" in shown:
            axes[-1].axhline(float(data["focus_area"].values.mean()), color="0.35", ls=":", lw=1, label="uniform map (focus)")
        counts = {int(data[name].attrs["n"]) for name in shown if "n" in data[name].attrs}
        notes = [f"{counted(', '.join(map(str, sorted(counts))))}; mean over heads and images with 95 % bootstrap bands"]
        dotted = "distance" in shown and "distance_uniform" in data
        notes += ["distance, dotted: of uniform attention on the same grid"] if dotted else []
        notes += _without(data, shown)
        notes += [words for name in shown for words in _lacking(data, name, shown)]
        notes += _between_channels(data)
        note(fig, _legend(fig, axes, [labels(data)[m] for m in rows(data)]), notes, left=axes[0].get_position().x0)
    return fig


def _without(data: xr.Dataset, shown: Sequence[str]) -> list[str]:
    """Which models have no layer that was measured, and why where the result says so."""
    without: dict[str, list[str]] = {}
    for m in rows(data):
        if not any(np.isfinite(data[name].values[m]).any() for name in shown):
            reason = str(data["unread"].values[m]) if "unread" in data else ""
            without.setdefault(reason, []).append(labels(data)[m])
    return [f"no attention layer: {', '.join(names)}{reason and f' ({reason})'}" for reason, names in without.items()]


def _lacking(data: xr.Dataset, name: str, shown: Sequence[str]) -> list[str]:
    """Which models that have other numbers have none of this one, and why."""
    without: dict[str, list[str]] = {}
    for m in rows(data):
        known = {other for other in shown if np.isfinite(data[other].values[m]).any()}
        if known and name not in known:
            kinds = data["kind"].values[m] if "kind" in data else np.asarray([])
            between, other = bool((kinds == CHANNEL).any()), bool(((kinds != CHANNEL) & (kinds != "")).any())
            words = zip(LACKING.get(name, ("", "")), (between, other), strict=True)
            why = "; ".join(dict.fromkeys(reason for reason, holds in words if reason and holds))
            without.setdefault(why, []).append(labels(data)[m])
    what = NUMBERS[name].partition(" (")[0]
    return [f"no {what}: {', '.join(models)}{why and f' ({why})'}" for why, models in without.items()]


def _between_channels(data: xr.Dataset) -> list[str]:
    """Which models have layers whose rows are of channels, not of tokens: their numbers are not of one kind with the others'."""
    if "kind" not in data:
        return []
    between: dict[int, list[str]] = {}
    for m in rows(data):
        between.setdefault(int((data["kind"].values[m] == CHANNEL).sum()), []).append(labels(data)[m])
    return [
        f"{', '.join(models)}: {f'{n} layers are' if n > 1 else '1 layer is'} attention between channels"
        for n, models in between.items()
        if n
    ]


def _depth(data: xr.Dataset, m: int) -> np.ndarray:
    """Relative depth (k + 1) / layers of every layer of a model, NaN behind its last."""
    count = sum(bool(str(name)) for name in data["layer"].values[m])
    at = (np.arange(data.sizes["depth"]) + 1) / max(count, 1)
    return np.where(at <= 1, at, np.nan)


def _line(ax: Axes, data: xr.Dataset, m: int, x: np.ndarray, v: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """One model's line, with a band between the ends of its intervals and a stroke at each point, which may stand alone."""
    colour, robust = colours(data)[m], bool(data["robust"].values[m])
    style: dict[str, Any] = {"ls": "-" if robust else "--", "marker": "o", "markerfacecolor": colour if robust else "white"}
    ax.plot(x, v, color=colour, lw=1.3, markersize=3.2, label=labels(data)[m], clip_on=False, **style)
    ax.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)
    known = np.isfinite(v)
    ax.vlines(x[known], low[known], high[known], color=colour, lw=0.8, alpha=0.6)


def shift(result: Result) -> Figure:
    """How far attacks move attention: divergence and accuracy against ε, and divergence by layer × ε for every model.

    Lines are means over images, of the mean over those of a model's layers that have a place in the image above, with 95 %
    intervals; models that have but attention between channels are said to be the mean of that. The matrices have all layers, on
    one scale.
    """
    data, order = result.data, rows(result.data)
    names, ticks = _sizes(result), range(data.sizes["eps"])
    with look():
        across = -(-len(order) // (2 if len(order) > 3 else 1))
        width = 3.4 + max(1.35 * across, 2.5)
        fig = Drawing(figsize=(width, 4.2))
        lines = GridSpec(2, 1, fig, left=0, right=2.5 / width, bottom=0, top=1, hspace=0.16)
        top = fig.add_subplot(lines[0])
        under = fig.add_subplot(lines[1], sharex=top)
        for m in order:
            for ax, name in ((top, "moved"), (under, "accuracy")):
                values = [data[f"{name}{end}"].values[m] for end in ("", "_low", "_high")]
                if np.isfinite(values[0]).any():
                    _line(ax, data, m, np.asarray(ticks), *values)
        top.set_ylabel("divergence of attention (bits)")
        top.set_ylim(bottom=0)
        top.tick_params(labelbottom=False)
        under.set(ylabel="accuracy", xlabel="ε", ylim=(-0.03, 1.03))
        under.set_xticks(ticks, names)
        for ax in (top, under):
            ax.grid(alpha=0.25)
        _matrices(fig, data, order, names, across)
        n = f"{counted(data['divergence'].attrs['n'])}; " if "n" in data["divergence"].attrs else ""
        said = f"{n}divergence: Jensen–Shannon, 0 to 1; 95 % intervals, of accuracy Wilson's"
        below = _legend(fig, np.asarray([under]), [labels(data)[m] for m in order], columns=2)
        note(fig, max(below, 1.15), [said, *_over(data), *_between_channels(data)])
    return fig


def _over(data: xr.Dataset) -> list[str]:
    """Over which layers the divergence of each model is the mean, where the result says so."""
    means: dict[str, list[str]] = {}
    for m in rows(data):
        means.setdefault(str(data["over"].values[m]) if "over" in data else "all layers", []).append(labels(data)[m])
    kept = {words: models for words, models in means.items() if words}
    whose = {words: f" of {', '.join(models)}" if len(kept) > 1 else "" for words, models in kept.items()}
    return [f"lines of divergence{of}: mean over {words}" for words, of in whose.items()]


def _matrices(fig: Figure, data: xr.Dataset, order: list[int], names: list[str], across: int) -> None:
    """Layers × ε of every model, the first layer on top."""
    width = fig.get_size_inches()[0]
    down = -(-len(order) // across)
    place = GridSpec(down, across, fig, left=3.15 / width, right=1, bottom=0.0, top=0.94, hspace=0.3, wspace=0.22)
    limit = upper(data["divergence"].values, least=0)
    for k, m in enumerate(order):
        ax = fig.add_subplot(place[k % down, k // down])
        shown = data["divergence"].values[m]
        shown = shown[np.isfinite(shown).any(1)]
        ax.set_title(wrap(labels(data)[m]), fontsize=small(wrap(labels(data)[m]), room=16))
        if not shown.size:
            ax.text(0.5, 0.5, "no attention\nlayer", transform=ax.transAxes, ha="center", va="center")
            ax.set(xticks=(), yticks=())
            ax.axis("off")
            continue
        ax.set_xticks(range(len(names)), names if k % down == down - 1 else [], rotation=90)
        ax.imshow(shown, cmap=NEUTRAL, vmin=0, vmax=limit, aspect="auto", extent=(-0.5, len(names) - 0.5, len(shown) + 0.5, 0.5))
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        ax.tick_params(labelsize=6.5, length=2)
        ax.set_ylabel("layer, in order" if k < down else "", labelpad=1)
    if not np.isfinite(data["divergence"].values).any():
        return
    height = fig.get_size_inches()[1]
    at: Any = fig.add_axes((3.15 / width, -0.62 / height, 1 - 3.15 / width, 0.1 / height))
    mappable = ScalarMappable(Normalize(0, limit), NEUTRAL)
    fig.colorbar(mappable, cax=at, orientation="horizontal", extend="max", label="divergence (bits), by layer × ε; one scale")


def shift_maps(result: Result, image: int | str = 0, *, limit: float | None = None) -> Figure:
    """What each model looks at in one image as an attack grows: models × ε, over the attacked pictures."""
    data, order = result.data, rows(result.data)
    i, maps = position(data, image), data["map"].values
    limit = limit or upper(maps)
    with look():
        fig, axes = beside(data, i, len(order), data.sizes["eps"])
        for m, line in zip(order, axes, strict=True):
            for e, ax in enumerate(line):
                panel(ax, data["picture"].values[m, e, i], maps[m, e, i], limit)
        titles(axes[0], [f"ε = {name}" for name in _sizes(result)])
        name_rows(axes, [wrap(labels(data)[m]) for m in order])
        bar(fig, axes, covering(), limit, SCALE)
        said = dict.fromkeys(str(words) for words in data["how"].values[order])
        who = [[labels(data)[m] for m in order if str(data["how"].values[m]) == words] for words in said]
        note(fig, 0.75, [f"{', '.join(names)}: {words}" for names, words in zip(who, said, strict=True) if words])
    return fig


def _sizes(result: Result) -> list[str]:
    """Every ε as people write it; '(unbounded)' in L∞ alone."""
    binds = result.params.get("attack", {}).get("norm", "linf") != "linf"
    values = [float(value) for value in result.data["eps"].values]
    return [f"{v:g}" if v == 0 or (binds and v >= 1) else epsilon(v).removeprefix("ε = ").replace(" (", "\n(") for v in values]


def _legend(fig: Figure, axes: np.ndarray, first: Sequence[str], *, columns: int = 4) -> float:
    """One legend of all panels from their left edge on, `first` in their order; returns the inches under the figure it takes."""
    known = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    found = {name: known[name] for name in dict.fromkeys((*first, *known)) if name in known}
    height = fig.get_size_inches()[1]
    box, at = axes[0].get_position(), 0.42 - axes[0].get_position().y0 * height
    corner = (box.x0, -at / height)
    fig.legend(found.values(), found.keys(), loc="upper left", bbox_to_anchor=corner, ncols=columns, frameon=False, fontsize=7)
    return at + 0.16 + 0.145 * -(-len(found) // columns)
