"""How far an attack moves a model's attention as ε grows, layer by layer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from interp.attacks.losses import LOSSES
from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.attacks.sweep import labels_for
from interp.attention.capture import Captured, by_pieces, capture
from interp.attention.layout import has_attention
from interp.attention.readings import read
from interp.attention.statistics import divergence, thinned
from interp.models.model import Model, check_some, model_coords
from interp.result import Result, described, with_interval
from interp.stats import bootstrap, wilson
from interp.types import Batch, Images, InputError, pixels


@dataclass(frozen=True)
class Shift:
    """eps: sizes of the attack in units of [0, 1], growing; 0 is added. attack: the one at each size (its eps is replaced).

    method: how the maps are read, see readings.py; the numbers are of the weights of all layers. chunk: images per pass.
    """

    eps: tuple[float, ...] = (2 / 255, 4 / 255, 8 / 255)
    attack: PGD = PGD(8 / 255, steps=20)
    method: str = "auto"
    chunk: int = field(default=8, metadata={"cost": True})

    def __post_init__(self) -> None:
        if not self.eps or min(self.eps) <= 0 or sorted(set(self.eps)) != list(self.eps):
            raise InputError(f"ε are {self.eps}; expected one or more above 0, each larger than the one before")
        for eps in self.eps:
            dataclasses.replace(self.attack, eps=eps)  # checks each value
        if self.attack.loss not in LOSSES or self.attack.targeted:
            raise InputError("the attack moves images away from their labels: untargeted, by " + ", ".join(LOSSES))


def attention_shift(models: Sequence[Model], batch: Batch, params: Shift = Shift()) -> Result:
    """Attack every image at every ε and compare each layer's attention with that on the image itself.

    divergence (model, depth, eps): Jensen–Shannon divergence of the rows of weights in bits, 0 to 1, mean over queries, heads
    and images, with 95 % bootstrap intervals; layers in the order in which they run, NaN behind a model's last; of a layer of
    more than 2²² weights per image every k-th query takes part (see statistics.thinned). moved (model, eps): the same of each
    image's mean over the layers that over (model) names in words: those that have a place in the image, or where a model has but
    attention between channels, whose divergences are of another size, these. layer, kind (model, depth). accuracy (model, eps):
    share read as labelled both as it is and attacked, with Wilson intervals; an image without a label counts as what the model
    reads in it. picture (model, eps, image, y, x, channel): the attacked images; map (model, eps, image, y, x): the model's own
    map of each, ÷ its mean, read as how (model) says; where a method explains a class, the one that the image itself is read as.
    Limit: at ε = 0 the divergence is 0.
    """
    started = time.perf_counter()
    check_some(models)
    for model in models:
        model.check_images(batch.images.shape)
    sizes = (0.0, *params.eps)
    found = [_one(model, batch, sizes, params) for model in tqdm(models, desc="attention under attack", leave=False)]
    most = max(1, *(len(f.layers) for f in found))
    names, kinds = (np.full((len(models), most), "", object) for _ in range(2))
    moved = np.full((len(models), most, len(sizes), len(batch)), np.nan)
    for m, f in enumerate(found):
        for k, (name, kind) in enumerate(f.layers):
            names[m, k], kinds[m, k], moved[m, k] = name, kind, f.moved[name]
    data = xr.Dataset(
        {
            "layer": (("model", "depth"), names.astype(str)),
            "kind": (("model", "depth"), kinds.astype(str)),
            "values_divergence": (("model", "depth", "eps", "image"), moved.astype(np.float32)),
            "map": (("model", "eps", "image", "y", "x"), np.stack([f.maps for f in found])),
            "how": ("model", [f.how for f in found]),
            "picture": (("model", "eps", "image", "y", "x", "channel"), np.stack([f.pictures for f in found])),
            "original": (("image", "y", "x", "channel"), pixels(batch.images)),
            "truth": ("image", batch.labels.numpy()),
        },
        coords=model_coords(models) | {"eps": list(sizes), "image": list(batch.ids)},
    )
    means, over = _over_layers(moved, kinds.astype(str))
    data["over"] = ("model", over)
    attrs = {"unit": "bits", "better": "none", "n": len(batch), "long_name": "divergence, mean over the layers named in `over`"}
    spans = [bootstrap(v) for v in means.reshape(-1, len(batch))]
    data = data.assign(with_interval("moved", ("model", "eps"), spans, means.shape[:2], **attrs))
    spans = [bootstrap(v) for v in moved.reshape(-1, len(batch))]
    attrs = {"unit": "bits", "better": "none", "n": len(batch), "long_name": "divergence of attention"}
    data = data.assign(with_interval("divergence", ("model", "depth", "eps"), spans, moved.shape[:3], **attrs))
    rates = [wilson(int(row.sum()), len(batch)) for f in found for row in f.right]
    shape = (len(models), len(sizes))
    attrs = {"unit": "share", "better": "higher", "n": len(batch), "long_name": "accuracy"}
    data = data.assign(with_interval("accuracy", ("model", "eps"), rates, shape, **attrs))
    data = described(data, WORDS)
    title = "Attention under attack"
    return Result.of("attention_shift", title, data, params=params, models=models, batch=batch, started=started)


WORDS = {
    "layer": ("name of the layer, '' behind the model's last", ""),
    "kind": ("kind of attention of the layer, '' behind the last", ""),
    "values_divergence": ("divergence of attention, image by image", "bits"),
    "map": ("what is looked at ÷ its mean over the image", "× mean"),
    "how": ("how the maps were read, or why not", ""),
    "picture": ("the attacked image", "share of full intensity"),
    "over": ("which layers `moved` is the mean over", ""),
}
PLACED, BETWEEN = "layers that have a place in the image", "layers of attention between channels, there being no other"


def _over_layers(moved: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Mean of moved (model, depth, eps, image) over layers of one sort, (model, eps, image), and in words which these are.

    Channels differ far less than places do, so that the two are not averaged: those with a place count where there are any.
    """
    means, over = np.full((len(moved), *moved.shape[2:]), np.nan), []
    for m, (block, names) in enumerate(zip(moved, kinds, strict=True)):
        placed = (names != "channel") & (names != "")
        taken = placed if placed.any() else names != ""
        over.append(PLACED if placed.any() else BETWEEN if taken.any() else "")
        if taken.any():
            means[m] = block[taken].mean(0)
    return means, over


class _Shifted(NamedTuple):
    """One model: name and kind of its layers; moved (eps, image) of each; maps, pictures, whether it is right (eps, image, …)."""

    layers: list[tuple[str, str]]
    moved: dict[str, np.ndarray]
    maps: np.ndarray
    how: str
    pictures: np.ndarray
    right: np.ndarray


def _one(model: Model, batch: Batch, sizes: Sequence[float], params: Shift) -> _Shifted:
    labels = labels_for(model, batch)
    pictures = [batch.images]
    for eps in sizes[1:]:
        pgd = dataclasses.replace(params.attack, eps=eps)
        pictures.append(attack(model, batch.images, labels, pgd).x.cpu())
    x = torch.stack(pictures)  # (eps, image, 3, h, w)
    right = torch.stack([model.read(p).argmax(1) == labels for p in pictures])
    right &= right[0].clone()  # what is misread as it is stays so: no attack can mend it
    layers, moved = _moved(model, x, params.chunk)
    maps, how = _maps(model, x, params)
    return _Shifted(layers, moved, maps, how, np.stack([pixels(p) for p in pictures]), right.numpy())


def _moved(model: Model, x: Tensor, chunk: int) -> tuple[list[tuple[str, str]], dict[str, np.ndarray]]:
    """The divergence (eps, image) of every layer from what it is at the first ε, where it is 0; nothing without attention.

    A pass takes images as they are and as attacked, in pairs: `chunk` of them, fewer where a layer has too many weights.
    """
    if not has_attention(model):
        return [], {}
    kinds: dict[str, str] = {}
    clean, attacked = x[:1].expand_as(x[1:]).flatten(0, 1), x[1:].flatten(0, 1)

    def run(piece: slice) -> dict[str, Tensor]:
        apart: dict[str, Tensor] = {}

        def consume(layer: Captured) -> None:
            geometry = None if layer.kind == "channel" else layer.geometry
            weights, geometry = thinned(layer.weights, geometry)
            before, after = weights.chunk(2)
            kinds[layer.name], apart[layer.name] = layer.kind, divergence(before, after, geometry).mean(1).cpu()

        with torch.no_grad(), capture(model, consume=consume):
            model(torch.cat([clean[piece], attacked[piece]]).to(model.mean))
        return apart

    parts = by_pieces(run, len(attacked), chunk)
    moved = {name: torch.cat([part[name] for part in parts]).unflatten(0, x[1:].shape[:2]) for name in kinds}
    return list(kinds.items()), {name: torch.cat([torch.zeros_like(m[:1]), m]).numpy() for name, m in moved.items()}


def _maps(model: Model, x: Tensor, params: Shift) -> tuple[np.ndarray, str]:
    """Maps (eps, image, y, x) ÷ their means, NaN with the reason where the method does not apply.

    Methods that explain a class explain at every ε the one that the model reads in the image itself.
    """
    size, flat, words = (int(x.shape[-2]), int(x.shape[-1])), x.flatten(0, 1), ""
    own = model.read(x[0]).argmax(1).repeat(len(x))
    found: list[Images] = []
    try:
        for piece, target in zip(flat.split(params.chunk), own.split(params.chunk), strict=True):
            reading = read(model, piece.to(model.mean), target.to(model.mean.device), method=params.method)
            large, words = reading.on_image(size), reading.how
            found.append((large / large.mean((1, 2), keepdim=True).clamp_min(1e-12)).cpu())
    except InputError as reason:
        return np.full((*x.shape[:2], *size), np.nan, np.float32), f"not read: {reason}"
    return torch.cat(found).unflatten(0, x.shape[:2]).numpy(), words
