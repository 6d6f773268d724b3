"""Models with random parameters: what they still show is not what was learnt (Adebayo et al., arXiv 1810.03292).

Layers are initialised anew from the top down, one after another and staying so ('cascading'), or one at a time ('independent').
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn

from interp.types import InputError

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
