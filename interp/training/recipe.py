"""A training recipe: what to train, against what, for how long; read from TOML, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.attacks.norms import NORMS
from interp.types import InputError, Preprocess, Threat, fraction


@dataclass(frozen=True)
class Recipe:
    """One training run.

    eps = 0 means standard training; otherwise PGD with `steps` steps of `step_size`·ε from a random start (steps = 1 is
    FGSM with a random start, Wong et al., arXiv 2001.03994). ε grows linearly from 0 over the first `eps_warmup` share of
    all steps (the ε warm-up of arXiv 2209.07399); the learning rate over the first `lr_warmup`, then falls on a cosine.
    start: a checkpoint file of the same architecture to go on from; empty for random weights.
    """

    id: str
    arch: str
    arch_args: dict[str, Any] = field(default_factory=dict)
    num_classes: int = 10
    preprocess: Preprocess = field(default_factory=lambda: Preprocess(32, 32))
    norm: str = "linf"
    eps: float = 0.0
    steps: int = 1
    step_size: float = 1.25
    eps_warmup: float = 0.3
    epochs: float = 5
    batch_size: int = 64
    lr: float = 2e-3
    lr_warmup: float = 0.1
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    pad: int = 4
    flip: bool = True
    start: str = ""
    seed: int = 0
    licence: str = "Apache-2.0"

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise InputError(f'eps is {self.eps}; expected a value in [0, 1), such as "8/255" (pixels are in [0, 1])')
        if self.norm not in NORMS:
            raise InputError(f"norm is {self.norm!r}; expected one of {', '.join(NORMS)}")
        if self.epochs <= 0 or self.batch_size < 2 or self.lr <= 0 or self.steps < 1:
            raise InputError("epochs and lr must be above 0, batch_size at least 2 and steps at least 1")

    @property
    def threat(self) -> Threat | None:
        """The threat model trained against, or None for standard training."""
        if self.eps == 0:
            return None
        return Threat(self.norm, self.eps)

    @property
    def training(self) -> str:
        """How the weights are made, in words, for the card."""
        steps = "FGSM with a random start" if self.steps == 1 else f"PGD-{self.steps}"
        how = f"adversarial, {steps}, step {self.step_size:g}·ε, ε warm-up over {self.eps_warmup:.0%} of the steps"
        rest = f"{self.epochs:g} epochs, batch {self.batch_size}, AdamW {self.lr:g}, EMA {self.ema:g}"
        before = f"; from {Path(self.start).stem}" if self.start else ""
        return f"{how if self.eps else 'standard'}; {rest}{before}"

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe; raises InputError for unknown keys, naming the nearest one."""
        if not path.is_file():
            raise InputError(f"there is no recipe at {path}; expected a TOML file such as those in recipes/")
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}") from error
        known = [f.name for f in dataclasses.fields(cls)]
        for key in raw:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise InputError(
                    f"{path} has the key {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {known}")
                )
        if isinstance(raw.get("eps"), str):
            raw["eps"] = fraction(raw["eps"])
        try:
            raw["preprocess"] = Preprocess(**raw.get("preprocess", {"size": 32, "resize": 32}))
            return cls(**raw)
        except TypeError as error:
            raise InputError(f"{path}: {error}") from error
