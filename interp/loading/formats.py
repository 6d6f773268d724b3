"""What a file wraps around its weights, one pure `is_x` / `from_x` pair per origin.

`unwrap` applies the pairs of `CONTAINERS` to the content until tensors by name are left, then those of `NAMES` and of
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
from interp.loading.inert import printable
from interp.loading.read import Stub
from interp.loading.translate import JOINED, translation
from interp.loading.weights import Triple, Weights

RAW = ("state_dict", "model", "net", "model_state_dict", "weights", "params", "network", "module", "model_state")
EMA = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model_state_dict", "ema_model", "model_ema_state_dict")
EMA_PREFIXES = ("ema_model.", "model_ema.", "ema.")
OPTIONS = ("args", "hyper_parameters", "hparams", "config", "opt")
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
MODULES = 20_000  # of a pickled network, which may share and repeat its parts
COUNTERS = ("total_ops", "total_params", "n_averaged")


def unwrap(content: Any, *, metadata: Mapping[str, str] | None = None, ema: bool | None = None) -> Weights:
    """The network's tensors in a file's content, and an account of how they were found.

    ema: take the averaged copy (True) or the raw one (False) where the file holds both; None takes the averaged one, as timm
    does, and says so. Raises InputError where no state dict is found, two names become one, or copies that should agree do not.
    """
    found = Weights(content=content, facts=dict(metadata or {}), ema=ema)
    for _ in range(16):
        if _is_tensors(found.content):
            break
        step = next((undo for is_x, undo in CONTAINERS if is_x(found.content)), None)
        if step is None:
            raise InputError(_no_state_dict(found))
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
    return found.then(
        name,
        f"{len(t.renamed)} names of {name} → timm",
        tensors=t.tensors,
        source={new: JOINED.join(found.source[o] for o in names.split(JOINED)) for new, names in old.items()},
        dropped=found.dropped | {found.source[o]: why for o, why in t.dropped.items()},
        notes=(*found.notes, t.note) if t.note else found.notes,
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


def _is_tensors(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _no_state_dict(found: Weights) -> str:
    content, where = found.content, f" ({', then '.join(found.did)})" if found.did else ""
    if isinstance(content, Mapping):
        held = ", ".join(f"{printable(str(k))}: {_kind(v)}" for k, v in list(content.items())[:8]) or "nothing"
    else:
        held = _kind(content)
    return (
        f"found no state dict{where}, but {held}; expected names with tensors, bare or under one of {', '.join(RAW[:4])}. "
        "Save it with torch.save(model.state_dict(), PATH)"
    )


def _kind(value: Any) -> str:
    return f"a {value.name} (not called)" if isinstance(value, Stub) else type(value).__name__


# ---- containers: content → content -------------------------------------------------------------------------------------------


def is_pickled_module(content: Any) -> bool:
    """torch.save(model): a whole nn.Module; its class is never called, its tensors are read from the state it would be given."""
    return isinstance(content, Stub) and isinstance(content.state, dict) and "_modules" in content.state


def from_pickled_module(found: Weights) -> Weights:
    """The tensors of a pickled module and its children, named as its state_dict() would name them."""
    return found.then(
        f"pickled module ({found.content.name})", "read a pickled module's tensors", content=_module_tensors(found.content)
    )


def _module_tensors(module: Any, prefix: str = "") -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    left = [(module, prefix)]
    for _ in range(MODULES):
        if not left:
            return tensors
        here, prefix = left.pop(0)
        state = _mapping(here.state) if isinstance(here, Stub) else {}
        silent = state.get("_non_persistent_buffers_set")
        silent = silent if isinstance(silent, (set, frozenset, list, tuple)) else ()
        own = _mapping(state.get("_parameters")) | {k: v for k, v in _mapping(state.get("_buffers")).items() if k not in silent}
        tensors |= {f"{prefix}{k}": v for k, v in own.items() if isinstance(v, Tensor)}
        left += [(child, f"{prefix}{name}.") for name, child in _mapping(state.get("_modules")).items()]
    raise InputError(f"a pickled module holds more than {MODULES:,} others; save model.state_dict() instead")


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def is_lightning(content: Any) -> bool:
    """A Lightning .ckpt: state_dict with the version that wrote it."""
    return isinstance(content, Mapping) and "state_dict" in content and "pytorch-lightning_version" in content


def from_lightning(found: Weights) -> Weights:
    """The LightningModule's state dict; what lies beside the network in it (criterion, metrics) is dropped by name."""
    weights = found.content["state_dict"]
    if not _is_tensors(weights):
        raise InputError(f"the Lightning file's state_dict holds {_kind(weights)}; expected names with tensors")
    inside = next((p for p in ("model.", "net.", "network.", "backbone.") if any(str(k).startswith(p) for k in weights)), None)
    kept = {k: v for k, v in weights.items() if inside is None or str(k).startswith((inside, *EMA_PREFIXES))}
    dropped = {str(k): f"beside the network ({inside}*) in the LightningModule" for k in weights if k not in kept}
    return found.then(
        "Lightning", "took state_dict", content=kept, dropped=found.dropped | dropped, facts=found.facts | _facts(found.content)
    )


def is_wrapped(content: Any) -> bool:
    """A training file: the state dict under a usual name, beside epochs, options and optimiser state."""
    return isinstance(content, Mapping) and any(_holds(content.get(k)) for k in (*RAW, *EMA))


def from_wrapped(found: Weights) -> Weights:
    """The raw or the averaged state dict of a training file.

    timm: `state_dict`, `state_dict_ema`, `args`; Facebook, MadryLab, vits-robustness-torch: `model`; CIFAR codes: `net`.
    """
    content = found.content
    raw = next((k for k in RAW if _holds(content.get(k))), None)
    averaged = next((k for k in EMA if _holds(content.get(k))), None)
    key = averaged if averaged is not None and found.ema is not False else raw
    if key is None:
        raise InputError(f"the file holds only an averaged copy ({averaged}); leave --raw out")
    copies, did, notes = found.copies, f"took {key}", found.notes
    if others := [k for k in RAW if k not in (key, raw) and _is_tensors(content.get(k))]:
        notes = (*notes, f"{key} was taken; the file also holds {', '.join(others)}, which was not looked at")
    if averaged is not None:
        copies = "ema" if key == averaged else "raw"
        did += f" (the averaged copy; {raw} holds the raw one)" if copies == "ema" and raw else ""
        did += f" (the raw copy; {averaged} holds the averaged one)" if copies == "raw" else ""
    return found.then(
        _wrapper_name(content, key), did, content=content[key], copies=copies, notes=notes, facts=found.facts | _facts(content)
    )


def _holds(value: Any, depth: int = 3) -> bool:
    """Whether tensors lie in it, a few wrappers down: a configuration called `model` is no state dict."""
    if is_pickled_module(value):
        return True
    if not isinstance(value, Mapping) or depth == 0:
        return False
    return any(isinstance(v, Tensor) or _holds(v, depth - 1) for v in value.values())


def _wrapper_name(content: Mapping[Any, Any], key: str) -> str:
    """The code that writes such a file, where its other entries tell."""
    inner = content[key]
    names = [str(k) for k in inner] if isinstance(inner, Mapping) else []
    if any("attacker.model." in k or k.endswith("normalizer.new_mean") for k in names):
        return "MadryLab robustness"
    if "state_dict" in content and "arch" in content and ("args" in content or "version" in content):
        return "timm training file"
    if key.startswith("model") and "hparams" in content and "version" in content:
        return "vits-robustness-torch training file (timm.bits)"
    return "training file" if len(content) > 1 else "wrapped state dict"


def _facts(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Plain values among the entries and the options of a training file."""
    found: dict[str, Any] = {}
    for name in OPTIONS:
        options = content.get(name)
        options = options.state if isinstance(options, Stub) else options
        if isinstance(options, Mapping):
            found |= {str(k): v for k, v in options.items() if _plain(v)}
    return found | {str(k): v for k, v in content.items() if _plain(v)}


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 8 and all(_plain(v) for v in value)
    return isinstance(value, (str, int, float, bool)) or value is None


def is_single_item(content: Any) -> bool:
    """A list or a dict around one thing that holds tensors."""
    return isinstance(content, (list, tuple)) and len(content) >= 1 and _holds(content[0])


def from_single_item(found: Weights) -> Weights:
    """The first item of a list that holds tensors, as torch.save((state_dict, accuracy), PATH) writes it."""
    return found.then("list", "took the first item of a list", content=found.content[0])


def is_mixed(content: Any) -> bool:
    """A state dict with a few entries beside it that are not tensors, such as OrderedDict metadata or None buffers."""
    if not isinstance(content, Mapping) or not content:
        return False
    tensors = [k for k, v in content.items() if isinstance(v, Tensor)]
    return len(tensors) > 1 and 2 * len(tensors) > len(content)


def from_mixed(found: Weights) -> Weights:
    """The tensors alone; each other entry is dropped with its kind."""
    kept = {k: v for k, v in found.content.items() if isinstance(v, Tensor)}
    dropped = {str(k): f"not a tensor ({_kind(v)})" for k, v in found.content.items() if k not in kept}
    return found.then(
        "bare state dict", "", content=kept, dropped=found.dropped | dropped, facts=found.facts | _facts(found.content)
    )


CONTAINERS: tuple[tuple[Callable[[Any], bool], Callable[[Weights], Weights]], ...] = (
    (is_pickled_module, from_pickled_module),
    (is_lightning, from_lightning),
    (is_wrapped, from_wrapped),
    (is_single_item, from_single_item),
    (is_mixed, from_mixed),
)

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
