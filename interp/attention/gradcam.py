"""Grad-CAM: which places of a late feature map raise the score of a class.

    α_k = (1/Z) Σ_ij ∂y_c/∂A_k[i, j],   L = ReLU(Σ_k α_k·A_k)        (Selvaraju et al., arXiv 1610.02391, eq. 1 and 2)

A is the output of a layer, y_c the logit of class c before any softmax. Where the layer's output is tokens, the prefix tokens
are dropped and the patches laid on their grid, so that Z counts patches.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.attention.layout import Grid, layout_of, module_at, patch_grid
from interp.types import Images, InputError, Labels, Maps

if TYPE_CHECKING:
    from interp.models.model import Model


class _Tap:
    """Cuts the graph at a layer: its output becomes a leaf, so that the gradient is computed no deeper than there."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.leaf: Tensor | None = None
        self.grid: Grid | None = None

    def note_grid(self, embed: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.grid = patch_grid(embed, args, output)

    def cut(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"layer {self.label} returns {found}; Grad-CAM needs (n, c, h, w) or tokens (n, t, c)")
        if self.leaf is not None:
            raise InputError(f"layer {self.label} runs more than once in a pass; choose one that runs once")
        self.leaf = output.detach().requires_grad_(True)
        return self.leaf.clone()  # a later in-place activation then spares the leaf


def _spatial(t: Tensor, grid: Grid | None, label: str) -> Tensor:
    """Feature maps (n, c, h, w), from themselves or from tokens (n, prefix + gh·gw, c)."""
    if t.ndim == 4:
        return t
    prefix = -1 if grid is None else t.shape[1] - math.prod(grid)
    if grid is None or prefix < 0:
        raise InputError(
            f"layer {label} returns {tuple(t.shape)}, tokens that fit no grid of patches; choose a layer with (n, c, h, w)"
        )
    return t[:, prefix:].transpose(1, 2).reshape(len(t), -1, *grid)


def _check_targets(targets: Labels, n: int, classes: int) -> None:
    if targets.shape != (n,) or targets.dtype.is_floating_point:
        raise InputError(f"{n} images came with targets {tuple(targets.shape)} of {targets.dtype}; expected ({n},) class indices")
    if targets.min() < 0 or targets.max() >= classes:
        raise InputError(
            f"targets reach from {int(targets.min())} to {int(targets.max())}; the model has classes 0 to {classes - 1}"
        )


def gradcam(model: Model, x: Images, targets: Labels, *, layer: str | nn.Module | None = None) -> Maps:
    """Grad-CAM of each image for its target class, at the layer's resolution: (n, h', w'), ≥ 0.

    layer: a path inside `model.net`, or a module; by default the family's (see layout.py). Every image is explained on
    its own: n images give what n calls with one image give. All zero where no place speaks for the class.
    Raises InputError where the gradient of an image is zero everywhere, as behind the layer that pools the class token.
    """
    path = layout_of(model).gradcam if layer is None else layer
    label = repr(path) if isinstance(path, str) else type(path).__name__
    module = module_at(model.net, path) if isinstance(path, str) else path
    embed = getattr(model.net, "patch_embed", None)
    tap = _Tap(label)
    with ExitStack() as stack:
        if embed is not None:
            stack.enter_context(embed.register_forward_hook(tap.note_grid))
        stack.enter_context(module.register_forward_hook(tap.cut))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        logits = model(x.detach().clone())
        _check_targets(targets, len(x), logits.shape[-1])
        score = logits.gather(1, targets.to(logits.device).clone()[:, None]).sum()
        found = None
        if tap.leaf is not None and score.requires_grad:
            (found,) = torch.autograd.grad(score, tap.leaf, allow_unused=True)
    if tap.leaf is None or found is None:
        raise InputError(f"layer {label} has no part in the logits of model {model.card.id}; choose a layer that has")
    maps, gradient = (_spatial(t, tap.grid, label) for t in (tap.leaf.detach(), found))
    dead = (gradient == 0).flatten(1).all(1)
    if bool(dead.any()):
        raise InputError(
            f"the gradient at layer {label} is zero everywhere for image {int(dead.nonzero()[0])}; behind the last attention "
            "of a class token the patches no longer reach the logits: choose an earlier layer"
        )
    return (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu()
