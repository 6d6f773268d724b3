"""Capture, geometry and maps of attention: what is recorded is what the model computes, and stands where the model has it."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

import interp
from interp.attention.cam import cam
from interp.attention.capture import Captured, capture
from interp.attention.geometry import Geometry, of_patches, of_pixels, of_windows
from interp.attention.layout import attention_layers, layout_of, module_at
from interp.attention.maps import channel_readout, class_map, dense, enlarge, place, query_map, query_rows, received_map
from interp.attention.statistics import distance
from interp.attention.watch import fused_weights
from interp.models.build import build
from interp.models.model import Model, eager
from interp.types import Batch, InputError
from tests.attention_nets import NETS, formula, images, make, of, projected, wrap

PREFIX = {"cait": 0, "vit_avg": 0, "deit": 2, "vit_reg": 4}  # tokens before the patches, 1 for the other transformers


def softmaxed(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_what_is_recorded_is_what_the_model_computes(name: str, fused: bool) -> None:
    model, x = make(name), of(name)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for path in attention_layers(model):
        module: Any = model.net.get_submodule(path)
        module.fused_attn = fused
        module.register_forward_hook(lambda _m, a, out, path=path: seen.__setitem__(path, (a[0], out)))
    with torch.no_grad():
        before = model(x)
        with capture(model) as rec:
            assert torch.equal(model(x), before)
        assert [c.name for c in rec.layers] == list(attention_layers(model))
        for c in rec.layers:
            module, (given, out) = model.net.get_submodule(c.name), seen[c.name]
            product = c.weights @ c.values
            assert torch.allclose(product, c.output, atol=1e-5), c.name
            assert torch.allclose(projected(module, given, c.kind, c.output), out, atol=1e-5), c.name
            weights, values = formula(name, c.kind)(module, given, model.net, c.name)
            assert torch.allclose(c.weights, weights, atol=1e-5) and torch.allclose(c.values, values, atol=1e-5), c.name
            sums = torch.ones(())
            if c.kind == "talking":  # softmax rows mixed by W_w: head g's row sums to Σ_h W_w[g, h] + keys · b[g]
                sums = (module.proj_w.weight.sum(1) + c.weights.shape[-1] * module.proj_w.bias)[:, None]
                assert (c.weights < 0).any()
            assert torch.allclose(c.weights.sum(-1), sums, atol=1e-5), c.name
            if c.weights.shape[-1] > 1:
                assert (c.weights - c.weights.mean(-1, keepdim=True)).abs().max() > 0.05, "too uniform to test anything"


@pytest.mark.parametrize(
    "more",
    [{}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": torch.randn(5, 7)}, {"attn_mask": torch.ones(5, 7).tril(2) > 0}],
)
def test_the_weights_of_a_fused_call_are_those_it_uses(more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 3)
    weights, values = fused_weights(q, k, v, **more)
    assert torch.allclose(weights @ values, F.scaled_dot_product_attention(q, k, v, **more), atol=1e-6)
    weights, values = fused_weights(q, k[:, :2], v[:, :2], **more, enable_gqa=True)
    want = F.scaled_dot_product_attention(q, k[:, [0, 0, 1, 1]], v[:, [0, 0, 1, 1]], **more)
    assert torch.allclose(weights @ values, want, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "xcit", "cait", "mobilevit", "swin", "beit"])
def test_the_gradient_of_the_weights_is_that_of_an_explicit_softmax(name: str) -> None:
    """∂logit/∂A = ∂logit/∂(A·V) · Vᵀ, against autograd through modules whose forward is the formula, A kept."""
    model, x = make(name), of(name, 2).requires_grad_(True)
    with capture(model, gradients=True) as rec:
        logits = model(x)
    found = torch.autograd.grad(logits[:, 3].sum(), [c.output for c in rec.layers])
    assert not any(t.requires_grad for c in rec.layers for t in (c.weights, c.values))

    kept: dict[str, Tensor] = {}

    def explicit(module: Any, path: str, kind: str) -> Callable[..., Tensor]:
        def forward(given: Tensor, *_: Any, **__: Any) -> Tensor:
            kept[path], values = formula(name, kind)(module, given, model.net, path)
            return projected(module, given, kind, kept[path] @ values)

        return forward

    for path, kind in attention_layers(model).items():
        module = model.net.get_submodule(path)
        module.forward = explicit(module, path, kind)
    again = model(x)
    assert torch.allclose(again, logits, atol=1e-4)
    wanted = torch.autograd.grad(again[:, 3].sum(), [kept[c.name] for c in rec.layers])
    for c, gradient, want in zip(rec.layers, found, wanted, strict=True):
        assert want.abs().max() > 0
        assert torch.allclose(gradient @ c.values.transpose(-2, -1), want, rtol=1e-3, atol=1e-4 * float(want.abs().max())), c.name
    with capture(model) as rec:
        assert model(x).requires_grad
    assert not any(c.output.requires_grad for c in rec.layers), "in the graph without having been asked for"


def test_a_new_pass_replaces_the_old_and_layers_can_be_chosen() -> None:
    model = make("xcit")
    with torch.no_grad(), capture(model, layers=["cls_attn_blocks.1.attn"]) as rec:
        model(images(3))
        first = rec.layers
        model(images(2))
    assert [c.name for c in rec.layers] == ["cls_attn_blocks.1.attn"]
    assert len(first[0].weights) == 3 and len(rec.layers[0].weights) == 2
    with pytest.raises(InputError, match=r"nowhere.*cls_attn_blocks\.1\.attn"), capture(model, layers=["nowhere"]):
        pass
    with torch.no_grad(), capture(model, layers=[]) as rec:
        model(images(1))
    assert rec.layers == [] and hooks(model) == 0


def test_a_consumer_gets_each_layer_as_it_runs_and_nothing_is_kept() -> None:
    model, names, refs = make("vit"), list[str](), list[weakref.ref[Tensor]]()

    def consume(layer: Captured) -> None:
        assert all(ref() is None for ref in refs), "the layer before is still in memory"
        names.append(layer.name)
        refs.append(weakref.ref(layer.weights))

    with torch.no_grad(), capture(model, consume=consume) as rec:
        model(images())
    assert names == list(attention_layers(model)) and rec.layers == []


@pytest.mark.parametrize("name", ["mobilevit", "swin", "cait"])
def test_every_pass_counts_its_stages_anew(name: str) -> None:
    model = make(name)
    with torch.no_grad(), capture(model) as rec:
        model(of(name))
        first = [c.stage for c in rec.layers]
        model(of(name))
    assert [c.stage for c in rec.layers] == first
    assert first == {"mobilevit": [0, 0, 1, 1, 1, 1, 2, 2, 2], "swin": [0, 0, 1, 1], "cait": [0] * 4}[name]


class Breaks(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, *_: Any) -> Tensor:
        raise self.error


def refuse(_layer: Captured) -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("where", ["nowhere", "attention", "interrupt", "head", "consume"])
@pytest.mark.parametrize("name", ["xcit", "cait", "vit", "beit", "eva", "mobilevit", "mobilevitv2", "swin", "swinv2"])
def test_nothing_is_left_behind(name: str, where: str) -> None:
    """Ctrl-C inside an attention module is the case for which torch calls no hook."""
    model, x, sdpa, before = make(name), of(name, 1), F.scaled_dot_product_attention, hooks(make(name))
    error: BaseException = KeyboardInterrupt("broken") if where == "interrupt" else RuntimeError("broken")
    *whole, last = attention_layers(model)
    for path in (*whole, last):
        vars(model.net.get_submodule(path))["fused_attn"] = False  # so that the dropout between softmax and product runs
    owner, part = (model.net, "head") if where == "head" else (model.net.get_submodule(last), "attn_drop")
    healthy = getattr(owner, part)
    if where in ("attention", "interrupt", "head"):
        setattr(owner, part, Breaks(error))
    with capture(model, consume=refuse if where == "consume" else None) as rec:
        assert hooks(model) > before
        if where == "nowhere":
            model(x)
        else:
            with pytest.raises(type(error), match="broken"):
                model(x)
        assert _get_current_function_mode() is None or where == "interrupt"
    assert _get_current_function_mode() is None and hooks(model) == before and F.scaled_dot_product_attention is sdpa
    kept = list(rec.layers)
    assert [c.name for c in kept] == {"nowhere": [*whole, last], "head": [*whole, last], "consume": []}.get(where, whole)
    setattr(owner, part, healthy)
    model(x)
    assert rec.layers == kept


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_compiled_before_is_recorded(whole: bool) -> None:
    """What torch compiles looks at no hook that is set afterwards."""
    model, x = make("mobilevit"), of("mobilevit")
    called: Any = model
    with torch.no_grad():
        if whole:
            called = torch.compile(model, backend="eager")
        else:
            model.net.compile(backend="eager")
        before = called(x)
        with capture(model) as rec:
            assert torch.equal(called(x), before)
        assert [c.name for c in rec.layers] == list(attention_layers(model))
        assert cam(model, x, torch.zeros(len(x), dtype=torch.long)).max() > 0


@pytest.mark.parametrize("cast", [True, False])
@pytest.mark.parametrize("name", ["vit", "swin", "mobilevit", "mobilevitv2", "xcit"])
def test_half_precision_is_recorded_in_single(name: str, cast: bool) -> None:
    """Under autocast as in a model of bfloat16: logits as without, weights and values near those of float32."""
    model, x = make(name), of(name)
    if not cast:
        model = model.to(torch.bfloat16)
        x = x.to(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=cast):
        before = model(x)
        with capture(model) as rec:
            assert torch.equal(model(x), before)
    for c in rec.layers:
        assert c.weights.dtype == c.values.dtype == torch.float32, c.name
        assert torch.allclose(c.weights @ c.values, c.output.float(), atol=0.02 * float(c.output.abs().max())), c.name
        fused = c.kind in ("class", "unfold", "self")
        assert torch.allclose(c.weights.sum(-1), torch.ones(()), atol=1e-5 if fused else 1e-2), c.name


def test_a_model_of_half_precision_is_analysed_by_every_method(samples: Batch) -> None:
    model = copy.deepcopy(make("mobilevit")).to(torch.bfloat16)
    methods = ("raw", "weighted", "rollout", "chefer", "gradcam", "layercam")
    data = interp.attention([model], samples[:2], interp.Attend(methods)).data
    exact = interp.attention([make("mobilevit")], samples[:2], interp.Attend(methods)).data
    assert np.isfinite(data["map"]).all() and (abs(data["map"] - exact["map"]).mean(("image", "y", "x")) < 0.2).all()


def test_the_stance_of_the_compiler_is_restored_whoever_leaves_last() -> None:
    """One stance for all threads: they need not leave in the reverse order in which they came."""
    from torch._dynamo import eval_frame

    first, second = eager(), eager()
    before = eval_frame._stance
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert eval_frame._stance.stance == "force_eager"
    second.__exit__(None, None, None)
    assert eval_frame._stance == before


def test_dropped_weights_are_refused_where_nobody_sees_them() -> None:
    model = make("vit")
    block: Any = model.net.get_submodule("blocks.0.attn")
    block.attn_drop.p = 0.5
    model.train()
    with capture(model), pytest.raises(InputError, match=r"dropout 0\.5.*model\.eval"):
        model(of("vit"))


def test_a_pass_after_ctrl_c_is_recorded_like_any_other() -> None:
    model, x = make("vit"), images()
    last: Any = model.net.get_submodule("blocks.1.attn")
    last.fused_attn, healthy = False, last.attn_drop
    with torch.no_grad(), capture(model) as rec:
        model(x)
        first = rec.layers
        last.attn_drop = Breaks(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            model(x)
        last.attn_drop = healthy
        model(x)
    assert [c.name for c in rec.layers] == [c.name for c in first]
    assert all(torch.equal(a.weights, b.weights) for a, b in zip(rec.layers, first, strict=True))


# where it stands

GEOMETRIES = {
    "patches": of_patches((3, 5)),
    "class": of_patches((3, 5)).with_prefix(16, class_token=True),
    "registers": of_patches((3, 5)).with_prefix(18, class_token=False),
    "pixels": of_pixels((4, 6), (2, 2)),
    "pixels resized": of_pixels((3, 5), (2, 3)),
    "windows": of_windows((8, 12), (4, 4), (2, 2)),
    "windows padded": of_windows((6, 9), (4, 4), (2, 2)),
    "one window": of_windows((4, 4), (4, 4), (0, 0)),
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=list(GEOMETRIES))
def test_every_position_has_one_token(geometry: Geometry) -> None:
    real = geometry.places[geometry.places >= 0]
    assert torch.equal(real.sort().values, torch.arange(geometry.positions))
    assert (geometry.places < 0).sum() == geometry.places.numel() - geometry.positions
    numbers = geometry.places.float()[None, :, None]  # the token of each position holds that position's number
    assert torch.equal(place(numbers, geometry)[0, 0], torch.arange(geometry.positions).view(geometry.size).float())


@pytest.mark.parametrize("version", [MobileVitBlock, MobileVitV2Block])
@pytest.mark.parametrize("size", [(4, 6), (8, 8), (5, 7), (3, 9)])
def test_pixels_stand_where_timms_unfolding_has_them(version: Any, size: tuple[int, int]) -> None:
    block = version(8, transformer_dim=8, patch_size=2, transformer_depth=1, no_fusion=True)
    for name in ("conv_kxk", "conv_1x1", "transformer", "norm", "conv_proj"):
        setattr(block, name, nn.Identity())
    seen: list[Tensor] = []
    block.transformer.register_forward_hook(lambda _m, _a, out: seen.append(out))
    feature = torch.arange(2 * 8 * math.prod(size)).float().view(2, 8, *size)
    block(feature)
    tokens = seen[0].unflatten(0, (2, 4)).permute(0, 3, 1, 2) if version is MobileVitBlock else seen[0]  # (n, c, groups, tokens)
    geometry = of_pixels(size, (2, 2))
    whole = F.interpolate(feature, geometry.size, mode="bilinear", align_corners=version is MobileVitV2Block)
    assert torch.equal(tokens, whole.flatten(2)[..., geometry.places])
    if geometry.size == size:
        assert torch.equal(whole, feature)


@pytest.mark.parametrize("version", [SwinTransformerBlock, SwinTransformerV2Block])
@pytest.mark.parametrize(("size", "window"), [((8, 8), 4), ((8, 12), 4), ((7, 7), 4), ((6, 9), 4), ((9, 5), (2, 3)), ((4, 4), 4)])
@pytest.mark.parametrize("shift", [0, 2, (1, 2)])
def test_windows_stand_where_timm_cuts_them(version: Any, size: tuple[int, int], window: Any, shift: Any) -> None:
    block = version(2, input_resolution=size, num_heads=1, window_size=window, shift_size=shift, dynamic_mask=True)
    if version is SwinTransformerBlock:
        block.norm1 = nn.Identity()
    seen: list[Tensor] = []
    block.attn.register_forward_pre_hook(lambda _m, a: seen.append(a[0]))
    numbers = torch.arange(1, math.prod(size) + 1).float().view(1, *size, 1)
    block(numbers.expand(2, -1, -1, 2))
    geometry = of_windows(size, block.window_size, block.shift_size)
    assert torch.equal(seen[0], (geometry.places.float() + 1).repeat(2, 1)[..., None].expand(-1, -1, 2))


@pytest.mark.parametrize(
    ("name", "image", "grids"),
    [
        ("xcit", (32, 44), [(8, 11)]),
        ("xcit", (30, 45), [(8, 12)]),
        ("vit_any", (32, 48), [(4, 6)]),
        ("vit_any", (30, 45), [(4, 6)]),
        ("mobilevit", (40, 56), [(6, 8)]),
        ("mobilevitv2", (72, 88), [(10, 12), (6, 6), (4, 4)]),
        ("swin", (28, 28), [(14, 14), (7, 7)]),
        ("swinv2", (28, 28), [(14, 14), (7, 7)]),
    ],
)
def test_grids_of_images_that_are_no_multiple(name: str, image: tuple[int, int], grids: list[tuple[int, int]]) -> None:
    """Each grid that occurs, in order; and one image alone has the maps that it has among others."""
    arch, args = NETS[name]
    torch.manual_seed(0)
    model = (
        make(name)
        if "swin" not in name
        else wrap(build(arch, num_classes=10, arch_args={**args, "img_size": 28, "strict_img_size": False}))
    )
    x = images(3, image)
    with torch.no_grad(), capture(model) as rec:
        model(x)
        together = list(rec.layers)
        model(x[1:2])
    assert list(dict.fromkeys(c.geometry.size for c in together if c.geometry)) == grids
    for many, one in zip(together, rec.layers, strict=True):
        assert many.geometry is not None and one.geometry is not None
        assert torch.equal(many.geometry.places, one.geometry.places)
        if many.kind != "channel":
            alone, among = received_map(one.weights, one.geometry), received_map(many.weights, many.geometry)
            assert torch.allclose(alone[0], among[1], atol=1e-5) and alone.shape[-2:] == many.geometry.size


@pytest.mark.parametrize(("name", "image", "extent"), [("vit_any", (30, 45), (32, 48)), ("swin", (26, 26), (28, 28))])
def test_a_pixel_belongs_to_the_patch_that_it_changes(name: str, image: tuple[int, int], extent: tuple[int, int]) -> None:
    """Where patches are padded beyond the image; Swin's blocks are silenced, so that no pixel reaches another patch."""
    model, at = make(name), "patch_embed"
    if name == "swin":
        arch, args = NETS[name]
        model = wrap(build(arch, num_classes=10, arch_args={**args, "img_size": image, "strict_img_size": False}))
        at = "layers.1.blocks"  # of 7 × 7 cells: 13 × 13 patches of 2 pixels, padded to 14 × 14 and merged
        for block in (m for m in model.net.modules() if isinstance(m, SwinTransformerBlock)):
            for last in (block.attn.proj, block.mlp.fc2):
                nn.init.zeros_(last.weight)
    seen: list[Tensor] = []
    model.net.get_submodule(at).register_forward_hook(lambda _m, _a, out: seen.append(out))
    x = images(1, image)
    with torch.no_grad(), capture(model) as rec:
        model(x)
        geometry = rec.layers[-1].geometry
        assert geometry is not None and geometry.extent == extent
        for y in range(image[0]):
            other, column = x.clone(), (3 * y + 1) % image[1]
            other[0, :, y, column] += 1
            model(other)
            moved = (seen[-1] - seen[0]).abs().sum(-1)[0].view(geometry.size)
            assert geometry.at(y, column, image) == divmod(int(moved.argmax()), geometry.size[1]), (y, column)
    two = torch.zeros(1, 1, geometry.positions, geometry.positions)
    two[..., -1] = 1  # all look at the lower right corner: rows and columns of whole patches away
    bare = replace(geometry, prefix=0, places=torch.arange(geometry.positions)[None])
    steps = [torch.arange(n).flip(0) * (side / n) for n, side in zip(geometry.size, extent, strict=True)]
    assert float(distance(two, bare, image)) == pytest.approx(float(torch.hypot(steps[0][:, None], steps[1]).mean()), rel=1e-5)
    maps = torch.rand(2, *geometry.size)
    assert torch.equal(enlarge(maps, image, extent=extent), enlarge(maps, extent)[:, : image[0], : image[1]])


def test_pixels_that_no_patch_reaches_belong_to_the_nearest() -> None:
    grid = replace(of_patches((3, 3)), extent=(24, 24))
    assert [grid.at(y, 31, (32, 32)) for y in (0, 23, 24, 31)] == [(0, 2), (2, 2), (2, 2), (2, 2)]
    large = enlarge(torch.rand(1, 2, 3, 3), (32, 32), extent=(24, 24))
    assert large.shape == (1, 2, 32, 32) and torch.equal(large[..., 24:, :24], large[..., 23:24, :24].expand(-1, -1, 8, -1))


@pytest.mark.parametrize("name", NETS)
def test_prefix_and_class_token(name: str) -> None:
    model = make(name)
    with torch.no_grad(), capture(model) as rec:
        model(of(name))
    grids = {"xcit": (8, 8), "swin": (16, 16), "swinv2": (16, 16), "mobilevitv2": (8, 8)}
    assert rec.layers[0].geometry is not None and rec.layers[0].geometry.size == grids.get(name, (4, 4))
    last = rec.layers[-1]
    assert last.geometry is not None
    moves = last.kind in ("window", "unfold", "context")
    assert last.geometry.prefix == (0 if moves else 1 if last.kind == "class" else PREFIX.get(name, 1))
    assert last.geometry.class_token is (name in ("xcit", "cait", "vit", "deit", "vit_reg", "vit_any"))
    assert not any(c.geometry.class_token for c in rec.layers if c.geometry and c.geometry.prefix == 0)


Y, X = 3, 2  # the position that is moved


def moved(model: Model, name: str) -> tuple[nn.Module, Callable[..., Any], bool]:
    """A module before which one position is a place in an image, what adds noise there, and whether it is the module's input."""
    noise = torch.Generator().manual_seed(5)

    def add(t: Tensor, at: tuple[Any, ...]) -> Tensor:
        t = t.clone()
        t[at] += torch.randn(t[at].shape, generator=noise)
        return t

    if name in ("mobilevit", "mobilevitv2"):
        block: Any = next(m for m in model.net.modules() if type(m).__name__ in ("MobileVitBlock", "MobileVitV2Block"))
        block.transformer[0].norm1 = nn.Identity()  # v2's takes the mean over all positions
        return block.conv_1x1, lambda _m, _a, out: add(out, (..., Y, X)), False
    if name in ("swin", "swinv2"):
        return model.net.get_submodule("layers.0.blocks.1"), lambda _m, a: (add(a[0], (slice(None), Y, X)),), True
    if name == "xcit":
        spot = 1 + Y * 8 + X  # behind the class token
        return model.net.get_submodule("cls_attn_blocks.0"), lambda _m, a: (add(a[0], (slice(None), spot)), *a[1:]), True
    return model.net, lambda _m, a: (add(a[0], (..., slice(8 * Y, 8 * Y + 8), slice(8 * X, 8 * X + 8))),), True


LAYER = {"xcit": "cls_attn_blocks.0.attn", "swin": "layers.0.blocks.1.attn", "swinv2": "layers.0.blocks.1.attn"}


@pytest.mark.parametrize("name", sorted(NETS.keys() - {"cait"}))
def test_moving_one_position_moves_its_own_column(name: str) -> None:
    """log A[i, j] = s[i, j] − log Σ_k exp s[i, k]: moving key j shifts row i alike everywhere but at j; other groups stay."""
    model, x = make(name), of(name, 1)
    layer = LAYER.get(name, next(iter(attention_layers(model))))
    module, disturb, before = moved(model, name)
    found, geometry = [], of_patches((0, 0))
    for disturbed in (False, True):
        handle = (module.register_forward_pre_hook if before else module.register_forward_hook)(disturb)
        if not disturbed:
            handle.remove()
        with torch.no_grad(), capture(model, layers=[layer]) as rec:
            model(x)
        handle.remove()
        (c,) = rec.layers
        geometry = c.geometry or geometry
        found.append(dense(c.weights.double()[:, 0], geometry))
    spot = geometry.prefix + Y * geometry.size[1] + X
    seen = found[0][0, 0 if c.kind == "class" else spot] > 0
    group = seen.nonzero()[:, 0].tolist()  # the tokens that it can see
    assert spot in group
    shift = (found[1].log() - found[0].log())[0]
    rows = [0] if c.kind == "class" else [i for i in group if i != spot]
    others = [j for j in group if j != spot]
    for i in rows:
        usual = shift[i, others].median()
        assert (shift[i, others] - usual).abs().max() < 1e-4, "another column moved"
        assert (shift[i, spot] - usual).abs() > 1e-3, "its own column stayed"
    elsewhere = [i for i in range(len(shift)) if i not in group]
    assert torch.equal(found[0][0, elsewhere], found[1][0, elsewhere])


def test_a_pixel_belongs_to_the_position_under_it() -> None:
    geometry = of_patches((4, 7))
    assert (
        geometry.at(0, 0, (32, 28)) == (0, 0)
        and geometry.at(31, 27, (32, 28)) == (3, 6)
        and geometry.at(8, 3, (32, 28)) == (1, 0)
    )
    with pytest.raises(InputError, match=r"pixel \(32, 0\).*y < 32"):
        geometry.at(32, 0, (32, 28))


# maps


def weights_for(geometry: Geometry, *, rows: int | None = None, n: int = 2) -> Tensor:
    keys = geometry.prefix + geometry.places.shape[1]
    return softmaxed(n * geometry.groups, 3, rows or keys, keys)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=list(GEOMETRIES))
def test_uniform_attention_is_received_alike_everywhere(geometry: Geometry) -> None:
    """1/keys from each query of its group: 1/positions without prefix or padding, for rows and for one row of scores alike."""
    keys = geometry.prefix + geometry.places.shape[1]
    for rows in (1, keys):
        uniform = torch.full((2 * geometry.groups, 3, rows, keys), 1 / keys)
        maps = received_map(uniform, geometry)
        if geometry.prefix == 0 and (geometry.places >= 0).all():
            want = torch.full((2, 3, *geometry.size), 1 / geometry.positions)
        else:
            asking = (geometry.places >= 0).sum(1, keepdim=True) / keys / geometry.positions
            want = place(asking.expand(geometry.places.shape)[None, :, None], geometry).expand(2, 3, -1, -1)
        assert torch.allclose(maps, want)


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_query_maps_are_rows_of_dense_and_average_to_received(name: str, one_row: bool) -> None:
    geometry = GEOMETRIES[name]
    weights = weights_for(geometry, rows=1 if one_row and not geometry.class_token else None)
    maps = torch.stack(
        [query_map(weights, geometry, y=y, x=x) for y in range(geometry.size[0]) for x in range(geometry.size[1])], 2
    )
    matrix = dense(weights[:, 1], geometry)
    assert matrix.shape == (2, geometry.prefix + geometry.positions, geometry.prefix + geometry.positions)
    assert torch.equal(matrix[:, geometry.prefix :, geometry.prefix :], maps[:, 1].flatten(2))
    assert torch.allclose(query_rows(weights, geometry), maps.mean(1).flatten(2), atol=1e-7)
    assert torch.allclose(received_map(weights, geometry), maps.mean(2), atol=1e-7)
    if geometry.prefix == 0 and (geometry.places >= 0).all():
        assert torch.allclose(matrix.sum(-1), torch.ones(()))


def test_dense_keeps_the_tokens_of_one_group_as_they_are() -> None:
    geometry = GEOMETRIES["class"]
    weights = weights_for(geometry)
    assert torch.equal(dense(weights[:, 0], geometry), weights[:, 0])
    assert torch.equal(class_map(weights, geometry), weights[:, :, 0, 1:].view(2, 3, 3, 5))
    row = dense(weights[:, 0, :1], geometry)
    assert torch.equal(row[:, 0], weights[:, 0, 0]) and not row[:, 1:].any()


def test_pixels_and_windows_land_on_the_position_attended_to() -> None:
    geometry = GEOMETRIES["pixels"]
    weights = torch.zeros(2 * 4, 1, 6, 6)
    weights[..., 0] = 1.0  # everybody looks at patch 0 …
    weights[1 * 4 + 2] = 0.0  # … but image 1, pixel (1, 0) looks at patch (1, 2), which is position (3, 4)
    weights[1 * 4 + 2, 0, :, 5] = 1.0
    want = torch.zeros(2, 1, 4, 6)
    want[0, 0, :2, :2] = 0.25
    want[1, 0, 0, :2] = want[1, 0, 1, 1] = want[1, 0, 3, 4] = 0.25
    assert torch.equal(received_map(weights, geometry), want)

    windowed = torch.zeros(4, 1, 4, 4)  # a 4 × 4 grid in windows of 2, shifted by 1: the last holds the corners
    windowed[3, 0, 0, 3] = 1.0
    corner = of_windows((4, 4), (2, 2), (1, 1))
    assert query_map(windowed, corner, y=3, x=3)[0, 0].nonzero().tolist() == [[0, 0]]


def test_class_map_keeps_rows_and_columns_apart() -> None:
    weights = torch.zeros(1, 2, 1, 7)
    weights[0, 0, 0, 1 + 1 * 3 + 2] = 0.7
    weights[0, 0, 0, 0] = 0.3
    maps = class_map(weights, of_patches((2, 3)).with_prefix(7, class_token=True))
    assert maps.shape == (1, 2, 2, 3) and maps[0, 0, 1, 2] == weights.max() and float(maps.sum()) == pytest.approx(0.7)


def test_channel_readout_is_the_energy_of_the_channels_attended_to() -> None:
    geometry, values = of_patches((3, 4)), torch.randn(2, 3, 5, 12, generator=torch.Generator().manual_seed(6))
    energy = values.pow(2).sum(2)
    uniform = channel_readout(torch.full((2, 3, 5, 5), 0.2), values, geometry, channel=1)
    assert torch.allclose(uniform, (energy / energy.sum(-1, keepdim=True)).view(2, 3, 3, 4))
    one = channel_readout(torch.eye(5).roll(1, 1).expand(2, 3, 5, 5), values, geometry, channel=1)  # channel 1 attends to 2
    assert torch.allclose(one, (values[:, :, 2] ** 2 / (values[:, :, 2] ** 2).sum(-1, keepdim=True)).view(2, 3, 3, 4))
    mixed = channel_readout(softmaxed(2, 3, 5, 5), values, geometry, channel=4)
    assert torch.allclose(mixed.sum((-2, -1)), torch.ones(())) and not torch.allclose(mixed, uniform, atol=1e-3)


def test_enlarge_keeps_constants_and_corners() -> None:
    assert torch.allclose(enlarge(torch.full((2, 3, 4), 0.3), (9, 8)), torch.full((2, 9, 8), 0.3))
    peak = enlarge(torch.eye(4)[0].view(1, 1, 2, 2), (8, 8))  # 1 in the upper left corner
    assert peak.shape == (1, 1, 8, 8) and peak[0, 0, 0, 0] == peak.max() == 1 and peak[0, 0, -1, -1] == 0


CLASS, PATCHES = GEOMETRIES["class"], GEOMETRIES["patches"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: received_map(torch.zeros(1, 4, 8, 8), PATCHES), "Cross-covariance"),
        (lambda: class_map(torch.zeros(1, 4, 2, 16), CLASS), r"expected \(n·1, heads, 1 or 16, 16\)"),
        (lambda: received_map(torch.zeros(3, 1, 6, 6), GEOMETRIES["pixels"]), r"expected \(n·4"),
        (lambda: class_map(weights_for(PATCHES), PATCHES), "no class token"),
        (lambda: query_map(weights_for(PATCHES), PATCHES, y=3, x=0), "outside the grid"),
        (lambda: query_map(weights_for(PATCHES), PATCHES, y=0, x=-1), "outside the grid"),
        (lambda: query_map(weights_for(CLASS, rows=1), CLASS, y=0, x=0), "no other position asks"),
        (lambda: channel_readout(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 15), PATCHES, channel=2), "expected 0 to 1"),
        (lambda: enlarge(torch.zeros(4, 4), (8, 8)), r"\(n, h, w\)"),
    ],
)
def test_maps_say_why_they_cannot(call: Callable[[], Tensor], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


def test_families_without_attention_are_named_with_the_known_ones() -> None:
    model = wrap(nn.Sequential(nn.Conv2d(3, 4, 1)))
    for ask in (layout_of, attention_layers):
        with pytest.raises(InputError, match=r"'sequential'.*xcit.*mobilevit"):
            ask(model)
    resnet = wrap(build("resnet_cifar", num_classes=10))
    with pytest.raises(InputError, match=r"xcit.*class activation map"), capture(resnet):
        pass
    assert module_at(nn.Sequential(nn.ReLU(), nn.GELU()), "-1").__class__ is nn.GELU
    with pytest.raises(InputError, match="it has 0, 1"):
        module_at(nn.Sequential(nn.ReLU(), nn.GELU()), "-3")
