"""Architectures by name: timm builds what timm has; the few it lacks are edited or written here, each with its source.

An architecture's shape-changing choices are keyword arguments (`arch_args` of a card), so that a card rebuilds its
network exactly. They are plain values: words, numbers, true or false, lists of these.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn as nn

from interp.models.convstem import convnext_convstem, vit_convstem
from interp.models.preact_resnet import PreActResNet, PreActResNetDM
from interp.models.resnet_cifar import ResNetCifar
from interp.models.small_images import mobilevit_small_images, resnet50_small_images, resnet_small_images, xcit_p4, xcit_p8
from interp.models.wide_resnet import WideResNet, WideResNetDM, WideResNetStages
from interp.types import InputError

DEEPEST = 200  # blocks; the deepest published here is ResNet-152
LARGEST = 50_000  # widths, pixels, classes; ImageNet-21k has 21,843
FORBIDDEN = {"features_only", "scriptable", "exportable", "no_jit", "in_chans", "num_classes", "out_indices", "feature_cls"}

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "xcit_p4": xcit_p4,
    "xcit_p8": xcit_p8,
    "mobilevit_32": mobilevit_small_images,
    "resnet50_32": resnet50_small_images,
    "resnet_32": resnet_small_images,
    "resnet_cifar": ResNetCifar,
    "preact_resnet": PreActResNet,
    "preact_resnet_dm": PreActResNetDM,
    "wide_resnet": WideResNet,
    "wide_resnet_dm": WideResNetDM,
    "wide_resnet_stages": WideResNetStages,
    "convnext_convstem": convnext_convstem,
    "vit_convstem": vit_convstem,
}

_M12, _L12 = ({"variant": f"xcit_{size}_24_p16_224", "depth": 12} for size in ("medium", "large"))
_GELU = {"act_layer": "gelu"}

ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    # dedeswim/vits-robustness-torch: its registered names and the spellings of its README
    "xcit_medium_12_p16_224": ("xcit_medium_24_p16_224", {"depth": 12}),
    "xcit_large_12_p16_224": ("xcit_large_24_p16_224", {"depth": 12}),
    "xcit_large_12_h8_p16_224": ("xcit_large_24_p16_224", {"depth": 12, "num_heads": 8}),
    "xcit_small_12_p12_224": ("xcit_small_12_p16_224", {}),
    "xcit_small_12_p4_32": ("xcit_p4", {"variant": "xcit_small_12_p16_224"}),
    "xcit_medium_12_p4_32": ("xcit_p4", _M12),
    "xcit_large_12_p4_32": ("xcit_p4", _L12),
    "xcit_large_12_4_32": ("xcit_p4", _L12),
    "cait_s12_224": ("cait_s24_224", {"depth": 12}),
    "resnet50_gelu": ("resnet50", _GELU),
    "resnet_50_gelu": ("resnet50", _GELU),
    "resnet18_gelu": ("resnet18", _GELU),
    "resnet_50_32": ("resnet50_32", {}),
    "preact_resnet_18": ("preact_resnet", {"depth": 18}),
    # RobustBench's names of its XCiTs for timm
    **{
        f"debenedetti2022light_xcit_{size}12_{data}_linf": built
        for size, p4, p16 in (
            ("s", ("xcit_p4", {"variant": "xcit_small_12_p16_224"}), ("xcit_small_12_p16_224", {})),
            ("m", ("xcit_p4", _M12), ("xcit_medium_24_p16_224", {"depth": 12})),
            ("l", ("xcit_p4", _L12), ("xcit_large_24_p16_224", {"depth": 12})),
        )
        for data, built in (("cifar10", p4), ("cifar100", p4), ("imagenet", p16))
    },
    # and of its networks with a convolutional stem
    **{f"convnext_{v[0]}_cvst": ("convnext_convstem", {"variant": v}) for v in ("tiny", "small", "base", "large")},
    **{f"vit_{v[0]}_cvst": ("vit_convstem", {"variant": v}) for v in ("small", "medium", "base")},
    # wide and pre-activation ResNets as papers write them
    **{
        name: ("wide_resnet", {"depth": depth, "width": width})
        for depth, width in ((28, 4), (28, 10), (34, 10), (34, 15), (34, 20), (70, 16), (106, 16), (40, 2))
        for name in (f"wrn_{depth}_{width}", f"wideresnet_{depth}_{width}", f"wide_resnet{depth}_{width}")
    },
    **{f"resnet{depth}_cifar": ("resnet_cifar", {"depth": depth}) for depth in (18, 34, 50, 101, 152)},
    **{f"preactresnet{depth}": ("preact_resnet", {"depth": depth}) for depth in (18, 34)},
    # names of earlier cards
    "resnet18_32": ("resnet_cifar", {"depth": 18}),
    "xcit_nano_p4": ("xcit_p4", {}),
}


def resolve(arch: str, arch_args: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """The architecture and arguments that a name stands for; given arguments replace those of an alias."""
    name, implied = ALIASES.get(arch, (arch, {}))
    return name, implied | (arch_args or {})


def is_known(arch: str) -> bool:
    """Whether a name, an alias or one of timm's, can be built."""
    import timm

    name, _ = resolve(arch)
    return name in BUILDERS or (re.fullmatch(r"\w+", name) is not None and timm.is_model(name))


def out_of_bounds(args: Mapping[str, Any], num_classes: int) -> str:
    """Why these arguments are not built, empty where they are: a card or a file may ask for a network of any size.

    Nothing that would make timm read files or hosts is passed on, and numbers must be those of a network that fits a machine.
    """
    if not isinstance(num_classes, int) or not 1 <= num_classes <= LARGEST:
        return f"{num_classes} classes"
    for key, value in args.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        deep = key in ("depth", "depths", "layers")
        largest = DEEPEST if deep else LARGEST
        if str(key).startswith(("pretrained", "checkpoint", "cache")) or key in FORBIDDEN:
            return f"{key}, which is no part of an architecture"
        if len(values) > 64 or not all(isinstance(v, (bool, int, float, str)) or v is None for v in values):
            return f"{key} = {str(value)[:60]}, where a word, a number or a short list belongs"
        if any(isinstance(v, str) and re.fullmatch(r"[\w.\-]{0,64}", v) is None for v in values):
            return f"{key} = {str(value)[:60]!r}, where a plain word belongs"
        numbers = [abs(v) for v in values if isinstance(v, (int, float))]
        if not all(v <= largest for v in numbers) or (deep and sum(numbers) > largest):
            return f"{key} = {str(value)[:60]}, beyond {largest}"
    return ""


def nearest(arch: str) -> list[str]:
    """Up to four known names that resemble a wrong one."""
    import timm

    return difflib.get_close_matches(arch, [*BUILDERS, *ALIASES, *timm.list_models()], n=4, cutoff=0.4)


def build(arch: str, *, num_classes: int, arch_args: dict[str, Any] | None = None) -> nn.Module:
    """A network with random weights: one of ours by name, an alias, or any of timm's.

    layer_norm_eps, which timm's constructors cannot be told, is an argument of all: the ε of every LayerNorm.
    Raises InputError where the name is unknown (naming the nearest ones) or an argument does not fit.
    """
    name, args = resolve(arch, arch_args)
    if not is_known(name):
        raise InputError(f"no architecture is called {arch!r}; the nearest names are {', '.join(nearest(arch)) or 'none'}")
    if reason := out_of_bounds(args, num_classes):
        raise InputError(f"architecture {arch!r} is not built with {reason}")
    eps = args.pop("layer_norm_eps", None)
    try:
        if name in BUILDERS:
            net = BUILDERS[name](num_classes=num_classes, **args)
        else:
            import timm

            net = timm.create_model(name, num_classes=num_classes, **args)
    except InputError:
        raise
    except Exception as error:  # constructors raise many kinds on arguments that make no network
        first = str(error).partition("\n")[0]
        raise InputError(f"architecture {arch!r} does not take these arguments: {args} ({first})") from error
    if eps is not None:
        for module in net.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = float(eps)
    return net
