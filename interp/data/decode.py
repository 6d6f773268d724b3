"""One encoded image → float32 pixels in [0, 1] of the size asked for; never enlarges, never guesses about modes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from interp.types import InputError, Preprocess

EIGHT_BIT = ("RGB", "L", "P", "1", "CMYK", "YCbCr", "RGBA", "LA", "PA")
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def decode(source: Path | bytes, *, name: str, preprocess: Preprocess | None = None) -> Tensor:
    """Decode to (3, h, w) uint8; with `preprocess`, resize the shorter side and crop the centre to its size.

    An image that already has the size is left as it is; a smaller one is refused. Raises InputError where the bytes are no
    image, or the mode is not 8-bit colour or grey, or pixels are transparent.
    """
    image = picture(source, name=name)
    if preprocess is not None:
        image = fit(image, preprocess, name=name)
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def picture(source: Path | bytes, *, name: str) -> Image.Image:
    """Decode to a PIL image in RGB as it is stored; raises InputError as `decode`."""
    return _to_rgb(stored(source, name=name), name)


def stored(source: Path | bytes, *, name: str) -> Image.Image:
    """Decode to a PIL image in the mode it is stored in; raises InputError where the bytes are no image."""
    try:
        image: Image.Image = Image.open(io.BytesIO(source if isinstance(source, bytes) else source.read_bytes()))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: broken PNG
        why = "of no known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"{name} is not a readable image ({why}); expected PNG, JPEG, WebP or BMP") from error
    return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode not in EIGHT_BIT:
        raise InputError(f"{name} has mode {image.mode}; expected 8-bit colour or grey. Convert it to an 8-bit RGB PNG first")
    if image.has_transparency_data:
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        if isinstance(lowest, int | float) and lowest < 255:
            raise InputError(f"{name} has transparent pixels (mode {image.mode}); flatten it on a background of your choice")
    return image.convert("RGB")


def fit(image: Image.Image, preprocess: Preprocess, *, name: str, interpolation: str = "") -> Image.Image:
    """Resize the shorter side and crop the centre as `preprocess` says, by another interpolation where one is given.

    Masks go through here too, by "nearest", so that they stay aligned with their images. Raises InputError for smaller images.
    """
    size, (w, h) = preprocess.size, image.size
    if (w, h) == (size, size):
        return image
    if min(w, h) < size:
        raise InputError(
            f"{name} is {w}×{h} pixels, smaller than the {size}×{size} the model takes; "
            f"enlarging would invent detail: use larger images, or a model for this size"
        )
    scale = max(preprocess.resize, size) / min(w, h)
    resampling = RESAMPLING[interpolation or preprocess.interpolation]
    image = image.resize((max(size, round(w * scale)), max(size, round(h * scale))), resampling)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
