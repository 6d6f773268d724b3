"""The network a run starts with: random, or filled from any checkpoint that `interp.load` reads.

Fine-tuning as in arXiv 2209.07399: the body is taken over, a head of another size is made anew, and an XCiT with patches of 16
becomes one with patches of 4 or 8 by the strides of its stem alone (`arch = "xcit_p4"`, `"xcit_p8"`), its names and shapes
unchanged. XCiT takes any image size; a ViT's position embedding is interpolated (timm's `resample_abs_pos_embed`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from interp.loading.detect import HEADS, mismatch
from interp.models.build import build
from interp.models.fits import COUNTED
from interp.models.inspect import inspect
from interp.models.load import load, locate
from interp.training.recipe import Recipe
from interp.types import InputError

log = logging.getLogger(__name__)


def first_network(recipe: Recipe) -> nn.Module:
    """The recipe's network, random by the global generator, or filled from `recipe.start`; raises InputError where it differs."""
    args = recipe.arch_args | ({"drop_path_rate": recipe.drop_path} if recipe.drop_path else {})
    net = build(recipe.arch, num_classes=recipe.num_classes, arch_args=args)
    if recipe.start:
        left = fill(net, weights_of(recipe.start), recipe.start)
        if left:
            log.warning("%s: made anew, since the classes differ: %s", recipe.start, ", ".join(left))
    return net


def weights_of(spec: str) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint under timm's names; what its inputs or architecture are is not asked."""
    if spec.startswith("timm:"):
        return load(spec).net.state_dict()
    return inspect(locate(spec)).weights.tensors


def fill(net: nn.Module, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Copy weights into a network and return the names of its head's that were left, since the file has other classes.

    Position embeddings of another length are interpolated. Raises InputError where anything else differs.
    """
    own = net.state_dict()
    found = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    for name, tensor in found.items():
        if name.endswith("pos_embed") and name in own and tensor.ndim == 3 and tensor.shape != own[name].shape:
            found[name] = _resampled(net, tensor, own[name])
    heads = {k.rpartition(".")[0] for k in HEADS} | {"head_dist"}
    left = [k for k, v in own.items() if k.rpartition(".")[0] in heads and k in found and found[k].shape != v.shape]
    counters = [k for k in own if k.endswith(COUNTED) and k not in found]
    taken = found | {k: own[k] for k in (*left, *counters)}
    if difference := mismatch(taken, {k: v.shape for k, v in own.items()}):
        raise InputError(f"{source} does not fit the recipe's architecture: {difference}")
    net.load_state_dict(taken)
    return left


def _resampled(net: nn.Module, found: Tensor, own: Tensor) -> Tensor:
    """A ViT's position embedding (1, prefix + positions, width) on another grid."""
    from timm.layers import resample_abs_pos_embed

    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    prefix = 0 if grid is None else own.shape[1] - grid[0] * grid[1]
    old = found.shape[1] - prefix
    if grid is None or prefix < 0 or int(old**0.5) ** 2 != old or found.shape[2] != own.shape[2]:
        return found  # the mismatch is reported with the others
    with torch.no_grad():
        return resample_abs_pos_embed(found, new_size=list(grid), num_prefix_tokens=prefix)
