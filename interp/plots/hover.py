"""A page on which pointing at a patch shows what it attends to, in every model at once; it needs no network and no other file.

The weights travel as bytes: 255 is the largest weight of a query's row, whose size (× uniform) stands beside it. Where queries
or keys are pooled (PVT v2, arXiv 2106.13797) the patch pointed at is a cell of the queries' grid, and what it attends to is drawn
in the cells of the keys'; both cover the image. Where attention runs inside windows, what is outside the query's has no colour,
nor has in MobileViT what is at another place in the patches. Colour goes by the root of a weight, since peaks of models are of
different orders: on a linear scale that holds the largest the maps of the others would be black.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.plots.attention import COVER, upper
from interp.plots.images import SEQUENTIAL, name_of
from interp.plots.style import labels, rows
from interp.result import Result

UNSEEN = {  # how `own` tells of which keys a query sees: what all others are
    "of the same place in other patches": "another place in the patches",
    "the same for all queries of a place in its patch": "another place in the patches",
    "of its block and a halo": "outside its block and the halo around it",
    "over the windows that the position is in": "outside the windows that it is in",
}
OTHERWISE = "outside its window or grid"
HIGH = 0.9  # quantile of the largest weights of a model's rows


def page(result: Result) -> str:
    """HTML with one panel per model for a result of kind 'attention_queries'.

    Point, touch or use the arrow keys to move the query; click, or Enter, pins it. A link may end in
    #image=0&hover=y,x&limit=4: the image's place, a pinned query in its pixels, the upper end of the scale. Models whose rows
    are all alike (a class token) are said to be so. Raises InputError for another kind of result.
    """
    if result.kind != "attention_queries":
        raise InputError(f"the page needs a result of kind 'attention_queries'; found {result.kind!r}")
    data = result.data
    order = rows(data)
    colours = (mpl.colormaps[SEQUENTIAL](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    largest = max(float(np.nan_to_num(data["peak"].values).max()), 2.0)
    content = {
        "height": data.sizes["y"],
        "width": data.sizes["x"],
        "cover": COVER,
        "colours": _text(colours),
        "limit": upper(_high(data)),
        "most": float(np.ceil(largest)),
        "images": [_image(data, i) for i in range(data.sizes["image"])],
        "models": [_model(data, m) for m in order],
    }
    written = json.dumps(content).replace("<", "\\u003c")  # no name can end the script
    parts = {"TITLE": html.escape(result.title), "CONTENT": written, "SCRIPT": SCRIPT}
    return re.sub("TITLE|CONTENT|SCRIPT", lambda found: parts[found[0]], PAGE)


def write(result: Result, path: Path | str) -> Path:
    """Write the page to `path`, through a temporary name, and return it."""
    path, text = Path(path), page(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
        (Path(folder) / path.name).write_text(text, encoding="utf-8")
        return (Path(folder) / path.name).replace(path)


def _grids(data: xr.Dataset, m: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the queries and of the keys of a model; results from before they could differ have one for both."""
    (down, across), (rows, columns) = (data[name if name in data else "size"].values[m].tolist() for name in ("asks", "size"))
    return (down, across), (rows, columns)


def _reach(data: xr.Dataset, m: int) -> list[float]:
    """How many times the image's rows and columns the grid covers: above 1 where patches were padded."""
    image = (data.sizes["y"], data.sizes["x"])
    covers = data["covers"].values[m].tolist() if "covers" in data else image
    return [covered / side for covered, side in zip(covers, image, strict=True)]


def _known(data: xr.Dataset, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows (image, query, key) of a model and their peaks (image, query), without what pads its grids."""
    queries, keys = (math.prod(grid) for grid in _grids(data, m))
    return data["rows"].values[m, :, :queries, :keys], np.nan_to_num(data["peak"].values[m, :, :queries])


def _high(data: xr.Dataset) -> np.ndarray:
    """The quantile HIGH of the largest weights of each model's rows; nothing where none was read."""
    peaks = (_known(data, m)[1] for m in range(data.sizes["model"]))
    return np.asarray([np.quantile(p, HIGH) for p in peaks if p.size])


def _image(data: xr.Dataset, i: int) -> dict[str, Any]:
    pixels = (data["original"].values[i].clip(0, 1) * 255).round().astype(np.uint8)
    truth = name_of(data, int(data["truth"].values[i]))
    return {"id": str(data["image"].values[i]), "truth": "" if truth == "?" else truth, "pixels": _text(pixels)}


def _model(data: xr.Dataset, m: int) -> dict[str, Any]:
    """A model's grids and for each image its rows and their peaks; one row where all are alike."""
    (asks, size), (weights, peaks) = _grids(data, m), _known(data, m)
    alike = weights.size > 0 and bool((weights == weights[:, :1]).all() and np.allclose(peaks, peaks[:, :1], rtol=1e-3))
    kept = slice(0, 1) if alike else slice(None)
    seen = np.ones(weights.shape[1:], bool)
    if "seen" in data:
        seen &= data["seen"].values[m, : weights.shape[1], : weights.shape[2]]
    return {
        "label": labels(data)[m],
        "own": str(data["own"].values[m]),
        "asks": asks,
        "size": size,
        "reach": _reach(data, m),
        "seen": None if seen.all() else _text(np.packbits(seen)),
        "unseen": next((words for known, words in UNSEEN.items() if known in str(data["own"].values[m])), OTHERWISE),
        "alike": alike,
        "rows": [_text(w[kept].astype(np.uint8)) for w in weights],
        "peaks": [[float(f"{v:.4g}") for v in p[kept]] for p in peaks],
    }


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>TITLE</title>
<style>
  :root { --ink: #1c2126; --soft: #5b6670; --line: #dfe4e8; --accent: #0072b2; }
  body { font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); max-width: 74rem; margin: 0 auto;
    padding: 1rem 1.25rem 3rem; }
  h1 { font-size: 1.4rem; margin: 0 0 .25rem; } p { margin: .25rem 0 .75rem; color: var(--soft); }
  #controls { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: center; margin: .5rem 0 1rem; padding: .6rem 0;
    border: solid var(--line); border-width: 1px 0; }
  #controls label { display: flex; gap: .5rem; align-items: center; } select, input { font: inherit; max-width: 22rem; }
  #legend { display: grid; grid-template-columns: minmax(240px, auto); font-size: .8rem; } #legend div { display: flex;
    width: 240px; justify-content: space-between; } #legend canvas { width: 240px; height: 12px; }
  #panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); column-gap: 1rem; }
  .panel { display: grid; grid-row: span 4; grid-template-rows: subgrid; align-content: start; margin-bottom: 1.25rem; }
  .panel h2 { font-size: .95rem; margin: 0 0 .3rem; overflow-wrap: anywhere; align-self: end; max-width: 240px; }
  .panel canvas { width: 240px; max-width: 100%; display: block; cursor: crosshair; touch-action: none; }
  .panel canvas:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
  .panel div { font-size: .78rem; white-space: pre-line; min-height: 4.4em; margin-top: .3rem; overflow-wrap: anywhere;
    font-variant-numeric: tabular-nums; } .panel small { color: var(--soft); display: block; font-size: .75rem; }
</style>
</head>
<body>
<h1>TITLE</h1>
<p>Point at a patch (or touch it, or move with the arrow keys): every panel shows what that patch attends to. Click, or Enter,
pins it; then pointing reads the weight of other patches. Escape lets go. Weights are multiples (×)
of those of attention spread evenly over the whole image.</p>
<div id="controls">
  <label>image <select id="image"></select></label>
  <label>upper end of the scale <input id="limit" type="range" min="1" step="0.5"> <output id="shown"></output></label>
  <div id="legend"><canvas width="240" height="12"></canvas>
    <div><span>0</span><span id="middle"></span><span id="end"></span></div>
    <span>× uniform, colour by its root; one scale for all panels</span>
    <span id="unseen"></span></div>
</div>
<div id="panels"></div>
<noscript>This page draws with JavaScript, which is switched off.</noscript>
<script type="application/json" id="content">CONTENT</script>
<script>SCRIPT</script>
</body>
</html>
"""

SCRIPT = """
"use strict";
const $ = id => document.getElementById(id);
const content = JSON.parse($("content").textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const colours = bytes(content.colours), {height, width, cover, images, models} = content;
const wide = 480, high = Math.round(wide * height / width);
let image = 0, query = null, pinned = false, pointer = null, limit = content.limit, used = null;

function canvasOf(w, h) { const c = document.createElement("canvas"); c.width = w; c.height = h; return c; }

function photograph(pixels, grey) {
  const c = canvasOf(width, height), context = c.getContext("2d"), data = context.createImageData(width, height);
  for (let p = 0; p < width * height; p++) {
    const rgb = pixels.subarray(3 * p, 3 * p + 3), mean = 255 * .35 + .65 * (rgb[0] + rgb[1] + rgb[2]) / 3;
    for (let k = 0; k < 3; k++) data.data[4 * p + k] = grey ? mean : rgb[k];
    data.data[4 * p + 3] = 255;
  }
  context.putImageData(data, 0, 0);
  return c;
}

for (const i of images) {
  const pixels = bytes(i.pixels);
  i.colour = photograph(pixels, false);
  i.grey = photograph(pixels, true);
  $("image").append(new Option(i.truth ? i.id + " (" + i.truth + ")" : i.id));
}
for (const m of models) { m.rows = m.rows.map(bytes); m.seen = m.seen && bytes(m.seen); }

// places are shares (y, x) of the image, so that every grid finds its own patch
const cell = (m, size, at) => at.map((v, k) => Math.min(size[k] - 1, Math.floor(v * size[k] / m.reach[k])));
const asking = (m, at) => cell(m, m.asks, at);
const pooled = m => String(m.asks) !== String(m.size);
const named = p => "row " + (p[0] + 1) + ", column " + (p[1] + 1);
const sized = size => size[0] + " × " + size[1];
const times = v => v.toFixed(2) + "×";

function reading(m) {
  const n = m.size[0] * m.size[1];
  if (!n || !(query || m.alike)) return null;
  const at = query && asking(m, query), q = m.alike ? 0 : at[0] * m.asks[1] + at[1];
  const row = m.rows[image].subarray(q * n, q * n + n), peak = m.peaks[image][q];
  const value = k => row[k] / 255 * peak, index = p => p[0] * m.size[1] + p[1];
  const bit = k => m.seen[q * n + k >> 3] >> 7 - (q * n + k) % 8 & 1, sees = k => !m.seen || bit(k);
  const said = p => (sees(index(p)) ? times(value(index(p))) : m.unseen) + " at " + named(p);
  return {at, row, value, sees, said, key: p => value(index(p))};
}

function edges(m, size, p) {
  const lines = (n, k, whole) => [Math.round(k * whole / n), Math.round((k + 1) * whole / n)];
  const [[up, down], [left, right]] = [lines(size[0], p[0], high * m.reach[0]), lines(size[1], p[1], wide * m.reach[1])];
  return {up, left, h: down - up, w: right - left};
}

function frame(context, m, size, p, ink) {
  const {up, left, h, w} = edges(m, size, p), fine = Math.min(h, w) < 24;  // lines inside a patch, around a small one
  const [out, black, line] = fine ? [2, 4, 2] : [-4, 7, 3];
  const at = (v, whole) => 2 * Math.floor(Math.min(whole - 3, Math.max(3, v)) / 2) + 1;  // on whole pixels of the screen
  const [x, right, y, below] = [at(left - out, wide), at(left + w + out, wide), at(up - out, high), at(up + h + out, high)];
  for (const [colour, width] of [["black", black], [ink, line]]) {
    context.strokeStyle = colour; context.lineWidth = width;
    context.strokeRect(x, y, right - x, below - y);
  }
}

function draw(panel) {
  const context = panel.canvas.getContext("2d"), m = panel.model, read = m && reading(m);
  context.imageSmoothingEnabled = false;
  context.drawImage(read ? images[image].grey : images[image].colour, 0, 0, wide, high);
  if (!m) {
    if (query) ring(context);
    panel.text.textContent = query ? "query at y " + Math.floor(query[0] * height) + ", x " + Math.floor(query[1] * width) +
      " of " + height + " × " + width + " pixels" + (pinned ? " (pinned)" : "") : "";
    return;
  }
  if (!m.size[0]) { panel.text.textContent = "not read"; return; }
  if (!read) {
    panel.text.textContent = pooled(m) ? sized(m.asks) + " queries, " + sized(m.size) + " keys" : sized(m.size) + " patches";
    return;
  }
  const columns = m.size[1], lines = [];
  context.globalAlpha = cover;
  let top = 0;
  read.row.forEach((v, k) => {
    if (v > read.row[top]) top = k;
    if (!read.sees(k)) return;
    const c = 3 * Math.round(255 * Math.sqrt(Math.min(1, read.value(k) / limit)));
    const e = edges(m, m.size, [Math.floor(k / columns), k % columns]);
    context.fillStyle = "rgb(" + colours[c] + "," + colours[c + 1] + "," + colours[c + 2] + ")";
    context.fillRect(e.left, e.up, e.w, e.h);
  });
  context.globalAlpha = 1;
  if (m.alike) lines.push("one map, the same from every patch");
  else if (pooled(m)) lines.push(named(read.at) + " of " + sized(m.asks) + " queries");
  else lines.push(named(read.at) + " of " + sized(m.size) + ": itself " + times(read.key(read.at)));
  const most = read.said([Math.floor(top / columns), top % columns]);
  lines.push("most: " + most + (pooled(m) ? " of " + sized(m.size) + " keys" : ""));
  const other = pointer || (m.alike ? query : null);
  if (other) lines.push("pointer: " + read.said(cell(m, m.size, other)));
  if (pinned && pointer) frame(context, m, m.size, cell(m, m.size, pointer), "#56b4e9");
  if (query && !m.alike) frame(context, m, m.asks, read.at, "white");
  panel.text.textContent = lines.join("\\n");
}

function ring(context) {
  for (const [colour, line] of [["black", 8], ["white", 4]]) {
    context.strokeStyle = colour; context.lineWidth = line;
    context.beginPath(); context.arc(query[1] * wide, query[0] * high, 14, 0, 7); context.stroke();
  }
}

function show() {
  panels.forEach(draw);
  $("image").selectedIndex = image;
  $("limit").value = limit;
  $("shown").textContent = $("end").textContent = "≥ " + limit;
  $("middle").textContent = limit / 4;
}

function remember() {
  const at = pinned ? "&hover=" + Math.floor(query[0] * height) + "," + Math.floor(query[1] * width) : "";
  try { history.replaceState(null, "", "#image=" + image + at + "&limit=" + limit); } catch { /* a page may be kept from it */ }
}

function recall() {
  const said = new URLSearchParams(location.hash.slice(1)), number = (name, low, high, otherwise) => {
    const v = said.has(name) ? Number(said.get(name)) : NaN;
    return Number.isFinite(v) ? Math.min(high, Math.max(low, v)) : otherwise;
  };
  image = Math.floor(number("image", 0, images.length - 1, image));
  limit = number("limit", 1, Number($("limit").max), limit);
  const at = (said.get("hover") || "").split(",").map(Number);
  if (at.length === 2 && at.every(Number.isFinite)) {
    query = [[at[0], height], [at[1], width]].map(([v, n]) => (Math.min(n - 1, Math.max(0, Math.floor(v))) + .5) / n);
    pinned = true;
  }
  show();
}

function place(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const at = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
  return at.map(v => Math.min(.9999, Math.max(0, v)));
}

function pin(at, panel) {
  const m = panel.model && panel.model.size[0] ? panel.model : finest;
  const same = pinned && query && (!m || String(asking(m, query)) === String(asking(m, at)));
  query = at; pinned = !same; pointer = null;
  show(); remember();
}

function point(event, panel) {
  used = panel;
  if (pinned) pointer = place(event); else query = place(event);
  show();
}

function add(title, under, model) {
  const panel = {model, canvas: canvasOf(wide, high), text: document.createElement("div")};
  const box = document.createElement("div"), head = document.createElement("h2"), small = document.createElement("small");
  box.className = "panel"; small.textContent = under;
  for (const part of title.split(/(?<=[_.])/)) head.append(part, document.createElement("wbr"));
  panel.canvas.tabIndex = 0;
  panel.canvas.setAttribute("role", "img");
  panel.canvas.setAttribute("aria-label", title);
  panel.canvas.addEventListener("pointermove", event => point(event, panel));
  panel.canvas.addEventListener("pointerleave", () => { pointer = null; show(); });
  panel.canvas.addEventListener("click", event => pin(place(event), panel));
  panel.canvas.addEventListener("focus", () => { used = panel; });
  box.append(head, panel.canvas, panel.text, small);
  $("panels").append(box);
  return panel;
}

const unseen = [...new Set(models.filter(m => m.seen).map(m => m.unseen))];
$("unseen").hidden = !unseen.length;
$("unseen").textContent = "no colour: " + unseen.join(", or ");
const finest = models.reduce((a, b) => !a || b.asks[0] * b.asks[1] > a.asks[0] * a.asks[1] ? b : a, null);
const panels = [add("image", "", null), ...models.map(m => add(m.label, m.own, m))];

const ARROWS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
document.addEventListener("keydown", event => {
  if (["SELECT", "INPUT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const m = used && used.model && used.model.size[0] ? used.model : finest, way = ARROWS[event.key];
  if (way && m && m.size[0]) {
    const from = query ? asking(m, query).map((v, k) => v + way[k]) : m.asks.map(v => v >> 1);
    query = from.map((v, k) => Math.min(.9999, (Math.min(m.asks[k] - 1, Math.max(0, v)) + .5) / m.asks[k] * m.reach[k]));
    pointer = null;
    if (pinned) remember();
  } else if ((event.key === "Enter" || event.key === " ") && query) { pinned = !pinned; remember(); }
  else if (event.key === "Escape") { pinned = false; pointer = query = null; remember(); }
  else return;
  event.preventDefault();
  show();
});
$("image").addEventListener("change", () => { image = $("image").selectedIndex; show(); remember(); });
$("limit").max = Math.max(content.most, limit);
$("limit").addEventListener("input", () => { limit = Number($("limit").value); show(); });
$("limit").addEventListener("change", remember);
window.addEventListener("hashchange", recall);

const scale = document.querySelector("#legend canvas").getContext("2d");
const grey = Math.round(255 * (.35 + .65 / 2));
for (let x = 0; x < 240; x++) {
  const c = 3 * Math.round(255 * x / 239), mix = k => Math.round(cover * colours[c + k] + (1 - cover) * grey);
  scale.fillStyle = "rgb(" + mix(0) + "," + mix(1) + "," + mix(2) + ")";
  scale.fillRect(x, 0, 1, 12);
}
recall();
"""
