"""Model: a network with its card; it takes images in [0, 1] and normalises them itself, so that ε has one unit."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from interp.models.chunks import in_chunks
from interp.types import Card, Images, InputError

FAMILIES = {"XCiT": "xcit", "Xcit": "xcit", "ResNet": "resnet", "ResNetCifar": "resnet", "ByobNet": "byobnet"}


class Model(nn.Module):
    """A frozen network in eval mode: `forward(x)` takes (n, 3, h, w) float32 in [0, 1] and returns logits (n, classes).

    net: the bare network. card: what is known of it. family: 'xcit', 'mobilevit', 'mobilevitv2', 'resnet' or the class name of
    others; attention and Grad-CAM choose their layers by it. Printing a model shows its pipeline.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, card: Card) -> None:
        super().__init__()
        flat = all(t.ndim <= 4 for t in (*net.parameters(), *net.buffers()))  # the format is refused for five axes
        self.net = net.to(memory_format=torch.channels_last) if flat else net  # the same function, faster convolutions
        self.card = card
        self.family = family_of(net)
        for name, values in (("mean", card.preprocess.mean), ("std", card.preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.card.preprocess.channels == "bgr":
            x = x.flip(1)
        return self.net((x - self.mean) / self.std)

    @torch.no_grad()
    def read(self, images: Images, *, chunk: int = 64) -> Tensor:
        """Logits (n, classes) of any number of images, wherever they are, on the processor; chunk images at a time."""
        pieces = in_chunks(lambda rows: self(images[rows].to(self.mean)).cpu(), len(images), chunk)
        return torch.cat([logits for _, logits in pieces])

    @property
    def robust(self) -> bool:
        """Whether the card says that the model was trained against an adversary."""
        return self.card.threat is not None

    @cached_property
    def digest(self) -> str:
        """sha256 of architecture, preprocessing and weights: two models with one digest compute one function."""
        h = hashlib.sha256(repr((self.card.arch, sorted(self.card.arch_args.items()), self.card.preprocess)).encode())
        for name, tensor in sorted(self.net.state_dict().items()):
            h.update(name.encode())
            h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return h.hexdigest()

    @property
    def parameters_count(self) -> int:
        """Number of weights, buffers left out."""
        return sum(p.numel() for p in self.net.parameters())

    def check_images(self, shape: torch.Size) -> None:
        """Raise InputError where images of that shape cannot be fed to this model."""
        size = self.card.preprocess.size
        if len(shape) != 4 or shape[1] != 3 or tuple(shape[2:]) != (size, size):
            raise InputError(
                f"model {self.card.id} takes images (n, 3, {size}, {size}); found {tuple(shape)}. "
                f"Load them with interp.images(source, preprocess=model.card.preprocess)"
            )

    def __repr__(self) -> str:
        p, c = self.card.preprocess, self.card
        trained = f"trained against {c.threat.norm} {c.threat.eps * 255:g}/255" if c.threat else c.training or "training unknown"
        return (
            f"Model({c.id}: {c.arch} {c.arch_args or ''}, {self.parameters_count / 1e6:.2f} M parameters, {trained}; "
            f"[0, 1] {p.channels} {p.size}×{p.size} → (x − {p.mean}) / {p.std} → {c.num_classes} logits)"
        )


_uncompiled, _running = threading.Lock(), ExitStack()
_inside = 0  # how many threads or nested calls are inside `eager`


@contextmanager
def eager() -> Iterator[None]:
    """Inside, compiled modules run as they are written: what torch compiled leaves out hooks that are set afterwards.

    torch has one stance for all threads, so the first to come sets it and the last to go restores it.
    """
    global _inside
    with _uncompiled:
        if not _inside and "torch._dynamo" in sys.modules:
            _running.enter_context(torch.compiler.set_stance("force_eager"))
        _inside += 1
    try:
        yield
    finally:
        with _uncompiled:
            _inside -= 1
            if not _inside:
                _running.close()


def family_of(net: nn.Module) -> str:
    """The architecture family of a network, from its class; MobileViT is a timm ByobNet with transformer blocks."""
    kind = type(net).__name__
    blocks = {type(m).__name__ for m in net.modules()}
    for block, family in (("MobileVitBlock", "mobilevit"), ("MobileVitV2Block", "mobilevitv2")):
        if block in blocks:
            return family
    return FAMILIES.get(kind, kind.lower())


def macs(model: Model) -> int:
    """Multiply-accumulates of one forward pass on one image of the model's size (half of torch's FLOP count)."""
    from torch.utils.flop_counter import FlopCounterMode

    size = model.card.preprocess.size
    x = torch.zeros(1, 3, size, size, device=model.mean.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def model_coords(models: Sequence[Model]) -> dict[str, Any]:
    """Coordinates of a result over models: ids, whether each is robust, the group of its architecture, a short label.

    Twins (one architecture with one set of arguments) share a group, named by what their ids have in common. Labels such as
    'XCiT robust' are used where training is known and no two models share one, else the id. Names of classes where the models
    that have some have the same.
    """
    built = [(m.card.arch, tuple(sorted((k, str(v)) for k, v in m.card.arch_args.items()))) for m in models]
    twins = {b: [m.card.id for m, other in zip(models, built, strict=True) if other == b] for b in built}
    names = {b: os.path.commonprefix(ids).rstrip("_") or ids[0] for b, ids in twins.items()}  # noqa: RUF071 (names, not paths)
    alike = [b for b, name in names.items() if list(names.values()).count(name) > 1]
    names |= {b: twins[b][0] for b in alike}  # where two architectures' ids begin alike, the first id of each
    titles = [_label(m) for m in models]
    labels = next((m.card.labels for m in models if m.card.labels), ())
    named = all(m.card.num_classes == len(labels) and m.card.labels in ((), labels) for m in models)
    names_known = {"class": list(labels)} if labels and named else {}
    return names_known | {
        "label": ("model", [t if titles.count(t) == 1 else m.card.id for t, m in zip(titles, models, strict=True)]),
        "model": [m.card.id for m in models],
        "robust": ("model", [m.robust for m in models]),
        "group": ("model", [names[b] for b in built]),
    }


def twins(models: Sequence[Model]) -> list[tuple[int, int]]:
    """Positions (standard, robust) of models of one architecture."""
    groups = model_coords(models)["group"][1]
    standard = {g: k for k, (g, m) in enumerate(zip(groups, models, strict=True)) if not m.robust}
    return [(standard[g], k) for k, (g, m) in enumerate(zip(groups, models, strict=True)) if m.robust and g in standard]


def check_some(models: Sequence[Model]) -> None:
    """Raise InputError where there is no model to analyse, or one that is in no list."""
    if isinstance(models, Model):
        raise InputError(f"models is the model {models.card.id} itself; expected a list of models, such as [model]")
    if not models:
        raise InputError("no models were given; expected at least one, such as interp.load('PATH')")


def check_apart(models: Sequence[Model]) -> None:
    """Raise InputError where two models have one id."""
    ids = [model.card.id for model in models]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise InputError(
            f"{', '.join(twice)} is given twice; give each model or judge once, and rename one of two files of one name"
        )


def judges_of(models: Sequence[Model], generator: int | None) -> list[int]:
    """Positions of the models that may judge what `models[generator]` made: those of other architectures.

    Twins so have the same judges and can be compared; a robust twin would otherwise be judged by one robust model fewer.
    Where all models share one architecture, all others judge: less independent, and figures then say "other models" in place of
    "judges". generator None (a control) is judged by all.
    """
    if generator is None:
        return list(range(len(models)))
    groups = model_coords(models)["group"][1]
    others = [j for j in range(len(models)) if j != generator]
    return [j for j in others if groups[j] != groups[generator]] or others


def judges_between(models: Sequence[Model], one: int, other: int) -> list[int]:
    """Positions of the judges that two models have in common: what one is read by cannot be told from who reads otherwise."""
    return [j for j in judges_of(models, one) if j in judges_of(models, other)]


def _label(model: Model) -> str:
    """Architecture and training in a few words, or the id where the training is unknown."""
    if not model.robust and not model.card.training:
        return model.card.id
    given = model.card.arch_args.get("depth", "")
    sizes = [b for b in ("18", "34", "50", "101", "152") if f"resnet{b}" in model.card.arch or b == str(given)]
    title = {
        "xcit": "XCiT",
        "mobilevit": "MobileViT",
        "mobilevitv2": "MobileViTv2",
        "resnet": f"ResNet-{sizes[0]}" if sizes else "ResNet",
    }
    return f"{title.get(model.family, model.card.arch)} {'robust' if model.robust else 'standard'}"
