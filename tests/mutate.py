"""Seeded mutations of files: bytes, pieces, numbers, and opcodes of the pickles within, with archives put together again."""

from __future__ import annotations

import io
import pickletools
import random
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping

import timm
import torch
from torch import Tensor

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, ord("."), ord("("), ord("t"), ord("R"), ord("b"), ord("Q"), ord("c"))


def small_states() -> dict[str, dict[str, Tensor]]:
    """State dicts with the names and shapes of networks, of one byte each tensor; the last with the names alone."""
    states = {}
    for arch in ("xcit_nano_12_p16_224", "vit_tiny_patch16_224", "mobilevit_xxs", "resnet18"):
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in timm.create_model(arch).state_dict().items() if not k.startswith("layer4")}
        states[arch] = {k: torch.ones((), dtype=torch.int8).expand(shape) for k, shape in shapes.items()}
        states[f"{arch}.safetensors"] = {k: torch.ones([min(n, 3) for n in shape]) for k, shape in shapes.items()}
    return states


def mutated(files: Mapping[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` mutations with a name that says how each was made."""
    draw = random.Random(seed)
    names = sorted(files)
    for n in range(count):
        name = draw.choice(names)
        data = files[name]
        other = files[draw.choice(names)]
        if draw.random() < 0.45 and (inner := _inner(data)):
            start, end = inner
            changed = data[start:end]
            for _ in range(draw.choice((1, 1, 2, 4))):
                finely = _tokens if data[8:9] == b"{" else _opcodes
                changed = finely(changed, other, draw) if draw.random() < 0.6 else _bytes(changed, other, draw)
            yield f"{n} inner {name}", _rebuilt(data, start, end, changed)
        else:
            for _ in range(draw.choice((1, 1, 1, 2, 5, 20))):
                data = _bytes(data, other, draw)
            yield f"{n} outer {name}", data


def _inner(data: bytes) -> tuple[int, int] | None:
    """Where the main pickle of a file, or the header of safetensors, lies."""
    if data[8:9] == b"{":
        return 8, 8 + struct.unpack("<Q", data[:8])[0]
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            pickled = next((z.read(n) for n in z.namelist() if n.endswith("data.pkl")), b"")
        start = data.find(pickled) if pickled else -1
        return (start, start + len(pickled)) if start >= 0 else None
    if data[:1] != b"\x80":
        return None
    file, spans = io.BytesIO(data), []
    try:
        for _ in range(4):
            start = file.tell()
            for _ in pickletools.genops(file):
                pass
            spans.append((start, file.tell()))
    except (ValueError, IndexError):
        pass
    return spans[-1] if spans else None


def _rebuilt(data: bytes, start: int, end: int, changed: bytes) -> bytes:
    if data[8:9] == b"{":
        return struct.pack("<Q", len(changed)) + changed + data[end:]
    if data[:2] != b"PK":
        return data[:start] + changed + data[end:]
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as z, zipfile.ZipFile(out, "w") as w:
        for name in z.namelist():
            w.writestr(zipfile.ZipInfo(name), changed if name.endswith("data.pkl") else z.read(name))
    return out.getvalue()


def _opcodes(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Delete, double, swap, move or replace one opcode, or change the global, the number or the text of one."""
    try:
        at = [p for _, _, p in pickletools.genops(data) if p is not None]
    except (ValueError, IndexError):
        return _bytes(data, other, draw)
    parts = [data[a:b] for a, b in zip(at, [*at[1:], len(data)], strict=True)]
    i, j = draw.randrange(len(parts)), draw.randrange(len(parts))
    how = draw.randrange(11)
    if how > 6 and (values := [n for n, part in enumerate(parts) if part[:1] in b"KMX"]):
        i = draw.choice(values)
        parts[i] = _value(parts[i], draw)
    elif how == 0:
        del parts[i]
    elif how == 1:
        parts.insert(j, parts[i])
    elif how == 2:
        parts[i], parts[j] = parts[j], parts[i]
    elif how == 3:
        parts.insert(i, bytes([draw.choice([ord(o.code) for o in pickletools.opcodes])]))
    elif how == 4:
        parts[i] = draw.choice(
            (b"cos\nsystem\n", b"cbuiltins\nexec\n", b"ctorch\nSize\n", b"cnumpy\ndtype\n", b"cbuiltins\nbytearray\n")
        )
    elif how == 5:
        number = draw.choice((-1, 0, 2**31 - 1, 2**31, 2**48, 2**62, -(2**63)))
        parts[i] = b"\x8a\x09" + number.to_bytes(9, "little", signed=True)
    else:
        parts[i:i] = [b"X\x0c\x00\x00\x00touch canary", b"\x85", b"R"]
    return b"".join(parts)


def _value(part: bytes, draw: random.Random) -> bytes:
    """Another small number, or a text with a piece moved, dropped or changed."""
    if part[:1] != b"X":
        return b"K" + bytes([draw.choice((0, 1, 2, 3, draw.randrange(256)))])
    words = part[5:].split(b".")
    i, j = draw.randrange(len(words)), draw.randrange(len(words))
    words[i] = draw.choice((words[j], b"", b"0", b"999", b"weight", b"module", b"state_dict", words[i][:-1], words[i] + b".x"))
    text = b".".join(words)
    return b"X" + struct.pack("<I", len(text)) + text


def _tokens(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Delete, double, swap or replace a word of JSON."""
    parts = re.findall(rb'"[^"]*"|-?[0-9.]+|.', data, re.DOTALL)
    if not parts:
        return _bytes(data, other, draw)
    words = [n for n, part in enumerate(parts) if len(part) > 1 or part.isdigit()] or [0]
    i, j = draw.choice(words), draw.choice(words)
    how = draw.randrange(4)
    if how == 0:
        del parts[i]
    elif how == 1:
        parts[i] = parts[j]
    elif how == 2:
        parts[i], parts[j] = parts[j], parts[i]
    elif parts[i][:1] == b'"' and draw.random() < 0.5:
        parts[i] = b'"' + _value(b"X\0\0\0\0" + parts[i][1:-1], draw)[5:] + b'"'
    else:
        parts[i] = draw.choice((b"0", b"-1", b"1e9", b"9" * 30, b"null", b"[]", b"{}", b'""', b'"."', b'"0"', b'"F32"', b"[0]"))
    return b"".join(parts)


def _bytes(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Flip, set, insert, delete, double, cut or splice."""
    if not data:
        return other
    i = draw.randrange(len(data))
    n = min(draw.choice((1, 1, 2, 4, 8, 30)), len(data) - i)
    how = draw.randrange(8)
    if how == 0:
        return data[:i] + bytes([data[i] ^ (1 << draw.randrange(8))]) + data[i + 1 :]
    if how == 1:
        return data[:i] + bytes([draw.choice(INTERESTING)]) * n + data[i + n :]
    if how == 2:
        return data[:i] + draw.randbytes(n) + data[i:]
    if how == 3:
        return data[:i] + data[i + n :]
    if how == 4:
        return data[: i + n] + data[i:]
    if how == 5:
        return data[:i] if draw.random() < 0.3 else data[:i] + draw.randbytes(n) + data[i + n :]
    j = draw.randrange(len(other)) if other else 0
    if how == 6:
        return data[:i] + other[j:]
    return data[:i] + other[j : j + n * 4] + data[i + n :]
