"""What commands share: the app, its options, and how they read inputs and write figures."""

from __future__ import annotations

import difflib
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from interp.cli.answers import bare_ones, common_size, for_one, said_of
from interp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xarray import Dataset

    from interp.attacks.pgd import PGD
    from interp.cli.answers import Answers
    from interp.models.model import Model
    from interp.result import Result
    from interp.types import Batch

log = logging.getLogger(__name__)
app = typer.Typer(
    help="What robust vision models see: large perturbations, accumulated gradients, attention, semantic attributes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
WIDTHS = (22, 14, 7)  # letters in the columns of a comparison: the measure, a model, the control
SHARE = 13  # letters of a column of shares with their intervals
FEW = 20  # classes that a message can list


def _at_least_one(value: int | None) -> int | None:
    if value is not None and value < 1:
        raise InputError(f"chunk is {value}; expected at least 1 image per pass")
    return value


Models = Annotated[list[str] | None, typer.Argument(help="Shipped ids, checkpoint files or timm:NAME; all shipped ones if none.")]
Images = Annotated[str, typer.Option(help="samples:cifar10, samples:imagenet, folder:PATH, parquet:PATH, or one image.")]
Count = Annotated[int, typer.Option("-n", help="At most this many images.")]
Folder = Annotated[Path, typer.Option(help="Where figures and results are written.")]
Eps = Annotated[str, typer.Option(help="ε, as 8/255 or 0.03.")]
NormName = Annotated[str, typer.Option(help="linf, l2 or l1.")]
Steps = Annotated[int, typer.Option(help="PGD steps.")]
StepSize = Annotated[str | None, typer.Option(help="Size of a step, as ε; 1.5·ε/steps if none.")]
Loss = Annotated[str, typer.Option(help="ce, margin, logit or dlr.")]
Rule = Annotated[str, typer.Option(help="pgd, momentum or apgd.")]
Keep = Annotated[str, typer.Option(help="The last point of a run, or the best on its way; apgd keeps the best.")]
Basis = Annotated[str, typer.Option(help="pixels, or fourier for smooth steps.")]
Jitter = Annotated[int, typer.Option(help="Show the model the picture shifted by up to so many pixels at each step.")]
Blur = Annotated[float, typer.Option(help="Show the model the picture blurred, width in pixels.")]
Seed = Annotated[int, typer.Option(help="Seed of random starts and shifts.")]
Precision = Annotated[str, typer.Option(help="float32, float64, or fast: gradients in bfloat16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or mps; if not given, the best there is.")]
Chunk = Annotated[int | None, typer.Option(callback=_at_least_one, help="Images per pass; the fastest if none.")]


LADDER = {"linf": "8/255,32/255,128/255,1", "l2": "0.5,2,8,32", "l1": "10,50,200,1000"}  # of ε, from small to large
BY_NORM = "; ".join(f"{name} {LADDER[norm]}" for norm, name in (("linf", "if none, L∞"), ("l2", "L2"), ("l1", "L1")))
Several = Annotated[str, typer.Option("--eps", help=f"ε, as 8/255 or 0.03, several with commas; {BY_NORM}.")]
Roomy = Annotated[str, typer.Option("--eps", help="ε; if none, one that binds nothing: L∞ 15, L2 √d, L1 d = 3·height·width.")]


def ladder(norm: str) -> str:
    """The values of ε of a norm that are taken where none are given; of a norm that there is not, those of L∞."""
    return LADDER.get(norm, LADDER["linf"])


def roomy(norm: str, batch: Batch) -> float:
    """An ε whose ball holds the box [0, 1] whatever its centre: √d in L2 (rounded up) and d in L1, of d numbers per image."""
    d = math.prod(batch.images.shape[1:])
    return {"linf": 15.0, "l2": float(math.ceil(d**0.5)), "l1": float(d)}[norm]


def inputs(
    specs: list[str] | None, source: str, n: int, device: str = "cpu", *, said: Answers | None = None, labelled: bool = True
) -> tuple[list[Model], Batch]:
    """Models on the device ('' for the best there is) and the images they all take; raises InputError where they differ.

    said: what the files without a card leave open; raises InputError where it is given and there is no such file. labelled:
    whether labels are needed; where they are not, those that are not the models' are left out, with a warning.
    """
    from interp.job import images_for
    from interp.models.load import check_labels, load_as, named_apart, shipped, unlabelled

    specs = specs or list(shipped())
    if not specs:
        raise InputError("no shipped checkpoints were found; name a model, or set INTERP_CHECKPOINTS to their folder")
    answers = said_of(specs, said)
    several = said is not None and len(specs) > 1
    with for_one(specs[0], several):
        batch = images_for(specs[0], source, n=n, said=answers[0])
    loaded: list[Model] = []
    for spec, answer in zip(specs, answers, strict=True):
        with for_one(spec, several):
            try:
                loaded.append(load_as(spec, answer, images=batch))
            except InputError:  # it may ask for other images than the first model, whose size then stands in the way below
                own = images_for(spec, source, n=n, said=answer)
                if own.images.shape == batch.images.shape:
                    raise
                loaded.append(load_as(spec, answer, images=own))
    chosen = named_apart(loaded, specs)
    sizes = {m.card.id: m.card.preprocess.size for m in chosen}
    if len(set(sizes.values())) > 1:
        common = "" if said is None else common_size([m.card for m in chosen], bare_ones(specs))
        raise InputError(f"the models take images of different sizes ({sizes}); give models of one size{common}")
    try:
        for model in chosen:
            check_labels(model.card, batch)
    except InputError as misfit:
        if labelled:
            raise
        log.warning("the images' labels are left out, since nothing here needs them: %s", misfit)
        batch = unlabelled(batch)
    from interp.train_job import Machine  # only here: it takes seconds to import, and errors need it not

    where = Machine(device).settle()[0]
    return [model.to(where) for model in chosen], batch


def further(judges: str, models: Sequence[Model], batch: Batch) -> tuple[Model, ...]:
    """The judges that are named with commas, on the models' device; those that are needed if '', none if 'none'."""
    from interp.models.load import independent_judges, load

    if judges == "none":
        return ()
    if judges:
        names = [name.strip() for name in judges.split(",") if name.strip()]
        return tuple(load(name, images=batch).to(models[0].mean.device) for name in names)
    found = tuple(independent_judges(models))
    if found:
        out.print(f"judges beside the models: {', '.join(judge.card.id for judge in found)}", soft_wrap=True)
    return found


def was_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line, and is not the default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def heeded(context: typer.Context, names: dict[str, str], *, takes: Sequence[str], what: str) -> None:
    """Raise InputError where an option was given (parameter: option as it is written) of which `what` heeds nothing."""
    for name, option in names.items():
        if name not in takes and was_given(context, name):
            others = [known for other, known in names.items() if other in takes]
            instead = f"; of these options it takes {', '.join(others)}" if others else ""
            raise InputError(f"{option} is {context.params[name]}, but {what} does not take it{instead}; leave it out")


def pgd(eps: float, norm: str, steps: int, step_size: str | None = None, **others: Any) -> PGD:
    """The attack that options describe."""
    from interp.attacks.pgd import PGD
    from interp.types import fraction

    return PGD(eps, norm, steps, None if step_size is None else fraction(step_size), **others)


def one_of(option: str, text: str, *known: str) -> str:
    """The value of an option, one of a few words."""
    if text not in known:
        raise InputError(f"{option} is {text!r}; expected {' or '.join(known)}")
    return text


def pixel(option: str, text: str | None) -> tuple[int, int] | None:
    """A pixel (y, x) of an option such as 16,20."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise InputError(f"{option} is {text!r}; expected Y,X in pixels, such as 16,20")
    return int(parts[0]), int(parts[1])


def class_index(model: Model, text: str) -> int:
    """The class of a number or a name: all of it, or the first of its synonyms ('tench' of 'tench, Tinca tinca')."""
    labels, classes = list(model.card.labels), model.card.num_classes
    first = [label.partition(",")[0] for label in labels]
    for names in (labels, first):
        found = [i for i, name in enumerate(names) if name == text]
        if len(found) > 1:
            raise InputError(f"{text!r} is the name of the classes {' and '.join(map(str, found))}; give one of these numbers")
        if found:
            return found[0]
    if text.isdigit() and int(text) < classes:
        return int(text)
    wrong = f"{text!r} is no class of {model.card.id}"
    if len(labels) <= FEW:
        raise InputError(f"{wrong}; its classes are {', '.join(labels) or f'0 to {classes - 1}'}")
    lower = {name.lower(): name for name in first}
    near = [lower[name] for name in difflib.get_close_matches(text.lower(), lower, n=8)]
    said = f"the nearest of its {classes} classes are {', '.join(near)}" if near else f"none of its {classes} is near"
    raise InputError(f"{wrong}; {said}; give a name or a number from 0 to {classes - 1}")


def remembered(kind: str, run: Callable[..., Result], models: Sequence[Model], batch: Batch, params: Any, folder: Path) -> Result:
    from interp.result import remember

    return remember(folder / "results", kind, run, models, batch, params)


def figure(kind: str, run: Callable[..., Result], models: Sequence[Model], batch: Batch, params: Any, folder: Path) -> Result:
    result = remembered(kind, run, models, batch, params, folder)
    save(result.plot(), folder, kind)
    return result


def save(figure: Any, folder: Path, name: str) -> None:
    from interp.plots.style import save

    say(save(figure, folder, name))


def say(path: Path) -> None:
    out.print(f"wrote {path}", soft_wrap=True)


def say_page(path: Path) -> None:
    out.print(f"wrote {path.resolve()}", soft_wrap=True)


def print_success(result: Result) -> None:
    """The success of a sweep: a row per model and direction, as many columns of ε beside each other as the terminal is wide."""
    from rich.table import Table

    from interp.plots.attacks import size
    from interp.plots.style import labels, rows

    data = result.data
    n = data["success_n"].values[:, :, 0]
    names = {(m, d): _directed(data, m, d) for m in rows(data) for d in range(data.sizes["direction"]) if n[m, d] > 0}
    title = f"success (n = {data.sizes['image']})"
    most = max(1, (out.width - max(map(len, (title, *labels(data), *names.values()))) - 2) // SHARE)
    for first in range(0, data.sizes["eps"], most):
        shown = range(first, min(first + most, data.sizes["eps"]))
        heads = [size(result, e).replace(" (", "\n(") for e in shown]
        table = Table(title, *heads, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for column in table.columns:
            column.no_wrap = True
        for (m, d), direction in names.items():
            table.add_row(f"{labels(data)[m]}\n{direction}", *(_share(data, m, d, e) for e in shown))
        out.print(table)
    if (left := int((n == 0).sum())) > 0:
        out.print(f"left out: {left} rows in which no image counts (of the target, or read as it)", highlight=False)


def _directed(data: Dataset, m: int, d: int) -> str:
    """A direction, with the number of images that count in it where some do not."""
    n = int(data["success_n"].values[m, d, 0])
    return f"{data['direction'].values[d]}{f' (n = {n})' if n < data.sizes['image'] else ''}"


def _share(data: Dataset, m: int, d: int, e: int) -> str:
    """A share over its interval."""
    v, low, high = (float(data[f"success{end}"].values[m, d, e]) for end in ("", "_low", "_high"))
    return f"{v:.0%}\n[{low:.0%}, {high:.0%}]"


def print_table(result: Result) -> None:
    from rich.table import Table

    table = Table("model", "measure", "value", "95 % interval", "n", "better", box=None)
    for _, row in result.table().iterrows():
        table.add_row(
            row["model"],
            row["measure"],
            f"{row['value']:.3f}",
            f"[{row['low']:.3f}, {row['high']:.3f}]",
            str(row["n"]),
            row["better"],
        )
    out.print(table)


def print_measures(result: Result) -> None:
    """The table of a comparison, as many models beside each other as the terminal is wide, then the verdicts."""
    from interp.plots.matrices import GROUPS, by_group
    from interp.plots.style import rows
    from interp.report.words import compare

    order, tables = rows(result.data), by_group(result)
    most = max(1, (out.width - sum(WIDTHS[::2]) - 1) // (WIDTHS[1] + 1))
    for block in (order[i : i + most] for i in range(0, len(order), most)):
        for k, (group, names) in enumerate(tables.items()):
            out.print(f"\n[bold]{GROUPS.get(group, group)}[/bold]")
            out.print(_measures(result, names, block, head=k == 0))
    out.print("\n★ better than every other model; as control: not shown to differ from it as it should; ? too few values to test")
    out.print(compare(result).seen, highlight=False, markup=False)
    if skipped := result.data.attrs.get("skipped"):
        out.print(f"left out: {skipped}", highlight=False, markup=False)


def _measures(result: Result, names: list[str], block: list[int], *, head: bool) -> Any:
    """Some measures of some models, in columns of one width, so that the tables of several groups stand under each other."""
    from rich.markup import escape
    from rich.table import Table

    from interp.plots.matrices import ARROWS, cell, count, heads, span

    data = result.data
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=head)
    for title, width in (
        ("measure", WIDTHS[0]),
        *((escape(name), WIDTHS[1]) for name in heads(data, block)),
        ("control", WIDTHS[2]),
    ):
        table.add_column(title, width=width)
    for name in names:
        title = f"{data[name].attrs['long_name']} {ARROWS[data[name].attrs['better']]}".strip()
        control = span(data[f"{name}_control"].values[block]).replace(" to ", "–\n") if f"{name}_control" in data else ""
        cells = (escape(cell(data, name, m)) for m in block)
        table.add_row(escape(f"{title} (n={count(data, name)})"), *cells, control)
    return table
