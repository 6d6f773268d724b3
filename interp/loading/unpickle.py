"""Pickles → nested plain content, calling nothing that the file names.

An interpreter of the opcodes of Python's pickle protocols 0 to 5 (`opcodes`). It never imports and never looks an attribute
up: a global is either one of the few `Known` ones that `rebuild` computes by itself, or a `Stub`, which records what would
have been called and with what. Every object is charged to a `Budget` before it is made.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import torch

from interp.loading.inert import Budget, Buildable, Known, Limits, Stub, UnreadableError, printable
from interp.loading.opcodes import LONGEST_LINE, OPCODES, Stopped

__all__ = ["Limits", "Stub", "Unpickler"]

HASH_MODULUS = 2**61 - 1  # whole numbers from here on share hashes, and a dict of such keys takes quadratic time
STUB = 1600  # bytes that a stub costs, with what measuring and finishing it takes
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # of Python 2


class Unpickler:
    """One pickle of a file, from where the file stands.

    known: globals by (module, name). persistent: what a persistent id stands for. nested: reads a whole torch file that is
    pickled as bytes; None within such a file. After `load`: `refused`, names of the globals that were not called, and
    `plain`, whether torch's weights-only reader means the same by everything in it.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        *,
        known: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any],
        nested: Callable[[bytes], Any] | None,
        budget: Budget,
    ) -> None:
        self.file, self.size, self.budget, self.nested = file, size, budget, nested
        self.known = known
        self.persistent: Callable[[Any], Any] = persistent
        self.refused: set[str] = set()
        self.plain = True
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self._names: dict[str, Stub] = {}
        self._tuple_keys = 0

    def load(self) -> Any:
        """Content with `Known`, `Stub` and what the known globals made in it. Raises UnreadableError and nothing else."""
        spend, read = self.budget.spend, self.file.read
        try:
            while True:
                code = read(1)
                op = OPCODES.get(code)
                if op is None:
                    if not code:
                        raise UnreadableError(f"is truncated: it holds {self.size:,} bytes and ends within its pickle")
                    raise UnreadableError(f"has no valid pickle: byte {self.file.tell() - 1:,} is 0x{code.hex()}, no opcode")
                spend(24)
                op(self)
        except Stopped as end:
            return end.args[0]
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError, struct.error) as error:
            raise UnreadableError(f"has a damaged pickle (it makes no sense before byte {self.file.tell():,})") from error

    def read(self, count: int) -> bytes:
        """Exactly so many bytes, which must be there before memory is taken for them."""
        if count < 0 or (count > 1024 and count > self.size - self.file.tell()):
            raise UnreadableError(f"is truncated: its pickle declares a value of {count:,} bytes, the file holds {self.size:,}")
        data = self.file.read(count)
        if len(data) < count:
            raise UnreadableError(f"is truncated: it holds {self.size:,} bytes and ends within its pickle")
        return data

    def line(self, longest: int = LONGEST_LINE) -> bytes:
        """A line without its end."""
        data = self.file.readline(longest)
        if data[-1:] != b"\n":
            raise ValueError("a line does not end")
        self.budget.spend(5 * len(data))
        return data[:-1]

    def number(self, layout: str) -> Any:
        """One number in binary."""
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

    def find(self, module: Any, name: Any) -> Any:
        """What stands for a global: never the global itself."""
        if type(module) is not str or type(name) is not str:
            raise TypeError("a global has no name")
        module = OLD_NAMES.get(module, module)
        found = self.known.get((module, name))
        if found is not None:
            return found
        return self.refuse(f"{module}.{name}")

    def refuse(self, name: str, args: tuple[Any, ...] | None = None) -> Stub:
        """A stub, recorded."""
        self.budget.spend(STUB + len(name))
        name = printable(name)
        self.refused.add(name)
        return Stub(name, args)

    def call(self, function: Any, args: Any, *, plain: bool = True) -> Any:
        """What a call gives: computed by our code where the function is known, recorded otherwise."""
        if type(args) is not tuple:
            raise TypeError("arguments are no tuple")
        if isinstance(function, Known):
            self.budget.spend(700)
            self.plain = self.plain and plain and function.plain
            result = NotImplemented if function.call is None else function.call(self, args)
            return self.refuse(function.name, args) if result is NotImplemented else result
        if not isinstance(function, Stub):
            raise TypeError("what is called is no function")
        self.budget.spend(STUB)
        again = function.args is not None and not function.name.endswith("()")
        return Stub(function.name + "()" if again else function.name, args)

    def items(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def key(self, value: Any, depth: int = 0) -> Any:
        """A value fit to be a key: cheap to hash and to compare. Raises TypeError for all others."""
        kind = type(value)
        if kind in (str, bytes, bool, float, type(None), Stub, torch.dtype):
            return value
        if kind is int and abs(value) < HASH_MODULUS:
            return value
        if kind is tuple and depth < 4 and len(value) <= 64 and self._tuple_keys < 10_000:
            self._tuple_keys += 1  # a few: hashes of tuples can be made to collide
            return tuple([self.key(v, depth + 1) for v in value])
        if kind is Known:
            return self._names.setdefault(value.name, Stub(value.name))
        raise TypeError(f"a {kind.__name__} is no key")

    def append(self, items: list[Any]) -> None:
        """Append to the list, or to the stub of one, on top of the stack."""
        target = self.stack[-1]
        if type(target) is Stub:
            target = target.items
        if type(target) is not list:
            raise TypeError("what is appended to is no list")
        self.budget.spend(8 * len(items))
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Set keys and values of the dict, or of the stub of one, on top of the stack."""
        target = self.stack[-1]
        if type(target) is Stub:
            target = target.mapping
        if type(target) is not dict or len(items) % 2:
            raise TypeError("what is set by key is no dict")
        self.budget.spend(60 * len(items))
        for i in range(0, len(items), 2):
            target[self.key(items[i])] = items[i + 1]

    def add_items(self) -> None:
        """Put what was pushed since the mark into the set, or the stub of one, below it."""
        items = self.items()
        target = self.stack[-1]
        if type(target) is Stub:
            self.append(items)
        elif type(target) is set:
            self.budget.spend(80 * len(items))
            target.update([self.key(v) for v in items])
        else:
            raise TypeError("what is added to is no set")

    def build(self) -> None:
        """Give the object on top its state: recorded on a stub, dropped on a dict (torch's `_metadata`), else ours."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Stub:
            target.state = state
        elif isinstance(target, Buildable):
            self.plain = False
            target.build(state, self.budget)
        elif type(target) is not dict:
            raise TypeError("what is given a state has none")

    def put(self, index: int) -> None:
        """Remember the top of the stack."""
        if index < 0:
            raise ValueError("a negative index")
        self.budget.spend(120)
        self.memo[index] = self.stack[-1]

    def new(self, extended: bool = False) -> None:
        """NEWOBJ and NEWOBJ_EX: an object of a class, without its initialiser."""
        keywords = (self.stack.pop(),) if extended else ()
        args, cls = self.stack.pop(), self.stack.pop()
        if type(args) is not tuple:
            raise TypeError("arguments are no tuple")
        self.budget.spend(8 * len(args))
        self.stack.append(self.call(cls, (*args, *keywords), plain=False))

    def instance(self, cls: Any = None) -> None:
        """INST and OBJ of the oldest protocols."""
        args = self.items()
        cls = args.pop(0) if cls is None else cls
        self.stack.append(self.call(cls, tuple(args), plain=False))
