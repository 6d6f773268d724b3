"""interp: what adversarially robust vision models see.

Large perturbations, accumulated input gradients, attention and semantic attributes of robust and standard models, side by
side. Names are imported when they are first used, so `import interp` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.attacks.inversion import Invert, invert
    from interp.attacks.pgd import PGD, Step, pgd_steps
    from interp.attacks.search import Found, attack
    from interp.attacks.sweep import Sweep, sweep
    from interp.attacks.synthesis import Synthesis, synthesise
    from interp.attention.attend import Attend
    from interp.attention.attend import attend as attention
    from interp.attention.capture import capture
    from interp.attention.depth import ByLayer, attention_by_layer
    from interp.attention.heads import Heads, attention_heads
    from interp.attention.queries import Queries, attention_queries
    from interp.attributes.compare import Compare, compare
    from interp.data.source import images, read_pixels
    from interp.errors import InputError
    from interp.faithfulness.faithfulness import Faithfulness, faithfulness
    from interp.gradients.accumulate import Accumulate, accumulate
    from interp.job import analyze, write_report
    from interp.models.answers import Said
    from interp.models.fetch import fetch
    from interp.models.inspect import inspect
    from interp.models.load import independent_judges, load, shipped
    from interp.models.model import Model
    from interp.result import Result
    from interp.result import open_result as open
    from interp.robustness.accuracy import Accuracy, accuracy
    from interp.robustness.shift import Shift, attention_shift
    from interp.training.loop import train
    from interp.training.recipe import Recipe
    from interp.types import Batch, Card, Preprocess

_WHERE = {
    "attacks.inversion": ("Invert", "invert"),
    "attacks.pgd": ("PGD", "Step", "pgd_steps"),
    "attacks.search": ("Found", "attack"),
    "attacks.sweep": ("Sweep", "sweep"),
    "attacks.synthesis": ("Synthesis", "synthesise"),
    "attention.attend": ("Attend",),
    "attention.capture": ("capture",),
    "attention.depth": ("ByLayer", "attention_by_layer"),
    "attention.heads": ("Heads", "attention_heads"),
    "attention.queries": ("Queries", "attention_queries"),
    "attributes.compare": ("Compare", "compare"),
    "data.source": ("images", "read_pixels"),
    "errors": ("InputError",),
    "faithfulness.faithfulness": ("Faithfulness",),
    "gradients.accumulate": ("Accumulate", "accumulate"),
    "job": ("analyze", "write_report"),
    "models.fetch": ("fetch",),
    "models.answers": ("Said",),
    "models.inspect": ("inspect",),
    "models.load": ("independent_judges", "load", "shipped"),
    "models.model": ("Model",),
    "result": ("Result",),
    "robustness.accuracy": ("Accuracy", "accuracy"),
    "robustness.shift": ("Shift", "attention_shift"),
    "training.loop": ("train",),
    "training.recipe": ("Recipe",),
    "types": ("Batch", "Card", "Preprocess"),
}
CALLABLE = ("attention", "faithfulness")  # packages that can be called as the analysis of their name
_NAMES = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "PGD",
    "Accumulate",
    "Accuracy",
    "Attend",
    "Batch",
    "ByLayer",
    "Card",
    "Compare",
    "Faithfulness",
    "Found",
    "Heads",
    "InputError",
    "Invert",
    "Model",
    "Preprocess",
    "Queries",
    "Recipe",
    "Result",
    "Said",
    "Shift",
    "Step",
    "Sweep",
    "Synthesis",
    "accumulate",
    "accuracy",
    "analyze",
    "attack",
    "attention",
    "attention_by_layer",
    "attention_heads",
    "attention_queries",
    "attention_shift",
    "capture",
    "compare",
    "faithfulness",
    "fetch",
    "images",
    "independent_judges",
    "inspect",
    "invert",
    "load",
    "open",
    "pgd_steps",
    "read_pixels",
    "shipped",
    "sweep",
    "synthesise",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "open":
        return importlib.import_module("interp.result").open_result
    if name in CALLABLE:
        return importlib.import_module(f"interp.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"interp.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
