"""What layers of any model give for images, and how the log-odds of an image's class change with it.

With logits z and class y: log-odds h = z_y − log Σ_{j≠y} exp z_j = log p_y / (1 − p_y); ∇h has the direction of ∇ log p_y.
A layer is a path as in `model.net.named_modules()`, or '', the input of the last linear layer, whatever its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.attention.layout import module_at
from interp.models.chunks import in_chunks
from interp.models.model import Model, eager
from interp.types import Images, InputError, Labels

LAST = ""
"""Name of the input of the last linear layer."""


def log_odds(logits: Tensor, labels: Labels) -> Tensor:
    """log p / (1 − p) (n,) of each image's label, from logits (n, classes)."""
    own = nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -math.inf).logsumexp(1)


@contextmanager
def _tapped(model: Model, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, a pass leaves the layers' outputs in the dictionary, as tensors that gradients can be taken for."""
    seen: dict[str, Tensor] = {}

    def note(layer: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise InputError(f"layer {layer!r} gives {type(value).__name__}, no tensor; choose another")
        seen[layer] = value if value.requires_grad or not torch.is_grad_enabled() else value.detach().requires_grad_(True)
        return seen[layer].clone()  # a later in-place activation then spares what was seen

    with ExitStack() as stack:
        stack.enter_context(eager())
        for layer in layers:
            if layer == LAST:
                linear = [m for m in model.net.modules() if isinstance(m, nn.Linear)]
                if not linear:
                    raise InputError(f"model {model.card.id} has no linear layer; name the layers to be read")
                stack.enter_context(linear[-1].register_forward_pre_hook(lambda _m, args, at=layer: (note(at, args[0]),)))
            else:
                module = module_at(model.net, layer)
                stack.enter_context(module.register_forward_hook(lambda _m, _a, out, at=layer: note(at, out)))
        yield seen


def activations(model: Model, images: Images, layers: Sequence[str], chunk: int) -> dict[str, Tensor]:
    """Flattened output (n, features) of each layer."""

    def run(rows: slice) -> dict[str, Tensor]:
        model(images[rows].to(model.mean))
        n = rows.stop - rows.start
        if any(layer not in seen or len(seen[layer]) != n for layer in layers):
            raise InputError(f"a layer of {', '.join(map(repr, layers))} gives no tensor with one entry per image; choose others")
        return {layer: seen[layer].flatten(1).cpu() for layer in layers}

    with torch.no_grad(), _tapped(model, layers) as seen:
        return _joined([found for _, found in in_chunks(run, len(images), chunk)])


def odds_gradients(model: Model, images: Images, labels: Labels, layers: Sequence[str], chunk: int) -> dict[str, Tensor]:
    """Gradient (n, features) of each image's log-odds at each layer."""

    def run(rows: slice) -> dict[str, Tensor]:
        logits = model(images[rows].to(model.mean))
        score = log_odds(logits, labels[rows].to(logits.device)).sum()
        found = torch.autograd.grad(score, [seen[layer] for layer in layers], allow_unused=True)
        if any(g is None for g in found):
            raise InputError(f"a layer of {', '.join(layers)} has no part in the logits of model {model.card.id}; choose others")
        return {layer: g.flatten(1).cpu() for layer, g in zip(layers, found, strict=True)}

    with torch.inference_mode(False), torch.enable_grad(), _tapped(model, layers) as seen:
        return _joined([found for _, found in in_chunks(run, len(images), chunk)])


def _joined(pieces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {layer: torch.cat([p[layer] for p in pieces]) for layer in pieces[0]}
