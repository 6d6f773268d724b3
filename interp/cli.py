"""The commands. Nothing heavy is imported until a command needs it: help and argument errors come at once."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from interp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from interp.attacks.pgd import PGD
    from interp.models.inspect import Said
    from interp.models.model import Model
    from interp.result import Result
    from interp.types import Batch, Card

INTERRUPTED = 130  # the exit code that typer gives Ctrl-C

app = typer.Typer(
    help="What robust vision models see: large perturbations, accumulated gradients, attention, semantic attributes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
errors = Console(stderr=True)

Models = Annotated[list[str] | None, typer.Argument(help="Shipped ids, checkpoint files or timm:NAME; all shipped ones if none.")]
Images = Annotated[str, typer.Option(help="samples:cifar10, samples:imagenet, folder:PATH, parquet:PATH, or one image.")]
Count = Annotated[int, typer.Option("-n", help="At most this many images.")]
Folder = Annotated[Path, typer.Option(help="Where figures and results are written.")]
Eps = Annotated[str, typer.Option(help="ε, as 8/255 or 0.03; several with commas.")]
NormName = Annotated[str, typer.Option(help="linf or l2.")]
Steps = Annotated[int, typer.Option(help="PGD steps.")]
Arch = Annotated[str | None, typer.Option(help="Architecture, where the file's names and shapes leave it open.")]
ArchArg = Annotated[list[str] | None, typer.Option(help="KEY=VALUE, an argument of the architecture; may be repeated.")]
Normalise = Annotated[
    str | None,
    typer.Option("--normalise", "--normalize", help="none, imagenet, half, cifar10, … or m,m,m/s,s,s."),
]
Size = Annotated[int | None, typer.Option(help="Input size in pixels, where nothing says it.")]
Channels = Annotated[str | None, typer.Option(help="rgb or bgr.")]
Ema = Annotated[bool | None, typer.Option("--ema/--raw", help="The averaged or the raw copy, where the file holds both.")]


@app.command()
def report(
    models: Models = None, images: Images = "samples:cifar10", n: Count = 100, out_dir: Folder = Path("figures/report")
) -> None:
    """The main job: all analyses of the models on the images, as one page."""
    from interp.job import write_report

    chosen, batch = _inputs(models, images, n)
    _say_page(write_report(chosen, batch, out_dir))


@app.command()
def analyze(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint file, a shipped id or timm:NAME.")],
    images: Images = "samples:cifar10",
    n: Count = 100,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    normalise: Normalise = None,
    size: Size = None,
    channels: Channels = None,
    ema: Ema = None,
    out_dir: Annotated[Path | None, typer.Option(help="Default: figures/NAME.")] = None,
) -> None:
    """The main job for one new checkpoint, beside the shipped models: what is it worth, what does it see?"""
    from interp.job import analyze as run

    folder = out_dir or Path("figures") / Path(checkpoint.removeprefix("timm:")).name.split(".")[0]
    _say_page(run(checkpoint, images, folder, n=n, said=_said(arch, arch_arg, normalise, size, channels, ema)))


@app.command()
def perturb(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 6,
    eps: Eps = "8/255,32/255,128/255,1",
    norm: NormName = "linf",
    steps: Steps = 50,
    target: Annotated[str | None, typer.Option(help="Class to move toward; the next one in label order if none.")] = None,
    out_dir: Folder = Path("figures/perturb"),
) -> None:
    """Strips of what each model changes in an image as ε grows, away from its class and toward another."""
    from interp.attacks.sweep import Sweep, sweep
    from interp.plots.images import strip
    from interp.study import spread
    from interp.types import fraction

    values = tuple(fraction(part) for part in eps.split(","))
    pgd = _pgd(values[0], norm, steps)
    chosen, batch = _inputs(models, images, max(n, 20))
    params = Sweep(values, pgd, None if target is None else _class_index(chosen[0], target))
    result = _remembered("sweep", sweep, chosen, spread(batch, n), params, out_dir)
    for i in range(result.data.sizes["image"]):
        _save(strip(result, image=i), out_dir, f"perturbations_{i}")


@app.command()
def synthesise(
    models: Models = None, images: Images = "samples:cifar10", steps: Steps = 100, out_dir: Folder = Path("figures/synthesise")
) -> None:
    """Pictures that each model draws from noise toward every class (the images only give the size)."""
    from interp.attacks.pgd import PGD
    from interp.attacks.sweep import Synthesis
    from interp.attacks.sweep import synthesise as run

    chosen, batch = _inputs(models, images, 1)
    _figure("synthesis", run, chosen, batch, Synthesis(PGD(15.0, steps=steps, targeted=True)), out_dir)


@app.command()
def gradients(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 6,
    over: Annotated[str, typer.Option(help="steps of an attack, noise, or path from grey.")] = "steps",
    eps: Eps = "8/255",
    samples: Annotated[int, typer.Option(help="Gradients to accumulate.")] = 50,
    sigma: Annotated[float, typer.Option(help="Width of the noise, in units of [0, 1].")] = 0.1,
    out_dir: Folder = Path("figures/gradients"),
) -> None:
    """Input gradients accumulated over an attack, noise or a path, on one colour scale."""
    from interp.gradients.accumulate import Accumulate, accumulate
    from interp.study import spread
    from interp.types import fraction

    params = Accumulate(over, _pgd(fraction(eps), "linf", samples), samples, sigma)
    chosen, batch = _inputs(models, images, max(n, 20))
    _figure("gradients", accumulate, chosen, spread(batch, n), params, out_dir)


@app.command()
def attention(
    models: Models = None, images: Images = "samples:cifar10", n: Count = 6, out_dir: Folder = Path("figures/attention")
) -> None:
    """What each model looks at: class attention, refolded MobileViT attention, Grad-CAM for convolutional networks."""
    from interp.attention.attend import Attend, attend
    from interp.study import spread

    chosen, batch = _inputs(models, images, max(n, 20))
    _figure("attention", attend, chosen, spread(batch, n), Attend(), out_dir)


@app.command()
def compare(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 100,
    eps: Eps = "32/255",
    steps: Steps = 20,
    out_dir: Folder = Path("figures/compare"),
) -> None:
    """Semantic attributes of the models on the same images, with intervals and a noise control."""
    import dataclasses

    from interp.attributes.compare import Compare
    from interp.attributes.compare import compare as run
    from interp.plots.matrices import judges
    from interp.types import fraction

    chosen, batch = _inputs(models, images, n)
    params = Compare(dataclasses.replace(_pgd(fraction(eps), "linf", steps), targeted=True))
    result = _figure("compare", run, chosen, batch, params, out_dir)
    _save(judges(result), out_dir, "judges")
    _print_table(result)


@app.command()
def accuracy(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 100,
    eps: Eps = "8/255",
    out_dir: Folder = Path("figures/accuracy"),
) -> None:
    """Clean accuracy and accuracy under PGD-20, with intervals."""
    from interp.attacks.pgd import PGD
    from interp.robustness.accuracy import Accuracy
    from interp.robustness.accuracy import accuracy as run
    from interp.types import fraction

    value = fraction(eps)
    params = Accuracy(PGD(value, steps=20, step_size=max(value / 4, 1e-6)))
    chosen, batch = _inputs(models, images, n)
    _print_table(_figure("accuracy", run, chosen, batch, params, out_dir))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/mobilevit_xs_cifar10_linf.toml.")],
    data: Annotated[str, typer.Option(help="Training images: parquet:PATH or folder:PATH.")],
    test: Annotated[str, typer.Option(help="Test images, to measure the card's numbers on.")],
    attacked: Annotated[int, typer.Option(help="Test images to attack.")] = 1000,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Processor threads, 0 for all.")] = 0,
    out_dir: Folder = Path("checkpoints"),
) -> None:
    """Train by a recipe and write the weights (fp16) and a card with measured accuracies."""
    import torch

    from interp.data.source import images, read_pixels
    from interp.publish import as_text, check_test_images, publish
    from interp.training.loop import train as run
    from interp.training.recipe import Recipe

    plan = Recipe.read(recipe)
    if threads:
        torch.set_num_threads(threads)
    held_out = images(test, preprocess=plan.preprocess)
    check_test_images(plan, held_out)
    found = read_pixels(data, preprocess=plan.preprocess)
    out_dir.mkdir(parents=True, exist_ok=True)
    net = run(plan, found.pixels, found.labels, log=out_dir / f"{plan.id}.csv", device=device)
    card = publish(net.cpu(), plan, held_out, folder=out_dir, attacked=attacked)
    out.print(f"{out_dir / card.weights}: clean {as_text(card.number('clean'))}; PGD-20 {as_text(card.number('pgd20'))}")


@app.command(name="models")
def list_models(
    glob: Annotated[str | None, typer.Argument(help="Published ids, as 'robustbench:cifar10/*' or salman; '*' for all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that is known of them, for programs.")] = False,
    markdown: Annotated[bool, typer.Option(help="The table of checkpoints/README.md.")] = False,
) -> None:
    """The checkpoints at hand; with a pattern, the published ones that the catalogue knows."""
    import dataclasses
    import json

    from interp.models.catalogue import as_json as plain
    from interp.models.catalogue import catalogue, find, listing, match
    from interp.models.fetch import on_disk
    from interp.models.load import shipped
    from interp.publish import checkpoint_table
    from interp.types import Card

    cards = {path: Card.read(path) for path in shipped().values()}
    if markdown:
        typer.echo(checkpoint_table(list(cards.values())))
        return
    found = list(catalogue().values()) if glob is None else match(glob) or [find(glob)]
    here = {e.id: str(path) for e in found if (path := on_disk(e))}
    if as_json:
        ours = [dataclasses.asdict(card) | {"on_disk": str(path)} for path, card in cards.items() if glob is None]
        published = [plain(e) | {"on_disk": here.get(e.id)} for e in found]
        typer.echo(json.dumps(ours + published, indent=1, ensure_ascii=False))
    elif glob is None:
        _print_shipped(list(cards.values()), len(here))
    else:
        typer.echo(listing(found, here=here, width=out.width))


def _print_shipped(cards: list[Card], fetched: int) -> None:
    """The shipped checkpoints, then how many are published elsewhere."""
    from rich.table import Column, Table

    from interp.models.catalogue import counts
    from interp.publish import as_text

    table = Table(Column("id", no_wrap=True), "trained against", "clean", "PGD-20 at 8/255", box=None)
    for card in cards:
        threat = f"{card.threat.norm} {card.threat.eps * 255:g}/255" if card.threat else "–"
        table.add_row(card.id, threat, as_text(card.number("clean")), as_text(card.number("pgd20")))
    out.print(table)
    each = ", ".join(f"{n} {origin}" for origin, n in counts().items())
    typer.echo(f"\n{sum(counts().values())} published checkpoints are known, {fetched} of them on disk: {each}.")
    typer.echo("List them with interp models 'robustbench:imagenet/*' (or '*'), download one with interp fetch ID.")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="An id of the catalogue (interp models '*'), or a short name that only one has.")],
    folder: Annotated[Path | None, typer.Option(help="Default: fetched, beside the shipped checkpoints.")] = None,
) -> None:
    """Download a published checkpoint over https, resumable and verified, with its card beside it."""
    from interp.models.catalogue import find
    from interp.models.fetch import fetch as run
    from interp.models.fetch import on_disk

    entry = find(name)
    here = on_disk(entry, folder)
    path = here or run(entry.id, folder=folder)
    typer.echo(f"{entry.id} {'is already there' if here else 'is there now'}: {path}")
    if entry.note:
        typer.echo(f"note: {entry.note}")


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A checkpoint file, a shipped id, or a fetched id of the catalogue.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same for programs, nothing shortened.")] = False,
    arch: Arch = None,
    arch_arg: ArchArg = None,
    normalise: Normalise = None,
    size: Size = None,
    channels: Channels = None,
    ema: Ema = None,
) -> None:
    """What a checkpoint is, without running anything in it: origin, architecture, preprocessing, and what is left open."""
    import json

    from interp.models.describe import as_json as plain
    from interp.models.describe import as_text
    from interp.models.inspect import inspect as run
    from interp.models.load import locate

    found = run(locate(file), _said(arch, arch_arg, normalise, size, channels, ema))
    typer.echo(json.dumps(plain(found), indent=1, ensure_ascii=False) if as_json else as_text(found))


@app.command()
def plot(
    result: Annotated[Path, typer.Argument(help="A .nc file written by interp.")], out_dir: Folder = Path("figures/plot")
) -> None:
    """Draw a saved result again; needs no torch and no model."""
    from interp.result import open_result

    found = open_result(result)
    _save(found.plot(), out_dir, found.kind)


def _inputs(specs: list[str] | None, source: str, n: int) -> tuple[list[Model], Batch]:
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


def _said(
    arch: str | None, args: list[str] | None, normalise: str | None, size: int | None, channels: str | None, ema: bool | None
) -> Said:
    """The options of a command as what is said of a file; values of --arch-arg are TOML, or words."""
    import tomllib

    from interp.models.inspect import Said

    values: dict[str, Any] = {}
    for text in args or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--arch-arg is {text!r}; expected KEY=VALUE, such as depth=12")
        try:
            values[key] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            values[key] = value
    return Said(arch, values, normalise, size, channels, ema)


def _pgd(eps: float, norm: str, steps: int) -> PGD:
    from interp.attacks.pgd import PGD

    return PGD(eps, norm, steps)


def _class_index(model: Model, text: str) -> int:
    labels = model.card.labels
    if text in labels:
        return labels.index(text)
    if text.isdigit() and int(text) < model.card.num_classes:
        return int(text)
    raise InputError(
        f"{text!r} is no class of {model.card.id}; its classes are {', '.join(labels) or f'0 to {model.card.num_classes - 1}'}"
    )


def _remembered(
    kind: str, run: Callable[..., Result], models: Sequence[Model], batch: Batch, params: Any, folder: Path
) -> Result:
    from interp.result import remember

    return remember(folder / "results", kind, run, models, batch, params)


def _figure(kind: str, run: Callable[..., Result], models: Sequence[Model], batch: Batch, params: Any, folder: Path) -> Result:
    result = _remembered(kind, run, models, batch, params, folder)
    _save(result.plot(), folder, kind)
    return result


def _save(figure: Any, folder: Path, name: str) -> None:
    from interp.plots.style import save

    out.print(f"wrote {save(figure, folder, name)}", soft_wrap=True)


def _say_page(path: Path) -> None:
    out.print(f"wrote {path.resolve()}", soft_wrap=True)


def _print_table(result: Result) -> None:
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


def main() -> None:
    """Entry point: input errors end with one message and exit code 2, Ctrl-C with 130; finished results stay."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except InputError as error:
        errors.print(f"interp: {error}", style="bold red", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("interp: stopped; finished results are kept, the same command goes on from there")
        raise
