"""Class activation maps against derivatives taken elsewhere: by hand, by captum, by torch.func, by a plain loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor, nn

from interp.attention.cam import METHODS, _channels_last, cam, gradcam, gradcam_plus_plus, layercam
from interp.attention.layout import layout_of, module_at
from interp.models.build import build
from interp.models.model import Model
from interp.types import Card, InputError, Preprocess

ALL = [*METHODS, "scorecam"]
VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
NETS: dict[str, tuple[str, dict[str, Any], int]] = {  # with the rows and columns of the default layer
    "xcit": ("xcit_p4", {"embed_dim": 32, "depth": 2}, 8),
    "cait": ("cait_xxs24_224", VIT, 4),
    "vit": ("vit_tiny_patch16_224", VIT, 4),
    "vit_reg": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 3}, 4),
    "vit_avg": ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg"}, 4),
    "deit": ("deit_tiny_distilled_patch16_224", VIT, 4),
    "mobilevit": ("mobilevit_32", {"variant": "mobilevit_xxs", "strides": [1, 2, 2, 2, 1, 1]}, 4),
    "mobilevitv2": ("mobilevitv2_050", {}, 2),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 8),
    "swinv2": ("swinv2_tiny_window8_256", SWIN, 8),
    "resnet": ("resnet50_32", {"width": 4, "stem_stride": 2, "output_stride": 16}, 4),
    "convnext": ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "patch_size": 1}, 4),
}


class ConvNet(nn.Module):
    """Convolution, in-place ReLU, linear over all positions: ∂y/∂A is the linear weight, where A > 0 before the ReLU."""

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


class Breaks(nn.Module):
    def forward(self, *_: Any) -> Tensor:
        raise RuntimeError("broken")


class Twice(nn.Module):
    """A net that runs its one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv(self.conv(x)).flatten(1)
        return logits


class Poor(ConvNet):
    """A net for which memory suffices for two images at a time, found out behind the layer."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return logits


def wrap(net: nn.Module, size: int = 32) -> Model:
    return Model(net, Card(id="t", arch="x", num_classes=10, preprocess=Preprocess(size, size)))


def small(net: type[nn.Module] = ConvNet) -> Model:
    torch.manual_seed(0)
    return wrap(net(), 8)


@cache
def _built(name: str) -> Model:
    arch, args, _ = NETS[name]
    torch.manual_seed(0)
    net = build(arch, num_classes=10, arch_args=args)
    for p in net.parameters():
        if p.ndim == 1:
            nn.init.uniform_(p, 0.3, 1.0)
    return wrap(net)


def make(name: str) -> Model:
    """A tiny model of a family; every bias and scale is drawn, so that no part computes an identity."""
    return copy.deepcopy(_built(name))


def images(n: int = 3, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def at(model: Model, x: Tensor, y: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """A layer's output and the gradient of the targets' logits there, as the layer lays them out, by a hook of its own."""
    kept: list[Tensor] = []

    def keep(_m: nn.Module, _a: tuple[Any, ...], out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_(True))
        return kept[0]

    handle = module_at(model.net, layer).register_forward_hook(keep)
    (gradient,) = torch.autograd.grad(model(x).gather(1, y[:, None]).sum(), kept[0])
    handle.remove()
    return kept[0].detach(), gradient


Y = torch.tensor([1, 7, 4])


@pytest.mark.parametrize("given", ["conv", "module"])
def test_gradcam_and_layercam_are_their_formulas_on_a_net_that_can_be_derived_by_hand(given: str) -> None:
    model, x = small(), images(3, (8, 8))
    net: Any = model.net
    layer = "conv" if given == "conv" else net.conv
    feature = net.conv(x)
    gradient = net.linear.weight[Y].view(3, 4, 8, 8) * (feature > 0)
    want = {
        "gradcam": torch.einsum("nk,nkij->nij", gradient.sum((2, 3)) / 64, feature).clamp(min=0),
        "layercam": torch.einsum("nkij,nkij->nij", gradient.clamp(min=0), feature).clamp(min=0),
    }
    for method, wanted in want.items():
        found = cam(model, x, Y, method=method, layer=layer)
        assert torch.allclose(found, wanted, atol=1e-6) and found.max() > 0 and not found.requires_grad
        for mode in (torch.no_grad, torch.inference_mode):  # gradients are switched on inside, whatever the caller's mode
            with mode():
                assert torch.equal(cam(model, x.clone(), Y.clone(), method=method, layer=layer), found)


@pytest.mark.parametrize("layer", ["conv", "act"])
def test_gradcam_plus_plus_is_its_definition_with_derivatives_of_exp_y(layer: str) -> None:
    """Y = exp(y): α = Y'' / (2·Y'' + ΣA·Y'''), w = Σ α·ReLU(Y') (eq. 7 and 10 of the paper), by differentiating thrice."""
    model, x = small(), images(3, (8, 8))
    net: Any = model.net.double()
    found = cam(small(), x, Y, method="gradcam++", layer=layer).double()
    for i in range(3):
        activation = net.conv(x[i : i + 1].double())[0]
        activation = activation.relu() if layer == "act" else activation

        def scored(t: Tensor, place: Tensor, a: Tensor = activation, target: Tensor = Y[i]) -> Tensor:
            moved = a + t * place
            return net.linear((moved if layer == "act" else moved.relu()).flatten())[target].exp()

        derivatives, function = [], scored
        for _ in range(3):
            function = torch.func.grad(function)
            along = torch.func.vmap(function, in_dims=(None, 0))(
                torch.zeros((), dtype=torch.float64), torch.eye(256).double().view(-1, 4, 8, 8)
            )
            derivatives.append(along.view(4, 8, 8))
        first, second, third = derivatives
        alpha = second / (2 * second + activation.sum((1, 2), keepdim=True) * third)
        weights = (alpha.nan_to_num(0) * first.relu()).sum((1, 2))
        want = torch.einsum("k,kij->ij", weights, activation).relu() / scored(torch.zeros(()), torch.zeros(()))
        assert torch.allclose(found[i], want, rtol=1e-4, atol=1e-6) and want.max() > 0


def test_gradcam_plus_plus_is_gradcam_up_to_scale_only_where_every_channel_moves_the_score_alike() -> None:
    """Gradients constant over space: w_k = Z·ReLU(g_k) / (2 + g_k·ΣA_k)."""
    a, g = drawn(2, 5, 4, 6, seed=3).abs(), drawn(2, 5, 1, 1, seed=4)
    spread = g.expand_as(a)
    weights = 24 * g.relu() / (2 + g * a.sum((2, 3), keepdim=True))
    assert torch.allclose(gradcam_plus_plus(a, spread), (weights * a).sum(1).relu(), rtol=1e-5)

    alike = 3 / a.sum((2, 3), keepdim=True)  # g_k·ΣA_k = 3
    assert torch.allclose(gradcam_plus_plus(a, alike.expand_as(a)) / (24 / 5), gradcam(a, alike.expand_as(a)), rtol=1e-5)
    level = a - a.mean((2, 3), keepdim=True)  # g_k·ΣA_k = 0
    assert torch.allclose(gradcam_plus_plus(level, spread.abs()) / 12, gradcam(level, spread.abs()), rtol=1e-4, atol=1e-6)
    one = gradcam_plus_plus(a, spread.abs()) / gradcam(a, spread.abs())
    assert one.std() > 1e-3 * one.mean(), "these should differ: the channels move the score by different amounts"
    assert torch.equal(gradcam_plus_plus(a, torch.zeros_like(a)), torch.zeros(2, 4, 6))
    assert torch.equal(
        gradcam_plus_plus(torch.tensor([[[[-3.0, 1.0]]]]), torch.ones(1, 1, 1, 2)), torch.zeros(1, 1, 2)
    )  # 2 + g·ΣA = 0


def test_layercam_with_constant_gradients_is_gradcam_where_none_is_negative() -> None:
    a, g = drawn(2, 5, 4, 6, seed=5), drawn(2, 5, 1, 1, seed=6)
    assert torch.allclose(layercam(a, g.abs().expand_as(a)), gradcam(a, g.abs().expand_as(a)), atol=1e-6)
    assert torch.allclose(layercam(a, g.expand_as(a)), gradcam(a, g.relu().expand_as(a)), atol=1e-6)
    assert not torch.allclose(layercam(a, g.expand_as(a)), gradcam(a, g.expand_as(a)), atol=1e-2)


@pytest.mark.parametrize("name", ["resnet", "convnext", "mobilevit", "mobilevitv2"])
def test_gradcam_equals_captums(name: str) -> None:
    model, x = make(name), images()
    layer = module_at(model.net, layout_of(model).gradcam)
    highest = 0.0
    for c in range(10):
        y = torch.tensor([c, (c + 3) % 10, (c + 6) % 10])
        want = LayerGradCam(model, layer).attribute(x.clone(), y, relu_attributions=True)
        assert torch.allclose(cam(model, x, y), want[:, 0].detach(), rtol=1e-4, atol=1e-6)
        highest = max(highest, float(want.detach().max()))
    assert highest > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "layer", "prefix"),
    [
        ("vit", "blocks.-1.norm1", 1),
        ("vit_reg", "blocks.-1.norm1", 4),
        ("vit_avg", "blocks.-1", 0),
        ("deit", "blocks.-1.norm1", 2),
        ("xcit", "blocks.-1", 0),
        ("swin", "norm", None),
        ("swin", "layers.0", None),  # 16 × 16 places and 16 channels: only the net knows which is which
        ("swin", "layers.1.blocks.0.norm1", None),
        ("swinv2", "norm", None),
        ("convnext", "stages.-1.blocks.0.mlp", None),  # channels last inside a net of channels first
    ],
)
def test_tokens_and_channels_last_are_laid_on_their_grid(name: str, layer: str, prefix: int | None, method: str) -> None:
    model, x = make(name), images()
    found = cam(model, x, Y, method=method, layer=layer)
    rows, columns = found.shape[1:]
    values, gradient = at(model, x, Y, layer)
    if prefix is not None:
        assert values.shape[1] == prefix + rows * columns
        values, gradient = (t[:, prefix:].unflatten(1, (rows, columns)) for t in (values, gradient))
    want = METHODS[method](values.movedim(-1, 1), gradient.movedim(-1, 1))
    assert torch.allclose(found, want, rtol=1e-4, atol=1e-5 * float(want.max()))


def test_places_are_the_dimensions_with_the_proportions_of_the_image() -> None:
    def last(*shape: int, image: tuple[int, int] = (224, 224), tie: bool = False) -> bool:
        return _channels_last(torch.zeros(2, *shape), image, "'norm'", tie=tie)

    assert last(7, 7, 768) and last(7, 7, 8) and last(1, 1, 9) and not last(768, 7, 7) and not last(8, 7, 7)
    assert last(7, 10, 96, image=(224, 300)) and not last(96, 7, 10, image=(224, 300)) and not last(16, 16, 24, image=(32, 48))
    assert last(7, 7, 7, tie=True) and not last(7, 7, 7, tie=False)
    with pytest.raises(InputError, match=r"'norm' returns \(2, 3, 7, 9\).*proportions of the image, 224 × 224"):
        last(3, 7, 9)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("name", NETS)
def test_every_family_gives_maps_and_n_images_give_what_n_calls_give(name: str, method: str) -> None:
    model, x, side = make(name), images(), NETS[name][2]
    most = 5 if method == "scorecam" else None
    found = cam(model, x, Y, method=method, most=most)
    assert found.shape == (3, side, side) and found.dtype == torch.float32
    assert bool((found >= 0).all()) and bool(found.isfinite().all())
    one = torch.cat([cam(model, x[i : i + 1], Y[i : i + 1], method=method, most=most) for i in range(3)])
    assert torch.allclose(found, one, rtol=1e-3, atol=1e-4 * float(found.max()))
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_maps_follow_an_image_that_is_not_square() -> None:
    torch.manual_seed(0)
    x, y = images(2, (32, 48)), torch.tensor([0, 1])
    assert cam(wrap(build("resnet_cifar", num_classes=10)), x, y).shape == (2, 4, 6)
    assert cam(make("xcit"), x, y).shape == (2, 8, 12)


def plain_scorecam(model: Model, x: Tensor, target: int, activations: Tensor) -> Tensor:
    """Algorithm 1 of the paper for one image (3, h, w) and activations (c, h', w'), one channel at a time."""
    scores = []
    black = model(torch.zeros_like(x)[None])[0, target]
    for channel in activations:
        mask = F.interpolate(channel[None, None], size=x.shape[1:], mode="bilinear")[0, 0]
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        scores.append(model((mask * x)[None])[0, target] - black)
    weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
    return (weights[:, None, None] * activations).sum(0).clamp(min=0)


@pytest.mark.parametrize("most", [None, 4, 99])
def test_scorecam_is_the_loop_of_the_paper(most: int | None) -> None:
    model, x = make("resnet"), images()
    model.net.fc.weight.data.mul_(20)  # type: ignore[union-attr,operator]  # else all channels weigh nearly the same
    a, _ = at(model, x, Y, "layer1")
    found = cam(model, x, Y, method="scorecam", layer="layer1", most=most, chunk=7)
    for i in range(3):
        kept = a[i]
        if most == 4:
            spread = [float(((c - c.mean()) ** 2).sum()) for c in a[i]]
            kept = a[i][sorted(range(len(spread)), key=lambda k: -spread[k])[:4]]
        want = plain_scorecam(model, x[i], int(Y[i]), kept)
        assert torch.allclose(found[i], want, rtol=1e-3, atol=1e-5) and want.max() > 0
        assert not torch.allclose(want, kept.mean(0).relu(), atol=1e-3), "channels weigh the same: nothing is tested"


def test_a_channel_without_places_counts_as_the_black_image() -> None:
    model, x = small(), images(1, (8, 8))
    net: Any = model.net
    net.conv.weight.data[2] = 0.0
    net.conv.bias.data[2] = 0.7
    feature = net.conv(x)[0]
    scores = torch.zeros(4)
    for k in (0, 1, 3):
        mask = (feature[k] - feature[k].min()) / (feature[k].max() - feature[k].min())
        scores[k] = (model(x * mask) - model(torch.zeros_like(x)))[0, 1]
    want = torch.einsum("k,kij->ij", scores.softmax(0), feature).relu()
    assert torch.allclose(cam(model, x, torch.tensor([1]), method="scorecam", layer="conv")[0], want, atol=1e-6)


@pytest.mark.parametrize("method", ALL)
def test_the_chunk_bounds_the_images_of_a_pass_and_does_not_matter(method: str) -> None:
    model, x, y = small(), images(5, (8, 8)), torch.tensor([1, 7, 4, 0, 9])
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _m, args: sizes.append(len(args[0])))
    whole = cam(model, x, y, method=method, layer="conv")
    assert max(sizes) == (20 if method == "scorecam" else 5)  # images, or images × channels
    for chunk in (1, 2, 3):
        sizes.clear()
        assert torch.allclose(cam(model, x, y, method=method, layer="conv", chunk=chunk), whole, atol=1e-6)
        assert max(sizes) == chunk
    short = cam(small(Poor), x, y, method=method, layer="conv")  # begun again after memory ran out behind the layer
    assert torch.allclose(short, whole, atol=1e-6)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("name", ["vit", "swin", "resnet"])
def test_hooks_come_off(name: str, method: str) -> None:
    model, x, y = make(name), images(2), torch.tensor([0, 1])
    path = layout_of(model).gradcam
    seen: list[int] = []
    handle = module_at(model.net, path).register_forward_hook(lambda *_: seen.append(hooks(model)))
    before = hooks(model)
    cam(model, x, y, method=method, most=1 if method == "scorecam" else None)
    assert hooks(model) == before < max(seen)
    for wrong in (torch.tensor([0, 10]), torch.tensor([0])):
        with pytest.raises(InputError):
            cam(model, x, wrong, method=method)
    last = list(model.net.named_children())[-1][0]
    setattr(model.net, last, Breaks())
    with pytest.raises(RuntimeError, match="broken"):
        cam(model, x, y, method=method)
    handle.remove()
    assert hooks(model) == 0


def explain(model: Model, n: int, layer: str | None, **options: Any) -> Tensor:
    size = model.card.preprocess.size
    return cam(model, images(n, (size, size)), torch.zeros(n, dtype=torch.int64), layer=layer, **options)


def no_part_unfrozen() -> None:
    explain(small().requires_grad_(True), 1, "unused")


def module_of_another_model() -> None:
    cam(small(), images(1, (8, 8)), torch.tensor([0]), layer=ConvNet().conv, method="scorecam")


def dead_image() -> None:
    model = small()
    model.net.conv.bias.data.fill_(-100.0)  # type: ignore[union-attr,operator]
    model.net.conv.weight.data[:] = 1.0  # type: ignore[union-attr,operator]
    x = torch.zeros(5, 3, 8, 8)
    x[:4, :, 4, 4] = 100.0  # the last is dark: no unit of it is alive
    cam(model, x, torch.zeros(5, dtype=torch.int64), layer="conv", chunk=2)


def weights_of_windows() -> None:
    model: Any = make("swin")
    model.net.layers[0].blocks[0].attn.fused_attn = False
    explain(model, 2, "layers.0.blocks.0.attn.softmax")


def float_targets() -> None:
    cam(small(), images(1, (8, 8)), torch.tensor([0.0]), layer="conv")


def negative_target() -> None:
    cam(small(), images(1, (8, 8)), torch.tensor([-1]), layer="conv")


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (lambda: explain(small(), 1, "unused"), "'unused' has no part in the logits"),
        (no_part_unfrozen, "no part in the logits"),
        (module_of_another_model, "Conv2d has no part in the logits"),
        (lambda: explain(make("vit"), 1, "blocks.-1"), "zero everywhere for image 0; behind the last attention"),
        (dead_image, "zero everywhere for image 4"),
        (lambda: explain(make("mobilevit"), 1, "stages.-1.1.transformer.0"), "no grid of patches"),
        (lambda: explain(make("swin"), 1, "layers.0.blocks.0.attn"), r"\(16, 16, 16\) for 1 images, tokens that fit no grid"),
        (weights_of_windows, r"\(32, 2, 16, 16\) for 2 images"),
        (lambda: explain(small(), 1, "linear"), r"returns \(1, 10\); class activation maps need"),
        (lambda: explain(make("xcit"), 1, "patch_embed"), "returns tuple; class activation maps need"),
        (lambda: explain(small(Twice), 1, "conv"), "runs more than once"),
        (lambda: explain(small(), 1, "nowhere"), "no layer is at 'nowhere'"),
        (lambda: explain(small(), 1, None), "'convnet', whose attention is unknown"),
        (
            lambda: explain(small(), 1, "conv", method="gradcam2"),
            r"'gradcam2'; expected gradcam, gradcam\+\+, layercam or scorecam",
        ),
        (lambda: explain(small(), 1, "conv", most=3), "most is 3 for gradcam"),
        (lambda: explain(small(), 1, "conv", most=0, method="scorecam"), "most is 0 for scorecam; expected at least 1"),
        (lambda: explain(small(), 1, "conv", chunk=0), "chunk is 0"),
        (lambda: cam(small(), images(2, (8, 8)), torch.tensor([0]), layer="conv"), r"2 images came with targets \(1,\)"),
        (float_targets, "torch.float32; expected"),
        (negative_target, "reach from -1 to -1; the model has classes 0 to 9"),
    ],
)
def test_cam_says_why_it_cannot(case: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        case()
