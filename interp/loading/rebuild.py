"""What the few globals of checkpoints stand for, computed here: tensors as specifications, containers, numpy's numbers.

The formulas are those of torch._utils and torch.serialization (PyTorch, torch/_utils.py, torch/serialization.py) and of
numpy's pickles (numpy/_core/multiarray). Nothing is allocated here: a tensor stays a `TensorSpec` over a `Root`, bytes of a
file that are known to exist, until the whole file has been checked.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch

from interp.loading.inert import Budget, Buildable, Known, Stub, UnreadableError
from interp.loading.unpickle import Unpickler

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
DTYPES = (
    *dict.fromkeys(STORAGES.values()),
    *(torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
)
FROM_NUMPY = {
    **{"f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "b1": torch.bool},
    **{"i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64},
    **{"u1": torch.uint8, "u2": torch.uint16, "u4": torch.uint32, "u8": torch.uint64},
}
LARGEST = 1 << 48  # bytes or elements; beyond it no machine reads a file, and products stay far from overflow
MOST_DIMENSIONS = 32


@dataclass(eq=False)
class Root:
    """Bytes of a storage in a file. packed: their compressed size where they are. crc: checksum where the file has one."""

    nbytes: int
    itemsize: int
    file: BinaryIO
    position: int = -1
    packed: int | None = None
    crc: int | None = None


@dataclass(frozen=True, eq=False)
class Storage:
    """Elements of a root from `offset` (bytes) on."""

    root: Root
    dtype: torch.dtype
    numel: int
    offset: int = 0


@dataclass(frozen=True, eq=False)
class TensorSpec:
    """A tensor that is known to lie inside its root. offset, stride: in elements, from the root's start."""

    root: Root
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements when each is written out."""
        return _product(self.shape) * self.dtype.itemsize


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _whole(value: Any, most: int = LARGEST) -> int:
    if type(value) is not int or not 0 <= value <= most:
        shown = f"{value:,}"[:40] if type(value) is int else f"type {type(value).__name__}"
        raise UnreadableError(f"declares a tensor or storage with a size, stride or offset of {shown}, which cannot be")
    return value


def tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> TensorSpec:
    """A tensor over a storage. Raises UnreadableError where any element of it would lie outside."""
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise TypeError("a tensor is not made of a storage and two tuples")
    dtype = storage.dtype if dtype is None else dtype
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise UnreadableError(f"declares a tensor with {len(size)} sizes and {len(stride)} strides")
    first = _whole(offset)
    shape, steps = tuple(_whole(n) for n in size), tuple(_whole(n) for n in stride)
    if _product(tuple(max(n, 1) for n in shape)) > LARGEST:
        raise UnreadableError(f"declares a tensor of shape {shape}, which cannot be")
    last = first + sum((n - 1) * s for n, s in zip(shape, steps, strict=True)) if 0 not in shape else first - 1
    if (last + 1) * dtype.itemsize > storage.numel * storage.dtype.itemsize or storage.offset % dtype.itemsize:
        raise UnreadableError(
            f"declares a tensor of shape {shape}, strides {steps} and offset {first} in a storage "
            f"of {storage.numel:,} elements: some of it lies outside"
        )
    return TensorSpec(storage.root, dtype, first + storage.offset // dtype.itemsize, shape, steps)


def whole_storage(storage: Storage) -> TensorSpec:
    """All elements of a storage as a vector."""
    return tensor(storage, 0, (storage.numel,), (1,))


def _tensor_v2(u: Unpickler, args: tuple[Any, ...]) -> Any:
    if len(args) not in (6, 7) or (len(args) == 7 and args[6]) or isinstance(args[0], Stub):
        return NotImplemented  # a lazily negated or conjugated tensor: its bytes are not its values
    u.plain = u.plain and args[4] in (True, False) and (args[5] is None or args[5] == {})
    return tensor(*args[:4])


def _tensor_v3(u: Unpickler, args: tuple[Any, ...]) -> Any:
    if (
        len(args) not in (7, 8)
        or (len(args) == 8 and args[7])
        or not isinstance(args[6], torch.dtype)
        or isinstance(args[0], Stub)
    ):
        return NotImplemented
    storage, offset, size, stride = args[:4]
    return tensor(storage, offset, size, stride, args[6])


def _parameter(u: Unpickler, args: tuple[Any, ...]) -> Any:
    u.plain = u.plain and len(args) == 3 and args[1] in (True, False) and (args[2] is None or args[2] == {})
    return args[0] if args and isinstance(args[0], TensorSpec) else NotImplemented


def _typed(u: Unpickler, args: tuple[Any, ...]) -> Any:
    """`_rebuild_from_type_v2(function, class, arguments, state)`: a tensor with attributes, which are dropped."""
    if len(args) != 4 or not isinstance(args[0], Known) or not args[0].name.startswith("torch._utils._rebuild"):
        return NotImplemented
    return u.call(args[0], args[2])


def _empty_or_pairs(u: Unpickler, args: tuple[Any, ...]) -> Any:
    made: dict[Any, Any] = {}
    if args and type(args[0]) is dict:
        u.budget.spend(100 * len(args[0]))
        made.update(args[0])
    elif args:
        if type(args[0]) not in (list, tuple):
            return NotImplemented
        u.budget.spend(100 * len(args[0]))
        for pair in args[0]:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                return NotImplemented
            made[u.key(pair[0])] = pair[1]
    return made


def _default_dict(u: Unpickler, args: tuple[Any, ...]) -> Any:
    return _empty_or_pairs(u, args[1:])


def _counter(u: Unpickler, args: tuple[Any, ...]) -> Any:
    return _empty_or_pairs(u, args) if not args or type(args[0]) is dict else NotImplemented


def _collection(kind: type) -> Callable[[Unpickler, tuple[Any, ...]], Any]:
    def call(u: Unpickler, args: tuple[Any, ...]) -> Any:
        given = args[0] if args else ()
        if len(args) > 1 or type(given) not in (list, tuple, set, frozenset):
            return NotImplemented
        u.budget.spend(240 + 100 * len(given))
        return kind([u.key(v) for v in given] if kind in (set, frozenset) else given)

    return call


def _size(u: Unpickler, args: tuple[Any, ...]) -> Any:
    if len(args) != 1 or type(args[0]) not in (list, tuple) or not all(type(n) is int for n in args[0]):
        return NotImplemented
    u.budget.spend(8 * len(args[0]))
    return tuple(args[0])


def _device(u: Unpickler, args: tuple[Any, ...]) -> Any:
    known = 1 <= len(args) <= 2 and type(args[0]) is str and re.fullmatch(r"[a-z]{1,16}(:\d{1,3})?", args[0])
    if not known or (len(args) == 2 and type(args[1]) is not int):
        return NotImplemented
    return args[0] if len(args) == 1 else f"{args[0]}:{args[1]}"


def _complex(u: Unpickler, args: tuple[Any, ...]) -> Any:
    return complex(*args) if len(args) == 2 and all(type(a) is float for a in args) else NotImplemented


def _encode(u: Unpickler, args: tuple[Any, ...]) -> Any:
    """`_codecs.encode(text, 'latin1')`, which is how protocol 2 keeps bytes; no other codec."""
    if len(args) != 2 or type(args[0]) is not str or args[1] not in ("latin1", "latin-1"):
        return NotImplemented
    u.budget.spend(len(args[0]))
    return args[0].encode("latin-1")


def _as_bytes(u: Unpickler, args: tuple[Any, ...]) -> Any:
    if args and type(args[0]) is bytes and len(args) == 1:
        return args[0]
    if len(args) == 2 and type(args[0]) is str:
        return _encode(u, args)
    return b"" if not args else NotImplemented


def _new_object(u: Unpickler, args: tuple[Any, ...]) -> Any:
    u.budget.spend(8 * len(args))
    return u.call(args[0], args[1:], plain=False)


def _old_object(u: Unpickler, args: tuple[Any, ...]) -> Any:
    return u.call(args[0], (), plain=False) if len(args) == 3 else NotImplemented


def _nested(u: Unpickler, args: tuple[Any, ...]) -> Any:
    if u.nested is None or len(args) != 1 or type(args[0]) is not bytes:
        return NotImplemented
    return u.nested(args[0])


class NumpyType(Buildable):
    """A numpy number type by its code; the byte order comes with its state."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def build(self, state: Any, budget: Budget) -> None:
        """Take (version, byte order, …)."""
        if type(state) is tuple and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    def little(self, data: bytes) -> bytes:
        """Data in this type's byte order, in little endian."""
        return np.frombuffer(data, np.dtype(self.code)).byteswap().tobytes() if self.order == ">" else data


class NumpyArray(Buildable):
    """A numpy array, which becomes a tensor once its state is known and holds plain numbers."""

    def __init__(self) -> None:
        self.spec: TensorSpec | None = None

    def build(self, state: Any, budget: Budget) -> None:
        """Take (version, shape, type, whether in Fortran order, bytes)."""
        if type(state) is tuple and len(state) == 5:
            self.fill(state[4], state[2], state[1], bool(state[3]), budget)

    def fill(self, data: Any, kind: Any, shape: Any, fortran: bool, budget: Budget) -> None:
        """Take the bytes, which become a tensor for each array that is made of them."""
        if type(data) is not bytes or not isinstance(kind, NumpyType) or type(shape) is not tuple:
            return
        budget.hold(len(data))
        budget.take((3 if kind.order == ">" else 1) * len(data))
        dtype = FROM_NUMPY[kind.code]
        stride, step = [0] * len(shape), 1
        for i in range(len(shape)) if fortran else reversed(range(len(shape))):
            stride[i], step = step, step * max(_whole(shape[i]), 1)
        root = Root(len(data), dtype.itemsize, io.BytesIO(kind.little(data)), 0)
        self.spec = tensor(Storage(root, dtype, len(data) // dtype.itemsize), 0, shape, tuple(stride))


def _numpy_type(u: Unpickler, args: tuple[Any, ...]) -> Any:
    code = args[0] if args else None
    return NumpyType(code) if type(code) is str and code in FROM_NUMPY else NotImplemented


def _numpy_scalar(u: Unpickler, args: tuple[Any, ...]) -> Any:
    if len(args) != 2 or not isinstance(args[0], NumpyType) or type(args[1]) is not bytes:
        return NotImplemented
    kind = np.dtype(args[0].code)
    return np.frombuffer(args[0].little(args[1]), kind)[0].item() if len(args[1]) == kind.itemsize else NotImplemented


def _numpy_empty(u: Unpickler, args: tuple[Any, ...]) -> Any:
    if len(args) != 3 or not isinstance(args[0], Known) or args[0].name != "numpy.ndarray":
        return NotImplemented
    u.budget.spend(1200)
    return NumpyArray()


def _numpy_buffer(u: Unpickler, args: tuple[Any, ...]) -> Any:
    made = NumpyArray()
    if len(args) == 4:
        u.budget.spend(1200)
        made.fill(args[0], args[1], args[2], args[3] == "F", u.budget)
    return made if made.spec else NotImplemented


def _known() -> Iterator[tuple[str, str, Any]]:
    for module in ("torch", "torch.cuda", "torch.storage"):
        for name, dtype in STORAGES.items():
            yield module, name, Known(f"{module}.{name}", None, plain=module == "torch" or name == "UntypedStorage", dtype=dtype)
    for dtype in DTYPES:
        yield "torch", str(dtype).removeprefix("torch."), dtype
    calls: tuple[tuple[str, str, Callable[..., Any] | None, bool], ...] = (
        ("torch._utils", "_rebuild_tensor", lambda u, args: tensor(*args), True),
        ("torch._utils", "_rebuild_tensor_v2", _tensor_v2, True),
        ("torch._utils", "_rebuild_tensor_v3", _tensor_v3, False),
        ("torch._utils", "_rebuild_parameter", _parameter, True),
        ("torch._utils", "_rebuild_parameter_with_state", _parameter, False),
        ("torch._tensor", "_rebuild_from_type_v2", _typed, False),
        ("torch", "Tensor", None, False),
        ("torch.nn.parameter", "Parameter", None, False),
        ("torch", "Size", _size, True),
        ("torch", "device", _device, True),
        ("torch.storage", "_load_from_bytes", _nested, False),
        ("collections", "OrderedDict", _empty_or_pairs, True),
        ("collections", "defaultdict", _default_dict, False),
        ("collections", "Counter", _counter, False),
        ("_codecs", "encode", _encode, True),
        ("copyreg", "_reconstructor", _old_object, False),
        ("copyreg", "__newobj__", _new_object, False),
        ("builtins", "dict", _empty_or_pairs, False),
        ("builtins", "object", None, False),
        ("builtins", "complex", _complex, True),
        ("builtins", "bytes", _as_bytes, False),
        ("builtins", "bytearray", _as_bytes, False),
        *(("builtins", kind.__name__, _collection(kind), False) for kind in (list, tuple, set, frozenset)),
        *(("builtins", name, None, False) for name in ("int", "float", "str", "bool")),
        ("numpy", "dtype", _numpy_type, False),
        ("numpy", "ndarray", None, False),
        *((f"numpy.{core}.multiarray", "scalar", _numpy_scalar, False) for core in ("core", "_core")),
        *((f"numpy.{core}.multiarray", "_reconstruct", _numpy_empty, False) for core in ("core", "_core")),
        *((f"numpy.{core}.numeric", "_frombuffer", _numpy_buffer, False) for core in ("core", "_core")),
    )
    for module, name, call, plain in calls:
        yield module, name, Known(f"{module}.{name}", call, plain=plain)


KNOWN: dict[tuple[str, str], Any] = {(module, name): value for module, name, value in _known()}


def spec_of(node: Any) -> TensorSpec | None:
    """The tensor that a leaf stands for, if any."""
    if type(node) is Storage:
        return whole_storage(node)
    return node.spec if type(node) is NumpyArray else node if type(node) is TensorSpec else None
