"""Figures, each a function Result → Figure; they need no torch, so saved results redraw anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp.result import Result


def figure(result: Result) -> Figure:
    """The default figure of a result's kind."""
    from interp.errors import InputError
    from interp.plots import ablation, attention, curves, faithfulness, gradients, layers, matrices, perturbations

    default = {
        "accuracy": curves.accuracies,
        "sweep": perturbations.classes if result.kind == "sweep" and result.data.sizes["direction"] > 2 else perturbations.strip,
        "synthesis": perturbations.synthesis,
        "inversion": perturbations.inversion,
        "gradients": gradients.gradients,
        "attention": attention.attention,
        "attention_heads": attention.heads,
        "attention_layers": layers.layers,
        "attention_shift": layers.shift,
        "faithfulness": faithfulness.faithfulness,
        "compare": matrices.measures,
        "ablation": ablation.runs,
    }
    if result.kind not in default:
        raise InputError(f"results of kind {result.kind!r} have no figure; kinds with one: {', '.join(default)}")
    return default[result.kind](result)
