"""Learning rate and ε as shares of their peak, functions of the step alone, so that a resumed run needs no memory of them.

ε warm-up: linear and sine as in dedeswim/vits-robustness-torch (`make_linear_schedule`, `make_sine_schedule`), by step instead
of by epoch. One-cycle: Smith & Topin, arXiv 1708.07120, with torch's defaults (cosine up from 1/25, down to 1/250,000).
"""

from __future__ import annotations

import math
from collections.abc import Callable

EPS: dict[str, Callable[[float], float]] = {  # share of the period done → share of ε
    "constant": lambda t: 1.0,
    "linear": lambda t: t,
    "sine": lambda t: 0.5 * (1 + math.sin(math.pi * (t - 0.5))),
}


def eps_share(kind: str, epoch: float, period: float) -> float:
    """Share of ε in force `epoch` epochs (fractions count) into training. Limit: period = 0 is always 1."""
    return 1.0 if epoch >= period else EPS[kind](epoch / period)


def _cosine(t: float, warmup: float) -> float:
    if t < warmup:
        return t / warmup
    return 0.5 * (1 + math.cos(math.pi * (t - warmup) / (1 - warmup)))


def _onecycle(t: float, warmup: float) -> float:
    first, last = 1 / 25, 1 / 250_000
    if t < warmup:
        return first + (1 - first) * 0.5 * (1 - math.cos(math.pi * t / warmup))
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (t - warmup) / (1 - warmup)))


def _step(t: float, warmup: float) -> float:
    """A tenth after each 30 % of the run (He et al., arXiv 1512.03385, in shares)."""
    return t / warmup if t < warmup else 0.1 ** min(3, int(t / 0.3 + 1e-9))


LR: dict[str, Callable[[float, float], float]] = {"cosine": _cosine, "onecycle": _onecycle, "step": _step}


def lr_share(kind: str, t: float, warmup: float) -> float:
    """Share of the peak learning rate at a share t ∈ [0, 1] of all steps, rising over the first `warmup` of them."""
    return LR[kind](t, min(warmup, 1 - 1e-9))
