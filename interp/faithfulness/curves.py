"""What the score of a class does while pixels are changed in the order of a map: deletion, insertion, pixel flipping.

    z_k = b where the pixel's rank < r_k, else a,     s_k = score of class y at z_k,     k = 0 … steps

deletion        a the image, b a baseline; area under s over the share changed (RISE, Petsiuk et al., arXiv 1806.07421)
insertion       a the blurred image, b the image; the same area (there)
pixel flipping  a the image, b noise; mean of s_0 − s_k over k = 0 … steps, the AOPC (Samek et al., arXiv 1509.06321, after Bach
                et al. 2015, PLoS ONE 10(7) e0130140)

Ranks are made once and masks by comparing them with r_k, so that all points of all images are one stream of forward passes.
Standard models score higher by insertion, robust ones lower by deletion, whatever the map (arXiv 2205.13042): these numbers
compare maps of one model, never models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.faithfulness.draws import generators, uniform
from interp.gradients.paths import Blur
from interp.models.chunks import in_chunks
from interp.models.engine import engine
from interp.stats import wide
from interp.types import Images, InputError, Labels, Maps

BASELINES = ("black", "mean", "blur", "noise")
SCORES = ("probability", "logit")
TIES = ("random", "argsort")


@dataclass(frozen=True)
class Flips:
    """How pixels are changed and what is read.

    steps: the curve has steps + 1 points, the first with nothing changed, the last with everything. patch: squares of
    patch × patch pixels change together, ordered by the sum of the map over them. score: softmax 'probability' or 'logit'.
    ties: equal values in an order that is 'random', drawn for each image from its pixels and the seed, or 'argsort', in that of
    numpy's default sort, unstable as it is, over channels × pixels: quantus' order. chunk: images × points per forward pass.
    """

    steps: int = 32
    patch: int = 1
    score: str = "probability"
    ties: str = "random"
    seed: int = 0
    chunk: int = 16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.patch < 1 or self.chunk < 1:
            raise InputError(f"steps is {self.steps}, patch {self.patch}, chunk {self.chunk}; expected at least 1 each")
        for name, known in (("score", SCORES), ("ties", TIES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(known)}")


class Curve(NamedTuple):
    """share (steps + 1,) of the pixels changed, from 0 to 1; scores (n, steps + 1) of the class."""

    share: Tensor
    scores: Tensor

    @property
    def area(self) -> Tensor:
        """Area under each curve (n,) by the trapezoidal rule over the share. Limit: a constant score is its own area."""
        return torch.trapezoid(self.scores, self.share)

    @property
    def drop(self) -> Tensor:
        """Mean of s_0 − s_k over all points (n,), the AOPC. Limit: 0 for a constant score."""
        return (self.scores[:, :1] - self.scores).mean(1)


def deletion(
    model: nn.Module, x: Images, y: Labels, maps: Maps, *, baseline: str | Tensor = "mean", how: Flips = Flips()
) -> Curve:
    """The score of y while pixels of x are replaced by the baseline, largest of the map first; a small area is good.

    Arguments and errors as in `flipped`, baseline as in `filling`; RISE takes the mean colour of its data.
    """
    return flipped(model, y, maps, start=x, end=filling(baseline, x, seed=how.seed), how=how)


def insertion(
    model: nn.Module, x: Images, y: Labels, maps: Maps, *, baseline: str | Tensor = "blur", how: Flips = Flips()
) -> Curve:
    """The score of y while pixels of x are put into the baseline, largest of the map first; a large area is good.

    Limit: for logits that are linear in x, insertion + deletion of one baseline is f(x) + f(baseline) at every point.
    """
    return flipped(model, y, maps, start=filling(baseline, x, seed=how.seed), end=x, how=how)


def pixel_flipping(
    model: nn.Module, x: Images, y: Labels, maps: Maps, *, baseline: str | Tensor = "noise", how: Flips = Flips(score="logit")
) -> Curve:
    """Deletion as Samek et al. measure it: noise, logits, and of the curve its `drop`; a large one is good.

    Their drop is of the first 100 regions; it is here of all steps. For others: `drop` of a shorter curve.
    """
    return deletion(model, x, y, maps, baseline=baseline, how=how)


def filling(baseline: str | Tensor, x: Images, *, seed: int = 0) -> Images:
    """What takes the place of the pixels of x, like x.

    'black'; 'mean', each image's own mean colour; 'blur', each image through a Gaussian of a quarter of its side (RISE's of 5
    pixels at 224 leaves more of it); 'noise', uniform in [0, 1]; or a tensor that broadcasts to x. Raises InputError for others.
    """
    if isinstance(baseline, Tensor):
        try:
            return baseline.to(x).expand_as(x)
        except RuntimeError as error:
            raise InputError(f"the baseline has shape {tuple(baseline.shape)}; expected one for {tuple(x.shape)}") from error
    if baseline not in BASELINES:
        raise InputError(f"baseline is {baseline!r}; expected one of {', '.join(BASELINES)}, or a tensor")
    if baseline == "noise":
        return uniform(x, tuple(x.shape[1:]), seed=seed, use="baseline")
    if baseline == "blur":
        return Blur(x).at(0.0)[0]
    return torch.zeros_like(x) if baseline == "black" else x.mean((2, 3), keepdim=True).expand_as(x)


def flipped(model: nn.Module, y: Labels, maps: Maps, *, start: Images, end: Images, how: Flips = Flips()) -> Curve:
    """The score of y while `start` turns into `end` (n, 3, h, w), largest of the maps (n, h, w) first.

    Each image alone decides its curve, whatever the batch and the chunk. Memory beyond the arguments: ranks of all pixels, and
    chunk images in the network. Raises InputError where shapes do not fit, a map is not finite, the patch does not divide the
    image, there are more steps than patches, or a label is no class of the model.
    """
    _check(maps, y, start)
    count = squares(start, how)
    rank = ranks(maps, start, how)
    features = count * rank.shape[1]
    first = torch.arange(how.steps + 1, device=rank.device) * features // how.steps
    net = engine(model, tuple(start.shape), passes=len(start) * len(first)).reader

    def run(rows: slice) -> Tensor:
        at = torch.arange(rows.start, rows.stop, device=rank.device)
        image, point = at // len(first), at % len(first)
        logits = net(torch.where(rank[image] < first[point].view(-1, 1, 1, 1), end[image], start[image]))
        if int(y.max()) >= logits.shape[1]:
            raise InputError(f"label {int(y.max())} is no class of the model, which has {logits.shape[1]}")
        found = logits.softmax(1) if how.score == "probability" else logits
        return found.gather(1, y[image][:, None])[:, 0]

    with torch.no_grad():
        scores = torch.cat([part for _, part in in_chunks(run, len(start) * len(first), how.chunk)])
    return Curve((first / features).to(scores), scores.view(len(start), -1))


def squares(x: Images, how: Flips) -> int:
    """The number of squares of an image; raises InputError where the patch does not divide it, or there are more steps."""
    h, w = x.shape[2:]
    if h % how.patch or w % how.patch:
        raise InputError(f"patches of {how.patch} pixels do not tile an image of {h} × {w}; take a divisor of both sides")
    found = h * w // how.patch**2
    if how.steps > found:
        raise InputError(f"{how.steps} steps were asked for, but there are {found} squares to change; take fewer steps")
    return found


def ranks(maps: Maps, x: Images, how: Flips = Flips()) -> Tensor:
    """The place of each pixel in its map's order, 0 the largest: (n, 1, h, w) int32, equal inside a patch.

    x (n, 3, h, w): the images whose pixels seed the order of ties; the patch divides both sides. ties 'argsort' with patch 1
    gives every channel of a pixel its own place, (n, 3, h, w): quantus sorts the map repeated over channels.
    """
    values = maps[:, None]
    if how.patch > 1:
        values = F.avg_pool2d(values.to(wide(maps)), how.patch)
    if how.ties == "argsort":
        values = values.expand(-1, 3 if how.patch == 1 else 1, -1, -1)
        order = torch.from_numpy(np.argsort(-values.flatten(1).cpu().numpy(), axis=1)).to(maps.device)
    else:
        flat = values.flatten(1)
        each = [torch.randperm(flat.shape[1], generator=g) for g in generators(x, seed=how.seed, use="ties")]
        shuffled = torch.stack(each).to(maps.device)
        order = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place).view(values.shape).int()
    return rank.repeat_interleave(how.patch, 2).repeat_interleave(how.patch, 3)


def _check(maps: Maps, y: Labels, x: Images) -> None:
    n, _, h, w = x.shape
    if maps.shape != (n, h, w):
        raise InputError(f"maps have shape {tuple(maps.shape)}; expected {(n, h, w)}, one of the images' size each: enlarge them")
    bad = ~torch.isfinite(maps).flatten(1).all(1)
    if bool(bad.any()):
        raise InputError(
            f"the map of image {int(bad.nonzero()[0])} is not finite everywhere: it has no order; leave the image out"
        )
    if y.shape != (n,) or y.dtype.is_floating_point or bool((y < 0).any()):
        raise InputError(f"{n} images came with labels {y.tolist()[:5]} …; expected one class index ≥ 0 each")
