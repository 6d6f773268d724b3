"""A stream of gradients → its statistics, in memory that does not grow with the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from interp.gradients.sources import Block
from interp.stats import Running, cosine, wide

USES: dict[str, Callable[[Tensor], Tensor]] = {"raw": lambda g: g, "sign": torch.sign, "absolute": torch.abs}


class Folded(NamedTuple):
    """What a stream of gradients of n images comes to.

    running: statistics of the gradients as they are used. cosine (n,): mean cosine between neighbouring gradients, NaN where
    there is only one. turns: the same at each draw after the first, mean over the images: one number each. attribution
    (n, 3, h, w): mean of gradient · direction, where the draws lie on paths.
    """

    running: Running
    cosine: Tensor
    turns: list[float]
    attribution: Tensor | None


def fold(blocks: Iterable[Block], *, use: str = "raw") -> Folded:
    """Fold gradients as they come.

    use: 'raw', their 'sign' or 'absolute' value is what `running` sees; all else is of the raw ones.
    """
    running, previous, turns = Running(), None, []
    cosines = products = torch.zeros(())
    for block in blocks:
        running.update(USES[use](block.gradients), block.weights)
        for k, g in enumerate(block.gradients):
            if block.directions is not None:
                if not products.ndim:
                    products = torch.zeros(g.shape, dtype=wide(g), device=g.device)
                products.add_(g * block.directions[k], alpha=1 if block.weights is None else block.weights[k])
            if previous is not None:
                turn = cosine(previous, g)
                cosines = cosines.to(turn) + turn
                turns.append(float(turn.mean()))
            previous = g
    mean = running.mean
    cosines = cosines.to(mean).expand(len(mean)) / (len(turns) or torch.nan)
    return Folded(running, cosines, turns, (products / running.weight).to(mean) if products.ndim else None)
