"""Which semantic attributes a class has, by tables beside this file: one TOML per data set, each attribute with its classes.

Binary class-level attributes as in "Animals with Attributes" (Lampert et al. 2009), for the classes of CIFAR-10 and Imagenette.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.types import InputError


def attributes(classes: tuple[str, ...]) -> tuple[tuple[str, ...], Tensor]:
    """Names of attributes, and which class has which: bool (attributes, classes), columns in the order of `classes`.

    The table is the one that knows all classes; among a part of its classes an attribute may be common to all or to none.
    Raises InputError, with the tables there are, where none knows them all.
    """
    table = next((t for t in tables().values() if classes and set(classes) <= set(t["classes"])), None)
    if table is None:
        known = "; ".join(f"{name} ({', '.join(t['classes'])})" for name, t in tables().items())
        raise InputError(f"no table of attributes has the classes {str(classes)[:120]}; expected classes of one of: {known}")
    owners: dict[str, list[str]] = table["attributes"]
    return tuple(owners), torch.tensor([[c in having for c in classes] for having in owners.values()])


@cache
def tables() -> dict[str, dict[str, Any]]:
    """The tables by data set: `classes`, and `attributes` with the classes that have each."""
    files = sorted(Path(__file__).parent.glob("*.toml"))
    return {f.stem: tomllib.loads(f.read_text(encoding="utf-8")) for f in files}
