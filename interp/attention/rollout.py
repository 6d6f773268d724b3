"""Attention across the layers of a stage: roll-out, and relevance by gradient × attention. Matrices in, matrices out.

Both multiply matrices over all tokens of a stage, the layers that run over one set of tokens: all of a ViT, one block of a
MobileViT, one resolution of a Swin or another hierarchy, the class attention of an XCiT (its cross-covariance attention has no
tokens × tokens weights, and moves nothing between tokens), the patch and class layers of a CaiT. What convolutions between these
layers move from token to token is not in them.

    roll-out    R = Π_l Â_l,  Â = (1 − r)·E_h[A] + r·I, rows divided by their sum   (Abnar & Zuidema, arXiv 2005.00928, eq. 1)
    relevance   R ← R + Ā_l·R,  R_0 = I,  Ā = E_h[(∇A ⊙ A)⁺]                         (Chefer et al., arXiv 2103.15679, eq. 5, 6)

An attention pool has no skip connection around it: there r = 0, and R ← Ā_l·R. ∇A is the gradient of one logit. The output of a
head is A·V, so ∇A = ∇(A·V)·Vᵀ, which needs no unfused attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.attention.capture import Captured
from interp.attention.layout import ONE, SIGNED
from interp.attention.maps import dense
from interp.types import InputError

HEADS = ("mean", "max", "min")


def reduce_heads(weights: Tensor, head: str | int) -> Tensor:
    """(n, heads, …) → (n, …): the mean, maximum or minimum over heads, or one head."""
    if isinstance(head, int):
        if not 0 <= head < weights.shape[1]:
            raise InputError(f"head is {head}; the layer has heads 0 to {weights.shape[1] - 1}")
        return weights[:, head]
    if head not in HEADS:
        raise InputError(f"head is {head!r}; expected {', '.join(HEADS)} or a number")
    return weights.mean(1) if head == "mean" else weights.amax(1) if head == "max" else weights.amin(1)


def last_stage(layers: Sequence[Captured]) -> list[Captured]:
    """The layers of the last stage that weigh tokens by tokens; raises InputError where there are none.

    Of a stage with layers whose queries and keys stand on different grids, those behind the last of these.
    """
    named = [c for c in layers if c.kind not in ("channel", "context") and c.geometry is not None]
    if not named:
        kinds = {c.kind: 0 for c in layers}
        raise InputError(
            f"its attention ({', '.join(kinds) or 'none'}) has no weights of tokens on tokens that layers could be chained by"
        )
    stage = [c for c in named if c.stage == named[-1].stage]
    uneven = [k for k, c in enumerate(stage) if c.geometry is not None and not c.geometry.one_grid]
    if uneven and uneven[-1] == len(stage) - 1:
        raise InputError(
            f"the queries of layer {stage[-1].name}, the last, stand on another grid than its keys: there are no weights "
            "of tokens on the same tokens that layers could be chained by"
        )
    return stage[uneven[-1] + 1 :] if uneven else stage


def joint(layers: Sequence[Captured], matrices: Sequence[Tensor], *, identity: bool) -> list[Tensor]:
    """Head-reduced weights of each layer as matrices over one set of tokens, (n, T, T) each.

    Tokens that a layer does not update, the patches in class attention or a class token that comes later, get a row of zeros,
    with identity a 1 on the diagonal. A learnt latent of any layer is the first token.
    """
    placed = [c.geometry for c in layers if c.geometry is not None]
    most, ahead = max(g.prefix for g in placed), int(any(g.latent for g in placed))
    found = []
    for layer, matrix in zip(layers, matrices, strict=True):
        assert layer.geometry is not None
        square = dense(matrix, layer.geometry)
        missing = most - layer.geometry.prefix
        own = int(layer.geometry.latent)  # 1 where the latent is there already: the missing come behind it
        square = torch.cat([F.pad(square[..., :own], (ahead - own, missing)), square[..., own:]], -1)
        square = torch.cat([F.pad(square[:, :own], (0, 0, ahead - own, missing)), square[:, own:]], 1)
        if identity:
            first = 0 if own else ahead + missing
            idle = torch.ones(square.shape[-1], dtype=torch.bool, device=square.device)
            idle[first : first + 1 if layer.kind in ONE else None] = False
            square = square + torch.diag(idle.to(square))
        found.append(square)
    return found


def rollout(layers: Sequence[Captured], *, head: str | int = "mean", residual: float = 0.5) -> Tensor:
    """Attention roll-out over the layers of one stage, (n, T, T): row i says where token i comes from; rows sum to 1.

    residual: the share r of the skip connection. Weights that can be negative, as of talking heads, enter by their absolute
    value. Limit: residual=1 gives the identity, but for the row of an attention pool; one layer with residual=0 its own weights.
    """
    if not 0 <= residual <= 1:
        raise InputError(f"residual is {residual}; expected a share from 0 to 1")
    matrices = [reduce_heads(c.weights.abs() if c.kind in SIGNED else c.weights, head) for c in layers]
    flow: Tensor | None = None
    for layer, square in zip(layers, joint(layers, matrices, identity=True), strict=True):
        rows, share = square / square.sum(-1, keepdim=True).clamp_min(1e-12), residual if layer.skip else 0.0
        mixed = (1 - share) * rows + share * torch.eye(rows.shape[-1], device=rows.device)
        flow = mixed if flow is None else mixed @ flow
    assert flow is not None
    return flow


def gradient_weighted(layers: Sequence[Captured], score: Tensor, *, head: str | int = "mean") -> list[Tensor]:
    """Ā = E_h[(∇A ⊙ A)⁺] of each layer, (n·groups, queries, keys), for a score that the layers' outputs are in the graph of."""
    found = torch.autograd.grad(score, [c.output for c in layers], allow_unused=True)
    matrices = []
    for layer, gradient in zip(layers, found, strict=True):
        if gradient is None:
            raise InputError(f"attention layer {layer.name} has no part in the logits")
        sensitivity = gradient.detach().to(layer.values) @ layer.values.transpose(-2, -1)
        matrices.append(reduce_heads((sensitivity * layer.weights).clamp_min(0), head))
    return matrices


def relevance(layers: Sequence[Captured], matrices: Sequence[Tensor]) -> Tensor:
    """Relevance R − I of tokens for tokens after the layers of one stage, (n, T, T), ≥ 0, from `gradient_weighted` matrices.

    Behind an attention pool R, which has no part that was skipped.
    """
    total: Tensor | None = None
    for layer, square in zip(layers, joint(layers, matrices, identity=False), strict=True):
        through = square if total is None else square + square @ total
        total = through if total is None or not layer.skip else total + through
    assert total is not None
    return total
