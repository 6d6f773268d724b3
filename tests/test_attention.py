"""Identities of attention: weights × values = output, rows sum to 1, refold∘unfold = identity, Grad-CAM = its formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.attention.capture import Captured, capture
from interp.attention.gradcam import gradcam
from interp.attention.layout import attention_layers, layout_of, module_at
from interp.attention.maps import Unfolding, class_map, enlarge, fold, query_map, received_map, refold, refold_query
from interp.attention.read import head_maps, spatial_attention
from interp.models.build import build
from interp.models.model import Model
from interp.types import Card, InputError, Preprocess

ATTENTION = ("Attention", "ClassAttn", "XCA", "TalkingHeadAttn")
VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "xcit": ("xcit_p4", {"embed_dim": 32, "depth": 2}),
    "mobilevit": ("mobilevit_32", {"strides": [1, 2, 2, 2, 1, 1]}),
    "vit": ("vit_tiny_patch16_224", {**VIT, "qk_norm": True}),
    "vit_avg": ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg"}),
    "vit_reg": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 3}),
    "vit_reg_avg": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 1, "class_token": False, "global_pool": "avg"}),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "cait": ("cait_xxs24_224", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}),
}


def wrap(net: nn.Module, size: int = 32) -> Model:
    return Model(net, Card(id="t", arch="x", num_classes=10, preprocess=Preprocess(size, size)))


def make(name: str) -> Model:
    """A tiny model whose attention is far from uniform and differs between heads."""
    arch, args = NETS[name]
    torch.manual_seed(0)
    net = build(arch, num_classes=10, arch_args=args)
    for module in net.modules():
        if type(module).__name__ in ATTENTION:
            for key, p in module.named_parameters():
                nn.init.normal_(p, std=1.5 / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.2)
                if "norm" in key or "temperature" in key:
                    nn.init.uniform_(p, 1.0, 3.0)
    return wrap(net)


def images(n: int = 3, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def joined(c: Captured) -> Tensor:
    """Weights × values with the heads joined, in each attention's own order of axes: (n, queries, channels)."""
    out = c.weights @ c.values
    return out.permute(0, 3, 1, 2).flatten(2) if c.kind == "channel" else out.transpose(1, 2).flatten(2)


class Breaks(nn.Module):
    def forward(self, *_: Any) -> Tensor:
        raise RuntimeError("broken")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_weights_times_values_projected_is_the_module_output(name: str, fused: bool) -> None:
    model = make(name)
    outputs: dict[str, Tensor] = {}
    for path in attention_layers(model):
        module: Any = model.net.get_submodule(path)
        module.fused_attn = fused
        module.register_forward_hook(lambda _m, _a, out, path=path: outputs.__setitem__(path, out))
    with torch.no_grad(), capture(model) as rec:
        model(images())
    assert rec.layers
    for c in rec.layers:
        module = model.net.get_submodule(c.name)
        rebuilt = module.proj(joined(c))
        assert torch.allclose(rebuilt, outputs[c.name], atol=1e-5), c.name
        uniform = torch.full_like(c.weights, 1 / c.weights.shape[-1]) @ c.values
        assert not torch.allclose(uniform, c.weights @ c.values, atol=1e-2), "attention too uniform to test anything"


@pytest.mark.parametrize("name", NETS)
def test_rows_sum_to_one_and_logits_do_not_change(name: str) -> None:
    model, x = make(name), images()
    with torch.no_grad():
        before = model(x)
        with capture(model) as rec:
            inside = model(x)
    assert torch.equal(before, inside)
    for c in rec.layers:
        if type(model.net.get_submodule(c.name)).__name__ != "TalkingHeadAttn":  # mixed between heads after the softmax
            assert torch.allclose(c.weights.sum(-1), torch.ones(()), atol=1e-5), c.name


def test_published_models_have_the_known_layers() -> None:
    xcit = wrap(build("xcit_nano_12_p16_224", num_classes=10), 224)
    with torch.no_grad(), capture(xcit) as rec:
        xcit(images(1, (224, 224)))
    want = [f"blocks.{i}.attn" for i in range(12)] + [f"cls_attn_blocks.{i}.attn" for i in range(2)]
    assert [c.name for c in rec.layers] == want == list(attention_layers(xcit))
    assert {c.weights.shape for c in rec.of_kind("channel")} == {(1, 4, 32, 32)}
    assert {(c.weights.shape, c.grid, c.prefix) for c in rec.of_kind("class")} == {((1, 4, 1, 197), (14, 14), 1)}

    mobile = wrap(build("mobilevit_xs", num_classes=10), 256)
    with torch.no_grad(), capture(mobile) as rec:
        mobile(images(1, (256, 256)))
    depths = {2: 2, 3: 4, 4: 3}
    assert [c.name for c in rec.layers] == [f"stages.{s}.1.transformer.{i}.attn" for s, d in depths.items() for i in range(d)]
    assert [c.weights.shape[-1] for c in rec.layers] == [256] * 2 + [64] * 4 + [16] * 3
    assert {c.unfolding for c in rec.layers} == {Unfolding(1, (s, s), (2, 2)) for s in (32, 16, 8)}


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
    assert hooks(model) == 0


def test_the_grid_follows_an_image_that_is_not_square() -> None:
    model = make("xcit")
    with torch.no_grad(), capture(model) as rec:
        model(images(1, (32, 48)))
    assert {c.grid for c in rec.of_kind("class")} == {(8, 12)}
    dynamic = wrap(build("vit_tiny_patch16_224", num_classes=10, arch_args={**VIT, "dynamic_img_size": True}))
    with torch.no_grad(), capture(dynamic) as rec:
        dynamic(images(1, (32, 48)))
    assert {c.grid for c in rec.layers} == {(4, 6)}


@pytest.mark.parametrize("name", NETS)
def test_hooks_come_off(name: str) -> None:
    model, x, sdpa = make(name), images(2), F.scaled_dot_product_attention
    before = hooks(model)
    with capture(model):
        assert hooks(model) > before
        assert F.scaled_dot_product_attention is sdpa
        model(x)
    gradcam(model, x, torch.tensor([0, 1]))
    assert hooks(model) == before
    with pytest.raises(InputError):
        gradcam(model, x, torch.tensor([0, 10]))
    assert hooks(model) == before
    model.net.head = Breaks()
    with pytest.raises(RuntimeError, match="broken"), capture(model):
        model(x)
    with pytest.raises(RuntimeError, match="broken"):
        gradcam(model, x, torch.tensor([0, 1]))
    assert hooks(model) == before
    assert F.scaled_dot_product_attention is sdpa


def mobile_block(size: int) -> tuple[Any, Tensor]:
    """A MobileViT block of timm whose every step but unfolding and folding is the identity, and a feature map."""
    from timm.models.mobilevit import MobileVitBlock

    block: Any = MobileVitBlock(8, transformer_dim=8, patch_size=2, transformer_depth=1, no_fusion=True)
    for name in ("conv_kxk", "conv_1x1", "transformer", "norm", "conv_proj"):
        setattr(block, name, nn.Identity())
    return block, torch.rand(3, 8, size, size + 2, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("size", [4, 5, 6, 7])
def test_fold_inverts_timms_unfolding(size: int) -> None:
    block, feature = mobile_block(size)
    seen: list[Tensor] = []
    block.transformer.register_forward_hook(lambda _m, _a, out: seen.append(out))
    out = block(feature)
    unfolding = Unfolding(3, (size, size + 2), (2, 2))
    folded = fold(seen[0].transpose(1, 2), unfolding)  # (B·P, N, C) → (B·P, C, N)
    assert torch.equal(folded, out)
    if size % 2 == 0:
        assert torch.equal(folded, feature)


def test_captured_geometry_folds_the_real_block_back() -> None:
    """With the model's own blocks, at a feature map of 5 × 5 that MobileViT resizes to 6 × 6 for its attention."""
    model, x = make("mobilevit"), images(2, (40, 40))
    rows: dict[str, Tensor] = {}
    folded: dict[str, Tensor] = {}
    blocks = {n: m for n, m in model.net.named_modules() if type(m).__name__ == "MobileVitBlock"}
    for name, block in blocks.items():
        block.norm.register_forward_hook(lambda _m, _a, out, name=name: rows.__setitem__(name, out))  # type: ignore[union-attr,operator]
        block.conv_proj.register_forward_pre_hook(lambda _m, a, name=name: folded.__setitem__(name, a[0]))  # type: ignore[union-attr,operator]
    with torch.no_grad(), capture(model) as rec:
        model(x)
    assert len(rec.layers) == 9
    sizes = set()
    for c in rec.layers:
        name = c.name.split(".transformer")[0]
        assert c.unfolding is not None
        sizes.add(c.unfolding.size)
        assert torch.equal(fold(rows[name].transpose(1, 2), c.unfolding), folded[name])
        maps = refold(c.weights, c.unfolding)
        assert maps.shape[-2:] == c.unfolding.size
        assert torch.allclose(maps.sum((-2, -1)), torch.ones(()), atol=1e-5)
    assert (5, 5) in sizes


def test_refolded_maps_land_on_the_position_attended_to() -> None:
    u = Unfolding(2, (4, 6), (2, 2))
    weights = torch.zeros(2 * 4, 1, 6, 6)
    weights[..., 0] = 1.0  # everybody looks at patch 0 …
    pixel = 1 * 4 + 2  # … but image 1, pixel (1, 0) looks at patch (1, 2), which is position (3, 4)
    weights[pixel] = 0.0
    weights[pixel, 0, :, 5] = 1.0
    want = torch.zeros(2, 1, 4, 6)
    want[0, 0, :2, :2] = 0.25
    want[1, 0, 0, :2] = want[1, 0, 1, 1] = want[1, 0, 3, 4] = 0.25
    assert torch.equal(refold(weights, u), want)
    uniform = refold(torch.full((8, 1, 6, 6), 1 / 6), u)
    assert torch.allclose(uniform, torch.full((2, 1, 4, 6), 1 / 24))


def test_query_maps_average_to_attention_received() -> None:
    u = Unfolding(2, (3, 5), (2, 2))
    weights = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(3)).softmax(-1)
    maps = [refold_query(weights, u, y=y, x=x) for y in range(4) for x in range(6)]
    for i, m in enumerate(maps):
        y, x = divmod(i, 6)
        assert torch.allclose(m.sum((-2, -1)), torch.ones(()))
        assert torch.allclose(m[..., y % 2 :: 2, x % 2 :: 2].sum((-2, -1)), torch.ones(()))
    mean = torch.stack(maps).mean(0)
    assert torch.allclose(refold(weights, Unfolding(2, (4, 6), (2, 2))), mean, atol=1e-6)

    tokens = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(4)).softmax(-1)
    plain = [query_map(tokens, (2, 3), y=y, x=x, prefix=1) for y in range(2) for x in range(3)]
    assert torch.allclose(torch.stack(plain).mean(0), received_map(tokens, (2, 3), prefix=1), atol=1e-6)
    assert torch.equal(plain[4].flatten(2), tokens[:, :, 5, 1:])
    with pytest.raises(InputError, match="outside"):
        query_map(tokens, (2, 3), y=2, x=0, prefix=1)


def test_a_query_map_of_a_real_model_follows_its_pixel() -> None:
    """The query at (y, x) changes where the image changes: its weights come from its own row of the unfolded tensor."""
    block, feature = mobile_block(4)
    seen: list[Tensor] = []
    block.transformer.register_forward_hook(lambda _m, _a, out: seen.append(out))
    block(feature)
    token = seen[0][1 * 4 + 2, 5]  # image 1, pixel (1, 0), patch 5 of 2 × 3
    assert torch.equal(token, feature[1, :, 3, 4])
    weights = torch.zeros(12, 1, 6, 6)
    weights[1 * 4 + 2, 0, 5, 0] = 1.0
    assert refold_query(weights, Unfolding(3, (4, 6), (2, 2)), y=3, x=4)[1, 0].nonzero().tolist() == [[1, 0]]


def test_class_map_keeps_rows_and_columns_apart() -> None:
    weights = torch.zeros(1, 2, 1, 7)
    weights[0, 0, 0, 1 + 1 * 3 + 2] = 0.7
    weights[0, 0, 0, 0] = 0.3
    maps = class_map(weights, (2, 3))
    assert maps.shape == (1, 2, 2, 3) and maps[0, 0, 1, 2] == weights.max() and float(maps.sum()) == pytest.approx(0.7)
    with pytest.raises(InputError, match="Cross-covariance"):
        class_map(torch.zeros(1, 4, 8, 8), (4, 4))
    with pytest.raises(InputError, match="unfolding"):
        refold(torch.zeros(4, 1, 6, 6), Unfolding(2, (4, 6), (2, 2)))


def test_enlarge_keeps_constants_and_corners() -> None:
    assert torch.allclose(enlarge(torch.full((2, 3, 4), 0.3), (9, 8)), torch.full((2, 9, 8), 0.3))
    peak = enlarge(torch.eye(4)[0].view(1, 1, 2, 2), (8, 8))  # 1 in the upper left corner
    assert peak.shape == (1, 1, 8, 8) and peak[0, 0, 0, 0] == peak.max() == 1 and peak[0, 0, -1, -1] == 0


@pytest.mark.parametrize("name", NETS)
def test_spatial_attention_is_the_last_layer_at_image_size(name: str) -> None:
    model, x = make(name), images(2)
    reading = spatial_attention(model, x)
    assert reading.maps.shape == (2, 32, 32) and bool((reading.maps >= 0).all() or name == "cait")
    one = torch.cat([spatial_attention(model, x[i : i + 1]).maps for i in range(2)])
    assert torch.allclose(reading.maps, one, atol=1e-6)
    with torch.no_grad(), capture(model) as rec:
        model(x)
    last = rec.layers[-1]
    assert last.name in reading.method
    assert last.class_token is (name in ("xcit", "cait", "vit", "deit", "vit_reg"))
    assert not any(c.class_token for c in rec.layers if c.prefix == 0)
    if name in ("xcit", "cait", "vit", "deit", "vit_reg"):
        prefix = {"deit": 2, "vit_reg": 4}.get(name, 1)
        row, word = last.weights.mean(1)[:, 0, prefix:], "class token"
    elif name in ("vit_avg", "vit_reg_avg"):
        registers = int(name == "vit_reg_avg")
        row, word = last.weights[:, :, registers:, registers:].mean((1, 2)), "received"
    else:  # pixel p of patch n: received, mean over heads and queries
        u = last.unfolding
        assert u is not None and u.size == (4, 4)
        row = last.weights.mean((1, 2)).view(2, 2, 2, 2, 2).permute(0, 3, 1, 4, 2).reshape(2, -1) / 4
        word = "refolded"
    assert word in reading.method
    side = int(row.shape[1] ** 0.5)
    want = F.interpolate(row.view(2, 1, side, side), size=(32, 32), mode="bilinear")[:, 0]
    assert torch.allclose(reading.maps, want, atol=1e-6)


def test_spatial_attention_without_attention_is_gradcam() -> None:
    torch.manual_seed(0)
    model, x = wrap(build("resnet_cifar", num_classes=10)), images(2)
    with torch.inference_mode():
        reading = spatial_attention(model, x)
    want = gradcam(model, x, model(x).argmax(1), layer="layer4")
    assert "Grad-CAM" in reading.method and torch.allclose(reading.maps, enlarge(want, (32, 32)))
    with pytest.raises(InputError, match="xcit"), capture(model):
        pass


def test_channel_attention_is_never_drawn() -> None:
    model = make("xcit")
    with torch.no_grad(), capture(model) as rec:
        model(images(1))
    with pytest.raises(InputError, match="channel"):
        head_maps(rec.of_kind("channel")[0])


def test_an_unknown_family_is_named_with_the_known_ones() -> None:
    model = wrap(ConvNet())
    for ask in (layout_of, attention_layers):
        with pytest.raises(InputError, match=r"'convnet'.*xcit.*mobilevit"):
            ask(model)
    with pytest.raises(InputError, match=r"'convnet'"):
        gradcam(model, images(1), torch.tensor([0]))
    assert module_at(nn.Sequential(nn.ReLU(), nn.GELU()), "-1").__class__ is nn.GELU
    with pytest.raises(InputError, match="it has 0, 1"):
        module_at(nn.Sequential(nn.ReLU(), nn.GELU()), "-3")


class ConvNet(nn.Module):
    """Convolution, in-place ReLU, linear over all positions: ∂y_c/∂A is the linear weight where A > 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.linear = nn.Linear(4 * 8 * 8, 10)
        self.unused = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        logits: Tensor = self.linear(self.act(self.conv(x)).flatten(1))
        return logits


@pytest.mark.parametrize("given", ["conv", "module"])
def test_gradcam_is_its_formula_on_a_net_that_can_be_derived_by_hand(given: str) -> None:
    torch.manual_seed(0)
    net = ConvNet()
    model, x, y = wrap(net), images(3, (8, 8)), torch.tensor([1, 7, 4])
    cam = gradcam(model, x, y, layer="conv" if given == "conv" else net.conv)
    feature = net.conv(x)
    gradient = net.linear.weight[y].view(3, 4, 8, 8) * (feature > 0)
    alpha = gradient.sum((2, 3)) / 64
    want = torch.einsum("nk,nkij->nij", alpha, feature).clamp(min=0)
    assert torch.allclose(cam, want, atol=1e-6) and cam.max() > 0 and not cam.requires_grad
    with torch.no_grad():  # gradients are switched on inside, whatever the caller's mode
        assert torch.equal(gradcam(model, x, y, layer="conv"), cam)


@pytest.mark.parametrize("name", [*NETS, "resnet18"])
def test_gradcam_of_n_images_is_n_times_one(name: str) -> None:
    torch.manual_seed(0)
    model = wrap(build("resnet_cifar", num_classes=10)) if name == "resnet18" else make(name)
    x, y = images(3), torch.tensor([2, 5, 9])
    cam = gradcam(model, x, y)
    side = {"xcit": 8}.get(name, 4)
    assert cam.shape == (3, side, side) and bool((cam >= 0).all())
    one = torch.cat([gradcam(model, x[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(cam, one, rtol=1e-4, atol=1e-5 * float(cam.max()))
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_gradcam_of_tokens_is_the_formula_on_the_patches() -> None:
    model, x, y = make("vit_reg"), images(2), torch.tensor([3, 3])
    kept: list[Tensor] = []

    def keep(_m: nn.Module, _a: tuple[Any, ...], out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_(True))
        return kept[0]

    handle = module_at(model.net, "blocks.-1.norm1").register_forward_hook(keep)
    (gradient,) = torch.autograd.grad(model(x)[:, 3].sum(), kept[0])
    handle.remove()
    a, g = kept[0].detach()[:, 4:], gradient[:, 4:]  # class token and three registers come first
    want = (a * g.mean(1, keepdim=True)).sum(-1).clamp(min=0).view(2, 4, 4)
    assert torch.allclose(gradcam(model, x, y), want, atol=1e-7) and want.max() > 0


def no_part(model: Model) -> None:
    gradcam(model, images(1, (8, 8)), torch.tensor([0]), layer="unused")


def no_part_unfrozen(model: Model) -> None:
    no_part(model.requires_grad_(True))


def behind_the_class_token(_: Model) -> None:
    vit = make("vit")
    gradcam(vit, images(1), torch.tensor([0]), layer="blocks.-1.attn.qkv")
    gradcam(vit, images(1), torch.tensor([0]), layer="blocks.-1")


def dead_image(model: Model) -> None:
    model.net.conv.bias.data.fill_(-100.0)  # type: ignore[union-attr,operator]
    gradcam(model, images(2, (8, 8)), torch.tensor([0, 1]), layer="conv")


def no_grid(_: Model) -> None:
    gradcam(make("mobilevit"), images(1), torch.tensor([0]), layer="stages.-1.1.transformer.0")


def flat_layer(model: Model) -> None:
    gradcam(model, images(1, (8, 8)), torch.tensor([0]), layer="linear")


def wrong_count(model: Model) -> None:
    gradcam(model, images(2, (8, 8)), torch.tensor([0]), layer="conv")


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (no_part, "no part in the logits"),
        (no_part_unfrozen, "no part in the logits"),
        (behind_the_class_token, "zero everywhere for image 0"),
        (dead_image, "zero everywhere for image 0"),
        (no_grid, "no grid of patches"),
        (flat_layer, r"\(1, 10\)"),
        (wrong_count, "2 images came with targets"),
    ],
)
def test_gradcam_says_why_it_cannot(case: Callable[[Model], None], says: str) -> None:
    with pytest.raises(InputError, match=says):
        case(wrap(ConvNet()))
