"""Activations by name, since a card can only carry plain words. They change no shape, except PSSiLU's two parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from interp.types import InputError


class PSSiLU(nn.Module):
    """SiLU with a learnt slope α and shift β: x·(σ(|α|x) − |β|) / (1 − |β|); (Dai et al. 2021, arXiv 2110.05626)."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([1e-8]))
        self.alpha = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: Tensor) -> Tensor:
        shift = self.beta.abs()
        return x * (torch.sigmoid(self.alpha.abs() * x) - shift) / (1 - shift)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,  # the name that Gowal et al. use
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "pssilu": PSSiLU,
}


def activation_by_name(name: str) -> nn.Module:
    """A new activation module; raises InputError where the name is unknown."""
    if name not in ACTIVATIONS:
        raise InputError(f"no activation is called {name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()
