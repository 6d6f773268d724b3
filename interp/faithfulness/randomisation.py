"""Whether a map depends on what the model has learnt: it is drawn again with random parameters and compared.

The model parameter randomisation test (Adebayo et al., arXiv 1810.03292): layers are initialised anew from the top down, one
after another and staying so ('cascading'), or one at a time ('independent'). A map that stays the same does not show the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.models.randomise import randomised
from interp.stats import cosine, wide
from interp.types import Images, InputError, Labels, Maps

M = TypeVar("M", bound=nn.Module)


def by_layer(
    method: Callable[[M, Images, Labels], Maps],
    model: M,
    x: Images,
    y: Labels,
    *,
    order: str = "cascading",
    seed: int = 0,
    apart: bool = True,
    similarity: Callable[[Maps, Maps], Tensor] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer's name and the similarity (n,) of the maps before and after it was randomised; Spearman's by default.

    A map that became constant has no such similarity: InputError, by `spearman`. Limit: 1 where a method ignores the model.
    """
    before = method(model, x, y)
    for name, changed in randomised(model, order=order, seed=seed, apart=apart):
        yield name, (similarity or spearman)(before, method(changed, x, y))


def spearman(a: Maps, b: Maps, *, absolute: bool = False) -> Tensor:
    """Spearman's rank correlation (n,) of maps (n, h, w), in [−1, 1]; equal values share their mean rank.

    absolute: of |a| and |b|, Adebayo et al.'s second variant. Raises InputError for shapes that differ, values that are not
    finite, and a constant map, whose correlation is undefined. Limit: 1 for any increasing function of the other map.
    """
    if absolute:
        a, b = a.abs(), b.abs()
    _check(a, b, "rank correlation")
    one, other = (_mean_ranks(m.flatten(1)) for m in (a, b))
    return cosine(one, other)


def _mean_ranks(v: Tensor) -> Tensor:
    """Ranks (n, d) of values, equal ones at the mean of their places, less the mean rank."""
    ordered = v.sort(1).values.contiguous()
    below, upto = (torch.searchsorted(ordered, v.contiguous(), right=right) for right in (False, True))
    return (below + upto).to(wide(v)) / 2 - v.shape[1] / 2


def ssim(a: Maps, b: Maps, *, window: int = 7) -> Tensor:
    """Structural similarity (n,) of maps (n, h, w), each divided by its own largest absolute value.

    Mean over all windows of window × window pixels that lie inside, equally weighted, of
    (2·μa·μb + c1)(2·σab + c2) / ((μa² + μb² + c1)(σa² + σb² + c2)), c1 = (0.01·L)², c2 = (0.03·L)², σ unbiased, L the range of
    both maps together (Wang et al. 2004, IEEE TIP 13(4), eq. 13; scikit-image's defaults). Raises InputError as `spearman`.
    """
    _check(a, b, "structural similarity")
    if not 2 <= window <= min(a.shape[1:]):
        raise InputError(f"the window is {window} pixels; expected 2 to {min(a.shape[1:])}, the maps' shorter side")
    one, other = (m.to(wide(m))[:, None] / m.abs().amax((1, 2))[:, None, None, None] for m in (a, b))
    both = torch.cat([one, other], 1)
    extent = (both.amax((1, 2, 3)) - both.amin((1, 2, 3)))[:, None, None, None]
    mean, mean_, square, square_, product = (
        F.avg_pool2d(v, window, stride=1) for v in (one, other, one * one, other * other, one * other)
    )
    unbiased = window**2 / (window**2 - 1)
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    spread = unbiased * (square - mean**2 + square_ - mean_**2)
    above = (2 * mean * mean_ + c1) * (2 * unbiased * (product - mean * mean_) + c2)
    return (above / ((mean**2 + mean_**2 + c1) * (spread + c2))).mean((1, 2, 3))


def _check(a: Maps, b: Maps, what: str) -> None:
    if a.ndim != 3 or a.shape != b.shape:
        raise InputError(f"maps have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected the same (n, h, w) for both")
    for m in (a, b):
        if not bool(torch.isfinite(m).all()):
            raise InputError("a map is not finite everywhere; leave its image out")
        if bool((flat := constant(m)).any()):
            raise InputError(
                f"the map of image {int(flat.nonzero()[0])} is constant: its {what} is undefined; leave the image out"
            )


def constant(maps: Maps) -> Tensor:
    """Whether each map (n, h, w) has one value everywhere, (n,) bool."""
    return maps.amax((1, 2)) == maps.amin((1, 2))
