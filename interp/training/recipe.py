"""A training recipe: what to train, against what, for how long; read from TOML, checked before anything is computed.

Defaults follow the light recipe of "A Light Recipe to Train Robust Vision Transformers" (arXiv 2209.07399): no heavy
augmentation, ε warm-up, large weight decay.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from interp.attacks.norms import NORMS
from interp.training.losses import OBJECTIVES
from interp.training.schedule import EPS, LR
from interp.types import Card, InputError, Preprocess, Threat, fraction

OPTIMIZERS = ("adamw", "sgd")
PRECISIONS = ("float32", "bf16")
MIN_EPOCH_SHARE = 1e-6


@dataclass(frozen=True)
class Recipe:
    """One training run. Lengths of schedules are in epochs, ε in units of [0, 1], step_size as a share of ε.

    start: a checkpoint to fine-tune from, anything that `interp.load` reads; a head of another size is made anew.
    objective: standard, pgd (Madry et al.), trades, mart, hat or score; beta, gamma, helper and helper_step are theirs.
    eps_schedule: constant, linear or sine over the first eps_period epochs; step_follows: whether the step size shrinks with
    ε, or is that of the final ε from the start (as in the paper's code). batch_size counts all processes together.
    Where images are mixed, the attack takes the label that outweighs, as in the paper's code. extra_share: share of each batch
    taken from a second data set (generated images, Gowal et al., arXiv 2110.09468).
    """

    id: str
    arch: str
    arch_args: dict[str, Any] = field(default_factory=dict)
    num_classes: int = 10
    preprocess: Preprocess = field(default_factory=lambda: Preprocess(32, 32))
    start: str = ""
    # against what
    objective: str = "standard"
    norm: str = "linf"
    eps: float = 0.0
    steps: int = 1
    step_size: float | None = None  # × ε; 1.5 / steps if none
    random_start: bool = True
    eps_schedule: str = "linear"
    eps_period: float = 0.0
    step_follows: bool = True
    beta: float = 6.0
    gamma: float = 0.5
    helper: str = ""
    helper_step: float = 2.0
    awp: float = 0.0
    awp_from: float = 0.0
    # for how long, and how
    epochs: float = 5
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 2e-3
    lr_schedule: str = "cosine"
    lr_warmup: float = 0.0
    lr_min: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    # what happens to the images
    pad: int = 4
    flip: bool = True
    resized_crop: tuple[float, ...] = ()
    color_jitter: float = 0.0
    randaugment: str = ""
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    extra_share: float = 0.0
    # on what
    precision: str = "float32"
    compile: bool = False
    seed: int = 0
    licence: str = "Apache-2.0"

    def __post_init__(self) -> None:
        object.__setattr__(self, "resized_crop", tuple(self.resized_crop))
        _types(self)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        self._ranges()
        self._together()

    def _ranges(self) -> None:
        if not 0 <= self.eps < (1 if self.norm == "linf" else 100):
            meant = f"; did you mean {self.eps:g}/255?" if self.eps >= 1 else ""
            raise InputError(f'eps is {self.eps:g}; expected a value in [0, 1), such as "8/255" (pixels are in [0, 1]){meant}')
        if self.epochs < MIN_EPOCH_SHARE or self.batch_size < 2 or self.lr <= 0 or self.steps < 1:
            raise InputError("epochs and lr must be above 0, batch_size at least 2 and steps at least 1")
        for name in ("extra_share", "erasing", "drop_path", "ema", "label_smoothing", "momentum"):
            if not 0 <= getattr(self, name) < 1 and not (name == "erasing" and self.erasing == 1):
                raise InputError(f"{name} is {getattr(self, name)}; expected a share in [0, 1)")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number ≥ 0")
        if self.step_size is not None and self.step_size <= 0:
            raise InputError(f"step_size is {self.step_size}; expected a share of ε above 0, or none for 1.5 / steps")
        if self.resized_crop and not (len(self.resized_crop) == 2 and 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1):
            raise InputError(
                f"resized_crop is {list(self.resized_crop)}; expected smallest and largest area, such as [0.08, 1.0]"
            )

    def _together(self) -> None:
        kind = OBJECTIVES[self.objective]
        if self.objective == "standard" and self.eps > 0:
            raise InputError(f'eps is {self.eps:g}, the objective standard; say objective = "pgd" (or {", ".join(OBJECTIVES)})')
        if self.objective != "standard" and self.eps == 0:
            raise InputError(f'the objective is {self.objective}, eps is 0; say eps = "8/255", or objective = "standard"')
        if kind.craft in ("kl", "squared") and not self.random_start:
            raise InputError(f"{self.objective} needs random_start: at the image itself the gradient of its attack is zero")
        if kind.hard_labels and (self.mixup or self.cutmix or self.label_smoothing):
            raise InputError(f"{self.objective} weighs by the true class; it goes without mixup, cutmix and label_smoothing")
        if (self.objective == "hat") != bool(self.helper):
            raise InputError("objective hat needs a helper, a standard model of the same classes, and no other objective does")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise InputError(f"batch_size is {self.batch_size}; mixup and cutmix pair images, give an even number")

    @property
    def threat(self) -> Threat | None:
        """The threat model trained against, or None for standard training."""
        return Threat(self.norm, self.eps) if self.eps else None

    def card(self, **more: Any) -> Card:
        """What a card can say of the weights before they are there; more: its other fields."""
        known = {"training": self.training, "threat": self.threat, "licence": self.licence}
        return Card(self.id, self.arch, self.num_classes, self.preprocess, self.arch_args, **known | more)

    @property
    def training(self) -> str:
        """How the weights are made, in words, for the card."""
        parts = [f"{self.epochs:g} epochs, batch {self.batch_size}, {_OPTIMIZER_NAMES[self.optimizer]} {self.lr:g}"]
        parts[0] += f", weight decay {self.weight_decay:g}" + (f", EMA {self.ema:g}" if self.ema else "")
        used = {
            "RandAugment": self.randaugment,
            "Random Erasing": self.erasing,
            "MixUp": self.mixup,
            "CutMix": self.cutmix,
            "random resized crop": self.resized_crop,
            "colour jitter": self.color_jitter,
            "label smoothing": self.label_smoothing,
        }
        parts += [", ".join(k for k, v in used.items() if v)] if any(used.values()) else []
        parts += [f"{self.extra_share:.0%} of each batch from a second data set"] if self.extra_share else []
        parts += [f"from {Path(self.start).stem}"] if self.start else []
        return "; ".join([self._against(), *parts])

    def _against(self) -> str:
        if self.objective == "standard":
            return "standard"
        name = {"pgd": "adversarial", "score": "SCORE"}.get(self.objective, self.objective.upper())
        weight = f" β = {self.beta:g}" if self.objective != "pgd" else ""
        steps = "FGSM" if self.steps == 1 else f"PGD-{self.steps}"
        start = "with a random start" if self.random_start else "from the image"
        warm = f"{self.eps_schedule} ε warm-up over {self.eps_period:g} epochs" if self.warms_up else "no ε warm-up"
        awp = f", AWP γ = {self.awp:g}" if self.awp else ""
        return f"{name}{weight}, {steps} {start}, step {self.step_share:g}·ε, {warm}{awp}"

    @property
    def warms_up(self) -> bool:
        """Whether ε grows at the beginning."""
        return self.eps_schedule != "constant" and self.eps_period > 0

    @property
    def step_share(self) -> float:
        """Step size over ε: the given one, or 1.5 / steps."""
        return 1.5 / self.steps if self.step_size is None else self.step_size

    def to_toml(self) -> str:
        """Everything as TOML, defaults too; `read` gives back an equal recipe."""
        raw = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return tomli_w.dumps(raw)

    @classmethod
    def read(cls, path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe, with some keys changed; raises InputError for unknown keys, naming the nearest one."""
        return cls.of(read_toml(path) | dict(changes or {}), str(path))

    @classmethod
    def of(cls, raw: Mapping[str, Any], where: str) -> Recipe:
        """A recipe from plain values; `where` they come from is said in errors."""
        values = dict(raw)
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"{where} has the key {key!r}{near(key, known)}")
        if isinstance(values.get("eps"), str):
            values["eps"] = fraction(values["eps"])
        if isinstance(values.get("step_size"), str):
            raise InputError(f"{where}: step_size is {values['step_size']!r}; expected a share of ε, 0.25 for 2/255 at ε = 8/255")
        try:
            values["preprocess"] = Preprocess(**values.get("preprocess", {"size": 32, "resize": 32}))
            return cls(**values)
        except (TypeError, InputError) as error:
            raise InputError(f"{where}: {error}") from error


_OPTIMIZER_NAMES = {"adamw": "AdamW", "sgd": "SGD"}
_CHOICES: dict[str, typing.Collection[str]] = {
    "objective": OBJECTIVES,
    "norm": NORMS,
    "eps_schedule": EPS,
    "lr_schedule": LR,
    "optimizer": OPTIMIZERS,
    "precision": PRECISIONS,
}
_NOT_NEGATIVE = (
    *("seed", "eps_period", "lr_warmup", "lr_min", "weight_decay", "clip", "pad", "color_jitter"),
    *("mixup", "cutmix", "awp", "awp_from", "beta", "gamma"),
)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain values; raises InputError where there is none."""
    if not path.is_file():
        raise InputError(f"there is no recipe at {path}; expected a TOML file such as those in recipes/")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def near(key: str, known: list[str]) -> str:
    """What a wrong key was probably meant to be."""
    found = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else f"; known: {known}"


def _types(recipe: Recipe) -> None:
    """Raise InputError where a field holds another kind of value than its annotation says."""
    for name, hint in typing.get_type_hints(Recipe).items():
        value = getattr(recipe, name)
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (typing.get_origin(hint) or hint,)
        fits = isinstance(value, (*kinds, int) if float in kinds else kinds) and not (
            isinstance(value, bool) and bool not in kinds
        )
        if not fits:
            wanted = " or ".join(k.__name__ for k in kinds if k is not type(None))
            raise InputError(f"{name} is {value!r}; expected {wanted}")
