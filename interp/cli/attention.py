"""The commands of what models look at, and how far such maps can be trusted: attention, faithfulness."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.answers import Answers, answered
from interp.cli.options import (
    Count,
    Device,
    Folder,
    Images,
    Models,
    NormName,
    Steps,
    app,
    figure,
    inputs,
    out,
    pgd,
    pixel,
    remembered,
    save,
    say,
    was_given,
)
from interp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp.models.model import Model
    from interp.result import Result
    from interp.robustness.shift import Shift
    from interp.types import Batch


@app.command()
@answered()
def attention(
    context: typer.Context,
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Annotated[int, typer.Option("-n", help="At most this many images; if not given, 6, and 20 for the numbers by layer.")] = 6,
    method: Annotated[
        str,
        typer.Option(
            help="With commas: auto, raw, channels, weighted, rollout, chefer, gradcam, gradcam++, layercam, scorecam; channels "
            "is derived from attention between channels (XCiT, EdgeNeXt, DaViT)."
        ),
    ] = "auto",
    layer: Annotated[
        str | None,
        typer.Option(
            help="Layer to read: of attention for auto, raw, channels and weighted, of feature maps for gradcam to scorecam; "
            "the last on the image if none."
        ),
    ] = None,
    head: Annotated[str, typer.Option(help="mean, max or min over heads, or the number of one.")] = "mean",
    query: Annotated[str | None, typer.Option(help="Y,X: what does this pixel attend to?")] = None,
    under_attack: Annotated[
        str | None,
        typer.Option(
            help="ε, several with commas, of one also ¼ and ½: how far does PGD of that size move attention? Its maps are read "
            "by the first of --method; --layer, --head and --query do not apply to them."
        ),
    ] = None,
    norm: NormName = "linf",
    steps: Steps = 20,
    grids: Annotated[int, typer.Option(help="Images of which all heads of all layers are drawn, a figure per model.")] = 1,
    device: Device = "",
    out_dir: Folder = Path("figures/attention"),
    *,
    said: Answers,
) -> None:
    """What each model looks at: maps by any method, all heads, numbers by layer, a page to point at patches, attacks."""
    from interp.attention.attend import Attend, attend
    from interp.attention.layout import has_attention
    from interp.plots.attention import attention as draw
    from interp.study import spread

    asked = pixel("--query", query)
    params = Attend(tuple(method.split(",")), layer, int(head) if head.isdigit() else head, asked)
    shift = None if under_attack is None else _sizes(under_attack, norm, steps, params.methods[0])
    chosen, batch = inputs(models, images, max(n, 20), device, said=said, labelled=False)
    shared = _attended(layer, params.methods, chosen)
    few = spread(batch, n)
    result = figure("attention", attend, chosen, few, params, out_dir)
    for i in range(1, len(few) if len(params.methods) > 1 else 1):
        save(draw(result, i), out_dir, f"attention_{i}")
    attentive = [model for model in chosen if has_attention(model)]
    for model in attentive if grids > 0 else ():
        _heads(model, few[:grids], shared, asked, out_dir)
    if attentive:
        _numbers(chosen, few if was_given(context, "n") else batch, few, shared, out_dir)
    if shift is not None:
        _under_attack(chosen, few, shift, out_dir)


def _attended(layer: str | None, methods: Sequence[str], models: Sequence[Model]) -> str | None:
    """The layer where it is one of attention, else none; raises InputError where a method would not look at it."""
    from interp.attention.layout import attention_layers, has_attention, map_layer
    from interp.attention.readings import CAMS

    if layer is None:
        return None
    if name := next((name for name in methods if name in ("rollout", "chefer")), None):
        raise InputError(f"--layer is {layer}, but {name} chains all layers of the last stage; leave one of the two out")
    owners = [model for model in models if has_attention(model) and layer in attention_layers(model)]
    if owners and (name := next((name for name in methods if name in CAMS), None)):
        raise InputError(
            f"--layer is {layer}, an attention layer of {owners[0].card.id}, but {name} reads a feature map; "
            f"give a layer such as {map_layer(owners[0])}, or leave {name} out"
        )
    return layer if owners else None


def _sizes(text: str, norm: str, steps: int, method: str) -> Shift:
    from interp.robustness.shift import Shift
    from interp.types import fraction

    values = [fraction(part) for part in text.split(",")]
    eps = tuple(values) if len(values) > 1 else (values[0] / 4, values[0] / 2, values[0])
    return Shift(eps, pgd(eps[-1], norm, steps), method)


def _heads(model: Model, batch: Batch, layer: str | None, query: tuple[int, int] | None, folder: Path) -> None:
    from interp.attention.heads import Heads, attention_heads
    from interp.attention.layout import attention_layers
    from interp.plots.attention import channels, heads

    if layer is not None and layer not in attention_layers(model):
        return
    params = Heads((layer,) if layer else (), query)
    result = remembered("attention_heads", attention_heads, [model], batch, params, folder)
    name = re.sub(r"[^\w.-]+", "_", model.card.id)
    for i in range(len(batch)):
        if "head" in result.data and result.data["head"].notnull().any():
            save(heads(result, i), folder, f"heads_{name}_{i}")
        if "channels" in result.data:
            save(channels(result, i), folder, f"channels_{name}_{i}")


def _numbers(models: list[Model], batch: Batch, few: Batch, layer: str | None, folder: Path) -> None:
    from interp.attention.depth import ByLayer, attention_by_layer
    from interp.attention.queries import Queries, attention_queries
    from interp.plots.hover import write

    figure("attention_layers", attention_by_layer, models, batch, ByLayer(), folder)
    try:
        page = remembered("attention_queries", attention_queries, models, few, Queries(layer), folder)
    except InputError as reason:
        out.print(f"no page: {reason}", highlight=False)
        return
    say(write(page, folder / "attention.html"))


def _under_attack(models: list[Model], few: Batch, params: Shift, folder: Path) -> None:
    from interp.plots.layers import shift_maps
    from interp.robustness.shift import attention_shift

    result = figure("attention_shift", attention_shift, models, few, params, folder)
    for i in range(len(few)):
        save(shift_maps(result, i), folder, f"attention_shift_{i}")


@app.command()
@answered()
def faithfulness(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 20,
    methods: Annotated[
        str,
        typer.Option(
            help="With commas: saliency, integrated-gradients, smoothgrad, and those of attention: raw, channels, weighted, "
            "rollout, chefer, gradcam, gradcam++, layercam, scorecam. Maps that know nothing of the model always come along."
        ),
    ] = "saliency,integrated-gradients,smoothgrad,gradcam,raw,chefer",
    steps: Annotated[int, typer.Option(help="Points of each curve after the first.")] = 32,
    patch: Annotated[int, typer.Option(help="Squares of so many pixels a side change together.")] = 4,
    baseline: Annotated[str, typer.Option(help="What deleted pixels become: black, mean, blur or noise.")] = "mean",
    randomise: Annotated[bool, typer.Option(help="Draw the maps of the model with random parameters too.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of noise, of the order of ties and of random parameters.")] = 0,
    chunk: Annotated[int, typer.Option(help="Images × points per pass.")] = 16,
    device: Device = "",
    out_dir: Folder = Path("figures/faithfulness"),
    *,
    said: Answers,
) -> None:
    """How far maps can be trusted: what changing their largest pixels does, beside edges and random maps, on each model."""
    from interp.faithfulness.faithfulness import Faithfulness
    from interp.faithfulness.faithfulness import faithfulness as run
    from interp.faithfulness.methods import named
    from interp.study import spread

    params = Faithfulness(named(methods.split(",")), steps, baseline, patch, randomise=randomise, seed=seed, chunk=chunk)
    chosen, batch = inputs(models, images, max(n, 20), device, said=said, labelled=False)
    print_verdicts(figure("faithfulness", run, chosen, spread(batch, n), params, out_dir))


def print_verdicts(result: Result) -> None:
    """The measures of every method, model by model, what they show, and why a method was not read."""
    from rich.table import Table
    from rich.text import Text

    from interp.plots.faithfulness import PAIRED, in_short, unread
    from interp.plots.style import counted, labels, rows

    data = result.data
    measures = [data[name] for name in result.measures if name != "randomisation_similarity"]
    arrows = {"higher": "↑", "lower": "↓"}
    heads = [f"{v.attrs['long_name']} {arrows[v.attrs['better']]}" for v in measures]
    table = Table("", *heads, data["trusted"].attrs["long_name"], box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for m in rows(data):
        table.add_row(Text(labels(data)[m], style="bold"))
        for method in data["reading"].values:
            at = data.isel(model=m).sel(reading=method)
            ends = [[float(at[f"{v.name}{end}"]) for end in ("", "_low", "_high")] for v in measures]
            cells = [f"{value:.3f} [{low:.3f}, {high:.3f}]" if value == value else "–" for value, low, high in ends]
            table.add_row(f"  {method}", *cells, in_short(at["trusted"].item()))
    out.print(table)
    said = f"Mean [95 % interval], {counted(data.sizes['image'])}. Compare methods on one model, not models with each other."
    for line in (said, PAIRED, *unread(data)):
        out.print(line, highlight=False, markup=False)
