"""What a layer keeps of an image: another picture made to look the same to it.

From noise, or from another image, descend

    ‖φ(x') − φ(x)‖₂ / ‖φ(x)‖₂

with φ the model up to a layer (Mahendran & Vedaldi, arXiv 1412.0035; for robust models Engstrom et al., arXiv 1906.00945, section
4.1, whose choice of L2 and normalised gradient steps the defaults follow). Where the features agree but the pictures do not, the
layer has thrown the difference away.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from interp.attacks.features import cut
from interp.attacks.losses import TO_FEATURES
from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.attacks.starts import uniform
from interp.models.model import Model, check_some, model_coords
from interp.result import Result, measure
from interp.types import Batch, Images, InputError, pixels

STARTS = ("noise", "images")


@dataclass(frozen=True)
class Invert:
    """The layer to match ('' for the input of the last linear one, else a name of `model.net.named_modules()`), and how.

    attack: targeted, on the loss features; its ball is around the start, so eps has to be large enough not to bind (the farthest
    two pictures of 32 pixels are 55 apart in L2). start: 'noise', or 'images', for each image the next one of the batch.
    """

    layer: str = ""
    attack: PGD = PGD(40.0, "l2", steps=200, targeted=True, random_start=False, loss="features")
    start: str = "noise"
    chunk: int | None = field(default=None, metadata={"cost": True})

    def __post_init__(self) -> None:
        if not self.attack.targeted or self.attack.loss not in TO_FEATURES:
            raise InputError(f"inversion needs a targeted attack on the loss features; found {self.attack}")
        if self.start not in STARTS:
            raise InputError(f"start is {self.start!r}; expected one of {', '.join(STARTS)}")


def invert(models: Sequence[Model], batch: Batch, params: Invert = Invert()) -> Result:
    """Find, for every model and image, a picture with the same features.

    picture (model, image, y, x, channel); start and original (image, …). Measure distance (model, image): what remains of the
    relative distance in features; begun (model, image): what it was at the start. Raises InputError for a layer that a model
    does not have, and for the start 'images' with a single one.
    """
    started = time.perf_counter()
    check_some(models)
    start = _start(batch, params)
    for model in models:
        model.check_images(batch.images.shape)
        with cut(model, params.layer):  # raises before anything is computed
            pass
    pictures, begun, distance = [], [], []
    for model in tqdm(models, desc="inversion", leave=False):
        with cut(model, params.layer) as features:
            wanted, before = (_features(features, x.to(model.mean.device)) for x in (batch.images, start))
            found = attack(features, start, wanted, params.attack, chunk=params.chunk)
        pictures.append(pixels(found.x))
        begun.append(((before - wanted).norm(dim=1) / wanted.norm(dim=1)).cpu().numpy())
        distance.append(found.loss.cpu().numpy())
    data = xr.Dataset(
        {
            "picture": (("model", "image", "y", "x", "channel"), np.stack(pictures)),
            "start": (("image", "y", "x", "channel"), pixels(start)),
            "original": (("image", "y", "x", "channel"), pixels(batch.images)),
            "truth": ("image", batch.labels.numpy()),
            "begun": (("model", "image"), np.stack(begun)),
            "distance": measure(("model", "image"), np.stack(distance), unit="‖φ(x′) − φ(x)‖ / ‖φ(x)‖", better="none", n=1),
        },
        coords=model_coords(models) | {"image": list(batch.ids)},
    )
    title = f"Pictures with the same features as the image, from {'noise' if params.start == 'noise' else 'other images'}"
    return Result.of("inversion", title, data, params=params, models=models, batch=batch, started=started)


def _start(batch: Batch, params: Invert) -> Images:
    if params.start == "noise":
        return uniform(tuple(batch.images.shape), seed=params.attack.seed)
    if len(batch) == 1:
        raise InputError("one image has no other to start from; give at least two, or the start noise")
    return batch.images.roll(-1, 0)


@torch.no_grad()
def _features(net: torch.nn.Module, x: Images) -> torch.Tensor:
    return torch.cat([net(part) for part in x.split(64)])
