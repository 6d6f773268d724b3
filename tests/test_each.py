"""Models side by side: the same answers in the same order, and nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from interp.models.each import at_once, each


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def nets(count: int = 4) -> list[nn.Sequential]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)) for _ in range(count)]


def gradient(net: nn.Module) -> Tensor:
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    (found,) = torch.autograd.grad(net(x).square().sum(), x)
    return found


def test_answers_are_those_of_one_thread_in_order() -> None:
    many = nets()
    found = each(gradient, many)
    torch.set_num_threads(1)
    assert all(torch.equal(a, gradient(net)) for a, net in zip(found, many, strict=True))


def test_models_run_at_the_same_time_with_one_thread_each() -> None:
    meeting = threading.Barrier(2, timeout=20)  # breaks unless two are inside at once

    def meet(net: nn.Module) -> int:
        meeting.wait()
        return torch.get_num_threads()

    assert each(meet, nets()) == [1, 1, 1, 1]
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *seen] == [2, 2]  # here as in threads to come


def test_one_thread_or_a_model_twice_or_another_device_means_one_after_another() -> None:
    many = nets()
    assert at_once(many) == 2
    assert at_once(many[:1]) == 1
    assert at_once([many[0], many[0]]) == 1
    assert at_once([many[0], many[1].to("meta")]) == 1
    assert each(lambda _net: threading.get_ident(), [many[0], many[0]]) == [threading.get_ident()] * 2
    torch.set_num_threads(1)
    assert at_once(many) == 1


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_comes_out_and_ends_the_rest(kind: type[BaseException]) -> None:
    began: list[int] = []
    many = nets(40)

    def fail(net: nn.Module) -> None:
        began.append(id(net))
        if net is many[0]:
            raise kind("no")
        time.sleep(0.1)

    with pytest.raises(kind, match="no"):
        each(fail, many)
    assert torch.get_num_threads() == 2
    assert 1 <= len(began) < len(many)
