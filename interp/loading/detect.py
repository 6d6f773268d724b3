"""Which architectures a state dict can belong to: from names and shapes, never from a file's name.

Each signature (`signatures.py`, `signatures_small.py`) looks at the shapes of a state dict and returns the architectures it
recognises, with the evidence. Architectures that differ only in what shapes cannot show (activation, patch strides, …) come
as several candidates, told apart by `choice`; nobody picks one of them silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Shapes = Mapping[str, torch.Size]
HEADS = ("head.weight", "fc.weight", "linear.weight", "head.fc.weight", "classifier.weight", "logits.weight")


@dataclass(frozen=True)
class Candidate:
    """One architecture that a state dict may belong to.

    arch, arch_args, num_classes: what `build` takes. evidence: what in the shapes speaks for it, in words. choice: answers
    that shapes cannot show, by question ({'activation': 'gelu'}); empty where nothing is open. size: input size in pixels
    where the shapes or the architecture's definition show it.
    """

    arch: str
    num_classes: int
    arch_args: dict[str, Any] = field(default_factory=dict)
    evidence: tuple[str, ...] = ()
    choice: dict[str, str] = field(default_factory=dict)
    size: int | None = None


def detect(tensors: Mapping[str, Tensor]) -> list[Candidate]:
    """Every architecture that a signature recognises, the commonest first; whether all names fit is for the caller to check."""
    from interp.loading.signatures import SIGNATURES
    from interp.loading.signatures_small import SIGNATURES_SMALL

    shapes = {k: v.shape for k, v in tensors.items()}
    return [candidate for signature in (*SIGNATURES, *SIGNATURES_SMALL) for candidate in signature(shapes)]


def rows(shapes: Shapes, key: str) -> int:
    """Rows of a weight, 0 where it is missing."""
    return int(shapes[key][0]) if key in shapes else 0


def count(shapes: Shapes, prefix: str) -> int:
    """How many numbered children a name has: count(shapes, 'blocks') for blocks.0 … blocks.11 is 12."""
    start = len(prefix) + 1
    found = {k[start:].partition(".")[0] for k in shapes if k.startswith(prefix + ".")}
    return sum(part.isdigit() for part in found)


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
