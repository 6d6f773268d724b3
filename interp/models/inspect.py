"""What a checkpoint file is: origin, architecture, preprocessing, each with where the answer came from, and what is left open.

Answers are taken in this order: from the caller, from the file (a card beside or inside it, normaliser buffers, training
options), from the catalogue by the file's sha256, and from the architecture's definition. What none of them says stays open:
it is asked for, or settled on labelled images (`settle`), never guessed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.loading.candidate import Candidate
from interp.loading.detect import detect, mismatch, num_classes
from interp.loading.formats import unwrap
from interp.loading.read import Contents, read
from interp.loading.weights import Weights
from interp.models.answers import (
    Answer,
    Facts,
    Said,
    channels_of,
    normaliser_of,
    published_preprocess,
    size_of,
    threat_of,
)
from interp.models.build import BUILDERS, build, nearest, resolve
from interp.models.catalogue import by_sha256, catalogue
from interp.models.hub import CONFIGS, beside
from interp.models.normalise import NORMALISERS, Normaliser, name_of
from interp.types import Card, InputError, Preprocess

CARD = "interp_card"  # key of a safetensors header, written by `publish`
COUNTED = "num_batches_tracked"  # a counter that evaluation never reads; files older than torch 0.4.1 lack it


@dataclass(frozen=True, repr=False)
class Inspection:
    """All that was found out about one file.

    fits: architectures that every name and shape fits; arch is the one taken, None while several are open. normaliser, size,
    channels, threat likewise. card: the known card of exactly this file, beside it or in the catalogue. filled: counters the
    file lacks. parameters, macs: of one image, counted without weights.
    """

    path: Path
    contents: Contents
    weights: Weights
    classes: int
    fits: tuple[Candidate, ...]
    arch: Answer | None
    normaliser: Answer | None
    size: Answer | None
    channels: Answer | None
    threat: Answer | None
    card: Card | None
    filled: tuple[str, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        from interp.models.describe import as_text

        return as_text(self)

    @property
    def settled(self) -> bool:
        """Whether the file can be loaded as it is."""
        return self.arch is not None and self.normaliser is not None and self.channels is not None

    def questions(self) -> list[str]:
        """What must still be said, each with the words to say it in."""
        asked = []
        if self.arch is None:
            ways = " | ".join(f"{_flags(c)}{_choice(c)}" for c in self.fits)
            asked.append(f"shapes cannot tell these apart; say which: {ways}")
        if self.normaliser is None:
            asked.append(f"nothing says how inputs were normalised; say --normalise {'|'.join(NORMALISERS)}{self._precedents()}")
        if self.channels is None:
            asked.append("readers of this format disagree on the order of colours; say --channels rgb|bgr")
        return asked

    def _precedents(self) -> str:
        """What published checkpoints of the open architectures do, by the catalogue."""
        known = {(c.arch, json.dumps(c.arch_args, sort_keys=True)) for c in self.fits}
        ways: dict[str, str] = {}
        for entry in catalogue().values():
            card = entry.card
            if (card.arch, json.dumps(card.arch_args, sort_keys=True)) in known and card.num_classes == self.classes:
                ways.setdefault(name_of((card.preprocess.mean, card.preprocess.std)), entry.id)
        return f" (published ones: {', '.join(f'{way} as {who}' for way, who in ways.items())})" if ways else ""

    def describe(self, candidate: Candidate | None = None, normal: Normaliser | None = None, channels: str = "") -> Card:
        """The card of this file under one architecture, normalisation and channel order; those taken where none are given."""
        if self.card is not None and candidate is None and normal is None and self._as_its_card():
            return self.card
        chosen = candidate or (self.arch.value if self.arch else self.fits[0])
        mean, std = normal or (self.normaliser.value if self.normaliser else NORMALISERS["none"])
        base = self.card.preprocess if self.card else published_preprocess(chosen.arch)
        channels = channels or (self.channels.value if self.channels else "rgb")
        size = self.size.value if self.size else chosen.size or base.size
        resize = base.resize if size == base.size else size
        preprocess = Preprocess(size, resize, base.interpolation, mean, std, channels)
        same = self.card if self.card is not None and self.card.num_classes == self.classes else None
        return Card(
            id=same.id if same else self.path.name.split(".")[0],
            arch=chosen.arch,
            num_classes=self.classes,
            preprocess=preprocess,
            arch_args=dict(chosen.arch_args),
            labels=same.labels if same else (),
            weights=self.path.name,
            sha256=self.contents.sha256,
            origin=self.origin(),
            training=same.training if same else "",
            threat=self.threat.value if self.threat else None,
        )

    def _as_its_card(self) -> bool:
        """Whether every answer is the known card's own."""
        card = self.card
        if card is None or self.arch is None or self.normaliser is None or self.channels is None:
            return False
        a, p = self.arch.value, card.preprocess
        same = (a.arch, dict(a.arch_args)) == resolve(card.arch, card.arch_args) and self.normaliser.value == (p.mean, p.std)
        return same and (self.size is None or self.size.value == p.size) and self.channels.value == p.channels

    def origin(self) -> str:
        """In one line, what the file was found to be and where the answers came from."""
        parts = [f"{self.path.name}: {', '.join(self.weights.formats) or 'bare state dict'}"]
        if self.arch:
            parts.append(f"architecture from {self.arch.source}")
        if self.normaliser:
            parts.append(f"normalisation {name_of(self.normaliser.value)} from {self.normaliser.source}")
        return "; ".join(parts)


def inspect(path: str | Path, said: Said | None = None) -> Inspection:
    """Find out what a checkpoint file is, without building a network of it.

    Raises InputError where the file cannot be read, holds no state dict, no architecture fits it, or what was said does not.
    """
    path, said = Path(path), said or Said()
    contents = read(path)
    try:
        weights = unwrap(contents.root, metadata=contents.metadata, ema=said.ema)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    card, whence = known_card(path, contents.sha256, contents.metadata)
    configured = beside(path)
    source = f"{' and '.join(CONFIGS)} beside the file" if configured else "the file's training options"
    facts = Facts(configured | weights.facts, source)
    warnings = list(contents.warnings)
    arch, fits = _architecture(path, weights, facts, said, card, whence, warnings)
    classes = (arch.value if arch else fits[0]).num_classes
    expected = skeleton(*_key(arch.value if arch else fits[0]))
    normal = normaliser_of(weights, facts, said, card, whence, warnings)
    return Inspection(
        path=path,
        contents=contents,
        weights=weights,
        classes=classes,
        fits=fits,
        arch=arch,
        normaliser=normal,
        size=size_of(facts, said, card, whence, arch),
        channels=channels_of(weights, facts, said, card, whence),
        threat=threat_of(facts, card, whence),
        card=card,
        filled=tuple(k for k in expected if k.endswith(COUNTED) and k not in weights.tensors),
        warnings=tuple(warnings),
    )


def sidecar(path: Path) -> Path:
    """Where the card of a checkpoint file lies: beside it, under the same stem."""
    return path.with_name(path.name.split(".")[0] + ".toml")


def known_card(path: Path, sha256: str, metadata: Mapping[str, str]) -> tuple[Card | None, str]:
    """The card beside the file, inside it, or the catalogue's for exactly these bytes, and which of them it is."""
    beside = sidecar(path)
    if beside.is_file():
        card = Card.read(beside)
        if card.sha256 and card.sha256 != sha256:
            raise InputError(f"{path} has sha256 {sha256[:12]}…, its card says {card.sha256[:12]}…; restore the file or its card")
        return card, "the card beside the file"
    if inside := metadata.get(CARD):
        return Card.from_toml(inside), "the card inside the file"
    for other in sorted(checkpoint_folder().glob("*.toml")):
        card = Card.read(other)
        if card.sha256 == sha256:
            return card, f"the card of {card.id} (same sha256)"
    entry = by_sha256(sha256)
    return (entry.card, f"the catalogue by sha256 ({entry.id})") if entry else (None, "")


def checkpoint_folder() -> Path:
    """Where the shipped checkpoints lie: $INTERP_CHECKPOINTS, else the package's own copy, else the source tree's."""
    if given := os.environ.get("INTERP_CHECKPOINTS"):
        return Path(given)
    package = Path(__file__).resolve().parents[1]
    installed = package / "_checkpoints"
    return installed if installed.is_dir() else package.parent / "checkpoints"


def _key(candidate: Candidate) -> tuple[str, str, int]:
    return candidate.arch, json.dumps(candidate.arch_args, sort_keys=True), candidate.num_classes


@lru_cache(maxsize=256)
def skeleton(arch: str, args: str, classes: int) -> Mapping[str, Tensor]:
    """The state dict of an architecture (arguments as JSON), built without memory: names, shapes and kinds of numbers."""
    with torch.device("meta"):
        return build(arch, num_classes=classes, arch_args=json.loads(args)).state_dict()


def misfit(weights: Weights, candidate: Candidate) -> str:
    """How the tensors differ from an architecture, in words; empty where they fit. Missing counters are no difference."""
    expected = {k: v for k, v in skeleton(*_key(candidate)).items() if not (k.endswith(COUNTED) and k not in weights.tensors)}
    if difference := mismatch(weights.tensors, {k: v.shape for k, v in expected.items()}):
        return difference
    wrong = [k for k, v in expected.items() if v.is_floating_point() and not weights.tensors[k].is_floating_point()]
    return f"{wrong[0]} holds {weights.tensors[wrong[0]].dtype} where weights are real numbers" if wrong else ""


def _architecture(
    path: Path, weights: Weights, facts: Facts, said: Said, card: Card | None, whence: str, warnings: list[str]
) -> tuple[Answer | None, tuple[Candidate, ...]]:
    """The architecture that was said, or is known, or alone fits; with all that fit."""
    found = [replace(c, arch_args=c.arch_args | weights.arch_args) for c in detect(weights.tensors)]
    classes = num_classes(weights.tensors) or (found[0].num_classes if found else 0)
    if said.arch is not None:
        told = _told(said.arch, {**weights.arch_args, **said.arch_args}, classes)
        if difference := misfit(weights, told):
            raise InputError(f"{path} does not fit {_spelled(told)}: {difference}{_instead(weights, found)}")
        return Answer(told, "what you said"), (told,)
    if card is not None:
        known = _told(card.arch, card.arch_args, card.num_classes)
        if difference := misfit(weights, known):
            raise InputError(f"{path} does not fit {_spelled(known)} of {whence}: {difference}; say which with --arch")
        return Answer(known, whence), (known,)
    for key in ("arch", "model", "model_name", "architecture"):
        name = facts.values.get(key)
        if not isinstance(name, str) or not _is_known(name):
            continue
        own = _told(name, weights.arch_args, classes)
        if not misfit(weights, own):
            return Answer(own, f"{facts.source} ({key} = {name!r})"), (own,)
        if alike := [c for c in found if c.arch == own.arch]:
            found = alike
        else:
            warnings.append(f"the file calls itself {name}, which its weights do not fit; the shapes were believed")
    fits = tuple(c for c in found if not misfit(weights, c) and all(c.arch_args.get(k) == v for k, v in said.arch_args.items()))
    if not fits:
        raise InputError(_nothing_fits(path, weights, found, classes))
    return (Answer(fits[0], "names and shapes, which fit nothing else known") if len(fits) == 1 else None), fits


def _is_known(name: str) -> bool:
    import timm

    arch, _ = resolve(name)
    return arch in BUILDERS or timm.is_model(arch)


def _told(name: str, args: Mapping[str, Any], classes: int) -> Candidate:
    arch, every = resolve(name, dict(args))
    if not _is_known(arch):
        raise InputError(f"no architecture is called {name!r}; the nearest names are {', '.join(nearest(name)) or 'none'}")
    return Candidate(arch, max(classes, 1), every)


def _instead(weights: Weights, found: list[Candidate]) -> str:
    fits = [c for c in found if not misfit(weights, c)]
    return f". Its names and shapes fit {' | '.join(_flags(c) for c in fits)}" if fits else ""


def _nothing_fits(path: Path, weights: Weights, found: list[Candidate], classes: int) -> str:
    held = f"{len(weights.tensors)} tensors ({', '.join(sorted(weights.tensors)[:3])}…)"
    if found:
        close: dict[str, list[str]] = {}
        for c in found[:6]:
            close.setdefault(misfit(weights, c), []).append(_spelled(c))
        said = ". ".join(
            f"{' or '.join(names)}, but {difference}" for difference, names in sorted(close.items(), key=_length)[:3]
        )
        return f"no known architecture fits {path} with its {held}. Nearest: {said}. Say which it is with --arch NAME"
    head = "" if classes else " and no classifier under a known name (head, fc, linear, classifier, logits)"
    return (
        f"no known architecture has the names in {path}: {held}{head}. Say which with --arch NAME (timm's names and "
        f"{', '.join(list(BUILDERS)[:6])}, …); weights of a model without classifier cannot be analysed"
    )


def _length(item: tuple[str, list[str]]) -> int:
    return len(item[0])


def _spelled(candidate: Candidate) -> str:
    return f"{candidate.arch} {candidate.arch_args}" if candidate.arch_args else candidate.arch


def _flags(candidate: Candidate) -> str:
    """A candidate in the words of the command line."""
    return " ".join([f"--arch {candidate.arch}", *(f"--arch-arg {k}={json.dumps(v)}" for k, v in candidate.arch_args.items())])


def _choice(candidate: Candidate) -> str:
    return f" ({', '.join(f'{k} {v}' for k, v in candidate.choice.items())})" if candidate.choice else ""
