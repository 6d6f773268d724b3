"""What training minimises and its attacks climb: values by hand, limits, gradients, a public implementation of TRADES and AWP."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import log
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.attacks.losses import TO_DISTRIBUTION
from interp.attacks.norms import NORMS
from interp.attacks.pgd import PGD, craft
from interp.attacks.search import attack
from interp.training.augment import smooth
from interp.training.awp import moved_weights
from interp.training.losses import OBJECTIVES, Views, boosted_cross_entropy, divergence, squared_error

# Two samples, three classes. Logits are logarithms of these plus a constant per sample, so that softmax gives them back.
CLEAN = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]
CRAFTED = [[0.2, 0.5, 0.3], [0.25, 0.25, 0.5]]
BEYOND = [[0.1, 0.8, 0.1], [0.3, 0.4, 0.3]]
LABELS, HELPER = torch.tensor([0, 2]), torch.tensor([0, 1])
SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.2, 0.2, 0.6]], dtype=torch.float64)
BETA, GAMMA = 6.0, 0.25
KL = (  # KL(clean ‖ crafted), sample by sample
    0.5 * log(0.5 / 0.2) + 0.3 * log(0.3 / 0.5) + 0.2 * log(0.2 / 0.3),
    0.1 * log(0.1 / 0.25) + 0.6 * log(0.6 / 0.25) + 0.3 * log(0.3 / 0.5),
)
CE_HARD = -(log(0.5) + log(0.3)) / 2
CE_SOFT = -(0.7 * log(0.5) + 0.3 * log(0.3) + 0.2 * log(0.1) + 0.2 * log(0.6) + 0.6 * log(0.3)) / 2
BEYOND_CE = -(log(0.1) + log(0.4)) / 2
MOVED = (0.3**2 + 0.2**2 + 0.1**2 + 0.15**2 + 0.35**2 + 0.2**2) / 2  # ‖crafted − clean‖²
BY_HAND = {
    ("standard", "hard"): CE_HARD,
    ("standard", "soft"): CE_SOFT,
    ("pgd", "hard"): -(log(0.2) + log(0.5)) / 2,
    ("pgd", "soft"): -(0.7 * log(0.2) + 0.3 * log(0.5) + 0.4 * log(0.25) + 0.6 * log(0.5)) / 2,
    ("trades", "hard"): CE_HARD + 6 * (KL[0] + KL[1]) / 2,
    ("trades", "soft"): CE_SOFT + 6 * (KL[0] + KL[1]) / 2,
    ("mart", "hard"): (-log(0.2) - log(1 - 0.5) - log(0.5) - log(1 - 0.25) + 6 * (KL[0] * (1 - 0.5) + KL[1] * (1 - 0.3))) / 2,
    ("hat", "hard"): CE_HARD + 6 * (KL[0] + KL[1]) / 2 + 0.25 * BEYOND_CE,
    ("hat", "soft"): CE_SOFT + 6 * (KL[0] + KL[1]) / 2 + 0.25 * BEYOND_CE,
    ("score", "hard"): (0.5**2 + 0.3**2 + 0.2**2 + 0.1**2 + 0.6**2 + 0.7**2) / 2 + 6 * MOVED,
    ("score", "soft"): (0.2**2 + 0.0**2 + 0.2**2 + 0.1**2 + 0.4**2 + 0.3**2) / 2 + 6 * MOVED,
}


def logits(probabilities: list[list[float]]) -> Tensor:
    """Logits with these probabilities, away from normalised ones by another constant in each row."""
    return torch.tensor(probabilities, dtype=torch.float64).log() + torch.tensor([[3.0], [-2.0]], dtype=torch.float64)


def views(clean: Tensor | None = None, crafted: Tensor | None = None) -> Views:
    return Views(
        logits(CLEAN) if clean is None else clean, logits(CRAFTED) if crafted is None else crafted, logits(BEYOND), HELPER
    )


def value(name: str, seen: Views, target: Tensor, beta: float = BETA, gamma: float = GAMMA) -> float:
    return OBJECTIVES[name].loss(seen, target, beta, gamma).item()


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


@pytest.mark.parametrize(("name", "kind"), BY_HAND)
def test_an_objective_has_the_value_computed_by_hand(name: str, kind: str) -> None:
    target = LABELS if kind == "hard" else SOFT
    assert value(name, views(), target) == pytest.approx(BY_HAND[name, kind], rel=1e-12)
    single = Views(*(v.float() for v in (logits(CLEAN), logits(CRAFTED), logits(BEYOND))), HELPER)
    assert value(name, single, target if kind == "hard" else target.float()) == pytest.approx(BY_HAND[name, kind], rel=1e-6)


def test_every_objective_is_computed_by_hand_with_each_kind_of_target_it_takes() -> None:
    kinds = {(n, k) for n, o in OBJECTIVES.items() for k in ("hard", "soft") if k == "hard" or not o.hard_labels}
    assert set(BY_HAND) == kinds


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_reads_the_views_it_names_and_no_other(name: str) -> None:
    full, kind = views(), OBJECTIVES[name]
    named = {v: getattr(full, v) for v in kind.views} | ({"helper_labels": HELPER} if "beyond" in kind.views else {})
    assert value(name, Views(**({"clean": None, "crafted": None} | named)), LABELS) == value(name, full, LABELS)
    for missing in kind.views:
        with pytest.raises(ValueError, match=r"needs a view that was not computed; see Objective\.views"):
            value(name, Views(**({"clean": None, "crafted": None} | named | {missing: None})), LABELS)


@pytest.mark.parametrize("target", [LABELS, SOFT], ids=["hard", "soft"])
def test_without_weights_on_their_second_terms_objectives_are_their_first_term(target: Tensor) -> None:
    ce = F.cross_entropy(logits(CLEAN), target).item()
    assert value("trades", views(), target, beta=0) == pytest.approx(ce, rel=1e-12)
    assert value("hat", views(), target, beta=0, gamma=0) == pytest.approx(ce, rel=1e-12)
    assert value("hat", views(), target, gamma=0) == pytest.approx(value("trades", views(), target), rel=1e-12)
    assert value("score", views(), target, beta=0) == pytest.approx(squared_error(logits(CLEAN), target).mean().item(), rel=1e-12)


def test_with_nothing_crafted_the_second_terms_are_zero() -> None:
    same = views(crafted=logits(CLEAN))
    for name in ("trades", "mart", "score"):
        assert value(name, same, LABELS, beta=1e6) == pytest.approx(value(name, same, LABELS, beta=0), rel=1e-12)
    assert value("trades", same, LABELS) == pytest.approx(value("pgd", same, LABELS), rel=1e-12)
    assert value("mart", same, LABELS) == pytest.approx(boosted_cross_entropy(logits(CLEAN), LABELS).mean().item(), rel=1e-12)


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if not o.hard_labels])
def test_labels_are_one_hot_distributions(name: str) -> None:
    one_hot = F.one_hot(LABELS, 3).double()
    assert value(name, views(), one_hot) == pytest.approx(value(name, views(), LABELS), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_labels_are_torchs_label_smoothing(smoothing: float) -> None:
    target = smooth(LABELS, 3, smoothing)
    ours = value("standard", views(), target if smoothing == 0 else target.double())
    assert ours == pytest.approx(F.cross_entropy(logits(CLEAN), LABELS, label_smoothing=smoothing).item(), rel=1e-6)


def test_a_divergence_is_zero_only_between_equals_and_takes_its_sides_in_order() -> None:
    p, q = logits(CLEAN), logits(CRAFTED)
    assert divergence(p, q).tolist() == pytest.approx(KL, rel=1e-12)
    assert divergence(p, p + 7).abs().max() < 1e-15
    assert (divergence(p, q) > 0).all() and not torch.allclose(divergence(p, q), divergence(q, p))


def mart_of_the_released_code(clean: np.ndarray, crafted: np.ndarray, labels: np.ndarray, beta: float) -> float:
    """`mart_loss` of YisenWang/MART, sample by sample in float64, with its 1.0001, 1e-12 and 1.0000001."""
    total = 0.0
    for a, b, y in zip(clean, crafted, labels, strict=True):
        p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
        first, second = np.argsort(q)[::-1][:2]
        other = second if first == y else first
        boosted = -np.log(q[y]) - np.log(1.0001 - q[other] + 1e-12)
        total += boosted + beta * sum(p * (np.log(p) - np.log(q + 1e-12))) * (1.0000001 - p[y])
    return total / len(labels)


@pytest.mark.parametrize("seed", range(3))
def test_mart_is_the_released_code_without_its_small_constants(seed: int) -> None:
    clean, crafted = noise(50, 10, seed=seed, scale=1.5), noise(50, 10, seed=seed + 9, scale=1.5)
    labels = crafted.argmax(1) if seed == 0 else torch.arange(50) % 10  # all right, mostly wrong
    theirs = mart_of_the_released_code(clean.numpy(), crafted.numpy(), labels.numpy(), 5.0)
    assert value("mart", Views(clean, crafted), labels, beta=5.0) == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_finite_where_a_probability_is_one(name: str) -> None:
    sure = torch.tensor([[100.0, -100, 0], [-100, 100, -100], [0, -100, 100], [100, 100, -100]])
    seen = [sure.roll(i, 1).requires_grad_() for i in range(3)]
    for labels in (torch.zeros(4, dtype=torch.int64), sure.argmax(1), torch.tensor([1, 0, 1, 2])):
        for crafted in seen:
            loss = OBJECTIVES[name].loss(Views(seen[0], crafted, seen[2], labels), labels, BETA, GAMMA)
            found = torch.autograd.grad(loss, seen, allow_unused=True)
            assert loss.isfinite() and all(g.isfinite().all() for g in found if g is not None)


def test_gradients_are_those_of_finite_differences() -> None:
    p, q = noise(4, 5, seed=1).requires_grad_(), noise(4, 5, seed=2).requires_grad_()
    labels, soft = torch.tensor([0, 4, 2, 2]), noise(4, 5, seed=3).softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(divergence, (p, q))
    assert torch.autograd.gradcheck(lambda z: boosted_cross_entropy(z, labels), (p,))
    assert torch.autograd.gradcheck(lambda z: squared_error(z, labels), (p,))
    assert torch.autograd.gradcheck(squared_error, (p, soft))
    for loss in TO_DISTRIBUTION.values():
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, soft.detach()), (p,))


def test_crafting_losses_have_the_values_computed_by_hand() -> None:
    p = torch.tensor(CLEAN, dtype=torch.float64)
    assert TO_DISTRIBUTION["kl"](logits(CRAFTED), p).tolist() == pytest.approx(KL, rel=1e-12)
    moved = [0.3**2 + 0.2**2 + 0.1**2, 0.15**2 + 0.35**2 + 0.2**2]
    assert TO_DISTRIBUTION["squared"](logits(CRAFTED), p).tolist() == pytest.approx(moved, rel=1e-12)


def test_crafting_losses_are_zero_and_flat_at_the_prediction_itself() -> None:
    """Why an attack on them needs a random start."""
    z = logits(CLEAN).requires_grad_()
    for loss in TO_DISTRIBUTION.values():
        at = loss(z, z.detach().softmax(1))
        (gradient,) = torch.autograd.grad(at.sum(), z)
        assert at.abs().max() < 1e-15 and gradient.abs().max() < 1e-15


def test_toward_a_sure_prediction_crafting_losses_are_those_against_its_label() -> None:
    one_hot = F.one_hot(LABELS, 3).double()
    ce = F.cross_entropy(logits(CRAFTED), LABELS, reduction="none")
    assert torch.allclose(TO_DISTRIBUTION["kl"](logits(CRAFTED), one_hot), ce, rtol=1e-12)
    squared = TO_DISTRIBUTION["squared"](logits(CRAFTED), one_hot)
    assert torch.allclose(squared, squared_error(logits(CRAFTED), LABELS), rtol=1e-12)


class Counted(nn.Module):
    """A small network that counts its passes."""

    def __init__(self, seed: int = 0, *, norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            middle = nn.BatchNorm2d(6) if norm else nn.Identity()
            self.net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), middle, nn.GELU(), nn.Flatten(), nn.Linear(6 * 9, 4))
            nn.init.normal_(self.net[4].weight, std=0.5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)


def pictures(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("given", [True, False], ids=["given start", "random start"])
@pytest.mark.parametrize("loss", ["ce", "kl", "squared"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.8)])
def test_craft_ends_where_attack_ends_one_pass_earlier(norm: str, eps: float, loss: str, given: bool) -> None:
    net, x = Counted().eval(), pictures()
    pgd = PGD(eps, norm, steps=4, loss=loss, seed=5)
    y = torch.arange(6) % 4 if loss == "ce" else net(x).detach().softmax(1)
    start = x + NORMS[norm].start(torch.randn_like(x), torch.rand(6), torch.full((6,), eps)) if given else None
    net.calls = 0
    crafted = craft(net, x, y, pgd, start=start)
    assert net.calls == 4
    assert torch.equal(crafted, attack(net, x, y, pgd, start=start).x)
    assert net.calls == 4 + 5
    assert not crafted.requires_grad and all(p.grad is None for p in net.parameters())
    assert (NORMS[norm].size(crafted - x) <= eps * (1 + 1e-5)).all() and crafted.min() >= 0 and crafted.max() <= 1


@pytest.mark.parametrize("loss", ["ce", "kl", "squared"])
def test_a_crafted_image_has_a_larger_loss_than_its_start(loss: str) -> None:
    net, x = Counted().eval(), pictures()
    y = torch.arange(6) % 4 if loss == "ce" else net(x).detach().softmax(1)
    start = (x + 0.01 * torch.sign(noise(*x.shape, dtype=torch.float32))).clamp(0, 1)
    of = F.cross_entropy if loss == "ce" else TO_DISTRIBUTION[loss]
    crafted = craft(net, x, y, PGD(0.1, steps=5, loss=loss), start=start)
    assert of(net(crafted), y).mean() > 1.05 * of(net(start), y).mean()


def networks_loss(net: nn.Module) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(net(pictures()), torch.arange(6) % 4)


def kept(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def unchanged(net: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_move_of_no_size_moves_nothing() -> None:
    net = Counted(norm=True)
    before = kept(net)
    with moved_weights(net, networks_loss(net), 0.0):
        assert unchanged(net, before)
    assert unchanged(net, before)


def test_kernels_move_along_their_gradients_by_their_size_and_vectors_stay() -> None:
    net = Counted(norm=True)
    before, twin = kept(net), copy.deepcopy(net)
    networks_loss(twin)().backward()
    with moved_weights(net, networks_loss(net), 0.03):
        for (name, weight), (_, other) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
            move = (weight - before[name]).detach()
            if weight.ndim == 1:
                assert torch.equal(weight, before[name]), name
                continue
            assert move.norm().item() == pytest.approx(0.03 * before[name].norm().item(), rel=1e-5), name
            assert F.cosine_similarity(move.flatten(), other.grad.flatten(), dim=0).item() == pytest.approx(1, abs=1e-6), name
        assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_weights_and_running_statistics_are_as_they_were(fails: bool) -> None:
    net = Counted(norm=True)
    before, body = kept(net), RuntimeError("in the body")

    def enter() -> None:
        with moved_weights(net, networks_loss(net), 0.1):
            assert not unchanged(net, before)
            if fails:
                raise body

    if fails:
        with pytest.raises(RuntimeError, match="in the body") as caught:
            enter()
        assert caught.value is body
    else:
        enter()
    assert unchanged(net, before) and int(before["net.1.num_batches_tracked"]) == 0


def test_the_training_pass_inside_moves_running_statistics_once() -> None:
    net = Counted(norm=True)
    before, loss = kept(net), networks_loss(net)
    with moved_weights(net, loss, 0.01):
        loss().backward()
    assert int(net.net[1].num_batches_tracked) == 1 and not torch.equal(net.net[1].running_mean, before["net.1.running_mean"])
    assert all(p.grad is not None for p in net.parameters())


def test_the_loss_is_larger_at_the_moved_weights() -> None:
    net = Counted(norm=True)
    loss = networks_loss(net)
    outside = loss().item()
    with moved_weights(net, loss, 0.01):
        little = loss().item()
    with moved_weights(net, loss, 0.05):
        more = loss().item()
    assert outside < little < more


def test_frozen_unused_and_flat_weights_stay() -> None:
    net = Counted()
    net.unused, net.flat = nn.Linear(3, 3), nn.Parameter(torch.ones(2, 2))
    net.net[0].weight.requires_grad_(False)
    before = kept(net)
    with moved_weights(net, lambda: networks_loss(net)() + 0 * net.flat.sum(), 0.1):
        assert [k for k, v in net.state_dict().items() if not torch.equal(v, before[k])] == ["net.4.weight"]


@pytest.fixture(scope="module")
def art(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Parts of the Adversarial Robustness Toolbox, which writes a settings file into the home folder when imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
        from art.defences.trainer import AdversarialTrainerAWPPyTorch, AdversarialTrainerTRADESPyTorch
        from art.estimators.classification import PyTorchClassifier

    def classifier(net: nn.Module, lr: float) -> Any:
        optimiser = torch.optim.SGD(net.parameters(), lr=lr)
        return PyTorchClassifier(net, nn.CrossEntropyLoss(), (3, 8, 8), 4, optimiser, clip_values=(0, 1), device_type="cpu")

    return SimpleNamespace(
        classifier=classifier,
        attacks={
            "fgsm": lambda c: FastGradientMethod(c, eps=0.1),
            "pgd": lambda c: ProjectedGradientDescentPyTorch(c, eps=0.1, eps_step=0.04, max_iter=3, verbose=False),
        },
        trades=AdversarialTrainerTRADESPyTorch,
        awp=AdversarialTrainerAWPPyTorch,
    )


def batch() -> tuple[Tensor, Tensor]:
    return pictures(12), torch.arange(12) % 4


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    return max((v.double() - b.state_dict()[k].double()).abs().max().item() for k, v in a.state_dict().items())


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_a_step_of_trades_is_that_of_a_public_implementation(art: SimpleNamespace, kind: str) -> None:
    """All weights and running statistics after one SGD step on one batch, both on the images that its attack crafts."""
    ours, theirs, (x, y) = Counted(norm=True).train(), Counted(norm=True), batch()
    first = copy.deepcopy(ours)
    wrapped = art.classifier(theirs, 0.5)
    climbs = art.attacks[kind](wrapped)
    theirs.eval()
    crafted = torch.from_numpy(climbs.generate(x.numpy(), y=y.numpy()))
    art.trades(wrapped, climbs, beta=BETA).fit(x.numpy(), y.numpy(), batch_size=len(x), nb_epochs=1)

    optimiser = torch.optim.SGD(ours.parameters(), lr=0.5)
    OBJECTIVES["trades"].loss(Views(ours(x), ours(crafted)), y, BETA, 0.0).backward()
    optimiser.step()
    assert largest_difference(ours, theirs) < 1e-5 < 0.1 < largest_difference(first, theirs)
    own = PGD(0.1, steps=1, step_size=0.1) if kind == "fgsm" else PGD(0.1, steps=3, step_size=0.04)
    assert (craft(first.eval(), x, y, own, start=x) - crafted).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["pgd", "trades"])
def test_a_step_with_moved_weights_is_that_of_a_public_implementation(art: SimpleNamespace, name: str) -> None:
    """All weights and running statistics after one SGD step whose gradient is taken at the moved weights, on the same images."""
    gamma, (x, y) = 0.05, batch()
    ours, theirs = Counted(norm=True).train(), Counted(norm=True)
    plain = copy.deepcopy(ours)
    wrapped, proxy = art.classifier(theirs, 0.5), art.classifier(Counted(seed=1, norm=True), 1.0)
    climbs = art.attacks["pgd"](wrapped)
    theirs.eval()
    crafted = torch.from_numpy(climbs.generate(x.numpy(), y=y.numpy()))
    trainer = art.awp(wrapped, proxy, climbs, mode=name.upper(), gamma=gamma, beta=BETA, warmup=0)
    trainer.fit(x.numpy(), y.numpy(), batch_size=len(x), nb_epochs=1)

    def step(net: nn.Module, size: float) -> None:
        def loss() -> Tensor:
            seen = Views(net(x) if name == "trades" else None, net(crafted))
            return OBJECTIVES[name].loss(seen, y, BETA, 0.0)

        optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
        with moved_weights(net, loss, size):
            loss().backward()
        optimiser.step()

    step(ours, gamma)
    step(plain, 0.0)
    assert largest_difference(ours, theirs) < 1e-5 < 1e-3 < largest_difference(plain, theirs)
