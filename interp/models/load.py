"""`load`: one string → a Model that says what was done. Shipped ids, files, and `timm:NAME`.

A card beside the file (same stem, .toml) decides everything. Without one the architecture is found by names and shapes;
what shapes cannot show (the normalisation) is taken from the caller, or settled on labelled images, never guessed.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.loading.detect import mismatch, num_classes
from interp.loading.read import read_tensors, sha256_of
from interp.models.build import BUILDERS, build
from interp.models.model import Model
from interp.types import Batch, Card, InputError, Preprocess

log = logging.getLogger(__name__)

NORMALISERS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def checkpoint_folder() -> Path:
    """Where the shipped checkpoints lie: $INTERP_CHECKPOINTS, else the package's own copy, else the source tree's."""
    if given := os.environ.get("INTERP_CHECKPOINTS"):
        return Path(given)
    package = Path(__file__).resolve().parents[1]
    installed = package / "_checkpoints"
    return installed if installed.is_dir() else package.parent / "checkpoints"


def shipped() -> dict[str, Path]:
    """Ids of the checkpoints at hand, with the paths of their cards."""
    return {p.stem: p for p in sorted(checkpoint_folder().glob("*.toml"))}


def load(
    spec: str | Path,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    normalise: str | None = None,
    size: int | None = None,
    images: Batch | None = None,
    device: str = "cpu",
) -> Model:
    """Load a model: a shipped id, a checkpoint file, or `timm:NAME` (weights from timm's hub cache).

    arch, arch_args, normalise ('none', 'cifar10', 'imagenet', 'half') and size answer what a file without a card leaves
    open; with labelled `images` the normalisation of best accuracy is taken and said. Raises InputError where the spec, the
    file or these answers do not fit together.
    """
    text = str(spec)
    if text.startswith("timm:"):
        return _load_timm(text.removeprefix("timm:")).to(device)
    ids = shipped()
    path = ids[text].with_suffix(".safetensors") if text in ids else Path(text)
    if not path.exists() and text not in ids and path.suffix == "" and os.sep not in text:
        near = difflib.get_close_matches(text, ids, n=3, cutoff=0.3)
        raise InputError(
            f"{text!r} is neither a shipped checkpoint nor a file; the nearest ids are {', '.join(near or ids)}. "
            f"Give a path to a checkpoint, or timm:NAME"
        )
    tensors = read_tensors(path)
    sidecar = path.with_name(path.name.split(".")[0] + ".toml")
    if sidecar.is_file() and not (arch or normalise):
        return _fill(Card.read(sidecar), tensors, path).to(device)
    card = _describe(tensors, path, arch, arch_args, size)
    if normalise is not None:
        return _fill(_normalised(card, normalise), tensors, path).to(device)
    return _settle(card, tensors, path, images).to(device)


def _fill(card: Card, tensors: Mapping[str, Tensor], path: Path) -> Model:
    """Build what the card says and fill it; every weight must find its place."""
    net = build(card.arch, num_classes=card.num_classes, arch_args=card.arch_args)
    difference = mismatch(tensors, {k: v.shape for k, v in net.state_dict().items()})
    if difference:
        raise InputError(f"{path} does not fit {card.arch} {card.arch_args or ''}: {difference}; say which with arch (--arch)")
    if card.sha256 and card.sha256 != (found := sha256_of(path)):
        raise InputError(f"{path} has sha256 {found[:12]}…, its card says {card.sha256[:12]}…; restore the file or its card")
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return Model(net, card)


def _describe(tensors: Mapping[str, Tensor], path: Path, arch: str | None, args: dict[str, Any] | None, size: int | None) -> Card:
    """A card for a file that has none: architecture as told, or the only candidate that all names and shapes fit."""
    classes = num_classes(tensors)
    if classes is None:
        raise InputError(
            f"{path} has no classifier weight under a known name (head, fc, linear); it holds {sorted(tensors)[:4]}…"
        )
    options = [(arch, args or {})] if arch else _candidates()
    differences: dict[str, str] = {}
    fits: list[tuple[str, dict[str, Any]]] = []
    for name, these in options:
        found = mismatch(tensors, _shapes(name, classes, these))
        if not found and (name, these) not in fits:
            fits.append((name, these))
        differences[f"{name} {these or ''}".strip()] = found
    if len(fits) != 1:
        detail = "; ".join(f"{k}: {v or 'fits'}" for k, v in sorted(differences.items(), key=lambda i: len(i[1]))[:3])
        several = "more than one known architecture fits" if fits else "no known architecture fits"
        raise InputError(
            f"{several} {path} ({detail}). Say which with arch (--arch NAME), one of {', '.join(BUILDERS)} or timm's"
        )
    name, these = fits[0]
    size = size or _input_size(name)
    return Card(
        id=path.name.split(".")[0],
        arch=name,
        arch_args=these,
        num_classes=classes,
        preprocess=Preprocess(size=size, resize=size),
        weights=path.name,
        sha256=sha256_of(path),
        origin=f"{path.name}: architecture found by names and shapes" if arch is None else f"{path.name}: architecture as told",
    )


def _candidates() -> list[tuple[str, dict[str, Any]]]:
    cards = [Card.read(p) for p in shipped().values()]
    return [("resnet18_32", {}), ("xcit_nano_p4", {}), *((c.arch, dict(c.arch_args)) for c in cards)]


def _shapes(arch: str, classes: int, args: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {k: v.shape for k, v in build(arch, num_classes=classes, arch_args=args).state_dict().items()}


def _input_size(arch: str) -> int:
    """Input size of an architecture: 32 for our small-image builders, timm's own otherwise."""
    if arch in BUILDERS:
        return 32
    import timm

    cfg = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    return int(cfg.input_size[-1]) if cfg else 224


def _normalised(card: Card, name: str) -> Card:
    if name not in NORMALISERS:
        raise InputError(f"normalise is {name!r}; expected one of {', '.join(NORMALISERS)}")
    mean, std = NORMALISERS[name]
    return dataclasses.replace(card, preprocess=dataclasses.replace(card.preprocess, mean=mean, std=std))


def _settle(card: Card, tensors: Mapping[str, Tensor], path: Path, images: Batch | None) -> Model:
    """Take the normalisation under which labelled images are classified best, and say so."""
    if images is None or bool((images.labels < 0).any()):
        raise InputError(
            f"{path} is {card.arch} with {card.num_classes} classes, but nothing says how its inputs were normalised. "
            f"Say so with normalise (--normalise {'|'.join(NORMALISERS)}), or give labelled images to settle it"
        )
    check_labels(card, images)
    scores: dict[str, tuple[float, float]] = {}
    models: dict[str, Model] = {}
    for name in NORMALISERS:
        model = models[name] = _fill(_normalised(card, name), tensors, path)
        model.check_images(images.images.shape)
        with torch.inference_mode():
            logits = torch.cat([model(part.images) for part in images.chunks(64)])
        right = (logits.argmax(1) == images.labels).float().mean().item()
        scores[name] = (right, -F.cross_entropy(logits, images.labels).item())
    best = max(scores, key=lambda name: scores[name])
    said = ", ".join(f"{name} {right:.0%}" for name, (right, _) in scores.items())
    note = f"normalisation settled on {len(images)} labelled images (accuracy: {said}): {best}"
    log.warning("%s: %s", path.name, note)
    if scores[best][0] < 2 / card.num_classes:
        log.warning("%s classifies these images hardly better than chance; are labels and architecture right?", path.name)
    model = models[best]
    labels = images.classes if len(images.classes) == card.num_classes else ()
    model.card = dataclasses.replace(model.card, labels=labels, origin=f"{card.origin}; {note}")
    return model


def check_labels(card: Card, images: Batch) -> None:
    """Raise InputError where the images' classes are not the model's: another number, or other names in another order."""
    if images.classes and len(images.classes) != card.num_classes:
        raise InputError(
            f"model {card.id} has {card.num_classes} classes, the images come with {len(images.classes)} "
            f"({', '.join(images.classes[:4])}…); use images of the classes the model was trained on"
        )
    if images.classes and card.labels and images.classes != card.labels:
        raise InputError(
            f"model {card.id} names its classes {', '.join(card.labels[:4])}…, the images {', '.join(images.classes[:4])}…; "
            f"rename the class folders so that names and order agree"
        )
    if int(images.labels.max()) >= card.num_classes:
        raise InputError(f"model {card.id} has {card.num_classes} classes, the images have a label {int(images.labels.max())}")


def _load_timm(name: str) -> Model:
    import timm
    from timm.data import resolve_model_data_config

    base = name.split(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=4)
        raise InputError(f"timm has no model {name!r}; the nearest names are {', '.join(near) or 'none'}")
    try:
        net: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm and the hub raise many kinds; each one means that the weights are not to be had
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"timm:{name} could not be loaded ({text}); fetch its weights while online, or give a file") from error
    cfg = resolve_model_data_config(net)
    size = int(cfg["input_size"][-1])
    preprocess = Preprocess(size, int(size / cfg["crop_pct"]), cfg["interpolation"], cfg["mean"], cfg["std"])
    card = Card(f"timm:{name}", base, net.num_classes, preprocess, origin="timm", labels=())  # type: ignore[arg-type]
    return Model(net, card)
