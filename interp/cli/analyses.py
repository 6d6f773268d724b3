"""The commands that analyse: report, analyze, gradients, compare, accuracy, plot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.answers import Answers, answered
from interp.cli.options import (
    Count,
    Device,
    Eps,
    Folder,
    Images,
    Models,
    NormName,
    Steps,
    app,
    figure,
    further,
    heeded,
    inputs,
    ladder,
    pgd,
    print_measures,
    print_table,
    save,
    say,
    say_page,
)
from interp.errors import InputError


@app.command()
@answered()
def report(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 100,
    out_dir: Folder = Path("figures/report"),
    *,
    said: Answers,
) -> None:
    """The main job: all analyses of the models on the images, as one page."""
    from interp.job import write_report

    chosen, batch = inputs(models, images, n, said=said)
    say_page(write_report(chosen, batch, out_dir))


@app.command()
@answered("checkpoint")
def analyze(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint file, a shipped id or timm:NAME.")],
    images: Images = "samples:cifar10",
    n: Count = 100,
    out_dir: Annotated[Path | None, typer.Option(help="Default: figures/NAME.")] = None,
    *,
    said: Answers,
) -> None:
    """The main job for one new checkpoint, beside the shipped models: what is it worth, what does it see?"""
    from interp.job import analyze as run

    folder = out_dir or Path("figures") / Path(checkpoint.removeprefix("timm:")).name.split(".")[0]
    say_page(run(checkpoint, images, folder, n=n, said=said.of(checkpoint)))


OPTIONS = {  # of gradients, that some sources do not heed
    "samples": "--samples",
    "sigma": "--sigma",
    "baseline": "--baseline",
    "rule": "--rule",
    "norm": "--norm",
    "loss": "--loss",
    "use": "--use",
}
HEEDED = {"n": "samples", "attack": "norm"}  # fields of Accumulate, by the option that sets them


@app.command()
@answered()
def gradients(
    context: typer.Context,
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Annotated[
        int | None,
        typer.Option("-n", help="At most this many images; 6, over class 1000, if none. Gradients per image: --samples."),
    ] = None,
    over: Annotated[
        str, typer.Option(help="steps (of an attack), noise, path, blur, expected, augment or class; steps if none.")
    ] = "",
    method: Annotated[str, typer.Option(help="captum:NAME, one of captum's methods in place of --over.")] = "",
    samples: Annotated[
        int, typer.Option("--samples", "--n", help="Gradients accumulated, or draws of a method, per image. Images: -n.")
    ] = 50,
    loss: Annotated[str | None, typer.Option(help="ce, logit, margin or dlr; the source's own if none.")] = None,
    use: Annotated[str, typer.Option(help="Accumulate raw gradients, their sign or absolute value.")] = "raw",
    eps: Annotated[str, typer.Option(help="ε of the attack over whose steps; if none, L∞ 8/255, L2 0.5, L1 10.")] = "",
    norm: NormName = "linf",
    sigma: Annotated[float, typer.Option(help="Width of the noise, in units of [0, 1].")] = 0.1,
    baseline: Annotated[str, typer.Option(help="Where paths begin: grey, black, white, blur or mean.")] = "grey",
    rule: Annotated[str, typer.Option(help="Along paths: gauss-legendre, midpoint or trapezoid.")] = "gauss-legendre",
    seed: Annotated[int, typer.Option(help="Seed of all draws and of the attack's random start.")] = 0,
    precision: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    chunk: Annotated[int | None, typer.Option(help="Images per pass; the fastest if none.")] = None,
    device: Device = "",
    out_dir: Folder = Path("figures/gradients"),
    *,
    said: Answers,
) -> None:
    """Input gradients accumulated over an attack, noise, paths, views or a class, or captum's attributions, on one scale."""
    from interp.gradients.accumulate import Accumulate, accumulate
    from interp.plots.gradients import profiles
    from interp.study import spread
    from interp.types import fraction

    if method and over:
        raise InputError(f"{method} takes the place of --over, and both were given; leave one of them out")
    over = over or "steps"
    if eps and (method or over != "steps"):
        raise InputError(f"--eps is {eps}, but {method or f'over {over}'} takes no attack; leave it out, or take --over steps")
    attack = pgd(fraction(eps or ladder(norm).split(",")[0]), norm, samples if over == "steps" else max(samples, 1), seed=seed)
    params = Accumulate(
        over, attack, samples, sigma, chunk,
        method=method, loss=loss, use=use, baseline=baseline, rule=rule, precision=precision,
    )  # fmt: skip
    takes = [HEEDED.get(field, field) for field in params.takes] + ["samples"] * ("attack" in params.takes)
    heeded(context, OPTIONS, takes=takes, what=method or f"over {over}")
    whole = over == "class" and not method
    n = n if n is not None else 1000 if whole else 6
    chosen, batch = inputs(models, images, n if whole else max(n, 20), device, said=said)
    result = figure("gradients", accumulate, chosen, batch if whole else spread(batch, n), params, out_dir)
    save(profiles(result), out_dir, "profiles")


@app.command()
@answered()
def compare(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 100,
    eps: Eps = "32/255",
    steps: Steps = 10,
    groups: Annotated[
        str,
        typer.Option(
            help="With commas: perturbation, appearance, alignment, written, pictures, where, distances, shape, concepts, "
            "discovery; all if none."
        ),
    ] = "",
    masked: Annotated[
        str, typer.Option("--masks", help="For where: images with masks, parquet:PATH with trimap or box_xyxy, of any classes.")
    ] = "",
    cues: Annotated[str, typer.Option(help="For shape: a folder of cue conflicts named shapeN-textureM.png.")] = "",
    concepts: Annotated[str, typer.Option(help="For concepts: folder:PATH or parquet:PATH whose classes are concepts.")] = "",
    attributes: Annotated[
        str, typer.Option(help="For written: what classes have: awa2, a TOML file, or a folder of Animals with Attributes.")
    ] = "",
    judges: Annotated[
        str,
        typer.Option(
            help="Models that read what is written and are not compared, with commas, or none; if not given, shipped ones of "
            "other architectures where fewer than three are compared."
        ),
    ] = "",
    chunk: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    device: Device = "",
    out_dir: Folder = Path("figures/compare"),
    *,
    said: Answers,
) -> None:
    """Semantic attributes of the models on the same images: intervals, controls, comparisons in pairs."""
    from interp.attributes.compare import GROUPS, JUDGED, Compare
    from interp.attributes.compare import compare as run
    from interp.attributes.groups import Sizes
    from interp.plots.attributes import drawable
    from interp.report.measures import write
    from interp.types import fraction

    asked = tuple(name.strip() for name in groups.split(",")) if groups else GROUPS
    attack = dataclasses.replace(pgd(fraction(eps), "linf", steps), targeted=True)
    sizes = Sizes(cues=cues, masked=masked, concepts=concepts, attributes=attributes)
    params = Compare(attack, groups=asked, sizes=sizes, chunk=chunk)
    chosen, batch = inputs(models, images, n, device, said=said)
    if set(asked) & set(JUDGED):
        params = dataclasses.replace(params, judges=further(judges, chosen, batch))
    elif judges:
        raise InputError(f"--judges is {judges}, but they read {', '.join(JUDGED)} alone; leave it out, or ask for one of these")
    result = figure("compare", run, chosen, batch, params, out_dir)
    for drawn in drawable(result):
        save(drawn.draw(result), out_dir, drawn.name)
    say(write(result, out_dir))
    print_measures(result)


@app.command()
@answered()
def accuracy(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 100,
    eps: Eps = "8/255",
    autoattack: Annotated[
        bool, typer.Option("--autoattack", help="Run AutoAttack too: roughly 5 to 90 s per robust image on a processor.")
    ] = False,
    device: Device = "",
    out_dir: Folder = Path("figures/accuracy"),
    *,
    said: Answers,
) -> None:
    """Clean accuracy and accuracy under PGD-20, on demand under AutoAttack, with intervals."""
    from interp.attacks.pgd import PGD
    from interp.robustness.accuracy import Accuracy
    from interp.robustness.accuracy import accuracy as run
    from interp.types import fraction

    value = fraction(eps)
    params = Accuracy(PGD(value, steps=20, step_size=max(value / 4, 1e-6)), autoattack=autoattack)
    chosen, batch = inputs(models, images, n, device, said=said)
    print_table(figure("accuracy", run, chosen, batch, params, out_dir))


@app.command()
def plot(
    result: Annotated[Path, typer.Argument(help="A .nc file written by interp.")], out_dir: Folder = Path("figures/plot")
) -> None:
    """Draw a saved result again, as a figure or a page; needs no torch and no model."""
    from interp.result import open_result

    found = open_result(result)
    if found.kind == "attention_queries":
        from interp.plots.hover import write

        say(write(found, out_dir / "attention.html"))
        return
    save(found.plot(), out_dir, found.kind)
