"""The commands that analyse: report, analyze, perturb, synthesise, gradients, attention, compare, accuracy, plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import (
    Arch,
    ArchArg,
    Channels,
    Count,
    Ema,
    Eps,
    Folder,
    Images,
    Models,
    Normalise,
    NormName,
    Size,
    Steps,
    app,
    class_index,
    figure,
    inputs,
    pgd,
    print_table,
    remembered,
    said,
    save,
    say_page,
)


@app.command()
def report(
    models: Models = None, images: Images = "samples:cifar10", n: Count = 100, out_dir: Folder = Path("figures/report")
) -> None:
    """The main job: all analyses of the models on the images, as one page."""
    from interp.job import write_report

    chosen, batch = inputs(models, images, n)
    say_page(write_report(chosen, batch, out_dir))


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
    say_page(run(checkpoint, images, folder, n=n, said=said(arch, arch_arg, normalise, size, channels, ema)))


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
    chosen, batch = inputs(models, images, max(n, 20))
    params = Sweep(values, pgd(values[0], norm, steps), None if target is None else class_index(chosen[0], target))
    result = remembered("sweep", sweep, chosen, spread(batch, n), params, out_dir)
    for i in range(result.data.sizes["image"]):
        save(strip(result, image=i), out_dir, f"perturbations_{i}")


@app.command()
def synthesise(
    models: Models = None, images: Images = "samples:cifar10", steps: Steps = 100, out_dir: Folder = Path("figures/synthesise")
) -> None:
    """Pictures that each model draws from noise toward every class (the images only give the size)."""
    from interp.attacks.pgd import PGD
    from interp.attacks.sweep import Synthesis
    from interp.attacks.sweep import synthesise as run

    chosen, batch = inputs(models, images, 1)
    figure("synthesis", run, chosen, batch, Synthesis(PGD(15.0, steps=steps, targeted=True)), out_dir)


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

    params = Accumulate(over, pgd(fraction(eps), "linf", samples), samples, sigma)
    chosen, batch = inputs(models, images, max(n, 20))
    figure("gradients", accumulate, chosen, spread(batch, n), params, out_dir)


@app.command()
def attention(
    models: Models = None, images: Images = "samples:cifar10", n: Count = 6, out_dir: Folder = Path("figures/attention")
) -> None:
    """What each model looks at: class attention, refolded MobileViT attention, Grad-CAM for convolutional networks."""
    from interp.attention.attend import Attend, attend
    from interp.study import spread

    chosen, batch = inputs(models, images, max(n, 20))
    figure("attention", attend, chosen, spread(batch, n), Attend(), out_dir)


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

    chosen, batch = inputs(models, images, n)
    params = Compare(dataclasses.replace(pgd(fraction(eps), "linf", steps), targeted=True))
    result = figure("compare", run, chosen, batch, params, out_dir)
    save(judges(result), out_dir, "judges")
    print_table(result)


@app.command()
def accuracy(
    models: Models = None,
    images: Images = "samples:cifar10",
    n: Count = 100,
    eps: Eps = "8/255",
    autoattack: Annotated[
        bool, typer.Option("--autoattack", help="Run AutoAttack too: roughly 5 to 90 s per robust image on a processor.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps; if not given, the best there is.")] = "",
    out_dir: Folder = Path("figures/accuracy"),
) -> None:
    """Clean accuracy and accuracy under PGD-20, on demand under AutoAttack, with intervals."""
    from interp.attacks.pgd import PGD
    from interp.robustness.accuracy import Accuracy
    from interp.robustness.accuracy import accuracy as run
    from interp.train_job import Machine
    from interp.types import fraction

    value = fraction(eps)
    params = Accuracy(PGD(value, steps=20, step_size=max(value / 4, 1e-6)), autoattack=autoattack)
    chosen, batch = inputs(models, images, n)
    chosen = [model.to(Machine(device).settle()[0]) for model in chosen]
    print_table(figure("accuracy", run, chosen, batch, params, out_dir))


@app.command()
def plot(
    result: Annotated[Path, typer.Argument(help="A .nc file written by interp.")], out_dir: Folder = Path("figures/plot")
) -> None:
    """Draw a saved result again; needs no torch and no model."""
    from interp.result import open_result

    found = open_result(result)
    save(found.plot(), out_dir, found.kind)
