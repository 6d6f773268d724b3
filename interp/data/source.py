"""`images`: one string → a Batch.

samples:cifar10 | samples:imagenet    bundled photographs (20 each, from foolbox's wheel)
folder:PATH                           one sub-folder per class, sorted by name
parquet:PATH                          columns img {bytes} and label; masks from trimap or box_xyxy where it has them
PATH                                  one image file (its label is unknown: −1)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from interp.data.decode import decode
from interp.data.labels import CIFAR10
from interp.data.masks import read_masks
from interp.data.parquet import read_parquet
from interp.types import Batch, InputError, Labels, Preprocess

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMS = "samples:cifar10, samples:imagenet, folder:PATH, parquet:PATH or the path of one image"
Rows = Iterable[tuple[str, Path | bytes, int]]


@dataclass(frozen=True)
class Pixels:
    """Images as they are stored: pixels (n, 3, h, w) uint8, labels (n,), ids, class names."""

    pixels: Tensor
    labels: Labels
    ids: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Encoded:
    """Images as files or encoded bytes, decoded one by one: sources, labels (n,), ids, class names."""

    sources: tuple[Path | bytes, ...]
    labels: Labels
    ids: tuple[str, ...]
    classes: tuple[str, ...]


def images(spec: str, *, n: int | None = None, preprocess: Preprocess | None = None) -> Batch:
    """Load up to n labelled images as float32 in [0, 1].

    preprocess: a model's (`model.card.preprocess`); larger images are resized and cropped as it says, smaller ones refused.
    Without it all images must have one size. Object masks come from parquet files that have a column of them, as `read_masks`
    says, fitted like their images; other sources have none. Raises InputError where the source is missing, empty, unreadable
    or mixed.
    """
    found = read_pixels(spec, n=n, preprocess=preprocess)
    kind, _, rest = spec.partition(":")
    masks = read_masks(Path(rest), n=n, preprocess=preprocess) if kind == "parquet" else None
    return Batch(found.pixels.float().div_(255), found.labels, found.ids, found.classes, masks)


def read_pixels(spec: str, *, n: int | None = None, preprocess: Preprocess | None = None) -> Pixels:
    """Load up to n labelled images as 8-bit pixels, a quarter of the memory; otherwise as `images`."""
    rows, classes = _rows(spec, n)
    return _collect(rows, classes, n, preprocess)


def read_encoded(spec: str) -> Encoded:
    """Find all images of a source without decoding any, for training on sets that do not fit into memory as pixels."""
    rows, classes = _rows(spec, None)
    ids, sources, labels = zip(*rows, strict=True) if (rows := list(rows)) else ((), (), ())
    if not ids:
        raise InputError("the source holds no images")
    return Encoded(tuple(sources), torch.tensor(labels), tuple(ids), classes)


def _rows(spec: str, n: int | None) -> tuple[Rows, tuple[str, ...]]:
    """The undecoded images of a source and its class names."""
    if n is not None and n < 1:
        raise InputError(f"{n} images were asked for; expected at least 1")
    kind, _, rest = spec.partition(":")
    if kind == "samples":
        rows, classes = _samples(rest)
    elif kind == "folder":
        rows, classes = _folder(Path(rest), n)
    elif kind == "parquet":
        if not Path(rest).is_file():
            raise InputError(f"there is no parquet file {rest}; expected {FORMS}")
        rows, _, classes = read_parquet(Path(rest), n=n)
    elif Path(spec).is_dir():
        raise InputError(f"{spec} is a folder; for class folders write folder:{spec}")
    elif Path(spec).suffix.lower() in SUFFIXES:
        if not Path(spec).is_file():
            raise InputError(f"there is no image {spec}; expected {FORMS}")
        rows, classes = [(Path(spec).name, Path(spec), -1)], ()
    else:
        raise InputError(f"{spec!r} is no image source; expected {FORMS}")
    return rows, classes


def _collect(rows: Rows, classes: tuple[str, ...], n: int | None, preprocess: Preprocess | None) -> Pixels:
    ids, pixels, labels = [], [], []
    for i, (name, source, label) in enumerate(rows):
        if i == n:
            break
        pixels.append(decode(source, name=name, preprocess=preprocess))
        ids.append(name)
        labels.append(label)
        if pixels[-1].shape != pixels[0].shape:
            a, b = (f"{t.shape[2]}×{t.shape[1]}" for t in (pixels[0], pixels[-1]))
            raise InputError(f"{ids[0]} is {a} pixels and {name} {b}; give all one size, or a model's preprocess to crop them")
    if not pixels:
        raise InputError("the source holds no images")
    return Pixels(torch.stack(pixels), torch.tensor(labels), tuple(ids), classes)


def _samples(name: str) -> tuple[Rows, tuple[str, ...]]:
    """The labelled photographs of foolbox's wheel, named DATASET_INDEX_LABEL."""
    import importlib.util

    classes = {"cifar10": CIFAR10, "imagenet": ()}
    if name not in classes:
        raise InputError(f"there are no samples {name!r}; expected samples:cifar10 or samples:imagenet")
    spec = importlib.util.find_spec("foolbox")  # its files only: importing it would cost seconds
    if spec is None or spec.origin is None:
        raise InputError("the bundled samples come with foolbox, which is not installed; run pip install foolbox")
    files = sorted((Path(spec.origin).parent / "data").glob(f"{name}_*"))
    return [(p.stem, p, int(p.stem.split("_")[2])) for p in files], classes[name]


def _folder(root: Path, n: int | None) -> tuple[Rows, tuple[str, ...]]:
    """Files of class folders; with n, as evenly over the classes as they allow."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; expected one with a sub-folder of images per class")
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not classes:
        raise InputError(f"{root} has no sub-folders; expected one per class (for one image give its path)")
    per_class = [sorted(p for p in (root / c).iterdir() if p.suffix.lower() in SUFFIXES) for c in classes]
    longest = max(map(len, per_class))
    turns = [(i, files[k]) for k in range(longest) for i, files in enumerate(per_class) if k < len(files)]
    rows = sorted(turns[:n], key=lambda row: row[0])
    return [(f"{classes[i]}/{p.name}", p, i) for i, p in rows], classes
