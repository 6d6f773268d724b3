"""Whether a map depends on what the model has learnt: it is drawn again with random parameters and compared.

The model parameter randomisation test (Adebayo et al., arXiv 1810.03292): layers are initialised anew from the top down, one
after another and staying so ('cascading'), or one at a time ('independent'). A map that stays the same does not show the model.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.stats import cosine, wide
from interp.types import Images, InputError, Labels, Maps

ORDERS = ("cascading", "independent")
M = TypeVar("M", bound=nn.Module)


def randomised(model: M, *, order: str = "cascading", seed: int = 0, apart: bool = True) -> Iterator[tuple[str, M]]:
    """Yield the name of each layer, from the top, and a copy of the model with it (cascading: and all above) initialised anew.

    One copy is changed from step to step: use it before taking the next; `model` is never touched. Layers are the modules that
    hold parameters, last defined first. Each has its `reset_parameters` called, batch norms forgetting their statistics; the
    parameters of a module without one (class tokens, scales, temperatures) are put in random order, which leaves their size.
    apart: layer k from the top draws with seed + k; else all with the same seed, so that layers of one shape become equal, as in
    quantus (whose seed is one less). Raises InputError for another order.
    """
    if order not in ORDERS:
        raise InputError(f"order is {order!r}; expected {' or '.join(ORDERS)}")
    return _randomised(model, order, seed, apart)


def _randomised(model: M, order: str, seed: int, apart: bool) -> Iterator[tuple[str, M]]:
    changed = copy.deepcopy(model)
    changed.__dict__.pop("digest", None)  # a Model's, of the weights it had
    layers = [(name, part) for name, part in changed.named_modules() if hasattr(part, "reset_parameters") or part._parameters]
    for k, (name, layer) in enumerate(reversed(layers)):
        if order == "independent":
            changed.load_state_dict(model.state_dict())
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed + k * apart)
            _initialise(layer)
        yield name, changed


def _initialise(layer: nn.Module) -> None:
    if callable(reset := getattr(layer, "reset_parameters", None)):
        reset()
        return
    for parameter in layer.parameters(recurse=False):
        parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))


def fully_randomised(model: M, *, seed: int = 0) -> M:
    """A copy of the model after the whole cascade: nothing learnt is left but the size of scales and tokens.

    Raises InputError where there is no layer to randomise.
    """
    end = deque(randomised(model, seed=seed), maxlen=1)
    if not end:
        raise InputError(f"{type(model).__name__} has no parameters to randomise; leave the randomisation out")
    return end[0][1]


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
