"""Adversarial weight perturbation (Wu et al., arXiv 2004.05884): the loss is minimised at weights moved to where it is larger.

w ← w + γ·‖w‖·g/‖g‖ layer by layer, g = ∇_w loss; then a training step is taken there, and the move undone (eq. 10)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def moved_weights(
    model: nn.Module, loss_of: Callable[[], Tensor], gamma: float, *, mean: Callable[[Tensor], Tensor] = lambda g: g
) -> Iterator[None]:
    """Inside, kernels and matrices of the model are moved uphill by γ times their size; outside they are as they were.

    loss_of: the loss at the current weights; its pass leaves running statistics alone. mean: averages a gradient over
    processes. Limit: gamma = 0 moves nothing.
    """
    weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    kept = [(t, t.clone()) for t in (*weights, *model.buffers())]
    try:
        gradients = torch.autograd.grad(loss_of(), weights, allow_unused=True)
        with torch.no_grad():
            for buffer, before in kept[len(weights) :]:
                buffer.copy_(before)
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    g = mean(gradient)
                    weight.add_(gamma * weight.norm() / (g.norm() + 1e-20) * g)
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept[: len(weights)]:
                weight.copy_(before)
