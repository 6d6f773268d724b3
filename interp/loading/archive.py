"""Where the storages of torch's files lie: zip archives and the older stream of pickles, checked before they are used.

Sources: torch/serialization.py (`_save`, `_legacy_save`) and the zip format (PKWARE APPNOTE 4.3). The archive is read
strictly, so that torch's own reader cannot see another one in the same bytes: the directory ends the file, every record has
one name and its own bytes, names stay inside.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from interp.loading.inert import AGAIN, TOO_MUCH, Budget, Known, Stub, UnreadableError, printable
from interp.loading.rebuild import KNOWN, LARGEST, Root, Storage
from interp.loading.unpickle import Unpickler

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch's older files
ENTRY, LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
ABSENT16, ABSENT32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class Record:
    """One file of an archive: where its bytes start, how many there are, and how many they become."""

    position: int
    packed: int
    size: int
    deflated: bool
    crc: int


@dataclass(frozen=True)
class Walk:
    """What a pickled file holds, before anything is allocated. plain: torch's weights-only reader would read the same."""

    container: str
    root: Any
    refused: frozenset[str]
    plain: bool
    warnings: tuple[str, ...] = ()


def _bad_zip(what: str) -> UnreadableError:
    return UnreadableError(f"is a damaged zip archive ({what})", AGAIN)


def _at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(min(position, LARGEST))
    data = file.read(count)
    if len(data) < count:
        raise _bad_zip(f"it ends within the {count:,} bytes at {position:,}")
    return data


def _directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Start, length and number of entries of an archive's directory."""
    end = _at(file, size - 22, 22) if size >= 22 else b""
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise UnreadableError(f"is truncated: it holds {size:,} bytes and the directory that ends a zip archive is missing")
    disk, first, here, count, length, start = struct.unpack("<4H2I", end[4:20])
    limit = size - 22
    if size >= 42 and (pointer := _at(file, size - 42, 20))[:4] == b"PK\x06\x07":
        position = struct.unpack("<Q", pointer[8:16])[0]
        if position + 56 != size - 42:
            raise _bad_zip("its directory is not where it says")
        end = _at(file, position, 56)
        if end[:4] != b"PK\x06\x06":
            raise _bad_zip("its directory is not where it says")
        wide = struct.unpack("<2I4Q", end[16:56])
        for narrow, value, absent in zip((here, count, length, start), wide[2:], (ABSENT16,) * 2 + (ABSENT32,) * 2, strict=True):
            if narrow not in (value, absent):
                raise _bad_zip("its two directories differ")
        (disk, first, here, count, length, start), limit = wide, position
    if disk or first or here != count or start + length != limit:
        raise _bad_zip("its directory is not where it says")
    return start, length, count


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Sizes and offset, from the extra field where the 32-bit ones say so."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<2H", extra[at : at + 4])
        if kind == 1:
            fields = extra[at + 4 : at + 4 + length]
            for i in range(3):
                if values[i] == ABSENT32:
                    if len(fields) < 8:
                        raise _bad_zip("a large record has no size")
                    values[i], fields = struct.unpack("<Q", fields[:8])[0], fields[8:]
            break
        at += 4 + length
    return values


def records(file: BinaryIO, size: int, budget: Budget) -> dict[str, Record]:
    """The records of a zip archive by name. Raises UnreadableError where the archive is not exactly what it should be."""
    start, length, count = _directory(file, size)
    if count > budget.limits.max_tensors + 1000 or length > 400 * (count + 1):
        raise UnreadableError(f"is a zip archive of {count:,} records", TOO_MUCH)
    directory, at = _at(file, start, length), 0
    found: dict[str, Record] = {}
    spans: list[tuple[int, int]] = []
    for _ in range(count):
        if at + ENTRY.size > length:
            raise _bad_zip("its directory is too short")
        fields = ENTRY.unpack_from(directory, at)
        named, extra = fields[10], fields[11]
        at += ENTRY.size
        raw, tail = directory[at : at + named], directory[at + named : at + named + extra]
        at += named + extra + fields[12]
        if fields[0] != b"PK\x01\x02" or at > length or fields[13]:
            raise _bad_zip("an entry of its directory is damaged")
        name = _name(raw, fields[3])
        if name in found:
            raise UnreadableError(
                f"is a zip archive that names {printable(name)} twice", "this is no file torch has written: do not use it"
            )
        big, packed, offset = _wide(tail, [fields[9], fields[8], fields[16]])
        found[name], span = _record(file, raw, fields, big, packed, offset)
        spans.append(span)
    spans.sort()
    if at != length or any(a[1] > b[0] for a, b in zip(spans, [*spans[1:], (start, start)], strict=True)):
        raise _bad_zip("its records overlap")
    if spans and spans[0][0] != 0:
        raise _bad_zip("it does not begin with its first record")
    total = sum(record.size for record in found.values())
    if total > max(budget.limits.spare, budget.limits.max_ratio * size):
        raise UnreadableError(f"is a zip archive of {size:,} bytes that becomes {total:,}", TOO_MUCH)
    budget.take(total)
    return found


def _name(raw: bytes, flags: int) -> str:
    name = raw.decode("utf-8", "surrogateescape")
    parts = name.split("/")
    drive = len(parts[0]) == 2 and parts[0][1] == ":"
    if not name or drive or "\\" in name or "\0" in name or name.startswith("/") or ".." in parts or "." in parts:
        raise UnreadableError(
            f"is a zip archive whose record {printable(name)!r} would leave its folder",
            "this is no file torch has written: do not use it",
        )
    if flags & 0x2041:
        raise UnreadableError("is an encrypted zip archive", "unpack it and give the checkpoint inside")
    return name


def _record(
    file: BinaryIO, raw: bytes, fields: tuple[Any, ...], big: int, packed: int, offset: int
) -> tuple[Record, tuple[int, int]]:
    method, crc = fields[4], fields[7]
    local = LOCAL.unpack(_at(file, offset, LOCAL.size))
    if local[0] != b"PK\x03\x04" or local[3] != method or _at(file, offset + LOCAL.size, local[9]) != raw:
        raise _bad_zip("a record differs from the directory")
    if not local[2] & 8 and (local[6] != crc or local[7] not in (packed, ABSENT32) or local[8] not in (big, ABSENT32)):
        raise _bad_zip("a record differs from the directory")
    if method not in (0, 8) or (method == 0 and packed != big):
        raise _bad_zip("a record is compressed in an unknown way")
    position = offset + LOCAL.size + local[9] + local[10]
    return Record(position, packed, big, method == 8, crc), (offset, position + packed)


def content(file: BinaryIO, record: Record, most: int) -> bytes:
    """The bytes of a small record. Raises UnreadableError above `most` of them or where the checksum differs."""
    if record.size > most:
        raise UnreadableError(f"pickles {record.size:,} bytes around its tensors; at most {most:,} are read", TOO_MUCH)
    root = Root(record.size, 1, file, record.position, record.packed if record.deflated else None, record.crc)
    return fill(root).numpy().tobytes()


def fill(root: Root) -> Tensor:
    """The bytes of a root, (nbytes,) uint8. Raises UnreadableError where they are not there or differ from the checksum."""
    try:
        data = torch.empty(root.nbytes, dtype=torch.uint8)
    except RuntimeError:  # torch's word for it
        raise MemoryError from None
    view: memoryview = memoryview(data.numpy())  # type: ignore[arg-type]
    root.file.seek(root.position)
    if root.packed is None:
        done = 0
        while done < root.nbytes and (count := root.file.readinto(view[done : done + (1 << 24)])):  # type: ignore[attr-defined]
            done += count
    else:
        done = _inflate(root, view)
    if done < root.nbytes:
        raise UnreadableError(f"is truncated: a storage of {root.nbytes:,} bytes ends after {done:,}")
    check(data, root)
    return data


def check(data: Tensor, root: Root) -> None:
    """Raises UnreadableError where the bytes of a root, (nbytes,) uint8, are not those of its checksum."""
    view: memoryview = memoryview(data.numpy())  # type: ignore[arg-type]
    if len(view) != root.nbytes or (root.crc and zlib.crc32(view) != root.crc):  # 0 where torch was told to write none
        raise UnreadableError(f"is damaged: the checksum of a record of {root.nbytes:,} bytes differs")


def _inflate(root: Root, view: memoryview) -> int:
    left, done, stream = root.packed or 0, 0, zlib.decompressobj(-15)
    try:
        while done < root.nbytes and not stream.eof:
            source = stream.unconsumed_tail or root.file.read(min(left, 1 << 20))
            left -= 0 if stream.unconsumed_tail else len(source)
            out = stream.decompress(source, min(root.nbytes - done, 1 << 24))
            if not source and not out:
                break
            view[done : done + len(out)] = out
            done += len(out)
    except zlib.error:
        raise _bad_zip("a compressed record cannot be unpacked") from None
    return done


class Storages:
    """The storages that persistent ids name. place: bytes of a key's storage where the container knows them, else None."""

    def __init__(self, file: BinaryIO, budget: Budget, place: Callable[[str], Record | None]) -> None:
        self.file, self.budget, self.place = file, budget, place
        self.roots: dict[str, Root] = {}

    def __call__(self, given: Any) -> Any:
        """What a persistent id stands for: a `Storage`, or the class of a module."""
        if type(given) is not tuple or not given:
            raise UnreadableError("points to data by an unknown persistent id", "save the state dict with torch.save")
        kind = given[0].decode("latin-1") if type(given[0]) is bytes else given[0]
        if kind == "module" and len(given) == 4 and isinstance(given[1], Stub | Known):
            return given[1]
        if kind != "storage" or len(given) not in (5, 6):
            raise UnreadableError("points to data by an unknown persistent id", "save the state dict with torch.save")
        _, cls, key, _, numel = given[:5]
        if isinstance(cls, Stub):
            self.budget.spend(1600)
            return Stub(cls.name, ())
        if not isinstance(cls, Known) or cls.dtype is None or type(key) not in (str, int) or type(numel) is not int:
            raise UnreadableError("points to a storage by an id that is damaged")
        if not 0 <= numel <= LARGEST:
            raise UnreadableError(f"declares a storage of {numel:,} elements, which cannot be")
        self.budget.spend(800)
        root = self._root(str(key), numel, cls.dtype.itemsize)
        if len(given) == 5 or given[5] is None:
            return Storage(root, cls.dtype, numel)
        view = given[5]
        if type(view) is not tuple or len(view) != 3 or not all(type(n) is int and n >= 0 for n in view[1:]):
            raise UnreadableError("points to a part of a storage by an id that is damaged")
        if view[1] + view[2] > numel:
            raise UnreadableError(f"declares {view[2]:,} elements from {view[1]:,} on of a storage of {numel:,}")
        return Storage(root, cls.dtype, view[2], view[1] * cls.dtype.itemsize)

    def _root(self, key: str, numel: int, itemsize: int) -> Root:
        nbytes = numel * itemsize
        root = self.roots.get(key)
        if root is None:
            self.budget.spend(400)
            self.budget.hold(nbytes)
            root = Root(nbytes, itemsize, self.file)
            if (record := self.place(key)) is not None:
                root.position, root.crc = record.position, record.crc
                root.packed = record.packed if record.deflated else None
                if record.size != nbytes:
                    raise UnreadableError(
                        f"is damaged: its storage {printable(key)} declares {nbytes:,} bytes, the archive holds {record.size:,}"
                    )
            self.roots[key] = root
        if root.nbytes != nbytes:
            raise UnreadableError(f"is damaged: its storage {printable(key)} declares {nbytes:,} and {root.nbytes:,} bytes")
        return root


def walk_zip(file: BinaryIO, size: int, budget: Budget) -> Walk:
    """The content of a file that torch.save has written since 1.6."""
    found = records(file, size, budget)
    names = [n for n in found if n == "data.pkl" or n.endswith("/data.pkl")]
    if any(n.endswith("constants.pkl") or "/code/" in n for n in found):
        raise UnreadableError(
            "is a TorchScript program, not a checkpoint, and running it would run its code",
            "load it with torch.jit.load where you trust it, and save its state_dict() with torch.save",
        )
    if any(n.endswith(".npy") for n in found):
        raise UnreadableError(
            "is a NumPy archive (.npz)", "expected a PyTorch checkpoint or safetensors: convert its arrays to tensors"
        )
    if len(names) != 1:
        listed = ", ".join(printable(n) for n in list(found)[:3])
        raise UnreadableError(
            f"is a zip archive without a pickle of torch ({listed}…)", "unpack it and give the checkpoint inside"
        )
    prefix = names[0].removesuffix("data.pkl")
    if (order := found.get(f"{prefix}byteorder")) and content(file, order, 64) != b"little":
        raise UnreadableError("was written in big-endian byte order", "load and save it again on the machine it comes from")

    def place(key: str) -> Record:
        if (record := found.get(f"{prefix}data/{key}")) is None:
            raise UnreadableError(f"is damaged: its storage {printable(key)} is missing from the archive")
        return record

    budget.spend(found[names[0]].size)
    data = content(file, found[names[0]], budget.limits.max_objects)
    unpickler = _unpickler(io.BytesIO(data), len(data), budget, Storages(file, budget, place), nested=True)
    root = unpickler.load()
    plain = unpickler.plain and not unpickler.refused and not any(r.deflated for r in found.values())
    return Walk("torch zip", root, frozenset(unpickler.refused), plain)


def walk_pickle(file: BinaryIO, size: int, budget: Budget, *, nested: bool = True) -> Walk:
    """The content of a bare pickle, or of a file that torch.save wrote before 1.6: pickles, then the storages one by one."""
    storages = Storages(file, budget, lambda key: None)
    if nested:
        budget.take(size)
    refused: set[str] = set()

    def load() -> Any:
        unpickler = _unpickler(file, size, budget, storages, nested=nested)
        value = unpickler.load()
        refused.update(unpickler.refused)
        return value

    first = load()
    if type(first) is not int or first != MAGIC:
        if storages.roots:
            raise UnreadableError("is a bare pickle that points to data outside of itself", "save the state dict with torch.save")
        left = size - file.tell()
        extra = (f"{left:,} bytes after the pickle were not read",) if left else ()
        return Walk("pickle", first, frozenset(refused), False, extra)
    if (version := load()) != VERSION:
        shown = version if type(version) is int else type(version).__name__
        raise UnreadableError(f"is a torch file of version {str(shown)[:20]} where {VERSION} was expected")
    system = load()
    if type(system) is dict and system.get("little_endian") is False:
        raise UnreadableError("was written in big-endian byte order", "load and save it again on the machine it comes from")
    root, keys = load(), load()
    left = _place_legacy(file, size, storages.roots, keys)
    extra = (f"{left:,} bytes after the last storage were not read",) if left else ()
    return Walk("torch legacy", root, frozenset(refused), False, extra)


def _place_legacy(file: BinaryIO, size: int, roots: dict[str, Root], keys: Any) -> int:
    """Find each storage in the stream; the bytes left over at its end."""
    named = [str(k) for k in keys] if type(keys) is list and all(type(k) in (str, int) for k in keys) else []
    if len(named) != len(roots) or set(named) != set(roots):
        raise UnreadableError(f"is damaged: its tensors use {len(roots):,} storages, and it lists {len(named):,}")
    position = file.tell()
    needed = position + sum(8 + root.nbytes for root in roots.values())
    if needed > size:
        raise UnreadableError(f"is truncated: it holds {size:,} bytes and declares at least {needed:,}")
    for key in named:
        root = roots[key]
        file.seek(position)
        (numel,) = struct.unpack("<q", file.read(8))
        if (there := numel * root.itemsize) != root.nbytes:
            shown = f"declares {root.nbytes:,} bytes, and {there:,} where it lies"
            raise UnreadableError(f"is damaged: its storage {printable(key)} {shown}")
        root.position = position + 8
        position += 8 + root.nbytes
    return size - position


def _unpickler(file: BinaryIO, size: int, budget: Budget, storages: Storages, *, nested: bool) -> Unpickler:
    def inner(data: bytes) -> Any:
        """A torch file pickled as bytes, which is how a bare pickle keeps a storage."""
        budget.take(len(data))
        walk = walk_pickle(io.BytesIO(data), len(data), budget, nested=False)
        unpickler.refused.update(walk.refused)
        return walk.root

    unpickler = Unpickler(file, size, known=KNOWN, persistent=storages, nested=inner if nested else None, budget=budget)
    return unpickler
