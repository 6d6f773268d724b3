"""What models depend on of given concepts, and the parts found in their features: scores, counts, likeness."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from interp.errors import InputError
from interp.plots.matrices import heads
from interp.plots.style import NEUTRAL, Drawing, colours, labels, look, note, rows, small, wrap
from interp.result import Result

PALE = "0.93"  # of what a model does not tell apart
LETTER = 0.066  # inches that a letter of a panel's title takes
PER_CLASS = 5  # images of a class that is tested, as in the measures of concepts
MANY = 40  # classes that are drawn though some have too few images


def concepts(result: Result, *, name: str = "concept_score") -> Figure:
    """TCAV: share of a class's images that move toward a concept, concept × class for every model, all on 0 to 1.

    name: `concept_score`, of the last layer, or `concept_middle_score`.
    Grey: not shown to differ from a random concept. Paler: the model does not tell the concept from others. Hatched: the class
    has too few images. Of more than MANY classes those are left out. Raises InputError where that is all.
    """
    data, order = result.data, rows(result.data)
    few = data["tested_n"].values < PER_CLASS if "tested_n" in data else np.zeros(data.sizes["tested_class"], bool)
    if few.all():
        raise InputError(f"no class has {PER_CLASS} images in this result; there is no score to draw")
    drawn = ~few if few.size > MANY else np.ones(few.size, bool)
    data, few = data.isel(tested_class=drawn), few[drawn]
    names, classes = [str(c) for c in data["concept"].values], [str(c) for c in data["tested_class"].values]
    told = data[name.replace("score", "told")].values.astype(bool) if name.replace("score", "told") in data else None
    longest = LETTER * max(len(label) for label in labels(data))
    across, wide, high = min(3, len(order)), max(longest, 0.19 * len(classes)), 0.14 * len(names)
    down = -(-len(order) // across)
    width, height = across * (wide + 0.15), down * (high + 0.32)
    with look():
        fig = Drawing(figsize=(width, height))
        for k, m in enumerate(order):
            left, bottom = k % across * (wide + 0.15), height - (k // across + 1) * (high + 0.32)
            ax = fig.add_axes((left / width, bottom / height, wide / width, high / height))
            picture = ax.imshow(data[name].values[m], cmap=NEUTRAL, vmin=0, vmax=1, aspect="auto")
            ax.set_facecolor("0.8")
            for c in np.flatnonzero(~told[m]) if told is not None else ():
                ax.axhspan(c - 0.5, c + 0.5, color=PALE, lw=0)
            for c in np.flatnonzero(few):
                ax.axvspan(c - 0.5, c + 0.5, facecolor="white", edgecolor="0.7", hatch="////", lw=0)
            ax.set_title(labels(data)[m])
            ax.set_yticks(range(len(names)), names if k % across == 0 else [""] * len(names), fontsize=6)
            ends = classes if k + across >= len(order) else [""] * len(classes)
            ax.set_xticks(range(len(classes)), ends, rotation=90, fontsize=6)
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        bar = fig.add_axes((1 + 0.12 / width, 0.25, 0.1 / width, 0.5))
        fig.colorbar(picture, cax=bar, label="TCAV score (½: neither way)")
        where = "the last layer" if name == "concept_score" else "the layer half-way through each model"
        rule = "Each is told from the others of its family. Grey: not shown to differ from random pictures of the family."
        apart = "Paler: the model does not tell them from the others, no score is given." if told is not None else ""
        empty = f"Hatched: fewer than {PER_CLASS} images of the class, no score is given." if few.any() else ""
        rest = f"Not drawn: {(~drawn).sum()} classes of fewer than {PER_CLASS} images." if not drawn.all() else ""
        note(fig, 0.72, [" ".join(filter(None, (f"At {where}.", rule, apart, empty, rest)))])
    return fig


def similarity(result: Result) -> Figure:
    """How far models' features agree on the same images: linear CKA, and how well a row's parts are matched among a column's.

    Raises InputError for one model, which has nothing to be compared with.
    """
    data, order = result.data, rows(result.data)
    if len(order) < 2:
        raise InputError("there is one model in the result; expected two at least, whose features are compared")
    titles = {"cka": "linear CKA of the features", "best_match": "best match of found concepts"}
    shown, side = [name for name in titles if name in data], 0.52 * len(order)
    with look():
        fig = Drawing(figsize=(len(shown) * (side + 0.2), side))
        for k, name in enumerate(shown):
            ax = fig.add_axes((k * (side + 0.2) / fig.get_figwidth(), 0, side / fig.get_figwidth(), 1))
            matrix = data[name].values[np.ix_(order, order)]
            picture = ax.imshow(matrix, cmap=NEUTRAL, vmin=0, vmax=1, aspect="auto")
            for r, c in np.ndindex(matrix.shape):
                ink = "white" if matrix[r, c] < 0.55 else "black"
                ax.text(c, r, f"{matrix[r, c]:.2f}", ha="center", va="center", color=ink, fontsize=7)
            ax.set_title(titles[name] if LETTER * len(titles[name]) < side else wrap(titles[name]))
            ax.set_xticks(
                range(len(order)), heads(data, order), fontsize=min(5.5, *(small(h, room=8) for h in heads(data, order)))
            )
            ax.set_yticks(range(len(order)), [labels(data)[m] for m in order] if k == 0 else [""] * len(order))
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        bar = fig.add_axes((1.0, 0.1, 0.1 / fig.get_figwidth(), 0.8))
        fig.colorbar(picture, cax=bar, label="1: the same up to rotation and scale" if shown == ["cka"] else "1: the same")
    return fig


def needed(result: Result) -> Figure:
    """How many non-negative parts explain 90 % of each model's features, beside features shuffled over places; nothing is tested.

    Bars are 95 % intervals over images that hold the parts and the draw of places fixed, and are too narrow for that.
    """
    data, order = result.data, rows(result.data)
    with look():
        fig = Drawing(figsize=(4.6, 0.27 * len(order)))
        ax = fig.add_axes((0, 0, 1, 1))
        missing = []
        for y, m in enumerate(order):
            for name, marker, colour in (("concepts_needed", "o", colours(data)[m]), ("concepts_needed_shuffled", "x", "0.5")):
                k, low, high = (float(data[f"{name}{end}"].values[m]) for end in ("", "_low", "_high"))
                if np.isfinite(k):
                    ax.plot([low, high], [y, y], color=colour, lw=1.5)
                    ax.plot(k, y, marker, color=colour, markersize=5)
                    ax.annotate(f"{k:.0f}", (k, y), (0, 4), textcoords="offset points", ha="center", fontsize=6, color=colour)
                elif f"why_{name}" in data:
                    what = " (shuffled)" if name.endswith("shuffled") else ""
                    missing.append(f"{labels(data)[m]}{what}: {data[f'why_{name}'].values[m]}.")
        ax.set_yticks(range(len(order)), [labels(data)[m] for m in order])
        ax.set(ylim=(len(order) - 0.4, -0.6), xlim=(0, None), xlabel="concepts for 90 % of the features")
        bars = "Bars: 95 % over images, with the parts and the draw of places fixed, hence too narrow; nothing is tested."
        note(fig, 0.5, [f"×: the same features, each shuffled over places. {bars}", *missing])
    return fig
