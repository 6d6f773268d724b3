"""The main job: models and images → a study → one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from interp import study
from interp.data.source import images
from interp.models.answers import Said
from interp.models.inspect import inspect
from interp.models.load import (
    asked,
    by_name,
    check_labels,
    independent_judges,
    load,
    load_as,
    locate,
    renamed,
    same_images,
    shipped,
)
from interp.models.model import Model, macs
from interp.publish import as_text
from interp.report.page import write
from interp.report.words import interval
from interp.result import Result
from interp.types import Batch, InputError


def write_report(
    models: Sequence[Model], batch: Batch, folder: Path, *, plan: Sequence[study.Analysis] = (), notes: Sequence[str] = ()
) -> Path:
    """Run a plan (the main one if none is given) and write FOLDER/index.html.

    Results already in FOLDER/results are not computed again. Raises InputError where models and images do not fit.
    """
    if not models:
        raise InputError("no models were given; expected at least one")
    for model in models:
        model.check_images(batch.images.shape)
        check_labels(model.card, batch)
    return _page(models, batch, folder, plan, "What robust models see", lambda _: list(notes))


def analyze(
    checkpoint: str,
    source: str,
    folder: Path,
    *,
    n: int | None = None,
    plan: Sequence[study.Analysis] = (),
    said: Said | None = None,
) -> Path:
    """The same for one checkpoint beside the shipped models that take the same images; said: what its file leaves open."""
    batch = images_for(checkpoint, source, n=n, said=said)
    model = load_as(checkpoint, said or Said(), images=batch)
    model.check_images(batch.images.shape)
    check_labels(model.card, batch)
    known = [other for other in map(load, shipped()) if other.digest != model.digest and same_images(other.card, model.card)]
    beside = [renamed(other, f"shipped_{other.card.id}") if other.card.id == model.card.id else other for other in known]
    alone = "No shipped model has these classes and this image size: the checkpoint is shown alone, without independent judges."

    def notes(results: dict[str, Result]) -> list[str]:
        return [_worth(model, results.get("accuracy"))] + ([] if beside else [alone])

    return _page([model, *beside], batch, folder, plan, f"What {model.card.id} sees", notes)


def _page(
    models: Sequence[Model],
    batch: Batch,
    folder: Path,
    plan: Sequence[study.Analysis],
    title: str,
    notes: Callable[[dict[str, Result]], list[str]],
) -> Path:
    plan = plan or study.main_plan(labelled=not bool((batch.labels < 0).any()), judges=independent_judges(models))
    results = study.run(models, batch, plan, folder / "results")
    table = [_row(m, results.get("accuracy"), i) for i, m in enumerate(models)]
    return write(results, folder, title=title, models=table, notes=notes(results))


def images_for(checkpoint: str, source: str, *, n: int | None = None, said: Said | None = None) -> Batch:
    """Images prepared as the checkpoint asks; where its size is open they must have the right one already.

    Raises InputError with what the file leaves open where the images do not all have one size, so that they cannot settle it.
    Classes that all have names of the checkpoint's are its classes, some of them or all, in whatever order (`by_name`).
    """
    if checkpoint.startswith("timm:"):
        return images(source, n=n, preprocess=load_as(checkpoint, said or Said()).card.preprocess)
    found = inspect(locate(checkpoint), said)
    prepared = found.describe().preprocess
    known = found.size is not None or all(found.describe(candidate).preprocess == prepared for candidate in found.fits)
    try:
        batch = images(source, n=n, preprocess=prepared if known else None)
    except InputError as unfit:
        if known:
            raise
        raise InputError(asked(found, instead=f"these cannot: {unfit}")) from unfit
    return by_name(batch, found.card.labels if found.card else ())


def _row(model: Model, measured: Result | None, position: int) -> dict[str, str]:
    """One line of the table of models: the card's numbers where it has them, else those measured on these images."""
    card = model.card
    clean, robust = as_text(card.number("clean")), as_text(card.number("pgd20"))
    if card.number("clean") is None and measured is not None:
        n = measured.data["clean"].attrs["n"]
        clean, robust = (f"{interval(measured, name, position, '.1%')}, n = {n} (here)" for name in ("clean", "attacked"))
    threat = card.threat
    against = (
        f"{threat.norm.replace('linf', 'L∞')} {threat.eps * 255:g}/255" if threat else card.training.split(";")[0] or "unknown"
    )
    return {
        "model": card.id,
        "parameters": f"{model.parameters_count / 1e6:.2f} M",
        "MACs": f"{macs(model) / 1e6:.0f} M",
        "trained against": against,
        "clean": clean,
        "PGD-20, 8/255": robust,
    }


def _worth(model: Model, measured: Result | None) -> str:
    """What a checkpoint is worth on these images, whatever its name says."""
    about = f"{model.card.id}: {model.card.arch}, {model.parameters_count / 1e6:.2f} M parameters; {model.card.origin}."
    if measured is None:
        return f"{about} The images carry no labels: nothing was measured."
    data = measured.data
    clean, robust = (float(data[k].values[0]) for k in ("clean", "attacked"))
    low, high, chance = float(data["attacked_low"].values[0]), float(data["attacked_high"].values[0]), 1 / model.card.num_classes
    right, held = (interval(measured, name, 0) for name in ("clean", "attacked"))
    said = f"On {data['clean'].attrs['n']} images it is right on {right}, under attack on {held}."
    if clean < 2 * chance:
        verdict = "It hardly beats chance here: architecture, normalisation, labels or images are not what it was trained with."
    elif high < 0.25:
        verdict = "It is not robust: the attack takes nearly all of its accuracy, as it does from a standard model."
    elif low > chance:
        verdict = (
            "It withstands PGD better than chance; PGD gives an upper bound, and AutoAttack would say how much of it is real."
        )
    else:
        verdict = "These images are too few to tell whether it is robust; use more."
    claim = (
        "" if model.robust or robust < 0.25 else " No threat model came with the file; the statement rests on the attack alone."
    )
    return f"{about} {said} {verdict}{claim}"
