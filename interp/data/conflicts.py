"""Images whose shape says one class and whose texture another, and the 16 classes they are usually labelled with.

Geirhos et al., "ImageNet-trained CNNs are biased towards texture" (arXiv 1811.12231). Their 1,280 stimuli lie in class folders
under names such as airplane1-bicycle2.png: shape and texture, each with the number of the picture it came from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from interp.data.decode import decode
from interp.types import Batch, InputError, Labels, Preprocess

CLASSES16 = (
    "airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat",
    "chair", "clock", "dog", "elephant", "keyboard", "knife", "oven", "truck",
)  # fmt: skip

_NO_DOGS = {192, 204, 227, 242, 251, 258, 260, 264}  # breeds that the 16 classes leave out
_BIRDS = {8, *range(10, 25), *range(80, 101), *range(127, 146)} - {17, 21, 84, 85, 86, 97, 134}
IMAGENET16: dict[str, tuple[int, ...]] = {
    "airplane": (404,),
    "bear": (294, 295, 296, 297),
    "bicycle": (444, 671),
    "bird": tuple(sorted(_BIRDS)),
    "boat": (472, 554, 625, 814, 914),
    "bottle": (440, 720, 737, 898, 899, 901, 907),
    "car": (436, 511, 817),
    "cat": (281, 282, 283, 284, 285, 286),
    "chair": (423, 559, 765, 857),
    "clock": (409, 530, 892),
    "dog": tuple(i for i in range(152, 269) if i not in _NO_DOGS),
    "elephant": (385, 386),
    "keyboard": (508, 878),
    "knife": (499,),
    "oven": (766,),
    "truck": (555, 569, 656, 675, 717, 734, 864, 867),
}
"""Indices of ImageNet's 1000 classes under each of the 16, as the authors publish them (207 in all; Geirhos et al. 2018,
arXiv 1808.08750)."""

NAME = re.compile(r"(?P<shape>.*?\D)\d+-(?P<texture>.*?\D)\d+\.(png|jpe?g)", re.IGNORECASE)


@dataclass(frozen=True)
class Conflict:
    """Images with the classes of their shapes (`batch.labels`, `batch.classes`) and of their textures.

    textures (n,) index into texture_classes. Shape bias is the share of shape decisions among decisions for either
    (arXiv 1811.12231, Fig. 4). Raises InputError where the numbers do not fit.
    """

    batch: Batch
    textures: Labels
    texture_classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.textures.shape != (len(self.batch),):
            raise InputError(
                f"{len(self.batch)} images came with textures of shape {tuple(self.textures.shape)}; expected one class each"
            )


def sixteen(probabilities: Tensor) -> Tensor:
    """Probabilities (n, 1000) of ImageNet's classes as scores (n, 16) of `CLASSES16`: the mean over the classes under each.

    The mean is what the authors recommend (arXiv 1808.08750, appendix): sums would favour dogs, of which there are 109. Scores
    need not sum to 1; a uniform distribution scores 1/1000 everywhere. Raises InputError for another number of classes.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != 1000:
        raise InputError(f"probabilities have shape {tuple(probabilities.shape)}; the 16 classes need (n, 1000), ImageNet's own")
    return torch.stack([probabilities[:, list(IMAGENET16[c])].mean(1) for c in CLASSES16], 1)


def cue_conflict_folder(path: Path | str, *, preprocess: Preprocess | None = None, n: int | None = None) -> Conflict:
    """Read files named SHAPEn-TEXTUREm.png in folders of their shape; with n, as evenly over the shapes as they allow.

    Files whose shape and texture are one class are no conflict and left out, as the paper does. Classes are `CLASSES16` where
    the names are among those, else the names found, sorted. Images are fitted as `interp.images` does.
    Raises InputError where the folder is missing or empty, a name says no two classes, or a file lies in another's folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; expected one with a folder of SHAPEn-TEXTUREm.png files per shape")
    per_shape: dict[str, list[tuple[str, Path]]] = {}
    for file in sorted(root.glob("*/*")):
        if file.suffix.lower() in (".png", ".jpg", ".jpeg"):
            shape, texture = _cues(file)
            if shape != texture:
                per_shape.setdefault(shape, []).append((texture, file))
    turns = [
        (s, *files[k])
        for k in range(max(map(len, per_shape.values()), default=0))
        for s, files in per_shape.items()
        if k < len(files)
    ]
    rows = sorted(turns[:n])
    if not rows:
        raise InputError(f"{root} holds no cue conflicts; expected folders of files such as airplane/airplane1-bicycle2.png")
    names = {name for shape, files in per_shape.items() for name in (shape, *(t for t, _ in files))}
    classes = CLASSES16 if names <= set(CLASSES16) else tuple(sorted(names))
    ids = tuple(f"{shape}/{file.name}" for shape, _, file in rows)
    pixels = [decode(file, name=name, preprocess=preprocess) for name, (_, _, file) in zip(ids, rows, strict=True)]
    if len({p.shape for p in pixels}) > 1:
        raise InputError(f"images of {root} have several sizes; give a model's preprocess to crop them")
    labels, textures = (torch.tensor([classes.index(row[k]) for row in rows]) for k in (0, 1))
    return Conflict(Batch(torch.stack(pixels).float().div_(255), labels, ids, classes), textures, classes)


def _cues(file: Path) -> tuple[str, str]:
    """Shape and texture that a file's name says."""
    found = NAME.fullmatch(file.name)
    if found is None:
        raise InputError(f"{file} names no two classes; expected SHAPEn-TEXTUREm.png, such as airplane1-bicycle2.png")
    if found["shape"] != file.parent.name:
        raise InputError(f"{file} says {found['shape']} and lies in the folder {file.parent.name}; expected one of its shape")
    return found["shape"], found["texture"]
