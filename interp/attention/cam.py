"""Class activation maps: which places of a late feature map raise the score of a class.

A (c, h, w) is the output of a layer for one image, y the logit of the target class before any softmax, g = ∂y/∂A, Z = h·w.

- gradcam:   ReLU(Σ_k w_k·A_k), w_k = (1/Z) Σ_ij g_k[i, j]                  (Selvaraju et al., arXiv 1610.02391, eq. 1 and 2)
- gradcam++: ReLU(Σ_k w_k·A_k), w_k = Σ_ij α_k[i, j]·ReLU(g_k[i, j]), α = g² / (2·g² + g³·Σ_ab A_k[a, b])
                                                               (Chattopadhay et al., arXiv 1710.11063, eq. 7 and 19)
- layercam:  ReLU(Σ_k ReLU(g_k)·A_k), place by place                              (Jiang et al., IEEE TIP 2021, eq. 6 and 7)
- scorecam:  ReLU(Σ_k w_k·A_k), w = softmax_k(y(x ⊙ s(up(A_k))) − y(0)), without gradients
                                                       (Wang et al., arXiv 1910.01279, eq. 6 to 9 and algorithm 1)

Where the layer's output is tokens, the prefix tokens are dropped and the patches laid on their grid, so that Z counts patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from interp.attention.capture import placing
from interp.attention.geometry import Geometry, Grid
from interp.attention.layout import LAYOUTS, Layout, map_layer, module_at
from interp.attention.maps import enlarge
from interp.errors import InputError
from interp.models.chunks import in_chunks
from interp.models.model import Model, eager
from interp.types import Images, Labels, Maps


def gradcam(activations: Tensor, gradients: Tensor) -> Maps:
    """Grad-CAM from activations and gradients (n, c, h, w): channels weighted by their mean gradient."""
    return (gradients.mean((2, 3), keepdim=True) * activations).sum(1).relu()


def gradcam_plus_plus(activations: Tensor, gradients: Tensor) -> Maps:
    """Grad-CAM++ from activations and gradients (n, c, h, w): channels weighted by their positive gradients, each with its α.

    The closed form is that of exp(y), with ∂²y/∂A² = 0 as in a network of ReLUs; the factor exp(y) > 0 of each image is left out.
    With g ≠ 0, α = 1 / (2 + g·ΣA): at most a half where A ≥ 0, which the paper assumes. Where A has both signs, as tokens have,
    the denominator can come near zero (at zero α = 0 here) or below, and a map can then rest on one channel. Limit: where g is
    constant over space and positive, w_k = Z·g_k / (2 + g_k·ΣA_k): Grad-CAM up to scale where g_k·ΣA_k is the same for all
    channels, else not.
    """
    denominator = 2 + gradients * activations.sum((2, 3), keepdim=True)
    alpha = torch.where(denominator == 0, 0, 1 / denominator)
    return ((alpha * gradients.relu()).sum((2, 3), keepdim=True) * activations).sum(1).relu()


def layercam(activations: Tensor, gradients: Tensor) -> Maps:
    """LayerCAM from activations and gradients (n, c, h, w): each place weighted by its own positive gradient.

    Limit: where g is constant over space and nowhere negative, this is Grad-CAM.
    """
    return (gradients.relu() * activations).sum(1).relu()


METHODS: Mapping[str, Callable[[Tensor, Tensor], Maps]] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "layercam": layercam,
}


def cam(
    model: Model,
    x: Images,
    targets: Labels,
    *,
    method: str = "gradcam",
    layer: str | nn.Module | None = None,
    chunk: int = 32,
    most: int | None = None,
) -> Maps:
    """Class activation map of each image for its target class, at the layer's resolution: (n, h', w'), ≥ 0.

    method: one of METHODS or 'scorecam'. layer: a path inside `model.net`, or a module; by default the family's (see layout.py).
    chunk: images per pass. Every image is explained on its own: n images give what n calls with one image give. All zero where no
    place speaks for the class.

    scorecam: channel k of the layer, enlarged bilinearly to the image and taken to [0, 1] by its minimum and maximum, masks the
    pixels (0 is black; the paper masks normalised pixels, whose 0 is the mean colour). w_k is the softmax over channels of the
    target's logit of the masked image minus that of the black image. The black image's logit is the same for all channels and
    cancels in the softmax, so it is not computed. A constant channel masks everything. Every pair of image and channel is one
    image of a pass. most: take only so many channels of each image, those of largest variance over places; the softmax is over
    them, the others have no weight, and the map can differ much from that of all channels.

    Raises InputError where the gradient of an image is zero everywhere, as behind the layer that pools the class token (scorecam
    needs no gradient), where the layer has no part in the logits or runs more than once, and where its output has no places.
    """
    _check(model, x, targets, method, most)
    layer = map_layer(model) if layer is None else layer
    with torch.inference_mode(False), torch.set_grad_enabled(method in METHODS):
        x = x.detach().to(model.mean, copy=True)
        targets = targets.to(x.device, copy=True)
        if method == "scorecam":
            return _scorecam(model, x, targets, layer, chunk, most)

        def explain(rows: slice) -> Maps:
            return METHODS[method](*_activations_and_gradients(model, x[rows], targets[rows], layer, start=rows.start))

        return torch.cat([maps for _, maps in in_chunks(explain, len(x), chunk)])


def _check(model: Model, x: Images, targets: Labels, method: str, most: int | None) -> None:
    if method not in (*METHODS, "scorecam"):
        raise InputError(f"method is {method!r}; expected {', '.join(METHODS)} or scorecam")
    if most is not None and (method != "scorecam" or most < 1):
        raise InputError(f"most is {most} for {method}; expected at least 1 channel, and scorecam, which alone goes through them")
    check_targets(targets, len(x), model.card.num_classes)


def check_targets(targets: Labels, n: int, classes: int) -> None:
    """Raise InputError where targets are not one class index for each of n images."""
    if targets.shape != (n,) or targets.dtype.is_floating_point:
        raise InputError(f"{n} images came with targets {tuple(targets.shape)} of {targets.dtype}; expected ({n},) class indices")
    if targets.min() < 0 or targets.max() >= classes:
        raise InputError(
            f"targets reach from {int(targets.min())} to {int(targets.max())}; the model has classes 0 to {classes - 1}"
        )


class _Tap:
    """One pass with the graph cut at a layer: its output becomes a leaf, so that gradients are computed no deeper than there."""

    def __init__(self, model: Model, x: Images, layer: str | nn.Module) -> None:
        self.label = repr(layer) if isinstance(layer, str) else type(layer).__name__
        self.image: Grid = (x.shape[2], x.shape[3])
        self.images = len(x)
        self.channels_last = getattr(model.net, "output_fmt", "NCHW") == "NHWC"
        self.leaves: list[Tensor] = []
        self.grid: Grid | None = None
        module = module_at(model.net, layer) if isinstance(layer, str) else layer
        with ExitStack() as stack:
            stack.enter_context(eager())
            for handle in placing(model.net, LAYOUTS.get(model.family, Layout(model.family, "")), self._note_grid):
                stack.enter_context(handle)
            stack.enter_context(module.register_forward_hook(self._cut))
            self.logits: Tensor = model(x)
        if not self.leaves:
            raise self.no_part(model)

    def no_part(self, model: Model) -> InputError:
        return InputError(f"layer {self.label} has no part in the logits of model {model.card.id}; choose a layer that has")

    def _note_grid(self, geometry: Geometry | None) -> None:
        if not self.leaves:
            self.grid = None if geometry is None else geometry.queries.size

    def _cut(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"layer {self.label} returns {found}; class activation maps need (n, c, h, w) or tokens (n, t, c)")
        if self.leaves:
            raise InputError(f"layer {self.label} runs more than once in a pass; choose one that runs once")
        self.leaves.append(output.detach().requires_grad_(True))
        return self.leaves[0].clone()  # a later in-place activation then spares the leaf

    def activations(self) -> Tensor:
        """What the layer returned, as (n, c, h, w)."""
        return self.spatial(self.leaves[0].detach())

    def spatial(self, t: Tensor) -> Tensor:
        """Values shaped like the layer's output, such as its gradient, as (n, c, h, w)."""
        if len(t) == self.images and t.ndim == 4:
            return t.permute(0, 3, 1, 2) if _channels_last(t, self.image, self.label, tie=self.channels_last) else t
        prefix = -1 if self.grid is None else t.shape[1] - math.prod(self.grid)
        if self.grid is None or prefix < 0:
            raise InputError(
                f"layer {self.label} returns {tuple(t.shape)} for {self.images} images, tokens that fit no grid of patches; "
                "choose a layer with (n, c, h, w)"
            )
        return t[:, prefix:].transpose(1, 2).reshape(len(t), -1, *self.grid)


def _channels_last(t: Tensor, image: Grid, label: str, *, tie: bool) -> bool:
    """Whether a feature map is (n, h, w, c): the two dimensions that shrink the image's alike, up to rounding, are its places.

    tie: the answer where both readings do, as with as many channels as rows and columns.
    """

    def fits(rows: int, columns: int) -> bool:
        return abs(rows * image[1] - columns * image[0]) < max(image)

    last, first = fits(*t.shape[1:3]), fits(*t.shape[2:])
    if not last and not first:
        raise InputError(
            f"layer {label} returns {tuple(t.shape)}, in which neither the last two dimensions nor the two before the last have "
            f"the proportions of the image, {image[0]} × {image[1]}; choose a layer whose output lies on the image"
        )
    return tie if last and first else last


def _activations_and_gradients(
    model: Model, x: Images, targets: Labels, layer: str | nn.Module, *, start: int
) -> tuple[Tensor, Tensor]:
    """A layer's output and the gradient of the targets' logits there, (n, c, h, w) each; start: number of the first image."""
    tap = _Tap(model, x, layer)
    score = tap.logits.gather(1, targets[:, None]).sum()
    (found,) = torch.autograd.grad(score, tap.leaves, allow_unused=True) if score.requires_grad else (None,)
    if found is None:
        raise tap.no_part(model)
    gradient = tap.spatial(found)
    dead = (gradient == 0).flatten(1).all(1)
    if bool(dead.any()):
        raise InputError(
            f"the gradient at layer {tap.label} is zero everywhere for image {start + int(dead.nonzero()[0])}; behind the last "
            "attention of a class token the patches no longer reach the logits: choose an earlier layer"
        )
    return tap.activations(), gradient


def _scorecam(model: Model, x: Images, targets: Labels, layer: str | nn.Module, chunk: int, most: int | None) -> Maps:
    """Score-CAM, chunk pairs of image and channel at a time: memory grows with the chunk, not with the channels."""

    def activations_of(rows: slice) -> Tensor:
        return _Tap(model, x[rows], layer).activations()

    activations = torch.cat([found for _, found in in_chunks(activations_of, len(x), chunk)])
    kept = activations.flatten(2).var(2, correction=0).topk(min(most or activations.shape[1], activations.shape[1])).indices
    image = torch.arange(len(x), device=x.device).repeat_interleave(kept.shape[1])
    channel = kept.flatten()

    def score(rows: slice) -> Tensor:
        masks = enlarge(activations[image[rows], channel[rows]], (x.shape[2], x.shape[3]))
        low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        masks = torch.where(high > low, (masks - low) / (high - low), 0)
        logits: Tensor = model(x[image[rows]] * masks[:, None])
        return logits.gather(1, targets[image[rows], None])[:, 0]

    scores = torch.cat([found for _, found in in_chunks(score, len(image), chunk)]).view_as(kept)
    weights = activations.new_zeros(activations.shape[:2]).scatter(1, kept, scores.softmax(1))
    return gradcam(activations, weights[:, :, None, None])
