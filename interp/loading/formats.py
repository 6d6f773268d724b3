"""What a file wraps around its weights, one pure `is_x` / `from_x` pair per origin.

`unwrap` applies the pairs of `containers` to the content until tensors by name are left, then those of `NAMES` and of
`translate` until none applies, so that nested wrappers come off whatever their order. The conventions are those of the codes
named at each pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError
from interp.loading.containers import CONTAINERS, EMA, is_tensors, no_state_dict
from interp.loading.inert import printable
from interp.loading.translate import JOINED, translation
from interp.loading.weights import EMA_PREFIXES, Triple, Weights

NORMALISERS = (
    "normalize",
    "normalizer",
    "normalise",
    "normaliser",
    "norm",
    "normalization",
    "normalize_layer",
    "preprocess",
    "0",
)
MEANS = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"), ("_mean", "_std"), ("means", "sds"))
COUNTERS = ("total_ops", "total_params", "n_averaged")


def unwrap(content: Any, *, metadata: Mapping[str, str] | None = None, ema: bool | None = None) -> Weights:
    """The network's tensors in a file's content, and an account of how they were found.

    ema: take the averaged copy (True) or the raw one (False) where the file holds both; None takes the averaged one, as timm
    does, and says so. Raises InputError where no state dict is found, two names become one, or copies that should agree do not.
    """
    found = Weights(content=content, facts=dict(metadata or {}), ema=ema)
    for _ in range(16):
        if is_tensors(found.content):
            break
        step = next((undo for is_x, undo in CONTAINERS if is_x(found.content)), None)
        if step is None:
            raise InputError(no_state_dict(found))
        found = step(found)
    else:
        raise InputError(f"the weights lie under more than 16 wrappers ({', '.join(found.did)}); save the state dict alone")
    tensors = _named(found.content)
    found = replace(found, content=None, tensors=tensors, source={k: k for k in tensors})
    for _ in range(32):
        pair = next((undo for is_x, undo in NAMES if is_x(found.tensors)), None)
        if pair is None:
            break
        found = pair(found)
    else:
        raise InputError(f"the names carry more than 32 prefixes ({', '.join(found.did)}); save the state dict alone")
    if ema is True and found.copies != "ema":
        raise InputError(f"the file holds no averaged copy (none of {', '.join(EMA[:4])}); leave --ema out")
    return _translated(found)


def _translated(found: Weights) -> Weights:
    """Other libraries' names → timm's, where they are another library's."""
    known = translation(found.tensors)
    if known is None:
        return found
    name, t = known
    old = {new: t.renamed.get(new, new) for new in t.tensors}
    note = f" ({t.note})" if t.note else ""
    return found.then(
        name,
        f"{len(t.renamed)} names of {name} → timm{note}",
        tensors=t.tensors,
        source={new: JOINED.join(found.source[o] for o in names.split(JOINED)) for new, names in old.items()},
        dropped=found.dropped | {found.source[o]: why for o, why in t.dropped.items()},
        channels=t.channels,
        arch_args=dict(t.arch_args),
    )


def _named(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors by name; names that are no names are refused, since every one of them may be printed."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in content.items():
        name = str(key)
        if len(name) > 400 or not name.isprintable():
            raise InputError(f"a weight is called {printable(name)!r}, which is no name; save the state dict again")
        if name in tensors:
            raise InputError(f"two weights are called {name}; save the state dict again")
        tensors[name] = tensor
    return tensors


# ---- names: tensors → tensors ------------------------------------------------------------------------------------------------


def is_compiled(tensors: Mapping[str, Tensor]) -> bool:
    """torch.compile: `_orig_mod.` in front of, or inside, the names."""
    return any("_orig_mod." in k for k in tensors)


def from_compiled(found: Weights) -> Weights:
    """The names without `_orig_mod.`."""
    return found.renamed("torch.compile", "removed _orig_mod.", _unique((k.replace("_orig_mod.", ""), k) for k in found.tensors))


def is_counted(tensors: Mapping[str, Tensor]) -> bool:
    """Counters beside the weights: thop's, which RobustBench files of some authors carry, and AveragedModel's."""
    return any(k.rpartition(".")[2] in COUNTERS for k in tensors)


def from_counted(found: Weights) -> Weights:
    """The names without the counters."""
    drop = {k: "a counter, no weight" for k in found.tensors if k.rpartition(".")[2] in COUNTERS}
    return found.renamed("counted", "dropped counters", {k: k for k in found.tensors if k not in drop}, drop)


def is_parallel(tensors: Mapping[str, Tensor]) -> bool:
    """DataParallel and DistributedDataParallel: `module.` in front of every name."""
    return all(k.startswith("module.") for k in tensors)


def from_parallel(found: Weights) -> Weights:
    """The names without `module.`."""
    return found.renamed("DataParallel", "removed module.", {k.removeprefix("module."): k for k in found.tensors})


def is_attacker(tensors: Mapping[str, Tensor]) -> bool:
    """MadryLab robustness and Salman et al.: `model.*`, a second copy under `attacker.model.*`, and normalisers."""
    return any(k.startswith("attacker.") for k in tensors) and any(k.startswith("model.") for k in tensors)


def from_attacker(found: Weights) -> Weights:
    """The names without the attacker's copy, which must equal the first (MadryLab/robustness #26)."""
    drop: dict[str, str] = {}
    for k, v in found.tensors.items():
        if k.startswith("attacker."):
            first = k.removeprefix("attacker.").replace("normalize.", "normalizer.")
            if first not in found.tensors or not torch.equal(found.tensors[first], v):
                raise InputError(
                    f"{found.source[k]} differs from {found.source.get(first, first)}; a MadryLab file holds two equal copies. "
                    "Which one is right cannot be known: save model.state_dict() of the one you mean"
                )
            drop[k] = f"the attacker's copy, equal to {found.source[first]}"
    return found.renamed(
        "MadryLab robustness", "dropped the attacker's copy", {k: k for k in found.tensors if k not in drop}, drop
    )


def is_normalised(tensors: Mapping[str, Tensor]) -> bool:
    """A normaliser inside the model: `normalize.mean`, `normalizer.new_mean`, `mu`/`sigma`, `0.mean` with `1.*`, …"""
    return _normaliser(tensors) is not None


def from_normalised(found: Weights) -> Weights:
    """The names without the normaliser; its mean and standard deviation are kept as the file's word."""
    keys = _normaliser(found.tensors)
    if keys is None:
        raise InputError("found no normaliser")
    raw = [_triple(found.tensors[k], found.source[k]) for k in keys]
    scale = 255.0 if max(raw[0]) > 1.5 or max(raw[1]) > 2.5 else 1.0
    mean, std = ((a / scale, b / scale, c / scale) for a, b, c in raw)
    if found.mean is not None and not _close((*found.mean, *(found.std or ())), (*mean, *std)):
        raise InputError(f"the file holds two normalisers that differ: mean {found.mean} and {mean}; say which with --normalise")
    drop = dict.fromkeys(keys, "the normaliser: read as mean and standard deviation")
    did = f"read the normaliser {found.source[keys[0]]}, {found.source[keys[1]]}" + (
        " (in units of 0 to 255)" if scale > 1 else ""
    )
    kept = {k: k for k in found.tensors if k not in drop}
    return replace(found.renamed("normaliser inside", did, kept, drop), mean=mean, std=std)


def _normaliser(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    for mean, std in MEANS:
        for prefix in ("", *(f"{n}." for n in NORMALISERS), *(f"model.{n}." for n in NORMALISERS[:2])):
            keys = prefix + mean, prefix + std
            if all(k in tensors and tensors[k].numel() in (1, 3) for k in keys):
                return keys
    return None


def _triple(t: Tensor, name: str) -> Triple:
    values = [round(v, 7) for v in t.detach().float().flatten().tolist()]
    if len(values) not in (1, 3):
        raise InputError(f"normaliser {name} has shape {tuple(t.shape)}; expected one value or three")
    return (values[0], values[0], values[0]) if len(values) == 1 else (values[0], values[1], values[2])


def _close(a: Iterable[float], b: Iterable[float]) -> bool:
    return all(abs(x - y) < 1e-4 for x, y in zip(a, b, strict=True))


def is_two_copies(tensors: Mapping[str, Tensor]) -> bool:
    """A raw and an averaged copy side by side in one state dict, as Lightning's EMA callbacks write them."""
    return any(k.startswith(EMA_PREFIXES) for k in tensors) and not all(k.startswith(EMA_PREFIXES) for k in tensors)


def from_two_copies(found: Weights) -> Weights:
    """One of the copies, as asked for; the averaged one where nothing was asked."""
    averaged = [k for k in found.tensors if k.startswith(EMA_PREFIXES)]
    raw = [k for k in found.tensors if k not in averaged]
    take, leave = (raw, averaged) if found.ema is False else (averaged, raw)
    copy = "raw" if found.ema is False else "ema"
    drop = dict.fromkeys(leave, f"the {'averaged' if copy == 'raw' else 'raw'} copy; choose with --ema or --raw")
    return replace(found.renamed("EMA", f"took the {copy} copy of two", {k: k for k in take}, drop), copies=copy)


def is_prefixed(tensors: Mapping[str, Tensor]) -> bool:
    """Every name under one attribute, such as `model.`, `net.` or `1.`: a bare network always has more than one."""
    first = {k.partition(".")[0] for k in tensors}
    return len(first) == 1 and len(tensors) > 1 and all("." in k for k in tensors)


def from_prefixed(found: Weights) -> Weights:
    """The names without it."""
    prefix = next(iter(found.tensors)).partition(".")[0] + "."
    name = "Sequential" if prefix[:-1].isdigit() else f"wrapper ({prefix[:-1]})"
    return found.renamed(name, f"removed {prefix}", {k.removeprefix(prefix): k for k in found.tensors})


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    names: dict[str, str] = {}
    for new, old in pairs:
        if new in names:
            raise InputError(f"{names[new]} and {old} both become {new}; the file holds two networks: save one of them alone")
        names[new] = old
    return names


NAMES: tuple[tuple[Callable[[Mapping[str, Tensor]], bool], Callable[[Weights], Weights]], ...] = (
    (is_compiled, from_compiled),
    (is_counted, from_counted),
    (is_parallel, from_parallel),
    (is_attacker, from_attacker),
    (is_normalised, from_normalised),
    (is_two_copies, from_two_copies),
    (is_prefixed, from_prefixed),
)
