"""What each pickle opcode does to an `Unpickler`: protocols 0 to 5 (source: the standard library's pickletools).

The costs charged are what the objects take in CPython, with what measuring and finishing the content takes on top.
"""

from __future__ import annotations

import codecs
import pickle
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from interp.loading.inert import UnreadableError

if TYPE_CHECKING:
    from interp.loading.unpickle import Unpickler

LONGEST_LINE, LONGEST_NUMBER = 1 << 20, 1000
WIDE = re.compile(rb"[\xf0-\xff]")  # first bytes of UTF-8 characters that need four bytes each
Op = Callable[["Unpickler"], None]


class Stopped(Exception):
    """The end of a pickle, with what was on top of the stack; no error."""


def _push(value: Callable[[Unpickler], Any], cost: int = 0) -> Op:
    def op(u: Unpickler) -> None:
        if cost:
            u.budget.spend(cost)
        result = value(u)  # it may change which stack is in use
        u.stack.append(result)

    return op


def _text(layout: str) -> Op:
    def op(u: Unpickler) -> None:
        count = u.number(layout)
        u.budget.spend(60 + 2 * max(count, 0))  # the bytes and the text
        data = u.read(count)
        if not data.isascii():
            u.budget.spend(40 + (4 if WIDE.search(data) else 2) * count)  # one wide character makes all as wide
        try:
            u.stack.append(data.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            u.budget.spend(300)  # for its time
            u.stack.append(data.decode("latin-1"))  # strings of Python 2

    return op


def _bytes(layout: str) -> Op:
    def op(u: Unpickler) -> None:
        count = u.number(layout)
        if count > 4096:
            u.budget.hold(count)
            u.budget.take(count)
        else:
            u.budget.spend(40 + max(count, 0))
        u.stack.append(u.read(count))

    return op


def _long(layout: str) -> Op:
    def op(u: Unpickler) -> None:
        count = u.number(layout)
        if count > LONGEST_NUMBER:
            raise UnreadableError(f"pickles a whole number of {count:,} bytes, which no checkpoint needs")
        u.budget.spend(40 + count)
        u.stack.append(int.from_bytes(u.read(count), "little", signed=True))

    return op


def _integer(u: Unpickler) -> Any:
    text = u.line(LONGEST_NUMBER)
    return {b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text)


def _quoted(u: Unpickler) -> str:
    text = u.line().strip()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise ValueError("a string is not quoted")
    return codecs.escape_decode(text[1:-1])[0].decode("latin-1")


def _global(u: Unpickler) -> Any:
    return u.find(u.line(4096).decode("utf-8"), u.line(4096).decode("utf-8"))


def _stack_global(u: Unpickler) -> Any:
    name, module = u.stack.pop(), u.stack.pop()
    return u.find(module, name)


def _reduce(u: Unpickler) -> Any:
    args, function = u.stack.pop(), u.stack.pop()
    return u.call(function, args)


def _take(count: int) -> Op:
    def op(u: Unpickler) -> None:
        if len(u.stack) < count:
            raise IndexError("the stack is too short")
        u.budget.spend(400 + 16 * count)
        u.stack[-count:] = [tuple(u.stack[-count:])]

    return op


def _tuple(u: Unpickler) -> Any:
    items = u.items()
    u.budget.spend(400 + 16 * len(items))
    return tuple(items)


def _dict(u: Unpickler) -> None:
    items = u.items()
    u.budget.spend(500)
    u.stack.append({})
    u.set_items(items)


def _mark(u: Unpickler) -> None:
    u.budget.spend(120)
    u.marks.append(u.stack)
    u.stack = []


def _pop(u: Unpickler) -> None:
    if u.stack:
        u.stack.pop()
    else:
        u.items()


def _pop_mark(u: Unpickler) -> None:
    u.items()


def _protocol(u: Unpickler) -> None:
    if (version := u.number("<B")) > pickle.HIGHEST_PROTOCOL:
        raise UnreadableError(f"uses version {version} of pickle, which does not exist")


def _stop(u: Unpickler) -> None:
    raise Stopped(u.stack.pop())


def _buffer(u: Unpickler) -> None:
    raise UnreadableError("keeps its data outside of the file (pickle buffers)", "save the state dict with torch.save")


def _extension(layout: str) -> Op:
    return _push(lambda u: u.refuse(f"copyreg.extension {u.number(layout)}"))  # a registry of names that programs fill


OPCODES: dict[bytes, Op] = {
    pickle.PROTO: _protocol,
    pickle.FRAME: lambda u: u.number("<Q"),
    pickle.STOP: _stop,
    pickle.NONE: _push(lambda u: None),
    pickle.NEWTRUE: _push(lambda u: True),
    pickle.NEWFALSE: _push(lambda u: False),
    pickle.INT: _push(_integer, 40),
    pickle.LONG: _push(lambda u: int(u.line(LONGEST_NUMBER).rstrip(b"L")), 40),
    pickle.FLOAT: _push(lambda u: float(u.line(LONGEST_NUMBER)), 40),
    pickle.BININT: _push(lambda u: u.number("<i"), 40),
    pickle.BININT1: _push(lambda u: u.number("<B")),
    pickle.BININT2: _push(lambda u: u.number("<H"), 40),
    pickle.BINFLOAT: _push(lambda u: u.number(">d"), 40),
    pickle.LONG1: _long("<B"),
    pickle.LONG4: _long("<i"),
    pickle.STRING: _push(_quoted, 60),
    pickle.UNICODE: _push(lambda u: codecs.raw_unicode_escape_decode(u.line())[0], 60),
    pickle.SHORT_BINSTRING: _text("<B"),
    pickle.BINSTRING: _text("<i"),
    pickle.SHORT_BINUNICODE: _text("<B"),
    pickle.BINUNICODE: _text("<I"),
    pickle.BINUNICODE8: _text("<Q"),
    pickle.SHORT_BINBYTES: _bytes("<B"),
    pickle.BINBYTES: _bytes("<I"),
    pickle.BINBYTES8: _bytes("<Q"),
    pickle.BYTEARRAY8: _bytes("<Q"),
    pickle.NEXT_BUFFER: _buffer,
    pickle.READONLY_BUFFER: _buffer,
    pickle.EMPTY_TUPLE: _push(lambda u: ()),
    pickle.EMPTY_LIST: _push(lambda u: [], 400),
    pickle.EMPTY_DICT: _push(lambda u: {}, 500),
    pickle.EMPTY_SET: _push(lambda u: set(), 600),
    pickle.MARK: _mark,
    pickle.POP: _pop,
    pickle.POP_MARK: _pop_mark,
    pickle.DUP: _push(lambda u: u.stack[-1]),
    pickle.TUPLE: _push(_tuple),
    pickle.TUPLE1: _take(1),
    pickle.TUPLE2: _take(2),
    pickle.TUPLE3: _take(3),
    pickle.LIST: _push(lambda u: u.items(), 400),
    pickle.DICT: _dict,
    pickle.FROZENSET: _push(lambda u: frozenset([u.key(v) for v in u.items()]), 600),
    pickle.APPEND: lambda u: u.append([u.stack.pop()]),
    pickle.APPENDS: lambda u: u.append(u.items()),
    pickle.SETITEM: lambda u: u.set_items([u.stack.pop(-2), u.stack.pop()]),
    pickle.SETITEMS: lambda u: u.set_items(u.items()),
    pickle.ADDITEMS: lambda u: u.add_items(),
    pickle.PUT: lambda u: u.put(int(u.line(LONGEST_NUMBER))),
    pickle.BINPUT: lambda u: u.put(u.number("<B")),
    pickle.LONG_BINPUT: lambda u: u.put(u.number("<I")),
    pickle.MEMOIZE: lambda u: u.put(len(u.memo)),
    pickle.GET: _push(lambda u: u.memo[int(u.line(LONGEST_NUMBER))]),
    pickle.BINGET: _push(lambda u: u.memo[u.number("<B")]),
    pickle.LONG_BINGET: _push(lambda u: u.memo[u.number("<I")]),
    pickle.GLOBAL: _push(_global),
    pickle.STACK_GLOBAL: _push(_stack_global),
    pickle.INST: lambda u: u.instance(_global(u)),
    pickle.OBJ: lambda u: u.instance(),
    pickle.EXT1: _extension("<B"),
    pickle.EXT2: _extension("<H"),
    pickle.EXT4: _extension("<i"),
    pickle.REDUCE: _push(_reduce),
    pickle.NEWOBJ: lambda u: u.new(),
    pickle.NEWOBJ_EX: lambda u: u.new(extended=True),
    pickle.BUILD: lambda u: u.build(),
    pickle.PERSID: _push(lambda u: u.persistent(u.line(4096).decode("utf-8"))),
    pickle.BINPERSID: _push(lambda u: u.persistent(u.stack.pop())),
}
