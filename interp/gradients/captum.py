"""Captum's attribution methods (Kokhlikyan et al., arXiv 2009.07896) through one call, on a copy of the model.

The copy has no in-place activations and keeps whatever hooks a method leaves behind, so the model stays as it is. What a method
claims is checked where it can be: attributions of DeepLift have to sum to the change of the logit, those of LRP not to explode,
and rules for ReLU need a ReLU. So on the architectures here DeepLift, guided backpropagation and deconvolution explain ResNets
alone (GELU, SiLU, layer norm and attention have no rules), and LRP only networks without residual connections.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.attacks.pgd import seeds_of
from interp.gradients.paths import baseline
from interp.gradients.rewrite import for_differences, for_relevance
from interp.models.model import Model
from interp.types import Images, InputError, Labels

if TYPE_CHECKING:
    from interp.gradients.accumulate import Accumulate

PREFIX = "captum:"
RULES = {"gauss-legendre": "gausslegendre", "midpoint": "riemann_middle", "trapezoid": "riemann_trapezoid"}
CELLS = 8  # along each axis: superpixels of FeatureAblation and its kind, windows of Occlusion
DRAWS = 8  # random draws in one call, whatever the chunk, so that it changes none of them
EXACT = 0.01  # error of a sum that is exact by construction, as a share of it; rounding leaves 1e-6
LEAST = 1e-4  # error that rounding may leave, as a share of what is summed


@dataclass(frozen=True)
class _Task:
    """What the methods are asked: the network to explain, images, labels, and the parameters made concrete."""

    net: nn.Module
    x: Images
    y: Labels
    begin: Images
    references: Images
    params: Accumulate
    chunk: int

    @property
    def grid(self) -> Tensor:
        """Number of the superpixel of each pixel (1, 1, h, w)."""
        h, w = self.x.shape[-2:]
        rows, columns = (torch.arange(side, device=self.x.device) * min(CELLS, side) // side for side in (h, w))
        return (rows[:, None] * min(CELLS, w) + columns)[None, None]

    def ask(self, name: str, *built: Any, **given: Any) -> Tensor:
        """captum.attr.NAME(net, *built).attribute(x, target=y, **given)."""
        from captum import attr

        return getattr(attr, name)(self.net, *built).attribute(self.x, target=self.y, **given)


@dataclass(frozen=True)
class Method:
    """One of captum's methods.

    each: it fills a pass with one image's draws or perturbations, so images go one by one. start: what its attributions are
    measured from, 'baseline', 'references', or '' where they sum to nothing known. exact: the sum is exact by construction.
    relu: it has a rule for ReLU alone. takes: the fields of Accumulate that it heeds (besides precision, chunk and seed).
    """

    run: Callable[[_Task], Tensor]
    each: bool = False
    start: str = ""
    exact: bool = False
    relu: bool = False
    takes: tuple[str, ...] = ()


def _plain(name: str) -> Callable[[_Task], Tensor]:
    return lambda t: t.ask(name)


def _integrated(t: _Task) -> Tensor:
    p = t.params
    return t.ask(
        "IntegratedGradients", baselines=t.begin, n_steps=p.n, method=RULES[p.rule], internal_batch_size=max(t.chunk, len(t.x))
    )


def _shap(t: _Task) -> Tensor:
    sizes = [min(DRAWS, t.params.n - done) for done in range(0, t.params.n, DRAWS)]
    found = [k * t.ask("GradientShap", baselines=t.references, n_samples=k) for k in sizes]
    return torch.stack(found).sum(0) / t.params.n


def _tunnel(kind: str) -> Callable[[_Task], Tensor]:
    """Statistics of noisy gradients; not of their absolute values."""

    def run(t: _Task) -> Tensor:
        from captum import attr

        tunnel, n = attr.NoiseTunnel(attr.Saliency(t.net)), t.params.n
        return tunnel.attribute(
            t.x, nt_type=kind, nt_samples=n, nt_samples_batch_size=min(DRAWS, n), stdevs=t.params.sigma, target=t.y, abs=False
        )

    return run


def _occlusion(t: _Task) -> Tensor:
    window = max(1, t.x.shape[-1] // CELLS)
    return t.ask(
        "Occlusion",
        sliding_window_shapes=(3, window, window),
        strides=(3, max(1, window // 2), max(1, window // 2)),
        baselines=t.begin,
        perturbations_per_eval=t.chunk,
    )


def _superpixels(name: str, *, sampled: bool = True) -> Callable[[_Task], Tensor]:
    """Methods that score superpixels; a score is shared out evenly to its pixels and channels."""

    def run(t: _Task) -> Tensor:
        draws = {"n_samples": t.params.n} if sampled else {}
        scores = t.ask(name, baselines=t.begin, feature_mask=t.grid, perturbations_per_eval=t.chunk, **draws)
        return scores / (3 * t.grid.flatten().bincount()[t.grid])

    return run


def _relevance(t: _Task) -> Tensor:
    """LRP's ε rule, from the network's input on: what is normalised outside of modules has no rule."""
    from captum import attr

    for_relevance(t.net)
    try:
        found = attr.LRP(t.net).attribute(t.x, target=t.y)
    except TypeError as error:
        layers = re.findall(r"(\w+)'>", str(error))
        raise InputError(f"it has no rule for {', '.join(layers) or error}") from error
    with torch.no_grad():
        logits = t.net(t.x)
    made = (found.flatten(1).sum(1) - logits.gather(1, t.y[:, None])[:, 0]).abs()
    if not bool((made <= 10 * logits.abs().amax(1)).all()):
        raise InputError(
            f"its relevance does not add up: {float(made.max()):.1e} too much or too little for logits up to "
            f"{float(logits.abs().max()):.1e}, as in networks that add branches outside of modules (residual connections)"
        )
    return found


METHODS: dict[str, Method] = {
    "Saliency": Method(_plain("Saliency")),
    "InputXGradient": Method(_plain("InputXGradient")),
    "IntegratedGradients": Method(_integrated, start="baseline", takes=("n", "baseline", "rule")),
    "GradientShap": Method(_shap, each=True, start="references", takes=("n",)),
    "SmoothGrad": Method(_tunnel("smoothgrad"), each=True, takes=("n", "sigma")),
    "SmoothGradSquare": Method(_tunnel("smoothgrad_sq"), each=True, takes=("n", "sigma")),
    "VarGrad": Method(_tunnel("vargrad"), each=True, takes=("n", "sigma")),
    "DeepLift": Method(lambda t: t.ask("DeepLift", baselines=t.begin), start="baseline", exact=True, takes=("baseline",)),
    "DeepLiftShap": Method(
        lambda t: t.ask("DeepLiftShap", baselines=t.references), each=True, start="references", exact=True, takes=("n",)
    ),
    "GuidedBackprop": Method(_plain("GuidedBackprop"), relu=True),
    "Deconvolution": Method(_plain("Deconvolution"), relu=True),
    "LRP": Method(_relevance),
    "Occlusion": Method(_occlusion, each=True, takes=("baseline",)),
    "FeatureAblation": Method(_superpixels("FeatureAblation", sampled=False), each=True, takes=("baseline",)),
    "ShapleyValueSampling": Method(_superpixels("ShapleyValueSampling"), each=True, start="baseline", takes=("n", "baseline")),
    "KernelShap": Method(_superpixels("KernelShap"), each=True, start="baseline", takes=("n", "baseline")),
    "Lime": Method(_superpixels("Lime"), each=True, takes=("n", "baseline")),
}


def method(name: str) -> Method:
    """The method called 'captum:NAME'; raises InputError for others, listing them."""
    short = name.removeprefix(PREFIX)
    if short not in METHODS or short == name:
        raise InputError(f"method is {name!r}; expected {PREFIX}NAME with one of {', '.join(METHODS)}")
    return METHODS[short]


def attribute(
    model: Model, x: Images, y: Labels, params: Accumulate, *, references: Images, first: int = 0, chunk: int
) -> dict[str, Tensor]:
    """What each pixel contributes to the logit y (n,) of images x (n, 3, h, w), by params.method: `attribution`, like x.

    For methods that explain a difference of logits also `completeness` (n,), the error of their sum as a share of the difference.
    DeepLiftShap takes at most params.n of the references (m, 3, h, w). Raises InputError, with the reason, where the method does
    not apply to the model.
    """
    chosen = method(params.method)
    net = copy.deepcopy(model).to(x.dtype)
    for module in net.modules():
        if "inplace" in vars(module):
            vars(module)["inplace"] = False
    if chosen.exact:
        for_differences(net)
    if chosen.relu and not any(isinstance(module, nn.ReLU) for module in net.modules()):
        raise InputError(f"{params.method} has a rule for ReLU alone, and {model.card.id} has none; take another method")
    begin = baseline(params.baseline, x, among=references)
    if chosen.start == "references":
        if len(references) < 2:
            raise InputError(f"{params.method} starts from other images, and there are none; give at least two")
        references = (references[: params.n] if chosen.exact else references).to(x)
    pieces = [slice(i, i + 1) for i in range(len(x))] if chosen.each else [slice(0, len(x))]
    seeds = seeds_of(len(x), seed=params.attack.seed, first=first)
    found = []
    for rows, seed in zip(pieces, seeds, strict=False):
        task = _Task(net, x[rows], y[rows], begin[rows], references, params, chunk)
        found.append(_run(chosen, task, model, seed))
    attribution = torch.cat(found).detach().to(x)
    if not chosen.start:
        return {"attribution": attribution}
    error, difference = _error(net, attribution, x, y, begin if chosen.start == "baseline" else references, chosen)
    if chosen.exact and bool((error > EXACT * difference + LEAST * attribution.abs().flatten(1).sum(1)).any()):
        raise InputError(
            f"{params.method} has no rules for all layers of {model.card.id}: its attributions miss what they should sum to by "
            f"{float(error.max()):.2g} of {float(difference[error.argmax()]):.2g}; take captum:IntegratedGradients"
        )
    return {"attribution": attribution, "completeness": error / difference.clamp_min(torch.finfo(x.dtype).tiny)}


def _run(chosen: Method, task: _Task, model: Model, seed: int) -> Tensor:
    """One piece, with captum's remarks silenced and its refusals in our words."""
    if task.params.method == f"{PREFIX}LRP":
        task = _normalised(task, model)
    try:
        with warnings.catch_warnings(), _seeded(seed, task.x):
            warnings.simplefilter("ignore")
            return chosen.run(task)
    except (AssertionError, NotImplementedError, ImportError, InputError) as error:
        raise InputError(f"{task.params.method} cannot be applied to {model.card.id}: {error}") from error


def _error(net: nn.Module, a: Tensor, x: Images, y: Labels, begin: Images, chosen: Method) -> tuple[Tensor, Tensor]:
    """|Σ a − difference of the logit| and |difference|, per image (n,)."""
    with torch.no_grad():
        here = net(x).gather(1, y[:, None])[:, 0]
        there = torch.cat([net(part) for part in begin.split(len(x))])
    before = there.gather(1, y[:, None])[:, 0] if chosen.start == "baseline" else there[:, y].mean(0)
    return (a.flatten(1).sum(1) - (here - before)).abs(), (here - before).abs()


def _normalised(task: _Task, model: Model) -> _Task:
    """The bare network on the input that it sees (channels in the images' order, whatever the network's)."""
    net = task.net
    assert isinstance(net, Model)
    bare, x = net.net, (task.x - net.mean) / net.std
    if model.card.preprocess.channels == "bgr":
        raise InputError("its channels are reversed outside of modules")
    return _Task(bare, x, task.y, task.begin, task.references, task.params, task.chunk)


@contextmanager
def _seeded(seed: int, like: Tensor) -> Iterator[None]:
    """Inside, the global generators that captum draws from begin at the seed; afterwards they are as before."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([like.device] if like.device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
