"""Pieces come once and in order, memory that runs out halves them; the fastest size is found, kept and never mixed up."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from interp.models import chunks
from interp.models.chunks import in_chunks, tuned
from interp.types import InputError

PIXELS = torch.zeros(1, 3, 4, 4)
CLOCK = [0.0]  # seconds; `machine` moves it, so that no other process plays a part


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, nothing remembered, and the clock of `machine`."""
    monkeypatch.setattr(chunks, "time", SimpleNamespace(perf_counter=lambda: CLOCK[0]))
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(chunks, "_remembered", {})
    return tmp_path / "chunks.json"


def full(error: Callable[[], object], room: int, tried: list[int]) -> Callable[[slice], list[int]]:
    """run() of a device with room for so many samples."""

    def run(piece: slice) -> list[int]:
        tried.append(piece.stop - piece.start)
        if piece.stop - piece.start > room:
            error()
        return list(range(piece.start, piece.stop))

    return run


def cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def mps() -> None:
    raise RuntimeError("MPS backend out of memory (MPS allocated: 17.4 GB)")


def processor() -> Tensor:
    return torch.empty(2**60, dtype=torch.uint8)  # the allocator's own error


@pytest.mark.parametrize(("n", "chunk", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (0, 4, [])])
def test_pieces_come_once_and_in_order(n: int, chunk: int, sizes: list[int]) -> None:
    tried: list[int] = []
    done = list(in_chunks(full(cuda, 100, tried), n, chunk))
    assert tried == sizes and [i for _, found in done for i in found] == list(range(n))
    assert [range(n)[piece] for piece, _ in done] == [range(found[0], found[-1] + 1) for _, found in done]


@pytest.mark.parametrize("error", [cuda, mps, processor])
def test_memory_that_runs_out_halves_the_chunk(error: Callable[[], object], caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []
    with caplog.at_level(logging.WARNING):
        done = list(in_chunks(full(error, 3, tried), 14, 8))
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2]
    assert [i for _, found in done for i in found] == list(range(14))
    assert [r.getMessage() for r in caplog.records] == [
        "memory ran out with 8 samples at once; going on with 4, and fewer where that fails"
    ]


def test_finished_pieces_are_kept() -> None:
    room, tried = [4], []

    def run(piece: slice) -> int:
        tried.append(piece)
        if piece.stop - piece.start > room[0]:
            cuda()
        room[0] = 2  # less is free from now on
        return piece.start

    assert [start for _, start in in_chunks(run, 8, 4)] == [0, 4, 6]
    assert tried == [slice(0, 4), slice(4, 8), slice(4, 6), slice(6, 8)]


def test_one_sample_that_does_not_fit_is_said() -> None:
    with pytest.raises(
        InputError, match=r"memory ran out on sample 0 alone; expected room for one.*Take smaller images"
    ) as caught:
        list(in_chunks(full(cuda, 0, []), 5, 2))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_other_errors_pass_and_none_of_the_callers_is_taken_for_ones_own() -> None:
    def broken(piece: slice) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(in_chunks(broken, 4, 2))
    pieces = in_chunks(full(cuda, 4, []), 4, 2)
    next(pieces)
    with pytest.raises(torch.OutOfMemoryError):
        pieces.throw(torch.OutOfMemoryError("CUDA out of memory"))  # type: ignore[attr-defined]


def test_a_chunk_below_one_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="chunk is 0; expected at least 1"):
        in_chunks(len, 4, 0)  # type: ignore[arg-type]


def machine(best: int, seen: list[int] | None = None, room: int = 10**9) -> Callable[[Tensor], None]:
    """A step of 1 ms per sample in batches of `best`, 2.5 ms at a quarter and at four times of it."""

    def step(batch: Tensor) -> None:
        n = len(batch)
        if n > room:
            cuda()
        if seen is not None:
            seen.append(n)
        CLOCK[0] += 1e-3 * n * (1 + max(best / n, n / best) / 2 - 0.5)

    return step


@pytest.mark.parametrize("best", [1, 4, 16])
def test_the_fastest_size_is_found(best: int) -> None:
    seen: list[int] = []
    assert tuned(machine(best, seen), PIXELS, n=64, passes=10_000, key="a") == best
    assert max(seen) == 4 * best and seen[:6] == [1, 1, 1, 2, 2, 2]


def test_steps_are_timed_by_the_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "time", time)
    assert tuned(lambda batch: time.sleep(0.02 * len(batch) ** 2), PIXELS, n=4, passes=10_000, key="a") == 1


def test_it_is_never_larger_than_there_are_samples() -> None:
    for n in range(1, 12):
        assert 1 <= tuned(machine(16), PIXELS, n=n, passes=10**6, key=f"{n}") <= n
        assert 1 <= tuned(machine(16), PIXELS, n=n, passes=0, key="untimed") <= n


def test_little_work_is_not_timed() -> None:
    seen: list[int] = []
    step = machine(4, seen)
    assert tuned(step, PIXELS, n=64, passes=200, key="a") == 16 and tuned(step, PIXELS, n=2, passes=10**6, key="a") == 2
    assert not seen
    assert tuned(step, PIXELS, n=64, passes=210, key="a") == 4 and max(seen) == 4
    tuned(step, PIXELS, n=64, passes=10_000, key="b")
    assert len(seen) > 9 and sum(seen) - 21 <= 1_000
    seen.clear()
    assert tuned(step, PIXELS, n=64, passes=0, key="b") == 4 and tuned(step, PIXELS, n=3, passes=0, key="b") == 3
    assert not seen


def test_what_few_samples_told_does_not_bind_many() -> None:
    seen: list[int] = []
    assert tuned(machine(16, seen), PIXELS, n=4, passes=10_000, key="a") == 4
    assert tuned(machine(16, seen), PIXELS, n=64, passes=0, key="a") == 4  # all that is known
    assert max(seen) == 4
    assert tuned(machine(16, seen), PIXELS, n=64, passes=10_000, key="a") == 16
    seen.clear()
    assert tuned(machine(16, seen), PIXELS, n=640, passes=10_000, key="a") == 16 and not seen


def test_memory_that_runs_out_ends_the_search() -> None:
    assert tuned(machine(64, room=8), PIXELS, n=64, passes=10_000, key="a") == 8
    assert tuned(machine(64, room=0), PIXELS, n=64, passes=10_000, key="b") == 1
    with pytest.raises(RuntimeError, match="must match"):
        tuned(lambda batch: batch + torch.zeros(7), PIXELS, n=8, passes=10_000, key="c")


def test_a_batch_looks_like_the_example() -> None:
    shapes = set()
    example = torch.rand(3, 3, 5, 5, dtype=torch.float64)

    def step(batch: Tensor) -> None:
        shapes.add((batch.shape[1:], batch.dtype))
        assert torch.equal(batch[-1], example[(len(batch) - 1) % 3])

    tuned(step, example, n=8, passes=10_000, key="a")
    assert shapes == {((3, 5, 5), torch.float64)}


def test_keys_shapes_types_and_threads_do_not_mix() -> None:
    tuned(machine(4), PIXELS, n=64, passes=10_000, key="a")
    assert tuned(machine(4), PIXELS, n=64, passes=0, key="a") == 4
    for example, key in ((PIXELS, "b"), (PIXELS.double(), "a"), (torch.zeros(1, 3, 5, 4), "a")):
        assert tuned(machine(4), example, n=64, passes=0, key=key) == 16
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert tuned(machine(4), PIXELS, n=64, passes=0, key="a") == 16
    finally:
        torch.set_num_threads(before)


def test_another_process_remembers(cache: Path) -> None:
    tuned(machine(4), PIXELS, n=64, passes=10_000, key="a")
    code = (
        "import torch; from interp.models.chunks import tuned; torch.set_num_threads(1)\n"
        "print([tuned(exit, torch.zeros(1, 3, 4, 4), n=64, passes=0, key=k) for k in 'ab'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.stdout.strip() == "[4, 16]", done.stderr
    assert [p.name for p in cache.parent.iterdir()] == ["chunks.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "\udcff", '{"%": 4}', '{"%": [0, 0]}', '{"%": [true, 0]}', '{"%": [8, 4]}', "[" * 100_000]
)
def test_a_broken_file_is_ignored_and_replaced(content: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = chunks._name("a", PIXELS)
    cache.write_bytes(content.replace("%", name).encode(errors="surrogateescape"))
    assert tuned(machine(4), PIXELS, n=64, passes=0, key="a") == 16
    assert tuned(machine(4), PIXELS, n=64, passes=10_000, key="a") == 4
    assert json.loads(cache.read_text()) == {name: [4, 0]}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "file" / "below"))
    assert tuned(machine(4), PIXELS, n=64, passes=10_000, key="a") == 4
    assert tuned(machine(4), PIXELS, n=64, passes=0, key="a") == 4  # in this process


def test_where_the_file_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INTERP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert chunks._file() == tmp_path / "interp" / "chunks.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert chunks._file() == Path.home() / ".cache" / "interp" / "chunks.json"


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="there are 0 samples"):
        tuned(machine(4), PIXELS, n=0, passes=0, key="a")
