"""An attack on any number of images: batched over ε, targets and restarts, in chunks that fit, with the budget asserted.

Nothing depends on how the work is cut: seeds belong to samples. Where the whole run is not wanted, a sample's search ends at its
first success (`PGD.stop`) and the chunk goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from interp.attacks.losses import LOSSES, TO_DISTRIBUTION, loss_named, succeeded
from interp.attacks.norms import NORMS
from interp.attacks.pgd import PGD, Step, pgd_steps
from interp.models.chunks import free, in_chunks, out_of_memory, tuned
from interp.models.engine import Engine, engine
from interp.models.model import Model
from interp.types import Images, InputError, Labels

Watch = Callable[[Tensor, Step], None]


@dataclass(frozen=True)
class Found:
    """Where an attack on n images ended: x (n, 3, h, w), and there, read exactly, loss (n,) and logits (n, classes).

    success (n,): read as the target, or untargeted no longer as the label (all False for losses without labels). passes (n,):
    gradients taken for each sample, all restarts together. words: the arithmetic, for the record.
    """

    x: Images
    loss: Tensor
    logits: Tensor
    success: Tensor
    passes: Tensor
    words: str = ""


TENSORS = [f.name for f in fields(Found) if f.name != "words"]


@dataclass(frozen=True)
class _Samples:
    """What is attacked: images, labels, each sample's ε, start, and index in the whole batch."""

    x: Images
    y: Tensor
    radius: Tensor
    start: Images | None
    ids: Tensor

    def __getitem__(self, at: Tensor | slice) -> _Samples:
        start = None if self.start is None else self.start[at]
        return _Samples(self.x[at], self.y[at], self.radius[at], start, self.ids[at.cpu() if isinstance(at, Tensor) else at])


def attack(
    model: nn.Module,
    x: Images,
    y: Labels,
    pgd: PGD,
    *,
    eps: Tensor | None = None,
    start: Images | None = None,
    first: int | Sequence[int] = 0,
    chunk: int | None = None,
    precision: str = "float32",
    watch: Watch | None = None,
) -> Found:
    """Run an attack on images x (n, 3, h, w) with labels or targets y, on the model's device.

    eps (n,): each image's own ε in place of pgd.eps; repeat images to try several. start, first: as in `pgd_steps`. chunk: images
    (times restarts) per pass; None finds the fastest. precision: float32; float64; fast, gradients in bfloat16 and every success
    confirmed in float32. watch(at, step): is shown every step as it is taken, and which of the images its rows are.

    Raises InputError where the shapes do not fit or memory runs out at a single image, RuntimeError should a point ever leave its
    ball or the box. Limit: ε = 0 returns x.
    """
    _check(x, y, eps, start, first)
    _check_labels(model, y, pgd)
    if isinstance(model, Model):
        model.check_images(x.shape)
    if watch is not None and pgd.restarts > 1:
        raise InputError(f"{pgd.restarts} restarts cannot be watched step by step; expected one")
    device = next((p.device for p in model.parameters()), x.device)
    runner = engine(model, tuple(x.shape), precision=precision, passes=len(x) * pgd.steps * pgd.restarts)
    samples = _Samples(
        x.to(device, runner.dtype),
        y.to(device, runner.dtype) if y.is_floating_point() else y.to(device),
        (torch.full((len(x),), pgd.eps) if eps is None else eps).to(device, runner.dtype),
        None if start is None else start.to(device, runner.dtype),
        torch.arange(first, first + len(x)) if isinstance(first, int) else torch.as_tensor(list(first)),
    )
    if chunk is None:
        chunk = _fastest(model, runner, samples, pgd)
    beside = 1 if pgd.stop else max(1, min(pgd.restarts, chunk))

    def run(rows: slice) -> Found:
        nonlocal beside
        seen = None if watch is None else lambda at, step: watch(at + rows.start, step)
        while True:
            try:
                return _restarts(runner, samples[rows], pgd, beside, seen)
            except RuntimeError as error:
                if beside == 1 or rows.stop - rows.start > 1 or not out_of_memory(error):
                    raise
            free()
            beside //= 2

    pieces = [found for _, found in in_chunks(run, len(x), chunk // beside)]
    joined = Found(**{name: torch.cat([getattr(piece, name) for piece in pieces]) for name in TENSORS}, words=runner.words)  # type: ignore[arg-type]
    _assert_within(joined.x, samples, pgd)
    return joined


def _check(x: Images, y: Tensor, eps: Tensor | None, start: Images | None, first: int | Sequence[int]) -> None:
    if x.ndim != 4 or len(x) == 0:
        raise InputError(f"images have shape {tuple(x.shape)}; expected (n, 3, height, width) with n ≥ 1")
    if not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError(f"images are {x.dtype} from {x.min():g} to {x.max():g}; expected float32 in [0, 1], without NaN")
    given = {"labels": y, "values of ε": eps, "starts": start, "indices": None if isinstance(first, int) else first}
    for name, values in given.items():
        if values is not None and len(values) != len(x):
            raise InputError(f"{len(x)} images came with {len(values)} {name}; expected one each")
    if eps is not None and not bool(((eps >= 0) & torch.isfinite(eps)).all()):
        raise InputError(f"ε are {eps.tolist()[:8]}; expected numbers ≥ 0 in units of [0, 1]")
    if start is not None and start.shape != x.shape:
        raise InputError(f"the starts have shape {tuple(start.shape)}; expected that of the images, {tuple(x.shape)}")


def _check_labels(model: nn.Module, y: Tensor, pgd: PGD) -> None:
    """Raise InputError where the loss cannot be taken against y; how many classes there are is known of a `Model`."""
    if pgd.loss not in LOSSES:
        if y.ndim < 2 or not y.is_floating_point():
            raise InputError(f"the loss {pgd.loss} compares with vectors (n, d) of floats; found {y.dtype} {tuple(y.shape)}")
        if pgd.loss in TO_DISTRIBUTION and isinstance(model, Model) and y.shape[1:] != (model.card.num_classes,):
            raise InputError(
                f"the loss {pgd.loss} compares with probabilities of shape {tuple(y.shape)}; {model.card.id} has "
                f"{model.card.num_classes} classes: give ({len(y)}, {model.card.num_classes})"
            )
        return
    if y.ndim != 1 or y.dtype != torch.int64:
        raise InputError(f"the loss {pgd.loss} needs labels (n,) int64; found {y.dtype} {tuple(y.shape)}")
    least, most = int(y.min()), int(y.max())
    classes = model.card.num_classes if isinstance(model, Model) else most + 1
    if least < 0 or most >= classes:
        raise InputError(f"labels are {least} to {most}; expected classes from 0 to {classes - 1}")


def _fastest(model: nn.Module, runner: Engine, samples: _Samples, pgd: PGD) -> int:
    """The chunk that takes least time per image for one gradient."""
    loss_of = loss_named(pgd.loss, targeted=pgd.targeted)

    def step(part: Images) -> Tensor:
        part = part.detach().requires_grad_(True)
        goal = samples.y[:1].expand(len(part), *samples.y.shape[1:])
        return torch.autograd.grad(loss_of(runner.steps(part), goal).sum(), part)[0]

    n = len(samples.x) * pgd.restarts
    weights = sum(p.numel() for p in model.parameters())
    name = f"{model.card.arch} {model.card.arch_args}" if isinstance(model, Model) else f"{type(model).__name__} {weights}"
    return tuned(step, samples.x, n=n, passes=n * pgd.steps, key=f"{name}, {runner.words}")


def _restarts(runner: Engine, samples: _Samples, pgd: PGD, beside: int, watch: Watch | None) -> Found:
    """A chunk's best of all restarts, `beside` of them at a time in one batch; with `stop` one after another, while needed."""
    n, device = len(samples.x), samples.x.device
    best: Found | None = None
    passes = torch.zeros(n, dtype=torch.int64, device=device)
    for restart in range(0, pgd.restarts, beside):
        numbers = range(restart, min(restart + beside, pgd.restarts))
        left = torch.arange(n, device=device)
        if pgd.stop and best is not None:
            left = (~best.success).nonzero()[:, 0]
        if not len(left):
            break
        runs = [number for number in numbers for _ in range(len(left))]
        found = _run(runner, samples[left.repeat(len(numbers))], pgd, runs, watch)
        for part in _apart(found, len(numbers)):
            passes[left] += part.passes
            best = part if best is None else _better(best, part, left, pgd)
    assert best is not None  # restarts ≥ 1
    return replace(best, passes=passes)


def _run(runner: Engine, samples: _Samples, pgd: PGD, runs: list[int], watch: Watch | None) -> Found:
    """One run each: its last point, or its best."""
    y, reader = samples.y, None if runner.exact else runner.reader
    steps = pgd_steps(
        runner.steps, samples.x, y, pgd,
        eps=samples.radius, start=samples.start, first=samples.ids.tolist(), restart=runs, reader=reader,
    )  # fmt: skip
    keeps_best = pgd.keep == "best" or pgd.rule == "apgd"
    passes = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    found: Found | None = None
    for step in steps:
        passes[step.rows] += int(step.gradient is not None)
        if watch is not None:
            watch(step.rows, step)
        if step.gradient is not None and not (keeps_best or pgd.stop):
            continue
        seen = Found(step.x, step.loss, step.logits, _success(step.logits, y[step.rows], pgd), passes[step.rows])
        if found is None:
            found = seen
        elif keeps_best:
            found = _better(found, seen, step.rows, pgd)
        else:
            found = _put(found, seen, step.rows)
    assert found is not None
    if keeps_best and (reader is not None or pgd.jitter or pgd.blur):
        found = _read(found, runner.reader, y, pgd)
    return replace(found, passes=passes)


def _read(found: Found, reader: nn.Module, y: Tensor, pgd: PGD) -> Found:
    """What a point found by inexact readings is really worth."""
    with torch.no_grad():
        logits = reader(found.x)
    loss = loss_named(pgd.loss, targeted=pgd.targeted)(logits, y)
    return replace(found, logits=logits, loss=loss, success=_success(logits, y, pgd))


def _success(logits: Tensor, y: Tensor, pgd: PGD) -> Tensor:
    if pgd.loss not in LOSSES:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    return succeeded(logits, y, targeted=pgd.targeted)


def _better(best: Found, fresh: Found, rows: Tensor, pgd: PGD) -> Found:
    """The best so far, with the fresh points of some rows where they succeed first, or alike but at a better loss."""
    before = best.loss[rows]
    gains = fresh.loss < before if pgd.targeted else fresh.loss > before
    wins = torch.where(fresh.success == best.success[rows], gains, fresh.success)
    at = wins.nonzero()[:, 0]
    return _put(best, Found(*(getattr(fresh, name)[at] for name in TENSORS)), rows[at])


def _put(found: Found, fresh: Found, rows: Tensor) -> Found:
    """Some rows replaced."""
    return Found(*(getattr(found, name).index_copy(0, rows, getattr(fresh, name)) for name in TENSORS))


def _apart(found: Found, runs: int) -> list[Found]:
    """The runs that stood beside each other in one batch."""
    split = [getattr(found, name).chunk(runs) for name in TENSORS]
    return [Found(*values) for values in zip(*split, strict=True)]


def _assert_within(moved: Images, samples: _Samples, pgd: PGD) -> None:
    """Every point in its ball, up to the rounding of the sum x + δ, and in the box."""
    norm, radius = NORMS[pgd.norm], samples.radius
    size, slack = norm.size(moved - samples.x), norm.size(torch.full_like(samples.x[:1], 2e-7))
    if bool((size > radius * (1 + 1e-5) + slack).any()) or not bool(((moved >= 0) & (moved <= 1)).all()):
        worst = int((size - radius).argmax())
        raise RuntimeError(f"a point left its ball: {pgd.norm} {size[worst]:.6g} for ε = {radius[worst]:.6g}; please report this")
