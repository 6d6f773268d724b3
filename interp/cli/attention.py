"""The commands of what models look at, and how far such maps can be trusted: attention, faithfulness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import Count, Device, Folder, Images, Models, app, figure, inputs, pixel, save


@app.command()
def attention(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 6,
    method: Annotated[
        str,
        typer.Option(help="With commas: auto, raw, weighted, rollout, chefer, gradcam, gradcam++, layercam, scorecam."),
    ] = "auto",
    layer: Annotated[str | None, typer.Option(help="Layer to read; the last on the image if none.")] = None,
    head: Annotated[str, typer.Option(help="mean, max or min over heads, or the number of one.")] = "mean",
    query: Annotated[str | None, typer.Option(help="Y,X: what does this pixel attend to?")] = None,
    device: Device = "cpu",
    out_dir: Folder = Path("figures/attention"),
) -> None:
    """What each model looks at: true attention weights, roll-out, gradient × attention, class activation maps."""
    from interp.attention.attend import Attend, attend
    from interp.plots.attention import attention as draw
    from interp.study import spread

    params = Attend(tuple(method.split(",")), layer, int(head) if head.isdigit() else head, pixel("--query", query))
    chosen, batch = inputs(models, images, max(n, 20), device)
    few = spread(batch, n)
    result = figure("attention", attend, chosen, few, params, out_dir)
    for i in range(1, len(few) if len(params.methods) > 1 else 1):
        save(draw(result, i), out_dir, f"attention_{i}")
