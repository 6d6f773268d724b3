"""The commands about checkpoints: train, models, fetch, inspect."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.answers import Answers, answered, key_values
from interp.cli.options import Device, Folder, app, out, save

if TYPE_CHECKING:
    from interp.types import Card


Data = Annotated[str, typer.Option(help="Training images: parquet:PATH or folder:PATH.")]
Test = Annotated[str, typer.Option(help="Test images, to watch training and to measure the card's numbers on.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, a key of the recipe to change; may be repeated.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew where there is a run already.")]
Threads = Annotated[int, typer.Option(help="Processor threads, 0 for all.")]
Workers = Annotated[int, typer.Option(help="Processes that decode and augment single images; -1 for as many as make sense.")]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/mobilevit_xs_cifar10_linf.toml.")],
    data: Data,
    test: Test,
    extra: Annotated[str | None, typer.Option(help="More training images, for the recipe's extra_share.")] = None,
    changes: Set = None,
    out_dir: Annotated[Path, typer.Option(help="The run's folder is OUT_DIR/ID; a run found there is continued.")] = Path("runs"),
    fresh: Fresh = False,
    device: Device = "",
    threads: Threads = 0,
    workers: Workers = -1,
    n: Annotated[int | None, typer.Option("-n", help="Test images to measure on; all if not given.")] = None,
    watched: Annotated[int, typer.Option(help="Test images whose accuracies are shown after each epoch.")] = 256,
    attacked: Annotated[int, typer.Option(help="Test images to attack with PGD-20 at the end.")] = 1000,
    autoattack: Annotated[int, typer.Option(help="Test images to attack with AutoAttack at the end.")] = 0,
) -> None:
    """Train by a recipe: weights (fp16), a card with measured accuracies, metrics and state in a run folder."""
    from interp.training.recipe import Recipe

    plan = Recipe.read(recipe, key_values(changes, "--set", "eps=4/255"))
    from interp.publish import as_text
    from interp.train_job import Machine, train_and_publish

    folder = out_dir / plan.id
    command = ["interp", "train", str(recipe), *(word for c in changes or [] for word in ("--set", c))]
    command += ["--data", data, "--test", test, *(["--extra", extra] if extra else [])]
    command += [] if out_dir == Path("runs") else ["--out-dir", str(out_dir)]
    card = train_and_publish(
        plan,
        data,
        test,
        extra=extra,
        folder=folder,
        machine=Machine(device, threads, workers),
        fresh=fresh,
        tested=n,
        watched=watched,
        attacked=attacked,
        autoattack=autoattack,
        said={"recipe": str(recipe), "command": shlex.join(command)},
    )
    if card is not None:
        told = "; ".join(f"{n.name} {as_text(n)}" for n in card.numbers)
        out.print(f"{folder / card.weights}: {told}", soft_wrap=True)


@app.command()
def ablate(
    grid: Annotated[Path, typer.Argument(help="A grid of changes to a recipe, such as recipes/ablation.toml.")],
    data: Data,
    test: Test,
    only: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, runs with this value alone; may be repeated.")] = None,
    changes: Set = None,
    n: Annotated[int, typer.Option("-n", help="Test images for clean accuracy.")] = 10_000,
    attacked: Annotated[int, typer.Option(help="Test images to attack.")] = 1000,
    device: Device = "",
    threads: Threads = 0,
    workers: Workers = -1,
    out_dir: Folder = Path("figures/ablation"),
) -> None:
    """Train every combination of a grid and compare them; measured runs are not trained again."""
    from interp.ablation import Ablation
    from interp.ablation import ablate as run

    plan = Ablation.read(grid, key_values(changes, "--set", "epochs=2"))
    chosen = key_values(only, "--only", "weight_decay=0.05")
    plan.runs(chosen)
    from interp.ablation import ablation_table
    from interp.data.source import images, read_pixels
    from interp.train_job import Machine

    preprocess = plan.recipe(plan.runs()[0]).preprocess
    held_out = images(test, n=n, preprocess=preprocess)
    pixels = read_pixels(data, preprocess=preprocess)
    machine = Machine(device, threads, workers)
    result = run(plan, pixels, held_out, out_dir, only=chosen, attacked=attacked, machine=machine)
    out.print(f"wrote {result.save(out_dir)}", soft_wrap=True)
    save(result.plot(), out_dir, "ablation")
    typer.echo(ablation_table(result))


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
    from interp.models.load import contrast, shipped
    from interp.publish import checkpoint_tables
    from interp.types import Card

    twins, examples = ({path: Card.read(path) for path in ids.values()} for ids in (shipped(), contrast()))
    if markdown:
        typer.echo(checkpoint_tables(list(twins.values()), list(examples.values())))
        return
    found = list(catalogue().values()) if glob is None else match(glob) or [find(glob)]
    here = {e.id: str(path) for e in found if (path := on_disk(e))}
    if as_json:
        ours = [dataclasses.asdict(card) | {"on_disk": str(path)} for path, card in (twins | examples).items() if glob is None]
        published = [plain(e) | {"on_disk": here.get(e.id)} for e in found]
        typer.echo(json.dumps(ours + published, indent=1, ensure_ascii=False))
    elif glob is None:
        _print_shipped(list(twins.values()), list(examples.values()), len(here))
    else:
        typer.echo(listing(found, here=here, width=out.width))


def _print_shipped(twins: list[Card], examples: list[Card], fetched: int) -> None:
    """The shipped checkpoints, first the default models, then how many are published elsewhere."""
    from rich.table import Column, Table

    from interp.models.catalogue import counts
    from interp.publish import elsewhere

    def number(card: Card, name: str) -> str:
        found = card.number(name)
        return f"{found.value:.1%} of {found.n:,}{elsewhere(found)}" if found else "–"

    def threat(card: Card) -> str:
        if card.threat is None:
            return "–"
        return f"l2 {card.threat.eps:g}" if card.threat.norm == "l2" else f"{card.threat.norm} {card.threat.eps * 255:g}/255"

    table = Table(Column("id", no_wrap=True), "threat", "clean", "PGD-20 at 8/255", box=None)
    for card in twins + examples:
        table.add_row(card.id, threat(card), number(card, "clean"), number(card, "pgd20"))
    out.print(table)
    if examples:
        typer.echo(f"(examples in contrast/, loaded by name and never by default: {', '.join(card.id for card in examples)})")
    typer.echo("(with intervals: checkpoints/README.md, or interp models --json)")
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
@answered("file")
def inspect(
    file: Annotated[str, typer.Argument(help="A checkpoint file, a shipped id, or a fetched id of the catalogue.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same for programs, nothing shortened.")] = False,
    *,
    said: Answers,
) -> None:
    """What a checkpoint is, without running anything in it: origin, architecture, preprocessing, and what is left open."""
    import json

    from interp.models.describe import as_json as plain
    from interp.models.describe import as_text
    from interp.models.inspect import inspect as run
    from interp.models.load import locate

    found = run(locate(file), said.of(file))
    typer.echo(json.dumps(plain(found), indent=1, ensure_ascii=False) if as_json else as_text(found))
