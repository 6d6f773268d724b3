"""One picture per image of what a model looks at: the reading that its family allows, named with the maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from interp.attention.capture import Captured, capture
from interp.attention.gradcam import gradcam
from interp.attention.layout import attention_layers, layout_of
from interp.attention.maps import class_map, enlarge, received_map, refold
from interp.types import Images, InputError, Maps

if TYPE_CHECKING:
    from torch import Tensor

    from interp.models.model import Model


@dataclass(frozen=True, eq=False)
class Reading:
    """Maps (n, h, w) ≥ 0 at image size, and in words how they were read off the model."""

    maps: Maps
    method: str


def head_maps(layer: Captured) -> tuple[Tensor, str]:
    """The maps of every head of one captured layer, (n, heads, h', w'), and in words which reading they are.

    Class token → patches where there is a class token, else attention received, the mean over queries. Raises
    InputError for channel attention, which has no place in the image.
    """
    if layer.unfolding is not None:
        return refold(layer.weights, layer.unfolding), "attention received, mean over queries, refolded"
    if layer.grid is None:
        raise InputError(f"layer {layer.name} is {layer.kind} attention and cannot be drawn on the image; choose another layer")
    if layer.class_token:
        return class_map(layer.weights, layer.grid, prefix=layer.prefix), "attention from the class token to the patches"
    return received_map(layer.weights, layer.grid, prefix=layer.prefix), "attention received, mean over queries"


def spatial_attention(model: Model, x: Images) -> Reading:
    """What the model looks at in each image, at image size: the last layer of spatial attention, mean over heads.

    XCiT, CaiT: last class attention. ViT: class-token row of the last block, or the mean over queries without a class token.
    MobileViT: attention received in the last transformer layer, refolded. ResNet, which has none: Grad-CAM for the
    predicted class. Maps are on the layer's own scale, not normalised.
    """
    size = (int(x.shape[-2]), int(x.shape[-1]))
    layout = layout_of(model)
    if not layout.modules:
        with torch.no_grad():
            predicted = model(x).argmax(1)
        method = f"Grad-CAM of the predicted class at layer {layout.gradcam}"
        return Reading(enlarge(gradcam(model, x, predicted), size), method)
    last = [name for name, kind in attention_layers(model).items() if kind != "channel"][-1]
    with torch.no_grad(), capture(model, layers=[last]) as recorder:
        model(x)
    maps, method = head_maps(recorder.layers[0])
    return Reading(enlarge(maps.mean(1), size), f"{method}, mean over heads, at layer {last}")
