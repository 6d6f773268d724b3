"""What figures and pages of attacks call things: goals, sizes, who reads, how an attack was made."""

from __future__ import annotations

import numpy as np
import xarray as xr

from interp.plots.images import name_of
from interp.plots.style import epsilon
from interp.result import Result

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}
LEAP = 0.5  # a step in L∞ after which only extremes of the box are left
LETTERS = 15  # of a class name that fit under a picture beside a percentage


def short(name: str, letters: int = LETTERS) -> str:
    """A class name that fits: the first of several ('tench, Tinca tinca'), cut off where it is still too long."""
    first = name.split(",")[0]
    return first if len(first) <= letters else f"{first[: letters - 1].rstrip()}…"


def way(data: xr.Dataset, direction: int, image: int) -> str:
    """'away from ship', 'toward cat'; 'toward the target' where the models have different ones."""
    goals = _goals(data, direction, image)
    what = short(name_of(data, goals.pop()), 24) if len(goals) == 1 else "the label" if direction == 0 else "the target"
    return f"{'away from' if direction == 0 else 'toward'} {what}"


def _goals(data: xr.Dataset, direction: int, image: int) -> set[int]:
    return {int(g) for g in data["goal"].values[:, direction, image]}


def chosen(data: xr.Dataset, image: int) -> int:
    """The direction shown beside 'away': the only one, or of one per class that toward the class after the image's own."""
    toward = data.sizes["direction"] - 1
    return 1 if toward == 1 else 1 + (int(data["goal"].values[0, 0, image]) + 1) % toward


def judges(data: xr.Dataset) -> str:
    """How those are called who read what a model made: 'judges', 'other model(s)' of the same architecture, '' for nobody.

    Judges are the models of other architectures; where there is but one architecture, the other models.
    """
    if len(set(data["group"].values.tolist())) > 1:
        return "judges"
    return {1: "", 2: "other model"}.get(data.sizes["model"], "other models")


def independence(data: xr.Dataset) -> str:
    """Who the judges are, for the small print of a synthesis ('' where there are none)."""
    who = judges(data)
    if who == "judges":
        return "judges: models of other architectures"
    return f"other: the {who}, of the same architecture" if who else ""


def reading(data: xr.Dataset, m: int, d: int, e: int, i: int) -> tuple[str, str]:
    """Two lines on one picture: the model's own reading, the judges' mean confidence in the goal ('' without judges).

    The goal is named where models have different ones.
    """
    seen = short(name_of(data, int(data["predicted"].values[m, d, e, i])))
    others = float(data["others"].values[m, d, e, i])
    goal = f" {short(name_of(data, int(data['goal'].values[m, d, i])), 12)}" if len(_goals(data, d, i)) > 1 else ""
    return f"{seen} {data['confidence'].values[m, d, e, i]:.0%}", "" if np.isnan(others) else f"{judges(data)} {others:.0%}{goal}"


def first_of(whole: int, most: int) -> str:
    """What a figure says that shows only its first images: '; the first 6 of 8 images'."""
    return f"; the first {most} of {whole} images" if whole > most else ""


def leaps(result: Result) -> str:
    """A warning where one step (L∞, rules with a fixed step) goes half across the box [0, 1] or farther: it draws nothing."""
    attack = result.params["attack"]
    alpha = attack["step_size"] or 1.5 * attack["eps"] / attack["steps"]
    if attack["norm"] != "linf" or attack.get("rule", "pgd") == "apgd" or alpha < LEAP:
        return ""
    return f"steps of {number(alpha)} leap across the box [0, 1] and draw nothing: take more, or smaller ones"


def size(result: Result, e: int) -> str:
    """'ε = 8/255', 'ε = 1 (unbounded)' in L∞ alone: in L2 and L1 the ball still binds there."""
    value = float(result.data["eps"].values[e])
    return epsilon(value) if value < 1 or result.params["attack"]["norm"] == "linf" else f"ε = {value:g}"


def how(result: Result) -> str:
    """The attack in a few words: norm, ε where there is one, steps, and every choice that is not the default."""
    attack, given = result.params["attack"], result.params["attack"]["step_size"]
    eps = [] if result.kind == "sweep" else [f"ε = {number(attack['eps'])}"]
    steps = f"{attack['steps']} steps" + (f" of {number(given)}" if given else "")
    return ", ".join([NORMS[attack["norm"]], *eps, steps, *choices(result)])


def choices(result: Result) -> list[str]:
    """What was chosen otherwise than by default, beside norm, ε, steps and their size, which every picture is told with."""
    params, attack = result.params, result.params["attack"]
    momentum, decay, restarts = attack.get("momentum", 1.0), attack.get("decay", 1.0), attack.get("restarts", 1)
    rule, basis, precision = attack.get("rule", "pgd"), attack.get("basis", "pixels"), params.get("precision", "float32")
    said = {
        {"apgd": "APGD"}.get(rule, f"{rule} rule" + (f" ({momentum:g})" if momentum != 1 else "")): rule != "pgd",
        f"{attack['loss']} loss": attack["loss"] not in ("ce", "features"),
        "from the image": result.kind == "sweep" and not attack["random_start"],
        f"{basis} basis" + (f" (decay {decay:g})" if decay != 1 else ""): basis != "pixels",
        f"jitter {attack.get('jitter')}": attack.get("jitter"),
        f"blur {attack.get('blur')}": attack.get("blur"),
        "best point kept": attack.get("keep", "last") == "best" and rule != "apgd",
        f"{restarts} restarts": restarts > 1,
        f"{precision}{' search' if precision == 'fast' else ''}": precision != "float32",
    }
    return [words for words, holds in said.items() if holds]


def number(value: float) -> str:
    """A size in units of [0, 1] as people write it: 2/255, 0.125, 40."""
    return f"{value:g}" if value >= 1 else epsilon(value).removeprefix("ε = ")
