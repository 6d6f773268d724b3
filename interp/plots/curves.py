"""Lines and intervals: accuracies, spectra of perturbations."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from interp.plots.style import Drawing, colours, labels, look, rows
from interp.result import Result

MARKS = {"clean": "o", "attacked": "s", "autoattack": "D"}


def accuracies(result: Result) -> Figure:
    """Clean and robust accuracy of every model with 95 % intervals; under AutoAttack too, where it was run."""
    data = result.data
    order = rows(data)[::-1]
    shown = [name for name in MARKS if name in data]
    gap = 0.28 if len(shown) == 2 else 0.22
    with look():
        fig = Drawing(figsize=(4.6, 0.6 + 0.34 * len(order)))
        ax = fig.add_axes((0, 0, 1, 1))
        for k, name in enumerate(shown):
            v = data[name].values[order]
            ends = np.abs(np.stack([data[f"{name}_low"].values[order], data[f"{name}_high"].values[order]]) - v)
            at = np.arange(len(order)) + gap * ((len(shown) - 1) / 2 - k)
            for y, m, x, end in zip(at, order, v, ends.T, strict=True):
                face = colours(data)[m] if k else "white"
                ax.errorbar(x, y, xerr=end[:, None], fmt=MARKS[name], color=colours(data)[m], markerfacecolor=face, capsize=2)
        ax.set_yticks(range(len(order)), [labels(data)[m] for m in order])
        ax.set_xlim(-0.02, 1.02)
        at_eps = f"at {result.params['attack']['eps'] * 255:g}/255"
        under = f"■ under PGD, ◆ under AutoAttack, both {at_eps}\n" if len(shown) == 3 else f"■ under PGD {at_eps}   "
        ax.set_xlabel(f"accuracy: ○ clean, {under}(n = {data['clean'].attrs['n']}, 95 % Wilson intervals)")
        ax.grid(axis="x", alpha=0.25)
    return fig


def spectra(result: Result) -> Figure:
    """Share of δ's energy per band of spatial frequency; robust solid, standard dashed, the noise control dotted."""
    data = result.data
    with look():
        fig = Drawing(figsize=(4.6, 2.9))
        ax = fig.add_axes((0, 0, 1, 1))
        for m in rows(data):
            style = "-" if bool(data["robust"].values[m]) else "--"
            ax.plot(data["frequency"], data["spectrum"].values[m], style, color=colours(data)[m], label=labels(data)[m], lw=1.5)
        ax.plot(data["frequency"], data["spectrum_noise"], ":", color="0.35", label="noise (control)", lw=1.5)
        ax.set_xlabel("spatial frequency |f| (cycles per pixel)")
        ax.set_ylabel("share of the energy of δ per band")
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False, fontsize=7)
        ax.grid(alpha=0.25)
    return fig
