"""Plotly figures as HTML fragments, for pages on which hovering tells more than print."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.plots.matrices import ABOVE, ARROWS, LIKE_CONTROL, UNTESTED, by_group, standing
from interp.plots.style import PALETTE, colours, labels, rows
from interp.result import Result


def measures(result: Result) -> str:
    """A panel per measure: points with intervals, ticks at the controls; hovering shows value, interval, n and control.

    A grey cross stands where a value does not differ from its control.
    """
    from plotly.subplots import make_subplots

    data = result.data
    names = [name for of in by_group(result).values() for name in of]
    titles = [f"{data[m].attrs['long_name']} {ARROWS[data[m].attrs['better']]}" for m in names]
    across, down, high = min(4, len(names)), -(-len(names) // min(4, len(names))), 100 + 26 * data.sizes["model"]
    fig = make_subplots(
        down, across, subplot_titles=[_broken(t) for t in titles], shared_yaxes=True, vertical_spacing=0.45 / down
    )
    for k, name in enumerate(names):
        at = {"row": k // across + 1, "col": k % across + 1}
        for trace in _points(data, name):
            fig.add_trace(trace, **at)
        fig.update_xaxes(title_text=data[name].attrs["unit"], title_font_size=10, title_standoff=4, **at)
    return _fragment(fig, height=60 + high * down)


def _points(data: xr.Dataset, name: str) -> list[go.Scatter]:
    """One measure's values, and where it has a control that control's."""
    order = rows(data)[::-1]
    v, low, high = (data[name + end].values[order] for end in ("", "_low", "_high"))
    stand, named = [standing(data, name)[m] for m in order], [labels(data)[m] for m in order]
    control = data[f"{name}_control"].values[order] if f"{name}_control" in data else np.full(len(order), np.nan)
    hover = [
        f"{named[i]}<br>{f'{v[i]:.3f} [{low[i]:.3f}, {high[i]:.3f}]' if stand[i] in (ABOVE, UNTESTED) else stand[i]}"
        f"{'<br>not tested' if stand[i] == UNTESTED else ''}<br>n = {data[f'{name}_n'].values[m]}<br>control {control[i]:.3f}"
        for i, m in enumerate(order)
    ]
    shown = [s != LIKE_CONTROL for s in stand]
    marks = {
        "color": [colours(data)[m] if s else "#999" for m, s in zip(order, shown, strict=True)],
        "size": 9,
        "symbol": [_symbol(bool(data["robust"].values[m])) if s else "x-thin-open" for m, s in zip(order, shown, strict=True)],
    }
    error = {"type": "data", "symmetric": False, "array": high - v, "arrayminus": v - low, "color": "#999", "thickness": 1}
    points = go.Scatter(x=v, y=named, mode="markers", marker=marks, error_x=error, hovertext=hover, hoverinfo="text")
    ticks = {"color": "#555", "size": 9, "symbol": "line-ns-open"}
    return [points, go.Scatter(x=control, y=named, mode="markers", marker=ticks, hoverinfo="skip")]


def spectra(result: Result) -> str:
    """Spectra of the perturbations; hovering compares all models at one frequency."""
    data = result.data
    fig = go.Figure()
    for m in rows(data):
        line = {"color": colours(data)[m], "dash": "solid" if bool(data["robust"].values[m]) else "dash"}
        fig.add_scatter(
            x=data["frequency"].values, y=data["spectrum"].values[m], name=labels(data)[m], line=line, mode="lines+markers"
        )
    noise = {"color": "#666", "dash": "dot"}
    fig.add_scatter(x=data["frequency"].values, y=data["spectrum_noise"].values, name="noise (control)", line=noise, mode="lines")
    fig.update_layout(
        hovermode="x unified", xaxis_title="spatial frequency (cycles per pixel)", yaxis_title="share of δ's energy per band"
    )
    return _fragment(fig, height=420, legend=True)


def confidence(result: Result) -> str:
    """Share of images that reach the target (or lose their label) against ε, per model and direction."""
    data = result.data
    fig = go.Figure()
    for m in rows(data):
        for d, direction in enumerate(data["direction"].values):
            line = {
                "color": colours(data)[m],
                "dash": "solid" if bool(data["robust"].values[m]) else "dash",
                "width": 1.2 if d else 2.4,
            }
            v, low, high = (data[f"success{end}"].values[m, d] for end in ("", "_low", "_high"))
            hover = [f"{x:.0%} [{a:.0%}, {b:.0%}]" for x, a, b in zip(v, low, high, strict=True)]
            eps = np.asarray(data["eps"].values) * 255
            fig.add_scatter(x=eps, y=v, name=f"{labels(data)[m]}, {direction}", line=line, hovertext=hover, hoverinfo="name+text")
    n = data["success"].attrs["n"]
    fig.update_layout(
        xaxis={"title": "ε · 255", "type": "log"}, yaxis={"title": f"share of images (n = {n})", "tickformat": ".0%"}
    )
    return _fragment(fig, height=460, legend=True)


def _symbol(robust: bool) -> str:
    return "circle" if robust else "circle-open"


def _broken(title: str) -> str:
    words, lines = title.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 22:
            lines.append("")
        lines[-1] += f" {word}"
    return "<br>".join(line.strip() for line in lines)


def _fragment(fig: go.Figure, *, height: int, legend: bool = False) -> str:
    """HTML without plotly's script, which the page carries once; identifiers are fixed so that pages compare equal."""
    fig.update_layout(
        template="plotly_white",
        height=height,
        showlegend=legend,
        colorway=list(PALETTE),
        margin={"l": 40, "r": 20, "t": 60, "b": 50},
    )
    fig.update_annotations(font_size=11)
    identifier = f"plot-{abs(hash_of(fig)) % 10**10}"
    return str(
        fig.to_html(full_html=False, include_plotlyjs=False, div_id=identifier, config={"displaylogo": False, "responsive": True})
    )


def hash_of(fig: go.Figure) -> int:
    """A number from a figure's content, the same in every process."""
    import hashlib

    return int.from_bytes(hashlib.sha256(fig.to_json().encode()).digest()[:8])


def script() -> str:
    """plotly's own script, to be put into a page once so that it needs no network."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
