"""Pictures behind a comparison: perturbations and gradients of twins, what models draw, where found concepts lie."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from interp.plots.images import name_of
from interp.plots.style import epsilon, grid, labels, look, note, row_names, rows, small, titles, wrap
from interp.result import Result

LIMIT = 3.0  # of a gradient's panel, in units of its own root mean square


def examples(result: Result, *, pair: tuple[int, int] | None = None, most: int = 4) -> Figure:
    """For some images what two models, by default the first twins, make of them: δ, the gradient added up, x + δ.

    pair: positions of two models. δ is shown as (δ + ε)/2ε, the gradient summed over channels in units of its root mean square.
    """
    data = result.data
    left, right = pair or _twins(result)
    shown, eps = min(most, data.sizes["example"]), float(result.params["attack"]["eps"])
    models = list(dict.fromkeys((left, right)))
    with look():
        fig, axes = grid(shown, 1 + 3 * len(models), cell=0.95, left=0.75, top=0.5, gap=0.06)
        for i, line in enumerate(axes):
            line[0].imshow(data["example_x"].values[i].clip(0, 1))
            for ax, m in zip(line[1::3], models, strict=True):
                ax.imshow(((data["example_delta"].values[m, i] + eps) / (2 * eps)).clip(0, 1))
            for ax, m in zip(line[2::3], models, strict=True):
                summed = data["example_gradient"].values[m, i].sum(-1)
                size = max(float(np.sqrt((summed**2).mean())), np.finfo(np.float32).tiny)
                ax.imshow(summed / size, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT)
            for ax, m in zip(line[3::3], models, strict=True):
                ax.imshow(data["example_added"].values[m, i].clip(0, 1))
        heads = ["image", *(f"{labels(data)[m]}\n{what}" for m in models for what in ("δ", "Σ∇", "x + δ"))]
        size = min(small(head, room=15) for head in heads)
        for ax, head in zip(axes[0], heads, strict=True):
            ax.set_title(head, fontsize=min(7, size))
        ways = zip(data["truth"].values[:shown], data["goal"].values[:shown], strict=True)
        names = [f"{name_of(data, int(truth))}\n→\u00a0{name_of(data, int(goal))}" for truth, goal in ways]
        row_names(axes, names)
        away = "gradients added up along an attack away from the label"
        note(fig, 0.05, [f"δ toward the class, L∞ {epsilon(eps)}, as (δ + ε)/2ε. Σ∇: {away}, ±{LIMIT:g} rms."])
    return fig


def _twins(result: Result) -> tuple[int, int]:
    """The first standard model with a robust twin and that twin, or the first two models."""
    data, order = result.data, rows(result.data)
    group, robust = data["group"].values, data["robust"].values
    both = [(s, r) for s in order for r in order if group[s] == group[r] and not robust[s] and robust[r]]
    return both[0] if both else (order[0], order[min(1, len(order) - 1)])


def pictures(result: Result) -> Figure:
    """Models × classes: the first picture that each model draws from noise toward each class."""
    data, order = result.data, rows(result.data)
    drawn = data["synthesis"].values
    with look():
        fig, axes = grid(len(order), drawn.shape[1], cell=0.72, left=0.95, top=0.3, gap=0.03)
        for m, line in zip(order, axes, strict=True):
            for t, ax in enumerate(line):
                ax.imshow(drawn[m, t].clip(0, 1))
        titles(axes[0], [name_of(data, t) for t in range(drawn.shape[1])], room=11)
        row_names(axes, [labels(data)[m] for m in order])
    return fig


def crops(result: Result, *, model: int | None = None, most: int = 6) -> Figure:
    """A row per concept found in a model's features: crops around the places where it is strongest, strongest first.

    model: position; the first robust model if none. A crop shows where a concept lies; what the layer saw reaches further.
    """
    data = result.data
    order = rows(data)
    m = model if model is not None else next((k for k in order if data["robust"].values[k]), order[0])
    block = data["concept_crop"].values[m, :, :most]
    with look():
        fig, axes = grid(block.shape[0], block.shape[1], cell=0.5, left=0.8, top=0.3, gap=0.03)
        for ax, crop in zip(axes.flat, block.reshape(-1, *block.shape[2:]), strict=True):
            ax.imshow(crop.clip(0, 1))
        row_names(axes, [f"concept {p + 1}" for p in range(block.shape[0])])
        fig.text(0, 1, wrap(labels(data)[m]).replace("\n", " "), va="top", weight="bold")
    return fig
