"""The tables of what is judged: name → maps (n, h, w) of images for their labels, and of the controls beside them.

Names are those that users type. Every method looks at the logit of the label. Random numbers belong to an image (`draws`), so a
batch may be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeAlias

from torch import nn

from interp.attention.readings import METHODS as READERS
from interp.attention.readings import read
from interp.faithfulness.baselines import centre, edges, flat, noise, smooth_noise
from interp.faithfulness.draws import normals
from interp.gradients.fold import Folded, fold
from interp.gradients.paths import baseline
from interp.gradients.sources import Draw, along, blocks, gradient, noisy
from interp.models.engine import engine
from interp.models.model import Model
from interp.types import Images, InputError, Labels, Maps

Method: TypeAlias = Callable[[Model, Images, Labels], Maps]
DRAWS, SIGMA = 32, 0.1  # points per image of integrated gradients and SmoothGrad, width of its noise in units of [0, 1]
RANDOM, EDGES = "random", "edges"
READINGS = tuple(name for name in READERS if name != "auto")  # which is another, model by model


def saliency(model: Model, x: Images, y: Labels) -> Maps:
    """|∂ logit / ∂x| summed over channels (Simonyan et al., arXiv 1312.6034, section 3, who take the largest channel)."""
    return gradient(_net(model, x), x, y, loss="logit").abs().sum(1)


def integrated_gradients(model: Model, x: Images, y: Labels) -> Maps:
    """Attribution along the straight path from grey, summed over channels, signed: it sums to the gain of the logit."""
    found = _folded(model, x, y, along(x, n=DRAWS, baseline=baseline("grey", x))).attribution
    assert found is not None  # points on a path have directions
    return -found.sum(1)  # the loss is minus the logit


def smoothgrad(model: Model, x: Images, y: Labels) -> Maps:
    """|mean gradient under noise| summed over channels."""
    points = noisy(x, n=DRAWS, sigma=SIGMA, noise=normals(x, seed=0, use="smoothgrad"))
    return _folded(model, x, y, points).running.mean.abs().sum(1)


def reading(model: Model, x: Images, y: Labels, *, method: str) -> Maps:
    """What `read` reads by a method of READINGS, enlarged bilinearly; InputError, with the reason, where it does not apply."""
    return read(model, x, y, method=method).on_image((int(x.shape[2]), int(x.shape[3])))


def _net(model: Model, x: Images) -> nn.Module:
    return engine(model, tuple(x.shape)).steps


def _folded(model: Model, x: Images, y: Labels, points: Iterable[Draw]) -> Folded:
    return fold(blocks(_net(model, x), points, y, loss="logit"))


METHODS: Mapping[str, Method] = {
    "saliency": saliency,
    "integrated-gradients": integrated_gradients,
    "smoothgrad": smoothgrad,
    **{name: partial(reading, method=name) for name in READINGS},
}
DEFAULT = ("saliency", "integrated-gradients", "smoothgrad", "gradcam", "raw", "chefer")
CONTROLS: Mapping[str, Method] = {
    RANDOM: lambda _model, x, _y: noise(x),
    "smooth random": lambda _model, x, _y: smooth_noise(x),
    EDGES: lambda _model, x, _y: edges(x),
    "centre": lambda _model, x, _y: centre(x),
    "uniform": lambda _model, x, _y: flat(x),
}


def named(words: Iterable[str], table: Mapping[str, Method] = METHODS) -> tuple[str, ...]:
    """The names of methods that these words are; raises InputError, which lists the table, where it does not have one."""
    found = tuple(words)
    if missing := [name for name in found if name not in table]:
        raise InputError(f"there is no method {', '.join(map(repr, missing))}; expected some of {', '.join(table)}")
    return found
