"""Captum's methods through the project's call: what they equal, what they refuse, and that the model stays as it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import interp
from interp.gradients.accumulate import Accumulate, accumulate
from interp.gradients.captum import METHODS, PREFIX
from interp.gradients.rewrite import Largest
from interp.models.model import Model
from interp.types import Batch, Card, Preprocess
from tests.test_attacks import some

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
LABELS = ("cat", "dog", "frog", "ship")


class Failing(nn.Module):
    """Passes on what it gets, or raises."""

    fails = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("the network broke")
        return x


def network() -> Model:
    """A sequential network with in-place ReLUs: every method applies to it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Identity(),
            nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), Failing(), nn.Linear(32, 4),
        )  # fmt: skip
    return Model(net, Card("sequential", "none", 4, Preprocess(8, 8, mean=(0.5,) * 3, std=(0.25,) * 3), labels=LABELS))


@pytest.fixture
def images() -> Batch:
    return Batch(some(3, size=8), torch.tensor([0, 2, 1]), classes=LABELS)


def asked(name: str, **given: Any) -> Accumulate:
    if name in ("KernelShap", "Lime"):
        pytest.importorskip("sklearn")
    return Accumulate(method=PREFIX + name, **{"n": 2 if name == "ShapleyValueSampling" else 6, "chunk": 8, **given})


def state(model: nn.Module) -> list[Any]:
    """All that a method could leave behind in a model."""
    modules = [
        (name, m.training, getattr(m, "inplace", None), sorted(vars(m).keys() - {"digest"}), [len(getattr(m, h)) for h in HOOKS])
        for name, m in model.named_modules()
    ]
    return [*modules, *((name, p.requires_grad, p.grad is None) for name, p in model.named_parameters())]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fails", [False, True])
def test_every_method_leaves_model_and_generators_as_they_were(name: str, fails: bool, images: Batch) -> None:
    model, method = network(), METHODS[name]
    next(m for m in model.modules() if isinstance(m, Failing)).fails = fails
    if name == "LRP":
        model.net[7] = model.net[7] if fails else nn.Identity()
    params, before = asked(name), state(model)
    drawn, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index, union-attr]  # noqa: NPY002
    if fails:
        with pytest.raises((RuntimeError, interp.InputError), match=r"the network broke|no rule for Failing"):
            accumulate([model], images, params)
    else:
        data = accumulate([model], images, params).data
        found = data["attribution"]
        assert found.shape == (1, 3, 8, 8, 3) and bool(np.isfinite(found).all()) and float(abs(found).max()) > 0
        assert "mean" not in data and ("completeness" in data) == bool(method.start)
    assert state(model) == before
    assert (np.random.get_state()[1] == drawn).all() and torch.equal(torch.get_rng_state(), torch_state)  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.start == "baseline"])
def test_methods_that_explain_a_difference_sum_to_it(name: str, images: Batch) -> None:
    model = network()
    found = accumulate([model], images, asked(name, n=40 if name == "IntegratedGradients" else 3, precision="float64")).data
    assert float(found["completeness"].max()) < (0.05 if name == "IntegratedGradients" else 1e-6)
    gain = (model(images.images) - model(torch.full_like(images.images, 0.5))).gather(1, images.labels[:, None])[:, 0]
    np.testing.assert_allclose(found["attribution"].sum(("y", "x", "channel")).values[0], gain, rtol=0.1, atol=5e-3)


@pytest.mark.parametrize("name", METHODS)
def test_images_and_chunks_do_not_change_each_other(name: str, images: Batch) -> None:
    model = network()
    if name == "LRP":
        model.net[7] = nn.Identity()
    whole, pieces = (accumulate([model], images, asked(name, chunk=c)).data["attribution"] for c in (16, 1))
    scale = float(abs(whole).max())
    np.testing.assert_allclose(pieces, whole, rtol=1e-3, atol=1e-5 * scale)
    if METHODS[name].start != "references":
        first = accumulate([model], images[:1], asked(name)).data["attribution"]
        np.testing.assert_allclose(first.values[0, 0], whole.values[0, 0], rtol=1e-3, atol=1e-5 * scale)


def test_known_equals(images: Batch) -> None:
    model = network()
    saliency, product = (accumulate([model], images, asked(name)).data["attribution"] for name in ("Saliency", "InputXGradient"))
    plain = accumulate([model], images, Accumulate("noise", n=1, sigma=0.0, loss="logit")).data["mean"]
    np.testing.assert_allclose(saliency, abs(plain), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(product, -plain * images.images.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-6)
    for rule in ("midpoint", "gauss-legendre"):
        theirs = accumulate([model], images, asked("IntegratedGradients", rule=rule, baseline="black")).data["attribution"]
        ours = accumulate([model], images, Accumulate("path", n=6, rule=rule, baseline="black")).data["attribution"]
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-5 * float(abs(ours).max()))


def test_superpixels_share_out_their_scores(images: Batch) -> None:
    """On 8 × 8 pixels a superpixel is a pixel; its score, what the logit loses without it, is shared by its three channels."""
    model, i = network(), (0, 3, 5)
    found = accumulate([model], images, asked("FeatureAblation")).data["attribution"].values[0]
    x = images.images[:1].clone()
    before = model(x)[0, 0]
    x[0, :, i[1], i[2]] = 0.5
    np.testing.assert_allclose(found[i], float(before - model(x)[0, 0]) / 3, rtol=1e-3, atol=1e-6)


REFUSED = [
    ("xcit", "DeepLift", "no rules for all layers"),
    ("mobilevit", "DeepLiftShap", "no rules for all layers"),
    ("xcit", "GuidedBackprop", "a rule for ReLU alone"),
    ("mobilevit", "Deconvolution", "a rule for ReLU alone"),
    ("xcit", "LRP", "no rule for GELU"),
    ("mobilevit", "LRP", "no rule for SiLU"),
    ("resnet", "LRP", "does not add up"),
]


@pytest.mark.parametrize(("family", "name", "reason"), REFUSED)
def test_methods_that_do_not_apply_are_refused_with_the_reason(
    family: str, name: str, reason: str, tiny: Callable[..., Model], samples: Batch
) -> None:
    with pytest.raises(interp.InputError, match=f"(?s){PREFIX}{name}.*{reason}"):
        accumulate([tiny(family)], samples[:2], asked(name, n=2))


@pytest.mark.parametrize("name", ["DeepLift", "GuidedBackprop", "IntegratedGradients"])
def test_methods_that_apply_to_residual_networks(name: str, tiny: Callable[..., Model], samples: Batch) -> None:
    model = tiny("resnet")
    before = state(model)
    data = accumulate([model], samples[:2], asked(name)).data
    assert float(abs(data["attribution"]).max()) > 0 and state(model) == before
    if name == "DeepLift":
        assert float(data["completeness"].max()) < 1e-2


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), stride=1), nn.MaxPool2d(3, 2)])
def test_max_pooling_written_with_relus_is_the_same(pool: nn.MaxPool2d) -> None:
    x = some(2, size=9).double() - 0.5
    assert torch.equal(Largest(pool)(x), pool(x)) or torch.allclose(Largest(pool)(x), pool(x), atol=1e-12)


def test_deep_lift_sums_up_on_a_network_with_overlapping_maxima(samples: Batch) -> None:
    net = timm.create_model("resnet18", num_classes=10)
    model = Model(net, Card("resnet18", "resnet18", 10, Preprocess(32, 32, mean=(0.5,) * 3, std=(0.5,) * 3)))
    assert float(accumulate([model], samples[:2], asked("DeepLift")).data["completeness"].max()) < 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_a_method_heeds_what_it_says_and_nothing_else(name: str, images: Batch) -> None:
    model, plain = network(), asked(name, n=4)
    model.net[7] = nn.Identity()  # for which LRP has a rule
    base = accumulate([model], images, plain).data["attribution"]
    for field, value in {"n": 2, "sigma": 0.4, "baseline": "white", "rule": "midpoint"}.items():
        found = accumulate([model], images, asked(name, **{"n": 4, field: value})).data["attribution"]
        assert found.equals(base) == (field not in plain.takes), field


def test_another_loss_is_refused(images: Batch) -> None:
    with pytest.raises(interp.InputError, match="leave the loss and its use out"):
        accumulate([network()], images, asked("Saliency", loss="ce"))


@pytest.mark.parametrize("name", ["Saliency", "captum:saliency", "captum:"])
def test_unknown_methods_are_listed(name: str) -> None:
    with pytest.raises(interp.InputError, match=r"expected captum:NAME with one of Saliency, InputXGradient, .*, Lime"):
        Accumulate(method=name)


def test_what_takes_long_to_import_is_imported_when_it_is_asked_for() -> None:
    code = "import sys, interp.job\nassert not {'captum', 'sklearn'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
