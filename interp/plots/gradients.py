"""Accumulated gradients and attributions: pictures on one scale, and what was measured of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interp.plots.attacks import NORMS, choices, first_of, number
from interp.plots.images import SEQUENTIAL, bar, head, name_of
from interp.plots.style import Drawing, colours, grid, labels, look, note, row_names, rows, wrap
from interp.result import Result

DIVERGING = "RdBu_r"
PATHS = {"path": "integrated gradients", "blur": "blur-path attribution", "expected": "expected gradients"}
LOSSES = {"ce": "cross-entropy", "logit": "the label's logit"}
MOST = {"class": 10}  # rows of a figure, by source
SHARES = {"entropy": "entropy of |v|\n(1: uniform)", "gini": "Gini index of |v|\n(0: uniform)"}


def gradients(result: Result, *, most: int | None = None, limit: float = 3.0) -> Figure:
    """Mean input gradient, or the attribution where there is one; images × models, standard beside robust.

    Summed over channels, each panel in units of its own root mean square (printed below it), all on one scale of ±limit;
    from 0 on where nothing is negative. Below it how it was made (`how`). Of more than `most` images (6 if none, 10 classes) the
    first, and the figure says so.
    """
    over, whole = result.params["over"], result.data.sizes["image"]
    most = most or MOST.get(over, 6)
    data = result.data.isel(image=slice(0, most))
    order, what = rows(data), _what(data)
    summed = data[what].values.sum(-1)
    sizes = np.sqrt((summed**2).mean((-2, -1)))
    low, colour = (0.0, SEQUENTIAL) if summed.min() >= 0 else (-limit, DIVERGING)
    with look():
        fig, axes = grid(data.sizes["image"], 1 + len(order), left=0.75, top=0.42, gap=0.14)
        for i, line in enumerate(axes):
            line[0].imshow(data["original"].values[i])
            for ax, m in zip(line[1:], order, strict=True):
                unit = summed[m, i] / max(sizes[m, i], np.finfo(np.float32).tiny)
                ax.imshow(unit, cmap=colour, vmin=low, vmax=limit, interpolation="nearest")
                ax.set_xlabel(f"rms {sizes[m, i]:.1e}", labelpad=1.5, fontsize=6)
        head(axes, data, order)
        row_names(axes, _names(data))
        bar(fig, axes, colour, (low, limit), f"{_title(result)} / its rms over the panel; one scale for all panels")
        shown = first_of(whole, most).replace("images", "classes" if over == "class" else "images")
        note(fig, 0.7, [how(result) + shown])
    return fig


def profiles(result: Result) -> Figure:
    """What was measured, one panel each: cosine along the draws, energy per band of frequency, entropy, Gini index.

    Robust models are drawn solid, standard ones dashed; entropy and Gini index with 95 % intervals over the images. The
    first panel is left out where draws are in no order.
    """
    data, order = result.data, rows(result.data)
    ordered = "turns" in data and data.sizes["draw"] > 0
    gaps = [0.6, 1.0, 0.2] if ordered else [1.0, 0.2]  # inches between the panels: room for labels
    with look():
        *lines, entropy, gini = _panels(gaps, width=2.0, height=2.1)
        fig = gini.figure
        if ordered:
            _lines(lines[0], data, order, np.arange(1, data.sizes["draw"] + 1), "turns")
            lines[0].set(xlabel="draw", ylabel="cosine with the draw before", ylim=(min(0, float(data["turns"].min())), 1.02))
            lines[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        _lines(lines[-1], data, order, data["frequency"].values, "spectrum")
        lines[-1].set(xlabel="spatial frequency (cycles/pixel)", ylabel="share of the energy", ylim=(0, None))
        _dots(entropy, data, order, "entropy")
        _dots(gini, data, order, "gini")
        gini.set_yticklabels([])
        handles, names = lines[-1].get_legend_handles_labels()
        fig.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=min(len(names), 6), frameon=False)
        note(fig, 0.56, [f"{_title(result)}: {how(result)}; n = {data.sizes['image']}"])
    return fig


def _panels(gaps: list[float], *, width: float, height: float) -> list[Any]:
    """Panels in a row, all sizes in inches."""
    whole = width * (len(gaps) + 1) + sum(gaps)
    fig = Drawing(figsize=(whole, height))
    left = [width * k + sum(gaps[:k]) for k in range(len(gaps) + 1)]
    return [fig.add_axes((at / whole, 0, width / whole, 1)) for at in left]


def _lines(ax: Any, data: xr.Dataset, order: list[int], x: np.ndarray, name: str) -> None:
    for m in order:
        style = "-" if bool(data["robust"].values[m]) else "--"
        ax.plot(x, data[name].values[m], style, color=colours(data)[m], label=labels(data)[m], lw=1.4)
    ax.grid(alpha=0.25)


def _dots(ax: Any, data: xr.Dataset, order: list[int], name: str) -> None:
    """A measure of every model with its interval, the first model on top."""
    for y, m in enumerate(order):
        mean, low, high = (float(data[name + end].values[m]) for end in ("", "_low", "_high"))
        face = colours(data)[m] if bool(data["robust"].values[m]) else "white"
        ends = [[mean - low], [high - mean]]
        ax.errorbar(mean, y, xerr=ends, fmt="o", ms=5, color=colours(data)[m], markerfacecolor=face, capsize=2)
    ax.set_yticks(range(len(order)), [wrap(labels(data)[m]) for m in order])
    ax.set(xlabel=SHARES[name], ylim=(len(order) - 0.5, -0.5))
    ax.grid(axis="x", alpha=0.25)


def _what(data: xr.Dataset) -> str:
    return "attribution" if "attribution" in data else "mean"


def _title(result: Result) -> str:
    """What the panels show, in a word or two."""
    if method := result.params.get("method"):
        return str(method.removeprefix("captum:"))
    if "attribution" in result.data:
        return PATHS[result.params["over"]]
    return {"sign": "mean sign of the gradient", "absolute": "mean |gradient|"}.get(result.params.get("use", "raw"), "gradient")


def how(result: Result) -> str:
    """What was accumulated in a few words: the source with its draws, width, start and rule, the loss, and the precision."""
    params, said = result.params, result.data.attrs
    takes, n = said.get("takes", "").split(), params["n"]
    parts = {
        "n": f"{n} {'points' if 'rule' in takes else 'draws'}",
        "sigma": f"σ = {params['sigma']:g}",
        "baseline": f"from {params.get('baseline', 'grey')}",
        "rule": params.get("rule", "gauss-legendre"),
    }
    method = params.get("method", "")
    words = [f"captum's {method.removeprefix('captum:')}" if method else _source(result)]
    words += [text for name, text in parts.items() if name in takes]
    if climbed := said.get("climbed"):
        words.append(LOSSES.get(climbed, f"{climbed} loss"))
    more = [c for c in choices(result) if not c.endswith(" loss") and ("attack" in takes or c == params.get("precision"))]
    return ", ".join([*words, *more])


def _source(result: Result) -> str:
    """Where the gradients are taken."""
    attack, over = result.params["attack"], str(result.params["over"])
    start = "a random start" if attack["random_start"] else "the image"
    return {
        "steps": f"{NORMS[attack['norm']]} PGD, ε = {number(attack['eps'])}, {attack['steps']} steps from {start}",
        "noise": "images with noise",
        "path": "straight path",
        "blur": "path through blurs",
        "expected": "straight paths from other images",
        "augment": "random views",
        "class": "images of each class",
    }[over]


def _names(data: xr.Dataset) -> list[str]:
    """What the rows show: the class of each image; for classes themselves their ids, which count the images."""
    ids, truths = [str(i) for i in data["image"].values], [int(t) for t in data["truth"].values]
    return [
        "\n(".join(i.split(" (")).replace(" images", "\u00a0images") if i.endswith(" images)") else name_of(data, t)
        for i, t in zip(ids, truths, strict=True)
    ]
