"""An inspection in words and as JSON."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch

from interp.loading.candidate import Candidate
from interp.models.answers import Answer
from interp.models.build import build
from interp.models.inspect import Inspection
from interp.models.normalise import name_of
from interp.types import Card, InputError

SHOWN = 6  # names of each kind, before '… and N more'


def as_text(found: Inspection) -> str:
    """Everything that was found, a line each, what is open and what to say last."""
    return "\n".join(f"{name:<14}{line}".rstrip() for name, value in _rows(found) for name, line in _lines(name, value))


def _lines(name: str, value: str | list[str]) -> list[tuple[str, str]]:
    lines = [value] if isinstance(value, str) else value
    return [(name if i == 0 else "", line) for i, line in enumerate(lines)]


def _rows(found: Inspection) -> list[tuple[str, str | list[str]]]:
    c, w, card = found.contents, found.weights, found.describe()
    p = card.preprocess
    count, work = cost(card)
    rows: list[tuple[str, str | list[str]]] = [
        ("file", f"{c.path} ({c.size / 1e6:.1f} MB)"),
        ("sha256", c.sha256),
        ("container", f"{c.container}, read by {c.reader}"),
        ("origin", " in ".join(reversed(w.formats)) or "bare state dict"),
        ("removed", list(w.did) or "nothing: the names are the network's own"),
        ("copy", _copy(found)),
        ("keys", _keys(found)),
        ("architecture", _architecture(found)),
        ("parameters", f"{count / 1e6:.2f} M, {work / 1e6:,.0f} M multiply-accumulates in matrix products at {p.size} pixels"),
        ("classes", f"{found.classes}"),
        ("size", _said(found.size, "{} pixels")),
        (
            "images",
            f"shorter side to {p.resize} pixels, {p.interpolation}, centre of {p.size} × {p.size}; from {_prepared(found)}",
        ),
        ("channels", _said(found.channels, "{}")),
        ("normalisation", _normalisation(found)),
        ("threat model", _threat(found)),
    ]
    rows += [("known as", f"{found.card.id} (catalogue or card)")] if found.card else []
    rows += [("not called", [", ".join(c.refused[:SHOWN]), *_more(len(c.refused))])] if c.refused else []
    rows += [("warnings", [*found.warnings, *w.notes])] if (*found.warnings, *w.notes) else []
    rows += [("open", found.questions())] if found.questions() else [("open", "nothing: interp.load takes it as it is")]
    return rows


def _copy(found: Inspection) -> str:
    w = found.weights
    if not w.copies:
        return "one copy of the weights"
    taken = "averaged (EMA)" if w.copies == "ema" else "raw"
    both = any("holds the" in did or "copy of two" in did for did in w.did)
    other = {"ema": "raw", "raw": "ema"}[w.copies]
    return f"{taken}; the file holds both, --{other} takes the other" if both else f"{taken}; the file holds no other"


def _keys(found: Inspection) -> list[str]:
    w = found.weights
    changed = {new: old for new, old in w.source.items() if new != old}
    renamed = {new: old for new, old in changed.items() if not old.endswith(new)}  # the others lost a wrapper's prefix only
    prefixed = len(changed) - len(renamed)
    lines = [f"{len(w.tensors)} kept ({prefixed} without their prefix, {len(renamed)} renamed), {len(w.dropped)} dropped"]
    lines += [f"renamed {old} → {new}" for new, old in list(renamed.items())[:SHOWN]] + _more(len(renamed))
    lines += [f"dropped {old}: {why}" for old, why in list(w.dropped.items())[:SHOWN]] + _more(len(w.dropped))
    if found.filled:
        lines.append(f"{len(found.filled)} counters the file lacks are set to 0 ({found.filled[0]}…); nothing reads them")
    return lines


def _more(n: int) -> list[str]:
    return [f"… and {n - SHOWN} more (--json has all)"] if n > SHOWN else []


def _architecture(found: Inspection) -> list[str]:
    if found.arch is None:
        evidence = [line for c in found.fits[:1] for line in c.evidence]
        return [f"open: {len(found.fits)} fit, which differ in what shapes cannot show", *evidence]
    c = found.arch.value
    return [f"{c.arch} {c.arch_args or ''}".strip() + f", from {found.arch.source}", *c.evidence]


def _said(answer: Answer | None, form: str) -> str:
    return f"{form.format(answer.value)}, from {answer.source}" if answer else "open"


def _prepared(found: Inspection) -> str:
    """Where resize and interpolation come from: they prepare other images, and change nothing for those of the right size."""
    if found.card is not None:
        return "its card"
    return f"the usual preparation for {found.describe().arch}; a card beside the file can say another"


def _normalisation(found: Inspection) -> str:
    if found.normaliser is None:
        return "open"
    mean, std = found.normaliser.value
    name = name_of((mean, std))
    numbers = "" if "/" in name else f" (mean {' '.join(f'{v:g}' for v in mean)}, std {' '.join(f'{v:g}' for v in std)})"
    return f"{name}{numbers}, from {found.normaliser.source}"


def _threat(found: Inspection) -> str:
    if found.threat is None:
        return "unknown" if found.card is None else "none (standard training)" if found.card.training else "unknown"
    threat = found.threat.value
    return f"{threat.norm} {threat.eps * 255:g}/255, from {found.threat.source}"


def as_json(found: Inspection) -> dict[str, Any]:
    """The same for programs; nothing shortened."""
    c, w, card = found.contents, found.weights, found.describe()
    count, work = cost(card)

    def plain(answer: Answer | None) -> dict[str, Any] | None:
        return {"value": answer.value, "from": answer.source} if answer else None

    return {
        "file": str(c.path),
        "bytes": c.size,
        "sha256": c.sha256,
        "container": c.container,
        "reader": c.reader,
        "origin": list(w.formats),
        "removed": list(w.did),
        "copy": w.copies or None,
        "kept": len(w.tensors),
        "renamed": {new: old for new, old in w.source.items() if new != old},
        "dropped": w.dropped,
        "filled": list(found.filled),
        "architecture": _candidate(found.arch.value) | {"from": found.arch.source} if found.arch else None,
        "fits": [_candidate(c) for c in found.fits],
        "classes": found.classes,
        "parameters": count,
        "macs": work,
        "size": plain(found.size),
        "resize": {"value": card.preprocess.resize, "from": _prepared(found)},
        "interpolation": {"value": card.preprocess.interpolation, "from": _prepared(found)},
        "channels": plain(found.channels),
        "normalisation": None
        if found.normaliser is None
        else {"mean": found.normaliser.value[0], "std": found.normaliser.value[1], "from": found.normaliser.source},
        "threat": None
        if found.threat is None
        else {"norm": found.threat.value.norm, "eps": found.threat.value.eps, "from": found.threat.source},
        "known_as": found.card.id if found.card else None,
        "refused": list(c.refused),
        "warnings": [*found.warnings, *w.notes],
        "open": found.questions(),
    }


def _candidate(c: Candidate) -> dict[str, Any]:
    return {"arch": c.arch, "arch_args": c.arch_args, "choice": c.choice, "evidence": list(c.evidence)}


def cost(card: Card) -> tuple[int, int]:
    """Parameters and multiply-accumulates of one image, without memory for either (half of torch's FLOP count).

    Raises InputError where the architecture does not take images of the card's size.
    """
    return counted(card.arch, json.dumps(card.arch_args, sort_keys=True), card.num_classes, card.preprocess.size)


@lru_cache(maxsize=64)
def counted(arch: str, args: str, classes: int, size: int) -> tuple[int, int]:
    """`cost`, of what can be remembered."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = build(arch, num_classes=classes, arch_args=json.loads(args)).eval().requires_grad_(False)
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                net(torch.zeros(1, 3, size, size))
        except Exception as error:  # each architecture has its own way to refuse a size
            first = str(error).partition("\n")[0]
            raise InputError(
                f"{arch} {args} does not take images of {size} × {size} pixels ({first}); say another --size"
            ) from error
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2
