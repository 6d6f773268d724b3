"""Where a synthesis begins: noise, a Gaussian fitted to the images of a class, other images."""

from __future__ import annotations

import torch

from interp.attacks.pgd import seeds_of
from interp.types import Batch, Images, InputError, Labels

STARTS = ("noise", "gaussian", "images")


def uniform(shape: tuple[int, ...], *, seed: int, first: int = 0) -> Images:
    """Uniform noise in [0, 1], one seed per image: another than that of its random start, which would follow the noise."""
    numbers = seeds_of(shape[0], seed=seed + 32_452_843, first=first)
    return torch.stack([torch.rand(shape[1:], generator=torch.Generator().manual_seed(number)) for number in numbers])


def class_gaussian(batch: Batch, targets: Labels, *, seed: int, first: int = 0) -> Images:
    """A draw from N(mean, covariance) of the batch's images of each target (n,), clipped to [0, 1].

    The seed distribution of Santurkar et al. (arXiv 1906.09453, section 3). The covariance is the empirical one of k images, of
    rank k − 1: μ + Σ_i z_i (x_i − μ)/√(k − 1) with standard normal z has it without its being formed. Raises InputError where a
    class has fewer than two images.
    """
    drawn = []
    for target, number in zip(targets.tolist(), seeds_of(len(targets), seed=seed, first=first), strict=True):
        own = batch.images[batch.labels == target]
        if len(own) < 2:
            enough = [c for c, k in enumerate(batch.labels[batch.labels >= 0].bincount().tolist()) if k > 1]
            name, *others = (batch.classes[c] if c < len(batch.classes) else str(c) for c in (target, *enough[:10]))
            raise InputError(
                f"the batch has {len(own)} images of class {name}; a Gaussian start needs at least two of each target: give more "
                f"images, or as targets (--target A,B) only classes that have two"
                + (f", such as {', '.join(others)}" if others else "; here none has")
            )
        mean = own.mean(0)
        z = torch.randn(len(own), generator=torch.Generator().manual_seed(number))
        drawn.append(mean + torch.einsum("k,k...->...", z, own - mean) / (len(own) - 1) ** 0.5)
    return torch.stack(drawn).clamp(0, 1)


def other_images(batch: Batch, targets: Labels) -> Images:
    """An image of another class than each target's, taking turns through the batch."""
    order = []
    for k, target in enumerate(targets.tolist()):
        others = (batch.labels != target).nonzero()[:, 0].tolist()
        if not others:
            raise InputError(
                f"all images of the batch are of class {target}; starting from other images needs some of another class"
            )
        order.append(others[k % len(others)])
    return batch.images[order]
