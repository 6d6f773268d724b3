"""Cards that are known for a file: beside it, inside it, or the catalogue's for exactly these bytes."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from interp.models.catalogue import by_sha256
from interp.types import Card, InputError

CARD = "interp_card"  # key of a safetensors header, written by `publish`
CONTRAST = "contrast"  # within the folder of the shipped checkpoints: those that are examples of something, not default models
ENDINGS = (".pth.tar", ".tar.gz")


@dataclass(frozen=True)
class Known:
    """A card and where it was found. own: with the file itself, so that it is believed before the file's training options."""

    card: Card
    source: str
    own: bool


def checkpoint_folder() -> Path:
    """Where the shipped checkpoints lie: $INTERP_CHECKPOINTS, else the package's own copy, else the source tree's."""
    if given := os.environ.get("INTERP_CHECKPOINTS"):
        return Path(given)
    package = Path(__file__).resolve().parents[1]
    installed = package / "_checkpoints"
    return installed if installed.is_dir() else package.parent / "checkpoints"


def cards_in(folder: Path) -> dict[str, Path]:
    """Ids of the checkpoints in a folder, in order, with the paths of their cards; none where there is no folder."""
    return {p.stem: p for p in sorted(folder.glob("*.toml"))}


def sidecar(path: Path) -> Path:
    """Where the card of a checkpoint file lies: beside it, the file's ending replaced by .toml."""
    ending = next((e for e in ENDINGS if path.name.endswith(e)), path.suffix)
    return path.with_name(path.name.removesuffix(ending) + ".toml")


def known_card(path: Path, sha256: str, metadata: Mapping[str, str]) -> Known | None:
    """The card of a file, None where there is none; raises InputError where it is the card of other bytes."""
    beside = sidecar(path)
    if beside.is_file() and _is_card(beside):
        card = Card.read(beside)
        if card.sha256 and card.sha256 != sha256:
            raise InputError(f"{path} has sha256 {sha256[:12]}…, its card says {card.sha256[:12]}…; restore the file or its card")
        return Known(card, "the card beside the file", own=True)
    if inside := metadata.get(CARD):
        return Known(Card.from_toml(inside), "the card inside the file", own=True)
    for other in (*cards_in(checkpoint_folder()).values(), *cards_in(checkpoint_folder() / CONTRAST).values()):
        card = Card.read(other)
        if card.sha256 == sha256:
            return Known(card, f"the card of {card.id} (same sha256)", own=False)
    entry = by_sha256(sha256)
    return Known(entry.card, f"the catalogue by sha256 ({entry.id})", own=False) if entry else None


def _is_card(path: Path) -> bool:
    """Whether a TOML file means to be a card, and not another program's configuration; a damaged one does."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return True
    return bool({"arch", "preprocess", "num_classes"} & found.keys())
