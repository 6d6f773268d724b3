"""Candidate: one architecture that a state dict may belong to, and how signatures read shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Shapes = Mapping[str, torch.Size]


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


def rows(shapes: Shapes, key: str) -> int:
    """Rows of a weight, 0 where it is missing or a single number."""
    return int(shapes[key][0]) if shapes.get(key) else 0


def count(shapes: Shapes, prefix: str) -> int:
    """How many numbered children a name has: count(shapes, 'blocks') for blocks.0 … blocks.11 is 12."""
    start = len(prefix) + 1
    found = {k[start:].partition(".")[0] for k in shapes if k.startswith(prefix + ".")}
    return sum(part.isdigit() for part in found)
