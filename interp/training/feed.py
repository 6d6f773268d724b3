"""The batches of a run, each a function of (seed, step) alone: a resumed or a prefetched run sees what an uninterrupted one sees.

Pixels in memory are indexed on the device; where single images are decoded, cropped or augmented (RandAugment) worker
processes do it ahead of time. A second source fills a share of every batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from interp.data.decode import decode, picture
from interp.data.source import Encoded, Pixels
from interp.training.augment import on_pictures, reseed
from interp.training.recipe import Recipe
from interp.types import InputError, Labels

Source = Pixels | Encoded
Batch8 = tuple[Tensor, Labels]  # (n, 3, h, w) uint8, (n,)


class Feed(Dataset[Batch8]):
    """Batches by step. rank of world: which part of each batch this process gets; batch sizes count all processes.

    Raises InputError where labels, classes or sizes do not fit the recipe.
    """

    def __init__(self, recipe: Recipe, sources: Sequence[Source], *, rank: int = 0, world: int = 1) -> None:
        for source in sources:
            _check(recipe, source)
        if len(sources) != (2 if recipe.extra_share else 1):
            raise InputError(
                f"extra_share is {recipe.extra_share:g} and {len(sources)} data sets were given; "
                "a share above 0 needs a second one (--extra), and a second one a share"
            )
        if recipe.batch_size % world:
            raise InputError(f"batch_size {recipe.batch_size} does not divide over {world} processes")
        if (recipe.mixup or recipe.cutmix) and recipe.batch_size // world % 2:
            raise InputError(f"batch_size {recipe.batch_size} over {world} processes is odd; mixup and cutmix pair images")
        self.recipe, self.sources, self.rank, self.world = recipe, sources, rank, world
        extra = round(recipe.batch_size * recipe.extra_share)
        self.parts = [recipe.batch_size - extra, extra][: len(sources)]
        self.transform = on_pictures(recipe)
        self.total = max(1, int(recipe.epochs * self.per_epoch))
        if len(sources[0].labels) < self.parts[0]:
            raise InputError(
                f"{len(sources[0].labels)} images do not fill one batch of {self.parts[0]}; give more, or a smaller batch_size"
            )

    @property
    def per_epoch(self) -> float:
        """Steps that take as many images as the first source has."""
        return len(self.sources[0].labels) / self.recipe.batch_size

    @property
    def in_memory(self) -> bool:
        """Whether batches are cut from pixels as they are."""
        return self.transform is None and all(isinstance(s, Pixels) for s in self.sources)

    @property
    def digest(self) -> str:
        """What tells these images from others: all labels, and pixels or names of a thousand images of each source."""
        h = hashlib.sha256()
        for source in self.sources:
            h.update(source.labels.numpy().tobytes())
            every = max(1, len(source.labels) // 1000)
            if isinstance(source, Pixels):
                h.update(source.pixels[::every].contiguous().numpy().tobytes())
            else:
                h.update("\n".join(source.ids[::every]).encode())
        return h.hexdigest()

    def rows(self, step: int) -> list[Tensor]:
        """Which images of each source this process sees at a step; each source is reshuffled whenever it is used up."""
        found = [
            _window(len(source.labels), step * part, part, self.recipe.seed, number)
            for number, (source, part) in enumerate(zip(self.sources, self.parts, strict=True))
        ]
        every = torch.cat([torch.stack([torch.full_like(r, i), r], 1) for i, r in enumerate(found)])[self.rank :: self.world]
        return [every[every[:, 0] == i, 1] for i in range(len(found))]

    def __getitem__(self, step: int) -> Batch8:
        reseed(self.recipe.seed, step, self.rank, 1)
        images, labels = [], []
        for source, rows in zip(self.sources, self.rows(step), strict=True):
            images += [self._image(source, int(i)) for i in rows]
            labels.append(source.labels[rows])
        return torch.stack(images), torch.cat(labels)

    def __len__(self) -> int:
        return self.total

    def _image(self, source: Source, i: int) -> Tensor:
        if self.transform is None:
            return _pixels(source, i, self.recipe)
        if isinstance(source, Pixels):
            image = Image.fromarray(source.pixels[i].permute(1, 2, 0).contiguous().numpy())
        elif self.recipe.resized_crop:
            image = picture(source.sources[i], name=source.ids[i])
        else:
            image = Image.fromarray(_pixels(source, i, self.recipe).permute(1, 2, 0).contiguous().numpy())
        return torch.from_numpy(np.array(self.transform(image), dtype=np.uint8)).permute(2, 0, 1)

    def batches(self, first: int, device: torch.device, *, workers: int = 0) -> Iterator[Batch8]:
        """The batches from step `first` to the last, on the device."""
        if self.in_memory:
            yield from self._from_memory(first, device)
            return
        cuda = device.type == "cuda"
        loader = DataLoader(self, batch_size=None, sampler=range(first, self.total), num_workers=workers, pin_memory=cuda)
        for x, y in loader:
            yield x.to(device, non_blocking=cuda), y.to(device, non_blocking=cuda)

    def _from_memory(self, first: int, device: torch.device) -> Iterator[Batch8]:
        held = [(s.pixels.to(device), s.labels.to(device)) for s in self.sources if isinstance(s, Pixels)]
        for step in range(first, self.total):
            rows = [r.to(device) for r in self.rows(step)]
            yield (
                torch.cat([x[r] for (x, _), r in zip(held, rows, strict=True)]),
                torch.cat([y[r] for (_, y), r in zip(held, rows, strict=True)]),
            )


def _pixels(source: Source, i: int, recipe: Recipe) -> Tensor:
    if isinstance(source, Pixels):
        return source.pixels[i]
    return decode(source.sources[i], name=source.ids[i], preprocess=recipe.preprocess)


def _window(n: int, start: int, length: int, seed: int, source: int) -> Tensor:
    """Rows start … start + length of an endless series of shuffled passes over n images."""
    parts = []
    while length:
        turn, at = divmod(start, n)
        rows = _order(n, seed, source, turn)[at : at + length]
        parts.append(rows)
        start, length = start + len(rows), length - len(rows)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


@lru_cache(maxsize=4)
def _order(n: int, seed: int, source: int, turn: int) -> Tensor:
    key = int(np.random.SeedSequence((seed, source, turn)).generate_state(1)[0])
    return torch.randperm(n, generator=torch.Generator().manual_seed(key))


def _check(recipe: Recipe, source: Source) -> None:
    if int(source.labels.min()) < 0:
        raise InputError("some training images have no labels; give parquet: or folder:")
    if int(source.labels.max()) >= recipe.num_classes:
        raise InputError(f"labels go up to {int(source.labels.max())}, the recipe has num_classes = {recipe.num_classes}")
    if source.classes and len(source.classes) != recipe.num_classes:
        raise InputError(
            f"the images come with {len(source.classes)} classes ({', '.join(source.classes[:4])}…), "
            f"recipe {recipe.id} has num_classes = {recipe.num_classes}"
        )
    size = recipe.preprocess.size
    if isinstance(source, Pixels) and not recipe.resized_crop and tuple(source.pixels.shape[2:]) != (size, size):
        h, w = source.pixels.shape[2:]
        raise InputError(f"the images are {w}×{h} pixels, recipe {recipe.id} has size {size}; read them with its preprocess")
