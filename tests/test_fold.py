"""Folded networks against unfolded ones: logits, gradients, which norms are found, and the traps that must be left alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from interp.models.build import build
from interp.models.fold import batch_norms, folded
from interp.models.model import Model
from tests.conftest import TINY, seeded


def randomised(net: nn.Module) -> nn.Module:
    """No norm computes an identity."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for module in net.modules():
            for name, low, high in (
                ("running_mean", -0.2, 0.2),
                ("running_var", 0.5, 1.5),
                ("weight", 0.5, 1.5),
                ("bias", -0.2, 0.2),
            ):
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and getattr(module, name) is not None:
                    getattr(module, name).uniform_(low, high)
    return net.eval()


def answers(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_(True)
    logits = net(x)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), gradient


def distance(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Largest difference of logits and of gradients, relative to the largest value of each."""
    pairs = zip(answers(net, x), answers(other, x), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def images(size: int, n: int = 2) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    # network, pixels, norms that are left
    "xcit": (lambda: seeded(*TINY["xcit"], 0), 32, 2),  # one in the middle of each local patch interaction
    "mobilevit": (lambda: seeded(*TINY["mobilevit"], 0), 32, 0),
    "resnet": (lambda: seeded(*TINY["resnet"], 0), 32, 0),
    "wide resnet": (lambda: build("wide_resnet", num_classes=10, arch_args={"depth": 10, "width": 1}), 32, 4),
    "wider resnet": (lambda: build("wide_resnet", num_classes=10, arch_args={"depth": 10, "width": 2}), 32, 3),
    "wide resnet, TensorFlow's": (lambda: build("wide_resnet_dm", num_classes=10, arch_args={"depth": 10, "width": 2}), 32, 3),
    "preact": (lambda: build("preact_resnet", num_classes=10, arch_args={"depth": 18}), 16, 8),
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=10), 32, 0),
    "timm resnext": (lambda: timm.create_model("resnet26t", cardinality=4, base_width=4, num_classes=10), 32, 0),
    "timm mobilevit": (lambda: timm.create_model("mobilevit_xxs", num_classes=10), 64, 0),
    "timm xcit": (lambda: timm.create_model("xcit_nano_12_p16_224", depth=2, num_classes=10), 32, 2),
    "timm tf mobilenet": (lambda: timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=10), 32, 0),  # Conv2dSame
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_folded_network_is_the_network(name: str) -> None:
    make, size, left = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = randomised(make()).requires_grad_(False).to(memory_format=torch.channels_last)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    quick = folded(net, images(size))
    assert batch_norms(quick) == left
    # in float64 any kink of a ReLU stays on its side, so that the only difference is float32's rounding of the folded weights
    assert distance(net.double(), quick.double(), images(size).double()) < 1e-5
    assert not hooks(quick) and not hooks(net)
    assert not quick.training and not any(p.requires_grad for p in quick.parameters())
    assert all(torch.equal(v.double(), net.state_dict()[k].double()) for k, v in before.items())


def test_in_float64_nothing_is_rounded() -> None:
    net = seeded(*TINY["mobilevit"], 0).double().to(memory_format=torch.channels_last)
    assert distance(net, folded(net, images(32).double()), images(32).double()) < 1e-12


@pytest.mark.parametrize("family", TINY)
def test_a_model_keeps_its_card_layout_and_float32_logits(family: str, tiny: Callable[..., Model]) -> None:
    model = tiny(family)
    quick = folded(model, images(32))
    assert isinstance(quick, Model) and quick.card == model.card and quick.family == model.family
    assert distance(model, quick, images(32, 4)) < 1e-4
    wide = [m for m in quick.modules() if isinstance(m, nn.Conv2d) and m.groups == 1 and min(m.weight.shape) > 1]
    assert wide and all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in wide)


class Net(nn.Module):
    """conv → norm, joined in a way that `join` says; the result averaged over places."""

    def __init__(self, join: Callable[[Any, Tensor], Tensor], *, bias: bool = True, groups: int = 1, **norm: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=bias, groups=groups)
        self.norm = nn.BatchNorm2d(3, **norm)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x).mean((2, 3))


def used_twice(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y).relu() + y


def changed_in_place(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x).relu_())


def called_twice(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(net.conv(x)))


def two_norms(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.norm(net.conv(x)))


def weight_read(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)) + net.conv.weight.sum()


def norm_read(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)) + net.norm.running_mean.sum()


def norm_first(net: Any, x: Tensor) -> Tensor:
    return net.conv(net.norm(x))


def straight(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)).relu()


@pytest.mark.parametrize("trap", [used_twice, changed_in_place, called_twice, two_norms, weight_read, norm_read, norm_first])
def test_traps_are_left_alone(trap: Callable[[Any, Tensor], Tensor]) -> None:
    net = randomised(Net(trap))
    quick = folded(net, images(8))
    assert batch_norms(quick) == 1
    for a, b in zip(answers(net, images(8)), answers(quick, images(8)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "made", [{"bias": True}, {"bias": False}, {"groups": 3}, {"affine": False}, {"affine": False, "bias": False, "eps": 0.1}]
)
def test_each_form_of_the_pair_is_folded(made: dict[str, Any]) -> None:
    net = randomised(Net(straight, **made))
    quick = folded(net, images(8))
    assert batch_norms(net) == 1 and batch_norms(quick) == 0
    assert distance(net, quick, images(8)) < 1e-5


def test_norms_without_statistics_are_none_to_fold() -> None:
    net = Net(straight, track_running_stats=False).eval()
    quick = folded(net, images(8))
    assert batch_norms(net) == 0 and torch.equal(net(images(8)), quick(images(8)))


def test_weights_that_the_convolution_standardises_are_left_alone() -> None:
    net = Net(straight)
    net.conv = timm.layers.StdConv2d(3, 3, 3, padding=1)
    assert batch_norms(folded(randomised(net), images(8))) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_plays_no_part(mode: Callable[[], Any]) -> None:
    net = randomised(Net(straight))
    with mode():
        quick = folded(net, images(8))
    assert batch_norms(quick) == 0 and distance(net, quick, images(8)) < 1e-5


def test_a_norm_known_under_two_names_is_folded_once() -> None:
    net = Net(straight)
    net.same = nn.Sequential(net.conv, net.norm)
    quick = folded(randomised(net), images(8))
    assert batch_norms(quick) == 0 and quick.get_submodule("norm") is quick.get_submodule("same.1")
    assert distance(net, quick, images(8)) < 1e-5


def test_a_norm_that_is_read_elsewhere_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        folded(randomised(Net(norm_read)), images(8))
        folded(randomised(Net(weight_read)), images(8))
    assert [r.getMessage() for r in caplog.records] == [
        "batch norms of Net are not folded: 'Sequential' object has no attribute 'running_mean'",
        "a copy of Net with batch norms folded computes something else; it is used unfolded",
    ]


def test_hooks_come_off_where_the_network_raises() -> None:
    def fails(net: Any, x: Tensor) -> Tensor:
        net.norm(net.conv(x))
        raise RuntimeError("broken")

    net = Net(fails)
    quick = folded(net, images(8))
    assert hooks(net) == hooks(quick) == 0 and batch_norms(quick) == 1


def test_a_single_image_in_nchw_does_not_hide_the_fold() -> None:
    """torch 2.14 differentiates the unfolded XCiT stem wrongly there; the check of the fold must not believe it."""
    net = timm.create_model("xcit_nano_12_p16_224", depth=2, num_classes=10).eval()
    assert batch_norms(net) - batch_norms(folded(net, images(32, 1))) == 4
