"""Which architecture a state dict belongs to: from names and shapes, by comparing with candidates, never by file name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Shapes = Mapping[str, torch.Size]
HEADS = ("head.weight", "fc.weight", "linear.weight", "head.fc.weight", "classifier.weight")


def num_classes(tensors: Mapping[str, Tensor]) -> int | None:
    """Rows of the classifier's weight, or None where no name is known as one."""
    return next((int(tensors[k].shape[0]) for k in HEADS if k in tensors and tensors[k].ndim == 2), None)


def mismatch(found: Mapping[str, Tensor], expected: Shapes) -> str:
    """In words, how a state dict differs from an architecture; empty where every name and shape agrees."""
    missing = [k for k in expected if k not in found]
    extra = [k for k in found if k not in expected]
    shapes = [k for k in expected if k in found and found[k].shape != expected[k]]
    parts = []
    if missing:
        parts.append(f"{len(missing)} weights are missing ({', '.join(missing[:3])}…)")
    if extra:
        parts.append(f"{len(extra)} have no place ({', '.join(extra[:3])}…)")
    if shapes:
        k = shapes[0]
        parts.append(f"{len(shapes)} have another shape ({k}: {tuple(found[k].shape)} instead of {tuple(expected[k])})")
    return "; ".join(parts)
