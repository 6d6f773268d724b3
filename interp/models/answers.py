"""What is known of a file's preprocessing and threat model, each with where the answer came from.

Taken in this order: from the caller, from the file (normaliser buffers, a card beside or inside it, the options stored with it),
from the catalogue by the file's sha256, and from the architecture's definition. What none of them says is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.loading.weights import Weights
from interp.models.build import BUILDERS, is_known
from interp.models.known import Known
from interp.models.normalise import from_options, name_of, normaliser
from interp.types import Preprocess, Threat


@dataclass(frozen=True)
class Said:
    """What the caller says about a file; None leaves it to the file and the catalogue."""

    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    normalise: str | None = None
    size: int | None = None
    channels: str | None = None
    ema: bool | None = None


@dataclass(frozen=True)
class Answer:
    """A value and where it came from."""

    value: Any
    source: str


@dataclass(frozen=True)
class Facts:
    """Plain values stored with the weights, by the names of training options, and where they were read."""

    values: Mapping[str, Any]
    source: str


def normaliser_of(weights: Weights, facts: Facts, said: Said, known: Known | None, warnings: list[str]) -> Answer | None:
    """Mean and standard deviation."""
    inside = (weights.mean, weights.std) if weights.mean and weights.std else None
    carded = (known.card.preprocess.mean, known.card.preprocess.std) if known else None
    if said.normalise is not None:
        told = normaliser(said.normalise)
        if inside and name_of(told) != name_of(inside):
            held = f"the file holds a normaliser with {name_of(inside)}"
            warnings.append(f"you said --normalise {name_of(told)}, but {held}; yours is used")
        return Answer(told, "what you said")
    if inside:
        if known and carded and name_of(carded) != name_of(inside):
            said_by = f"{known.source} says {name_of(carded)}"
            warnings.append(f"{said_by}, but the file holds a normaliser with {name_of(inside)}: it is used")
        return Answer(inside, "the file's own normaliser")
    options = from_options(facts.values)
    stored = Answer(options, facts.source) if options else _of_timm(facts)
    return _first(known, carded, stored)


def _of_timm(facts: Facts) -> Answer | None:
    """timm's training without --mean normalises as the named model's configuration says (timm.data.resolve_data_config)."""
    import timm

    name = facts.values.get("model")
    if "mean" not in facts.values or facts.values["mean"] is not None or not isinstance(name, str) or not is_known(name):
        return None
    if "normalize_model" in facts.values or not timm.is_model(name):
        return None  # not timm's training
    cfg = timm.get_pretrained_cfg(name)
    return (
        Answer((tuple(cfg.mean), tuple(cfg.std)), f"timm's own for {name}, since {facts.source} leave mean open") if cfg else None
    )


def size_of(facts: Facts, said: Said, known: Known | None, arch: Answer | None) -> Answer | None:
    """Input size in pixels."""
    if said.size is not None:
        return Answer(said.size, "what you said")
    given = (facts.values.get(k) for k in ("input_size", "img_size", "image_size"))
    sizes = [v[-1] if isinstance(v, (list, tuple)) and v else v for v in given]
    size = next((v for v in sizes if isinstance(v, int) and not isinstance(v, bool) and 8 <= v <= 4096), None)
    found = _first(known, known.card.preprocess.size if known else None, Answer(size, facts.source) if size else None)
    if found is not None or arch is None:
        return found
    if "img_size" in arch.value.arch_args or any("pixels" in e for e in arch.value.evidence):
        shown = arch.value.arch_args.get("img_size", arch.value.size)
        return Answer(shown, "names and shapes" if arch.value.evidence else "the architecture's img_size")
    own = arch.value.size or published_preprocess(arch.value.arch).size
    return Answer(own, f"the definition of {arch.value.arch}")


def channels_of(weights: Weights, facts: Facts, said: Said, known: Known | None) -> Answer | None:
    """Order of the colours the network reads."""
    if said.channels is not None:
        return Answer(said.channels, "what you said")
    order = facts.values.get("channels")
    stored = Answer(order, facts.source) if order in ("rgb", "bgr") else None
    if (found := _first(known, known.card.preprocess.channels if known else None, stored)) is not None:
        return found
    if weights.channels == "either":
        return None
    if weights.channels is not None:
        return Answer(weights.channels, f"the convention of {weights.formats[-1]}")
    return Answer("rgb", "the convention: no origin with these names reads BGR")


def _first(known: Known | None, carded: Any, stored: Answer | None) -> Answer | None:
    """A card with the file, else the options stored in it, else a card that the catalogue has for its bytes."""
    if known is not None and (known.own or stored is None):
        return Answer(carded, known.source)
    return stored


def threat_of(facts: Facts, known: Known | None) -> Answer | None:
    """What the model was trained to withstand.

    vits-robustness-torch gives attack_eps in 1/255 (src/setup_task.py); its first commands gave fractions of 1.
    """
    if known is not None:
        return Answer(known.card.threat, known.source) if known.card.threat else None
    options = facts.values
    eps, norm = options.get("attack_eps"), str(options.get("attack_norm") or "linf").lower()
    trained = options.get("adv_training") not in (None, "", False)
    if (
        not trained
        or isinstance(eps, bool)
        or not isinstance(eps, (int, float))
        or norm not in ("linf", "l2")
        or not 0 < eps <= 255
    ):
        return None
    return Answer(Threat(norm, float(eps) if eps < 0.25 else eps / 255), facts.source)


def published_preprocess(arch: str) -> Preprocess:
    """Size, resize and interpolation of an architecture's published weights: timm's configuration; 32 pixels for our builders."""
    if arch in BUILDERS and not arch.endswith("convstem"):
        return Preprocess(32, 32)
    import timm

    cfg = timm.get_pretrained_cfg(arch, allow_unregistered=True) if timm.is_model(arch) else None
    if cfg is None:
        return Preprocess(224, 256)
    size = int(cfg.input_size[-1])
    return Preprocess(size, int(size / cfg.crop_pct), cfg.interpolation)
