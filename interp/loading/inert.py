"""What content of a file is made of while nothing of it is called, and what it may ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

AGAIN = "fetch it again and compare its size with the one published"
TOO_MUCH = "expected the weights of one model: if the file is really that large, raise the limit (interp.loading.read.Limits)"


class UnreadableError(Exception):
    """Why content cannot be read, without the file's name: what was found; what to do."""

    def __init__(self, found: str, advice: str = AGAIN) -> None:
        super().__init__(f"{found}; {advice}")


@dataclass(frozen=True)
class Limits:
    """What a file may ask for before it is refused; sizes in bytes.

    max_bytes: the file, and all its tensors together, each. max_tensors: tensors, every name of a shared one counted.
    max_objects: memory (estimated) of what is pickled around the tensors. max_depth: containers within containers.
    max_entries: values in the content when every shared container is written out. max_header: a safetensors header.
    max_ratio: how many times larger than the file its unpacked records may be, and than its bytes its tensors, once that is
    more than `spare` bytes. All memory together, objects and tensors, is at most `spare` + `max_ratio` times the file.
    """

    max_bytes: int = 8 << 30
    max_tensors: int = 100_000
    max_objects: int = 1 << 30
    max_depth: int = 100
    max_entries: int = 5_000_000
    max_header: int = 16 << 20
    max_ratio: int = 20
    spare: int = 64 << 20


class Budget:
    """What is left of the limits while one file of `size` bytes is read.

    What objects may take scales with the file: those of training files with all their state take 0.3 bytes per byte, and
    those of 5,000 tensors with one element each half of what `spare` allows.
    """

    def __init__(self, limits: Limits, size: int) -> None:
        self.limits = limits
        self.objects, self.data = limits.max_objects, limits.max_bytes
        self.memory = self.most = limits.spare + limits.max_ratio * size

    def spend(self, amount: int) -> None:
        """Charge memory of objects. Raises UnreadableError beyond the limit."""
        self.objects -= amount
        self.memory -= amount
        if self.objects < 0 or self.memory < 0:
            most = min(self.limits.max_objects, self.most)
            raise UnreadableError(f"pickles more than {most:,} bytes of objects around its tensors", TOO_MUCH)

    def take(self, amount: int) -> None:
        """Charge memory that is neither objects nor declared: records and copies. Raises UnreadableError beyond the limit."""
        self.memory -= amount
        if self.memory < 0:
            raise UnreadableError(f"needs more than {self.most:,} bytes of memory, too many for its size", TOO_MUCH)

    def hold(self, amount: int) -> None:
        """Charge declared bytes of tensors. Raises UnreadableError beyond the limit."""
        self.data -= amount
        if self.data < 0:
            raise UnreadableError(f"declares more than {self.limits.max_bytes:,} bytes of tensors", TOO_MUCH)


class Stub:
    """What a file says about an object whose class or function was not called.

    name: 'argparse.Namespace', with '()' added where the thing called was itself the result of a call. args: None for the
    global itself, otherwise what it would have been called with. state: what would have been set on it (for a Namespace its
    values by name). items, mapping: what would have been appended and set by key. Equal only to itself, so usable as a key.
    """

    __slots__ = ("args", "items", "mapping", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name, self.args = name, args
        self.state: Any = None
        self.items: list[Any] = []
        self.mapping: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<not called: {self.name}>"


class Known:
    """A global computed by our own code: `call` gets the unpickler and the arguments, or returns NotImplemented.

    plain: torch's weights-only reader does exactly the same with it. dtype: of a storage class.
    """

    __slots__ = ("call", "dtype", "name", "plain")

    def __init__(
        self, name: str, call: Callable[..., Any] | None, *, plain: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        self.name, self.call, self.plain, self.dtype = name, call, plain, dtype


class Buildable(ABC):
    """An object of ours that takes its state from a BUILD opcode."""

    @abstractmethod
    def build(self, state: Any, budget: Budget) -> None:
        """Take what the file says was its state; charge what that makes."""


def printable(text: str) -> str:
    """A name from a file, fit for a terminal and a line: nothing that is not printable, at most 120 characters."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= 120 else shown[:117] + "…"
