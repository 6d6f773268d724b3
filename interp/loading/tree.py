"""The content of a file as a tree of plain containers: measured before anything is allocated, then finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from interp.loading.inert import TOO_MUCH, Budget, Known, Stub, UnreadableError
from interp.loading.rebuild import NumpyArray, NumpyType, Root, TensorSpec, spec_of


class Tree:
    """Content as `Unpickler` left it.

    Containers are plain from here on. A stub is a leaf, whose own content is a tree of its own: so stubs may lie in
    circles, and whoever follows containers never does.
    """

    def __init__(self, root: Any, budget: Budget) -> None:
        self.root, self.limits = root, budget.limits
        self.stubs: list[Stub] = []
        self.roots: dict[int, Root] = {}
        self.specs: list[TensorSpec] = []
        self._seen: dict[int, tuple[int, int, int, int]] = {}  # id → entries, tensors, bytes, height
        self._open: set[int] = set()
        self._keep: list[Any] = []  # what is only made here, so that no id is used twice

    def measure(self) -> None:
        """Raises UnreadableError where the content is too deep, too wide when written out, or larger than what is held."""
        entries = tensors = nbytes = 0
        for part in self._parts():
            more, count, size, _ = self._measure(part, 0)
            entries, tensors, nbytes = entries + more, tensors + count, nbytes + size
            if entries > self.limits.max_entries:
                raise UnreadableError(
                    f"unfolds to more than {self.limits.max_entries:,} values by repeating its own parts", TOO_MUCH
                )
            if tensors > self.limits.max_tensors:
                raise UnreadableError(f"holds {tensors:,} tensors; at most {self.limits.max_tensors:,} are read", TOO_MUCH)
        held = sum(root.nbytes for root in self.roots.values())
        if nbytes > max(self.limits.spare, self.limits.max_ratio * held) or nbytes > self.limits.max_bytes:
            raise UnreadableError(
                f"declares tensors of {nbytes:,} bytes over {held:,} bytes of data, by repeating them", TOO_MUCH
            )

    def _parts(self) -> Iterator[Any]:
        yield self.root
        for stub in self.stubs:  # grows while it is gone through
            self._keep.append([stub.args, stub.state, stub.items, stub.mapping])
            yield self._keep[-1]

    def _measure(self, node: Any, depth: int) -> tuple[int, int, int, int]:
        if (known := self._seen.get(id(node))) is not None:
            if depth + known[3] > self.limits.max_depth:
                raise UnreadableError(f"nests containers more than {self.limits.max_depth} deep", TOO_MUCH)
            return known
        kind = type(node)
        if kind is dict:
            children = [*node.values(), *(k for k in node if type(k) in (Stub, tuple))]
        elif kind in (list, tuple, set, frozenset):
            children = list(node)
        else:
            return self._leaf(node)
        if id(node) in self._open:
            raise UnreadableError("holds a container that contains itself", "save only the state dict")
        if depth >= self.limits.max_depth:
            raise UnreadableError(f"nests containers more than {self.limits.max_depth} deep", TOO_MUCH)
        self._open.add(id(node))
        entries, tensors, nbytes, height = 1, 0, 0, 0
        for child in children:
            a, b, c, h = self._measure(child, depth + 1)
            entries, tensors, nbytes, height = entries + a, tensors + b, nbytes + c, max(height, h)
        self._open.discard(id(node))
        self._seen[id(node)] = entries, tensors, nbytes, height + 1
        return self._seen[id(node)]

    def _leaf(self, node: Any) -> tuple[int, int, int, int]:
        if type(node) is Stub:
            if id(node) not in self._seen:
                self._seen[id(node)] = 1, 0, 0, 0
                self.stubs.append(node)
            return 1, 0, 0, 0
        spec = spec_of(node)
        if spec is None:
            return 1, 0, 0, 0
        if id(spec.root) not in self.roots:
            self.roots[id(spec.root)] = spec.root
            self.specs.append(spec)  # one of each root
        return 1, 1, spec.nbytes, 0

    def finish(self, make: Callable[[TensorSpec], torch.Tensor]) -> Any:
        """The content with tensors in place of specifications, made once each, also within stubs."""
        made: dict[int, Any] = {}

        def walk(node: Any) -> Any:
            if id(node) in made:
                return made[id(node)]
            kind, result = type(node), node
            if kind is dict:
                result = {k: walk(v) for k, v in node.items()}
            elif kind in (list, tuple):
                result = kind([walk(v) for v in node])
            elif (spec := spec_of(node)) is not None:
                result = make(spec)
            elif kind in (Known, NumpyType, NumpyArray):
                result = Stub(node.name if kind is Known else "numpy.dtype" if kind is NumpyType else "numpy.ndarray")
            else:
                return node
            self._keep.append(node)
            made[id(node)] = result
            return result

        root = walk(self.root)
        for stub in self.stubs:
            stub.args = None if stub.args is None else walk(stub.args)
            stub.state, stub.items, stub.mapping = walk(stub.state), walk(stub.items), walk(stub.mapping)
        return root
