"""Packages that bear the name of their analysis and are called like it: `interp.attention(models, batch)`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CalledModule(ModuleType):
    """A package that can be called as one of its functions, whose signature and docstring it has; imported when first asked."""

    _called: tuple[str, str]  # module and name of the function

    @property
    def _function(self) -> Callable[..., Any]:
        module, name = self._called
        return getattr(importlib.import_module(module), name)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._function.__doc__

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @property
    def __call__(self) -> Callable[..., Any]:  # no method: notebooks show its signature too
        return self._function


def call_as(package: str, function: str) -> None:
    """Let a package be called as its function MODULE.NAME."""
    module, _, name = function.rpartition(".")
    sys.modules[package].__class__ = CalledModule
    sys.modules[package].__dict__["_called"] = (f"{package}.{module}", name)
