"""Which architectures a state dict can belong to: from names and shapes, never from a file's name.

Each signature (`signatures`, `signatures_small`) looks at the shapes of a state dict and returns the architectures it
recognises, with the evidence. Architectures that differ only in what shapes cannot show (activation, patch strides, …) come
as several candidates, told apart by `choice`; nobody picks one of them silently.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from interp.loading.candidate import Candidate, Shapes
from interp.loading.signatures import SIGNATURES
from interp.loading.signatures_small import SIGNATURES_SMALL

HEADS = ("head.weight", "fc.weight", "linear.weight", "head.fc.weight", "classifier.weight", "logits.weight")


def detect(tensors: Mapping[str, Tensor]) -> list[Candidate]:
    """Every architecture that a signature recognises, the commonest first; whether all names fit is for the caller to check."""
    shapes = {k: v.shape for k, v in tensors.items()}
    found: list[Candidate] = []
    for signature in (*SIGNATURES, *SIGNATURES_SMALL):
        try:
            found += signature(shapes)
        except (IndexError, KeyError, ValueError, ZeroDivisionError):
            continue  # a known name with a shape that its architecture never has: not this one
    return found


def num_classes(tensors: Mapping[str, Tensor]) -> int | None:
    """Rows of the classifier's weight, or None where no name is known as one."""
    return next((int(tensors[k].shape[0]) for k in HEADS if k in tensors and tensors[k].ndim == 2), None)


def mismatch(found: Mapping[str, Tensor], expected: Shapes) -> str:
    """In words, how a state dict differs from an architecture; empty where every name and shape agrees."""
    missing = [k for k in expected if k not in found]
    extra = [k for k in found if k not in expected]
    shapes = [
        f"{k} {tuple(found[k].shape)} instead of {tuple(expected[k])}"
        for k in expected
        if k in found and found[k].shape != expected[k]
    ]
    parts = (("missing", missing), ("without a place", extra), ("of another shape", shapes))
    return "; ".join(f"{what}: {_few(names)}" for what, names in parts if names)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
