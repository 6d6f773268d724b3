"""For each origin and architecture: what is loaded from a file computes what the original does on the same [0, 1] images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interp
from interp.loading.read import Stub
from interp.models.answers import Said
from interp.models.build import build
from interp.models.inspect import inspect
from interp.models.normalise import NORMALISERS
from tests import wrappers, writers

NAMES = ("none", "imagenet", "half", "cifar10")


@dataclass(frozen=True)
class Pair:
    """A file as one code writes it of one architecture; reads: the normalisation the original has; says: what must be said."""

    write: Callable[[nn.Module, Path], None]
    arch: str
    args: dict[str, Any] = field(default_factory=dict)
    reads: str = "none"
    says: dict[str, Any] = field(default_factory=dict)
    size: int = 32
    suffix: str = ".pt"
    origin: str = ""
    bgr: bool = False

    @property
    def name(self) -> str:
        return f"{getattr(self.write, '__name__', 'file')}-{self.arch}{''.join(str(v) for v in self.args.values())}"


def named(arch: str, write: Callable[..., None]) -> Callable[[nn.Module, Path], None]:
    def run(net: nn.Module, path: Path) -> None:
        write(net, path, arch=arch)

    run.__name__ = write.__name__
    return run


def of_facebook(names: Callable[[nn.Module], dict[str, Tensor]]) -> Callable[[nn.Module, Path], None]:
    def run(net: nn.Module, path: Path) -> None:
        wrappers.facebook(names(net), path)

    run.__name__ = names.__name__
    return run


def of_cvnets(version: int) -> Callable[[nn.Module, Path], None]:
    def run(net: nn.Module, path: Path) -> None:
        torch.save(writers.cvnets_mobilevit(net, version), path)

    run.__name__ = f"cvnets_v{version}"
    return run


def of_microsoft(net: nn.Module, path: Path) -> None:
    torch.save({"model": writers.microsoft_swin(net)}, path)


PLAIN, PATCH16, RELU = {"normalise": "none"}, {"arch": "xcit_nano_12_p16_224"}, {"arch": "resnet18"}
W = wrappers
PAIRS = (
    Pair(W.bare, "xcit_nano_12_p16_224", says=PLAIN | PATCH16, size=64),
    Pair(W.bare, "xcit_p4", says=PLAIN | {"arch": "xcit_p4"}),
    Pair(W.bare, "xcit_nano_12_p8_224", says=PLAIN, size=64),
    Pair(W.bare, "deit_tiny_patch16_224", says={"normalise": "imagenet"}, reads="imagenet", size=224),
    Pair(W.bare, "cait_xxs24_224", {"depth": 12}, says=PLAIN, size=224),
    Pair(W.bare, "convnext_tiny", says=PLAIN, size=64),
    Pair(W.bare, "swin_tiny_patch4_window7_224", says=PLAIN, size=224),
    Pair(W.bare, "mobilevit_xxs", says=PLAIN | {"arch": "mobilevit_xxs"}, size=64),
    Pair(W.bare, "mobilevitv2_050", says=PLAIN, size=64),
    Pair(W.bare, "wide_resnet", {"depth": 16, "width": 2}, says=PLAIN),
    Pair(
        W.bare,
        "wide_resnet_dm",
        {"depth": 16, "width": 2, "activation": "silu"},
        says=PLAIN | {"arch_args": {"activation": "silu"}},
    ),
    Pair(W.bare, "preact_resnet", {"depth": 18}, says=PLAIN | {"arch": "preact_resnet"}),
    Pair(named("xcit_nano_12_p16_224", W.timm_training), "xcit_nano_12_p16_224", reads="imagenet", says={"ema": False}, size=64),
    Pair(named("resnet18", W.timm_training), "resnet18", reads="imagenet", says={"ema": False}, size=64, suffix=".pth.tar"),
    Pair(
        named("xcit_nano_12_p16_224", W.vits_training),
        "xcit_nano_12_p16_224",
        size=64,
        suffix=".pth.tar",
        origin="vits-robustness",
    ),
    Pair(W.vits_normalised, "resnet18", {"act_layer": "gelu"}, reads="half", says={"arch": "resnet18_gelu"}, size=64),
    Pair(W.robustbench, "resnet18", reads="imagenet", says=RELU, size=64),
    Pair(W.robustbench, "convnext_convstem", {"variant": "tiny"}, reads="imagenet", size=64),
    Pair(W.robustbench_mu_sigma, "resnet_cifar", {"depth": 18}, reads="cifar10"),
    Pair(W.robustbench_mu_sigma, "wide_resnet", {"depth": 16, "width": 2}, reads="cifar10"),
    Pair(W.madry, "resnet18", reads="imagenet", says=RELU, size=64, origin="MadryLab"),
    Pair(W.madry, "resnet_cifar", {"depth": 18}, reads="imagenet", origin="MadryLab"),
    Pair(W.lightning, "resnet18", says=PLAIN | RELU, size=64, suffix=".ckpt", origin="Lightning"),
    Pair(W.lightning_ema, "xcit_p4", {"depth": 2}, says=PLAIN | {"arch": "xcit_p4", "arch_args": {"depth": 2}, "ema": False}),
    Pair(W.compiled_parallel, "resnet_cifar", {"depth": 18}, says=PLAIN, origin="torch.compile"),
    Pair(W.parallel_compiled, "preact_resnet", {"depth": 18}, says=PLAIN | {"arch": "preact_resnet"}, origin="torch.compile"),
    Pair(W.trades, "wide_resnet", {"depth": 16, "width": 2}, says=PLAIN, origin="DataParallel"),
    Pair(W.trades, "resnet_cifar", {"depth": 18}, says=PLAIN),
    Pair(W.sequential, "wide_resnet", {"depth": 16, "width": 2}, reads="cifar10", origin="Sequential"),
    Pair(W.profiled, "resnet18", says=PLAIN | RELU, size=64),
    Pair(W.whole_module, "resnet18", says=PLAIN, size=64, origin="pickled module"),
    Pair(W.whole_module, "resnet18", {"act_layer": "gelu"}, says=PLAIN, size=64, origin="pickled module"),
    Pair(W.whole_module, "xcit_nano_12_p16_224", says=PLAIN | PATCH16, size=64, origin="pickled module"),
    Pair(W.plain_pickle, "resnet_cifar", {"depth": 18}, says=PLAIN, suffix=".pkl"),
    Pair(W.safetensors_bare, "deit_tiny_patch16_224", says=PLAIN, size=224, suffix=".safetensors"),
    Pair(W.safetensors_hub, "mobilevit_xxs", says=PLAIN | {"arch": "mobilevit_xxs"}, size=64, suffix=".bin"),
    Pair(of_facebook(writers.facebook_xcit), "xcit_nano_12_p16_224", says=PLAIN | PATCH16, size=64, origin="Facebook XCiT"),
    Pair(of_facebook(writers.facebook_xcit), "xcit_nano_12_p8_224", says=PLAIN, size=64, origin="Facebook XCiT"),
    Pair(of_facebook(writers.facebook_cait), "cait_xxs24_224", {"depth": 12}, says=PLAIN, size=224),
    Pair(of_facebook(writers.facebook_convnext), "convnext_tiny", says=PLAIN, size=64, origin="Facebook ConvNeXt"),
    Pair(of_cvnets(1), "mobilevit_xxs", says=PLAIN | {"arch": "mobilevit_xxs"}, size=64, origin="cvnets", bgr=True),
    Pair(of_cvnets(2), "mobilevitv2_050", says=PLAIN | {"channels": "rgb"}, size=64, origin="cvnets"),
    Pair(of_microsoft, "swin_tiny_patch4_window7_224", says=PLAIN, size=224, origin="Swin"),
)


def names_in(content: Any, copies: str) -> dict[str, Any]:
    """The names of the weights in a file, looked up without the code under test."""
    if isinstance(content, Stub):  # a whole module: its names come from its own state
        return {
            f"{p}{k}": v
            for p, m in modules_of(content)
            for k, v in {**m["_parameters"], **m["_buffers"]}.items()
            if v is not None
        }
    for key in ("state_dict", "model", "net"):
        if isinstance(content.get(key), dict):
            return names_in(content[key], copies)
    return dict(content)


def modules_of(module: Stub, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield prefix, module.state
    for name, child in module.state["_modules"].items():
        yield from modules_of(child, f"{prefix}{name}.")


def network(arch: str, args: dict[str, Any]) -> nn.Module:
    """Seeded weights that leave no part an identity: layer scales of 1e-5 and batch statistics of 0 and 1 would hide mistakes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(arch, num_classes=10, arch_args=args)
        for name, p in net.named_parameters():
            if "gamma" in name or p.abs().max() < 1e-3:
                nn.init.normal_(p, std=0.3)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


@pytest.mark.filterwarnings("ignore:.*pickle protocol.*")
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_loaded_logits_are_the_originals(pair: Pair, tmp_path: Path) -> None:
    net = network(pair.arch, pair.args)
    path = tmp_path / f"renamed{pair.suffix}"
    pair.write(net, path)
    loaded = interp.load(path, **pair.says).double()
    x = torch.rand(
        1 if pair.size > 64 else 2, 3, pair.size, pair.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in NORMALISERS[pair.reads])
    with torch.no_grad():  # in double precision, so that no tolerance must be made for 24 random layers
        expected = net.double()(((x.flip(1) if pair.bgr else x) - mean) / std)
        got = loaded(x)
    assert expected.std() > 1e-2, "the original says the same of everything: the test would prove nothing"
    assert torch.allclose(got, expected, atol=1e-5, rtol=0)
    found = inspect(path, Said(**pair.says))
    assert pair.origin in ", ".join(found.weights.formats)
    explained = {o for old in found.weights.source.values() for o in old.split(" + ")} | set(found.weights.dropped)
    assert explained == set(names_in(found.contents.root, found.weights.copies))
