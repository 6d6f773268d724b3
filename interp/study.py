"""A study runs a plan of analyses over models and images; what is already saved is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from interp.attacks.sweep import Sweep, sweep
from interp.attacks.synthesis import Synthesis, synthesise
from interp.attention.attend import Attend, attend
from interp.attributes.compare import QUICK, Compare, compare
from interp.gradients.accumulate import Accumulate, accumulate
from interp.models.model import Model
from interp.result import Result, remember
from interp.robustness.accuracy import Accuracy, accuracy
from interp.types import Batch, InputError


@dataclass(frozen=True)
class Analysis:
    """One piece of a plan: the kind of its result, the function, its parameters, and how many images it takes (None: all)."""

    kind: str
    run: Callable[[Sequence[Model], Batch, Any], Result]
    params: Any
    images: int | None = None


def main_plan(*, pictures: int = 6, labelled: bool = True, judges: Sequence[Model] = ()) -> tuple[Analysis, ...]:
    """The main job: `pictures` images, one per class as far as they go, for what is looked at; all for what is measured.

    Without labels there is nothing to measure accuracy and attributes against: those two are left out. judges: see `Compare`.
    """
    looked_at = (
        Analysis("sweep", sweep, Sweep(), pictures),
        Analysis("synthesis", synthesise, Synthesis(), 1),
        Analysis("gradients", accumulate, Accumulate(), pictures),
        Analysis("attention", attend, Attend(), pictures),
    )
    if not labelled:
        return looked_at
    attributes = Analysis("compare", compare, Compare(groups=QUICK, judges=tuple(judges)))
    return (Analysis("accuracy", accuracy, Accuracy()), *looked_at, attributes)


def run(models: Sequence[Model], batch: Batch, plan: Sequence[Analysis], folder: Path) -> dict[str, Result]:
    """Run a plan, saving each result in `folder` as it is done; stopped and started again it goes on where it was."""
    results: dict[str, Result] = {}
    with tqdm(plan, desc="study", unit="analysis") as bar:
        for analysis in bar:
            bar.set_postfix_str(analysis.kind)
            chosen = batch if analysis.images is None else spread(batch, analysis.images)
            results[analysis.kind] = remember(folder, analysis.kind, analysis.run, models, chosen, analysis.params)
    return results


def spread(batch: Batch, n: int) -> Batch:
    """n images of as many different classes as there are, in the batch's order of first appearance."""
    if n < 1:
        raise InputError(f"{n} images were asked for; expected at least 1")
    seen: dict[int, list[int]] = {}
    for i, label in enumerate(batch.labels.tolist()):
        seen.setdefault(label, []).append(i)
    turns = [rows[k] for k in range(max(map(len, seen.values()))) for rows in seen.values() if k < len(rows)]
    return batch[sorted(turns[:n])]
