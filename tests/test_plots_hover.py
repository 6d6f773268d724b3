"""The page of queries where queries and keys stand on grids of their own: what is drawn where, in a browser."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

from interp.plots import hover
from interp.plots.attention import COVER
from interp.plots.images import SEQUENTIAL
from interp.result import Result

GRIDS = (  # queries, keys
    ((4, 8), (2, 4)),  # keys are pooled
    ((2, 4), (4, 8)),  # queries are
    ((4, 8), (4, 8)),  # neither is, in windows of 2 × 2
    ((3, 5), (7, 9)),  # grids that do not divide the image
)
LABELS = ("pooled_keys", "pooled.queries", "windows", "odd")
GREY = 0.35 + 0.65 * 0.5
browser = pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium to run the page")


def result_of(height: int = 24, width: int = 48) -> Result:
    """Four models of different grids on grey images that are not square."""
    rng = np.random.default_rng(0)
    most = [max(int(np.prod(grids[side])) for grids in GRIDS) for side in (0, 1)]
    rows = np.zeros((len(GRIDS), 2, *most), np.uint8)
    seen = np.zeros((len(GRIDS), *most), bool)
    peak = np.zeros((len(GRIDS), 2, most[0]), np.float32)
    for m, (asks, size) in enumerate(GRIDS):
        down, across = int(np.prod(asks)), int(np.prod(size))
        rows[m, :, :down, :across] = rng.integers(0, 250, (2, down, across))
        rows[m, :, :down, :across][np.arange(2)[:, None], np.arange(down), rng.integers(0, across, (2, down))] = 255
        peak[m, :, :down] = rng.integers(10, 50, (2, down)) / 10
        seen[m, :down, :across] = True
    y, x = np.divmod(np.arange(32), 8)
    seen[2, :32, :32] = (y[:, None] // 2 == y // 2) & (x[:, None] // 2 == x // 2)
    rows[2] *= seen[2]
    data = xr.Dataset(
        {
            "asks": (("model", "axis"), [asks for asks, _ in GRIDS]),
            "size": (("model", "axis"), [size for _, size in GRIDS]),
            "rows": (("model", "image", "query", "key"), rows),
            "peak": (("model", "image", "query"), peak),
            "seen": (("model", "query", "key"), seen),
            "own": ("model", ["attention"] * len(GRIDS)),
            "original": (("image", "y", "x", "channel"), np.full((2, height, width, 3), 0.5, np.float32)),
            "truth": ("image", [0, 1]),
        },
        coords={
            "model": list(LABELS),
            "label": ("model", list(LABELS)),
            "robust": ("model", [False] * len(GRIDS)),
            "group": ("model", list(LABELS)),
            "image": ["a", "b"],
        },
    )
    return Result("attention_queries", "What each patch attends to", data)


PROBE = """<script>
const probes = panels.map(p => {
  const c = p.canvas, d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data, box = [1e9, 1e9, -1, -1];
  for (let i = 0; i < c.width * c.height; i++) if (d[4 * i] === 255 && d[4 * i + 1] === 255 && d[4 * i + 2] === 255) {
    const y = Math.floor(i / c.width), x = i % c.width;
    box[0] = Math.min(box[0], y); box[1] = Math.min(box[1], x); box[2] = Math.max(box[2], y); box[3] = Math.max(box[3], x);
  }
  const at = (y, x) => Array.from(d.slice(4 * (y * c.width + x), 4 * (y * c.width + x) + 3)), cells = [];
  const [rows, columns] = p.model ? p.model.size : [0, 0];
  for (let k = 0; k < rows * columns; k++) cells.push(
    at(Math.floor((Math.floor(k / columns) + .3) * c.height / rows), Math.floor((k % columns + .3) * c.width / columns)));
  return {height: c.height, width: c.width, box, cells, text: p.text.textContent};
});
const found = document.createElement("pre");
found.id = "found"; found.textContent = JSON.stringify(probes);
document.body.append(found);
</script>"""


def probed(result: Result, folder: Path, link: str) -> list[dict[str, Any]]:
    """Of every panel in a browser: the size of its canvas, the box of what is white, the colours within keys, its text."""
    path = folder / "page.html"
    path.write_text(hover.page(result).replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    shown = subprocess.run([*command, path.as_uri() + link], capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.search(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1]))  # type: ignore[no-any-return]


def colour(value: float, limit: float) -> np.ndarray:
    covered = np.asarray(mpl.colormaps[SEQUENTIAL](round(255 * min(1, value / limit) ** 0.5))[:3])
    return 255 * (COVER * covered + (1 - COVER) * GREY)


def off_the_frame(box: list[int], size: tuple[int, int]) -> np.ndarray:
    """Whether the places at which the colours of keys are read are beside the frame's lines."""
    y, x = ((np.indices(size) + 0.3) * np.array([240 / size[0], 480 / size[1]])[:, None, None]).reshape(2, -1)

    def within(by: int) -> np.ndarray:
        return (y > box[0] - by) & (y < box[2] + by) & (x > box[1] - by) & (x < box[3] + by)

    return within(-8) | ~within(8)


@browser
@pytest.mark.parametrize("at", [(13, 29), (0, 0), (23, 47)])
def test_the_frame_is_at_the_querys_cell_and_the_colours_are_its_row_on_the_keys(tmp_path: Path, at: tuple[int, int]) -> None:
    result, limit = result_of(), 3.0
    image, *panels = probed(result, tmp_path, f"#image=1&hover={at[0]},{at[1]}&limit={limit:g}")
    assert (image["height"], image["width"]) == (240, 480)
    for m, (panel, (asks, size)) in enumerate(zip(panels, GRIDS, strict=True)):
        y, x = (int((pixel + 0.5) / n * side) for pixel, n, side in zip(at, (24, 48), asks, strict=True))
        cell = [y * 240 / asks[0], x * 480 / asks[1], (y + 1) * 240 / asks[0], (x + 1) * 480 / asks[1]]
        inside = np.array(panel["box"]) - cell
        assert (inside[:2] > 0).all() and (inside[2:] < 0).all() and (abs(inside) < 9).all(), (LABELS[m], panel["box"], cell)
        query, keys = y * asks[1] + x, int(np.prod(size))
        row = result.data["rows"].values[m, 1, query, :keys] / 255 * result.data["peak"].values[m, 1, query]
        seen = result.data["seen"].values[m, query, :keys]
        expected = [colour(v, limit) if s else np.full(3, 255 * GREY) for v, s in zip(row, seen, strict=True)]
        clear = off_the_frame(panel["box"], size)
        assert clear.mean() > 0.85 and np.allclose(np.array(panel["cells"])[clear], np.array(expected)[clear], atol=2), LABELS[m]
        top, own = int(row.argmax()), f"row {y + 1}, column {x + 1} of {asks[0]} × {asks[1]}"
        most = f"most: {row[top]:.2f}× at row {top // size[1] + 1}, column {top % size[1] + 1}"
        if asks == size:
            assert panel["text"] == f"{own}: itself {row[query]:.2f}×\n{most}"
        else:
            assert panel["text"] == f"{own} queries\n{most} of {size[0]} × {size[1]} keys"


@browser
@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("attention, each position to those of the same place in other patches", "another place in the patches"),
        ("context scores, the same for all queries of a place in its patch", "another place in the patches"),
        ("attention, among the positions of its block and a halo around it", "outside its block and the halo around it"),
        ("attention, added up over the windows that the position is in", "outside the windows that it is in"),
        ("attention, among the positions of its window or grid", "outside its window or grid"),
    ],
)
def test_what_has_no_colour_is_called_by_the_kind_of_attention(tmp_path: Path, own: str, words: str) -> None:
    result = result_of()
    seen = result.data["seen"].values.copy()
    rows = result.data["rows"].values * np.where(np.arange(4)[:, None, None] == 2, seen, True)[:, None]
    rows[2] = 0  # the largest is not seen, nor is any other
    data = result.data.assign(
        own=("model", ["attention"] * 2 + [own, "attention"]),
        seen=(("model", "query", "key"), seen & (np.arange(4) != 2)[:, None, None]),
        rows=(result.data["rows"].dims, rows),
    )
    path = tmp_path / "page.html"
    path.write_text(hover.page(Result(result.kind, result.title, data)), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    link = path.as_uri() + "#image=0&hover=5,5"
    shown = subprocess.run([*command, link], capture_output=True, text=True, timeout=60, check=True).stdout
    assert f'<span id="unseen">no colour: {words}</span>' in shown
    assert f"most: {words} at row 1, column 1" in shown


@browser
def test_small_patches_are_framed_from_without_and_tall_images_are_as_wide_as_others(tmp_path: Path) -> None:
    result = result_of(48, 24)
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 255, (1, 2, 40 * 20, 4)).astype(np.uint8)
    data = result.data.isel(model=[0]).drop_vars(["rows", "peak", "seen", "asks", "size"])
    data = data.assign(
        asks=(("model", "axis"), [(40, 20)]),
        size=(("model", "axis"), [(2, 2)]),
        rows=(("model", "image", "query", "key"), rows),
        peak=(("model", "image", "query"), np.ones((1, 2, 800), np.float32)),
    )
    _, panel = probed(Result(result.kind, result.title, data), tmp_path, "#image=0&hover=24,12")
    assert (panel["height"], panel["width"]) == (960, 480)
    up, left = 20 * 24, 10 * 24  # of 40 × 20 cells of 24 × 24 on the canvas
    assert np.abs(np.array(panel["box"]) - [up, left, up + 24, left + 24]).max() <= 9
    assert panel["text"].startswith("row 21, column 11 of 40 × 20 queries\nmost: ")


def test_the_page_carries_both_grids_and_what_is_seen() -> None:
    result = result_of()
    found = json.loads(
        re.findall(r'<script type="application/json" id="content">(.*?)</script>', hover.page(result), re.DOTALL)[0]
    )
    assert [(tuple(m["asks"]), tuple(m["size"])) for m in found["models"]] == list(GRIDS)
    for m, (shown, (asks, size)) in enumerate(zip(found["models"], GRIDS, strict=True)):
        down, across = int(np.prod(asks)), int(np.prod(size))
        for i in range(2):
            rows = np.frombuffer(base64.b64decode(shown["rows"][i]), np.uint8).reshape(down, across)
            assert np.array_equal(rows, result.data["rows"].values[m, i, :down, :across])
            assert shown["peaks"][i] == pytest.approx(result.data["peak"].values[m, i, :down], rel=1e-3)
        assert (shown["seen"] is None) == (LABELS[m] != "windows")
    bits = np.unpackbits(np.frombuffer(base64.b64decode(found["models"][2]["seen"]), np.uint8))
    assert np.array_equal(bits.reshape(32, 32).astype(bool), result.data["seen"].values[2, :32, :32])


def test_a_saved_result_without_grids_of_queries_still_makes_a_page() -> None:
    result = result_of()
    square = result.data.isel(model=[2])
    old = Result(result.kind, result.title, square.drop_vars(["asks", "seen"]))
    whole = Result(result.kind, result.title, square.assign(seen=square["seen"] | True))
    assert hover.page(old) == hover.page(whole)
