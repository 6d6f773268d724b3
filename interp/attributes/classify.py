"""What independent models read in a perturbation.

The quantification of arXiv 2209.07399: a perturbation δ shown as the image (δ + ε)/2ε, in which 0.5 is no change, is
classified by models that did not make it. Also the perturbed image itself (transfer), and what of a perturbation away from the
label, seen in its negative, is the label that was taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from interp.models.chunks import in_chunks
from interp.models.each import each
from interp.result import Measure
from interp.types import Images, Labels

MEASURES = (
    Measure(
        "classified",
        "δ read as the target",
        "share of images (δ + ε)/2ε that models of other architectures classify as the class δ was made toward",
        "arXiv 2209.07399, quantification of perturbations",
        "share",
        "higher",
    ),
    Measure(
        "transferred",
        "x + δ read as the target",
        "share of images x + δ that models of other architectures classify as the class δ was made toward",
        "targeted transfer, arXiv 1611.02770",
        "share",
        "higher",
    ),
    Measure(
        "became",
        "δ away read as what it became",
        "share of images (δ + ε)/2ε, δ made away from the label, that models of other architectures classify as the class that "
        "the generator reads in x + δ, where that is not the label",
        "arXiv 2209.07399, quantification of perturbations",
        "share",
        "higher",
    ),
    Measure(
        "removed",
        "−δ away read as the label",
        "share of images (ε − δ)/2ε, δ made away from the label, that models of other architectures classify as the label",
        "after arXiv 2209.07399, quantification of perturbations",
        "share",
        "higher",
    ),
    Measure(
        "fooled",
        "x + δ away misread",
        "share of images x + δ, δ made away from the label, that models of other architectures which read x rightly misread",
        "untargeted transfer, arXiv 1605.07277",
        "share",
        "higher",
    ),
)
CONTROLS = ("noise", "sign flipped", "another target", "blurred image")
"""Beside `classified`: noise of the same ε; −δ; δ read as a class it was not made toward; the image blurred and read as it."""


def as_image(delta: Tensor, eps: float) -> Images:
    """δ ∈ [−ε, ε] as an image (δ + ε)/2ε in [0, 1]; a zero δ is grey 0.5."""
    return ((delta + eps) / (2 * eps)).clamp(0, 1)


def choices(judges: Sequence[nn.Module], x: Images, *, chunk: int = 64) -> Labels:
    """The class (judges, n) that each judge finds likeliest in each image, on the processor."""

    @torch.no_grad()  # of this thread: judges read side by side
    def read(judge: nn.Module) -> Labels:
        device = next(judge.parameters()).device
        return torch.cat([part for _, part in in_chunks(lambda rows: judge(x[rows].to(device)).argmax(1).cpu(), len(x), chunk)])

    return torch.stack(each(read, judges))


def another(goals: Labels, labels: Labels, classes: int) -> Labels:
    """For each image a class that is neither its goal nor its label, the next in order; of two classes the label."""
    found = (goals + 1) % classes
    return torch.where((found == labels) & (classes > 2), (found + 1) % classes, found)


def among(hits: Mapping[str, Tensor], judges: Sequence[int]) -> dict[str, Tensor]:
    """Mean (n,) over some judges of hits (judges, n), those that are NaN left out; NaN where none is left."""
    out = {}
    for name, table in hits.items():
        some = table[list(judges)]
        known = some.isfinite()
        out[name] = torch.where(known.any(0), some.nan_to_num().sum(0) / known.sum(0).clamp_min(1), torch.nan)
    return out
