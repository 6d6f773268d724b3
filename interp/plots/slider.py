"""A page with a slider over ε or over the steps of an attack; it needs no network and no other file."""

from __future__ import annotations

import base64
import io
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from PIL import Image
from plotly.subplots import make_subplots

from interp.errors import InputError
from interp.plots.attacks import chosen, how, judges, reading, size, way
from interp.plots.images import name_of
from interp.plots.style import labels, rows
from interp.result import Result

OVER = ("eps", "step")
CELL = 150  # pixels across a picture
JUMP = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}


def slider(result: Result, path: Path | str, *, image: int = 0, over: str = "eps", eps: int = -1) -> Path:
    """Write one image's pictures, away from its class and toward another under every model, with a slider, and return the path.

    over 'eps': where each attack ended; below, the model's reading and the `judges`' confidence in the goal. over 'step': the run
    at one ε (eps: its position, the last if not given) through the pictures kept along the way; below, loss and the model's
    probability of the goal. Raises InputError for another `over`, and for steps where the sweep kept no pictures.
    """
    if over not in OVER:
        raise InputError(f"slider over {over!r}; expected {' or '.join(OVER)}")
    if over == "step" and "film" not in result.data:
        raise InputError("this sweep kept no pictures along its runs; compute it with Sweep(frames=25)")
    fig = _figure(result, image, over, range(result.data.sizes["eps"])[eps])
    html = fig.to_html(include_plotlyjs=True, full_html=True, div_id="slider", config={"displaylogo": False}, auto_play=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
        (Path(folder) / path.name).write_text(html, encoding="utf-8")
        return (Path(folder) / path.name).replace(path)


def _figure(result: Result, i: int, over: str, e: int) -> go.Figure:
    """Directions × models, and one frame per position of the slider."""
    data = result.data
    order, ways = rows(data), (0, chosen(data, i))
    panels = [(m, d) for d in ways for m in order]
    titles = [labels(data)[m].replace(" ", "<br>") for m in order]
    fig = make_subplots(2, len(order), horizontal_spacing=0.012, vertical_spacing=0.16, column_titles=titles)
    eps = [size(result, k) for k in range(data.sizes["eps"])]
    names = eps if over == "eps" else [str(step) for step in data["frame"].values]
    frames = [
        _frame(data, panels, i, k, None, name) if over == "eps" else _frame(data, panels, i, e, k, name)
        for k, name in enumerate(names)
    ]
    for n, trace in enumerate(frames[0].data):
        fig.add_trace(trace, row=1 + n // len(order), col=1 + n % len(order))
    fig.frames = frames
    fig.update_xaxes(showticklabels=False, ticks="", showgrid=False, zeroline=False, title_standoff=2, title_font_size=11)
    fig.update_yaxes(showticklabels=False, ticks="", showgrid=False, zeroline=False)
    for row, d in enumerate(ways, 1):
        fig.update_yaxes(title_text=way(data, d, i).replace(" ", "<br>", 1), row=row, col=1)
    moves = [{"label": f.name.partition(" (")[0], "method": "animate", "args": [[f.name], JUMP]} for f in frames]
    at = f"{eps[e]}, step " if over == "step" else ""
    below = "loss and the model's own probability of the goal" if at else f"the model's reading{_judged(data)}"
    wide = max(520, 130 + CELL * len(order))
    fig.update_layout(
        frames[0].layout,
        template="plotly_white",
        title={
            "text": f"{name_of(data, int(data['truth'].values[i]))}: {how(result)}",
            "subtitle": {"text": "<br>".join(textwrap.wrap(f"Below: {below}", (wide - 60) // 6))},
            "y": 0.97,
            "yanchor": "top",
        },
        width=wide,
        height=330 + 2 * CELL,
        margin={"l": 80, "r": 40, "t": 140, "b": 40},
        sliders=[{"steps": moves, "active": 0, "currentvalue": {"prefix": at}, "pad": {"t": 50}}],
    )
    return fig


def _judged(data: xr.Dataset) -> str:
    """What the second line under a picture is."""
    return {
        "": "",
        "judges": "; the mean confidence in the goal of judges, models of other architectures",
        "other model": "; the confidence in the goal of the other model, of the same architecture",
        "other models": "; the mean confidence in the goal of the other models, of the same architecture",
    }[judges(data)]


def _frame(data: xr.Dataset, panels: list[tuple[int, int]], i: int, e: int, f: int | None, name: str) -> go.Frame:
    """What the slider shows at one ε, or with `f` at one of the pictures kept along its run."""
    pictures, notes = [], {}
    for n, (m, d) in enumerate(panels, 1):
        if f is None:
            shown = (data["picture"].values[m, d, e, i] * 255).round().astype(np.uint8)
            lines = reading(data, m, d, e, i)
        else:
            shown = data["film"].values[m, d, e, i, f]
            loss, belief = (data[v].values[m, d, e, i, int(data["frame"].values[f])] for v in ("loss", "probability"))
            lines = (f"loss {loss:.2f}", f"own {belief:.0%}")
        text = "<br>".join(filter(None, lines))
        pictures.append(go.Image(source=_png(shown), hovertemplate=f"{labels(data)[m]}<br>{text}<extra></extra>"))
        notes[f"xaxis{n if n > 1 else ''}"] = {"title": {"text": text}}
    return go.Frame(data=pictures, layout=notes, name=name)


def _png(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
