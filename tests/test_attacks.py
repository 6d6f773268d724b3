"""PGD: the budget, the box, the direction, and the agreement with foolbox and torchattacks from the same start."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interp
from interp.attacks.losses import LOSSES, NAMES, loss_named, succeeded
from interp.attacks.norms import NORMS
from interp.attacks.pgd import PGD, craft, pgd_steps, seeds_of, start_noise
from interp.attacks.rules import RULES
from interp.attacks.search import attack
from interp.types import Batch

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 4.0}


class Linear(nn.Module):
    """Logits of a fixed linear map: its input gradient is known exactly."""

    def __init__(self, classes: int = 4, size: int = 6, seed: int = 0) -> None:
        super().__init__()
        self.weight = 0.1 * torch.randn(classes, 3 * size * size, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Curved(nn.Module):
    """A smooth network with many hills: no gradient is zero, and no step of an attack is like the last."""

    def __init__(
        self, classes: int = 6, shape: tuple[int, int] = (6, 5), seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        g, d = torch.Generator().manual_seed(seed), 3 * math.prod(shape)
        self.inner = nn.Parameter((torch.randn(40, d, generator=g) * 3 / d**0.5 * 2).to(dtype), requires_grad=False)
        self.phase = nn.Parameter((6 * torch.rand(40, generator=g)).to(dtype), requires_grad=False)
        self.outer = nn.Parameter(torch.randn(classes, 40, generator=g).to(dtype), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x.flatten(1) @ self.inner.T + self.phase) @ self.outer.T


def some(n: int, size: int = 6, seed: int = 1, width: int | None = None) -> Tensor:
    return torch.rand(n, 3, size, width or size, generator=torch.Generator().manual_seed(seed))


def read_as(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("eps", [0.5 / 255, 8 / 255, 0.5, 20.0])
def test_every_iterate_stays_in_ball_and_box(n: int, norm: str, rule: str, targeted: bool, eps: float) -> None:
    x, y = some(n, width=5), torch.arange(n) % 4
    steps = list(pgd_steps(Curved(), x, y, PGD(eps, norm, steps=4, targeted=targeted, rule=rule)))
    assert [s.index for s in steps] == [0, 1, 2, 3, 4]
    slack = float(NORMS[norm].size(torch.full_like(x[:1], 2e-7)))
    for step in steps:
        assert NORMS[norm].size(step.x - x).max() <= eps * (1 + 1e-5) + slack
        assert step.x.min() >= 0
        assert step.x.max() <= 1


@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("basis", ["pixels", "fourier"])
def test_a_step_far_from_all_borders_has_the_size_that_was_asked_for(norm: str, basis: str) -> None:
    x = 0.4 + 0.2 * some(3, width=5)
    pgd = PGD(50.0, norm, steps=3, step_size=0.01, random_start=False, basis=basis)
    steps = list(pgd_steps(Curved(), x, torch.arange(3), pgd))
    for one, two in itertools.pairwise(steps):
        assert torch.allclose(NORMS[norm].size(two.x - one.x), torch.tensor(0.01), rtol=1e-3)


def test_what_a_step_says_is_what_its_point_gives() -> None:
    model, x, y = Curved(), some(3, width=5), torch.arange(3)
    for step in pgd_steps(model, x, y, PGD(0.1, steps=3)):
        assert torch.allclose(step.logits, model(step.x), atol=1e-6)
        assert torch.allclose(step.loss, nn.functional.cross_entropy(step.logits, y, reduction="none"))
        assert (step.gradient is None) == (step.index == 3)
        if step.gradient is not None:
            at = step.x.clone().requires_grad_(True)
            (expected,) = torch.autograd.grad(nn.functional.cross_entropy(model(at), y, reduction="sum"), at)
            assert torch.allclose(step.gradient, expected, atol=1e-6)


def test_zero_budget_returns_the_image() -> None:
    x, y = some(3), torch.zeros(3, dtype=torch.long)
    for norm in NORMS:
        for rule in RULES:
            assert torch.equal(attack(Linear(), x, y, PGD(0.0, norm, steps=3, rule=rule)).x, x)


def test_one_fgsm_step_on_a_linear_model_is_the_sign_of_the_known_gradient() -> None:
    model, x, y = Linear(), some(2) * 0.5 + 0.25, torch.tensor([0, 3])
    got = attack(model, x, y, PGD.fgsm(0.01, loss="logit")).x
    assert torch.allclose(got, x - 0.01 * model.weight[y].view_as(x).sign(), atol=1e-6)


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("rule", list(RULES))
def test_loss_rises_away_and_falls_toward(loss: str, rule: str) -> None:
    """From the class that is seen to the next likely one; on a label that comes third dlr is constant."""
    x, pgd = some(4), PGD(0.1, steps=5, loss=loss, random_start=False, rule=rule)
    read = Linear()(x)
    label, target = read.topk(2, dim=1).indices.T
    assert (attack(Linear(), x, label, pgd).loss > loss_named(loss)(read, label)).all()
    pgd = dataclasses.replace(pgd, targeted=True)
    assert (attack(Linear(), x, target, pgd).loss < loss_named(loss, targeted=True)(read, target)).all()


def test_a_given_start_is_brought_into_the_ball_and_used() -> None:
    x = some(2)
    steps = list(pgd_steps(Linear(), x, torch.zeros(2, dtype=torch.long), PGD(0.1, steps=1), start=1 - x))
    assert torch.allclose(steps[0].x, (x + (1 - 2 * x).clamp(-0.1, 0.1)).clamp(0, 1))


def test_unbounded_synthesis_starts_with_a_thirtieth_of_its_pixels_inside() -> None:
    """With ε = 15, x + U(−15, 15) lies inside (0, 1) with probability 1/30 for every x in [0, 1]."""
    x = some(40, size=16)
    start = next(iter(pgd_steps(Linear(size=16), x, torch.zeros(40, dtype=torch.long), PGD(15.0, steps=1)))).x
    inside = ((start > 0) & (start < 1)).float()
    assert inside.mean().item() == pytest.approx(1 / 30, abs=4 * (1 / 30 / inside.numel()) ** 0.5)


def test_noise_belongs_to_samples_and_differs_by_seed_and_run() -> None:
    whole, part = start_noise((4, 3, 2, 2), seed=5), start_noise((2, 3, 2, 2), seed=5, first=2)
    assert torch.equal(whole[0][2:], part[0])
    assert torch.equal(whole[1][2:], part[1])
    scattered = start_noise((2, 3, 2, 2), seed=5, first=[3, 0], restart=[0, 1])
    assert torch.equal(scattered[0][0], whole[0][3])
    assert torch.equal(scattered[0][1], start_noise((1, 3, 2, 2), seed=5, restart=1)[0][0])
    drawn = [seeds_of(50, seed=s, restart=r) for s in range(5) for r in range(5)]
    assert len({number for seeds in drawn for number in seeds}) == 5 * 5 * 50


def test_shapes_and_probabilities_of_losses() -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, p = torch.arange(5), torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(1)
    others = torch.stack([torch.cat([row[:i], row[i + 1 :]]).max() for i, row in enumerate(logits)])
    own, ranked = logits.diagonal()[:5], logits.sort(dim=1).values
    expected = {
        "ce": -(own - logits.exp().sum(1).log()),
        "logit": -own,
        "margin": others - own,
        "dlr": (others - own) / (ranked[:, -1] - ranked[:, -3]),
    }
    for name, value in expected.items():
        assert torch.allclose(loss_named(name)(logits, y), value), name
        if name != "dlr":
            assert torch.equal(loss_named(name, targeted=True)(logits, y), loss_named(name)(logits, y))
    toward = (others - own) / (ranked[:, -1] - (ranked[:, -3] + ranked[:, -4]) / 2)
    assert torch.allclose(loss_named("dlr", targeted=True)(logits, y), toward)
    q = logits.softmax(1)
    assert torch.allclose(loss_named("kl")(logits, p), (p * (p.log() - q.log())).sum(1))
    assert torch.allclose(loss_named("squared")(logits, p), ((q - p) ** 2).sum(1))
    assert loss_named("kl")(logits, q).abs().max() < 1e-12
    one_hot = nn.functional.one_hot(y, 6).double()
    assert torch.allclose(loss_named("kl")(logits, one_hot), loss_named("ce")(logits, y))
    assert torch.allclose(loss_named("features")(logits, p), (logits - p).norm(dim=1) / p.norm(dim=1))
    assert torch.equal(loss_named("features")(p, p), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("loss", ["dlr", "margin", "logit"])
def test_losses_of_logits_ignore_what_they_should(loss: str) -> None:
    """All ignore nothing but: dlr neither scale nor shift, margin no shift."""
    logits, y = torch.randn(7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64), torch.arange(7) % 5
    for targeted in (False, True):
        f = loss_named(loss, targeted=targeted)
        assert torch.allclose(f(logits + 3, y), f(logits, y)) == (loss != "logit")
        assert torch.allclose(f(5 * logits, y), f(logits, y)) == (loss == "dlr")


@pytest.mark.parametrize(("targeted", "classes"), [(False, 2), (True, 3)])
def test_dlr_without_enough_classes_is_refused(targeted: bool, classes: int) -> None:
    with pytest.raises(interp.InputError, match=f"this model has {classes}"):
        attack(Linear(classes), some(1), torch.zeros(1, dtype=torch.long), PGD(0.1, loss="dlr", targeted=targeted))


def test_targeted_dlr_goes_where_the_released_code_does() -> None:
    """Toward its target t the released loss −(z_y − z_t)/gap rises; where y is the likeliest class, ours is (z_y − z_t)/gap."""
    from pyautoattack.autopgd_base import APGDAttack_targeted

    model, x = Curved(dtype=torch.float64), some(6, width=5).double()
    ranked = model(x).argsort(dim=1, descending=True)
    y, target = ranked[:, 0], ranked[:, 2]
    theirs = APGDAttack_targeted(model, eps=0.1)
    theirs.y_target = target
    at = x.clone().requires_grad_(True)
    (up,) = torch.autograd.grad(theirs.dlr_loss_targeted(model(at), y).sum(), at)
    first = next(iter(pgd_steps(model, x, target, PGD(0.1, loss="dlr", targeted=True, random_start=False))))
    assert first.gradient is not None
    assert torch.allclose(-first.gradient, up, rtol=1e-9, atol=1e-12)
    assert torch.allclose(-first.loss, theirs.dlr_loss_targeted(model(x), y))


def test_success_is_leaving_the_label_or_reaching_the_target() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    assert succeeded(logits, torch.tensor([0, 0]), targeted=False).tolist() == [False, True]
    assert succeeded(logits, torch.tensor([0, 0]), targeted=True).tolist() == [True, False]


@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("targeted", [False, True])
def test_craft_ends_where_the_attack_does(norm: str, targeted: bool) -> None:
    model, x, y = Curved(), some(3, width=5), torch.tensor([1, 2, 5])
    pgd = PGD(EPS[norm], norm, steps=4, targeted=targeted)
    assert torch.equal(craft(model, x, y, pgd), attack(model, x, y, pgd).x)
    assert torch.equal(craft(model, x, y, pgd, start=1 - x), attack(model, x, y, pgd, start=1 - x).x)


def foolbox_runs(model: nn.Module, x: Tensor, y: Tensor, norm: str, targeted: bool, steps: int, alpha: float) -> Tensor:
    """foolbox's answer with the parameters of ours, from the image."""
    foolbox = pytest.importorskip("foolbox")
    attacks = foolbox.attacks
    kind = {"linf": attacks.LinfPGD, "l2": attacks.L2PGD, "l1": attacks.SparseL1DescentAttack}[norm]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    criterion = (foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification)(y)
    return kind(abs_stepsize=alpha, steps=steps, random_start=False)(wrapped, x, criterion, epsilons=EPS[norm])[1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_agrees_with_foolbox_from_the_same_start(norm: str, targeted: bool) -> None:
    model, x, y = Curved(), some(4, width=5), torch.tensor([1, 5, 0, 2])
    expected = foolbox_runs(model, x, y, norm, targeted, 9, EPS[norm] / 4)
    pgd = PGD(EPS[norm], norm, steps=9, step_size=EPS[norm] / 4, targeted=targeted, random_start=False)
    assert (attack(model, x, y, pgd).x - expected).abs().max() < 1e-5


@pytest.mark.parametrize("targeted", [False, True])
def test_agrees_with_foolbox_in_l1_inside_the_ball(targeted: bool) -> None:
    model, x, y = Curved(shape=(20, 21)), 0.45 + 0.1 * some(4, 20, width=21), torch.tensor([1, 5, 0, 2])
    expected = foolbox_runs(model, x, y, "l1", targeted, 10, 0.25)
    ours = attack(model, x, y, PGD(EPS["l1"], "l1", steps=10, step_size=0.25, targeted=targeted, random_start=False)).x
    assert (ours - expected).abs().max() < 1e-5
    assert (NORMS["l1"].size(ours - x) > 1).all()


@pytest.mark.parametrize(("targeted", "spread"), [(False, 0.6), (True, 0.1)])
def test_agrees_with_foolbox_in_l1_at_the_border(targeted: bool, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way back into the ball foolbox 3.3 averages one coordinate too many, so that it ends outside, and ignores the box;
    here it is given the projection of the released APGD. At the box it holds back pixels by the sign of the gradient in targeted
    attacks too, which descend it: these stay away from there."""
    foolbox = pytest.importorskip("foolbox")
    import eagerpy as ep
    from pyautoattack.autopgd_base import L1_projection

    def project(self: Any, x: Any, x0: Any, epsilon: float) -> Any:
        landed = x.raw + L1_projection(x0.raw, x.raw - x0.raw, epsilon)
        return ep.astensor(torch.where((landed - landed.round()).abs() < 1e-6, landed.round(), landed))  # 0 and 1 exactly

    monkeypatch.setattr(foolbox.attacks.SparseL1DescentAttack, "project", project)
    model, y = Curved(shape=(20, 21)), torch.tensor([1, 5, 0, 2])
    x = 0.5 + spread * (some(4, 20, width=21) - 0.5)
    expected = foolbox_runs(model, x, y, "l1", targeted, 25, 0.25)
    ours = attack(model, x, y, PGD(EPS["l1"], "l1", steps=25, step_size=0.25, targeted=targeted, random_start=False)).x
    assert (NORMS["l1"].size(ours - x) > 3.999).all()
    assert bool(((ours == 0) | (ours == 1)).any()) != targeted
    assert (ours - expected).abs().max() < 1e-5


def torchattacks_runs(model: nn.Module, kind: str, x: Tensor, y: Tensor, targeted: bool, **parameters: Any) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks")
    theirs = getattr(torchattacks, kind)(model, **parameters)
    if targeted:
        theirs.set_mode_targeted_by_label(quiet=True)
    return theirs(x, y)


@pytest.mark.parametrize("kind", ["PGD", "PGDL2", "MIFGSM", "FGSM"])
@pytest.mark.parametrize("targeted", [False, True])
def test_agrees_with_torchattacks_from_the_same_start(kind: str, targeted: bool) -> None:
    model, x, y = Curved(), some(4, width=5), torch.tensor([1, 5, 0, 2])
    eps = EPS["l2"] if kind == "PGDL2" else EPS["linf"]
    ours: PGD = {
        "PGD": PGD(eps, steps=9, step_size=eps / 4, random_start=False, targeted=targeted),
        "PGDL2": PGD(eps, "l2", steps=9, step_size=eps / 4, random_start=False, targeted=targeted),
        "MIFGSM": PGD(eps, steps=9, step_size=eps / 4, random_start=False, targeted=targeted, rule="momentum", momentum=0.7),
        "FGSM": PGD.fgsm(eps, targeted=targeted),
    }[kind]
    more: dict[str, dict[str, Any]] = {
        "PGD": {"steps": 9, "alpha": eps / 4, "random_start": False},
        "PGDL2": {"steps": 9, "alpha": eps / 4, "random_start": False},
        "MIFGSM": {"steps": 9, "alpha": eps / 4, "decay": 0.7},
        "FGSM": {},
    }
    expected = torchattacks_runs(model, kind, x, y, targeted, eps=eps, **more[kind])
    assert (attack(model, x, y, ours).x - expected).abs().max() < 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_agrees_with_foolbox_on_a_network(tiny_models: list[interp.Model], samples: Batch, norm: str) -> None:
    model, x, y = tiny_models[0], samples.images[:2], samples.labels[:2]
    alpha = EPS[norm] / 4
    ours = list(pgd_steps(model, x, y, PGD(EPS[norm], norm, steps=4, step_size=alpha, random_start=False)))[-1].x
    expected = foolbox_runs(model, x, y, norm, False, 4, alpha)
    assert ((ours - expected).abs() > 1e-5).float().mean() < 1e-3  # signs of gradients that are zero up to rounding


@pytest.mark.weights
def test_agrees_with_foolbox_on_a_shipped_model(samples: Batch) -> None:
    model, batch = interp.load("xcit_nano_d6w64_cifar10_linf"), samples[:4]
    found = attack(model, batch.images, batch.labels, PGD(8 / 255, steps=5, step_size=2 / 255, random_start=False))
    expected = foolbox_runs(model, batch.images, batch.labels, "linf", False, 5, 2 / 255)
    assert ((found.x - expected).abs() > 1e-5).float().mean() < 1e-3
    assert (found.logits - model(expected)).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"eps": -8 / 255}, "≥ 0"),
        ({"eps": float("nan")}, "≥ 0"),
        ({"eps": math.inf}, "≥ 0"),
        ({"norm": "l7"}, "linf, l2, l1"),
        ({"loss": "hinge"}, ", ".join(NAMES)),
        ({"rule": "adam"}, "pgd, momentum, apgd"),
        ({"basis": "wavelet"}, "pixels, fourier"),
        ({"keep": "first"}, "last, best"),
        ({"steps": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
        ({"step_size": -1.0}, "> 0"),
        ({"step_size": math.inf}, "> 0"),
        ({"step_size": 0.1, "rule": "apgd"}, "chooses its own"),
        ({"momentum": -0.5}, "momentum is -0.5"),
        ({"decay": math.nan}, "decay is nan"),
        ({"blur": -1.0}, "blur is -1.0"),
        ({"jitter": -1}, "jitter is -1"),
        ({"stop": True, "loss": "kl"}, "needs labels"),
        ({"eps": "8/255"}, "eps is '8/255'; expected a number, such as 8 / 255"),
        ({"step_size": "1/255"}, "step_size is '1/255'; expected a number"),
        ({"steps": 2.5}, "steps is 2.5; expected a whole number"),
        ({"jitter": 1.5}, "jitter is 1.5; expected a whole number"),
        ({"seed": "0"}, "seed is '0'; expected a whole number"),
        ({"rule": "apgd", "norm": "l1", "basis": "fourier"}, "single pixels"),
    ],
)
def test_parameters_without_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(interp.InputError, match=said):
        PGD(**({"eps": 0.1} | wrong))


@pytest.mark.parametrize(("pgd", "alpha"), [
    (PGD(0.2, steps=6), 0.05), (PGD(0.2, steps=6, step_size=0.01), 0.01), (PGD(0.2, rule="apgd"), 0.4),
    (PGD(0.2, "l1", rule="apgd"), 0.2), (PGD.fgsm(0.2), 0.2),
])  # fmt: skip
def test_the_step_size_that_is_said_is_the_one_taken(pgd: PGD, alpha: float) -> None:
    assert pgd.alpha == pytest.approx(alpha)
    big = dataclasses.replace(pgd, eps=pgd.eps, random_start=False)
    x = torch.full((2, 3, 6, 5), 0.5)
    first, second, *_ = pgd_steps(Curved(), x, torch.arange(2), big)
    moved = NORMS[pgd.norm].size(second.x - first.x)
    assert torch.allclose(moved, torch.tensor(min(alpha, pgd.eps)), rtol=1e-4)  # the ball may end it
