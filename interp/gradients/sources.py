"""Where gradients are taken: iterators that yield blocks of ∇_x L, k draws × n images in one pass through the model.

steps      G_T = Σ_t ∇L(f(x_t), y) over the iterates of PGD (arXiv 2209.07399 shows gradients accumulated over an attack)
noise      x + N(0, σ²): SmoothGrad (Smilkov et al., arXiv 1706.03825); sigma = 0, n = 1 is the plain gradient
path       γ(a) at the nodes of a quadrature rule, straight or through blurs (`paths`)
expected   x' + a·(x − x'), x' from references, a ~ U[0, 1]: expected gradients (Erion et al., arXiv 1906.10670)
augment    x flipped, moved, cropped and dimmed at random, the gradient taken back to the pixels of x (`augment`)
class      the images of one class, each a draw

All are with respect to pixels in [0, 1]. Random draws belong to an image: its index in the whole batch and the seed decide them,
not the size of a block or how a batch is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from interp.attacks.losses import LOSSES, Loss
from interp.attacks.pgd import PGD, pgd_steps, seeds_of
from interp.gradients.augment import augmentation
from interp.gradients.paths import Blur, nodes
from interp.models.chunks import free, out_of_memory
from interp.types import Images, Labels

CHUNK = 16


class Draw(NamedTuple):
    """One point at which to take the gradient of n images: x (n, 3, h, w), what the model is shown of it, its weight in the mean.

    direction: along a path, its derivative at x, with which the gradient is multiplied for the attribution.
    """

    x: Images
    weight: float = 1.0
    direction: Tensor | None = None
    view: Callable[[Images], Images] | None = None


class Block(NamedTuple):
    """Gradients (k, n, 3, h, w) of k draws, their weights and directions."""

    gradients: Tensor
    weights: Sequence[float] | None = None
    directions: Sequence[Tensor] | None = None


def blocks(model: nn.Module, draws: Iterable[Draw], y: Labels, *, loss: str | Loss = "ce", chunk: int = CHUNK) -> Iterator[Block]:
    """The gradients of L(f(x), y) at the draws, as many draws in a pass as give at most `chunk` images, at least one; half as
    many where memory runs out.

    y (n,); loss: a name of LOSSES or a function (logits, y) → (n,). Limit: one draw is `gradient`.
    """
    loss_of = LOSSES[loss] if isinstance(loss, str) else loss
    waiting, most = iter(draws), max(1, chunk // len(y))
    while group := list(islice(waiting, most)):
        try:
            block = _block(model, group, y, loss_of)
        except RuntimeError as error:
            if len(group) == 1 or not out_of_memory(error):
                raise
            block = None
        if block is None:  # here, where the error no longer holds its tensors
            free()
            waiting, most = chain(group, waiting), len(group) // 2
        else:
            yield block


def _block(model: nn.Module, group: Sequence[Draw], y: Labels, loss_of: Loss) -> Block:
    """The gradients at some draws, in one pass."""
    with torch.enable_grad():
        x = torch.stack([d.x for d in group]).detach().requires_grad_(True)
        shown = x.flatten(0, 1)
        if group[0].view is not None:
            shown = torch.cat([part if d.view is None else d.view(part) for d, part in zip(group, x, strict=True)])
        (g,) = torch.autograd.grad(loss_of(model(shown), y.repeat(len(group))).sum(), x)
    directions = [d.direction for d in group if d.direction is not None]
    return Block(g, [d.weight for d in group], directions or None)


def gradient(model: nn.Module, x: Images, y: Labels, *, loss: str | Loss = "ce") -> Tensor:
    """∇_x L(f(x), y) per sample (n, 3, h, w)."""
    return next(blocks(model, [Draw(x)], y, loss=loss)).gradients[0]


def over_steps(model: nn.Module, x: Images, y: Labels, pgd: PGD, *, first: int | Sequence[int] = 0) -> Iterator[Block]:
    """The gradient at each iterate of PGD, one draw a pass: `pgd.steps` blocks."""
    for step in pgd_steps(model, x, y, pgd, first=first):
        if step.gradient is not None:
            yield Block(step.gradient[None])


def noisy(
    x: Images, *, n: int, sigma: float, seed: int = 0, first: int = 0, noise: Iterable[Tensor] | None = None
) -> Iterator[Draw]:
    """n noisy copies of x; σ in units of [0, 1]. noise: standard normal draws (n, 3, h, w) in place of the seeded ones."""
    own = _normal(x, seeds_of(len(x), seed=seed, first=first)) if noise is None else iter(noise)
    for z in islice(own, n):
        yield Draw(x + sigma * z.to(x))


def along(x: Images, *, n: int, baseline: Images, rule: str = "gauss-legendre") -> Iterator[Draw]:
    """n points of the straight path from the baseline to x, weighted by a quadrature rule."""
    for a, weight in zip(*nodes(rule, n), strict=True):
        yield Draw(baseline + float(a) * (x - baseline), float(weight), x - baseline)


def through_blurs(x: Images, *, n: int, rule: str = "gauss-legendre") -> Iterator[Draw]:
    """n points of the path from x blurred to x, weighted by a quadrature rule."""
    path = Blur(x)
    for a, weight in zip(*nodes(rule, n), strict=True):
        point, slope = path.at(float(a))
        yield Draw(point, float(weight), slope)


def from_references(x: Images, *, references: Images, n: int, seed: int = 0, first: int = 0) -> Iterator[Draw]:
    """n points between x and references (m, 3, h, w) drawn with replacement, uniform on the way."""
    generators = _generators(seeds_of(len(x), seed=seed, first=first))
    for _ in range(n):
        at = torch.cat([torch.randint(len(references), (1,), generator=g) for g in generators])
        a = torch.cat([torch.rand(1, generator=g) for g in generators]).view(-1, 1, 1, 1).to(x)
        begin = references[at.to(references.device)].to(x)
        yield Draw(begin + a * (x - begin), direction=x - begin)


def augmented(x: Images, *, n: int, seed: int = 0, first: int = 0) -> Iterator[Draw]:
    """x, seen n times through random augmentations."""
    generators = _generators(seeds_of(len(x), seed=seed, first=first))
    for _ in range(n):
        yield Draw(x, view=augmentation(generators))


def of_class(x: Images) -> Iterator[Draw]:
    """The images of one class (n, 3, h, w), each a draw of one image; their label is (1,)."""
    return (Draw(image) for image in x.split(1))


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def _normal(like: Tensor, seeds: Sequence[int]) -> Iterator[Tensor]:
    """Standard normal draws (n, …), each row from its own generator."""
    generators = _generators(seeds)
    while True:
        yield torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators])
