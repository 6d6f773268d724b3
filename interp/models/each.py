"""The same for several models at once, in threads: small networks leave little for the threads inside one operation to share.

torch lets go of Python's lock inside its operations, so that threads of one operation thread each run side by side. What is found
does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn
from tqdm import tqdm

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def at_once(models: Sequence[nn.Module]) -> int:
    """How many models run side by side: on processors one per thread that torch may use, else one.

    Also one where a model stands in the list twice: hooks of one thread would be seen by the other.
    """
    tensors = (t for model in models for t in (*model.parameters(), *model.buffers()))
    if any(t.device.type != "cpu" for t in tensors) or len({id(model) for model in models}) < len(models):
        return 1
    return max(1, min(torch.get_num_threads(), len(models)))


def each(run: Callable[[M], T], models: Sequence[M], *, desc: str = "") -> list[T]:
    """run(model) for every model, in order; `at_once` of them side by side, each with one thread inside its operations.

    desc: of a progress bar, '' none. The first error of a model is raised once those under way have ended; no others begin.
    Limit: with one thread, a list comprehension.
    """
    count = at_once(models)
    with tqdm(total=len(models), desc=desc, leave=False, disable=not desc) as bar:
        if count == 1:
            return [_noted(run(model), bar) for model in models]
        import sklearn.linear_model  # noqa: F401 (its threads can be limited only once it is there)
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        threads = torch.get_num_threads()
        blas = threadpool_limits(1, user_api="blas")
        pool = ThreadPoolExecutor(count, initializer=_alone)
        try:
            waiting = [pool.submit(run, model) for model in models]
            return [_noted(future.result(), bar) for future in waiting]
        finally:
            pool.shutdown(cancel_futures=True)
            blas.restore_original_limits()
            torch.set_num_threads(threads)  # the number set last is that of threads to come


def _alone() -> None:
    """One thread for torch, scikit-learn, NumPy and SciPy in the operations of this one: more would wait for each other."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="openmp")  # of this thread only
    torch.set_num_threads(1)


def _noted(found: T, bar: tqdm) -> T:  # type: ignore[type-arg]
    bar.update()
    return found
