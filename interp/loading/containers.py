"""Containers: what a file wraps around its state dict, one pure `is_x` / `from_x` pair per origin, content → content.

The conventions are those of the codes named at each pair; `formats.unwrap` applies them until tensors by name are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from interp.errors import InputError
from interp.loading.inert import printable
from interp.loading.read import Stub
from interp.loading.weights import EMA_PREFIXES, Weights

RAW = ("state_dict", "model", "net", "model_state_dict", "weights", "params", "network", "module", "model_state")
EMA = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model_state_dict", "ema_model", "model_ema_state_dict")
OPTIONS = ("args", "hyper_parameters", "hparams", "config", "opt")
ACTIVATIONS = frozenset({"relu", "gelu", "silu"})
MODULES = 20_000  # of a pickled network, which may share and repeat its parts


def is_pickled_module(content: Any) -> bool:
    """torch.save(model): a whole nn.Module; its class is never called, its tensors are read from the state it would be given."""
    return isinstance(content, Stub) and isinstance(content.state, dict) and "_modules" in content.state


def from_pickled_module(found: Weights) -> Weights:
    """The tensors of a pickled module and its children, named as its state_dict() would name them."""
    tensors, classes = _module_tensors(found.content)
    used = classes & ACTIVATIONS
    facts = found.facts | ({"activation": used.pop()} if len(used) == 1 else {})
    name = f"pickled module ({found.content.name})"
    return found.then(name, "read the tensors of a pickled module", content=tensors, facts=facts)


def _module_tensors(module: Any, prefix: str = "") -> tuple[dict[str, Tensor], set[str]]:
    """The tensors by name, and the classes of all modules, in small letters without their packages."""
    tensors: dict[str, Tensor] = {}
    classes: set[str] = set()
    left = [(module, prefix)]
    for _ in range(MODULES):
        if not left:
            return tensors, classes
        here, prefix = left.pop(0)
        state = _mapping(here.state) if isinstance(here, Stub) else {}
        classes.add(here.name.rpartition(".")[2].lower() if isinstance(here, Stub) else "")
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
    if not is_tensors(weights):
        raise InputError(f"the Lightning file's state_dict holds {_kind(weights)}; expected names with tensors")
    inside = next((p for p in ("model.", "net.", "network.", "backbone.") if any(str(k).startswith(p) for k in weights)), None)
    kept = {k: v for k, v in weights.items() if inside is None or str(k).startswith((inside, *EMA_PREFIXES))}
    others = sorted({printable(str(k).partition(".")[0]) for k in weights if k not in kept})
    notes = (
        (*found.notes, f"{inside}* was taken; the LightningModule also holds {', '.join(others[:5])}") if others else found.notes
    )
    dropped = {printable(str(k)): f"beside the network ({inside}*) in the LightningModule" for k in weights if k not in kept}
    return found.then(
        "Lightning",
        "took state_dict",
        content=kept,
        dropped=found.dropped | dropped,
        facts=found.facts | _facts(found.content),
        notes=notes,
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
    if others := [k for k in RAW if k not in (key, raw) and is_tensors(content.get(k))]:
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
    unread = [str(k) for k, v in found.content.items() if isinstance(v, Stub) and "_rebuild_" in v.name]
    if unread:
        kind = found.content[unread[0]].name.rpartition(".")[2]
        raise InputError(
            f"{unread[0]} and {len(unread) - 1} more are sparse, quantised or of another unread kind ({kind}); save them dense"
        )
    dropped = {printable(str(k)): f"not a tensor ({_kind(v)})" for k, v in found.content.items() if k not in kept}
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


def is_tensors(content: Any) -> bool:
    """Whether it is a state dict at last: names with tensors and nothing else."""
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def no_state_dict(found: Weights) -> str:
    """What was found where tensors by name were expected, and what to do."""
    content, where = found.content, f" ({', then '.join(found.did)})" if found.did else ""
    if isinstance(content, Mapping) and "param_groups" in content:
        return f"found the state of an optimiser{where}, no weights; save model.state_dict() with torch.save"
    if isinstance(content, Mapping) and (several := [printable(str(k)) for k, v in content.items() if _holds(v)]):
        names = ", ".join(several[:6])
        return f"found tensors under {names}{where}; expected one network. Save the state dict of the one you mean alone"
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
