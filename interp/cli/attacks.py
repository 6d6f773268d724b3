"""The commands that perturb: perturb, synthesise, invert."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.answers import Answers, answered
from interp.cli.options import (
    Basis,
    Blur,
    Chunk,
    Count,
    Device,
    Folder,
    Images,
    Jitter,
    Keep,
    Loss,
    Models,
    NormName,
    Precision,
    Roomy,
    Rule,
    Seed,
    Several,
    Steps,
    StepSize,
    app,
    class_index,
    figure,
    inputs,
    ladder,
    one_of,
    out,
    pgd,
    print_success,
    remembered,
    roomy,
    save,
    say,
)


@app.command()
@answered()
def perturb(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 6,
    eps: Several = "",
    norm: NormName = "linf",
    target: Annotated[
        str | None, typer.Option(help="Class to move toward, each, or next-likely; the next one in label order if none.")
    ] = None,
    steps: Steps = 50,
    step_size: StepSize = None,
    loss: Loss = "ce",
    rule: Rule = "pgd",
    keep: Keep = "last",
    start: Annotated[str, typer.Option(help="uniform in the ball, or image.")] = "uniform",
    basis: Basis = "pixels",
    jitter: Jitter = 0,
    blur: Blur = 0.0,
    seed: Seed = 0,
    precision: Precision = "float32",
    chunk: Chunk = None,
    device: Device = "",
    animate: Annotated[str | None, typer.Option(help="gif or mp4: each image's runs, step by step.")] = None,
    slider: Annotated[str | None, typer.Option(help="eps or step: each image as a page with a slider.")] = None,
    out_dir: Folder = Path("figures/perturb"),
    *,
    said: Answers,
) -> None:
    """What each model changes in an image as ε grows, away from its class and toward others: pictures, δ, curves, success."""
    from interp.attacks.sweep import Sweep, sweep
    from interp.plots import animate as films
    from interp.plots import perturbations as draw
    from interp.plots.attacks import chosen as toward
    from interp.plots.slider import OVER
    from interp.plots.slider import slider as page
    from interp.study import spread
    from interp.types import fraction

    at_random = one_of("start", start, "uniform", "image") == "uniform"
    if animate is not None and one_of("animate", animate, "gif", "mp4") == "mp4":
        films.ffmpeg()
    frames = 25 if animate or (slider is not None and one_of("slider", slider, *OVER) == "step") else 0
    values = tuple(fraction(part) for part in (eps or ladder(norm)).split(","))
    attack = pgd(
        values[0], norm, steps, step_size,
        random_start=at_random, loss=loss, seed=seed, rule=rule, keep=keep, basis=basis, jitter=jitter, blur=blur,
    )  # fmt: skip
    chosen, batch = inputs(models, images, max(n, 20), device, said=said)
    goal = target if target in (None, "each", "next-likely") else class_index(chosen[0], target)
    params = Sweep(values, attack, goal, chunk, frames, precision)
    result = remembered("sweep", sweep, chosen, spread(batch, n), params, out_dir)
    for i in range(result.data.sizes["image"]):
        save(draw.strip(result, image=i), out_dir, f"perturbations_{i}")
        save(draw.deltas(result, image=i), out_dir, f"deltas_{i}_away")
        save(draw.deltas(result, image=i, direction=toward(result.data, i)), out_dir, f"deltas_{i}_toward")
        if target == "each":
            save(draw.classes(result, image=i), out_dir, f"classes_{i}")
        if animate is not None:
            say(films.animation(result, out_dir / f"animation_{i}.{animate}", image=i))
        if slider is not None:
            say(page(result, out_dir / f"slider_{i}.html", image=i, over=slider))
    save(draw.curves(result), out_dir, "curves")
    save(draw.success(result), out_dir, "success")
    print_success(result)


@app.command()
@answered()
def synthesise(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Annotated[
        int, typer.Option("-n", help="At most this many images to start from; from noise they only give the size.")
    ] = 100,
    start: Annotated[str, typer.Option(help="noise, gaussian (fitted to the images of each class), or images.")] = "noise",
    target: Annotated[str | None, typer.Option(help="Classes to draw, several with commas; all if none.")] = None,
    seeds: Annotated[int, typer.Option(help="Pictures per class.")] = 1,
    eps: Roomy = "",
    norm: NormName = "linf",
    steps: Steps = 100,
    step_size: StepSize = None,
    loss: Loss = "ce",
    rule: Rule = "pgd",
    keep: Keep = "last",
    basis: Basis = "pixels",
    jitter: Jitter = 0,
    blur: Blur = 0.0,
    seed: Seed = 0,
    chunk: Chunk = None,
    device: Device = "",
    out_dir: Folder = Path("figures/synthesise"),
    *,
    said: Answers,
) -> None:
    """Pictures that each model draws toward every class: from noise, a Gaussian of the class, or images of others."""
    from interp.attacks.synthesis import Synthesis
    from interp.attacks.synthesis import synthesise as run
    from interp.plots.attacks import leaps
    from interp.plots.perturbations import synthesis
    from interp.types import fraction

    attack = pgd(
        fraction(eps or "15"), norm, steps, step_size,
        targeted=True, loss=loss, seed=seed, rule=rule, keep=keep, basis=basis, jitter=jitter, blur=blur,
    )  # fmt: skip
    params = Synthesis(attack, seeds, chunk, start)
    noise = start == "noise"
    chosen, batch = inputs(models, images, 1 if noise else n, device, labelled=not noise, said=said)
    if not eps:
        params = dataclasses.replace(params, attack=dataclasses.replace(attack, eps=roomy(norm, batch)))
    if target is not None:
        params = dataclasses.replace(params, targets=tuple(class_index(chosen[0], name) for name in target.split(",")))
    result = remembered("synthesis", run, chosen, batch, params, out_dir)
    for k in range(seeds):
        save(synthesis(result, seed=k), out_dir, "synthesis" if seeds == 1 else f"synthesis_{k}")
    if warning := leaps(result):
        out.print(f"note: {warning}", soft_wrap=True, highlight=False)


@app.command()
@answered()
def invert(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 6,
    layer: Annotated[
        str, typer.Option(help="Layer to match, as in model.net.named_modules(); the last layer's input if none.")
    ] = "",
    start: Annotated[str, typer.Option(help="noise, or images: for each the next one.")] = "noise",
    eps: Annotated[
        str, typer.Option(help="ε; if none, L2 40, and one that binds nothing in L∞ (15) and L1 (3·height·width).")
    ] = "",
    norm: NormName = "l2",
    steps: Steps = 200,
    step_size: StepSize = None,
    rule: Rule = "pgd",
    keep: Keep = "last",
    basis: Basis = "pixels",
    jitter: Jitter = 0,
    blur: Blur = 0.0,
    seed: Seed = 0,
    chunk: Chunk = None,
    device: Device = "",
    out_dir: Folder = Path("figures/invert"),
    *,
    said: Answers,
) -> None:
    """Pictures that a layer of each model cannot tell from the image: what robust features keep of it."""
    from interp.attacks.inversion import Invert
    from interp.attacks.inversion import invert as run
    from interp.study import spread
    from interp.types import fraction

    attack = pgd(
        fraction(eps or "40"), norm, steps, step_size,
        targeted=True, random_start=False, loss="features", seed=seed,
        rule=rule, keep=keep, basis=basis, jitter=jitter, blur=blur,
    )  # fmt: skip
    params = Invert(layer, attack, start, chunk)
    chosen, batch = inputs(models, images, max(n, 20), device, labelled=False, said=said)
    if not eps and norm != "l2":
        params = dataclasses.replace(params, attack=dataclasses.replace(attack, eps=roomy(norm, batch)))
    figure("inversion", run, chosen, spread(batch, n), params, out_dir)
