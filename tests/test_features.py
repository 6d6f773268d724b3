"""A model cut off at a layer: which layers there are, that no hook stays, and what inversion compares."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interp
from interp.attacks.features import cut
from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.models.model import Model
from interp.types import Batch
from tests.test_attacks import some


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


class Small(nn.Module):
    """A layer that is never called, one that gives a tuple, one that gives no images, two linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pair, self.one, self.two, self.unused = (
            nn.Conv2d(3, 4, 3), Pair(), nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(1, 1),
        )  # fmt: skip
        del self.unused
        self.idle = nn.Conv2d(1, 1, 1)
        self.total = Total()
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        z, _ = self.pair(z)
        return self.two(self.one(z.mean((2, 3))).relu()) + self.total(z)


class Pair(nn.Module):
    def forward(self, z: Tensor) -> tuple[Tensor, int]:
        return 2 * z, z.shape[-1]


class Total(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.sum()


def small() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


def test_a_layer_s_output_is_flattened_per_image() -> None:
    net, x = small(), some(3)
    z = net.conv(x)
    with cut(net, "conv") as cutting:
        assert torch.allclose(cutting(x), z.flatten(1))
    with cut(net, "pair") as cutting:  # of a tuple the first
        assert torch.allclose(cutting(x), 2 * z.flatten(1))
    with cut(net, "one") as cutting:
        assert torch.allclose(cutting(x), net.one((2 * z).mean((2, 3))))


def test_without_a_name_it_is_the_input_of_the_last_linear_layer() -> None:
    net, x = small(), some(3)
    with cut(net, "") as cutting:
        assert torch.allclose(cutting(x), net.one((2 * net.conv(x)).mean((2, 3))).relu())


def test_layers_of_a_model_are_named_from_its_net(tiny_models: list[Model], samples: Batch) -> None:
    for model, width in zip(tiny_models, (32, None, None), strict=True):
        with cut(model, "") as cutting:
            seen = cutting(samples.images[:2])
        head = [m for m in model.net.modules() if isinstance(m, nn.Linear)][-1]
        assert seen.shape == (2, head.in_features)
        assert torch.allclose(head(seen), model(samples.images[:2]), atol=1e-4)
        assert width is None or seen.shape[1] == width
        name = next(n for n, m in model.net.named_modules() if isinstance(m, nn.Conv2d))
        with cut(model, name) as cutting:
            assert cutting(samples.images[:2]).ndim == 2


@pytest.mark.parametrize("layer", ["", "conv", "pair"])
def test_the_hook_is_gone_afterwards_also_when_something_raises(layer: str) -> None:
    net = small()
    with cut(net, layer):
        assert hooks(net) == 1
    assert hooks(net) == 0
    with pytest.raises(RuntimeError), cut(net, layer) as cutting:
        cutting(torch.zeros(2, 7, 6, 6))  # the first layer takes three channels
    assert hooks(net) == 0
    with pytest.raises(KeyError), cut(net, layer):
        raise KeyError
    assert hooks(net) == 0


@pytest.mark.parametrize(
    ("layer", "said"),
    [("stem", "no layer 'stem'"), ("conv.weight", "no layer"), ("idle", "no tensor"), ("total", "one entry per")],
)
def test_layers_that_cannot_be_inverted_are_refused(layer: str, said: str) -> None:
    net = small()
    with pytest.raises(interp.InputError, match=said), cut(net, layer) as cutting:
        cutting(some(3))
    assert hooks(net) == 0


def test_an_unknown_layer_is_answered_with_names_like_it(tiny_models: list[Model]) -> None:
    with pytest.raises(interp.InputError, match=r"blocks\.0"), cut(tiny_models[0], "blocks.77"):
        pass


def test_a_network_without_linear_layers_has_to_be_told_which() -> None:
    with pytest.raises(interp.InputError, match="no linear layer"), cut(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), ""):
        pass


@pytest.mark.parametrize("precision", ["float32", "float64", "fast"])
def test_inversion_is_at_zero_at_the_image_itself_and_falls_toward_it(
    tiny_models: list[Model], samples: Batch, precision: str
) -> None:
    """From another image the features of this one come nearer; the image is a minimum already."""
    model, x = tiny_models[0], samples.images[:2]
    with cut(model, "") as cutting:
        wanted = cutting(x).detach()
        arguments: dict[str, Any] = {"precision": precision, "start": samples.images[2:4]}
        pgd = PGD(20.0, "l2", steps=8, step_size=1.0, loss="features", targeted=True)
        here = attack(cutting, x, wanted, PGD(0.0, "l2", steps=1, loss="features", targeted=True), precision=precision)
        found = attack(cutting, x, wanted, pgd, **arguments)
        far = (cutting(samples.images[2:4]) - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert here.loss.abs().max() < 1e-5
    assert (found.loss < 0.7 * far).all()
    assert not found.success.any()
    assert hooks(model) == 0


def test_a_copy_of_a_cut_network_is_cut_too() -> None:
    net, x = small(), some(3)
    with cut(net, "one") as cutting:
        twin = copy.deepcopy(cutting)
        assert torch.equal(twin(x), cutting(x))
