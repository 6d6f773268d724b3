"""Pictures behind a comparison: perturbations and gradients of twins, what models draw, where found concepts lie."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from interp.plots.images import name_of
from interp.plots.style import epsilon, grid, labels, look, note, row_names, rows, small, titles
from interp.result import Result

ABREAST = 3  # models beside one another in `crops`
LIMIT = 3.0  # of a gradient's panel, in units of its own root mean square


def examples(result: Result, *, pair: tuple[int, int] | None = None, most: int = 4) -> Figure:
    """For some images what models and their robust twins make of them: δ, the gradient added up, x + δ.

    pair: positions of two models; all twins if none, of `most` rows in all but at least two of each. δ is shown as (δ + ε)/2ε,
    the gradient summed over channels in units of its root mean square.
    """
    data, twins, order = result.data, _twins(result), rows(result.data)
    pairs = [pair] if pair else twins or [(order[0], order[min(1, len(order) - 1)])]
    shown = min(data.sizes["example"], most if len(pairs) == 1 else max(2, most // len(pairs)))
    eps = float(result.params["attack"]["eps"])
    wide = len(set(pairs[0]))
    named = pair is None and bool(twins)  # the rows name the architecture, the columns the training
    with look():
        fig, axes = grid(shown * len(pairs), 1 + 3 * wide, cell=0.95, left=0.75, top=0.5, gap=0.06)
        for k, of in enumerate(pairs):
            for i in range(shown):
                _line(axes[k * shown + i], data, list(dict.fromkeys(of)), i, eps)
        said = ["standard", "robust"] if named else [labels(data)[m] for m in dict.fromkeys(pairs[0])]
        heads = ["image", *(f"{who}\n{what}" for who in said for what in ("δ", "Σ∇", "x + δ"))]
        size = min(small(head, room=15) for head in heads)
        for ax, head in zip(axes[0], heads, strict=True):
            ax.set_title(head, fontsize=min(7, size))
        ways = zip(data["truth"].values[:shown], data["goal"].values[:shown], strict=True)
        names = [f"{name_of(data, int(truth))}\n→ {name_of(data, int(goal))}" for truth, goal in ways]
        of_rows = [f"{labels(data)[r].removesuffix(' robust')}\n" if named else "" for _, r in pairs]
        row_names(axes, [f"{who}{name}".replace(" ", "\u00a0") for who in of_rows for name in names])
        away = "gradients added up along an attack away from the label"
        note(fig, 0.05, [f"δ toward the class, L∞ {epsilon(eps)}, as (δ + ε)/2ε. Σ∇: {away}, ±{LIMIT:g} rms."])
    return fig


def _line(line: np.ndarray, data: xr.Dataset, models: list[int], i: int, eps: float) -> None:
    """One image, then δ, the gradient added up and x + δ of each model."""
    line[0].imshow(data["example_x"].values[i].clip(0, 1))
    for m, (delta, gradient, added) in zip(models, line[1:].reshape(-1, 3), strict=True):
        delta.imshow(((data["example_delta"].values[m, i] + eps) / (2 * eps)).clip(0, 1))
        summed = data["example_gradient"].values[m, i].sum(-1)
        size = max(float(np.sqrt((summed**2).mean())), np.finfo(np.float32).tiny)
        gradient.imshow(summed / size, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT)
        added.imshow(data["example_added"].values[m, i].clip(0, 1))


def _twins(result: Result) -> list[tuple[int, int]]:
    """Standard models with a robust twin, and that twin."""
    data, order = result.data, rows(result.data)
    group, robust = data["group"].values, data["robust"].values
    return [(s, r) for s in order for r in order if group[s] == group[r] and not robust[s] and robust[r]]


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

    model: position; the first three robust models side by side if none, or the first model where none is robust. A crop shows
    where a concept lies; what the layer saw reaches further.
    """
    data, order = result.data, rows(result.data)
    robust = [m for m in order if data["robust"].values[m]] or order[:1]
    chosen = [model] if model is not None else robust[:ABREAST]
    blocks = data["concept_crop"].values[chosen, :, :most]
    parts, wide = blocks.shape[1:3]
    with look():
        fig, axes = grid(parts, len(chosen) * (wide + 1) - 1, cell=0.4, left=0.8, top=0.3, gap=0.03)
        for ax in axes[:, wide :: wide + 1].flat:
            ax.axis("off")
        for k, (m, block) in enumerate(zip(chosen, blocks, strict=True)):
            own = axes[:, k * (wide + 1) : k * (wide + 1) + wide]
            for ax, crop in zip(own.flat, block.reshape(-1, *block.shape[2:]), strict=True):
                ax.imshow(crop.clip(0, 1))
            own[0, 0].text(0, 1.15, labels(data)[m], transform=own[0, 0].transAxes, weight="bold")
        row_names(axes, [f"concept {p + 1}" for p in range(parts)])
        said = ["Concepts are numbered model by model: those of one row are not matched."] if len(chosen) > 1 else []
        if model is None and len(robust) > ABREAST:
            said.append(f"Not shown: {', '.join(labels(data)[m] for m in robust[ABREAST:])}.")
        note(fig, 0.05, said)
    return fig
