"""What stands behind the table of a comparison: profiles of models, curves against ε and cutoff, attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from interp.errors import InputError
from interp.plots import curves, evidence
from interp.plots.concepts import concepts, needed, similarity
from interp.plots.matrices import ABOVE, ARROWS, FEWEST, by_group, form, heads, judges, panel, readers_named, standing
from interp.plots.style import NEUTRAL, Drawing, colours, counted, labels, look, note, rows, small, wrap
from interp.result import Result

DIVERGING = "RdBu_r"
LOWEST = -0.5  # of the axes of `parallel`, in units of the way from the control to the best model


def parallel(result: Result) -> Figure:
    """A line per model over the measures with a direction; axes run from the control (0) to the best model (1), so up is better.

    The ends of an axis carry its values. A cross marks a value that does not differ from its control. Measures whose best model
    does not, or that were not tested, are left out.
    """
    data, order, names = result.data, rows(result.data), _axes(result)
    if not names:
        raise InputError("no measure with a direction differs from its control in this result; there is no axis to draw")
    scaled = np.stack([_scaled(data, name) for name in names], 1)
    with look():
        fig = Drawing(figsize=(max(3.5, 0.52 * len(names)), 3.0))
        ax = fig.add_axes((0, 0, 1, 1))
        for m in order:
            v, beyond = np.maximum(scaled[m], LOWEST), np.array([standing(data, name)[m] == ABOVE for name in names])
            style = _style(data, m)
            ax.plot(v, label=labels(data)[m], **style | {"marker": None})
            ax.plot(np.where(beyond, v, np.nan), **style | {"ls": ""})
            ax.plot(np.where(beyond, np.nan, v), ls="", marker="x", markersize=4.5, color=style["color"])
        for k, name in enumerate(names):
            worst, best = _ends(data, name)
            ax.axvline(k, color="0.8", lw=0.8, zorder=0)
            ax.text(k, 1.09, f"{best:{form(np.array([best]))}}", ha="center", va="bottom", fontsize=6)
            at: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": 5.5, "color": "0.35", "zorder": 4}
            ax.text(k + 0.05, 0.025, f"{worst:{form(np.array([worst]))}}", bbox={"fc": "white", "ec": "none", "pad": 0.4}, **at)
        ax.axhline(0, color="0.35", ls=":", lw=1)
        heads_ = [f"{wrap(data[name].attrs['long_name'])} {ARROWS[data[name].attrs['better']]}" for name in names]
        ax.set_xticks(range(len(names)), heads_, rotation=40, ha="right", rotation_mode="anchor", fontsize=6.5)
        bottom = min(-0.08, float(np.nanmin(np.maximum(scaled, LOWEST))) - 0.06)
        ax.set(xlim=(-0.3, len(names) - 0.6), ylim=(bottom, 1.08), yticks=(0, 1))
        ax.set_yticklabels(("control", "best\nmodel"))
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.09), ncols=3, frameon=False, fontsize=7)
        cut = [f"Values below {LOWEST:g} are drawn there."] if (scaled < LOWEST).any() else []
        note(
            fig,
            1.05,
            ["×: not shown to differ from its control. Numbers: the mean of the controls, the best model's mean.", *cut],
        )
    return fig


def _axes(result: Result) -> list[str]:
    """The measures with a direction whose best model differs from its control."""
    data = result.data
    names = [name for of in by_group(result).values() for name in of]
    named = [name for name in names if data[name].attrs["better"] != "none" and f"{name}_control" in data]
    return [
        name
        for name in named
        if standing(data, name)[_best(data, name)] == ABOVE and _sign(data, name) * np.subtract(*_ends(data, name)) < 0
    ]


def _best(data: xr.Dataset, name: str) -> int:
    v = _sign(data, name) * data[name].values
    return int(np.nanargmax(v)) if np.isfinite(v).any() else 0


def _sign(data: xr.Dataset, name: str) -> int:
    return -1 if data[name].attrs["better"] == "lower" else 1


def _ends(data: xr.Dataset, name: str) -> tuple[float, float]:
    """The mean of the controls, and the best model's mean."""
    return float(np.nanmean(data[f"{name}_control"].values)), float(data[name].values[_best(data, name)])


def _scaled(data: xr.Dataset, name: str) -> np.ndarray:
    worst, best = _ends(data, name)
    return np.asarray((data[name].values - worst) / (best - worst))


def _style(data: xr.Dataset, m: int) -> dict[str, Any]:
    """One model's line: the architecture's colour, robust solid and filled, standard dashed and hollow."""
    colour, robust = colours(data)[m], bool(data["robust"].values[m])
    face = colour if robust else "white"
    return {"color": colour, "ls": "-" if robust else "--", "marker": "o", "markerfacecolor": face, "markersize": 3.6, "lw": 1.3}


def _line(ax: Axes, data: xr.Dataset, m: int, x: np.ndarray, v: Sequence[np.ndarray]) -> None:
    """One model's mean against x with its band; v: mean, low, high."""
    style = _style(data, m)
    ax.plot(x, v[0], label=labels(data)[m], **style)
    ax.fill_between(x, v[1], v[2], color=style["color"], alpha=0.12, lw=0)


def sweeps(result: Result) -> Figure:
    """The measures of perturbations against ε, with 95 % bands; dotted: chance, where a class is read."""
    data = result.data
    names = [str(v) for v in data if str(v).startswith("sweep_") and not str(v).endswith(("_low", "_high"))]
    sizes = data["eps"].values
    whole = result.params["attack"]["norm"] == "linf" and np.allclose(sizes * 255, np.round(sizes * 255))
    with look():
        fig = Drawing(figsize=(1.8 * len(names), 1.9))
        for ax, name in zip(fig.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
            for m in rows(data):
                _line(ax, data, m, sizes, [data[name + end].values[m] for end in ("", "_low", "_high")])
            what = name.removeprefix("sweep_")
            if what != "fooled":
                ax.axhline(float(data.attrs["chance"]), color="0.35", ls=":", lw=1)
            ax.set_title(wrap(data[what].attrs["long_name"] if what in data else what), fontsize=7)
            ax.set(xscale="log", ylim=(0, 1.02), xlabel="ε · 255" if whole else "ε")
            ax.set_xticks(sizes, [f"{e * 255:.0f}" if whole else f"{e:g}" for e in sizes], fontsize=6.5)
            ax.minorticks_off()
            ax.grid(alpha=0.25)
        fig.axes[0].set_ylabel("share of images and judges")
        _legend(fig, 0.3)
        steps = max(1, result.params["attack"]["steps"] // 2)
        n, free = data[names[0]].attrs["n"], "ε = 1 (255/255) binds nothing." if whole and sizes.max() >= 1 else ""
        note(fig, 0.72, [f"{counted(n)}, {steps} steps, mean with 95 % bootstrap bands; dotted: chance. {free}"])
    return fig


def _legend(fig: Figure, below: float) -> None:
    handles, names = fig.axes[0].get_legend_handles_labels()
    at = (0.5, -below / fig.get_figheight())
    fig.legend(handles, names, loc="upper center", bbox_to_anchor=at, ncols=min(3, len(names)), frameon=False, fontsize=7)


def bands(result: Result) -> Figure:
    """Accuracy on low- and high-passed images against the cutoff, with 95 % Wilson bands; dotted: chance.

    Triangles mark the cutoff below which a low-pass leaves less than half of the clean accuracy.
    """
    data = result.data
    with look():
        fig = Drawing(figsize=(5.6, 2.2))
        for b, ax in enumerate(fig.subplots(1, 2, sharey=True)):
            for m in rows(data):
                v = [data[f"accuracy_by_band{end}"].values[m, b] for end in ("", "_low", "_high")]
                _line(ax, data, m, data["cutoff"].values, v)
                if b == 0 and "shape_cutoff" in data:
                    at = data["shape_cutoff"].values[m]
                    face = _style(data, m)["markerfacecolor"]
                    ax.plot(at, 0.02, marker="^", color=colours(data)[m], markerfacecolor=face, markersize=5, clip_on=False)
            ax.axhline(float(data.attrs["chance"]), color="0.35", ls=":", lw=1)
            ax.set_title(f"{data['band'].values[b]}: {'below' if b == 0 else 'above'} the cutoff is kept")
            ax.set(xscale="log", ylim=(0, 1.0), xlabel="cutoff (cycles per pixel)")
            ax.set_xticks(data["cutoff"].values, [f"{c:.2g}" for c in data["cutoff"].values], fontsize=6.5)
            ax.minorticks_off()
            ax.grid(alpha=0.25)
        fig.axes[0].set_ylabel("accuracy")
        _legend(fig, 0.3)
        note(fig, 0.75, ["95 % Wilson bands; dotted: chance. Triangles: half of the clean accuracy is left at this cutoff."])
    return fig


def twins(data: xr.Dataset) -> list[tuple[int, int]]:
    """Positions (standard, robust) of models of one architecture."""
    group, robust = data["group"].values.tolist(), data["robust"].values
    standard = {group[m]: m for m in range(len(group)) if not robust[m]}
    return [(standard[group[m]], m) for m in rows(data) if robust[m] and group[m] in standard]


def written(result: Result) -> Figure:
    """Attribute × model: mean change of the judges' probes, a panel each for attributes due to appear, to vanish and to stay.

    One diverging scale around 0. A dot alone stands where the 95 % interval includes 0. Framed: attributes that a robust model
    moves as is due, and further than its standard twin.
    """
    data = result.data
    known = np.isfinite(data["attribute_change"].values).any((0, 2))
    if not known.any():
        raise InputError("no attribute of this result has a value; expected images of classes that differ in attributes")
    read, fates = data.isel(attribute=known), len(data["fate"])
    wide, high = 0.4 * data.sizes["model"], 0.165 * int(known.sum())
    with look():
        fig = Drawing(figsize=(fates * (wide + 0.12), high))
        for f in range(fates):
            ax = fig.add_axes((f * (wide + 0.12) / fig.get_figwidth(), 0, wide / fig.get_figwidth(), 1))
            picture = _fate(ax, read, f)
        bar = fig.add_axes((0.2, -0.2 / high, 0.6, 0.09 / high))
        unit = "mean change of the judges' probes (1: as far as real images of the classes differ)"
        fig.colorbar(picture, cax=bar, orientation="horizontal", label=unit)
        said = ["Dots: the 95 % bootstrap interval over images includes 0. Grey: no value; grey numbers: fewer than 20 images."]
        if "attribute_more" in data:
            said[0] += (
                " Framed: the robust model moves it as is due, further than its standard twin (paired over images, Holm-corrected"
                " over attributes and twins)."
            )
        if len(set(data["group"].values.tolist())) > 1:
            said[0] += " Every architecture is read by judges of the others."
        said += [f"Without a value: {', '.join(map(str, data['attribute'].values[~known]))}."] if not known.all() else []
        note(fig, 0.66, said, left=-1.0 / fig.get_figwidth())
    return fig


def _fate(ax: Axes, data: xr.Dataset, f: int) -> AxesImage:
    """One panel: the attributes that are due to appear, to vanish or to stay."""
    order, fate = rows(data), str(data["fate"].values[f])
    v, low, high = (data[f"attribute_change{end}"].values[order, :, f] for end in ("", "_low", "_high"))
    few = np.zeros_like(v, bool) if "attribute_change_n" not in data else data["attribute_change_n"].values[order, :, f] < FEWEST
    shown = np.abs(data["attribute_change"].values)
    if "attribute_change_n" in data and (data["attribute_change_n"].values >= FEWEST).any():
        shown = shown[data["attribute_change_n"].values >= FEWEST]
    clear, top = (low > 0) | (high < 0), max(float(np.nanmax(shown)), 1e-6)
    picture = ax.imshow(np.where(few, np.nan, v).T, cmap=DIVERGING, vmin=-top, vmax=top, aspect="auto")
    for k, a in zip(*np.nonzero(np.isfinite(v)), strict=True):
        said, size = (f"{v[k, a]:.2f}".replace("-", "−"), 5.2) if clear[k, a] else ("·", 8.0)
        ink = "white" if clear[k, a] and abs(v[k, a]) > 0.65 * top else "black"
        ink = "0.5" if few[k, a] else ink
        ax.text(k, a, said, ha="center", va="center", fontsize=size, color=ink)
    if "attribute_more" in data:
        for r, a in zip(*np.nonzero(data["attribute_more"].values[order, :, f]), strict=True):
            ax.add_patch(_frame(int(r), int(a)))
    named = heads(data, order)
    ax.set_facecolor("0.9")
    ax.set_title({"appear": "due to appear", "vanish": "due to vanish", "stay": "should stay"}.get(fate, fate), pad=24)
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(order)), named, fontsize=min(5, *(small(head, room=7) for head in named)))
    names = data["attribute"].values if f == 0 else [""] * data.sizes["attribute"]
    ax.set_yticks(range(data.sizes["attribute"]), names, fontsize=6.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return picture


def _frame(c: int, r: int) -> Rectangle:
    return Rectangle((c - 0.46, r - 0.44), 0.92, 0.88, fill=False, edgecolor="black", linewidth=1.1)


def probes(result: Result) -> Figure:
    """Attribute × judge: how well a probe reads the attribute off a judge's features of held-out images (balanced accuracy).

    Struck through: left out, the judge does not count for this attribute.
    """
    data, order = result.data, panel(result.data)
    v, kept = data["attribute_read"].values[order].T, data["attribute_kept"].values[order].T.astype(bool)
    wide, high = max(2.4, 0.55 * len(order)), 0.17 * len(v)
    with look():
        fig = Drawing(figsize=(wide, high))
        ax = fig.add_axes((0, 0, 1, 1))
        picture = ax.imshow(np.where(kept, v, np.nan), cmap=NEUTRAL, vmin=0.5, vmax=1, aspect="auto")
        ax.set_facecolor("0.9")
        for a, k in np.ndindex(v.shape):
            ink = "0.5" if not kept[a, k] else "white" if v[a, k] < 0.78 else "black"
            ax.text(k, a, f"{v[a, k]:.2f}" if np.isfinite(v[a, k]) else "–", ha="center", va="center", color=ink, fontsize=5.8)
            if not kept[a, k] and np.isfinite(v[a, k]):
                ax.plot((k - 0.25, k + 0.25), (a, a), color="0.35", lw=0.7)
        named = readers_named(data)
        ax.xaxis.tick_top()
        ax.set_xticks(range(len(order)), named, fontsize=min(6, *(small(head, room=9) for head in named)))
        ax.set_yticks(range(len(v)), data["attribute"].values, fontsize=6.5)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        bar = fig.add_axes((0.1, -0.2 / high, 0.8, 0.09 / high))
        fig.colorbar(picture, cax=bar, orientation="horizontal", label="balanced accuracy, held-out images (0.5: chance)")
        struck = [] if kept.all() else ["Struck through: left out, not shown to be read by this judge."]
        none = ["–: no probe."] if np.isnan(v).any() else []
        note(fig, 0.66, [*struck, *none], left=-1.0 / wide)
    return fig


def _judges_of_images(result: Result) -> Figure:
    return judges(result, name="transferred_to")


@dataclass(frozen=True)
class Drawn:
    """A figure of a comparison: which group it belongs to, the variable that it draws, how, and what it shows."""

    name: str
    group: str
    of: str
    draw: Callable[[Result], Figure]
    caption: str


FIGURES = (
    Drawn("judges_perturbation", "perturbation", "classified_by", judges, "Which judge reads δ alone as the target, and checks."),
    Drawn("judges_image", "perturbation", "transferred_to", _judges_of_images, "Which judge reads x + δ as the target."),
    Drawn("sweeps", "perturbation", "eps", sweeps, "What judges read, against ε."),
    Drawn(
        "examples", "appearance", "example_x", evidence.examples, "What standard models and their robust twins make of images."
    ),
    Drawn("spectra", "appearance", "spectrum", curves.spectra, "Where in the spectrum the perturbations lie."),
    Drawn("written", "written", "attribute_change", written, "Which attributes perturbations write."),
    Drawn("probes", "written", "attribute_read", probes, "How well each judge's probes read the attributes, and which are used."),
    Drawn("pictures", "pictures", "synthesis", evidence.pictures, "What each model draws from noise toward each class."),
    Drawn("bands", "shape", "accuracy_by_band", bands, "Accuracy on low- and high-passed images."),
    Drawn("concepts", "concepts", "concept_score", concepts, "How classes depend on concepts at the last layer (TCAV)."),
    Drawn(
        "concepts_middle",
        "concepts",
        "concept_middle_score",
        partial(concepts, name="concept_middle_score"),
        "The same half-way through each model.",
    ),
    Drawn("needed", "discovery", "concepts_needed", needed, "How many concepts explain 90 % of each model's features."),
    Drawn("similarity", "discovery", "cka", similarity, "How far models' features agree."),
    Drawn("crops", "discovery", "concept_crop", evidence.crops, "Where the concepts found in robust models' features lie."),
)


def drawable(result: Result) -> list[Drawn]:
    """The figures beside the table for which a result has values."""
    drawn = [d for d in FIGURES if d.of in result.data.variables and bool(np.isfinite(result.data[d.of].values).any())]
    profile = Drawn("parallel", "", "", parallel, "All measures with a direction, from the control to the best model.")
    return [profile, *drawn] if _axes(result) else drawn
