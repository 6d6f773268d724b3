"""Random numbers that belong to an image: its pixels, a seed and their use decide them, not its place in a batch."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from interp.types import Images


def generators(x: Images, *, seed: int, use: str) -> list[torch.Generator]:
    """One generator for each image; draws for different uses are independent."""
    start = zlib.crc32(f"{use} {seed}".encode())
    return [torch.Generator().manual_seed(zlib.crc32(image.cpu().numpy().tobytes(), start)) for image in x.detach().contiguous()]


def uniform(x: Images, shape: tuple[int, ...], *, seed: int, use: str) -> Tensor:
    """Uniform numbers in [0, 1) of `shape` for each image (n, …), on the images' device."""
    return torch.stack([torch.rand(shape, generator=g) for g in generators(x, seed=seed, use=use)]).to(x)


def normals(x: Images, *, seed: int, use: str) -> Iterator[Tensor]:
    """Standard normal draws like x (n, 3, h, w), without end."""
    own = generators(x, seed=seed, use=use)
    while True:
        yield torch.stack([torch.randn(x.shape[1:], generator=g) for g in own]).to(x)
