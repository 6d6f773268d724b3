"""What happens to a batch of images before it is trained on: on the device, for the whole batch, except RandAugment.

Order as in timm's loader: RandAugment (timm, on PIL images, `timm.data.auto_augment`; Cubuk et al., arXiv 1909.13719), crop and
flip, Random Erasing (timm; Zhong et al., arXiv 1708.04896), MixUp or CutMix (timm; Zhang et al., arXiv 1710.09412; Yun et al.,
arXiv 1905.04899). Pixels stay in [0, 1], so that ε keeps its unit: erased pixels are N(½, ¼²) cut to the box.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from interp.training.recipe import Recipe
from interp.types import Images, InputError, Labels

Mix = Callable[[Images, Labels], tuple[Images, Tensor]]
Picture = Callable[[Image.Image], Image.Image]


def reseed(*key: int) -> None:
    """Set the global random generators (Python, NumPy, torch), which timm's augmentations and drop path draw from, by a key.

    With the step in the key a resumed run draws what it would have drawn.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (timm draws from it)
    torch.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Whatever is drawn or seeded inside, the global random generators go on outside as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def crop_and_flip(x: Images, *, pad: int, flip: bool, generator: torch.Generator) -> Images:
    """Zero-pad by `pad`, cut a window at a random place and mirror half of the images. Limit: pad=0, flip=False is x."""
    n, _, h, w = x.shape
    if pad:
        padded = F.pad(x, (pad, pad, pad, pad))
        dy, dx = (torch.randint(0, 2 * pad + 1, (n, 1), generator=generator).to(x.device) for _ in range(2))
        rows = (dy + torch.arange(h, device=x.device))[:, None, :, None]
        cols = (dx + torch.arange(w, device=x.device))[:, None, None, :]
        index = torch.arange(n, device=x.device)[:, None, None, None]
        x = padded[index, torch.arange(3, device=x.device)[None, :, None, None], rows, cols]
    if flip:
        mirrored = (torch.rand(n, generator=generator) < 0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x


def erase(x: Images, probability: float) -> Images:
    """Replace a random rectangle (2 % to a third of the area) of a share of the images by noise; draws from global generators."""
    from timm.data.random_erasing import RandomErasing

    drawn = RandomErasing(probability, mode="pixel", device=x.device)(torch.full_like(x, torch.nan))
    return torch.where(drawn.isnan(), x, (0.5 + 0.25 * drawn).clamp(0, 1))


def mixer(recipe: Recipe) -> Mix | None:
    """timm's MixUp and CutMix: (x, labels) → (mixed x, targets (n, classes)); None where the recipe asks for neither."""
    from timm.data.mixup import Mixup

    if not recipe.mixup and not recipe.cutmix:
        return None
    mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=recipe.num_classes)
    return lambda x, y: mix(x.clone(memory_format=torch.contiguous_format), y)


def smooth(labels: Labels, classes: int, smoothing: float) -> Tensor:
    """Labels, or with smoothing s the distributions (1 − s)·one-hot + s / classes (Szegedy et al., arXiv 1512.00567)."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes if smoothing else labels


def on_pictures(recipe: Recipe) -> Picture | None:
    """What is done to single PIL images: resized crop, then timm's RandAugment or (as in timm, only without it) colour jitter.

    None where the recipe asks for neither. Raises InputError where RandAugment's name is not timm's.
    """
    steps: list[Picture] = []
    size = recipe.preprocess.size
    if recipe.resized_crop:
        from timm.data.transforms import RandomResizedCropAndInterpolation

        steps.append(RandomResizedCropAndInterpolation(size, recipe.resized_crop, interpolation=recipe.preprocess.interpolation))
    if recipe.randaugment:
        from timm.data.auto_augment import rand_augment_transform

        if re.fullmatch(r"rand(-(m\d+|n\d+|mstd[\d.]+|mmax\d+|inc[01]|p[\d.]+|t\w+))*", recipe.randaugment) is None:
            raise InputError(f"randaugment is {recipe.randaugment!r}; expected timm's form, such as rand-m9-mstd0.5-inc1")
        how = {"translate_const": int(0.45 * size), "img_mean": (128, 128, 128)}
        transform = rand_augment_transform(recipe.randaugment, how)
        for op in transform.ops:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
        steps.append(transform)
    elif recipe.color_jitter:
        from torchvision.transforms import ColorJitter

        steps.append(ColorJitter(*[recipe.color_jitter] * 3))
    return _OneByOne(tuple(steps)) if steps else None


@dataclass(frozen=True)
class _OneByOne:
    """Steps one after another; a class and no function inside another, so that worker processes can be given it."""

    steps: tuple[Picture, ...]

    def __call__(self, picture: Image.Image) -> Image.Image:
        for step in self.steps:
            picture = step(picture)
        return picture


def _posterize(picture: Image.Image, bits: int, **_: object) -> Image.Image:
    """Posterize with at least one bit: timm's increasing variant asks for none at times, which newer Pillows refuse."""
    return picture if bits >= 8 else ImageOps.posterize(picture, max(1, bits))
