"""Where the object is: masks of images in parquet files, fitted to a model's size exactly as the images are.

trimap     an encoded 8-bit image: 1 object, 2 background, 3 border, as in Oxford-IIIT Pet (Parkhi et al. 2012), which calls
           the border "not classified". It counts as object: mask = trimap ≠ 2.
box_xyxy   x0, y0, x1, y1 in whole pixels of the stored image, the last ones included, as in Tiny-ImageNet's annotations;
           the mask is the filled box.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from interp.data.decode import fit, stored
from interp.data.parquet import mask_cells
from interp.types import InputError, Masks, Preprocess


def read_masks(path: Path, *, n: int | None = None, preprocess: Preprocess | None = None) -> Masks | None:
    """Object masks (n, h, w) bool of the first n images of a parquet file, or None where it has no column of them.

    With `preprocess`, masks are resized (nearest) and cropped as it says for images; one may then be empty, which is kept.
    The file's images must be readable. Raises InputError where a mask is unreadable, has another shape than its image or
    other values than are known, with the row.
    """
    found = mask_cells(path, n=n)
    if found is None:
        return None
    column, rows = found
    draw = {"trimap": _trimap, "box_xyxy": _box}[column]
    masks = []
    for i, (encoded, cell) in enumerate(rows):
        name = f"{column} of row {i}"
        mask = Image.fromarray(draw(cell, Image.open(io.BytesIO(encoded)).size, name).astype(np.uint8))
        masks.append(np.array(mask if preprocess is None else fit(mask, preprocess, name=name, interpolation="nearest")))
    return torch.from_numpy(np.stack(masks)).bool()


def _trimap(cell: Any, size: tuple[int, int], name: str) -> np.ndarray:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise InputError(f"{name} is {cell!r:.40}; expected the bytes of a PNG")
    image = stored(data, name=name)
    if image.size != size or image.mode not in ("L", "P"):
        found, expected = (f"{w}×{h}" for w, h in (image.size, size))
        raise InputError(f"{name} is {found} of mode {image.mode}; expected {expected} like its image, of mode L or P")
    values = np.asarray(image)
    if other := set(np.unique(values).tolist()) - {1, 2, 3}:
        raise InputError(f"{name} holds {sorted(other)}; expected 1 for the object, 2 for the background, 3 for the border")
    return values != 2


def _box(cell: Any, size: tuple[int, int], name: str) -> np.ndarray:
    w, h = size
    try:
        x0, y0, x1, y1 = map(int, cell)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is {cell!r:.40}; expected four numbers x0, y0, x1, y1") from error
    if not (0 <= x0 <= x1 < w and 0 <= y0 <= y1 < h):
        raise InputError(f"{name} is {cell!r:.40}; expected x0 ≤ x1 and y0 ≤ y1 inside its {w}×{h} pixels, counted from 0")
    mask = np.zeros((h, w), bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask
