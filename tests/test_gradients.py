"""Gradient sources against what is known exactly: linear models, completeness, the sum of steps, captum with the same draws."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from interp.attacks.pgd import PGD
from interp.attacks.search import attack
from interp.gradients.fold import fold
from interp.gradients.paths import BASELINES, Blur, baseline, nodes
from interp.gradients.sources import (
    Block,
    Draw,
    along,
    augmented,
    blocks,
    from_references,
    gradient,
    noisy,
    of_class,
    over_steps,
    through_blurs,
)
from interp.types import InputError
from tests.test_attacks import Curved, Linear, some
from tests.test_search import SQUARE, Small

DRAWS: dict[str, Callable[[Tensor], Iterator[Draw]]] = {
    "noise": lambda x: noisy(x, n=4, sigma=0.2),
    "path": lambda x: along(x, n=4, baseline=torch.zeros_like(x)),
    "blur": lambda x: through_blurs(x, n=4),
    "expected": lambda x: from_references(x, references=some(5, seed=3), n=4),
}


def smooth(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.Tanh(), nn.Linear(16, 4))
    return net.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("source", DRAWS)
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_every_source_returns_the_weight_of_a_linear_model(source: str, chunk: int) -> None:
    model, x, y = Linear(), some(3), torch.tensor([0, 1, 2])
    folded = fold(blocks(model, DRAWS[source](x), y, loss="logit", chunk=chunk))
    weight = -model.weight[y].view_as(x)
    assert folded.running.count == 4
    assert torch.allclose(folded.running.mean, weight, atol=1e-6)
    assert torch.allclose(folded.cosine, torch.ones(3), atol=1e-5)
    assert torch.allclose(folded.running.variance, torch.zeros_like(x), atol=1e-8)
    if source == "path":
        assert folded.attribution is not None
        assert torch.allclose(folded.attribution, weight * x, atol=1e-6)


def test_steps_return_the_weight_of_a_linear_model() -> None:
    model, x, y = Linear(), some(3), torch.tensor([0, 1, 2])
    folded = fold(over_steps(model, x, y, PGD(0.1, steps=4, loss="logit")))
    assert folded.running.count == 4 and len(folded.turns) == 3 and folded.attribution is None
    assert torch.allclose(folded.running.mean, -model.weight[y].view_as(x), atol=1e-6)


def test_a_view_takes_the_gradient_back_to_the_pixels() -> None:
    """On a linear loss without a constant, ⟨gradient through the view, x⟩ is the loss of the view."""
    model, x, y = Linear(), some(3), torch.tensor([0, 1, 2])
    draws = list(augmented(x, n=3))
    seen = []
    for draw, g in zip(draws, next(blocks(model, draws, y, loss="logit", chunk=9)).gradients, strict=True):
        assert draw.view is not None
        shown = draw.view(x)
        assert shown.min() >= 0 and shown.max() <= 1
        loss = -model(shown).gather(1, y[:, None])[:, 0]
        assert torch.allclose((g * x).flatten(1).sum(1), loss, atol=1e-5)
        seen.append(shown)
    assert not torch.allclose(seen[0], seen[1], atol=0.01) and not torch.allclose(seen[0], x, atol=0.01)


def test_views_are_mirrored_half_the_time_enlarged_and_dimmed() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    views = [draw.view(ramp) for draw in augmented(ramp, n=60) if draw.view is not None]
    slopes = torch.stack([(v[..., 15:17].mean((0, 1, 2)).diff() * 31)[0] for v in views])  # of the ramp itself: 1
    assert 15 < int((slopes < 0).sum()) < 45
    assert slopes.abs().min() > 0.7 * 0.75 - 1e-3 and slopes.abs().max() < 1 + 1e-3 and slopes.abs().std() > 0.05


def test_noise_without_width_is_the_plain_gradient() -> None:
    model, x, y = smooth(), some(2), torch.tensor([1, 2])
    plain = gradient(model, x, y)
    assert torch.equal(fold(blocks(model, noisy(x, n=1, sigma=0.0), y)).running.mean, plain)
    x.requires_grad_(True)
    assert torch.allclose(torch.autograd.grad(nn.functional.cross_entropy(model(x), y, reduction="sum"), x)[0], plain, atol=1e-7)


def test_a_loss_may_be_a_function() -> None:
    model, x, y = smooth(), some(2), torch.tensor([1, 2])
    named = gradient(model, x, y, loss="logit")
    assert torch.equal(gradient(model, x, y, loss=lambda logits, y: -2 * logits.gather(1, y[:, None])[:, 0]), 2 * named)


@pytest.mark.parametrize("source", ["noise", "expected", "augment"])
def test_n_images_are_n_times_one_image(source: str) -> None:
    model, x, y, references = smooth(), some(3), torch.tensor([1, 2, 0]), some(5, seed=3)

    def folded(x: Tensor, y: Tensor, first: int, chunk: int) -> Tensor:
        draws = {
            "noise": lambda: noisy(x, n=5, sigma=0.3, seed=7, first=first),
            "expected": lambda: from_references(x, references=references, n=5, seed=7, first=first),
            "augment": lambda: augmented(x, n=5, seed=7, first=first),
        }[source]()
        return fold(blocks(model, draws, y, chunk=chunk)).running.mean

    whole = folded(x, y, 0, 6)
    for i in range(3):
        assert torch.allclose(folded(x[i : i + 1], y[i : i + 1], i, 2)[0], whole[i], atol=1e-6)
    assert not torch.allclose(folded(x[:1], y[:1], 1, 2)[0], whole[0], atol=1e-4)


def test_the_images_of_a_class_are_its_draws() -> None:
    model, x, y = smooth(), some(5), torch.tensor([2])
    running = fold(blocks(model, of_class(x), y, chunk=2)).running
    each = gradient(model, x, y.expand(5)).double()
    assert running.mean.shape == (1, 3, 6, 6) and running.count == 5
    assert torch.allclose(running.mean[0].double(), each.mean(0), atol=1e-7)
    assert torch.allclose(running.absolute[0].double(), each.abs().mean(0), atol=1e-7)
    assert torch.allclose(running.variance[0].double(), each.var(0, correction=0), atol=1e-7)


def test_signs_and_absolute_values() -> None:
    stream = [Block(torch.tensor([3.0, -2.0, 0.5]).view(3, 1, 1, 1, 1))]
    assert fold(stream, use="sign").running.mean.item() == pytest.approx(1 / 3)
    assert fold(stream, use="absolute").running.mean.item() == pytest.approx(5.5 / 3)
    assert fold(stream, use="absolute").cosine.item() == -1  # of the gradients themselves


def test_one_gradient_has_no_neighbour() -> None:
    folded = fold([Block(some(2)[None])])
    assert bool(folded.cosine.isnan().all()) and folded.cosine.shape == (2,) and folded.turns == []


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_gauss_legendre_is_exact_up_to_its_degree_and_not_beyond(n: int) -> None:
    at, weights = nodes("gauss-legendre", n)
    for degree in range(2 * n):
        assert float(weights @ at**degree) == pytest.approx(1 / (degree + 1), abs=1e-14)
    assert abs(float(weights @ at ** (2 * n)) - 1 / (2 * n + 1)) > 1e-12


@pytest.mark.parametrize("rule", ["midpoint", "trapezoid"])
def test_the_other_rules_are_exact_for_lines(rule: str) -> None:
    at, weights = nodes(rule, 4)
    assert float(weights.sum()) == pytest.approx(1) and float(weights @ at) == pytest.approx(0.5)
    assert abs(float(weights @ at**2) - 1 / 3) > 1e-3


@pytest.mark.parametrize(("source", "n", "error"), [("path", 12, 1e-9), ("blur", 40, 1e-7)])
def test_attributions_along_a_path_sum_to_the_change_of_the_loss(source: str, n: int, error: float) -> None:
    model, y = smooth(dtype=torch.float64), torch.tensor([0, 1, 2])
    x = some(3).double()
    begin = Blur(x).at(0.0)[0] if source == "blur" else torch.zeros_like(x)
    draws = through_blurs(x, n=n) if source == "blur" else along(x, n=n, baseline=begin)
    found = fold(blocks(model, draws, y, loss="logit")).attribution
    assert found is not None and found.dtype == torch.float64
    change = -(model(x) - model(begin)).gather(1, y[:, None])[:, 0]
    assert change.abs().min() > 5e-4
    assert torch.allclose(found.flatten(1).sum(1), change, atol=error, rtol=0)


def test_expected_gradients_sum_to_the_mean_change_in_the_long_run() -> None:
    model, x, y, references = smooth(), some(2), torch.tensor([0, 1]), some(4, seed=3)
    errors = []
    for n in (20, 2000):
        found = fold(blocks(model, from_references(x, references=references, n=n), y, loss="logit", chunk=500)).attribution
        assert found is not None
        change = -(model(x) - model(references).mean(0)).gather(1, y[:, None])[:, 0]
        errors.append(float((found.flatten(1).sum(1) - change).abs().max()))
    assert errors[1] < 0.02 and errors[1] < errors[0] / 3


@pytest.mark.parametrize(
    ("rule", "theirs", "share"),
    [("midpoint", "riemann_middle", 1), ("gauss-legendre", "gausslegendre", 1), ("trapezoid", "riemann_trapezoid", 19 / 20)],
)
def test_path_attributions_equal_captums_integrated_gradients(rule: str, theirs: str, share: float) -> None:
    """Captum's trapezoid rule with n points has weights that sum to (n − 1)/n; ours sum to 1."""
    captum = pytest.importorskip("captum.attr")
    model, x, y = smooth(), some(3), torch.tensor([0, 1, 2])
    begin = some(3, seed=5)
    want = captum.IntegratedGradients(model).attribute(x, begin, target=y, n_steps=20, method=theirs).float() / share
    found = fold(blocks(model, along(x, n=20, baseline=begin, rule=rule), y, loss="logit")).attribution
    assert found is not None
    assert torch.allclose(-found, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


class Watched(nn.Module):
    """Keeps what a model is shown."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.model(x)


@pytest.mark.parametrize(("kind", "name"), [("smoothgrad", "mean"), ("vargrad", "variance")])
def test_noise_equals_captums_noise_tunnel_with_the_same_draws(kind: str, name: str) -> None:
    captum = pytest.importorskip("captum.attr")
    watched, x, y, sigma = Watched(smooth(dtype=torch.float64)), some(3).double(), torch.tensor([0, 1, 2]), 0.5
    tunnel = captum.NoiseTunnel(captum.Saliency(watched))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        want = tunnel.attribute(x, nt_type=kind, nt_samples=8, stdevs=sigma, target=y, abs=False)
    points = watched.seen[0].view(3, 8, 3, 6, 6).transpose(0, 1)
    noise, y = (points - x) / sigma, torch.tensor([0, 1, 2])
    for dtype, error in ((torch.float64, 1e-9), (torch.float32, 1e-5)):  # captum's variance itself is off by 1e-4 in float32
        draws = noisy(x.to(dtype), n=8, sigma=sigma, noise=noise)
        found = getattr(fold(blocks(smooth(dtype=dtype), draws, y, loss="logit")).running, name) * (-1 if name == "mean" else 1)
        assert torch.allclose(found.double(), want, rtol=error, atol=error * float(want.abs().max()))


def test_gradient_shap_is_expected_gradients_at_the_same_points() -> None:
    captum = pytest.importorskip("captum.attr")
    watched, x, y, reference = Watched(smooth()), some(2), torch.tensor([0, 1]), some(1, seed=5)
    want = captum.GradientShap(watched).attribute(x, reference, n_samples=6, stdevs=0.0, target=y)
    points = watched.seen[0].view(2, 6, 3, 6, 6).transpose(0, 1)
    way = ((points - reference) / (x - reference)).flatten(2)
    assert torch.allclose(way, way.mean(2, keepdim=True).expand_as(way), atol=1e-3)  # one a per draw, as ours
    found = fold(blocks(watched, [Draw(p, direction=x - reference) for p in points], y, loss="logit")).attribution
    assert found is not None
    assert torch.allclose(-found, want.float(), rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_the_sum_of_signs_is_the_perturbation_while_nothing_clips() -> None:
    """δ_T = clip(α·Σ sign g_t) exactly as long as no projection is active: the ball touched at the last step alone."""
    model, y, x = smooth(), torch.tensor([0, 1]), torch.full((2, 3, 6, 6), 0.5)
    pgd = PGD(0.0625, steps=5, step_size=0.015625, random_start=False)  # powers of two: sums are exact
    signs = fold(over_steps(model, x, y, pgd), use="sign").running
    total = (signs.mean.double() * 5).round()
    assert int((total.abs() == 5).sum()) > 10
    assert torch.equal(attack(model, x, y, pgd).x - x, (0.015625 * total).clamp(-0.0625, 0.0625).float())


def test_blurs_form_a_scale_space() -> None:
    x = some(2, size=9, width=12).double()
    path = Blur(x)
    assert torch.allclose(path.at(1.0)[0], x, atol=1e-12)
    for a in (0.0, 0.3, 0.9):
        point, slope = path.at(a)
        before, after = path.at(a - 1e-5)[0], path.at(a + 1e-5)[0]
        assert torch.allclose(slope, (after - before) / 2e-5, atol=1e-6)
        assert torch.allclose(point.mean((2, 3)), x.mean((2, 3)), atol=1e-12)
    sigma = [path.widest * (1 - a) ** 2 for a in (0.4, 0.5)]
    both = 1 - ((sigma[0] ** 2 + sigma[1] ** 2) ** 0.5 / path.widest) ** 0.5
    assert torch.allclose(Blur(path.at(0.4)[0]).at(0.5)[0], path.at(both)[0], atol=1e-9)


def test_a_blur_is_scipys_gaussian_filter() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = some(1, size=32).double()
    path = Blur(x)
    a = 1 - (2.0 / path.widest) ** 0.5
    want = ndimage.gaussian_filter(x.numpy()[0], sigma=(0, 2.0, 2.0), mode="reflect", truncate=8)
    assert torch.allclose(path.at(a)[0][0], torch.from_numpy(want), atol=1e-5)


def test_baselines() -> None:
    x = some(3, size=8)
    assert [float(baseline(name, x).mean()) for name in ("black", "grey", "white")] == [0, 0.5, 1]
    assert torch.allclose(baseline("mean", x), x.mean(0).expand_as(x))
    assert torch.equal(baseline("mean", x[:1], among=x), x.mean(0)[None])
    assert torch.equal(baseline("blur", x), Blur(x).at(0.0)[0])
    assert all(baseline(name, x).shape == x.shape for name in BASELINES)
    with pytest.raises(InputError, match="expected one of grey, black"):
        baseline("red", x)


@pytest.mark.parametrize(("rule", "n"), [("simpson", 4), ("trapezoid", 1), ("midpoint", 0)])
def test_rules_that_cannot_be_are_refused(rule: str, n: int) -> None:
    with pytest.raises(InputError, match=f"{rule}.*expected one of gauss-legendre"):
        nodes(rule, n)


MEMORY = """
import resource, torch
from interp.gradients.fold import fold
from interp.gradients.sources import along, blocks, noisy
from tests.test_gradients import smooth
from tests.test_attacks import some
torch.set_num_threads(1)
model, x, y = smooth(), some(8), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
def peak(n):
    fold(blocks(model, noisy(x, n=n, sigma=0.1), y, chunk=64))
    fold(blocks(model, along(x, n=n, baseline=x / 2, rule="midpoint"), y, chunk=64))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
few = peak(10)
print(few, peak(10000))
"""


@pytest.mark.slow
def test_memory_is_flat_from_10_to_10000_draws() -> None:
    """Kept, the gradients alone would be 69 MB."""
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, env=here, timeout=300)
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split())
    assert many - few < 6 * 1024  # ru_maxrss is in KiB


def test_draws_that_do_not_fit_into_one_pass_are_taken_in_halves() -> None:
    x, y = some(1), torch.tensor([2])
    sizes = [len(block.gradients) for block in blocks(Small(shape=SQUARE), noisy(x, n=11, sigma=0.1), y, chunk=16)]
    assert sizes == [2, 2, 2, 2, 2, 1]
    halves = fold(blocks(Small(shape=SQUARE), noisy(x, n=11, sigma=0.1), y, chunk=16)).running.mean
    assert torch.allclose(
        halves, fold(blocks(Curved(shape=SQUARE), noisy(x, n=11, sigma=0.1), y, chunk=16)).running.mean, atol=1e-5
    )
    with pytest.raises(torch.OutOfMemoryError):
        list(blocks(Small(shape=SQUARE), noisy(some(5), n=1, sigma=0.1), torch.zeros(5, dtype=torch.long), chunk=16))
