"""Each network of our own against an independent computation from its weights, and the edited ones against timm's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.models.activations import ACTIVATIONS
from interp.models.build import build
from tests.conftest import seeded

Weights = dict[str, Tensor]

# Each network from its weights alone. Strided convolutions are computed at every place and then subsampled, so
# that which places a stride keeps is stated here and not inherited from a padding.


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    scale = w[f"{name}.weight"] / (w[f"{name}.running_var"] + 1e-5).sqrt()
    return x * scale.view(shape) + (w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale).view(shape)


def conv(w: Weights, name: str, x: Tensor, stride: int = 1, keep: int = 0) -> Tensor:
    """keep: the first place kept; 0 as PyTorch pads, 1 as TensorFlow does on even sizes."""
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)[..., keep % stride :: stride, keep % stride :: stride]


def head(w: Weights, name: str, x: Tensor) -> Tensor:
    bias = w.get(f"{name}.bias")
    return x.flatten(2).mean(2) @ w[f"{name}.weight"].T + (0 if bias is None else bias)


def blocks(w: Weights, prefix: str) -> list[str]:
    ids = {int(k.removeprefix(prefix).partition(".")[0]) for k in w if k.startswith(prefix)}
    return [f"{prefix}{i}" for i in sorted(ids)]


def resnet_cifar(w: Weights, x: Tensor) -> Tensor:
    x = norm(w, "bn1", conv(w, "conv1", x)).relu()
    for stage in (1, 2, 3, 4):
        for i, b in enumerate(blocks(w, f"layer{stage}.")):
            s = 2 if stage > 1 and i == 0 else 1
            if f"{b}.conv3.weight" in w:
                y = norm(w, f"{b}.bn1", conv(w, f"{b}.conv1", x)).relu()
                y = norm(w, f"{b}.bn2", conv(w, f"{b}.conv2", y, s)).relu()
                y = norm(w, f"{b}.bn3", conv(w, f"{b}.conv3", y))
            else:
                y = norm(w, f"{b}.bn1", conv(w, f"{b}.conv1", x, s)).relu()
                y = norm(w, f"{b}.bn2", conv(w, f"{b}.conv2", y))
            projected = f"{b}.shortcut.0.weight" in w
            x = (y + (norm(w, f"{b}.shortcut.1", conv(w, f"{b}.shortcut.0", x, s)) if projected else x)).relu()
    return head(w, "linear", x)


def preact(out_shortcut: bool) -> Callable[[Weights, Tensor], Tensor]:
    def forward(w: Weights, x: Tensor) -> Tensor:
        x = conv(w, "conv1", x)
        for stage in (1, 2, 3, 4):
            for i, b in enumerate(blocks(w, f"layer{stage}.")):
                s, a = 2 if stage > 1 and i == 0 else 1, norm(w, f"{b}.bn1", x).relu()
                if f"{b}.conv3.weight" in w:
                    y = conv(w, f"{b}.conv2", norm(w, f"{b}.bn2", conv(w, f"{b}.conv1", a)).relu(), s)
                    y = conv(w, f"{b}.conv3", norm(w, f"{b}.bn3", y).relu())
                else:
                    y = conv(w, f"{b}.conv2", norm(w, f"{b}.bn2", conv(w, f"{b}.conv1", a, s)).relu())
                read = a if out_shortcut else x
                x = y + (conv(w, f"{b}.shortcut.0", read, s) if f"{b}.shortcut.0.weight" in w else x)
        return head(w, "linear", norm(w, "bn", x).relu() if "bn.weight" in w else x)

    return forward


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def preact_dm(w: Weights, x: Tensor) -> Tensor:
    x = conv(w, "conv_2d", x)
    for stage in range(4):
        for i, b in enumerate(blocks(w, f"layer_{stage}.")):
            s = 2 if stage > 0 and i == 0 else 1
            y = conv(w, f"{b}.conv_2d_1", silu(norm(w, f"{b}.batchnorm_0", x)), s, keep=1)
            y = conv(w, f"{b}.conv_2d_2", silu(norm(w, f"{b}.batchnorm_1", y)))
            x = y + (conv(w, f"{b}.shortcut", x, s, keep=1) if f"{b}.shortcut.weight" in w else x)
    return head(w, "logits", silu(norm(w, "batchnorm", x)))


def wide(act: Callable[[Tensor], Tensor] = torch.relu, stem: str = "conv1") -> Callable[[Weights, Tensor], Tensor]:
    def features(w: Weights, x: Tensor) -> Tensor:
        x = conv(w, stem, x)
        for stage in range(3):
            for i, b in enumerate(blocks(w, f"block{stage + 1}.layer." if stem == "conv1" else f"blocks.{stage}.layer.")):
                s, a = 2 if stage > 0 and i == 0 else 1, act(norm(w, f"{b}.bn1", x))
                y = conv(w, f"{b}.conv2", act(norm(w, f"{b}.bn2", conv(w, f"{b}.conv1", a, s))))
                x = y + (conv(w, f"{b}.convShortcut", a, s) if f"{b}.convShortcut.weight" in w else x)
        return act(norm(w, "bn1", x))

    return lambda w, x: head(w, "fc", features(w, x))


def boosted(w: Weights, x: Tensor) -> Tensor:
    """Pang et al.: the cosine between features and each row of the classifier, found from the unnormalised logits."""
    logits = wide()(w, x)
    with_identity = w | {"fc.weight": torch.eye(w["fc.weight"].shape[1])}
    lengths = wide()(with_identity, x).norm(dim=1, keepdim=True) * w["fc.weight"].norm(dim=1)
    return logits / lengths


def standardised(w: Weights, x: Tensor) -> Tensor:
    return wide()(w, torch.stack([(i - i.mean()) / max(i.std().item(), i.numel() ** -0.5) for i in x]))


def pssilu(w: Weights, x: Tensor) -> Tensor:
    alpha, beta = w["activation.alpha"].abs(), w["activation.beta"].abs()
    return wide(lambda y: y * (1 / (1 + (-alpha * y).exp()) - beta) / (1 - beta))(w, x)


def wide_dm(w: Weights, x: Tensor) -> Tensor:
    x = conv(w, "init_conv", x)
    for stage in range(3):
        for i, b in enumerate(blocks(w, f"layer.{stage}.block.")):
            s, a = 2 if stage > 0 and i == 0 else 1, silu(norm(w, f"{b}.batchnorm_0", x))
            y = silu(norm(w, f"{b}.batchnorm_1", conv(w, f"{b}.conv_0", a, s, keep=1)))
            y = conv(w, f"{b}.conv_1", y)
            x = y + (conv(w, f"{b}.shortcut", a, s) if f"{b}.shortcut.weight" in w else x)
    return head(w, "logits", silu(norm(w, "batchnorm", x)))


SMALL = {"depth": 16, "width": 1}
RECOMPUTED: dict[str, tuple[str, dict[str, Any], Callable[[Weights, Tensor], Tensor]]] = {
    "basic": ("resnet_cifar", {"depth": 18}, resnet_cifar),
    "bottleneck": ("resnet_cifar", {"depth": 50}, resnet_cifar),
    "preact": ("preact_resnet", {}, preact(False)),
    "preact out": ("preact_resnet", {"out_shortcut": True, "bn_before_fc": True}, preact(True)),
    "preact bottleneck": ("preact_resnet", {"depth": 50, "out_shortcut": True}, preact(True)),
    "preact dm": ("preact_resnet_dm", {}, preact_dm),
    "wide": ("wide_resnet", SMALL | {"sub_block1": True}, wide()),
    "wide silu": ("wide_resnet", SMALL | {"activation": "silu"}, wide(silu)),
    "wide cosine": ("wide_resnet", SMALL | {"bias_last": False, "normalise_last": True}, boosted),
    "wide standardised": ("wide_resnet", SMALL | {"standardise": True}, standardised),
    "wide pssilu": ("wide_resnet", SMALL | {"activation": "pssilu"}, pssilu),
    "wide dm": ("wide_resnet_dm", SMALL, wide_dm),
    "stages": ("wide_resnet_stages", {"widths": [16, 8, 24, 16], "depths": [1, 3, 2]}, wide(stem="stem_conv")),
}


@pytest.mark.parametrize("name", RECOMPUTED)
def test_networks_compute_what_their_weights_say(name: str) -> None:
    arch, args, forward = RECOMPUTED[name]
    net = seeded(arch, args, seed=1)
    weights = net.state_dict()
    for key in weights:  # batch norms and PSSiLU start as identities
        if weights[key].ndim == 1 and key.endswith((".weight", ".bias", "alpha", "beta")):
            weights[key].uniform_(0.3, 0.9)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours, expected = net(x), forward(weights, x)
    assert ours.std() > 1e-3
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arch", "args", "module", "strides"),
    [
        ("convnext_convstem", {"variant": "tiny"}, "stem", (2, 2)),
        ("convnext_convstem", {"variant": "base"}, "stem", (2, 2, 1)),
        ("vit_convstem", {"variant": "small", "img_size": 32}, "patch_embed.proj", (2, 2, 2, 2)),
    ],
)
def test_convolutional_stems_compute_what_their_weights_say(
    arch: str, args: dict[str, Any], module: str, strides: tuple[int, ...]
) -> None:
    stem = seeded(arch, args, seed=2).get_submodule(module)
    w, y = stem.state_dict(), torch.rand(2, 3, 32, 32)
    for name in [f"stem.{3 * i + 1}" for i in range(len(strides))]:
        w[f"{name}.weight"].uniform_(0.5, 1.5)
        w[f"{name}.bias"].uniform_(-0.5, 0.5)
    with torch.no_grad():
        ours = stem(y)
        for i, s in enumerate(strides):
            y = conv(w, f"stem.{3 * i}", y, s) + w[f"stem.{3 * i}.bias"].view(1, -1, 1, 1)
            y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
            y = y * w[f"stem.{3 * i + 1}.weight"].view(1, -1, 1, 1) + w[f"stem.{3 * i + 1}.bias"].view(1, -1, 1, 1)
            y = y * (1 + torch.erf(y / 2**0.5)) / 2
        if "stem.12.weight" in w:
            y = conv(w, "stem.12", y) + w["stem.12.bias"].view(1, -1, 1, 1)
    torch.testing.assert_close(ours, y, atol=1e-5, rtol=1e-5)


def test_networks_with_a_convolutional_stem_give_logits() -> None:
    for arch, args in (("convnext_convstem", {}), ("vit_convstem", {"variant": "medium", "img_size": 64})):
        with torch.no_grad():
            assert build(arch, num_classes=5, arch_args=args).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 5)


def test_xcit_p4_is_the_16_pixel_network_with_other_strides() -> None:
    ours = seeded("xcit_p4", {"depth": 1}, seed=3)
    theirs = timm.create_model("xcit_nano_12_p16_224", num_classes=10, depth=1, img_size=32)
    theirs.load_state_dict(ours.state_dict())
    assert [m.stride for m in ours.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)][:4] == [
        (1, 1),
        (1, 1),
        (2, 2),
        (2, 2),
    ]
    x, w = torch.rand(1, 3, 32, 32), ours.state_dict()
    with torch.no_grad():
        assert ours.patch_embed(x)[1] == (8, 8) and theirs.patch_embed(x)[1] == (2, 2)
        y = x
        for i, s in zip((0, 2, 4, 6), (1, 1, 2, 2), strict=True):
            y = norm(w, f"patch_embed.proj.{i}.1", conv(w, f"patch_embed.proj.{i}.0", y, s))
            y = F.gelu(y) if i < 6 else y
        torch.testing.assert_close(ours.patch_embed(x)[0], y.flatten(2).mT, atol=1e-5, rtol=1e-5)
    assert not ours.cls_attn_blocks[0].tokens_norm
    assert build("xcit_p4", num_classes=10, arch_args={"depth": 1, "tokens_norm": True}).cls_attn_blocks[0].tokens_norm


def test_small_resnets_keep_timms_names_and_their_stem() -> None:
    for arch, args in (
        ("resnet50_32", {"width": 8}),
        ("resnet_32", {"depth": 18, "stem_stride": 2}),
        ("resnet_32", {"depth": 34, "activation": "gelu"}),
    ):
        with torch.device("meta"):
            net = build(arch, num_classes=10, arch_args=args)
        assert net.conv1.kernel_size == (3, 3) and net.conv1.stride == (args.get("stem_stride", 1),) * 2
        assert isinstance(net.maxpool, nn.Identity) and "layer2.0.downsample.1.running_var" in net.state_dict()
        assert ("GELU" in repr(net.layer1[0].act1)) == (args.get("activation") == "gelu")
    theirs = seeded("resnet_cifar", {"depth": 18}, seed=4)
    ours = build("resnet_32", num_classes=10, arch_args={"depth": 18}).eval()
    renamed = {k.replace("shortcut", "downsample").replace("linear", "fc"): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(renamed)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_gelu_resnets_differ_from_resnets_in_their_activation_alone() -> None:
    gelu, plain = build("resnet18_gelu", num_classes=3).eval(), build("resnet18", num_classes=3).eval()
    plain.load_state_dict(gelu.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(gelu(x), plain(x), atol=1e-4)
    kinds = {type(m).__name__ for m in gelu.modules()}
    assert "GELU" in kinds and "ReLU" not in kinds


def test_activations_are_what_their_names_say() -> None:
    x = torch.linspace(-3, 3, 31)
    expected = {"relu": x.clamp(min=0), "silu": silu(x), "swish": silu(x), "softplus": (1 + x.exp()).log(), "pssilu": silu(x)}
    expected["gelu"] = x * (1 + torch.erf(x / 2**0.5)) / 2
    assert expected.keys() == ACTIVATIONS.keys()
    for name, values in expected.items():
        torch.testing.assert_close(ACTIVATIONS[name]()(x), values, atol=1e-6, rtol=1e-6)
