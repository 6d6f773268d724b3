"""Attacks on many images: nothing depends on how the work is cut, the best is kept, a success is real."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interp
from interp.attacks.losses import LOSSES, succeeded
from interp.attacks.norms import NORMS, Norm
from interp.attacks.pgd import PGD, Step, pgd_steps
from interp.attacks.rules import RULES
from interp.attacks.search import TENSORS, Found, attack
from interp.models.engine import PRECISIONS, Engine
from interp.models.model import Model
from interp.types import Batch
from tests.test_attacks import EPS, Curved, some

KINDS: list[dict[str, Any]] = [
    {},
    {"norm": "l2", "loss": "margin"},
    {"norm": "l1", "rule": "apgd"},
    {"rule": "momentum", "keep": "best"},
    {"rule": "apgd", "loss": "dlr"},
    {"stop": True},
    {"stop": True, "rule": "apgd", "norm": "l2"},
    {"jitter": 2, "blur": 0.7},
    {"basis": "fourier", "norm": "l2", "stop": True},
    {"targeted": True, "stop": True, "jitter": 1},
]
MODEL = Curved()


def pgd(kind: dict[str, Any], **more: Any) -> PGD:
    """A budget at which some images succeed and others do not."""
    return PGD(**({"eps": EPS[kind.get("norm", "linf")] / 4, "steps": 6} | kind | more))


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    x = some(n, width=5)
    return x, MODEL(x).argmax(1)


def same(one: Found, two: Found, atol: float = 1e-5) -> bool:
    near = all(torch.allclose(getattr(one, f), getattr(two, f), atol=atol, rtol=1e-4) for f in ("x", "loss", "logits"))
    return near and torch.equal(one.success, two.success) and torch.equal(one.passes, two.passes)


def joined(parts: list[Found]) -> Found:
    return Found(*(torch.cat([getattr(part, name) for part in parts]) for name in TENSORS))


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_any_cut_of_the_work_gives_one_answer(kind: dict[str, Any], restarts: int) -> None:
    (x, y), params = images(), pgd(kind, restarts=restarts)
    whole = attack(MODEL, x, y, params, chunk=64)
    assert len(whole.x) == 6
    for chunk in (1, 2, 4, 5, None):
        assert same(whole, attack(MODEL, x, y, params, chunk=chunk)), chunk
    for size in (1, 4):
        pieces = [attack(MODEL, x[i : i + size], y[i : i + size], params, first=i) for i in range(0, 6, size)]
        assert same(whole, joined(pieces)), size


def test_images_in_another_order_find_the_same() -> None:
    x, y = images()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    whole, shuffled = attack(MODEL, x, y, pgd({})), attack(MODEL, x[order], y[order], pgd({}), first=order.tolist(), chunk=2)
    assert torch.allclose(whole.x[order], shuffled.x, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_s_own_budget_is_that_of_a_run_with_it(kind: dict[str, Any]) -> None:
    (x, y), params = images(), pgd(kind)
    eps = params.eps * torch.tensor([0.0, 0.5, 1.0, 2.0, 1.0, 0.5])
    whole = attack(MODEL, x, y, params, eps=eps)
    for value in eps.unique():
        rows = (eps == value).nonzero()[:, 0]
        alone = attack(MODEL, x[rows], y[rows], dataclasses.replace(params, eps=float(value)), first=rows.tolist())
        assert same(joined([dataclasses.replace(whole, **{f: getattr(whole, f)[rows] for f in TENSORS})]), alone)
    assert torch.allclose(whole.x[0], x[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_is_read_where_it_was_found(kind: dict[str, Any]) -> None:
    (x, y), params = images(), pgd(kind, restarts=2)
    found = attack(MODEL, x, y, params)
    with torch.no_grad():
        logits = MODEL(found.x)
    assert torch.allclose(found.logits, logits, atol=1e-4)
    assert torch.equal(found.success, succeeded(logits, y, targeted=params.targeted))
    assert (found.passes >= 1).all()
    assert (found.passes <= 12).all()


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("targeted", [False, True])
def test_stop_ends_at_the_first_point_that_succeeds(rule: str, targeted: bool) -> None:
    n = 60 if rule == "apgd" else 12  # its first step is as long as the ball, and most of what succeeds does so at once
    x, y = images(n)
    y = (y + 2) % 6 if targeted else y
    params = PGD((4 if rule == "apgd" else 8) / 255, steps=8, rule=rule, targeted=targeted, stop=True)
    seen: list[Step] = []
    whole = dataclasses.replace(params, stop=False)
    attack(MODEL, x, y, whole, watch=lambda at, step: seen.append(step), chunk=n)
    found = attack(MODEL, x, y, params, chunk=n)
    won = torch.stack([succeeded(step.logits, y, targeted=targeted) for step in seen])
    first = won.int().argmax(0)
    assert torch.equal(found.success, won.any(0))
    assert len(set(first[won.any(0)].tolist())) > 1  # some sooner, some later
    for i in range(n):
        at = int(first[i]) if won[:, i].any() else 8
        assert int(found.passes[i]) == min(at + 1, 8)
        if won[:, i].any() or rule == "pgd":
            assert torch.allclose(found.x[i], seen[at].x[i], atol=1e-6)
            assert torch.allclose(found.logits[i], seen[at].logits[i], atol=1e-4)


@pytest.mark.parametrize("rule", list(RULES))
def test_stop_succeeds_wherever_the_best_of_the_whole_run_does(rule: str) -> None:
    x, y = images(20)
    params = PGD(4 / 255, steps=10, rule=rule, restarts=2)
    best = attack(MODEL, x, y, dataclasses.replace(params, keep="best"))
    stopped = attack(MODEL, x, y, dataclasses.replace(params, stop=True))
    assert torch.equal(best.success, stopped.success)
    assert 0 < int(best.success.sum()) < 20
    assert stopped.passes.sum() < best.passes.sum() == 20 * 20


def test_restarts_go_on_only_for_images_that_have_not_succeeded() -> None:
    x, y = images(20)
    params = PGD(3 / 255, steps=4, stop=True)
    one, three = (attack(MODEL, x, y, dataclasses.replace(params, restarts=r)) for r in (1, 3))
    assert torch.equal(three.passes[one.success], one.passes[one.success])
    assert (three.passes[~three.success] == 12).all()
    assert torch.equal(three.x[one.success], one.x[one.success])


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["ce", "dlr", "logit"])
def test_restarts_keep_the_best_by_success_and_then_loss(targeted: bool, loss: str) -> None:
    x, y = images(200)
    y = (y + 1) % 6 if targeted else y
    params = PGD(3 / 255, steps=1, step_size=0.5 / 255, targeted=targeted, loss=loss)
    runs = [list(pgd_steps(MODEL, x, y, params, restart=r))[-1] for r in range(4)]
    found, disagree = attack(MODEL, x, y, dataclasses.replace(params, restarts=4), chunk=800), 0
    for i in range(len(x)):
        scores = [(bool((r.logits[i].argmax() == y[i]) == targeted), (-1 if targeted else 1) * float(r.loss[i])) for r in runs]
        best = scores.index(max(scores))
        assert torch.allclose(found.x[i], runs[best].x[i], atol=1e-6)
        assert bool(found.success[i]) == scores[best][0]
        disagree += best != max(range(4), key=lambda r: scores[r][1])
    assert (found.passes == 4).all()
    assert loss != "logit" or disagree  # a run that succeeds may have less of this loss than one that does not


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", list(NORMS))
def test_the_best_of_a_run_is_never_worse_than_its_last(targeted: bool, norm: str) -> None:
    x, y = images(24)
    y = (y + 1) % 6 if targeted else y
    params = PGD(EPS[norm], norm, steps=8, step_size=2 * EPS[norm], targeted=targeted)  # large steps: losses go up and down
    last, best = (attack(MODEL, x, y, dataclasses.replace(params, keep=k)) for k in ("last", "best"))
    assert (best.success | ~last.success).all()
    alike = best.success == last.success
    gain = (last.loss - best.loss if targeted else best.loss - last.loss)[alike]
    assert (gain >= 0).all()
    assert (gain > 0).any()


def test_watch_sees_every_step_of_every_image_whatever_the_chunk() -> None:
    x, y = images()
    tables = []
    for chunk in (1, 4, 6):
        table = torch.full((6, 5), torch.nan)

        def note(at: Tensor, step: Step, table: Tensor = table) -> None:
            assert len(at) == len(step.x) == len(step.loss)
            table[at, step.index] = step.loss

        found = attack(MODEL, x, y, PGD(0.05, steps=4), watch=note, chunk=chunk)
        assert torch.allclose(table[:, -1], found.loss, atol=1e-6)
        tables.append(table)
    assert not tables[0].isnan().any()
    assert torch.allclose(tables[0], tables[1], atol=1e-5)
    assert torch.allclose(tables[0], tables[2], atol=1e-5)


def test_watch_with_stop_sees_rows_until_they_succeed() -> None:
    x, y = images(12)
    seen = torch.zeros(12, dtype=torch.long)

    def note(at: Tensor, step: Step) -> None:
        seen[at] += int(step.gradient is not None)

    found = attack(MODEL, x, y, PGD(8 / 255, steps=6, stop=True), watch=note, chunk=5)
    assert torch.equal(seen, found.passes)


@pytest.mark.parametrize("kind", KINDS)
def test_no_success_of_an_inexact_search_is_denied_by_the_exact_reader(kind: dict[str, Any], monkeypatch: Any) -> None:
    """The search reads labels at random wherever two logits are near: what it proposes is read again."""
    params = pgd(kind, restarts=2)
    x, y = images(40)
    if params.targeted:
        y = (y + 1) % 6

    class Wild(nn.Module):
        """Its gradients are the model's, its answers often wrong."""

        def forward(self, x: Tensor) -> Tensor:
            return MODEL(x) + 6 * torch.sin(1000 * x.detach().flatten(1)[:, :6])

    made = Engine(Wild(), MODEL, False, torch.float32, "fast")
    monkeypatch.setattr("interp.attacks.search.engine", lambda *_, **__: made)
    found = attack(MODEL, x, y, params)
    with torch.no_grad():
        logits = MODEL(found.x)
    assert torch.allclose(found.logits, logits, atol=1e-4)
    assert torch.equal(found.success, succeeded(logits, y, targeted=params.targeted))
    assert 0 < int(found.success.sum()) < 40
    if params.stop:  # an image that was given up early has truly succeeded
        assert found.success[found.passes < 12].all()


@pytest.mark.parametrize("family", [0, 1, 2])
def test_fast_finds_only_what_float32_confirms_on_networks(tiny_models: list[Model], samples: Batch, family: int) -> None:
    model, batch = tiny_models[family], samples[:4]
    labels = model(batch.images).argmax(1)
    for params in (PGD(8 / 255, steps=3, stop=True), PGD(8 / 255, steps=3, rule="apgd")):
        found = attack(model, batch.images, labels, params, precision="fast")
        with torch.no_grad():
            logits = model(found.x)
        assert found.x.dtype == torch.float32
        assert torch.allclose(found.logits, logits, atol=1e-3)
        assert torch.equal(found.success, logits.argmax(1) != labels)


@pytest.mark.parametrize("family", [0, 1, 2])
def test_float64_is_double_throughout_and_agrees(tiny_models: list[Model], samples: Batch, family: int) -> None:
    model, batch, params = tiny_models[family], samples[:2], PGD(0.5, "l2", steps=2, step_size=0.2, random_start=False)
    dtypes: set[torch.dtype] = set()
    gradients: dict[str, Tensor] = {}

    def note(at: Tensor, step: Step) -> None:
        if step.index == 0:
            assert step.gradient is not None
            dtypes.update({step.x.dtype, step.gradient.dtype, step.loss.dtype, step.logits.dtype})
            gradients[precision] = step.gradient.double()

    for precision in ("float64", "float32"):
        found = attack(model, batch.images, batch.labels, params, precision=precision, watch=note, chunk=2)
        if precision == "float64":
            assert dtypes == {found.x.dtype} == {torch.float64}
            assert found.words.startswith("float64")
    assert torch.allclose(
        gradients["float64"], gradients["float32"], rtol=1e-3, atol=1e-4 * float(gradients["float64"].abs().max())
    )
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_loss_on_distributions_runs_in_every_precision_and_never_succeeds(precision: str) -> None:
    x, _ = images()
    p = MODEL(x).softmax(1)
    found = attack(MODEL, x, p, PGD(0.05, steps=3, loss="kl"), precision=precision)
    assert not found.success.any()
    assert (found.loss > 0).all()
    assert (found.loss > attack(MODEL, x, p, PGD(0.0, steps=1, loss="kl")).loss).all()


@pytest.mark.parametrize("norm", list(NORMS))
def test_a_point_outside_its_ball_is_never_returned(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images(3)

    def broken(x: Tensor, d: Tensor, eps: Tensor) -> Tensor:
        return NORMS_BEFORE[norm].land(x, d, 1.01 * eps)

    def outside(x: Tensor, d: Tensor, eps: Tensor) -> Tensor:
        return NORMS_BEFORE[norm].land(x, d, eps) + 1e-6

    NORMS_BEFORE = dict(NORMS)
    params = PGD(EPS[norm], norm, steps=3, step_size=EPS[norm])
    attack(MODEL, 0.5 + 0 * x, y, params)
    monkeypatch.setitem(NORMS, norm, dataclasses.replace(NORMS[norm], land=broken))
    with pytest.raises(RuntimeError, match="a point left its ball"):
        attack(MODEL, 0.5 + 0 * x, y, params)
    monkeypatch.setitem(NORMS, norm, dataclasses.replace(NORMS_BEFORE[norm], land=outside))
    with pytest.raises(RuntimeError, match="a point left"):
        attack(MODEL, torch.ones_like(x), y, dataclasses.replace(params, eps=EPS[norm] / 100))
    assert isinstance(NORMS[norm], Norm)


def test_not_a_number_is_not_within_the_ball() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return MODEL(x) * torch.nan

    x, y = images(2)
    with pytest.raises(RuntimeError, match="a point left"):
        attack(Broken(), x, y, PGD(0.5, "l2", steps=2))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": some(3, width=5)[0]}, "expected \\(n, 3, height, width\\)"),
        ({"x": some(3, width=5)[:0], "y": torch.zeros(0, dtype=torch.long)}, "n ≥ 1"),
        ({"y": torch.zeros(2, dtype=torch.long)}, "3 images came with 2 labels"),
        ({"eps": torch.full((4,), 0.1)}, "3 images came with 4 values of ε"),
        ({"eps": torch.tensor([0.1, -0.1, 0.1])}, "numbers ≥ 0"),
        ({"eps": torch.tensor([0.1, torch.nan, 0.1])}, "numbers ≥ 0"),
        ({"eps": torch.tensor([0.1, torch.inf, 0.1])}, "numbers ≥ 0"),
        ({"start": some(2, width=5)}, "3 images came with 2 starts"),
        ({"start": some(3, width=6)}, "the starts have shape"),
        ({"first": [0, 1]}, "3 images came with 2 indices"),
        ({"chunk": 0}, "chunk is 0"),
        ({"chunk": -3}, "chunk is -3"),
        ({"chunk": 0, "pgd": PGD(0.1, steps=1, stop=True)}, "chunk is 0"),
        ({"precision": "float16"}, "float32, float64, fast"),
        ({"pgd": PGD(0.1, restarts=2), "watch": lambda at, step: None}, "2 restarts cannot be watched"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"x": some(3, width=5), "y": torch.arange(3), "pgd": PGD(0.1, steps=1)} | given
    with pytest.raises(interp.InputError, match=said):
        attack(MODEL, **arguments)


def test_labels_that_are_no_classes_are_refused(tiny_models: list[Model], samples: Batch) -> None:
    x, _ = images(2)
    with pytest.raises(interp.InputError, match="labels are -1 to 0"):
        attack(MODEL, x, torch.tensor([-1, 0]), PGD(0.1, steps=1))
    with pytest.raises(interp.InputError, match="labels are 0 to 10; expected classes from 0 to 9"):
        attack(tiny_models[0], samples.images[:2], torch.tensor([0, 10]), PGD(0.1, steps=1))


@pytest.mark.parametrize("loss", list(LOSSES))
def test_the_order_of_memory_makes_no_difference(loss: str) -> None:
    x, y = images(3)
    params = PGD(0.1, steps=3, loss=loss)
    last = attack(MODEL, x.to(memory_format=torch.channels_last), y, params)
    assert torch.allclose(last.x, attack(MODEL, x, y, params).x, atol=1e-6)


def test_what_is_given_is_left_as_it_was() -> None:
    x, y = images(3)
    start, before = 1 - x, (x.clone(), y.clone())
    attack(MODEL, x, y, PGD(0.1, steps=2, restarts=2), start=start)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert torch.equal(start, 1 - x)
    assert not x.requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_finds_what_a_processor_does(kind: dict[str, Any]) -> None:
    (x, y), params = images(), pgd(kind, restarts=2)
    there = attack(copy.deepcopy(MODEL).cuda(), x, y, params, chunk=4)
    assert there.x.is_cuda
    here = attack(MODEL, x, y, params)
    assert ((there.x.cpu() - here.x).abs() > 1e-3).float().mean() < 0.05
    assert torch.equal(there.success.cpu(), here.success)


SQUARE = (6, 6)  # as `some` makes images


class Small(Curved):
    """A network whose memory holds no more than `most` images, in torch's own error."""

    most = 4

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"out of memory with {len(x)} images")
        return super().forward(x)


@pytest.mark.parametrize("n", [1, 3])
def test_restarts_that_do_not_fit_beside_each_other_go_one_after_another(n: int) -> None:
    x, y, pgd = some(n), torch.arange(n), PGD(0.1, steps=3, restarts=8)
    found, wanted = attack(Small(shape=SQUARE), x, y, pgd, chunk=16), attack(Curved(shape=SQUARE), x, y, pgd, chunk=64)
    assert torch.allclose(found.x, wanted.x, atol=1e-6) and torch.equal(found.passes, wanted.passes)


def test_an_attack_takes_its_gradients_where_they_are_off() -> None:
    x, y, pgd = some(2), torch.tensor([0, 1]), PGD(0.1, steps=3)
    with torch.no_grad():
        found = attack(Curved(shape=SQUARE), x, y, pgd)
    assert torch.equal(found.x, attack(Curved(shape=SQUARE), x, y, pgd).x)


@pytest.mark.parametrize(
    ("x", "y", "loss", "said"),
    [
        (some(2) * 255, torch.tensor([0, 1]), "ce", r"from .* to 2\d\d.*; expected float32 in \[0, 1\]"),
        (some(2) * torch.nan, torch.tensor([0, 1]), "ce", "without NaN"),
        (some(2), torch.tensor([0, 1], dtype=torch.int32), "ce", r"needs labels \(n,\) int64; found torch.int32"),
        (some(2), torch.rand(2, 4), "margin", r"needs labels \(n,\) int64; found torch.float32 \(2, 4\)"),
        (some(2), torch.tensor([0, 1]), "kl", r"compares with vectors \(n, d\) of floats; found torch.int64"),
    ],
)
def test_images_and_labels_are_looked_at_before_the_work(x: Tensor, y: Tensor, loss: str, said: str) -> None:
    with pytest.raises(interp.InputError, match=said):
        attack(Curved(), x, y, PGD(0.1, steps=1, loss=loss))


@pytest.mark.parametrize("loss", ["kl", "squared"])
def test_probabilities_of_other_classes_are_refused(loss: str, tiny_models: list[Model], samples: Batch) -> None:
    with pytest.raises(interp.InputError, match=r"probabilities of shape \(2, 7\); tiny_xcit has 10 classes: give \(2, 10\)"):
        attack(tiny_models[0], samples.images[:2], torch.full((2, 7), 1 / 7), PGD(0.1, steps=1, loss=loss))


def test_images_of_another_size_are_refused(tiny_models: list[Model], samples: Batch) -> None:
    with pytest.raises(interp.InputError, match="takes images"):
        attack(tiny_models[0], samples.images[:1, :, :16, :16], samples.labels[:1], PGD(0.1, steps=1))
