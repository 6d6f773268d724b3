"""Engines compute the model's function; they are kept while the model is as it was, and no longer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn

from interp.models import engine as module
from interp.models.engine import COMPILED, engine
from interp.models.fold import batch_norms
from interp.models.model import Model
from interp.types import InputError
from tests.conftest import TINY
from tests.test_fold import answers, images

Tiny = Callable[..., Model]
SHAPE = (3, 32, 32)


def close(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("family", TINY)
def test_float32_and_float64_compute_the_model(family: str, tiny: Tiny) -> None:
    model = tiny(family)
    exact, double = engine(model, SHAPE), engine(model, SHAPE, precision="float64")
    count = batch_norms(model) - batch_norms(exact.steps)
    assert (exact.words, double.words) == (f"float32, {count} batch norms folded", f"float64, {count} batch norms folded")
    assert (exact.dtype, double.dtype) == (torch.float32, torch.float64)
    assert exact.exact and double.exact and exact.steps is exact.reader and double.steps is double.reader
    logits, gradient = answers(model, images(32))
    for a, b in zip(answers(exact.steps, images(32)), (logits, gradient), strict=True):
        assert a.dtype == torch.float32 and close(a, b) < 1e-4
    wanted = answers(tiny(family).double(), images(32).double())
    for a, b in zip(answers(double.steps, images(32).double()), wanted, strict=True):
        assert a.dtype == torch.float64 and close(a, b) < 1e-10
    assert next(model.parameters()).dtype == torch.float32


def test_an_engine_is_kept_until_the_weights_change(tiny: Tiny) -> None:
    model, other = tiny("xcit"), tiny("xcit", seed=1)
    first = engine(model, SHAPE)
    assert engine(model, (8, *SHAPE)) is first  # how many images there are plays no part
    assert engine(model, SHAPE, precision="float64") is not first and engine(model, SHAPE) is first
    model.load_state_dict(other.state_dict())
    second = engine(model, SHAPE)
    assert second is not first
    assert close(second.steps(images(32)), other(images(32))) < 1e-5 < close(first.steps(images(32)), other(images(32)))
    with torch.no_grad():
        model.mean.add_(0.1)
    assert close(engine(model, SHAPE).steps(images(32)), model(images(32))) < 1e-5


def test_an_engine_does_not_keep_its_model_alive(tiny: Tiny) -> None:
    model = tiny("xcit")
    engine(model, SHAPE, precision="fast")
    gone, kept = weakref.ref(model), len(module._engines)
    del model
    gc.collect()
    assert gone() is None and len(module._engines) < kept


def test_another_module_is_used_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    exact = engine(net, (3, 8, 8))
    assert exact.steps is net and exact.reader is net and exact.words == "float32"
    double = engine(net, (3, 8, 8), precision="float64")
    assert double.words == "float64" and batch_norms(double.steps) == 1
    assert torch.equal(double.steps(images(8).double()), net.double()(images(8).double()))


def test_what_cannot_be_computed_is_said(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="precision is 'half'; expected one of float32, float64, fast"):
        engine(tiny("xcit"), SHAPE, precision="half")


def test_fast_is_exact_where_bfloat16_is_slow(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_bfloat16_pays", lambda device: False)
    model = tiny("xcit")
    assert engine(model, SHAPE, precision="fast") is engine(model, SHAPE)


@pytest.mark.parametrize("family", TINY)
def test_fast_searches_in_bfloat16_and_reads_in_float32(family: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_bfloat16_pays", lambda device: True)
    model = tiny(family)
    fast = engine(model, SHAPE, precision="fast")
    assert not fast.exact and fast.reader is engine(model, SHAPE).reader and fast.dtype == torch.float32
    assert fast.words == "fast search: bfloat16 gradients, success confirmed in float32"
    logits, gradient = answers(fast.steps, images(32))
    wanted, direction = answers(model, images(32))
    assert logits.dtype == gradient.dtype == torch.float32
    assert 0 < close(wanted, logits) < 0.05
    assert torch.cosine_similarity(gradient.flatten(), direction.flatten(), dim=0) > 0.95


def test_whether_bfloat16_pays_is_what_convolutions_take() -> None:
    quick = min(module._convolution(torch.bfloat16) for _ in range(3)) < min(module._convolution(torch.float32) for _ in range(3))
    assert module._bfloat16_pays(torch.device("cpu")) == quick


def test_what_cannot_be_compiled_is_used_uncompiled(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}):
        fast = engine(net, (3, 8, 8), precision="fast", passes=COMPILED["cpu"])
    assert "could not be compiled" in caplog.text and "compiled" not in fast.words
    assert fast.steps(images(8)).shape == (2, 2)


@pytest.mark.slow
def test_many_passes_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_bfloat16_pays", lambda device: False)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 2)).requires_grad_(False)
    assert engine(net, (3, 8, 8), precision="fast", passes=COMPILED["cpu"] // 64 - 1).exact
    fast = engine(net, (3, 8, 8), precision="fast", passes=COMPILED["cpu"] // 64)
    assert fast.words == "fast search: float32 gradients, compiled, success confirmed in float32"
    for n in (2, 5, 1):
        for a, b in zip(answers(fast.steps, images(8, n)), answers(net, images(8, n)), strict=True):
            assert close(a, b) < 1e-5


def test_a_model_with_hooks_is_used_as_it_is_and_folded_again_without_them(tiny: Tiny) -> None:
    model, x = tiny("resnet"), images(32)
    plain = engine(model, SHAPE)
    handle = model.net.layer1.register_forward_hook(lambda module, args, output: output * 0)
    hooked = engine(model, SHAPE)
    assert hooked.steps is model and close(hooked.steps(x), plain.steps(x)) > 0.01
    handle.remove()
    assert engine(model, SHAPE).steps is not model
    assert close(engine(model, SHAPE).steps(x), plain.steps(x)) < 1e-6


def test_a_model_with_another_part_is_copied_again(tiny: Tiny) -> None:
    model, x = tiny("resnet"), images(32)
    engine(model, SHAPE)
    model.net.layer1 = nn.Identity()
    model.net.layer2 = nn.Identity()
    model.net.layer3 = nn.Identity()
    model.net.layer4 = nn.AdaptiveAvgPool2d(4)
    model.net.fc = nn.LazyLinear(10)
    model.eval()(x)
    model.requires_grad_(False)
    assert close(engine(model, SHAPE).steps(x), model(x)) < 1e-5
