"""Weights: the network's tensors found in a file, with an account of every wrapper removed and every name changed or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

Triple = tuple[float, float, float]
EMA_PREFIXES = ("ema_model.", "model_ema.", "ema.")


@dataclass(frozen=True)
class Weights:
    """A state dict on its way out of a file.

    content: what is still wrapped, None once tensors are found. tensors: by name. source: name now → name in the file.
    formats: origins recognised, outermost first. did: what was done, in words. dropped: name in the file → why it is not used.
    copies: which copy was taken where the file holds several, 'raw', 'ema' or ''. facts: plain values the file's training
    options and metadata hold. mean, std, arch_args: what the file itself says. channels: 'rgb', 'bgr', 'either' where readers
    of the format disagree, None where nothing speaks against RGB. notes: for the user. ema: what was asked for.
    """

    content: Any = field(default=None, repr=False)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    source: dict[str, str] = field(default_factory=dict, repr=False)
    formats: tuple[str, ...] = ()
    did: tuple[str, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict)
    copies: str = ""
    ema: bool | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    mean: Triple | None = None
    std: Triple | None = None
    channels: str | None = None
    arch_args: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def then(self, name: str, did: str = "", **changes: Any) -> Weights:
        """These weights after one more format was recognised and undone."""
        formats = self.formats if name in self.formats else (*self.formats, name)
        return replace(self, formats=formats, did=(*self.did, did) if did else self.did, **changes)

    def renamed(self, name: str, did: str, names: Mapping[str, str], drop: Mapping[str, str] | None = None) -> Weights:
        """Keep the tensors in `names` (now → then) under their new names; drop others only with a reason."""
        tensors = {new: self.tensors[old] for new, old in names.items()}
        source = {new: self.source[old] for new, old in names.items()}
        reasons = {self.source[old]: why for old, why in (drop or {}).items()}
        return self.then(name, did, tensors=tensors, source=source, dropped=self.dropped | reasons)
