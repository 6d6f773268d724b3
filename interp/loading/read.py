"""Bytes of a checkpoint file → nested content, running no foreign code.

safetensors, else torch's weights-only reader, else the inert reader of our own (`unpickle`), which replaces what it must not
call by a `Stub`. Every pickled file is first walked by our own reader without allocating anything: sizes, shapes, strides and
counts must hold against the bytes that are there. torch's reader sees only zip archives in which nothing was refused, and
must then find the same tensors. There is no switch that runs pickled code.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from interp.loading.archive import check, fill, walk_pickle, walk_zip
from interp.loading.inert import AGAIN, TOO_MUCH, Budget, Limits, Stub, UnreadableError, printable
from interp.loading.rebuild import TensorSpec, spec_of
from interp.loading.tree import Tree
from interp.types import InputError

__all__ = ["Contents", "Limits", "Stub", "read", "sha256_of"]

KINDS = "(.safetensors, .pt, .pth, .pth.tar, .ckpt, .bin)"
EXPECTED, ONE = f"expected a checkpoint {KINDS}", f"expected one checkpoint file {KINDS}"
UNPACK, CONVERT = "unpack it and give the checkpoint inside", "convert it to a PyTorch state dict"
OTHER = "give the path of the checkpoint itself"
FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", CONVERT),
    (0, b"\x93NUMPY", "a NumPy array (.npy)", CONVERT),
    (0, b"\x1f\x8b", "a gzip file", UNPACK),
    (0, b"BZh", "a bzip2 file", UNPACK),
    (0, b"\xfd7zXZ", "an xz file", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (0, b"GGUF", "a GGUF language model", CONVERT),
    (0, b"%PDF", "a PDF document", OTHER),
    (0, b"\x89PNG", "a PNG image", OTHER),
    (0, b"\xff\xd8\xff", "a JPEG image", OTHER),
    (0, b"PK\x05\x06", "an empty zip archive", OTHER),
    (4, b"TFL3", "a TensorFlow Lite model", CONVERT),
    (257, b"ustar", "a tar archive (or a torch file from before 2017)", UNPACK),
)
TRAINING = ("optim", "sched", "lr_", "scaler", "callback", "loops", "loss")  # what lies under these is no weight
# bytes per element of safetensors' types (format description of huggingface/safetensors)
SAFETENSORS = dict.fromkeys(("F64", "I64", "U64", "C64"), 8) | dict.fromkeys(("F32", "I32", "U32"), 4)
SAFETENSORS |= dict.fromkeys(("F16", "BF16", "I16", "U16"), 2)
SAFETENSORS |= dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds.

    size: of the file, bytes. container: 'safetensors', 'torch zip', 'torch legacy' or 'pickle' (bare). reader:
    'safetensors', 'weights_only' (torch's) or 'inert' (ours). root: dict, list, tuple, set, str, bytes, numbers, None,
    torch.dtype, tensors on the CPU (numpy's arrays too), and `Stub` for objects whose class was not called; devices are
    text, torch.Size is a tuple. metadata: of a safetensors header. refused: globals that were not called, sorted.
    """

    path: Path
    sha256: str
    size: int
    container: str
    reader: str
    root: Any
    metadata: dict[str, str] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read(path: Path, *, limits: Limits = Limits()) -> Contents:
    """Read a checkpoint file of any name. Raises InputError, and nothing else, where it cannot be read safely."""
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"there is no file {path}; {EXPECTED}: check the path")
        if path.is_dir():
            raise InputError(f"{path} is a folder; {ONE}: give the file inside it")
        if not path.is_file():
            raise InputError(f"{path} is a device or a pipe, not a file; {ONE}: write its content to a file first")
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch on old formats, of Python on odd strings: what counts is checked here
            size = path.stat().st_size
            found = _read(file, size, path, limits)
            file.seek(0)
            return Contents(sha256=hashlib.file_digest(file, "sha256").hexdigest(), path=path, size=size, **found)
    except UnreadableError as error:
        raise InputError(f"{path} {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); check the path and its permissions") from error
    except MemoryError:
        raise InputError(f"{path} does not fit into this machine's memory; free some, or read it on a larger machine") from None


def _read(file: BinaryIO, size: int, path: Path, limits: Limits) -> dict[str, Any]:
    kind = _sniff(file, size, limits)
    if kind == "safetensors":
        tensors, metadata = _safetensors(file, size, path, limits)
        notes = _check_values(tensors)
        return {"container": kind, "reader": kind, "root": tensors, "metadata": metadata, "warnings": notes}
    budget = Budget(limits, size)
    file.seek(0)
    walk = walk_zip(file, size, budget) if kind == "zip" else walk_pickle(file, size, budget)
    tree = Tree(walk.root, budget)
    tree.measure()
    made = _weights_only(file, walk.root, tree.specs) if walk.plain else None
    if made is None:
        root, reader = tree.finish(_Maker()), "inert"
    else:
        root, reader = tree.finish(lambda spec: made[id(spec)]), "weights_only"
    notes = (*walk.warnings, *_check_values(root))
    refused = tuple(sorted(walk.refused))
    return {"container": walk.container, "reader": reader, "root": root, "refused": refused, "warnings": notes}


def _sniff(file: BinaryIO, size: int, limits: Limits) -> str:
    """The kind of a file by its first bytes: 'safetensors', 'zip' or 'pickle'. Raises UnreadableError for all others."""
    head = file.read(512)
    if not head:
        raise UnreadableError(f"is empty; {EXPECTED}", "the download or the copy did not finish: fetch the file again")
    if size > limits.max_bytes:
        raise UnreadableError(f"holds {size:,} bytes; at most {limits.max_bytes:,} are read", TOO_MUCH)
    if head.lstrip()[:1] == b"<":
        raise UnreadableError(
            f"is an HTML page, not a checkpoint: the host answered with a web page; {EXPECTED}", "download it by hand"
        )
    if head.startswith(b"version https://git-lfs"):
        raise UnreadableError(f"is a pointer of Git LFS, not the file itself; {EXPECTED}", "fetch it again with: git lfs pull")
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 48:
        return "safetensors"
    if head[:4] == b"PK\x03\x04":
        return "zip"
    for at, magic, what, advice in FOREIGN:
        if head[at : at + len(magic)] == magic:
            raise UnreadableError(f"is {what}; {EXPECTED}", advice)
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return "pickle"
    file.seek(max(0, size - 8))
    tail = file.read(8)
    if tail == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b":", b"*", b'"')):
        raise UnreadableError(f"is a TensorFlow or ONNX file; {EXPECTED}", CONVERT)
    if tail[-1:] == b"." and head[:1] in b"(]}clidINFSVX":
        return "pickle"  # protocols 0 and 1 have no mark of their own
    start = head[:12]
    shown = (
        f"text that begins with {start.decode()!r}" if start.isascii() and start.decode().isprintable() else f"0x{start.hex()}"
    )
    raise UnreadableError(f"holds {size:,} bytes of an unknown kind ({shown}); {EXPECTED}", AGAIN)


def _safetensors(file: BinaryIO, size: int, path: Path, limits: Limits) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header, length = _header(file, size, limits)
    given = header.pop("__metadata__", None) or {}
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        raise UnreadableError("is a damaged safetensors file (its metadata is no text by name)")
    if len(header) > limits.max_tensors:
        raise UnreadableError(f"holds {len(header):,} tensors; at most {limits.max_tensors:,} are read", TOO_MUCH)
    ends = [_entry(printable(name), entry) for name, entry in header.items()]
    needed = 8 + length + max(ends, default=0)
    if needed > size:
        raise UnreadableError(f"is truncated: it holds {size:,} bytes and declares {needed:,}")
    try:
        tensors = load_file(path)
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = printable((str(error).splitlines() or [""])[0].removeprefix("Error while deserializing header: "))
        raise UnreadableError(f"is a damaged safetensors file ({reason})") from error
    return {name: tensors[name] for name in header}, given


def _header(file: BinaryIO, size: int, limits: Limits) -> tuple[dict[str, Any], int]:
    """The parsed header of a safetensors file and its length in bytes."""
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size - 8:
        raise UnreadableError(f"is a truncated safetensors file: its header declares {length:,} bytes, the file holds {size:,}")
    if length > limits.max_header:
        raise UnreadableError(f"has a safetensors header of {length:,} bytes; at most {limits.max_header:,} are read", TOO_MUCH)
    text = file.read(length)
    if (nested := text.count(b"{") + text.count(b"[")) > 3 * limits.max_tensors + 1000:  # three of each tensor
        raise UnreadableError(f"has a safetensors header of {nested:,} lists and objects", TOO_MUCH)
    try:
        pairs = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UnreadableError("is a damaged safetensors file (its header is no JSON of unique names)") from error
    if not isinstance(pairs, dict):
        raise UnreadableError("is a damaged safetensors file (its header is no JSON of unique names)")
    return pairs, length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(name: str, entry: Any) -> int:
    """Where a tensor of a safetensors header ends. Raises UnreadableError where it does not add up."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(span, list) or len(span) != 2:
        raise UnreadableError(f"is a damaged safetensors file (the entry of {name} is no tensor)")
    if dtype not in SAFETENSORS:
        known = ", ".join(SAFETENSORS)
        raise UnreadableError(f"holds {name} as {printable(dtype)}; expected one of {known}", "save it as one of these")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, *span)):
        raise UnreadableError(f"is a damaged safetensors file (the sizes of {name} cannot be)")
    if math.prod(shape) * SAFETENSORS[dtype] != span[1] - span[0]:
        raise UnreadableError(f"is a damaged safetensors file (the shape of {name} does not fit its bytes)")
    return int(span[1])


class _Maker:
    """Tensors from the bytes of the file; what shares a storage there shares it here."""

    def __init__(self) -> None:
        self._data: dict[int, Tensor] = {}

    def __call__(self, spec: TensorSpec) -> Tensor:
        data = self._data.get(id(spec.root))
        if data is None:
            data = self._data[id(spec.root)] = fill(spec.root)
        empty = torch.empty(0, dtype=spec.dtype)
        with torch.no_grad():
            return empty.set_(data.untyped_storage(), spec.offset, spec.shape, spec.stride)


class _DiffersError(Exception):
    """torch's reader gives something else than ours, or fails: then ours alone is used."""


def _weights_only(file: BinaryIO, root: Any, specs: list[TensorSpec]) -> dict[int, Tensor] | None:
    """Tensors by the id of their specification, as torch's weights-only reader makes them; None where it cannot."""
    made: dict[int, Tensor] = {}
    try:
        file.seek(0)
        try:
            theirs = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # it raises RuntimeError, UnpicklingError, KeyError, …: any means that ours is used
            raise _DiffersError from error
        _pair(root, theirs, made, set())
        for spec in specs:
            data = torch.empty(0, dtype=torch.uint8)
            data.set_(made[id(spec)].untyped_storage())
            check(data, spec.root)
    except _DiffersError:
        return None
    return made


def _pair(ours: Any, theirs: Any, made: dict[int, Tensor], seen: set[int]) -> None:
    if id(ours) in seen:
        return
    spec = spec_of(ours)
    if spec is not None:
        same = isinstance(theirs, Tensor) and theirs.dtype == spec.dtype and theirs.device.type == "cpu"
        if not same or tuple(theirs.shape) != spec.shape or theirs.stride() != spec.stride or spec is not ours:
            raise _DiffersError
        made[id(spec)] = theirs.detach()
    if type(ours) not in (dict, list, tuple):
        return
    seen.add(id(ours))
    if not isinstance(theirs, type(ours)) or len(theirs) != len(ours):
        raise _DiffersError
    pairs = zip(ours.values(), theirs.values(), strict=True) if isinstance(ours, dict) else zip(ours, theirs, strict=True)
    for a, b in pairs:
        _pair(a, b, made, seen)


def _named(root: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors of some content with where they lie ('state_dict/fc.weight'); what is shared comes once."""
    seen: set[int] = set()
    keep: list[Any] = []  # lists made here, so that no id is used twice
    todo: list[Iterator[tuple[Any, Any]]] = [iter([("", root)])]
    where: list[str] = []
    while todo:
        key, node = next(todo[-1], (None, todo))
        if node is todo:
            todo.pop()
            where = where[:-1]
            continue
        if id(node) in seen:
            continue
        if isinstance(node, Tensor):
            seen.add(id(node))
            yield "/".join([*where, _short(key)]).lstrip("/"), node
        elif isinstance(node, dict | list | tuple | Stub):
            seen.add(id(node))
            if isinstance(node, Stub):
                keep.append([node.args, node.state, node.items, node.mapping])
                node = keep[-1]
            todo.append(iter(node.items() if isinstance(node, dict) else enumerate(node)))
            where.append(_short(key))


def _short(key: Any) -> str:
    return printable(str(key) if isinstance(key, str | int) else type(key).__name__)


def _check_values(root: Any) -> tuple[str, ...]:
    """Warnings about tensors that overlap or training state that is not finite; UnreadableError where weights are not."""
    mixed = isinstance(root, dict) and not all(isinstance(v, Tensor) for v in root.values())
    bad: list[str] = []
    state: list[str] = []
    spans: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for name, tensor in _named(root):
        if tensor.numel() == 0:
            continue
        if not _finite(tensor):
            above = name.split("/")[:-1]
            aside = any(part.lower().startswith(TRAINING) for part in above) or (mixed and tensor.ndim == 0 and not above)
            (state if aside else bad).append(name)
        first = int(tensor.storage_offset())
        last = first + 1 + sum((int(n) - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        width = tensor.element_size()
        spans[tensor.untyped_storage().data_ptr()].append((first * width, last * width, name))
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        found = f"has weights that are not finite: {', '.join(bad[:5])}{more}"
        raise UnreadableError(found, "the training diverged or the file is damaged: use an earlier checkpoint")
    notes = [f"{len(state)} values of the training state are not finite ({', '.join(state[:3])})"] if state else []
    pairs = [pair for group in spans.values() if len(group) > 1 for pair in _overlaps(sorted(group))]
    if pairs:
        notes.append(
            f"{len(pairs)} tensors share a part of the bytes of another ({pairs[0][0]} and {pairs[0][1]}); both were read"
        )
    return tuple(notes)


def _finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # 8-bit floats have no isfinite; of their 256 values a few are not finite
        values = torch.arange(256, dtype=torch.uint8)
        codes = values[~torch.isfinite(values.view(tensor.dtype).float())].tolist()
        return not any(bool((tensor.view(torch.uint8) == code).any()) for code in codes)
    low, high = torch.aminmax(
        torch.view_as_real(tensor) if tensor.is_complex() else tensor
    )  # one pass, no copy; NaN comes through
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def _overlaps(group: list[tuple[int, int, str]]) -> Iterator[tuple[str, str]]:
    """Pairs of tensors of one storage that overlap without having the same extent, which tied weights have."""
    first, last, name = group[0]
    for start, end, other in group[1:]:
        if start < last and (start, end) != (first, last):
            yield name, other
        if end > last:
            first, last, name = start, end, other


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
