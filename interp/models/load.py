"""`load`: one string → a Model that says what was done. Shipped ids, files, catalogue ids, `hf-hub:OWNER/REPO` and `timm:NAME`.

What a file is, `inspect` finds out; what stays open is taken from the caller, or settled on labelled images, never guessed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.models.answers import Said
from interp.models.build import build
from interp.models.catalogue import catalogue, counts, find
from interp.models.describe import cost
from interp.models.fits import COUNTED
from interp.models.hub import from_hub
from interp.models.inspect import Inspection, inspect
from interp.models.known import CONTRAST, cards_in, checkpoint_folder
from interp.models.model import Model, check_apart, model_coords
from interp.models.normalise import normaliser
from interp.models.settle import doubt, settle
from interp.types import Batch, Card, InputError, Preprocess

log = logging.getLogger(__name__)


def shipped() -> dict[str, Path]:
    """Ids of the checkpoints at hand, with the paths of their cards: the default models of every analysis."""
    return cards_in(checkpoint_folder())


def contrast() -> dict[str, Path]:
    """The same for the shipped checkpoints that are examples of something, such as gradient masking; loaded only by name."""
    return cards_in(checkpoint_folder() / CONTRAST)


def load(
    spec: str | Path,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    normalise: str | None = None,
    size: int | None = None,
    channels: str | None = None,
    ema: bool | None = None,
    images: Batch | None = None,
    device: str = "cpu",
) -> Model:
    """Load a model: a shipped id, a checkpoint file, an id of the catalogue, `hf-hub:OWNER/REPO`, or `timm:NAME`.

    arch, arch_args, normalise ('none', 'imagenet', …, or 'm,m,m/s,s,s'), size and channels ('rgb', 'bgr') answer what a file
    leaves open; ema chooses between an averaged and a raw copy. With labelled `images` what is still open is settled by trying,
    and said; on any images a missing or double normalisation is warned of. Raises InputError where the spec, the file or these
    answers do not fit together.
    """
    return load_as(spec, Said(arch, arch_args or {}, normalise, size, channels, ema), images=images).to(device)


def load_as(spec: str | Path, said: Said, *, images: Batch | None = None) -> Model:
    """`load` with its answers in one object."""
    text = str(spec)
    if text.startswith("timm:"):
        return _load_timm(text.removeprefix("timm:"), said)
    path = locate(text)
    found = inspect(path, said)
    for warning in (*found.warnings, *found.weights.notes):
        log.warning("%s: %s", path.name, warning)
    if said.size is not None:
        cost(found.describe())  # refuses a size that the architecture does not take
    fill = partial(_fill, found)
    if found.settled:
        model = fill(_labelled(found.describe(), images))
        if images is not None and not (found.card and found.card.sha256):
            _check(model, images)
        return model
    if images is None or bool((images.labels < 0).any()):
        raise InputError(asked(found))
    try:
        check_labels(found.describe(), images)
    except InputError as misfit:
        raise InputError(asked(found, instead=f"these do not fit: {misfit}")) from misfit
    return settle(found, images, fill)


def asked(found: Inspection, *, instead: str = "") -> str:
    """What a file leaves open, in words that say how to answer; instead: why the images at hand do not."""
    way = "Or give labelled images to settle it by their accuracy"
    return f"{found.path}: {'; '.join(found.questions())}. {way}{'; ' * bool(instead)}{instead}"


def takes(card: Card, size: int) -> bool:
    """Whether the architecture of a card takes images of so many pixels a side."""
    try:
        cost(dataclasses.replace(card, preprocess=dataclasses.replace(card.preprocess, size=size, resize=size)))
    except InputError:
        return False
    return True


def locate(text: str) -> Path:
    """The file that a spec means: a path, a shipped id, or a catalogue id that was fetched, or hf-hub:OWNER/REPO."""
    if text.startswith("hf-hub:"):
        return from_hub(text.removeprefix("hf-hub:"))
    ids = shipped()
    if card := ids.get(text) or contrast().get(text):
        path = card.with_suffix(".safetensors")
        return path if path.is_file() else card.with_name(Card.read(card).weights or path.name)
    path = Path(text)
    if path.exists():
        return path
    if text.partition(":")[0] in counts():
        return _fetched(text)
    if path.suffix or os.sep in text:
        return path  # reading it says that it is not there
    known = dict.fromkeys([*ids, *contrast(), *(e.name for e in catalogue().values())])  # each once: a name may have many entries
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.3)
    raise InputError(
        f"{text!r} is neither a shipped checkpoint nor a file; the nearest ids are {', '.join(near or ids)}. "
        f"Give a path to a checkpoint, an id of `interp models '*'`, or timm:NAME"
    )


def _fetched(text: str) -> Path:
    """The file of a catalogue entry, where it was fetched."""
    from interp.models.fetch import on_disk

    entry = find(text)
    path = on_disk(entry)
    if path is None:
        raise InputError(f"{entry.id} is known but not here; get it with: interp fetch {entry.id}")
    return path


def _fill(found: Inspection, card: Card) -> Model:
    """Build what the card says and fill it; inspection has seen to it that every weight finds its place."""
    net = build(card.arch, num_classes=card.num_classes, arch_args=card.arch_args)
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in found.weights.tensors.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{found.path}: {name} goes beyond single precision; such weights compute nothing")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise InputError(f"{found.path}: {name} holds variances below zero; the file is damaged")
    counters = {k: v for k, v in net.state_dict().items() if k.endswith(COUNTED) and k not in tensors}
    net.load_state_dict(tensors | counters)
    return Model(net, card)


def _labelled(card: Card, images: Batch | None) -> Card:
    """A card without names of its classes takes those of images that have as many."""
    if images is None or card.labels or len(images.classes) != card.num_classes:
        return card
    return dataclasses.replace(card, labels=images.classes)


def _check(model: Model, images: Batch) -> None:
    if images.images.shape[-1] == model.card.preprocess.size and (warning := doubt(model, images)):
        log.warning("%s", warning)


def check_labels(card: Card, images: Batch) -> None:
    """Raise InputError where the images' classes are not the model's: another number, or other names in another order."""
    if images.classes and len(images.classes) != card.num_classes:
        raise InputError(
            f"model {card.id} has {card.num_classes} classes, the images come with {len(images.classes)} "
            f"({_some(images.classes)}); use images of the classes the model was trained on"
            + (f", named as the model names them ({_some(card.labels)})" if card.labels else "")
        )
    if images.classes and card.labels and images.classes != card.labels:
        raise InputError(
            f"model {card.id} names its classes {_some(card.labels)}, the images {_some(images.classes)}; "
            f"rename the class folders so that they have the model's names"
        )
    if int(images.labels.max()) >= card.num_classes:
        raise InputError(f"model {card.id} has {card.num_classes} classes, the images have a label {int(images.labels.max())}")


def unlabelled(images: Batch) -> Batch:
    """The images without labels, as if these were unknown."""
    return dataclasses.replace(images, labels=torch.full_like(images.labels, -1), classes=())


def same_images(a: Card, b: Card) -> bool:
    """Whether two models take the same images and know the same classes."""
    names = not a.labels or not b.labels or a.labels == b.labels
    return a.num_classes == b.num_classes and a.preprocess.size == b.preprocess.size and names


def renamed(model: Model, name: str) -> Model:
    """The same model by another id."""
    return Model(model.net, dataclasses.replace(model.card, id=name)).to(model.mean.device)


def named_apart(models: Sequence[Model], specs: Sequence[str]) -> list[Model]:
    """The models, those of one id named by the folders of their files too; raises InputError where one is given twice."""
    ids = [model.card.id for model in models]
    if len(set(specs)) < len(specs):
        check_apart(models)
    named = [
        renamed(model, f"{locate(spec).resolve().parent.name}_{model.card.id}") if ids.count(model.card.id) > 1 else model
        for model, spec in zip(models, specs, strict=True)
    ]
    check_apart(named)
    return named


def independent_judges(models: Sequence[Model]) -> list[Model]:
    """The shipped models that may judge what these make, where some two of these have no judge of another architecture in common.

    They are of architectures that none of these has, and take the same images. None where there are three architectures or more.
    """
    few = len(set(model_coords(models)["group"][1])) < 3
    others = [load(i) for i in shipped()] if few else []
    fitting = [other for other in others if all(same_images(other.card, m.card) for m in models)]
    groups = model_coords([*models, *fitting])["group"][1]
    taken = set(groups[: len(models)])
    apart = [other for other, group in zip(fitting, groups[len(models) :], strict=True) if group not in taken]
    ids = {model.card.id for model in models}
    named = [renamed(other, f"shipped_{other.card.id}") if other.card.id in ids else other for other in apart]
    return [other.to(models[0].mean.device) for other in sorted(named, key=lambda m: (m.card.arch, m.robust))]


def _some(names: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(names[:most]) + ("…" if len(names) > most else "")


def by_name(images: Batch, labels: tuple[str, ...]) -> Batch:
    """The images with the labels of a model, where every one of their classes is one of the model's by name; else as they are.

    So a folder with some of the model's classes, or with all of them in another order, means what its names say.
    """
    if not images.classes or images.classes == labels or not set(images.classes) <= set(labels) or len(set(labels)) < len(labels):
        return images
    new = torch.tensor([*map(labels.index, images.classes), -1])[images.labels]  # an unknown label, −1, takes the last: it stays
    named = dataclasses.replace(images, labels=new, classes=labels)
    by_class = bool((images.labels.diff() >= 0).all())  # as folders are: then again so, for `Batch.some`
    return named[new.argsort(stable=True).tolist()] if by_class else named


@contextlib.contextmanager
def _hub_as_reached(repo: str) -> Iterator[None]:
    """With the hub's client offline where there is no connection: its cache still answers, and it does not retry for a minute."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    before = constants.HF_HUB_OFFLINE
    try:
        get_hf_file_metadata(hf_hub_url(repo, "config.json"), timeout=10)
    except HfHubHTTPError:  # it answers, if only that there is no such file
        pass
    except Exception as error:  # noqa: BLE001 (the client's versions have kinds of their own for no connection)
        constants.HF_HUB_OFFLINE = before or "Timeout" not in type(error).__name__  # a slow hub deserves its retries
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load_timm(name: str, said: Said) -> Model:
    import timm
    from timm.data import resolve_model_data_config

    if said.arch or said.arch_args or said.ema is not None:
        raise InputError(f"timm:{name} says its architecture itself; leave --arch, --arch-arg, --ema and --raw out")
    base = name.split(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=4)
        raise InputError(f"timm has no model {name!r}; the nearest names are {', '.join(near) or 'none'}")
    try:
        with _hub_as_reached(f"timm/{name}"):
            net: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm and the hub raise many kinds; each one means that the weights are not to be had
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"timm:{name} could not be loaded ({text}); fetch its weights while online, or give a file") from error
    cfg = resolve_model_data_config(net)
    size = said.size or int(cfg["input_size"][-1])
    mean, std = normaliser(said.normalise) if said.normalise else (cfg["mean"], cfg["std"])
    resize = int(size / cfg["crop_pct"])
    preprocess = Preprocess(size, resize, cfg["interpolation"], mean, std, said.channels or "rgb")
    card = Card(f"timm:{name}", base, net.num_classes, preprocess, origin="timm", labels=())  # type: ignore[arg-type]
    return Model(net, card)
