"""Whether a map lies on the object: shares of it inside a mask, beside those of maps that know nothing.

Of maps v (n, h, w) by their absolute value, masks M (n, h, w) of K pixels out of d:

    mass       Σ_{p ∈ M} |v| / Σ |v|                    relevance mass accuracy (Arras et al., arXiv 2003.07258)
    rank       share of the K largest |v| inside M      relevance rank accuracy (same)
    pointing   whether the largest |v| is inside M      pointing game (Zhang et al., arXiv 1608.00507)
    …_gain     the same / what a uniform map scores

Ties count as their mean over all orders, so a uniform map scores the mask's share of the area, K/d, in all three (in pointing,
where there is a tolerance, that of the mask widened by it). Masks that are empty or full, and maps of zeros, give NaN: nothing
can be told apart there. The controls are the uniform map and a Gaussian around the centre, where photographers put the object
(`controls`); a map that does not beat the latter need not come from the object. Gains are ratios: small masks weigh most in
their mean.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from interp.attention.statistics import focus
from interp.result import Measure
from interp.types import InputError, Maps, Masks


def mass(maps: Maps, masks: Masks) -> Tensor:
    """Share of |map| inside each mask, (n,) in [0, 1]: `focus`, with NaN where it is not defined."""
    ready = _prepared(maps, masks)
    found = maps.new_full((len(maps),), torch.nan)
    found[ready] = focus(maps[ready].abs(), masks[ready])
    return found


def rank(maps: Maps, masks: Masks) -> Tensor:
    """Share of the K largest |map| that lie inside each mask of K pixels, (n,) in [0, 1].

    Pixels tied for the last places share them, also where those are zeros: a map of a few points outside the mask scores above 0.
    """
    ready = _prepared(maps, masks)
    a, inside = maps.abs().flatten(1), masks.flatten(1)
    places = inside.sum(1, keepdim=True)
    threshold = a.sort(1, descending=True).values.gather(1, (places - 1).clamp_min(0))
    above, tied = a > threshold, a == threshold
    share = (places - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
    hits = ((above + tied * share) * inside).sum(1)
    return torch.where(ready, hits / places[:, 0], torch.nan)


def pointing(maps: Maps, masks: Masks, *, tolerance: int = 0) -> Tensor:
    """Whether the largest |map| is at most `tolerance` pixels from each mask, (n,) 0 or 1; of several largest the share that is.

    The paper allows 15 pixels in photographs of some 500. Raises InputError for a negative tolerance.
    """
    ready = _prepared(maps, masks)
    a = maps.abs().flatten(1)
    largest = a == a.amax(1, keepdim=True)
    hits = (largest * _widened(masks, tolerance).flatten(1)).sum(1) / largest.sum(1)
    return torch.where(ready, hits, torch.nan)


def localise(maps: Maps, masks: Masks, *, tolerance: int = 0) -> dict[str, np.ndarray]:
    """Every row of MEASURES by name, (n,) float64; maps of any sign: of a map with channels, give Σ_channels |v|."""
    found, uniform = (_scores(v, masks, tolerance) for v in (maps, torch.ones_like(maps)))
    return found | {f"{name}_gain": found[name] / uniform[name] for name in found}


def controls(masks: Masks, *, tolerance: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """What maps that know neither image nor model score: name of the map → rows of MEASURES, as `localise`."""
    shape = (int(masks.shape[-2]), int(masks.shape[-1]))
    maps = {"uniform map": torch.ones(shape), "centre map": centre(shape)}
    return {name: localise(m.to(masks.device).expand(masks.shape), masks, tolerance=tolerance) for name, m in maps.items()}


def centre(shape: tuple[int, int], *, width: float = 0.25) -> Tensor:
    """A Gaussian (h, w) around the centre, σ = width of each side."""
    rows, columns = (torch.exp(-((((torch.arange(side) + 0.5) / side - 0.5) / width) ** 2) / 2) for side in shape)
    return rows[:, None] * columns


def _scores(maps: Maps, masks: Masks, tolerance: int) -> dict[str, np.ndarray]:
    found = {"mass": mass(maps, masks), "rank": rank(maps, masks), "pointing": pointing(maps, masks, tolerance=tolerance)}
    return {name: v.double().cpu().numpy() for name, v in found.items()}


def _prepared(maps: Maps, masks: Masks) -> Tensor:
    """Which images (n,) have a mask with an inside and an outside, and a map that is not 0; InputError for other shapes."""
    if maps.shape != masks.shape or maps.ndim != 3 or masks.dtype != torch.bool:
        raise InputError(
            f"maps have shape {tuple(maps.shape)}, masks {tuple(masks.shape)} of {masks.dtype}; "
            "expected the same (n, h, w), and masks of bool"
        )
    inside = masks.flatten(1)
    return inside.any(1) & ~inside.all(1) & (maps.flatten(1) != 0).any(1)


def _widened(masks: Masks, by: int) -> Masks:
    """Masks with all pixels at most `by` pixels from them, measured straight from centre to centre."""
    if by < 0:
        raise InputError(f"the tolerance is {by} pixels; expected 0 or more")
    away = torch.arange(-by, by + 1, device=masks.device).float()
    disc = (torch.hypot(away[:, None], away) <= by).float()
    return F.conv2d(masks[:, None].float(), disc[None, None], padding=by)[:, 0] > 0.5


_SCORES = (
    Measure("mass", "share on the object", "Σ_{p ∈ mask} |v| / Σ |v|", "relevance mass, arXiv 2003.07258", "share", "higher"),
    Measure(
        "rank",
        "rank accuracy",
        "share of the K largest |v| inside the mask of K pixels",
        "relevance rank, arXiv 2003.07258",
        "share",
        "higher",
    ),
    Measure("pointing", "pointing game", "whether the largest |v| is inside the mask", "arXiv 1608.00507", "share", "higher"),
)
MEASURES = tuple(
    row
    for m in _SCORES
    for row in (
        m,
        Measure(f"{m.name}_gain", f"{m.title} / area", f"{m.formula}, over a uniform map's", m.source, "ratio", m.better),
    )
)
