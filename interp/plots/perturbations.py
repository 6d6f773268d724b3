"""Large perturbations: strips as ε grows, the perturbations themselves, grids of classes, curves; syntheses and inversions."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import ScaledTranslation

from interp.errors import InputError
from interp.plots.attacks import chosen, first_of, how, independence, judges, leaps, reading, short, size, way
from interp.plots.images import name_of
from interp.plots.style import Drawing, colours, counted, grid, labels, look, row_names, rows
from interp.result import Result

CORNER = 34  # letters of how pictures were made that fit over the first column


def under(ax: Axes, lines: tuple[str, ...]) -> None:
    """Small print under a picture."""
    ax.set_xlabel("\n".join(filter(None, lines)), labelpad=2, fontsize=6, linespacing=1.15)


def strip(result: Result, *, image: int = 0) -> Figure:
    """One image under every model: columns the original, then each ε away from its class, then toward another.

    Under each picture the model's own reading, and the mean confidence of the `judges` in the goal.
    """
    data, i = result.data, image
    order, eps = rows(data), data["eps"].values
    columns = [(d, e) for d in (0, chosen(data, i)) for e in range(len(eps))]
    with look():
        fig, axes = grid(len(order), 1 + len(columns), top=0.62, gap=0.32)
        for m, line in zip(order, axes, strict=True):
            line[0].imshow(data["original"].values[i])
            for ax, (d, e) in zip(line[1:], columns, strict=True):
                ax.imshow(data["picture"].values[m, d, e, i])
                under(ax, reading(data, m, d, e, i))
        for ax, (_, e) in zip(axes[0, 1:], columns, strict=True):
            ax.set_title(size(result, e).replace(" (", "\n("))
        _corner(result, fig, axes, i)
        for k, d in enumerate((0, columns[-1][0])):
            _over(fig, axes[0, 1 + k * len(eps) : 1 + (k + 1) * len(eps)], way(data, d, i))
    return fig


def deltas(result: Result, *, image: int = 0, direction: int = 0) -> Figure:
    """The perturbations of one image as pictures, in both signs: each model × each ε of δ = x′ − x, then of −δ = x − x′.

    Grey is no change. L∞: (±δ + s)/2s with s = ε, from ε = 1 on s = 1; L2 and L1: s the largest |δ| of all models at that ε. s
    stands over each column.
    """
    data, i, d = result.data, image, direction
    order, eps = rows(data), data["eps"].values
    delta = data["picture"].values[:, d, :, i] - data["original"].values[i]
    scales = [delta_scale(delta[:, e], result.params["attack"]["norm"], float(eps[e])) for e in range(len(eps))]
    with look():
        fig, axes = grid(len(order), 1 + 2 * len(eps), top=0.76, gap=0.1)
        for m, line in zip(order, axes, strict=True):
            line[0].imshow(data["original"].values[i])
            for e, scale in enumerate(scales):
                shown = delta_picture(delta[m, e], scale)
                line[1 + e].imshow(shown)
                line[1 + len(eps) + e].imshow(255 - shown)
        for c, ax in enumerate(axes[0, 1:]):
            e = c % len(eps)
            ax.set_title(f"{size(result, e).partition(' (')[0]}\nscale ±{scales[e]:.3g}")
        _corner(result, fig, axes, i)
        for k, text in enumerate(("δ = x′ − x", "−δ = x − x′")):
            _over(fig, axes[0, 1 + k * len(eps) : 1 + (k + 1) * len(eps)], f"{text}\n{way(data, d, i)}")
        unit = "ε, at most 1" if result.params["attack"]["norm"] == "linf" else "the largest |δ| of all models at that ε"
        note = f"Grey: no change. White and black: plus and minus the scale in all channels, {unit}; one scale per column."
        fig.text(axes[0, 0].get_position().x0, 0, note, va="top", fontsize=7)
    return fig


def delta_scale(delta: np.ndarray, norm: str, eps: float) -> float:
    """What becomes white (its negative: black): L∞ ε, at most 1; L2 and L1 the largest |δ| there is. 1 where all is zero."""
    return (min(eps, 1.0) if norm == "linf" else float(np.abs(delta).max())) or 1.0


def delta_picture(delta: np.ndarray, scale: float) -> np.ndarray:
    """(δ + s)/2s in 8 bits; 255 less it is the picture of −δ. Limit: δ = 0 gives 128, −δ then 127."""
    return (np.clip((delta / scale + 1) / 2, 0, 1) * 255).round().astype(np.uint8)


def classes(result: Result, *, image: int = 0, eps: int = -1) -> Figure:
    """One image at one ε toward every class, models × classes.

    Under each the model's own reading and the judges' confidence in the class; the mean of these stands under the original.
    """
    data, i, e = result.data, image, range(result.data.sizes["eps"])[eps]
    if data.sizes["direction"] < 3:
        raise InputError("this sweep moves toward one class; a grid of classes needs a sweep with the target 'each'")
    order, columns = rows(data), range(1, data.sizes["direction"])
    with look():
        fig, axes = grid(len(order), 1 + len(columns), top=0.55, gap=0.32)
        for m, line in zip(order, axes, strict=True):
            line[0].imshow(data["original"].values[i])
            others = float(data["others"].values[m, 1:, e, i].mean())
            under(line[0], () if np.isnan(others) else (f"{judges(data)}, mean", f"of the row {others:.0%}"))
            for ax, d in zip(line[1:], columns, strict=True):
                ax.imshow(data["picture"].values[m, d, e, i])
                under(ax, reading(data, m, d, e, i))
        for ax, d in zip(axes[0, 1:], columns, strict=True):
            ax.set_title(short(str(data["direction"].values[d]).removeprefix("toward ")))
        _corner(result, fig, axes, i)
        _over(fig, axes[0, 1:], f"toward each class, {size(result, e)}")
    return fig


def curves(result: Result) -> Figure:
    """Loss and probability of the goal along the attack, away and toward, a column per ε; robust solid, standard dashed.

    Means over images (toward every class: over images of their means over classes other than their own) with a 95 % bootstrap
    band over images.
    """
    data = result.data
    eps, steps = data["eps"].values, np.arange(data.sizes["step"])
    panels = [(side, name) for side in ("away", "toward") for name in ("loss", "probability")]
    with look():
        fig = Drawing(figsize=(1.0 + 1.9 * len(eps), 6.2))
        axes = fig.subplots(
            len(panels), len(eps), sharex=True, sharey="row", squeeze=False, gridspec_kw={"hspace": 0.14, "wspace": 0.1}
        )
        for line, (side, name) in zip(axes, panels, strict=True):
            means = per_image(data, name, toward=side == "toward")  # (model, eps, image, step)
            for e, ax in enumerate(line):
                for m in rows(data):
                    low, high = band(means[m, e])
                    ax.plot(steps, means[m, e].mean(0), color=colours(data)[m], ls=_line(data, m), lw=1.2, label=labels(data)[m])
                    ax.fill_between(steps, low, high, color=colours(data)[m], alpha=0.13, lw=0)
                ax.grid(alpha=0.25)
            _ranged(line, name, means)
            what = "label" if side == "away" else "target"
            line[0].set_ylabel(
                f"{side}: " + (f"{_loss(result)}\nof the {what}" if name == "loss" else f"probability\nof the {what}")
            )
        for e, ax in enumerate(axes[0]):
            ax.set_title(size(result, e))
        for ax in axes[-1]:
            ax.set_xlabel("step")
        fig.align_ylabels()
        each = "; toward: each image's mean over the other classes" if data.sizes["direction"] > 2 else ""
        _legend(fig, axes[-1, 0], _noted(f"{counted(data.sizes['image'])}, mean and 95 % bootstrap band{each}", result))
    return fig


def _ranged(line: np.ndarray, name: str, means: np.ndarray) -> None:
    """Probabilities on [0, 1]; losses linear up to 1, then logarithmic: standard models' reach tens, robust ones' units."""
    for ax in line:
        if name == "probability":
            ax.set_ylim(-0.03, 1.03)
        elif np.abs(means).max() > 10:
            ax.set_yscale("symlog", linthresh=1)
            ax.yaxis.set_major_locator(FixedLocator(ticks(*ax.get_ylim())))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def ticks(low: float, high: float) -> list[float]:
    """At least three ticks of an axis that is logarithmic beyond ±1: powers of ten, or more where these are fewer than three."""
    decades = [10.0**k for k in range(8)]
    for parts in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        sizes = [part * decade for decade in decades for part in parts]
        found = [v for v in (*(-s for s in reversed(sizes)), 0.0, *sizes) if low <= v <= high]
        if len(found) >= 3:
            break
    return found


def success(result: Result) -> Figure:
    """Share of images that are lost to their class, and that reach the target, against ε; robust solid, standard dashed.

    95 % Wilson intervals; toward every class the mean share of the other classes reached, with bootstrap intervals over images.
    """
    data = result.data
    eps = data["eps"].values
    each = data.sizes["direction"] > 2
    with look():
        fig = Drawing(figsize=(6.4, 2.6))
        axes = fig.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
        for ax, side in zip(axes, ("away", "toward"), strict=True):
            v, low, high = shares(data, toward=side == "toward")
            for k, m in enumerate(rows(data)):
                apart = ScaledTranslation((k - (data.sizes["model"] - 1) / 2) * 2.2 / 72, 0, fig.dpi_scale_trans)
                ends = np.stack([v[m] - low[m], high[m] - v[m]]).clip(0)
                colour = colours(data)[m]
                face = colour if data["robust"].values[m] else "white"
                ax.errorbar(
                    np.arange(len(eps)), v[m], yerr=ends, color=colour, ls=_line(data, m), fmt="o", markerfacecolor=face,
                    markersize=3.5, lw=1.2, elinewidth=0.8, label=labels(data)[m], transform=ax.transData + apart,
                )  # fmt: skip
            ax.set_xticks(
                np.arange(len(eps)), [size(result, e).removeprefix("ε = ").replace(" (", "\n(") for e in range(len(eps))]
            )
            ax.set_xlim(-0.4, len(eps) - 0.6)
            ax.set_ylim(-0.03, 1.03)
            ax.grid(axis="y", alpha=0.25)
            ax.set_xlabel("ε")
            goal = "each other class" if each else "the target"
            ax.set_title("away: no longer read as the label" if side == "away" else f"toward: read as {goal}")
        axes[0].set_ylabel("share of images")
        kind = "95 % Wilson intervals"
        if each:
            kind += "; toward: 95 % bootstrap intervals over images"
        elif "success_n" in data and int(data["success_n"].values[:, 1].min()) < data.sizes["image"]:
            kind += f"; toward: {_span(data['success_n'].values[:, 1])} not of the target, nor read as it at the start"
        _legend(fig, axes[0], _noted(f"{counted(data.sizes['image'])}, {kind}", result), drop=0.6)
    return fig


def per_image(data: xr.Dataset, name: str, *, toward: bool) -> np.ndarray:
    """A variable (model, direction, ε, image, …) of one side: away, or toward as the mean over goals other than the own class.

    reached, toward each class: over the goals that count as success, NaN for an image that has none.
    """
    v = data[name].values.astype(np.float64)
    if not toward:
        return v[:, 0]
    other = data["goal"].values[:, 1:] != data["goal"].values[:, :1]
    if data.sizes["direction"] == 2:
        other = np.ones_like(other)
    elif name == "reached" and "counted" in data:
        other = data["counted"].values[:, 1:]
    n = other.sum(1, keepdims=True)
    weight = np.where(n > 0, other / np.maximum(n, 1), np.nan)  # (model, direction, image)
    return np.einsum("mdei...,mdi->mei...", v[:, 1:], weight)


def band(values: np.ndarray, *, draws: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % percentile bootstrap interval of the mean over images, values (image, …). Limit: of one image, itself."""
    n = len(values)
    picked = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws) / n
    low, high = np.quantile(np.tensordot(picked, values, 1), [0.025, 0.975], axis=0)
    return low, high


def _span(values: np.ndarray) -> str:
    """'the 17', 'the 15 to 17'."""
    low, high = int(values.min()), int(values.max())
    return f"the {low}" if low == high else f"the {low} to {high}"


def shares(data: xr.Dataset, *, toward: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Success (model, ε) with the ends of its interval, of the images that count."""
    if not toward or data.sizes["direction"] == 2:
        v, low, high = (data[f"success{end}"].values[:, int(toward)] for end in ("", "_low", "_high"))
        return v, low, high
    reached = per_image(data, "reached", toward=True)
    found = np.full((3, *reached.shape[:2]), np.nan)
    for m, values in enumerate(np.moveaxis(reached, -1, 1)):  # (image, ε)
        if len(kept := values[~np.isnan(values).any(1)]):
            found[:, m] = kept.mean(0), *band(kept)
    return found[0], found[1], found[2]


def synthesis(result: Result, *, seed: int = 0) -> Figure:
    """Pictures drawn from the starts in the first row, models × target classes.

    Under each the model's reading, its own confidence in the target and that of the `judges`.
    """
    data = result.data.isel(seed=seed)
    order = rows(data)
    with look():
        fig, axes = grid(1 + len(order), data.sizes["target"], top=0.3, gap=0.32)
        for ax, start in zip(axes[0], data["start"].values, strict=True):
            ax.imshow(start)
        for m, line in zip(order, axes[1:], strict=True):
            for c, ax in enumerate(line):
                ax.imshow(data["picture"].values[m, c])
                own, others = data["own"].values[m, c], data["others"].values[m, c]
                seen = short(name_of(data, int(data["predicted"].values[m, c])))
                under(ax, (seen, f"own {own:.0%}" + ("" if np.isnan(others) else f", {judges(data).split()[0]} {others:.0%}")))
        for ax, name in zip(axes[0], data["target"].values, strict=True):
            ax.set_title(short(str(name)))
        row_names(axes, ["start", *(labels(data)[m] for m in order)])
        lines = [how(result), independence(data), leaps(result)]
        fig.text(0, 0, "\n".join(filter(None, lines)), va="top", fontsize=7)
    return fig


def inversion(result: Result, *, most: int = 6) -> Figure:
    """Images × models: image, start, then each model's picture with the same features; under it the distance that remains.

    Of more than `most` images the first, and the figure says so.
    """
    data, whole = result.data.isel(image=slice(0, most)), result.data.sizes["image"]
    order = rows(data)
    with look():
        fig, axes = grid(data.sizes["image"], 2 + len(order), left=0.75, top=0.42, gap=0.2)
        for i, line in enumerate(axes):
            line[0].imshow(data["original"].values[i])
            line[1].imshow(data["start"].values[i])
            for ax, m in zip(line[2:], order, strict=True):
                ax.imshow(data["picture"].values[m, i])
                under(ax, (f"{data['begun'].values[m, i]:.2f} → {data['distance'].values[m, i]:.2g}",))
        for ax, text in zip(axes[0], ("image", "start", *(labels(data)[m].replace(" ", "\n") for m in order)), strict=True):
            ax.set_title(text)
        row_names(axes, [short(name_of(data, int(v))) for v in data["truth"].values])
        layer = result.params["layer"] or "the input of the last layer"
        text = f"Below: ‖φ(x′) − φ(x)‖ / ‖φ(x)‖ at the start → at the end; φ: {layer}{first_of(whole, most)}"
        fig.text(axes[0, 0].get_position().x0, 0, _noted(text, result), va="top", fontsize=7)
    return fig


def _line(data: xr.Dataset, m: int) -> str:
    return "-" if bool(data["robust"].values[m]) else "--"


def _loss(result: Result) -> str:
    name = result.params["attack"]["loss"]
    return {"ce": "cross-entropy", "logit": "−logit"}.get(name, f"{name} loss")


def _noted(note: str, result: Result) -> str:
    """A note, and how the pictures were made: on a line of its own where that is long."""
    made = how(result)
    return f"{note}{'; ' if len(made) <= CORNER else chr(10)}{made}"


def _corner(result: Result, fig: Figure, axes: np.ndarray, image: int) -> None:
    """How it was made (under the pictures where that is long), the names of the models, and of what is in the first column."""
    data, made = result.data, how(result)
    fig.text(0, 0.998 if len(made) <= CORNER else -0.15 / fig.get_size_inches()[1], made, va="top", fontsize=7)
    axes[0, 0].set_title(f"{short(name_of(data, int(data['truth'].values[image])))}\n(original)")
    row_names(axes, [labels(data)[m] for m in rows(data)])


def _over(fig: Figure, axes: np.ndarray, text: str) -> None:
    """A heading over neighbouring panels, smaller where they are narrow."""
    left, right = axes[0].get_position().x0, axes[-1].get_position().x1
    said = fig.text((left + right) / 2, 0.998, text, ha="center", va="top", weight="bold")
    room = (right - left) * fig.get_size_inches()[0] * fig.dpi
    said.set_fontsize(8 * min(1.0, room / said.get_window_extent().width))


def _legend(fig: Figure, ax: Axes, note: str, *, drop: float = 0.48) -> None:
    """One legend `drop` inches under all panels, of which `ax` is one of the lowest, and a line on what is drawn."""
    handles, names = ax.get_legend_handles_labels()
    inch = 1 / fig.get_size_inches()[1]
    top = ax.get_position().y0 - drop * inch
    columns = min(3, len(names))
    fig.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, top), ncols=columns, frameon=False, fontsize=7)
    fig.text(0.5, top - (0.12 + 0.16 * -(-len(names) // columns)) * inch, note, ha="center", va="top", fontsize=6.5)
