"""Ablations: a grid of changes to one recipe, every combination trained and measured alike, as one result.

The grid of arXiv 2209.07399 (section on the recipe) is recipes/ablation.toml: 16 combinations of CutMix, MixUp, RandAugment and
Random Erasing, with and without ε warm-up, two weight decays. A run that is measured already is not trained again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from tqdm import tqdm

from interp.attacks.pgd import PGD
from interp.data.source import Pixels
from interp.models.model import Model
from interp.result import Result, with_interval
from interp.robustness.accuracy import correct
from interp.stats import Interval, wilson
from interp.train_job import Machine, hardware
from interp.training.loop import Diverged, train
from interp.training.recipe import Recipe, near, read_toml
from interp.training.record import minutes_of
from interp.types import Batch, InputError

log = logging.getLogger(__name__)

MEASURES = ("clean", "fgsm", "pgd20")
TITLES = {"clean": "clean accuracy", "fgsm": "accuracy under FGSM (one step of ε)", "pgd20": "accuracy under PGD-20"}


@dataclass(frozen=True)
class Ablation:
    """A base recipe's keys and, for some of them, the values to combine."""

    id: str
    base: dict[str, Any]
    grid: dict[str, list[Any]]

    @classmethod
    def read(cls, path: Path, changes: Mapping[str, Any] | None = None) -> Ablation:
        """Read a TOML file with the tables [recipe] and [grid]; raises InputError where one of its recipes would not do."""
        raw = read_toml(path)
        known = ["id", "recipe", "grid"]
        for key in raw:
            if key not in known:
                raise InputError(f"{path} has the key {key!r}{near(key, known)}")
        found = cls(str(raw.get("id", path.stem)), raw.get("recipe", {}) | dict(changes or {}), raw.get("grid", {}))
        if fixed := sorted(set(changes or {}) & set(found.grid)):
            raise InputError(f"{fixed[0]} is in the grid of {path}; choose among its values with --only, or change the file")
        if not found.grid or not all(isinstance(v, list) and v for v in found.grid.values()):
            raise InputError(f"{path} has no [grid]; expected a table of keys with lists of values, as in recipes/ablation.toml")
        for run in found.runs():
            found.recipe(run, str(path))
        return found

    def runs(self, only: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Every combination of the grid's values, those alone that agree with `only`. Raises InputError for values not in it."""
        for key, value in (only or {}).items():
            if key not in self.grid or value not in self.grid[key]:
                raise InputError(f"only {key} = {value!r}: the grid has {key} = {self.grid.get(key, 'nothing')}")
        every = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [run for run in every if all(run[k] == v for k, v in (only or {}).items())]

    def recipe(self, run: Mapping[str, Any], where: str = "the grid") -> Recipe:
        """The recipe of one combination, its id made of its content."""
        recipe = Recipe.of(self.base | dict(run) | {"id": self.id}, where)
        return replace(recipe, id=f"{self.id}_{hashlib.sha256(recipe.to_toml().encode()).hexdigest()[:8]}")


@dataclass(frozen=True)
class Measured:
    """What one run came to: (right, n) per measure, and what it took."""

    run: dict[str, Any]
    counts: dict[str, tuple[int, int]]
    minutes: float
    hardware: str

    def rate(self, name: str) -> Interval:
        """A measure with its Wilson interval."""
        return wilson(*self.counts[name])


def ablate(
    plan: Ablation,
    data: Pixels,
    test: Batch,
    folder: Path,
    *,
    only: Mapping[str, Any] | None = None,
    attacked: int = 1000,
    machine: Machine = Machine(),
) -> Result:
    """Train and measure the runs of a plan in FOLDER and return all of its runs that are measured there.

    Clean accuracy on all of `test`, FGSM and PGD-20 (step ε/4) at the recipe's norm and ε on `attacked` of its images.
    """
    started = time.perf_counter()
    if attacked < 1:
        raise InputError(f"attacked is {attacked}; expected at least 1 image")
    device, workers = machine.settle()
    with tqdm(plan.runs(only), desc=plan.id, unit="run") as bar:
        for run in bar:
            recipe = plan.recipe(run)
            at = folder / "runs" / recipe.id
            if _measured(at, data, test, attacked) is None:
                try:
                    net = train(recipe, data, folder=at, device=str(device), workers=workers)
                except Diverged as error:
                    log.warning("%s is left out: %s", run, error)
                    continue
                counts = _counts(Model(net, recipe.card()).to(device), test, recipe, attacked)
                _keep(at, Measured(run, counts, round(minutes_of(at), 2), hardware(device)), data, test, attacked)
    done = [m for run in plan.runs() if (m := _measured(folder / "runs" / plan.recipe(run).id, data, test, attacked))]
    return _result(plan, done, data, test, started)


def _counts(model: Model, test: Batch, recipe: Recipe, attacked: int) -> dict[str, tuple[int, int]]:
    some, eps = test.some(attacked), recipe.eps or 8 / 255
    fgsm = PGD(eps, recipe.norm, 1, eps, random_start=False)
    hits = {
        "clean": correct(model, test),
        "fgsm": correct(model, some, fgsm),
        "pgd20": correct(model, some, PGD(eps, recipe.norm, 20, eps / 4)),
    }
    return {name: (int(v.sum()), len(v)) for name, v in hits.items()}


def _key(data: Pixels, test: Batch, attacked: int) -> str:
    """What a measurement rests on besides the recipe."""
    h = hashlib.sha256(data.pixels.numpy().tobytes())
    h.update(data.labels.numpy().tobytes())
    return h.hexdigest()[:16] + test.digest[:16] + str(attacked)


def _measured(at: Path, data: Pixels, test: Batch, attacked: int) -> Measured | None:
    path = at / "measured.json"
    if not path.is_file():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.pop("key") != _key(data, test, attacked):
        raise InputError(f"{path} was measured on other images; give another --out-dir")
    return Measured(raw["run"], {k: (v[0], v[1]) for k, v in raw["counts"].items()}, raw["minutes"], raw["hardware"])


def _keep(at: Path, measured: Measured, data: Pixels, test: Batch, attacked: int) -> None:
    part = at / ".measured.json"
    part.write_text(json.dumps(asdict(measured) | {"key": _key(data, test, attacked)}, indent=1), encoding="utf-8")
    part.replace(at / "measured.json")
    (at / "state.pt").unlink(missing_ok=True)


def _result(plan: Ablation, done: Sequence[Measured], data: Pixels, test: Batch, started: float) -> Result:
    if not done:
        raise InputError(f"no run of {plan.id} is measured yet")
    ids = [plan.recipe(m.run).id for m in done]
    found = xr.Dataset(coords={"run": ids} | {key: ("run", _values([m.run[key] for m in done])) for key in plan.grid})
    for name in MEASURES:
        n = done[0].counts[name][1]
        rates = [m.rate(name) for m in done]
        better = "higher" if name != "fgsm" else "none"
        found = found.assign(
            with_interval(name, ("run",), rates, (len(done),), unit="share", better=better, n=n, long_name=TITLES[name])
        )
    found["minutes"] = ("run", [m.minutes for m in done])
    first = plan.recipe(done[0].run)
    params = {"base": plan.base, "grid": plan.grid, "training_images": len(data.labels), "epochs": first.epochs}
    made = {"hardware": done[0].hardware, "torch": torch.__version__, "seconds": round(time.perf_counter() - started, 1)}
    return Result("ablation", f"Ablation {plan.id}", found, params, {"runs": ids, "test": test.digest}, made)


def _values(values: list[Any]) -> list[Any]:
    """The values of one key as numbers or as words, whatever they are in the grid."""
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return [float(v) for v in values]
    return [v if isinstance(v, str) else json.dumps(v) for v in values]


def ablation_table(result: Result) -> str:
    """The runs as a Markdown table, the most robust first."""
    data = result.data
    keys = list(result.params["grid"])
    head = f"| {' | '.join([*keys, 'clean', 'FGSM', 'PGD-20', 'minutes'])} |\n|{'---|' * (len(keys) + 4)}"
    lines = [head]
    for i in data["pgd20"].values.argsort()[::-1]:
        cells = [str(data[key].values[i]) or "–" for key in keys]
        for name in MEASURES:
            low, high = float(data[f"{name}_low"].values[i]), float(data[f"{name}_high"].values[i])
            cells.append(f"{float(data[name].values[i]):.1%} [{low:.1%}, {high:.1%}]")
        cells.append(f"{float(data['minutes'].values[i]):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
