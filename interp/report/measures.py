"""A comparison → one self-contained page on which every measure has its own section: definition, control, numbers, pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from interp.plots import attributes, matrices
from interp.plots.matrices import (
    ABOVE,
    FEWEST,
    GROUPS,
    LIKE_CONTROL,
    UNDEFINED,
    UNTESTED,
    by_group,
    count,
    form,
    standing,
    who_judges,
)
from interp.plots.style import labels, look, rows
from interp.result import Result

DIRECTION = {"higher": "higher is better ↑", "lower": "lower is better ↓", "none": "no direction is better"}
DIFFERS = {ABOVE: "yes", LIKE_CONTROL: "no", UNTESTED: "not tested", UNDEFINED: UNDEFINED}
REMARKS = {
    "shape": "Values of rows named “kept” are over the images that each model gets right unchanged; differences are over the "
    "images that both get right."
}
FEWER_DOTS = 110  # per inch: pictures of the page are for screens


@dataclass(frozen=True)
class Entry:
    """One measure's section.

    values: model, mean, interval, n, control, whether it differs. differences: pair, mean, interval, p.
    """

    name: str
    title: str
    facts: dict[str, str]
    verdict: str
    values: list[tuple[str, ...]]
    differences: list[tuple[str, ...]]


@dataclass(frozen=True)
class Group:
    """Measures of one kind, with the pictures behind them as data addresses."""

    title: str
    remark: str
    entries: list[Entry]
    pictures: list[tuple[str, str]]


def write(result: Result, folder: Path) -> Path:
    """Write FOLDER/measures.html, replacing it only when it is complete."""
    tables = by_group(result)
    drawn = attributes.drawable(result)
    groups = [
        Group(
            GROUPS.get(group, group),
            REMARKS.get(group, ""),
            [_entry(result.data, name) for name in names],
            [
                (d.caption, _png(d.draw(result)))
                for d in drawn
                if d.group == group or (k == 0 and d.group and d.group not in tables)
            ],
        )
        for k, (group, names) in enumerate(tables.items())
    ]
    environment = Environment(loader=PackageLoader("interp.report", "."), autoescape=True, undefined=StrictUndefined)
    html = environment.get_template("measures.html").render(
        title=result.title,
        groups=groups,
        overview=[(f"Measures × models.{_readers(result.data)}", _png(matrices.measures(result)))]
        + [(d.caption, _png(d.draw(result))) for d in drawn if not d.group],
        skipped=str(result.data.attrs.get("skipped", "")),
        made=result.made["versions"],
        file=f"results/{result.kind}-{result.key}.nc",
    )
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".part-measures.html"
    part.write_text(html, encoding="utf-8")
    return part.replace(folder / "measures.html")


def _readers(data: xr.Dataset) -> str:
    further = matrices.further_judges(data)
    return f" What models write is also read by {', '.join(further)}, which are not compared." if further else ""


def _png(fig: Figure) -> str:
    buffer = io.BytesIO()
    with look():
        fig.savefig(buffer, format="png", dpi=FEWER_DOTS, bbox_inches="tight", metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()


def _entry(data: xr.Dataset, name: str) -> Entry:
    attrs = data[name].attrs
    alone = not who_judges(data).startswith("judges")
    formula = attrs["formula"].replace("models of other architectures", "the other models") if alone else attrs["formula"]
    facts = {
        "formula": formula,
        "source": attrs["source"],
        "unit": attrs["unit"],
        "direction": DIRECTION[attrs["better"]],
        "n": count(data, name),
        "control": attrs["control"] or "none",
    }
    facts |= {"best": labels(data)[data["model"].values.tolist().index(attrs["best"])]} if attrs["best"] else {}
    return Entry(name, attrs["long_name"], facts, attrs["verdict"], _values(data, name), _differences(data, name))


def _values(data: xr.Dataset, name: str) -> list[tuple[str, ...]]:
    spec, stand = form(data[name].values), standing(data, name)
    found: list[tuple[str, ...]] = []
    for m in rows(data):
        known = stand[m] in (ABOVE, UNTESTED)
        of_control = _mean(data, f"{name}_control", m, spec) if f"{name}_control" in data else ("", "")
        mean, interval = _mean(data, name, m, spec)
        n = str(data[f"{name}_n"].values[m])
        found.append((labels(data)[m], mean if known else stand[m], interval, n, " ".join(of_control), DIFFERS[stand[m]]))
    return found


def _mean(data: xr.Dataset, name: str, m: int, spec: str) -> tuple[str, str]:
    v, low, high = (float(data[name + end].values[m]) for end in ("", "_low", "_high"))
    return (UNDEFINED, "") if np.isnan(v) else (f"{v:{spec}}", f"[{low:{spec}}, {high:{spec}}]")


def _differences(data: xr.Dataset, name: str) -> list[tuple[str, ...]]:
    """Robust minus standard of twins, and between robust models; none where both are as their controls."""
    robust = [m for m in rows(data) if data["robust"].values[m]]
    pairs = [(r, s) for s, r in attributes.twins(data)] + list(combinations(robust, 2))
    spec, stand, p = form(data[name].values), standing(data, name), data[f"{name}_p"].values
    blocks = [data[f"{name}_difference{end}"].values for end in ("", "_low", "_high")]
    found: list[tuple[str, ...]] = []
    for a, b in pairs:
        v, low, high = (float(block[a, b]) for block in blocks)
        pair = f"{labels(data)[a]} − {labels(data)[b]}"
        if UNDEFINED in (stand[a], stand[b]):
            found.append((pair, UNDEFINED, "", ""))
        elif np.isnan(v) or (np.isnan(p[a, b]) and _shared(data, name, a, b) >= FEWEST):
            found.append((pair, "not compared", "", ""))
        elif {stand[a], stand[b]} == {LIKE_CONTROL}:
            found.append((pair, "both as control", "", ""))
        else:
            said = _p(float(p[a, b]), float(data.attrs.get("least_p", 0)))
            found.append((pair, f"{v:+{spec}}", f"[{low:+{spec}}, {high:+{spec}}]", said))
    return found


def _shared(data: xr.Dataset, name: str, a: int, b: int) -> int:
    """Of how many units two models both have a value."""
    values = data[f"values_{name}"].values
    return int(np.isfinite(values[a] - values[b]).sum())


def _p(p: float, least: float) -> str:
    """least: the smallest p that can be found, of which no more is known than that p is not above it; rounded up."""
    if np.isnan(p):
        return "not tested"
    if p < 0.001:
        return "< 0.001"
    return f"≤ {np.ceil(1000 * p - 1e-6) / 1000:.3f}" if p <= 1.01 * least else f"{p:.3f}"
