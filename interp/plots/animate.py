"""A perturbation as it grows, step by step, for all models at once: an animated GIF, or a film in MP4."""

from __future__ import annotations

import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from interp.errors import InputError
from interp.plots.attacks import chosen, how, size, way
from interp.plots.perturbations import CORNER, under
from interp.plots.style import grid, labels, look, row_names, rows
from interp.result import Result

DPI = 100
LETTER = 0.065  # inches that a letter of a long line takes
PANEL = 96  # pixels across at least: three for each of a picture of 32


def animation(result: Result, path: Path | str, *, image: int = 0, eps: int = -1, fps: int = 6) -> Path:
    """Write one image's run away from its class and toward another under every model, to a .gif or .mp4, and return the path.

    One frame for each picture that the sweep kept along the way; under each panel the loss and the model's own probability of
    the goal at that step. eps: position of the ε shown, the last if not given. fps: frames per second; a GIF rests on its last
    for two seconds. Written under a temporary name and renamed. Raises InputError where the sweep kept no pictures, for another
    suffix, and for a film where there is no ffmpeg.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise InputError(f"{path.name} ends in {path.suffix or 'nothing'!r}; expected {' or '.join(WRITERS)}")
    if "film" not in result.data:
        raise InputError("this sweep kept no pictures along its runs; compute it with Sweep(frames=25)")
    with look():
        fig, frames = _drawing(result, image, range(result.data.sizes["eps"])[eps])
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
            WRITERS[path.suffix](fig, frames, Path(folder) / path.name, fps)
            return (Path(folder) / path.name).replace(path)


def _drawing(result: Result, i: int, e: int) -> tuple[Figure, Iterator[None]]:
    """The figure, and what draws one frame after another into it: directions × models."""
    data = result.data
    order, ways = rows(data), (0, chosen(data, i))
    across = data.sizes["x"] * -(-PANEL // data.sizes["x"])
    cell, made = across / DPI + 0.04, how(result)
    lines = textwrap.wrap(made, int((1 + len(order) * cell) / LETTER)) if len(made) > CORNER else []
    fig, axes = grid(2, len(order), cell=cell, gap=0.3, top=0.72 + 0.13 * len(lines))
    fig.set_dpi(DPI)
    film = data["film"].values
    panels = [(ax, m, d) for d, line in zip(ways, axes, strict=True) for m, ax in zip(order, line, strict=True)]
    pictures = [ax.imshow(film[m, d, e, i, 0], interpolation="nearest") for ax, m, d in panels]
    for ax, m in zip(axes[0], order, strict=True):
        ax.set_title(labels(data)[m].replace(" ", "\n"))
    row_names(axes, [way(data, d, i).replace(" ", "\n", 1) for d in ways])
    title = fig.text(0.5, 0.99, "", ha="center", va="top", weight="bold")
    fig.text(0.5, 0.99 - 0.17 / fig.get_size_inches()[1], "\n".join(lines), ha="center", va="top", fontsize=7)

    def frames() -> Iterator[None]:
        for f, step in enumerate(data["frame"].values.tolist()):
            for (ax, m, d), picture in zip(panels, pictures, strict=True):
                picture.set_data(film[m, d, e, i, f])
                loss, belief = (data[name].values[m, d, e, i, step] for name in ("loss", "probability"))
                under(ax, (f"loss {loss:.2f}, p {belief:.0%}",))
            title.set_text(f"{size(result, e)}{'' if lines else f', {made}'}: step {step}")
            yield

    return fig, frames()


def _gif(fig: Figure, frames: Iterator[None], path: Path, fps: int) -> None:
    canvas = FigureCanvasAgg(fig)
    pictures = []
    for _ in frames:
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).quantize(dither=Image.Dither.NONE))
    rests = [round(1000 / fps)] * (len(pictures) - 1) + [2000]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=rests, loop=0)


def _mp4(fig: Figure, frames: Iterator[None], path: Path, fps: int) -> None:
    FigureCanvasAgg(fig)
    writer = FFMpegWriter(fps=fps, extra_args=["-pix_fmt", "yuv420p", "-crf", "16", "-fflags", "+bitexact"])
    with mpl.rc_context({"animation.ffmpeg_path": ffmpeg()}), writer.saving(fig, path, DPI):
        for _ in frames:
            writer.grab_frame()


WRITERS: dict[str, Callable[[Figure, Iterator[None], Path, int], None]] = {".gif": _gif, ".mp4": _mp4}


def ffmpeg() -> str:
    """Where ffmpeg is: on the PATH, or in the package imageio-ffmpeg; raises InputError where it is in neither."""
    found = shutil.which("ffmpeg")
    if found is None:
        try:
            import imageio_ffmpeg

            found = str(imageio_ffmpeg.get_ffmpeg_exe())
        except (ImportError, RuntimeError) as error:
            raise InputError(
                "there is no ffmpeg to write a film with; install it, or `pip install 'robust-interp[video]'`, or write a .gif"
            ) from error
    return found
