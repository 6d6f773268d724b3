"""Attention pools, differences of softmaxes, windows that overlap and derived weights: what they are, by their formulas."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import AttentionPoolLatent
from timm.models.coat import CoaT
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from timm.models.volo import VOLO
from torch import Tensor

from interp.attacks.pgd import PGD
from interp.attention.attend import Attend, attend
from interp.attention.capture import Captured, by_pieces, capture
from interp.attention.depth import ByLayer, attention_by_layer
from interp.attention.geometry import Geometry, of_overlapping, of_patches, of_windows
from interp.attention.heads import Heads, attention_heads
from interp.attention.layout import attention_layers, map_layer
from interp.attention.maps import dense, enlarge, place, query_map, query_rows, received_map
from interp.attention.queries import Queries, attention_queries
from interp.attention.readings import How, read
from interp.attention.rollout import gradient_weighted
from interp.attention.statistics import distance, divergence, diversity, entropy, focus, thinned
from interp.attention.watch import TooManyWeights
from interp.models.model import Model
from interp.robustness.shift import Shift, attention_shift
from interp.types import Batch, InputError
from tests.attention_nets import wrap
from tests.timm_nets import VIT, make, of

POOLS = ("map", "map_prefix", "map_with_prefix", "pe", "naflex_map", "clip", "clip_rot")
TARGETS = torch.tensor([1, 2])


def layers_of(model: Model, x: Tensor) -> list[Captured]:
    with torch.no_grad(), capture(model) as rec:
        model(x)
    return rec.layers


def placed(layer: Captured) -> Geometry:
    assert layer.geometry is not None
    return layer.geometry


# by the formulas of the papers


def inputs(model: Model, x: Tensor) -> dict[str, Tensor]:
    """What each attention layer is given."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.net.get_submodule(path).register_forward_pre_hook(lambda _m, a, path=path: seen.__setitem__(path, a[0]))
        for path in attention_layers(model)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def by_heads(t: Tensor, heads: int) -> Tensor:
    return t.unflatten(-1, (heads, -1)).transpose(1, 2)


def of_latent(module: Any, x: Tensor) -> Tensor:
    key = by_heads(module.kv(x)[..., : module.kv.out_features // 2], module.num_heads)
    query = by_heads(module.q(module.latent), module.num_heads)
    return (query @ key.mT / key.shape[-1] ** 0.5).softmax(-1)


def of_mean(module: Any, x: Tensor) -> Tensor:
    """CLIP's: positions are added to the mean and the patches, which stand at the size that the pool was built for."""
    tokens = x.flatten(2).mT
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + module.pos_embed
    query, key = (by_heads(m(tokens), module.num_heads) for m in (module.q, module.k))
    return (query[:, :, :1] @ key.mT / key.shape[-1] ** 0.5).softmax(-1)


def of_difference(module: Any, x: Tensor) -> Tensor:
    """Neighbouring heads of q and k are q₁ and q₂, k₁ and k₂ of one head; λ is that of eq. 2 of arXiv 2410.05258."""
    q, k, _ = (by_heads(t, 2 * module.num_heads) for t in module.qkv(x).chunk(3, -1))
    both = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    factor = (module.lambda_q1 @ module.lambda_k1).exp() - (module.lambda_q2 @ module.lambda_k2).exp() + module.lambda_init
    return both[:, 0::2] - factor * both[:, 1::2]


def of_factorised(module: Any, x: Tensor) -> Tensor:
    q, k, _ = (by_heads(t, module.num_heads) for t in module.qkv(x).chunk(3, -1))
    return q @ k.softmax(2).mT / q.shape[-1] ** 0.5


def of_linear(module: Any, x: Tensor) -> Tensor:
    scales = torch.cat([module.qkv(x), module.aggreg[0](module.qkv(x))], 1)
    q, k, _ = scales.flatten(2).unflatten(1, (-1, 3 * module.dim)).mT.relu().chunk(3, -1)
    return (q @ k.mT) / ((q @ k.mT).sum(-1, keepdim=True) + module.eps)


FORMULAS = {"map": of_latent, "pe": of_latent, "clip": of_mean, "diff": of_difference, "coat": of_factorised}
FORMULAS |= {"efficientvit": of_linear}


@pytest.mark.parametrize("name", FORMULAS)
def test_weights_are_those_of_the_papers_formula(name: str) -> None:
    model, x = make(name), of(name)
    given, kinds = inputs(model, x), attention_layers(model)
    last = [c for c in layers_of(model, x) if kinds[c.name] != "self"]
    assert last
    for c in last:
        with torch.no_grad():
            want = FORMULAS[name](model.net.get_submodule(c.name), given[c.name])
        assert torch.allclose(c.weights, want, atol=1e-5), c.name


# windows that overlap


def through(model: Model, x: Tensor, layer: str, head: int) -> tuple[Tensor, Tensor]:
    """What one head of a layer makes of its values at all positions, by `dense`, and what the module makes, (n, positions, d)."""
    module: Any = model.net.get_submodule(layer)
    given, kept = inputs(model, x)[layer], list[Tensor]()
    volo = hasattr(module, "proj")
    handle = (module.proj if volo else module.pool).register_forward_pre_hook(lambda _m, a: kept.append(a[0]))
    (c,) = (c for c in layers_of(model, x) if c.name == layer)
    handle.remove()
    with torch.no_grad():
        if volo:
            values = module.v(given).flatten(1, 2).unflatten(2, (module.num_heads, -1))[:, :, head]
            made = kept[0].flatten(1, 2).unflatten(2, (module.num_heads, -1))[:, :, head]
        else:
            values = module.kv(given).unflatten(1, (module.num_heads, -1))[:, head, module.dim_head_qk :].flatten(2).mT
            made = kept[0].unflatten(1, (module.num_heads, -1))[:, head].flatten(2).mT
    return dense(c.weights[:, head], placed(c)) @ values, made


@pytest.mark.parametrize("name", ["volo", "volo wide", "halo", "halo wide"])
def test_overlapping_windows_as_one_matrix_make_what_the_layer_makes(name: str) -> None:
    """Σ over windows of weights · values at every position: fold of VOLO, blocks of HaloNet; squares or not."""
    model = make(name.split()[0])
    if name == "volo wide":
        torch.manual_seed(0)
        model = wrap(
            VOLO((1, 1, 1, 1), img_size=(64, 96), embed_dims=(16, 32, 32, 32), num_heads=(2,) * 4, num_classes=10).eval()
        )
    x = torch.rand(3, 3, 64, 96 if "wide" in name else 64, generator=torch.Generator().manual_seed(4))
    layer = "network.0.0.attn" if "volo" in name else "stages.1.1.self_attn"
    for head in (0, 1):
        got, want = through(model, x, layer, head)
        assert want.abs().max() > 0 and torch.allclose(got, want, atol=1e-5 * float(want.abs().max()))


def overlapping() -> dict[str, Geometry]:
    halo = of_overlapping((8, 12), 8, stride=4, padding=2)
    return {
        "outlook": of_overlapping((7, 10), 3, stride=2, padding=1),
        "stride 1": of_overlapping((4, 5), 3, stride=1, padding=1),
        "halo": Geometry(halo.size, halo.places, asking=of_windows((8, 12), (4, 4), (0, 0))),
        "strided halo": Geometry(halo.size, halo.places, asking=of_windows((4, 6), (2, 2), (0, 0))),
    }


@pytest.mark.parametrize("name", overlapping())
def test_maps_of_overlapping_windows_are_sums_over_them(name: str) -> None:
    geometry = overlapping()[name]
    asking = geometry.queries
    shape = 2 * geometry.groups, 3, asking.places.shape[1], geometry.places.shape[1]
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(3)).softmax(-1)
    want = torch.zeros(2, 3, asking.positions, geometry.positions)
    for group, (queries, keys) in enumerate(zip(asking.places.tolist(), geometry.places.tolist(), strict=True)):
        for a, query in enumerate(queries):
            for b, key in enumerate(keys):
                if query >= 0 and key >= 0:
                    want[:, :, query, key] += weights[group :: geometry.groups, :, a, b]
    each = [query_map(weights, geometry, y=y, x=x).flatten(2) for y in range(asking.size[0]) for x in range(asking.size[1])]
    assert torch.allclose(torch.stack(each, 2), want, atol=1e-6)
    assert torch.allclose(query_rows(weights, geometry), want.mean(1), atol=1e-6)
    assert torch.allclose(received_map(weights, geometry).flatten(2), want.mean(2), atol=1e-6)
    if geometry.one_grid:
        assert torch.allclose(dense(weights[:, 1], geometry), want[:, 1], atol=1e-6)
    else:
        with pytest.raises(InputError, match="no weights of tokens on the same tokens"):
            dense(weights[:, 1], geometry)


def test_a_position_counts_by_the_mean_over_its_windows() -> None:
    """Distances by hand: every position's rows, each divided by its sum inside the image."""
    geometry = overlapping()["outlook"]
    assert float(geometry.share.sum()) == pytest.approx(70)
    assert torch.allclose(place(geometry.share[None, :, None], geometry), torch.ones(()))
    weights = torch.rand(geometry.groups, 1, 9, 9, generator=torch.Generator().manual_seed(3)).softmax(-1)
    by_position: dict[int, list[float]] = {}
    for group, tokens in enumerate(geometry.places.tolist()):
        for a, query in enumerate(tokens):
            row = [(float(weights[group, 0, a, b]), key) for b, key in enumerate(tokens) if key >= 0]
            apart = [w * math.hypot(8 * (query // 10 - key // 10), 4 * (query % 10 - key % 10)) for w, key in row]
            if query >= 0:
                by_position.setdefault(query, []).append(sum(apart) / sum(w for w, _ in row))
    want = sum(sum(found) / len(found) for found in by_position.values()) / 70
    assert float(distance(weights, geometry, (56, 40))) == pytest.approx(want, rel=1e-5)
    assert float(entropy(torch.full_like(weights, 1 / 9), geometry)) == pytest.approx(1)


# attention pools


@pytest.mark.parametrize("name", POOLS)
def test_the_map_of_a_pool_is_the_row_of_its_one_query(name: str) -> None:
    model, x = make(name), of(name, 3)
    pool = layers_of(model, x)[-1]
    geometry = placed(pool)
    assert pool.weights.shape[-2] == 1 and not pool.skip and pool.kind == ("mean" if "clip" in name else "latent")
    raw = read(model, x)
    who = "the mean of the patches" if pool.kind == "mean" else "a learnt latent"
    assert f"attention from {who} to the patches" in raw.how
    assert torch.equal(raw.maps.flatten(1), pool.weights[:, :, 0, geometry.prefix :].mean(1))
    one = read(model, x[1:2])
    assert torch.allclose(one.maps[0], raw.maps[1], atol=1e-5)
    assert distance(pool.weights, geometry, (32, 32)).isnan().all()
    assert float(entropy(torch.full_like(pool.weights, 1 / pool.weights.shape[-1]), geometry).mean()) == pytest.approx(1)
    for method in ("raw", "weighted"):
        with pytest.raises(InputError, match=rf"the only query of layer .* is {who}: no other position asks"):
            read(model, x, method=method, how=How(layer=pool.name, query=(5, 9)))
    with pytest.raises(InputError, match=f"is {who}"):
        attention_queries([model], Batch(x[:1], torch.tensor([0]), ids=("a",)), Queries(layer=pool.name))


@pytest.mark.parametrize("name", ["map", "map_prefix", "map_with_prefix", "pe", "prr", "prr_avg"])
def test_roll_out_and_relevance_go_through_a_pool_without_a_skip_connection(name: str) -> None:
    """R of the blocks by the papers' formulas; behind it A·R and Ā·R, the pool's tokens being those of the blocks or the last."""
    model, x = make(name), of(name)
    with capture(model, gradients=True) as rec:
        score = model(x.requires_grad_(True)).gather(1, TARGETS[:, None]).sum()
    *blocks, pool = rec.layers
    *weighted, through_pool = gradient_weighted(rec.layers, score)
    prefix, size = placed(blocks[0]).prefix, placed(pool).size
    flow = relevance = torch.eye(blocks[0].weights.shape[-1])
    for block, matrix in zip(blocks, weighted, strict=True):
        flow = (0.5 * block.weights.mean(1) + 0.5 * torch.eye(len(flow[-1]))) @ flow
        relevance = relevance + matrix @ relevance
    seen = slice(len(flow[-1]) - pool.weights.shape[-1], None)
    flow, relevance = pool.weights.mean(1) @ flow[:, seen], through_pool @ relevance[:, seen]
    if name == "prr_avg":
        flow, relevance = flow.mean(1, keepdim=True), relevance.sum(1, keepdim=True)
    for method, want in (("rollout", flow), ("chefer", relevance)):
        reading = read(model, x.detach(), TARGETS, method=method)
        assert torch.allclose(reading.maps, want[:, 0, prefix:].unflatten(1, size), rtol=1e-4, atol=1e-6), method
        assert "3 layers (all blocks)" in reading.how
    whole = read(model, x.detach(), method="rollout", how=How(residual=1.0))
    rows = pool.weights.mean(1)[:, :, placed(pool).prefix :]
    first = rows.mean(1) if name == "prr_avg" else rows[:, 0]
    assert torch.allclose(whole.maps.flatten(1), first, atol=1e-6)
    if not name.startswith("prr"):
        with pytest.raises(InputError, match="a learnt latent: no other position asks"):
            read(model, x.detach(), method="rollout", how=How(query=(5, 9)))


def test_a_pool_of_several_latents_is_captured_and_not_drawn() -> None:
    model, x = copy.deepcopy(make("map")), of("map")
    torch.manual_seed(0)
    model.net.attn_pool = AttentionPoolLatent(32, num_heads=2, latent_len=3, pool_type="avg").eval()
    pool = layers_of(model, x)[-1]
    assert pool.weights.shape == (2, 2, 3, 16) and pool.geometry is None
    assert torch.allclose(pool.weights @ pool.values, pool.output, atol=1e-5)
    with pytest.raises(InputError, match="attn_pool is latent attention and cannot be drawn"):
        read(model, x, method="raw")


# readings


@pytest.mark.parametrize("name", ["diff", "diff_parallel", "coat", "coat_parallel"])
def test_weights_of_any_sign_are_read_by_their_absolute_value_and_say_so(name: str) -> None:
    model, x = make(name), of(name)
    (last,) = layers_of(model, x)[-1:]
    asked = read(model, x, method="raw", how=How(query=(5, 9)))
    y, column = placed(last).at(5, 9, (x.shape[-2], x.shape[-1]))
    assert torch.allclose(asked.maps, query_map(last.weights.abs(), placed(last), y=y, x=column).mean(1))
    assert "absolute" in asked.how and "any sign" in asked.how
    assert ("derived from its factorised attention" in asked.how) == name.startswith("coat")
    if name.startswith("coat"):
        for method in ("rollout", "chefer"):
            with pytest.raises(InputError, match="are no shares"):
                read(model, x, method=method)
    else:
        assert "absolute" in read(model, x, method="rollout").how


@pytest.mark.parametrize("name", ["diff", "coat"])
def test_absolute_values_come_before_the_mean_over_queries(name: str) -> None:
    """Where one query gives a key w and another −w, the attention received is |w| and not 0."""
    model, x = make(name), of(name)
    kinds = attention_layers(model)
    layer = next(c for c in layers_of(model, x) if not placed(c).class_token and kinds[c.name] in ("difference", "factorised"))
    geometry, size = placed(layer), (x.shape[-2], x.shape[-1])
    want = received_map(layer.weights.abs(), geometry)
    assert not torch.allclose(want, received_map(layer.weights, geometry).abs(), rtol=0.05)
    assert torch.allclose(read(model, x, method="raw", how=How(layer=layer.name)).maps, want.mean(1))
    batch = Batch(x, torch.tensor([0, 1]), ids=("a", "b"), masks=torch.zeros(2, *size, dtype=torch.bool))
    assert batch.masks is not None
    batch.masks[:, :20, :9] = True
    shown = attention_heads([model], batch, Heads((layer.name,))).data["head"].values[0].swapaxes(0, 1)
    large = enlarge(want, size)
    assert np.allclose(shown, large / large.mean((2, 3), keepdim=True), atol=1e-4)
    numbers = attention_by_layer([model], batch).data
    k = list(numbers["layer"].values[0]).index(layer.name)
    assert np.allclose(numbers["values_focus"].values[0, k], focus(enlarge(want.mean(1), size), batch.masks), atol=1e-5)


def test_class_tokens_of_coat_count_where_the_head_reads_them() -> None:
    read_ = {name: [placed(c).class_token for c in layers_of(make(name), of(name))] for name in ("coat", "coat_parallel")}
    assert read_ == {"coat": [False] * 4 + [True] * 2, "coat_parallel": [False] + [True] * 6}


def test_no_class_token_of_coat_counts_where_the_head_reads_the_mean_of_the_patches() -> None:
    size: dict[str, Any] = {
        "img_size": 64,
        "embed_dims": (16, 32, 32, 32),
        "serial_depths": (1,) * 4,
        "num_heads": 2,
        "patch_size": 4,
    }
    model = wrap(CoaT(num_classes=10, crpe_window={3: 1, 5: 1}, global_pool="avg", **size).eval(), 64)
    x = of("coat")
    assert not any(placed(c).class_token for c in layers_of(model, x)) and placed(layers_of(model, x)[-1]).prefix == 1
    assert read(model, x).how.startswith("attention received, mean over queries, derived")
    last = layers_of(model, x)[-1]
    assert torch.allclose(read(model, x).maps, received_map(last.weights.abs(), placed(last)).mean(1))


@pytest.mark.parametrize("name", ["map_prefix", "clip", "diff", "halo", "volo", "efficientvit", "coat", "prr"])
def test_every_analysis_and_method_gives_maps_or_a_reason(name: str) -> None:
    model, batch = make(name), Batch(of(name), torch.tensor([0, 1]), ids=("a", "b"))
    methods = ("auto", "raw", "weighted", "rollout", "chefer", "gradcam")
    data = attend([model], batch, Attend(methods)).data
    for k, method in enumerate(methods):
        maps, how = data["map"].values[0, k], str(data["how"].values[0, k])
        refused = name == "coat" and method in ("rollout", "chefer")
        assert np.isnan(maps).all() if refused else np.isfinite(maps).all() and maps.min() >= 0, how
        assert how.startswith("not read: ") == refused
    found = attention_by_layer([model], batch).data
    kinds = list(found["kind"].values[0])
    assert sorted(kinds) == sorted(attention_layers(model).values())
    one = np.array([kind in ("latent", "mean", "class") for kind in kinds])
    assert np.array_equal(np.isnan(found["distance"].values[0]), one) and np.isfinite(found["entropy"].values).all()
    assert ((found["entropy"].values > 0) & (found["entropy"].values <= 1)).all()
    assert np.isfinite(attention_heads([model], batch).data["head"].values).any((2, 3, 4)).any(1).all()
    if name != "clip":
        assert np.allclose(attention_queries([model], batch).data["rows"].values.max(-1), 255)


@pytest.mark.parametrize("name", ["halo", "volo", "coat", "diff", "efficientvit"])
def test_rows_of_the_page_are_shares_where_the_kind_sums_to_any_number(name: str) -> None:
    """Σ over keys of weight × keys ÷ keys = 1: what attention spread evenly has, whatever the sum of the layer's own rows."""
    model, batch = make(name), Batch(of(name), torch.tensor([0, 1]), ids=("a", "b"))
    layer = {"volo": "network.0.0.attn"}.get(name)
    data = attention_queries([model], batch, Queries(layer)).data
    rows, peak = data["rows"].values[0] / 255, data["peak"].values[0]
    sums = (rows * peak[..., None]).sum(-1) / rows.shape[-1]
    assert np.allclose(sums, 1, atol=0.02)
    assert ("each row divided by its sum" in str(data["own"].values[0])) == (name != "efficientvit")


@pytest.mark.parametrize("depth", [1, 2])
def test_attentions_side_by_side_are_read_one_by_one_and_not_chained(depth: int) -> None:
    torch.manual_seed(0)
    net = VisionTransformer(block_fn=ParallelThingsBlock, num_classes=10, **{**VIT, "depth": depth}).eval()
    model, x = wrap(net), of("diff")
    assert list(attention_layers(model)) == [f"blocks.{k}.attns.{b}.attn" for k in range(depth) for b in (0, 1)]
    for method in ("rollout", "chefer"):
        with pytest.raises(InputError, match=r"cannot be multiplied .* side by side"):
            read(model, x, method=method)
    assert "blocks." in read(model, x, method="raw").how
    given = list[Tensor]()
    handle = net.blocks[-1].register_forward_pre_hook(lambda _m, a: given.append(a[0].requires_grad_(True)))
    score = model(x).gather(1, TARGETS[:, None]).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, given)
    want = (gradient[:, 1:].mean(1, keepdim=True) * given[0][:, 1:]).sum(2).relu().unflatten(1, (4, 4))
    cam = read(model, x, TARGETS, method="gradcam")
    assert torch.allclose(cam.maps, want.detach(), atol=1e-6) and want.max() > 0 and map_layer(model) in cam.how


def test_windows_and_grids_side_by_side_are_not_chained() -> None:
    model, x = make("maxvit_parallel"), of("maxvit_parallel")
    with pytest.raises(InputError, match="within windows and within grids run side by side"):
        read(model, x, method="rollout")


# numbers


def test_rows_of_zeros_count_in_no_mean() -> None:
    geometry = of_patches((2, 2))
    weights = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(3)).softmax(-1)
    weights[:, :, 2:] = 0
    part, alone = weights[:, :, :2], Geometry(geometry.size, geometry.places, asking=Geometry((2, 2), geometry.places[:, :2]))
    assert torch.allclose(distance(weights, geometry, (8, 8)), distance(part, alone, (8, 8)))
    assert torch.allclose(entropy(weights, geometry), entropy(part, alone)) and torch.allclose(entropy(weights), entropy(part))
    weights[:, 1] = 0
    for measured in (distance(weights, geometry, (8, 8)), entropy(weights, geometry), entropy(weights)):
        assert measured.isnan().tolist() == [[False, True]]


def test_thinned_weights_are_those_of_evenly_spaced_queries() -> None:
    grid = of_patches((4, 6)).with_prefix(25, class_token=True)
    weights = torch.rand(2, 3, 25, 25, generator=torch.Generator().manual_seed(3)).softmax(-1)
    assert thinned(weights, grid, most=3 * 25 * 25)[0] is weights
    few, fewer = thinned(weights, grid, most=3 * 25 * 7)  # a fourth, which shares a factor with the columns: a fifth
    assert fewer is not None and fewer.fits(few, 2) and fewer.queries.places.tolist() == [[0, 5, 10, 15, 20]]
    rows = [0, 1, 6, 11, 16, 21]
    assert torch.equal(few, weights[:, :, rows])
    assert torch.allclose(diversity(few, fewer), diversity(weights[:, :, rows]))
    other = weights.flip(0)
    assert torch.allclose(divergence(few, thinned(other, grid, most=525)[0], fewer), divergence(few, other[:, :, rows]))
    assert torch.equal(thinned(weights, None, most=3 * 25 * 7)[0], weights[:, :, ::4])


def test_uniform_attention_has_the_distance_that_stands_beside_each_layer() -> None:
    for name in ("coat", "halo", "volo", "map_prefix"):
        model, x = make(name), of(name)
        uniform = attention_by_layer([model], Batch(x, torch.tensor([0, 1]), ids=("a", "b"))).data["distance_uniform"].values[0]
        size = (x.shape[-2], x.shape[-1])
        whole = [distance(torch.ones_like(c.weights), placed(c), size).mean().item() for c in layers_of(model, x)]
        assert np.allclose(uniform, whole, rtol=1e-5, equal_nan=True)


def test_outlook_and_halo_layers_say_how_far_they_see() -> None:
    volo = read(make("volo"), of("volo"), how=How(layer="network.0.0.attn"))
    assert "only within windows, added up where these overlap" in volo.how and volo.maps.shape == (2, 8, 8)
    halo = make("halo")
    assert "only of its block and a halo around it" in read(halo, of("halo")).how
    strided = read(halo, of("halo"), method="raw", how=How(layer="stages.1.0.self_attn", query=(63, 63)))
    assert "row 8, column 8 of 8 × 8" in strided.how and strided.maps.shape == (2, 16, 16)
    assert strided.maps[:, 10:, 10:].min() > 0 and not strided.maps[:, :10].any() and not strided.maps[:, :, :10].any()


def test_a_method_is_asked_for_once() -> None:
    with pytest.raises(InputError, match=r"methods are raw, raw; expected one or more of auto, raw, .*, each once"):
        Attend(("raw", "raw"))


def test_more_derived_weights_than_memory_is_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make("coat"), of("coat")
    monkeypatch.setattr("interp.attention.watch.MOST", 2 * 2 * 65**2)  # two images and heads of the second stage
    with pytest.raises(InputError, match=r"264196 weights would be derived.*Give fewer images"):
        layers_of(model, x)
    with torch.no_grad(), capture(model, layers=["serial_blocks2.0.factoratt_crpe"]) as rec:
        model(x)
    assert rec.layers[0].weights.shape == (2, 2, 65, 65)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.net.modules())


def test_pieces_are_halved_and_begun_again() -> None:
    tried: list[tuple[int, int]] = []

    def run(piece: slice, most: int = 2) -> list[int]:
        tried.append((piece.start, piece.stop))
        if piece.stop - piece.start > most:
            raise TooManyWeights("too many")
        return list(range(piece.start, piece.stop))

    assert by_pieces(run, 7, 5) == [[0, 1], [2, 3], [4, 5], [6]]
    assert tried == [(0, 5), (0, 2), (2, 4), (4, 6), (6, 7)]
    with pytest.raises(TooManyWeights):
        by_pieces(lambda piece: run(piece, 0), 3, 2)
    with pytest.raises(InputError, match="chunk is 0"):
        by_pieces(run, 3, 0)


def test_every_analysis_takes_fewer_images_where_weights_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image, or one pair of an attack, at a time gives what all at once give."""
    model, x = make("coat"), torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    batch, first = Batch(x, torch.tensor([0, 1, 2]), ids=("a", "b", "c")), "serial_blocks1.0.factoratt_crpe"
    shift = Shift((0.01, 0.02), PGD(0.02, steps=1), "raw")

    def found() -> list[tuple[str, np.ndarray]]:
        results = [
            (attention_by_layer([model], batch, ByLayer()), "values_diversity"),
            (attention_heads([model], batch), "head"),
            (attend([model], batch, Attend(("raw", "weighted"), layer=first)), "map"),
            (attention_queries([model], batch, Queries(first)), "peak"),
            (attention_shift([model], batch, shift), "values_divergence"),
            (attention_shift([model], batch, shift), "map"),
        ]
        return [(result.kind, result.data[name].values) for result, name in results]

    whole = found()
    monkeypatch.setattr("interp.attention.watch.MOST", 2 * 2 * 257**2)  # two images of two heads of the first stage
    with pytest.raises(TooManyWeights):
        layers_of(model, x)
    for (kind, want), (_, got) in zip(whole, found(), strict=True):
        assert np.isfinite(want).any() and np.allclose(got, want, rtol=1e-3, atol=1e-4, equal_nan=True), kind
