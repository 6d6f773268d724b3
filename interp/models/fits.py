"""Which architecture a file's weights belong to: the one that was said, is known, or alone fits by names and shapes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.loading.candidate import Candidate
from interp.loading.detect import detect, mismatch, num_classes
from interp.loading.weights import Weights
from interp.models.answers import Answer, Facts, Said
from interp.models.build import BUILDERS, build, is_known, nearest, out_of_bounds, resolve
from interp.models.known import Known
from interp.types import InputError

COUNTED = "num_batches_tracked"  # a counter that evaluation never reads; files older than torch 0.4.1 lack it


def key_of(candidate: Candidate) -> tuple[str, str, int]:
    """What `skeleton` takes, for a candidate."""
    return candidate.arch, json.dumps(candidate.arch_args, sort_keys=True), candidate.num_classes


@lru_cache(maxsize=256)
def skeleton(arch: str, args: str, classes: int) -> Mapping[str, Tensor]:
    """The state dict of an architecture (arguments as JSON), built without memory: names, shapes and kinds of numbers."""
    with torch.device("meta"):
        return build(arch, num_classes=classes, arch_args=json.loads(args)).state_dict()


def misfit(weights: Weights, candidate: Candidate) -> str:
    """How the tensors differ from an architecture, in words; empty where they fit. Missing counters are no difference."""
    expected = {k: v for k, v in skeleton(*key_of(candidate)).items() if not (k.endswith(COUNTED) and k not in weights.tensors)}
    if difference := mismatch(weights.tensors, {k: v.shape for k, v in expected.items()}):
        return difference
    wrong = [k for k, v in expected.items() if v.is_floating_point() and not weights.tensors[k].is_floating_point()]
    return f"{wrong[0]} holds {weights.tensors[wrong[0]].dtype} where weights are real numbers" if wrong else ""


def architecture_of(
    path: Path, weights: Weights, facts: Facts, said: Said, known: Known | None, warnings: list[str]
) -> tuple[Answer | None, tuple[Candidate, ...]]:
    """The architecture that was said, or is known, or alone fits; with all that fit."""
    found = [
        replace(c, arch_args=c.arch_args | weights.arch_args)
        for c in detect(weights.tensors)
        if is_known(c.arch) and not out_of_bounds(c.arch_args, c.num_classes)
    ]
    classes = num_classes(weights.tensors) or (found[0].num_classes if found else 0) or _rows_of(weights, said.arch)
    if said.arch is not None:
        told = _told(said.arch, {**weights.arch_args, **said.arch_args}, classes)
        if difference := misfit(weights, told):
            raise InputError(f"{path} does not fit {_spelled(told)}: {difference}{_instead(weights, found)}")
        return Answer(told, "what you said"), (told,)
    if known is not None and known.own:
        return _of_card(path, weights, known)
    for key in ("arch", "model", "model_name", "architecture"):
        name = facts.values.get(key)
        if not isinstance(name, str) or not is_known(name):
            continue
        own = _named(name, weights, classes)
        if own is not None:
            return Answer(own, f"{facts.source} ({key} = {name!r})"), (own,)
        if alike := [c for c in found if c.arch == resolve(name)[0]]:
            found = alike
        else:
            warnings.append(f"the file calls itself {name}, which its weights do not fit; the shapes were believed")
    if known is not None:
        return _of_card(path, weights, known)
    shaped = [c for c in found if not misfit(weights, c)]
    if (used := facts.values.get("activation")) in {c.choice.get("activation") for c in shaped}:  # a pickled module shows it
        shaped = [c for c in shaped if c.choice.get("activation") == used]
    fits = tuple(c for c in shaped if all(c.arch_args.get(k) == v for k, v in said.arch_args.items()))
    if shaped and not fits:
        raise InputError(f"{path} fits {' | '.join(map(flags_of, shaped))}, none with {dict(said.arch_args)}; say --arch too")
    if not fits:
        raise InputError(_nothing_fits(path, weights, found, classes))
    return (Answer(fits[0], "names and shapes, which fit nothing else known") if len(fits) == 1 else None), fits


def _named(name: str, weights: Weights, classes: int) -> Candidate | None:
    """The architecture of that name, None where the weights do not fit it without further arguments."""
    try:
        own = _told(name, weights.arch_args, classes)
        return None if misfit(weights, own) else own
    except InputError:  # it is not built without arguments, which a name alone does not give
        return None


def _rows_of(weights: Weights, arch: str | None) -> int:
    """Classes by the classifier that timm names for an architecture."""
    import timm

    cfg = timm.get_pretrained_cfg(resolve(arch)[0], allow_unregistered=True) if arch and is_known(arch) else None
    names = cfg.classifier if cfg else None
    key = f"{names[0] if isinstance(names, (list, tuple)) else names}.weight"
    return int(weights.tensors[key].shape[0]) if key in weights.tensors and weights.tensors[key].ndim else 0


def _of_card(path: Path, weights: Weights, known: Known) -> tuple[Answer, tuple[Candidate, ...]]:
    told = _told(known.card.arch, known.card.arch_args, known.card.num_classes)
    if difference := misfit(weights, told):
        raise InputError(f"{path} does not fit {_spelled(told)} of {known.source}: {difference}; say which with --arch")
    return Answer(told, known.source), (told,)


def _told(name: str, args: Mapping[str, Any], classes: int) -> Candidate:
    arch, every = resolve(name, dict(args))
    if not is_known(arch):
        raise InputError(f"no architecture is called {name!r}; the nearest names are {', '.join(nearest(name)) or 'none'}")
    if reason := out_of_bounds(every, max(classes, 1)):
        raise InputError(f"architecture {name!r} is not built with {reason}")
    return Candidate(arch, max(classes, 1), every)


def _instead(weights: Weights, found: list[Candidate]) -> str:
    fits = [c for c in found if not misfit(weights, c)]
    return f". Its names and shapes fit {' | '.join(flags_of(c) for c in fits)}" if fits else ""


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
    if not classes:
        held += " and no classifier under a known name (head, fc, linear, classifier, logits)"
    end = "" if classes else "; weights of a model without classifier cannot be analysed"
    return (
        f"no known architecture has the names and sizes in {path}: {held}. Say which with --arch NAME and --arch-arg KEY=VALUE, "
        f"any of timm's names or {', '.join(list(BUILDERS)[:6])}, …{end}"
    )


def _length(item: tuple[str, list[str]]) -> int:
    return len(item[0])


def _spelled(candidate: Candidate) -> str:
    return f"{candidate.arch} {candidate.arch_args}" if candidate.arch_args else candidate.arch


def flags_of(candidate: Candidate) -> str:
    """A candidate in the words of the command line."""
    words = {k: v if isinstance(v, str) else json.dumps(v, separators=(",", ":")) for k, v in candidate.arch_args.items()}
    return " ".join([f"--arch {candidate.arch}", *(f"--arch-arg {shlex.quote(f'{k}={v}')}" for k, v in words.items())])


def choice_of(candidate: Candidate) -> str:
    """What a candidate answers that shapes cannot show, in brackets."""
    return f" ({', '.join(f'{k} {v}' for k, v in candidate.choice.items())})" if candidate.choice else ""
