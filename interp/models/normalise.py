"""Normalisations of the field by name, and what a caller or a training file says about one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.types import InputError

Triple = tuple[float, float, float]
Normaliser = tuple[Triple, Triple]

NORMALISERS: dict[str, Normaliser] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar10_std2": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # MadryLab's, and of many CIFAR codes
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def normaliser(text: str) -> Normaliser:
    """A normalisation by name, or as six numbers 'm,m,m/s,s,s'; raises InputError otherwise."""
    if text in NORMALISERS:
        return NORMALISERS[text]
    mean, slash, std = text.partition("/")
    try:
        values = [tuple(float(v) for v in part.split(",")) for part in (mean, std)]
    except ValueError:
        values = []
    if not slash or [len(v) for v in values] != [3, 3] or min(values[1]) <= 0:
        raise InputError(
            f"normalise is {text!r}; expected one of {', '.join(NORMALISERS)}, or mean and std in units of [0, 1] "
            "such as 0.5,0.5,0.5/0.25,0.25,0.25"
        )
    return values[0], values[1]  # type: ignore[return-value]


def name_of(found: Normaliser) -> str:
    """The name of a normalisation, or its numbers in the form that `normaliser` reads."""
    for name, known in NORMALISERS.items():
        if all(abs(a - b) < 5e-4 for x, y in zip(found, known, strict=True) for a, b in zip(x, y, strict=True)):
            return name
    return "/".join(",".join(f"{v:g}" for v in part) for part in found)


def from_options(facts: Mapping[str, Any]) -> Normaliser | None:
    """What timm's and vits-robustness-torch's training options say, None where they leave it open.

    vits-robustness-torch normalises neither in the loader with no_normalize nor, without normalize_model, in the model
    (src/setup_task.py); explicit mean and std are timm's --mean and --std.
    """
    mean, std = facts.get("mean"), facts.get("std")
    inside, outside = facts.get("normalize_model"), facts.get("no_normalize")
    if outside is True and inside is not True:
        return NORMALISERS["none"]
    if _three(mean) and _three(std):
        return tuple(float(v) for v in mean), tuple(float(v) for v in std)  # type: ignore[return-value, union-attr]
    return None


def _three(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value)
