"""The commands about checkpoints: train, models, fetch, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.options import Arch, ArchArg, Channels, Ema, Folder, Normalise, Size, app, out, said

if TYPE_CHECKING:
    from interp.types import Card


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

    def number(card: Card, name: str) -> str:
        found = card.number(name)
        return f"{found.value:.1%} of {found.n:,}" if found else "–"

    table = Table(Column("id", no_wrap=True), "threat", "clean", "PGD-20 at 8/255", box=None)
    for card in cards:
        threat = f"{card.threat.norm} {card.threat.eps * 255:g}/255" if card.threat else "–"
        table.add_row(card.id, threat, number(card, "clean"), number(card, "pgd20"))
    out.print(table)
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

    found = run(locate(file), said(arch, arch_arg, normalise, size, channels, ema))
    typer.echo(json.dumps(plain(found), indent=1, ensure_ascii=False) if as_json else as_text(found))
