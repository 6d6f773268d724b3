"""Results → one self-contained HTML page, with every figure beside it as PNG and PDF.

The text beside a figure says how it was made and what the numbers show; every number is taken from the results.
"""

from __future__ import annotations

import base64
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from tqdm import tqdm

from interp.plots import attention, attributes, curves, gradients, images, interactive, matrices, perturbations
from interp.plots.style import save
from interp.report import measures, words
from interp.result import Result


@dataclass(frozen=True)
class Picture:
    """One figure of the page: its file name, caption, and the PNG as a data address."""

    name: str
    caption: str
    data: str


@dataclass(frozen=True)
class Section:
    """A heading with what is seen, how it was computed, figures, and plotly fragments."""

    title: str
    seen: str
    how: str
    pictures: list[Picture]
    interactive: list[str]
    folded: list[Picture]


def write(results: dict[str, Result], folder: Path, *, title: str, models: list[dict[str, str]], notes: list[str]) -> Path:
    """Draw all figures into FOLDER and write FOLDER/index.html, replacing it only when it is complete.

    results: by kind, as `study.run` returns them. models: rows of the table of models. notes: paragraphs set above it.
    """
    sections = _sections(results, folder)
    environment = Environment(loader=PackageLoader("interp.report", "."), autoescape=True, undefined=StrictUndefined)
    html = environment.get_template("page.html").render(
        title=title,
        notes=notes,
        models=models,
        sections=sections,
        script=interactive.script(),
        made=next(iter(results.values())).made["versions"],
        files=sorted(f"results/{kind}-{result.key}.nc" for kind, result in results.items()),
        seconds=sum(result.made["seconds"] for result in results.values()),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".part-", suffix=".html", delete=False, encoding="utf-8") as f:
        f.write(html)
    Path(f.name).chmod(0o644)
    return Path(f.name).replace(folder / "index.html")


def _sections(results: dict[str, Result], folder: Path) -> list[Section]:
    """The sections in the order of the argument: worth, perturbations, gradients, attention, attributes."""
    sections = {
        "accuracy": _accuracy,
        "sweep": _sweep,
        "synthesis": _synthesis,
        "gradients": _gradients,
        "attention": _attention,
        "compare": _compare,
    }
    wanted = [kind for kind in sections if kind in results]
    return [sections[kind](results[kind], folder) for kind in tqdm(wanted, desc="figures", leave=False)]


def _draw(fig: Figure, folder: Path, name: str, caption: str) -> Picture:
    path = save(fig, folder, name)
    return Picture(name, caption, base64.b64encode(path.read_bytes()).decode())


def _accuracy(r: Result, folder: Path) -> Section:
    picture = _draw(curves.accuracies(r), folder, "accuracy", "Accuracy on the images of this page.")
    return _section(words.accuracy(r), [picture])


def _sweep(r: Result, folder: Path) -> Section:
    strips = []
    for i in range(r.data.sizes["image"]):
        name = images.name_of(r.data, int(r.data["truth"].values[i])).replace("?", "image")
        caption = f"{name}: what each model changes as ε grows. Below: its own reading, the judges' confidence in the goal."
        strips.append(_draw(perturbations.strip(r, image=i), folder, f"perturbations_{i}_{name}", caption))
    along = _draw(perturbations.curves(r), folder, "perturbation_curves", "Loss and probability of the goal along the attack.")
    return _section(words.sweep(r), [*strips[:2], along], [interactive.confidence(r)], strips[2:])


def _synthesis(r: Result, folder: Path) -> Section:
    caption = "Below: the model's reading; beside it confidence in the target, its own and that of other models."
    return _section(words.synthesis(r), [_draw(perturbations.synthesis(r), folder, "synthesis", caption)])


def _gradients(r: Result, folder: Path) -> Section:
    caption = "Mean input gradient along the attack, summed over channels, in units of its root mean square."
    pictures = [
        _draw(gradients.gradients(r), folder, "gradients", caption),
        _draw(gradients.profiles(r), folder, "profiles", "What was measured of them, with 95 % intervals."),
    ]
    return _section(words.gradients(r), pictures)


def _attention(r: Result, folder: Path) -> Section:
    caption = "Attention over the dimmed image, in multiples of its mean."
    return _section(words.attention(r), [_draw(attention.attention(r), folder, "attention", caption)])


def _compare(r: Result, folder: Path) -> Section:
    pictures = [_draw(matrices.measures(r), folder, "measures", "Measures × models, with controls and verdicts.")]
    pictures += [_draw(d.draw(r), folder, d.name, d.caption) for d in attributes.drawable(r)]
    link = f'<p><a href="{measures.write(r, folder).name}">Every measure: formula, source, control, differences</a></p>'
    fragments = [link, interactive.measures(r), *([interactive.spectra(r)] if "spectrum" in r.data else [])]
    return _section(words.compare(r), pictures, fragments)


def _section(
    text: words.Text, pictures: list[Picture], fragments: list[str] | None = None, folded: list[Picture] | None = None
) -> Section:
    return Section(text.title, text.seen, text.how, pictures, fragments or [], folded or [])
