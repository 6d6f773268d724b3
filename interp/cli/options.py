"""What commands share: the app, its options, and how they read inputs and write figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from interp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from interp.attacks.pgd import PGD
    from interp.models.answers import Said
    from interp.models.model import Model
    from interp.result import Result
    from interp.types import Batch

app = typer.Typer(
    help="What robust vision models see: large perturbations, accumulated gradients, attention, semantic attributes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()


def _at_least_one(value: int | None) -> int | None:
    if value is not None and value < 1:
        raise InputError(f"chunk is {value}; expected at least 1 image per pass")
    return value


Models = Annotated[list[str] | None, typer.Argument(help="Shipped ids, checkpoint files or timm:NAME; all shipped ones if none.")]
Images = Annotated[str, typer.Option(help="samples:cifar10, samples:imagenet, folder:PATH, parquet:PATH, or one image.")]
Count = Annotated[int, typer.Option("-n", help="At most this many images.")]
Folder = Annotated[Path, typer.Option(help="Where figures and results are written.")]
Eps = Annotated[str, typer.Option(help="ε, as 8/255 or 0.03; several with commas.")]
NormName = Annotated[str, typer.Option(help="linf, l2 or l1.")]
Steps = Annotated[int, typer.Option(help="PGD steps.")]
StepSize = Annotated[str | None, typer.Option(help="Size of a step, as ε; 1.5·ε/steps if none.")]
Loss = Annotated[str, typer.Option(help="ce, margin, logit or dlr.")]
Rule = Annotated[str, typer.Option(help="pgd, momentum or apgd.")]
Basis = Annotated[str, typer.Option(help="pixels, or fourier for smooth steps.")]
Jitter = Annotated[int, typer.Option(help="Show the model the picture shifted by up to so many pixels at each step.")]
Blur = Annotated[float, typer.Option(help="Show the model the picture blurred, width in pixels.")]
Seed = Annotated[int, typer.Option(help="Seed of random starts and shifts.")]
Precision = Annotated[str, typer.Option(help="float32, float64, or fast: gradients in bfloat16.")]
Chunk = Annotated[int | None, typer.Option(callback=_at_least_one, help="Images per pass; the fastest if none.")]
Arch = Annotated[str | None, typer.Option(help="Architecture, where the file's names and shapes leave it open.")]
ArchArg = Annotated[list[str] | None, typer.Option(help="KEY=VALUE, an argument of the architecture; may be repeated.")]
Normalise = Annotated[
    str | None,
    typer.Option("--normalise", "--normalize", help="none, imagenet, half, cifar10, … or m,m,m/s,s,s."),
]
Size = Annotated[int | None, typer.Option(help="Input size in pixels, where nothing says it.")]
Channels = Annotated[str | None, typer.Option(help="rgb or bgr.")]
Ema = Annotated[bool | None, typer.Option("--ema/--raw", help="The averaged or the raw copy, where the file holds both.")]


def inputs(specs: list[str] | None, source: str, n: int) -> tuple[list[Model], Batch]:
    """Models and the images they all take; raises InputError where the models do not take the same."""
    from interp.job import images_for
    from interp.models.load import check_labels, load, shipped

    specs = specs or list(shipped())
    if not specs:
        raise InputError("no shipped checkpoints were found; name a model, or set INTERP_CHECKPOINTS to their folder")
    batch = images_for(specs[0], source, n=n)
    chosen = [load(spec, images=batch) for spec in specs]
    sizes = {m.card.id: m.card.preprocess.size for m in chosen}
    if len(set(sizes.values())) > 1:
        raise InputError(f"the models take images of different sizes ({sizes}); give models of one size")
    for model in chosen:
        check_labels(model.card, batch)
    return chosen, batch


def said(
    arch: str | None, args: list[str] | None, normalise: str | None, size: int | None, channels: str | None, ema: bool | None
) -> Said:
    """The options of a command as what is said of a file; values of --arch-arg are TOML, or words."""
    from interp.models.answers import Said

    return Said(arch, key_values(args, "--arch-arg", "depth=12"), normalise, size, channels, ema)


def key_values(texts: list[str] | None, option: str, example: str) -> dict[str, Any]:
    """KEY=VALUE options; values are TOML, or words."""
    import tomllib

    values: dict[str, Any] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"{option} is {text!r}; expected KEY=VALUE, such as {example}")
        try:
            values[key] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            values[key] = value
    return values


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


def class_index(model: Model, text: str) -> int:
    labels = model.card.labels
    if text in labels:
        return labels.index(text)
    if text.isdigit() and int(text) < model.card.num_classes:
        return int(text)
    raise InputError(
        f"{text!r} is no class of {model.card.id}; its classes are {', '.join(labels) or f'0 to {model.card.num_classes - 1}'}"
    )


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
    """The success of a sweep: a row per model and direction, a column per ε."""
    from rich.table import Table

    from interp.plots.perturbations import size
    from interp.plots.style import labels, rows

    data = result.data
    v, low, high = (data[f"success{end}"].values for end in ("", "_low", "_high"))
    table = Table(f"success (n = {data.sizes['image']})", "", *(size(result, e) for e in range(data.sizes["eps"])), box=None)
    table.columns[0].no_wrap = True
    for m in rows(data):
        for d, direction in enumerate(data["direction"].values):
            cells = [f"{v[m, d, e]:.0%} [{low[m, d, e]:.0%}, {high[m, d, e]:.0%}]" for e in range(data.sizes["eps"])]
            table.add_row(labels(data)[m], str(direction), *cells)
    out.print(table)


def print_table(result: Result) -> None:
    from rich.table import Table

    frame = result.table()
    frame = frame[frame["judge"].isna()] if "judge" in frame else frame
    table = Table("model", "measure", "value", "95 % interval", "n", "better", box=None)
    for _, row in frame.iterrows():
        table.add_row(
            row["model"],
            row["measure"],
            f"{row['value']:.3f}",
            f"[{row['low']:.3f}, {row['high']:.3f}]",
            str(row["n"]),
            row["better"],
        )
    out.print(table)
