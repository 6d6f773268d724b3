"""What a checkpoint file is: origin, architecture, preprocessing, each with where the answer came from, and what is left open.

Answers are taken in this order: from the caller, from the file (a card beside or inside it, normaliser buffers, training
options), from the catalogue by the file's sha256, and from the architecture's definition. What none of them says stays open:
it is asked for, or settled on labelled images (`settle`), never guessed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from interp.loading.candidate import Candidate
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
from interp.models.build import resolve
from interp.models.catalogue import catalogue
from interp.models.fits import COUNTED, architecture_of, choice_of, flags_of, key_of, skeleton
from interp.models.hub import CONFIGS, WEIGHTS, beside, file_in
from interp.models.known import known_card
from interp.models.normalise import NORMALISERS, Normaliser, name_of
from interp.types import Card, InputError, Preprocess


@dataclass(frozen=True, repr=False)
class Inspection:
    """All that was found out about one file.

    fits: architectures that every name and shape fits; arch is the one taken, None while several are open. normaliser, size,
    channels, threat likewise. card: the known card of this file, with it or in the catalogue. filled: counters the file lacks.
    Printed, it is the text of `interp inspect`.
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
            ways = " | ".join(f"{flags_of(c)}{choice_of(c)}" for c in self.fits)
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
            id=same.id if same else self._name(),
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

    def _name(self) -> str:
        """The file's stem; of a hub's folder, whose files are all called alike, the folder's name."""
        return self.path.resolve().parent.name if self.path.name in WEIGHTS else self.path.name.split(".")[0]

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


def has_card(path: Path) -> bool:
    """Whether a file's card is known, so that it leaves nothing open; its architecture is not looked for."""
    contents = read(file_in(path))
    return known_card(file_in(path), contents.sha256, contents.metadata) is not None


def inspect(path: str | Path, said: Said | None = None) -> Inspection:
    """Find out what a checkpoint file is, without building a network of it.

    Raises InputError where the file cannot be read, holds no state dict, no architecture fits it, or what was said does not.
    """
    path, said = file_in(Path(path)), said or Said()
    contents = read(path)
    try:
        weights = unwrap(contents.root, metadata=contents.metadata, ema=said.ema)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    known = known_card(path, contents.sha256, contents.metadata)
    configured = beside(path)
    source = f"{' and '.join(CONFIGS)} beside the file" if configured else "the file's training options"
    facts = Facts(configured | weights.facts, source)
    eps = facts.values.get("layer_norm_eps")
    if "layer_norm_eps" in weights.arch_args and isinstance(eps, float):
        weights = replace(weights, arch_args=weights.arch_args | {"layer_norm_eps": eps})
    warnings = list(contents.warnings)
    arch, fits = architecture_of(path, weights, facts, said, known, warnings)
    classes = (arch.value if arch else fits[0]).num_classes
    if classes < 2:
        raise InputError(
            f"{path} ends in {classes} outputs; a classifier of two classes or more is needed to analyse what it sees"
        )
    expected = skeleton(*key_of(arch.value if arch else fits[0]))
    normal = normaliser_of(weights, facts, said, known, warnings)
    return Inspection(
        path=path,
        contents=contents,
        weights=weights,
        classes=classes,
        fits=fits,
        arch=arch,
        normaliser=normal,
        size=size_of(facts, said, known, arch),
        channels=channels_of(weights, facts, said, known),
        threat=threat_of(facts, known),
        card=known.card if known else None,
        filled=tuple(k for k in expected if k.endswith(COUNTED) and k not in weights.tensors),
        warnings=tuple(warnings),
    )
