"""Where class gradients point, on linear models whose answer is known and on networks that have learnt nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import interp
from interp.attributes.aligned import (
    MEASURES,
    References,
    aligned,
    alignment,
    class_gradients,
    directions,
    distances,
    diversity,
    linearised_robustness,
    penultimate,
    read_accuracy,
    references,
    toward,
)
from interp.models.model import Model
from interp.models.randomise import fully_randomised
from interp.types import Batch, Card, InputError, Preprocess

SIZE, CLASSES = 8, 4
D = 3 * SIZE * SIZE
ROWS = ("toward_mean", "toward_nearest", "class_part", "alignment", "linearised")


def model(weight: Tensor, bias: Tensor | None = None) -> Model:
    linear = nn.Linear(weight[0].numel(), len(weight))
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        linear.weight.copy_(weight.flatten(1))
        if bias is not None:
            linear.bias.copy_(bias)
    card = Card(id="linear", arch="x", num_classes=len(weight), preprocess=Preprocess(SIZE, SIZE))
    return Model(nn.Sequential(nn.Flatten(), linear), card)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def world(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of CLASSES planted patterns of contrast 0.2 in noise of 0.05, around grey."""
    labels = torch.arange(n) % CLASSES
    x = 0.5 + 0.2 * normals(CLASSES, 3, SIZE, SIZE)[labels].clamp(-1, 1) + 0.05 * normals(n, 3, SIZE, SIZE, seed=seed + 1)
    return x.clamp(0, 1), labels


def test_class_gradients_are_the_weights_of_a_linear_model() -> None:
    weight, (x, labels) = normals(CLASSES, 3, SIZE, SIZE), world(10)
    for chunk in (3, 64):
        assert torch.allclose(class_gradients(model(weight), x, labels, chunk=chunk), weight[labels], atol=1e-6)


def test_class_gradients_are_autograds(tiny: Callable[..., Model], samples: Batch) -> None:
    net, x, targets = tiny("xcit"), samples.images[:4].clone(), torch.tensor([3, 0, 9, 9])
    found = class_gradients(net, x, targets, chunk=3)
    x.requires_grad_(True)
    (want,) = torch.autograd.grad(net(x).gather(1, targets[:, None]).sum(), x)
    assert torch.allclose(found, want, atol=1e-5 * float(want.abs().max()))


def test_no_image_is_its_own_reference() -> None:
    """Leave-one-out, also of a duplicate, by class and for images from elsewhere."""
    x, labels = world(12)
    x[8] = x[0]  # of class 0, as 4
    known = references(x, labels, CLASSES)
    mean, nearest = directions(x[[0, 0, 1]], torch.tensor([0, 1, 1]), known)
    assert torch.allclose(mean[0] + x[0], x[4], atol=1e-6) and torch.allclose(nearest[0] + x[0], x[4], atol=1e-6)
    assert torch.allclose(mean[1] + x[0], known.means[1], atol=1e-6)
    assert torch.allclose(mean[2] + x[1], (x[5] + x[9]) / 2, atol=1e-6)
    outside = world(1, seed=9)[0]
    mean, nearest = directions(outside, torch.tensor([2]), known)
    members = x[labels == 2]
    assert torch.allclose(mean + outside, known.means[2][None], atol=1e-6)
    assert torch.allclose(nearest + outside, members[(members - outside).flatten(1).norm(dim=1).argmin()][None], atol=1e-6)


def test_a_class_without_references_has_no_direction() -> None:
    x, labels = world(8)
    known = references(x[:3], labels[:3], CLASSES)
    assert known.means[3].isnan().all() and torch.allclose(known.means[0], x[0])
    mean, nearest = directions(x[[0, 0, 1]], torch.tensor([0, 3, 0]), known)
    assert mean[:2].isnan().all() and nearest[:2].isnan().all()
    assert torch.allclose(mean[2], x[0] - x[1]) and torch.equal(mean[2], nearest[2])
    assert toward(torch.ones_like(mean), mean).isnan().tolist() == [True, True, False]


def test_references_without_fitting_labels_are_refused() -> None:
    x, labels = world(8)
    for some in (labels[:3], labels + 1):
        with pytest.raises(InputError, match="reference images"):
            references(x, some, CLASSES)
    with pytest.raises(InputError, match="2 reference classes"):
        aligned(model(normals(2, 3, SIZE, SIZE)), x, labels % 2, labels % 2, references(x, labels % 2, 2))


def test_noise_gradients_have_cosine_zero_with_deviation_one_over_root_d() -> None:
    x, labels = world(400)
    mean, nearest = directions(x, (labels + 1) % CLASSES, references(x, labels, CLASSES))
    for direction in (mean, nearest):
        found = toward(normals(*x.shape, seed=7), direction)
        assert abs(found.mean().item()) < 3 / math.sqrt(400 * D)
        assert found.std().item() == pytest.approx(1 / math.sqrt(D), rel=0.12)


def test_toward_is_the_cosine_and_undefined_at_zero() -> None:
    v = normals(3, 3, SIZE, SIZE)
    assert torch.allclose(toward(v, -2 * v), -torch.ones(3))
    v[1] = 0
    assert toward(v, normals(3, 3, SIZE, SIZE, seed=1)).isnan().tolist() == [False, True, False]
    assert toward(normals(3, 3, SIZE, SIZE), v).isnan().tolist() == [False, True, False]


def scores(weight: Tensor) -> dict[str, np.ndarray]:
    """A linear model's values for other images of the same world, each toward the next class."""
    x, labels = world(40, seed=5)
    found = aligned(model(weight), x, labels, (labels + 1) % CLASSES, references(*world(), CLASSES))
    return found | distances(model(weight), x, rivals=2)


def test_class_means_as_weights_point_to_their_class_and_random_weights_nowhere() -> None:
    planted, random = scores(references(*world(), CLASSES).means - 0.5), scores(normals(CLASSES, 3, SIZE, SIZE, seed=3))
    assert set(planted) == set(ROWS)
    for name in ("toward_mean", "toward_nearest"):
        assert planted[name].mean() > 0.5, name
        assert abs(random[name].mean()) < 4 / math.sqrt(D), name
    assert planted["class_part"].mean() > 0.5 and abs(random["class_part"].mean()) < 4 / math.sqrt(D)


def test_a_gradient_that_only_takes_contrast_has_no_class_part() -> None:
    """All classes' logits are −‖x − ½‖²: cosine high, though nothing of a class is in it."""

    class Contrast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -(x - 0.5).square().flatten(1).sum(1, keepdim=True).expand(-1, CLASSES)

    fades = Model(Contrast(), Card(id="contrast", arch="x", num_classes=CLASSES, preprocess=Preprocess(SIZE, SIZE)))
    x, labels = (t.repeat_interleave(CLASSES - 1, 0) for t in world(80, seed=5))
    targets = (labels + torch.arange(1, CLASSES).repeat(80)) % CLASSES
    found = aligned(fades, x, labels, targets, references(*world(), CLASSES))
    assert found["toward_mean"].min() > 0.4
    assert abs(found["class_part"].mean()) < 3 * found["class_part"].std() / len(x) ** 0.5 < 0.01
    assert np.isnan(aligned(fades, x, labels, labels, references(*world(), CLASSES))["class_part"]).all()


def test_values_do_not_depend_on_chunks_nor_on_the_scale_of_logits(tiny: Callable[..., Model], samples: Batch) -> None:
    net, x, y = tiny("resnet"), samples.images[:8], samples.labels[:8]
    known = references(samples.images, samples.labels, 10)
    whole, parts = (aligned(net, x, y, (y + 1) % 10, known, chunk=c) | distances(net, x, chunk=c) for c in (64, 3))
    for name in ROWS:
        assert whole[name].shape == (8,) and whole[name].dtype == np.float64
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-6)
    weight = normals(CLASSES, 3, SIZE, SIZE, seed=3)
    once, tenfold = scores(weight), scores(10 * weight)
    for name in ROWS:
        np.testing.assert_allclose(once[name], tenfold[name], rtol=1e-4, atol=1e-6)


def test_alignment_of_a_linear_model_is_its_distance_to_the_boundary() -> None:
    """Etmann et al.'s theorem for linear models: two opposite logits, boundary ⟨w, x⟩ = 0."""
    w, (x, _) = normals(1, 3, SIZE, SIZE, seed=2), world(20)
    logits = x.flatten(1) @ torch.cat([w, -w]).flatten(1).T
    distance = logits[:, 0].abs() / w.norm()
    order = logits.argsort(1, descending=True)
    gradients = torch.cat([w, -w])[order]
    assert torch.allclose(alignment(x, gradients[:, 0]), distance, rtol=1e-4)
    assert torch.allclose(linearised_robustness(logits.gather(1, order), gradients), distance, rtol=1e-4)
    assert torch.allclose(alignment(x, x), x.flatten(1).norm(dim=1))
    assert alignment(x, torch.zeros_like(x)).isnan().all()


def test_a_step_of_the_linearised_robustness_reaches_the_boundary_and_no_shorter_one_does() -> None:
    weight, bias, (x, _) = normals(CLASSES, 3, SIZE, SIZE), normals(CLASSES, seed=4), world(20)
    net = model(weight, bias)
    found = distances(net, x, rivals=CLASSES)["linearised"]
    logits = net(x)
    top = logits.argmax(1)
    for i, distance in enumerate(found):
        ways = weight - weight[top[i]]  # toward each other class
        ways = ways / ways.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-12)
        assert (net(x[i] + 0.99 * distance * ways).argmax(1) == top[i]).all()
        assert (net(x[i] + 1.01 * distance * ways).argmax(1) != top[i]).any()


def test_fewer_rivals_bound_the_linearised_robustness_from_above() -> None:
    weight, (x, _) = normals(CLASSES, 3, SIZE, SIZE), world(30)
    one, all_ = (distances(model(weight), x, rivals=k)["linearised"] for k in (1, 3))
    assert (one >= all_ * (1 - 1e-6)).all() and (one > all_ * 1.001).any()


def test_alignment_of_noise_is_what_chance_gives() -> None:
    x, _ = world(400)
    found = alignment(x, normals(*x.shape, seed=7)) / x.flatten(1).norm(dim=1)
    assert found.mean().item() == pytest.approx(math.sqrt(2 / (math.pi * D)), rel=0.1)


@pytest.mark.weights
def test_a_robust_model_points_to_classes_and_its_randomised_copy_does_not(samples: Batch) -> None:
    """Every sample toward every class it is not of: cosines of the random network are not small, but know no class."""
    robust = interp.load("xcit_nano_d6w64_cifar10_linf")
    x, labels = (t.repeat_interleave(9, 0) for t in (samples.images[:10], samples.labels[:10]))
    targets = (labels + torch.arange(1, 10).repeat(10)) % 10
    known = references(samples.images, samples.labels, 10)
    found, nothing = (aligned(m, x, labels, targets, known)["class_part"] for m in (robust, fully_randomised(robust)))
    assert np.nanmean(found) > 0.02 > 4 * abs(np.nanmean(nothing))


def test_read_accuracy_is_the_share_of_judges() -> None:
    logits = torch.eye(3)[torch.tensor([[0, 1, 2, 0], [0, 2, 2, 1]])]  # two judges, four pictures
    assert read_accuracy(logits, torch.tensor([0, 1, 2, 2])).tolist() == [1.0, 0.5, 1.0, 0.0]
    random = normals(5, 2000, 10)
    assert read_accuracy(random, torch.arange(2000) % 10).mean().item() == pytest.approx(0.1, abs=0.015)


def test_diversity_of_copies_of_real_images_and_of_what_is_wider() -> None:
    real, labels = normals(30, 16), torch.arange(30) % 3
    for t in range(3):
        assert diversity(real, labels, real, labels)[labels == t].mean().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(diversity(real[:1].expand(6, -1), torch.arange(6) % 3, real, labels), torch.zeros(6))
    assert torch.allclose(diversity(3 * real + 5, labels, real, labels), 3 * diversity(real, labels, real, labels), rtol=1e-4)
    made = torch.tensor([[0.0], [2.0], [10.0]])
    found = diversity(made, torch.zeros(3).long(), torch.tensor([[0.0], [4.0]]), torch.zeros(2).long())
    assert found.tolist() == pytest.approx([6 / 4, 5 / 4, 9 / 4])


def test_diversity_needs_two_of_each() -> None:
    real, labels = normals(5, 4), torch.tensor([0, 0, 1, 2, 2])
    found = diversity(real, torch.tensor([0, 0, 1, 1, 2]), real, labels)
    assert found.isnan().tolist() == [False, False, True, True, True]


def test_penultimate_features_give_the_logits(tiny_models: list[Model], samples: Batch) -> None:
    x = samples.images[:5]
    for net in tiny_models:
        features = penultimate(net, x, chunk=2)
        last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
        assert features.shape == (5, last.in_features)
        assert torch.allclose(last(features), net.read(x), atol=1e-4)
        assert not any(m._forward_pre_hooks for m in net.modules())


def test_rows_and_values_fit() -> None:
    assert [m.name for m in MEASURES] == [*ROWS, "read_accuracy", "diversity"]
    assert all(len(m.title) <= 32 and m.better in ("higher", "none") and m.source for m in MEASURES)
    assert References._fields == ("images", "labels", "means")
