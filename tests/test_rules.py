"""Rules: momentum by its equation, APGD beside the released code, samples that come and go."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import Any

import pytest
import torch
from pyautoattack import autopgd_base
from pyautoattack.autopgd_base import APGDAttack, L1_projection
from torch import Tensor

from interp.attacks.losses import loss_named
from interp.attacks.norms import NORMS
from interp.attacks.pgd import PGD, pgd_steps
from interp.attacks.rules import RULES, Auto, Plain
from interp.attacks.search import attack
from tests.test_attacks import Curved, some

OFFICIAL = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 1 / 16, "l2": 1.0, "l1": 4.0}
SMALLER = {"linf": 1 / 128, "l2": 0.5}  # for dlr, so that labels come first or second and it is not flat


class Released(APGDAttack):
    """The released code, its first check compared with the loss at the start, as ours, and not with 0."""

    first: Tensor

    def check_oscillation(self, x: Tensor, j: int, k: int, y5: Tensor, k3: float = 0.75) -> Tensor:
        recent = torch.cat([self.first[None], x])[j + 1 - k : j + 2]
        return ((recent.diff(dim=0) > 0).sum(0) <= k * k3).float()


@dataclasses.dataclass
class Path:
    """Where a run went: iterates (steps + 1, n, …), largest loss and its point, last adversarial point, never fooled."""

    x: Tensor
    loss: Tensor
    best: Tensor
    adversarial: Tensor
    correct: Tensor


def released(kind: type[APGDAttack], model: Curved, x: Tensor, y: Tensor, pgd: PGD, start: Tensor | None) -> Path:
    """Its path, with losses recorded in the precision of x."""
    theirs, seen = kind(model, n_iter=pgd.steps, norm=OFFICIAL[pgd.norm], eps=pgd.eps, loss=pgd.loss), []
    theirs.init_hyperparam(x)
    if kind is Released:
        assert start is not None
        theirs.first = loss_named(pgd.loss)(model(start), y)
    before, handle = (
        torch.get_default_dtype(),
        model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach() + 0)),
    )
    try:
        torch.set_default_dtype(x.dtype)
        best, correct, loss, adversarial = theirs.attack_single_run(x, y, x_init=start)
    finally:
        torch.set_default_dtype(before)
        handle.remove()
    return Path(torch.stack(seen), loss, best, adversarial, correct)


def ours(model: Curved, x: Tensor, y: Tensor, pgd: PGD, start: Tensor | None) -> tuple[Path, Tensor]:
    """Ours, and which samples had a gradient at every step (dlr is flat where the label comes third: directions are rounding)."""
    steps = list(pgd_steps(model, x, y, pgd, start=start))
    loss, points, rows = torch.stack([s.loss for s in steps]), torch.stack([s.x for s in steps]), torch.arange(len(x))
    fooled = torch.stack([s.logits.argmax(1) != y for s in steps])
    fooled[0] |= ~fooled.any(0)  # as in the released code the start stands where there is no adversarial point
    last = len(steps) - 1 - fooled.flip(0).int().argmax(0)
    climbs = torch.stack([s.gradient.flatten(1).abs().amax(1) for s in steps if s.gradient is not None]).amin(0) > 1e-6
    correct = torch.stack([s.logits.argmax(1) == y for s in steps]).all(0)
    return Path(points, loss.amax(0), points[loss.argmax(0), rows], points[last, rows], correct), climbs


def agree(one: Path, two: Path, rows: Tensor) -> bool:
    """Points to 1e-5; losses to that times the slope."""
    near = all((getattr(one, f)[rows] - getattr(two, f)[rows]).abs().max() < 1e-5 for f in ("best", "adversarial"))
    same = torch.allclose(one.loss[rows], two.loss[rows], rtol=1e-3, atol=1e-3) and torch.equal(
        one.correct[rows], two.correct[rows]
    )
    return near and same and bool((one.x[:, rows] - two.x[:, rows]).abs().max() < 1e-5)


def case(pgd: PGD, n: int = 24) -> tuple[Curved, Tensor, Tensor, Tensor]:
    """Model, images, the labels that it sees, a start within the ball; in float64, so that rounding turns no sign."""
    model, x = Curved(dtype=torch.float64), some(n, width=5).double()
    toward = NORMS[pgd.norm].step(some(n, width=5, seed=9).double() - 0.5, x)
    return model, x, model(x).argmax(1), (x + 0.5 * pgd.eps * toward).clamp(0, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("steps", [1, 2, 7, 40, 100])
def test_apgd_takes_the_released_code_s_path(norm: str, loss: str, steps: int) -> None:
    pgd = PGD((EPS if loss == "ce" else SMALLER)[norm], norm, steps=steps, loss=loss, rule="apgd")
    model, x, y, start = case(pgd)
    path, climbs = ours(model, x, y, pgd, start)
    assert climbs.sum() >= 6
    assert agree(path, released(Released, model, x, y, pgd, start), climbs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_takes_the_untouched_code_s_path_where_the_first_step_rises(norm: str) -> None:
    """The released code compares the first cross-entropy with 0, so always counts it as a rise: so do we where it is one."""
    pgd = PGD(EPS[norm], norm, steps=60, rule="apgd")
    model, x, y, start = case(pgd)
    first, second, *_ = pgd_steps(model, x, y, pgd, start=start)
    assert (second.loss > first.loss).all()
    path, climbs = ours(model, x, y, pgd, start)
    assert climbs.all()
    assert agree(path, released(APGDAttack, model, x, y, pgd, start), climbs)


def test_apgd_s_first_check_counts_from_the_start_s_loss() -> None:
    """Where the first step raises a negative loss, the released code sees no rise (it compares with 0) and ours does: with four
    rises of five at the first check, the one halves the step and the other does not."""

    x = torch.full((1, 3, 2, 2), 0.9, dtype=torch.float64)
    pgd = PGD(0.25, steps=23, loss="dlr", rule="apgd", random_start=False)  # the first check comes after 5 steps
    rule = Auto(pgd, x, torch.tensor([0.25], dtype=torch.float64))
    at = x
    for height in (-0.9, -0.8, -0.7, -0.6, -0.5, -0.55):  # four rises of five
        at = rule.move(at, -torch.ones_like(x), torch.tensor([height], dtype=torch.float64))
    assert rule.size == 0.5
    theirs = APGDAttack(Curved(), n_iter=23, norm="Linf", eps=0.25, loss="dlr")
    theirs.init_hyperparam(x)
    heights = torch.zeros(23, 1)
    heights[:5, 0] = torch.tensor([-0.8, -0.7, -0.6, -0.5, -0.55])
    assert theirs.check_oscillation(heights, 4, 5, heights[0], k3=0.75) == 1


@pytest.mark.parametrize("steps", [1, 3, 30, 70])
@pytest.mark.parametrize(("loss", "spread", "eps"), [("ce", 0.2, 2.0), ("ce", 1.0, 12.0), ("dlr", 1.0, 12.0)])
def test_apgd_in_l1_takes_the_released_code_s_path(
    loss: str, steps: int, spread: float, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the released random start, where it begins with a fifth of the coordinates; at the box too. The released projection
    leaves coordinates that it zeroes at some 1e-8 and then counts them as moved; here it counts what is larger."""
    monkeypatch.setattr(autopgd_base, "L0_norm", lambda d: (d.abs() > 1e-6).flatten(1).sum(1))
    model, x = Curved(shape=(9, 8)), 0.5 + spread * (some(8, 9, width=8) - 0.5)
    y, pgd = model(x).argmax(1), PGD(eps, "l1", steps=steps, loss=loss, rule="apgd")
    torch.manual_seed(3)
    noise = torch.randn(x.shape)
    path, climbs = ours(model, x, y, pgd, x + noise + L1_projection(x, noise, eps))
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zero gradients
        theirs = released(APGDAttack, model, x, y, pgd, None)
    assert climbs.sum() >= 3
    assert agree(path, theirs, climbs)
    assert spread < 1 or ((path.x == 0) | (path.x == 1)).any()


@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("targeted", [False, True])
def test_attack_with_apgd_ends_at_the_best_point_of_its_run(norm: str, targeted: bool) -> None:
    """By success first and loss next, where the released code returns the point of largest loss and the adversarial one apart."""
    model, x = Curved(), some(8, width=5)
    y = model(x).argmax(1)
    y = (y + 1) % 6 if targeted else y
    pgd = PGD(EPS[norm] / 4, norm, steps=30, rule="apgd", targeted=targeted)
    steps = list(pgd_steps(model, x, y, pgd))
    found = attack(model, x, y, pgd)
    for i in range(len(x)):
        ways = [((s.logits[i].argmax() == y[i]) == targeted, (-1 if targeted else 1) * s.loss[i], s.x[i]) for s in steps]
        best = max(ways, key=lambda way: (bool(way[0]), float(way[1])))
        assert bool(found.success[i]) == bool(best[0])
        assert torch.equal(found.x[i], best[2])
    assert found.success.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_climbs_higher_than_pgd(norm: str, loss: str) -> None:
    """On average over many hills, and it never ends below where it began."""
    x = some(40, width=5)
    y = Curved()(x).argmax(1)
    runs = {
        rule: attack(Curved(), x, y, PGD(EPS[norm], norm, steps=40, rule=rule, loss=loss, random_start=False)).loss
        for rule in ("pgd", "apgd")
    }
    start = next(iter(pgd_steps(Curved(), x, y, PGD(0.0, loss=loss, random_start=False)))).loss
    assert (runs["apgd"] >= start).all()
    if loss == "ce":
        assert runs["apgd"].mean() > runs["pgd"].mean()


def test_apgd_s_checks_come_when_the_paper_says() -> None:
    """p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06) of the steps (algorithm 1): a loss that never rises
    halves the step at each."""
    x, pgd = torch.full((1, 3, 2, 2), 0.5), PGD(0.25, steps=100, rule="apgd")
    rule, sizes = Auto(pgd, x, torch.tensor([0.25])), []
    for _ in range(100):
        rule.move(x, torch.ones_like(x), torch.zeros(1))
        sizes.append(float(rule.size))
    checks, gap = [22], 22
    while checks[-1] + max(gap - 3, 6) < 100:
        gap = max(gap - 3, 6)
        checks.append(checks[-1] + gap)
    assert [i for i in range(1, 100) if sizes[i] < sizes[i - 1]] == checks
    assert sizes[0] == 0.5
    assert sizes[-1] == 0.5 / 2 ** len(checks)


def test_momentum_accumulates_gradients_of_unit_l1_size() -> None:
    x, y = some(3, width=5), torch.tensor([0, 3, 5])
    pgd = PGD(10.0, "l2", steps=5, step_size=0.02, rule="momentum", momentum=0.8, random_start=False)
    speed = torch.zeros_like(x)
    steps = list(pgd_steps(Curved(), 0.4 + 0.2 * x, y, pgd))
    for one, two in itertools.pairwise(steps):
        assert one.gradient is not None
        speed = 0.8 * speed + one.gradient / one.gradient.abs().sum((1, 2, 3), keepdim=True)
        assert torch.allclose(two.x - one.x, 0.02 * speed / speed.square().sum((1, 2, 3), keepdim=True).sqrt(), atol=1e-6)


@pytest.mark.parametrize("norm", list(NORMS))
def test_without_decay_momentum_is_pgd(norm: str) -> None:
    x, y = some(3, width=5), torch.tensor([0, 3, 5])
    pgd = PGD(EPS[norm], norm, steps=6)
    plain = attack(Curved(), x, y, pgd).x
    assert torch.allclose(attack(Curved(), x, y, dataclasses.replace(pgd, rule="momentum", momentum=0.0)).x, plain, atol=1e-5)


@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("rule", list(RULES))
def test_samples_that_leave_change_nothing_for_those_that_stay(rule: str, norm: str) -> None:
    model, x, y, pgd = Curved(), some(5, width=5), torch.arange(5), PGD(EPS[norm], norm, steps=30, rule=rule)
    eps, g = torch.linspace(0.5, 1, 5) * EPS[norm], torch.Generator().manual_seed(0)

    def gradient(at: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        at = at.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(at), y, reduction="none")
        return torch.autograd.grad(loss.sum(), at)[0], loss.detach()

    all_stay, some_leave = RULES[rule](pgd, x, eps), RULES[rule](pgd, x, eps)
    rows, a, b = torch.arange(5), x, x
    for index in range(pgd.steps):
        a = all_stay.move(a, *gradient(a, y))
        b = some_leave.move(b, *gradient(b, y[rows]))
        if index in (0, 3, 8, 17):
            left = torch.randperm(len(rows), generator=g)[:-1].sort().values
            some_leave.keep(left)
            rows, b = rows[left], b[left]
        assert torch.allclose(a[rows], b, atol=1e-5)
    assert len(rows) == 1


@pytest.mark.parametrize("kind", [Plain, Auto])
@pytest.mark.parametrize("norm", list(NORMS))
def test_each_sample_moves_by_its_own_budget(kind: Any, norm: str) -> None:
    x = torch.full((3, 3, 6, 6), 0.5)
    eps = torch.tensor([0.0, 0.01, 0.1])
    rule = kind(PGD(1.0, norm, steps=3, rule="apgd" if kind is Auto else "pgd"), x, eps)
    moved = rule.move(x, some(3) - 0.5, torch.zeros(3))
    expected = eps if kind is Auto else eps / 2  # 2ε or ε landed; 1.5·ε/3
    assert torch.allclose(NORMS[norm].size(moved - x), expected, rtol=1e-4)
