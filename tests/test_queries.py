"""What every patch attends to, of pooled grids, in windows and with one row of scores: the weights that were captured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr

from interp.attention import queries
from interp.attention.attend import Attend, attend
from interp.attention.capture import Captured, capture
from interp.attention.geometry import Geometry, of_patches, of_pixels, of_pooled
from interp.attention.layout import attention_layers
from interp.attention.maps import query_map, query_rows
from interp.attention.queries import Queries, attention_queries
from interp.attention.readings import How, read
from interp.models.build import build
from interp.models.model import Model
from interp.plots.hover import page
from interp.types import Batch, InputError
from tests.attention_nets import NETS, wrap
from tests.attention_nets import make as net
from tests.timm_nets import make, of


def batch_of(name: str) -> Batch:
    return Batch(of(name), torch.tensor([0, 1]), ids=("a", "b"))


def captured(model: Model, batch: Batch) -> list[Captured]:
    with torch.no_grad(), capture(model) as rec:
        model(batch.images)
    return rec.layers


def by_hand(layer: Captured) -> tuple[np.ndarray, np.ndarray]:
    """Weights (image, query, key), token by token, and which key is in the group of which query."""
    geometry = layer.geometry
    assert geometry is not None
    asking = geometry.queries
    weights = layer.weights.unflatten(0, (-1, geometry.groups)).mean(2).numpy()
    rows = np.zeros((len(weights), asking.positions, geometry.positions), np.float32)
    seen = np.zeros(rows.shape[1:], bool)
    for group in range(geometry.groups):
        for a, query in enumerate(asking.places[group].tolist()):
            for b, key in enumerate(geometry.places[group].tolist()):
                if query >= 0 and key >= 0:
                    rows[:, query, key] += weights[:, group, asking.prefix + a, geometry.prefix + b]
                    seen[query, key] = True
    return rows, seen


def read_back(data: xr.Dataset, m: int = 0) -> np.ndarray:
    """Weights (image, query, key) of a model, as the page has them."""
    down, across = (math.prod(data[name].values[m].tolist()) for name in ("asks", "size"))
    rows, peak = data["rows"].values[m, :, :down, :across], data["peak"].values[m, :, :down]
    return np.asarray(rows / 255 * peak[..., None] / across)


POOLED = ("pvt", "pvt_linear", "twins", "mvit", "mvit_cls", "levit", "hiera", "hieradet", "efficientformerv2", "mobilenetv4")


@pytest.mark.parametrize("name", POOLED)
def test_a_query_of_a_pooled_layer_is_the_row_of_the_captured_weights(name: str) -> None:
    model, batch = make(name), batch_of(name)
    uneven = [c for c in captured(model, batch) if c.geometry is not None and not c.geometry.one_grid]
    assert uneven
    for layer in (uneven[0], uneven[-1]):
        data, geometry = attention_queries([model], batch, Queries(layer.name, chunk=1)).data, layer.geometry
        assert geometry is not None
        exact, seen = by_hand(layer)
        assert tuple(data["asks"].values[0]) == geometry.queries.size != tuple(data["size"].values[0]) == geometry.size
        assert np.allclose(read_back(data), exact, atol=float(exact.max()) / 500)
        assert np.array_equal(data["seen"].values[0], seen)
        (down, across), (rows, columns) = geometry.queries.size, geometry.size
        said = str(data["own"].values[0])
        assert f"of {down} × {across} queries to {rows} × {columns} keys" in said
        assert ("window or grid" in said) == (geometry.groups > 1)


def test_the_last_cell_of_pvts_queries_is_the_last_row_of_its_matrix() -> None:
    """Without going through places: 16 × 16 queries, row by row, on 2 × 2 keys."""
    model, batch = make("pvt"), batch_of("pvt")
    first = captured(model, batch)[0]
    data = attention_queries([model], batch, Queries(first.name)).data
    assert first.weights.shape[2:] == (256, 4) and tuple(data["asks"].values[0]) == (16, 16)
    for query in (0, 17, 255):
        assert np.allclose(read_back(data)[:, query], first.weights[:, :, query].mean(1), atol=2e-3)
        y, x = divmod(query, 16)
        maps = read(model, batch.images, method="raw", how=How(first.name, query=(4 * y + 1, 4 * x + 2)))
        assert torch.allclose(maps.maps.flatten(1), first.weights[:, :, query].mean(1), atol=1e-6)
        assert f"row {y + 1}, column {x + 1} of 16 × 16 to keys on 2 × 2" in maps.how


@pytest.mark.parametrize("name", ["nest", "maxvit", "gcvit", "tinyvit", "davit"])
def test_what_is_outside_the_window_is_not_seen(name: str) -> None:
    """No softmax gives zero inside a window, and nothing gives more outside."""
    model, batch = make(name), batch_of(name)
    layers = [c for c in captured(model, batch) if c.kind in ("window", "global-query") and c.geometry is not None]
    assert any(c.geometry is not None and c.geometry.groups > 1 for c in layers)
    for layer in layers:
        data = attention_queries([model], batch, Queries(layer.name)).data
        exact, seen = by_hand(layer)
        assert np.array_equal(data["seen"].values[0], seen)
        assert np.array_equal(exact[0] > 0, seen) and np.allclose(read_back(data), exact, atol=float(exact.max()) / 500)
        several = layer.geometry is not None and layer.geometry.groups > 1
        assert (" window or grid" in str(data["own"].values[0])) == several == (not seen.all())


def test_one_row_of_scores_stands_for_all_queries_of_its_group() -> None:
    geometry = of_pixels((4, 6), (2, 2))
    weights = torch.rand(2 * 4, 3, 1, 6, generator=torch.Generator().manual_seed(0)).softmax(-1)
    rows = query_rows(weights, geometry)
    for y, x in ((0, 0), (3, 5), (2, 1)):
        assert torch.equal(rows[:, 6 * y + x], query_map(weights, geometry, y=y, x=x).mean(1).flatten(1))
    assert torch.equal(rows[:, 0], rows[:, 2]) and not torch.equal(rows[:, 0], rows[:, 1])


def test_rows_are_refused_where_only_a_class_token_asks(samples: Batch) -> None:
    geometry = of_patches((2, 3)).with_prefix(7, class_token=True)
    with pytest.raises(InputError, match="no position asks"):
        query_rows(torch.full((1, 2, 1, 7), 1 / 7), geometry)
    model = net("cait")
    layer = next(name for name, kind in attention_layers(model).items() if kind == "class")
    with pytest.raises(InputError, match="is the class token: no patch asks"):
        attention_queries([model], samples[:1], Queries(layer))


@pytest.mark.parametrize("prefix", [0, 1])
def test_rows_of_pooled_grids_are_the_maps_of_their_queries(prefix: int) -> None:
    pooled: Geometry = of_pooled((2, 3), (4, 6)).with_prefix(24 + prefix, class_token=prefix > 0)
    weights = torch.randn(2, 3, 6 + prefix, 24 + prefix, generator=torch.Generator().manual_seed(1)).softmax(-1)
    rows = query_rows(weights, pooled)
    assert rows.shape == (2, 6, 24) and torch.equal(rows, weights[:, :, prefix:, prefix:].mean(1))
    assert torch.equal(rows[:, 5], query_map(weights, pooled, y=1, x=2).mean(1).flatten(1))


def test_models_of_different_grids_share_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    models, batch = [make("pvt_linear"), make("levit"), make("nest")], batch_of("pvt_linear")
    apart = [attention_queries([model], batch).data for model in models]
    data = attention_queries(models, batch).data
    for m, alone in enumerate(apart):
        assert np.allclose(read_back(data, m), read_back(alone)) and np.array_equal(
            data["asks"].values[m], alone["asks"].values[0]
        )
        down, across = read_back(alone).shape[1:]
        for name in ("rows", "seen"):
            padded = data[name].values[m].reshape(-1, *data[name].shape[-2:])
            assert not padded[:, down:].any() and not padded[:, :, across:].any()
    assert [tuple(grid) for grid in data["asks"].values.tolist()] == [(2, 2), (4, 4), (8, 8)]
    assert [tuple(grid) for grid in data["size"].values.tolist()] == [(7, 7), (4, 4), (8, 8)]
    monkeypatch.setattr(queries, "MOST", 16 * 16)
    few = attention_queries(models, batch).data
    assert [bool(grid.all()) for grid in few["asks"].values] == [True, True, False] and few["rows"].shape[2:] == (16, 49)
    assert "8 × 8 queries on 8 × 8 keys; the page holds at most 256 weights" in str(few["own"].values[2])


def test_gradient_weighted_attention_of_pooled_keys_lies_on_these() -> None:
    """Of all queries it is the sum of what it is of each; of a query it is that of its cell."""
    model, x, labels = make("pvt_linear"), of("pvt_linear"), torch.tensor([1, 2])
    layer = "stages.2.blocks.0.attn"
    whole = read(model, x, labels, method="weighted", how=How(layer)).maps
    each = [
        read(model, x, labels, method="weighted", how=How(layer, query=(16 * y + 3, 16 * x_ + 9))).maps
        for y in range(4)
        for x_ in range(4)
    ]
    assert whole.shape == (2, 7, 7) and float(whole.max()) > 0
    assert torch.allclose(torch.stack(each).sum(0), whole, rtol=1e-4, atol=1e-6 * float(whole.max()))
    assert not torch.allclose(each[0], each[-1], rtol=1e-2)


def test_maps_that_are_not_finite_say_so() -> None:
    model = make("pvt")
    with torch.no_grad():
        for name, p in model.net.named_parameters():
            if name.startswith("stages.3.blocks.1.attn.q"):
                p.fill_(float("inf"))
    with pytest.raises(InputError, match="are not finite"):
        attend([model], batch_of("pvt"), Attend(("raw",)))


def test_the_page_knows_how_far_padded_patches_reach() -> None:
    arch, args = NETS["vit_any"]
    x = torch.rand(2, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, torch.zeros(2, dtype=torch.long), ("a", "b"), tuple(map(str, range(10))))
    padded = wrap(build(arch, num_classes=10, arch_args=args), size=30)
    result = attention_queries([padded], batch)
    assert result.data["asks"].values.tolist() == [[4, 4]] and result.data["covers"].values.tolist() == [[32, 32]]
    assert f'"reach": [{32 / 30}, {32 / 30}]' in page(result)
    tiled = attention_queries(
        [net("vit")], Batch(torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.long), ("a",), batch.classes)
    )
    assert tiled.data["covers"].values.tolist() == [[32, 32]] and '"reach": [1.0, 1.0]' in page(tiled)
