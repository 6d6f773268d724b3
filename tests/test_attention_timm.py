"""Attention of timm's other transformers: what is recorded goes on in the model, and stands where the model has it."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from interp.attention.attend import Attend, attend
from interp.attention.cam import cam
from interp.attention.capture import Captured, capture
from interp.attention.depth import attention_by_layer
from interp.attention.geometry import Geometry, of_patches, of_pooled
from interp.attention.heads import attention_heads
from interp.attention.layout import LAYOUTS, ONE, SIGNED, attention_layers, has_attention, layout_of, matching, module_at, why_not
from interp.attention.maps import dense, place, query_map, received_map
from interp.attention.places import parallel_grids
from interp.attention.queries import attention_queries
from interp.attention.readings import How, read
from interp.attention.rollout import last_stage, rollout
from interp.attention.statistics import distance, entropy
from interp.models.model import Model
from interp.types import Batch, Card, InputError, Preprocess
from tests.attention_nets import joined
from tests.timm_nets import MENDED, NETS, make, of

MOST = 2e-5  # of the largest number that is compared


def alike(a: Tensor, b: Tensor, most: float = MOST) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and bool((a - b).abs().max() <= most * max(1.0, float(b.abs().max())))


# what is recorded


def going_on(name: str, module: Any, given: Tensor) -> Tensor:
    """What a module gives to the projection of its heads, as tokens (rows, tokens, channels)."""
    if name == "shvit":  # beside the channels that do not attend
        given = given[:, : module.pdim]
    if type(module).__name__.startswith("Diff"):  # by heads, before each is divided by its root mean square
        return given.transpose(1, 2).flatten(2)
    if type(module).__name__.endswith("AttentionPool2d"):
        return given[:, :1]
    if given.ndim == 3:
        return given
    last = isinstance(projection(module), nn.Linear) or name == "nest"
    return given.flatten(1, -2) if last and name != "nest" else given.flatten(0, 1) if last else given.flatten(2).mT


def projection(module: Any) -> Any:
    names = ("sub_norm", "proj", "o_proj", "output", "attn_out_proj", "post_norm", "pool")
    return next(getattr(module, n) for n in names if hasattr(module, n))


def in_its_order(name: str, c: Captured, t: Tensor, module: Any) -> Tensor:
    """Outputs of heads (n·groups, heads, tokens, d) side by side, in the order of tokens and channels that the module has."""
    if name == "nest":  # channels of a head are apart
        return t.permute(0, 2, 3, 1).flatten(2)
    if type(module).__name__ in ("LocallyGroupedAttn", "OutlookAttention", "HaloAttn"):  # windows are laid back before
        rows = t.permute(0, 1, 3, 2).flatten(1, 2).unflatten(0, (-1, c.geometry.groups))  # type: ignore[union-attr]
        return place(rows, c.geometry.queries).flatten(2).mT  # type: ignore[union-attr]
    tokens = joined(c.kind, t)
    if name == "hiera":  # token j·units + u is the j-th of unit u
        return tokens.unflatten(0, (-1, c.geometry.groups)).transpose(1, 2).flatten(1, 2)  # type: ignore[union-attr]
    return tokens


def run(name: str, *, fused: bool) -> tuple[Model, list[Captured], dict[str, Tensor], Tensor]:
    """A pass with gradients: the layers, what each gives to its projection, and the logits, which are those without capture."""
    model, x = make(name), of(name)
    given: dict[str, Tensor] = {}
    for path in attention_layers(model):
        module: Any = model.net.get_submodule(path)
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
        projection(module).register_forward_pre_hook(lambda _m, a, path=path: given.__setitem__(path, a[0]))
    with torch.no_grad():
        before = model(x)
        with capture(model) as rec:
            assert torch.equal(model(x), before)
    assert [c.name for c in rec.layers] == sorted(attention_layers(model), key=[c.name for c in rec.layers].index)
    assert len(rec.layers) == len(attention_layers(model))
    if name == "msra":
        return model, rec.layers, given, before
    before = model(x.requires_grad_(True))
    with capture(model, gradients=True) as rec:
        logits = model(x)
    assert torch.equal(logits, before)
    return model, rec.layers, given, logits


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_what_is_recorded_goes_on_in_the_model(name: str, fused: bool) -> None:
    """Output = weights · values, which is what the projection is given, in value and in gradient; rows sum to 1."""
    model, layers, given, logits = run(name, fused=fused)
    most = 0.0
    for c in layers:
        module = model.net.get_submodule(c.name)
        assert c.weights.ndim == 4 and c.values.shape[:2] == c.weights.shape[:2] == c.output.shape[:2]
        assert alike(c.weights @ c.values, c.output.detach(), 1e-5), c.name
        if name != "iformer" and getattr(module, "upsample", None) is None:  # gated, or enlarged, before
            assert alike(in_its_order(name, c, c.output, module), going_on(name, module, given[c.name]), 1e-6), c.name
        if c.kind == "difference":  # arXiv 2410.05258, eq. 1 and 2
            factor = module._compute_lambda()
            assert alike(c.weights.sum(-1), (1 - factor).expand(c.weights.shape[:-1])), c.name
        elif c.kind not in SIGNED:
            most_off = 1e-4 if c.kind == "linear" else MOST  # its sums have 1e-5 added
            assert (c.weights >= 0).all() and alike(c.weights.sum(-1), torch.ones(c.weights.shape[:-1]), most_off), c.name
        most = max(most, float((c.weights - c.weights.mean(-1, keepdim=True)).abs().max()))
    assert any((c.weights < 0).any() for c in layers) == any(c.kind in SIGNED for c in layers)
    assert most > 0.05, "too uniform to test anything"
    if name in ("iformer", "msra"):
        return
    score = logits[:, 3].sum()
    found = torch.autograd.grad(score, [c.output for c in layers], retain_graph=True)
    wanted = torch.autograd.grad(score, [given[c.name] for c in layers])
    for c, gradient, want in zip(layers, found, wanted, strict=True):
        module: Any = model.net.get_submodule(c.name)
        assert want.abs().max() > 0
        if c.kind == "outlook":  # a gradient is that of each window that the position is in
            gradient = gradient * c.geometry.share.repeat(len(of(name)), 1)[:, None, :, None]  # type: ignore[union-attr]
        if getattr(module, "upsample", None) is None:
            assert alike(
                in_its_order(name, c, gradient, module) / want.abs().max(), going_on(name, module, want) / want.abs().max()
            )


@pytest.mark.parametrize("name", NETS)
def test_fused_weights_are_those_of_the_explicit_softmax(name: str) -> None:
    pairs = zip(run(name, fused=True)[1], run(name, fused=False)[1], strict=True)
    for fused, explicit in pairs:
        assert alike(fused.weights, explicit.weights, 5e-4) and alike(fused.values, explicit.values, 5e-4), fused.name


# where it stands


def spot(t: Tensor, size: tuple[int, int], y: int, x: int, how: str) -> tuple[Any, ...]:
    """The index of one position in what a module is given: an image, tokens, (n, c, h, w) or (n, h, w, c)."""
    if t.ndim == 4 and t.shape[1] == 3:
        h, w = t.shape[2] // size[0], t.shape[3] // size[1]
        return (..., slice(y * h, y * h + h), slice(x * w, x * w + w))
    if t.ndim == 3:
        return (slice(None), t.shape[1] - math.prod(size) + y * size[1] + x)
    return (..., y, x) if tuple(t.shape[2:]) == size and how in FIRST else (slice(None), y, x)


FIRST = {"channels_first", "windows_channels_first", "windows_as_built", "partition_channels_first", "multi_query", "fixed"}
FIRST |= {"shrinking", "halving", "halo"}


def teller(model: Model, layer: str) -> tuple[nn.Module, str]:
    """The module that tells where the tokens of a layer are, or the network, which is given the image, and how."""
    found = [
        (len(path), module, where.__name__)
        for path, module, owner, where in matching(model.net, layout_of(model).places)
        if where is not parallel_grids and (model.net.get_submodule(layer) in owner.modules() or path.startswith(layer))
    ]
    return max(found, key=lambda entry: entry[0])[1:] if found else (model.net, "image")


def disturbed(
    model: Model, x: Tensor, layer: str, at: tuple[int, int], size: tuple[int, int], told: tuple[nn.Module, str] | None = None
) -> Captured:
    """The layer of a pass in which one position of the map of `size`, as a module is told of it, is another."""
    module, how = told or teller(model, layer)

    def other(_m: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        t, noise = args[0].clone(), torch.Generator().manual_seed(5)
        where = spot(t, size, *at, how)
        t[where] += torch.randn(t[where].shape, generator=noise)
        return (t, *args[1:])

    handle = module.register_forward_pre_hook(other)
    with torch.no_grad(), capture(model, layers=[layer]) as rec:
        model(x)
    handle.remove()
    return rec.layers[0]


@pytest.mark.parametrize(
    ("name", "block", "layer"),
    [
        ("nest", "levels.0", "levels.0.transformer_encoder.0.attn"),
        ("metaformer", "stages.2.blocks.0", "stages.2.blocks.0.token_mixer"),
        ("efficientformer", "stages.3.blocks.1", "stages.3.blocks.1.token_mixer"),
        ("pit", "transformers.1.blocks.0", "transformers.1.blocks.0.attn"),
        ("efficientformerv2", "stages.3.downsample.attn", "stages.3.downsample.attn"),
        ("nextvit", "stages.3.blocks.1", "stages.3.blocks.1.e_mhsa"),
        ("botnet", "stages.2.1.self_attn", "stages.2.1.self_attn"),
        ("halo", "stages.1.0.self_attn", "stages.1.0.self_attn"),
        ("clip", "head", "head"),
        ("clip_rot", "head", "head"),
        ("map", "attn_pool", "attn_pool"),
        ("map_prefix", "attn_pool", "attn_pool"),
        ("map_with_prefix", "attn_pool", "attn_pool"),
        ("prr", "attn_pool", "attn_pool"),
        ("pe", "attn_pool", "attn_pool"),
        ("naflex_map", "attn_pool", "attn_pool"),
    ],
)
def test_a_position_of_a_block_moves_the_value_that_stands_there(name: str, block: str, layer: str) -> None:
    """As below, for blocks of which the module that tells is not given the map itself."""
    model, x = make(name), of(name, 1)
    with torch.no_grad(), capture(model, layers=[layer]) as rec:
        model(x)
    (c,) = rec.layers
    assert c.geometry is not None
    size = c.geometry.size
    for at in ((0, 1), (size[0] - 1, size[1] // 2)):
        other = disturbed(model, x, layer, at, size, (model.net.get_submodule(block), "channels_first"))
        moved = (other.values - c.values).abs().amax((1, 3))[:, c.geometry.prefix :]
        assert torch.equal(moved > 1e-6 * moved.max(), c.geometry.places == at[0] * size[1] + at[1]), at


# what is told of is no map as it is cut, or only that of the queries
UNTOLD = {
    "efficientformer",
    "efficientformerv2",
    "metaformer",
    "pit",
    "nest",
    "hiera",
    "tnt",
    "pvt_linear",
    "nextvit",
    "edgenext",
}
UNTOLD |= {"botnet"}  # whose last map is a mean over places
# 3 × 3 convolutions stand between the map and its tokens
NEAR = {"davit", "davit_v2", "mvit", "mvit_cls", "mobilenetv4", "csatv2"}
# norms over places, heads that run one after another, or convolutions before some heads
MIXING = {"shvit", "msra", "efficientvit"}


@pytest.mark.parametrize("name", sorted(NETS.keys() - UNTOLD))
def test_a_position_moves_the_value_and_the_row_that_stand_there(name: str) -> None:
    """Of the map that is cut into tokens: where it is changed, the value at that place changes, and the row that asks there."""
    model, x = make(name), of(name, 1)
    with torch.no_grad(), capture(model) as rec:
        model(x)
    seen = 0
    for c in rec.layers:
        geometry, image = c.geometry, teller(model, c.name)[1].startswith("image")
        assert geometry is not None
        size = max(geometry.size, geometry.queries.size)  # of the map before anything is pooled
        if c.kind == "channel" or (image and c is not rec.layers[0]) or min(size) < 2:
            continue
        seen += 1
        step = [s // k if name in NEAR else 1 for s, k in zip(size, geometry.size, strict=True)]  # to the middle of a kernel
        for y, x_ in {(0, 1), (size[0] - 1, size[1] - 2), (size[0] // 2, size[1] // 2)}:
            at = y // step[0] * step[0], x_ // step[1] * step[1]
            other = disturbed(model, x, c.name, at, size)
            moved = (other.values - c.values).abs().amax((1, 3))[:, geometry.prefix :]  # (groups, keys)
            row, column = at[0] * geometry.size[0] // size[0], at[1] * geometry.size[1] // size[1]
            here = geometry.places == row * geometry.size[1] + column
            if name in NEAR:
                down, right = geometry.places // geometry.size[1] - row, geometry.places % geometry.size[1] - column
                near = (down.abs() <= 1) & (right.abs() <= 1)
                assert not (moved[~near] > 1e-6 * moved.max()).any() and moved[here] > 1e-6 * moved.max(), (c.name, at)
            elif name in MIXING:
                assert here.flatten()[moved.flatten().argmax()], (c.name, at)
            else:
                assert torch.equal(moved > 1e-6 * moved.max(), here), (c.name, at)
                asks_where_it_stands(geometry, c, other, at, size)
    assert seen, "no layer was looked at"


def test_hieras_mask_units_are_squares_that_pool_to_squares() -> None:
    """Token k of the map before pooling goes to token k mod (tokens / 4) of the map behind it (arXiv 2306.00989)."""
    model = make("hiera")
    with torch.no_grad(), capture(model) as rec:
        model(of("hiera"))
    for c in rec.layers:
        assert c.geometry is not None
        for geometry in (c.geometry, c.geometry.queries):
            rows, columns = geometry.places // geometry.size[1], geometry.places % geometry.size[1]
            side = math.isqrt(geometry.places.shape[1])
            assert ((rows.amax(1) - rows.amin(1) == side - 1) & (columns.amax(1) - columns.amin(1) == side - 1)).all()
        if c.geometry.asking is not None:
            before, behind = c.geometry.places.T.flatten(), c.geometry.asking.places.T.flatten().repeat(4)  # in order of tokens
            wide, narrow = c.geometry.size[1], c.geometry.asking.size[1]
            assert torch.equal(before // wide // 2, behind // narrow) and torch.equal(before % wide // 2, behind % narrow)
    first = rec.layers[0]
    assert first.geometry is not None
    x = of("hiera")
    x[:, :, 20, 36] += 3.0  # the middle of the kernel of row 5 and column 9, beyond those beside it
    with torch.no_grad(), capture(model, layers=[first.name]) as rec:
        model(x)
    moved = (rec.layers[0].values - first.values).abs().amax((1, 3)).unflatten(0, (2, -1))[0]
    assert first.geometry.places.flatten()[moved.flatten().argmax()] == 5 * 16 + 9


def test_tnts_pixels_stand_inside_their_patch() -> None:
    model, x = make("tnt"), of("tnt", 1)
    with torch.no_grad(), capture(model, layers=["blocks.0.attn_in"]) as rec:
        model(x)
        first = rec.layers[0]
        x[:, :, 12:16, 24] += 3.0  # what only the kernel of row 3 and column 6 of the pixels sees
        model(x)
    moved = (rec.layers[0].values - first.values).abs().amax((1, 3))
    assert first.geometry is not None and first.geometry.size == (8, 8)
    assert first.geometry.places.flatten()[moved.flatten().argmax()] == 3 * 8 + 6


def asks_where_it_stands(geometry: Geometry, c: Captured, other: Captured, at: tuple[int, int], size: tuple[int, int]) -> None:
    """log A[i, j] − log A[i, k] moves for two keys that stayed only where query i moved."""
    asking = geometry.queries
    if c.kind in (*SIGNED, "linear", "outlook") or c.weights.shape[-1] - geometry.prefix < 4 or c.weights.shape[-2] == 1:
        return
    shift = (other.weights.double().log() - c.weights.double().log())[:, 0, asking.prefix :, geometry.prefix :]
    moved = (shift - shift.median(-1, keepdim=True).values).abs().median(-1).values  # (groups, queries)
    query = at[0] * asking.size[0] // size[0] * asking.size[1] + at[1] * asking.size[1] // size[1]
    if moved.max() > 1e-3:  # a pooled query may not have taken this position
        assert asking.places.flatten()[moved.flatten().argmax()] == query, (c.name, at)


@pytest.mark.parametrize("name", NETS)
def test_maps_of_every_layer_lie_on_its_grid(name: str) -> None:
    model, x = make(name), of(name)
    with torch.no_grad(), capture(model) as rec:
        model(x)
    for c in rec.layers:
        if c.geometry is None:
            assert name == "nextvit"
            continue
        for geometry in (c.geometry, c.geometry.queries):
            real = geometry.places[geometry.places >= 0]
            found = real.unique() if c.kind in ("halo", "outlook") else real.sort().values
            assert torch.equal(found, torch.arange(geometry.positions)), c.name
            assert float(geometry.share.sum()) == pytest.approx(geometry.positions)
        if c.kind in ("channel", *ONE):
            continue
        maps, asking = received_map(c.weights, c.geometry), c.geometry.queries
        assert maps.shape == (2, c.weights.shape[1], *c.geometry.size)
        each = [query_map(c.weights, c.geometry, y=y, x=x) for y in range(asking.size[0]) for x in range(asking.size[1])]
        assert torch.allclose(torch.stack(each).mean(0), maps, atol=1e-5), c.name


STAGES = {"pvt": [0, 1, 2, 3, 3], "mvit": [0, 1, 1], "tnt": [0, 1, 0, 1], "hiera": [0, 1, 1, 2, 2, 3, 3], "pit": [0, 1, 1]}


@pytest.mark.parametrize("name", STAGES)
def test_layers_whose_queries_share_tokens_are_one_stage(name: str) -> None:
    model = make(name)
    with torch.no_grad(), capture(model) as rec:
        model(of(name))
    assert [c.stage for c in rec.layers] == STAGES[name]


PREFIX = {"relpos_cls": (1, True), "vit22b": (1, True), "naflex": (4, False), "convit": (1, True), "tnt": (1, True)}
PREFIX |= {"map_with_prefix": (3, False), "prr": (1, True), "diff_parallel": (1, False), "pe": (1, False)}
PREFIX |= {"coat": (1, True), "coat_parallel": (1, True), "clip": (1, True), "clip_rot": (1, True)}
PREFIX |= {"pit": (1, True), "crossvit": (1, True), "mvit_cls": (1, True), "volo": (1, True)}


@pytest.mark.parametrize("name", NETS)
def test_class_tokens_are_known(name: str) -> None:
    model = make(name)
    with torch.no_grad(), capture(model) as rec:
        model(of(name))
    last = rec.layers[-1].geometry
    assert last is not None and (last.prefix, last.class_token) == PREFIX.get(name, (0, False))


# pooled keys


def pooled(queries: tuple[int, int] = (4, 6), keys: tuple[int, int] = (2, 3), *, prefix: int = 0) -> Geometry:
    geometry = of_pooled(queries, keys)
    return geometry.with_prefix(geometry.positions + prefix, class_token=prefix > 0)


def weights_of(geometry: Geometry, n: int = 2) -> Tensor:
    queries = geometry.prefix + geometry.queries.places.shape[1]
    shape = n * geometry.groups, 3, queries, geometry.prefix + geometry.places.shape[1]
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).mul(2).softmax(-1)


def test_grids_of_one_size_are_one_grid() -> None:
    assert of_pooled((4, 6), (4, 6)).asking is None and torch.equal(of_pooled((4, 6), (4, 6)).places, of_patches((4, 6)).places)


@pytest.mark.parametrize("prefix", [0, 1])
def test_maps_of_pooled_keys_lie_on_the_keys_and_are_asked_on_the_queries(prefix: int) -> None:
    geometry = pooled(prefix=prefix)
    weights = weights_of(geometry)
    one = query_map(weights, geometry, y=3, x=5)
    assert torch.equal(one, weights[:, :, prefix + 23, prefix:].view(2, 3, 2, 3))
    assert torch.allclose(received_map(weights, geometry), weights[:, :, prefix:, prefix:].mean(2).view(2, 3, 2, 3), atol=1e-6)
    assert geometry.at(31, 31, (32, 32)) == (3, 5)
    with pytest.raises(InputError, match="outside the grid"):
        query_map(weights, geometry, y=4, x=0)
    with pytest.raises(InputError, match=r"grid of \(4, 6\), its keys on one of \(2, 3\)"):
        dense(weights[:, 0], geometry)
    with pytest.raises(InputError, match=rf"1 or {24 + prefix}, {6 + prefix}"):
        received_map(weights[:, :, 1:], geometry)


def test_the_distance_to_a_pooled_key_is_that_to_its_centre() -> None:
    """All queries of a 2 × 2 cell look at their own: the mean of ‖(±4, ±4)‖ pixels; uniform rows have entropy 1."""
    geometry = pooled((4, 4), (2, 2))
    own = torch.zeros(1, 1, 16, 4)
    for query in range(16):
        own[0, 0, query, query // 4 // 2 * 2 + query % 4 // 2] = 1.0
    assert float(distance(own, geometry, (32, 32))) == pytest.approx(math.sqrt(32))
    assert float(entropy(torch.full((1, 1, 16, 4), 0.25), geometry)) == pytest.approx(1.0)


# readings


# but one, in which no place speaks for these classes
@pytest.mark.parametrize("name", sorted(NETS.keys() - {"map"}))
def test_grad_cam_works_at_the_familys_layer(name: str) -> None:
    model, x = make(name), of(name)
    if name == "hiera":  # whose small map is what is left of large terms
        model, x = model.double(), x.double()
    maps = cam(model, x, torch.tensor([1, 2]))
    assert maps.shape[0] == 2 and (maps >= 0).all() and maps.max() > 0
    if name != "gcvit" or MENDED:
        one = cam(model, x[1:], torch.tensor([2]))
        assert torch.allclose(one[0], maps[1], atol=1e-3 * float(maps.max()))  # what is left of larger terms differs by processor


@pytest.mark.parametrize("name", ["pvt", "twins", "mvit_cls", "hiera", "nest", "maxvit", "coatnet", "levit_conv", "tnt", "sam"])
def test_readings_of_hierarchies(name: str) -> None:
    model, x = make(name), of(name)
    for method in ("raw", "weighted", "rollout", "chefer"):
        reading = read(model, x, torch.tensor([1, 2]), method=method)
        assert torch.isfinite(reading.maps).all() and reading.maps.min() >= 0 and reading.maps.amax((1, 2)).min() > 0, reading.how
    asked = read(model, x, method="raw", how=How(query=(5, 9)))
    assert "attention of the patch in row" in asked.how and asked.maps.shape[0] == 2


def test_roll_out_begins_behind_the_last_layer_that_changes_the_grid() -> None:
    model = make("mvit")
    with torch.no_grad(), capture(model) as rec:
        model(of("mvit"))
    layers = last_stage(rec.layers)
    assert [c.name for c in layers] == ["stages.1.blocks.1.attn"]
    assert torch.allclose(rollout(layers, residual=0.0), layers[0].weights.mean(1), atol=1e-6)
    assert "one resolution" in read(model, of("mvit"), method="rollout").how
    linear = make("pvt_linear")  # whose last keys are 7 × 7 for queries of 2 × 2
    with pytest.raises(InputError, match=r"stages\.3\.blocks\.0\.attn, the last, stand on another grid"):
        read(linear, of("pvt_linear"), method="rollout")
    for method in ("raw", "weighted"):
        assert read(linear, of("pvt_linear"), method=method).maps.shape == (2, 7, 7)


@pytest.mark.parametrize(
    ("name", "method", "says"),
    [
        ("crossvit", "rollout", "two branches"),
        ("edgenext", "rollout", "no weights of tokens on tokens"),
        ("edgenext", "raw", "take channels"),
        ("edgenext", "weighted", "take channels"),
        ("msra", "chefer", "one after another"),
    ],
)
def test_what_is_undefined_is_refused_with_its_reason(name: str, method: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read(make(name), of(name), torch.tensor([1, 2]), method=method)


@pytest.mark.parametrize("method", ["weighted", "chefer"])
def test_a_query_behind_which_the_head_reads_the_class_token_alone_is_refused(method: str) -> None:
    """The last layer's patch rows do not reach the logit; chefer has others where the last stage has more than one layer."""
    asked, one = How(query=(5, 9)), make("mvit_cls")
    with pytest.raises(InputError, match="the head reads the class token alone, so that no row of a patch"):
        read(one, of("mvit_cls"), method=method, how=asked)
    assert read(one, of("mvit_cls"), method="raw", how=asked).maps.amax((1, 2)).min() > 0
    pooled = read(make("relpos"), of("relpos"), method=method, how=asked)
    assert pooled.maps.max() > 0
    two, x = make("relpos_cls"), of("relpos_cls")
    if method == "weighted":
        with pytest.raises(InputError, match="the head reads the class token alone"):
            read(two, x, method=method, how=asked)
    first = next(iter(attention_layers(two)))
    assert read(two, x, method=method, how=How(first if method == "weighted" else None, query=(5, 9))).maps.max() > 0


def test_queries_of_the_whole_image_are_named_so() -> None:
    """GCViT: every second layer; each says that it sees its window alone, as those of Swin's kind do."""
    model, x = make("gcvit"), of("gcvit")
    kinds = attention_layers(model)
    shared = [path for path in kinds if model.net.get_submodule(path).use_global]
    assert shared and {path for path, kind in kinds.items() if kind == "global-query"} == set(shared) != set(kinds)
    for query in (None, (5, 9)):
        for path in kinds:
            how = read(model, x, method="raw", how=How(path, query=query)).how
            assert ("queries of the whole image, the same in every window" in how) == (path in shared)
            with torch.no_grad(), capture(model, layers=[path]) as rec:
                model(x)
            geometry = rec.layers[0].geometry
            assert geometry is not None and ("only within its window or grid" in how) == (geometry.groups > 1)
    assert any("only within" in read(make(name), of(name), method="raw").how for name in ("swincr", "nest"))
    assert "only within" not in read(make("pvt"), of("pvt"), method="raw").how


def test_layers_that_attend_and_are_not_captured_are_named() -> None:
    model, x = built("lamhalobotnet50ts_256", 128, img_size=128), torch.rand(1, 3, 128, 128)
    for method in ("auto", "raw", "weighted"):
        assert re.search(r"not captured: lambda layers.* \(stages.* and 1 more\)", read(model, x, method=method).how)
    assert "not captured" not in read(model, x, method="gradcam").how
    batch = Batch(x, torch.tensor([0]), ids=("a",))
    assert "not captured: lambda layers" in str(attention_queries([model], batch).data["own"].values[0])
    assert "not captured" not in read(make("pvt"), of("pvt"), method="raw").how


@pytest.mark.parametrize("name", ["pvt", "hiera", "davit", "maxvit_parallel", "nextvit"])
def test_analyses_run_over_every_kind(name: str) -> None:
    model, x = make(name), of(name)
    batch = Batch(x, torch.tensor([0, 1]), ids=("a", "b"))
    layers = attention_by_layer([model], batch).data
    assert layers["layer"].size == len(attention_layers(model))
    assert attention_heads([model], batch).data.sizes["image"] == 2
    if name in ("pvt", "hiera", "davit", "nextvit"):
        assert attention_queries([model], batch).data["rows"].shape[:2] == (1, 2)


# every family of timm

REFUSED = {
    "swiftformer_xs": "additive",
    "efficientvim_m1": "state space",
    "focalnet_tiny_srf": "convolutions",
    "lambda_resnet26t": "form no weights",
    "bat_resnext26ts": "bilinear",
}


@pytest.mark.parametrize("arch", REFUSED)
def test_families_that_only_seem_to_attend_are_refused_with_the_reason(arch: str) -> None:
    model = built(arch, 256 if "26t" in arch else 224)
    with pytest.raises(InputError, match=rf"{REFUSED[arch]}[\s\S]*Grad-CAM"):
        attention_layers(model)
    x = torch.rand(1, 3, model.card.preprocess.size, model.card.preprocess.size)
    batch = Batch(x, torch.tensor([0]), ids=("a",))
    data = attend([model], batch, Attend(("raw", "auto"))).data
    assert re.search(REFUSED[arch], str(data["how"].values[0, 0])) and "Grad-CAM" in str(data["how"].values[0, 1])
    for analysis in (attention_queries, attention_by_layer):
        with pytest.raises(InputError, match=REFUSED[arch]):
            analysis([model], batch)  # type: ignore[operator]


def built(arch: str, size: int, **args: Any) -> Model:
    if not timm.is_model(arch):
        pytest.skip(f"timm {timm.__version__} has no {arch}")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own, of deprecated names
        net = timm.create_model(arch, num_classes=10, **args).eval()
    return Model(net, Card(id="t", arch=arch, num_classes=10, preprocess=Preprocess(size, size)))


SMALL = (
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "xxt",
    "_s0",
    "_b0",
    "_m0",
    "tiny",
    "_ti",
    "mini",
    "_t",
    "xs",
    "small",
    "_s",
)
SHRUNK: dict[str, tuple[str, int, dict[str, Any]]] = {  # families whose smallest model is large
    "deepseek_vit": ("deepseek_vit_412m", 28, {"img_size": 28, "depth": 2}),
    "qwen3_vit": ("qwen3_vit_306m", 64, {"img_size": 64, "depth": 2}),
    "gemma4_vit": ("gemma4_vit_167m", 64, {"img_size": 64, "depth": 2}),
    "mobilenetv5": ("mobilenetv5_300m", 64, {}),
    "hieradet_sam2": ("sam2_hiera_tiny", 128, {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", 224, {"depth": 2}),
    "naflexvit": ("naflexvit_base_patch16_gap", 64, {"depth": 2}),
    "beit": ("beit_base_patch16_224", 224, {"depth": 2}),
    "vitamin": ("vitamin_small_224", 64, {"img_size": 64}),
}


def smallest(family: str) -> str:
    def by_name(arch: str) -> tuple[int, int, str]:
        return next((k for k, part in enumerate(SMALL) if part in arch), len(SMALL)), len(arch), arch

    return min(timm.list_models(module=family), key=by_name)


@pytest.mark.slow
@pytest.mark.parametrize("family", timm.list_modules())
def test_every_family_of_timm_is_captured_or_refused_with_a_reason(family: str) -> None:
    arch, size, args = SHRUNK.get(family, (smallest(family), 0, {}))
    model = built(arch, size or timm.get_pretrained_cfg(arch).input_size[-1], **args)
    x = torch.rand(1, 3, model.card.preprocess.size, model.card.preprocess.size)
    if not has_attention(model):
        assert "Grad-CAM" in why_not(model)
        with pytest.raises(InputError, match=r"Grad-CAM"):
            attention_layers(model)
        return
    with torch.no_grad():
        before = model(x)
        with capture(model) as rec:
            assert torch.equal(model(x), before)
    assert {c.name for c in rec.layers} == set(attention_layers(model))
    for c in rec.layers:
        assert alike(c.weights @ c.values, c.output), c.name


# families that came after the oldest timm that is allowed
NEWER = {"cpubone", "iformer", "lowformer", "deepseekvitclassifier", "qwen3vitclassifier", "gemma4vitclassifier"}


def test_rows_name_classes_that_timm_has() -> None:
    """A misspelt name would never be found, and the family be taken for one without attention."""
    classes = {name for module in list(sys.modules.values()) if module.__name__.startswith("timm.") for name in vars(module)}
    for row in LAYOUTS.values():
        if row.family in NEWER and row.family not in {name.lower() for name in classes}:
            continue
        named = {key.partition(".")[0] for key in (*row.modules, *row.places)}
        assert named <= classes | ({"AttentionPoolPrr"} - set(vars(timm.layers))), row.family
        if row.modules and not row.family.startswith("mobilevit"):
            assert row.family in {name.lower() for name in classes}, row.family


def test_grad_cam_falls_back_on_the_last_feature_that_timm_lists() -> None:
    model = built("test_efficientnet", 64)
    assert model.family not in LAYOUTS and layout_of(model).gradcam == model.net.feature_info[-1]["module"]  # type: ignore[union-attr, index]
    reading = read(model, torch.rand(1, 3, 64, 64), method="auto")
    assert "Grad-CAM" in reading.how and reading.maps.shape == (1, 2, 2)
    assert isinstance(module_at(model.net, layout_of(model).gradcam), nn.Module)


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


class Breaks(nn.Module):
    def forward(self, *_: Any, **__: Any) -> Tensor:
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    "name",
    ["pvt", "maxvit", "hiera", "tnt", "nest", "efficientformerv2", "naflex", "map", "diff", "clip", "efficientvit", "coat"],
)
def test_no_hook_is_left_behind_when_the_model_raises(name: str) -> None:
    model, ran = make(name), list[Callable[..., Any]]()
    before = hooks(model.net)
    with capture(model):
        assert hooks(model.net) > before
        model(of(name))
    assert hooks(model.net) == before
    path = list(attention_layers(model))[-1] + "." + ("o_proj" if name == "gemma" else "proj")
    owner, _, child = path.rpartition(".")
    setattr(model.net.get_submodule(owner), child, Breaks())
    with pytest.raises(RuntimeError, match="broken"), capture(model):
        model(of(name))
    assert hooks(model.net) == before and not ran


@pytest.mark.parametrize(
    ("name", "grids"),
    [
        ("pvt", [(2, 3)]),
        ("twins", [(16, 24), (2, 3), (8, 12), (4, 6)]),
        ("hieradet", [(16, 24), (8, 12), (4, 6)]),
        ("tinyvit", [(8, 12), (4, 6), (2, 3)]),
        ("davit", [(16, 24), (8, 12), (4, 6), (2, 3)]),
        ("metaformer", [(4, 6), (2, 3)]),
        ("fastvit", [(2, 3)]),
        ("mobilenetv4", [(2, 3)]),
        ("edgenext", [(8, 12), (4, 6), (2, 3)]),
        ("map_with_prefix", [(8, 12)]),
        ("naflex_map", [(8, 12)]),
        ("clip", [(8, 12)]),
        ("clip_rot", [(8, 12)]),
        ("halo", [(16, 24), (8, 12)]),
        ("efficientvit", [(4, 6)]),
    ],
)
def test_grids_of_images_that_are_no_square(name: str, grids: list[tuple[int, int]]) -> None:
    """Every layer finds its grid; and one image alone has the maps that it has among others."""
    model, x = make(name), torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), capture(model) as rec:
        model(x)
        together = list(rec.layers)
        model(x[1:])
    assert list(dict.fromkeys(c.geometry.size for c in together if c.geometry)) == grids
    for many, one in zip(together, rec.layers, strict=True):
        assert many.geometry is not None and one.geometry is not None
        if many.kind != "channel":
            alone, among = received_map(one.weights, one.geometry)[0], received_map(many.weights, many.geometry)[1]
            assert torch.allclose(alone, among, atol=1e-4), many.name
