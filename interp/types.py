"""The plain types every part of the house shares: how to prepare images, what a checkpoint is, a batch of images.

Images are float32 in [0, 1], shaped (n, 3, h, w); ε is in the same units everywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tomli_w
import torch
from torch import Tensor

from interp.errors import InputError as InputError

Images: TypeAlias = Tensor  # (n, 3, h, w) float32 in [0, 1]
Labels: TypeAlias = Tensor  # (n,) int64
Maps: TypeAlias = Tensor  # (n, h, w) float32, any sign
Masks: TypeAlias = Tensor  # (n, h, w) bool


@dataclass(frozen=True)
class Preprocess:
    """How pixels in [0, 1] become the network's input; it belongs to the checkpoint, not to the architecture.

    size: height and width the network is fed, in pixels. resize: shorter side before the centre crop; images that
    already have `size` bypass both. mean, std: per channel, in units of [0, 1], in the order of `channels`.
    """

    size: int = 224
    resize: int = 224
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: str = "rgb"

    def __post_init__(self) -> None:
        _expect("preprocess", self, size=int, resize=int, interpolation=str, channels=str)
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if not 1 <= self.size <= 8192 or not 1 <= self.resize <= 8192:
            raise InputError(f"size is {self.size} and resize {self.resize}; expected at least 1 pixel, at most 8192")
        if self.channels not in ("rgb", "bgr"):
            raise InputError(f"channel order is {self.channels!r}; expected 'rgb' or 'bgr'")
        if self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise InputError(f"interpolation is {self.interpolation!r}; expected 'nearest', 'bilinear' or 'bicubic'")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std} need three values each, std above zero")


@dataclass(frozen=True)
class Threat:
    """What a model was trained to withstand: norm ('linf', 'l2') and ε in units of [0, 1]."""

    norm: str
    eps: float

    def __post_init__(self) -> None:
        _expect("threat", self, norm=str, eps=(int, float))
        if self.norm not in ("linf", "l2") or not 0 < self.eps < math.inf:
            raise InputError(f"threat is {self.norm} {self.eps}; expected linf or l2 with ε above zero")


@dataclass(frozen=True)
class Number:
    """One measured or published accuracy: a share in [0, 1] with the count and the 95 % interval behind it."""

    name: str
    value: float
    n: int
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Card:
    """All that is known of one checkpoint; written beside the weights as TOML.

    `arch_args` carries what the shapes of the weights cannot show, such as strides. training says in words how the weights
    were made; empty means unknown, and then a missing threat says nothing about robustness. trained says what the run was, in
    plain TOML values: recipe (a file), command, hardware, minutes, epochs; empty where that is not known.
    """

    id: str
    arch: str
    num_classes: int
    preprocess: Preprocess
    arch_args: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    weights: str = ""
    sha256: str = ""
    origin: str = ""
    training: str = ""
    trained: dict[str, Any] = field(default_factory=dict)
    threat: Threat | None = None
    numbers: tuple[Number, ...] = ()
    licence: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        texts = ("id", "arch", "weights", "sha256", "origin", "training", "licence", "citation")
        _expect("card", self, **dict.fromkeys(texts, str), num_classes=int, arch_args=dict, trained=dict, labels=tuple)
        if not all(isinstance(label, str) for label in self.labels):
            raise InputError(f"card {self.id!r} has labels that are no words: {str(self.labels)[:60]}")
        if self.labels and len(self.labels) != self.num_classes:
            raise InputError(f"card {self.id!r} names {len(self.labels)} labels for {self.num_classes} classes")

    def label(self, index: int) -> str:
        """Name of a class, or its number where the card has no names."""
        return self.labels[index] if self.labels else str(index)

    def number(self, name: str) -> Number | None:
        """The accuracy of that name, or None where the card has none."""
        return next((n for n in self.numbers if n.name == name), None)

    def to_toml(self) -> str:
        """The card as TOML text, which `from_toml` reads back to an equal card."""
        return tomli_w.dumps(_drop_none(dataclasses.asdict(self)))

    @classmethod
    def from_toml(cls, text: str) -> Card:
        """Read a card; raises InputError where a key is missing or unknown."""
        try:
            raw = tomllib.loads(text)
            raw["preprocess"] = Preprocess(**raw["preprocess"])
            if not isinstance(raw.get("labels", []), list):
                raise InputError(f"card: labels is {str(raw['labels'])[:60]!r}; expected a list of words")
            raw["labels"] = tuple(raw.get("labels", ()))
            raw["threat"] = Threat(**raw["threat"]) if raw.get("threat") else None
            raw["numbers"] = tuple(Number(**n) for n in raw.get("numbers", ()))
            return cls(**raw)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # ValueError: no TOML, or words where numbers belong
            raise InputError(f"not a model card: {error}; compare with the cards in checkpoints/") from error

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card from a file."""
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text ({error.reason}); compare it with the cards in checkpoints/") from error


def _expect(what: str, thing: object, **kinds: Any) -> None:
    """Raise InputError where a field has another type than it should, as files written by hand or by others may."""
    for name, kind in kinds.items():
        value = getattr(thing, name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = kind.__name__ if isinstance(kind, type) else "number"
            raise InputError(f"{what}: {name} is {str(value)[:60]!r}; expected {wanted}")


def pixels(x: Tensor) -> np.ndarray:
    """Images (n, 3, h, w) as an array (n, h, w, 3), the order that pictures are drawn and stored in."""
    return x.detach().cpu().permute(0, 2, 3, 1).contiguous().numpy()


def fraction(text: str) -> float:
    """A number written as 8/255 or 0.03; raises InputError otherwise."""
    try:
        above, slash, below = text.partition("/")
        return float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{text!r} is not a number; write ε as 8/255 or 0.03") from error


def _drop_none(value: Any) -> Any:
    """TOML has no null: leave such keys out."""
    if isinstance(value, dict):
        return {k: _drop_none(v) for k, v in value.items() if v is not None}
    return [_drop_none(v) for v in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Batch:
    """Images with their labels: images (n, 3, h, w) float32 in [0, 1], labels (n,), masks (n, h, w) bool or None.

    ids name the images, classes the labels. Raises InputError where shapes or ranges do not fit.
    """

    images: Images
    labels: Labels
    ids: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    masks: Masks | None = None

    def __post_init__(self) -> None:
        x = self.images
        if x.ndim != 4 or x.shape[1] != 3 or len(x) == 0:
            raise InputError(f"images have shape {tuple(x.shape)}; expected (n, 3, height, width) with n ≥ 1")
        if x.dtype != torch.float32 or not bool(torch.isfinite(x).all()) or x.min() < 0 or x.max() > 1:
            raise InputError("images must be finite float32 in [0, 1]; divide 8-bit images by 255, do not normalise")
        if self.labels.shape != (len(x),):
            raise InputError(f"{len(x)} images came with labels of shape {tuple(self.labels.shape)}; expected ({len(x)},)")
        if not self.ids:
            object.__setattr__(self, "ids", tuple(str(i) for i in range(len(x))))
        if len(self.ids) != len(x):
            raise InputError(f"{len(x)} images came with {len(self.ids)} ids; expected one each")
        if self.masks is not None and self.masks.shape != (len(x), *x.shape[2:]):
            raise InputError(f"masks have shape {tuple(self.masks.shape)}; expected {(len(x), *x.shape[2:])}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | list[int]) -> Batch:
        rows = range(len(self))[index] if isinstance(index, slice) else index
        at = torch.as_tensor(list(rows), dtype=torch.int64)
        masks = None if self.masks is None else self.masks[at]
        return Batch(self.images[at], self.labels[at], tuple(self.ids[i] for i in rows), self.classes, masks)

    @property
    def digest(self) -> str:
        """sha256 of pixels, labels and masks: two batches with one digest give one result."""
        h = hashlib.sha256()
        for t in (self.images, self.labels, self.masks):
            if t is not None:
                h.update(str((t.dtype, tuple(t.shape))).encode())
                h.update(t.detach().cpu().contiguous().numpy().tobytes())
        return h.hexdigest()

    def some(self, n: int) -> Batch:
        """n images, all if there are fewer: the first, or evenly spaced ones where images are sorted by class (as in folders)."""
        if n >= len(self):
            return self
        if bool((self.labels.diff() >= 0).all()):
            return self[[i * len(self) // n for i in range(n)]]
        return self[:n]

    def chunks(self, size: int) -> Iterator[Batch]:
        """The batch in pieces of at most `size` images, in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]
