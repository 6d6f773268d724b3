"""Small files that ask for much memory: each must be refused while it takes little more than its own size.

The words fit limits of 64 MB and a spare room of 8 MB, those of `reads_files`.
"""

from __future__ import annotations

import struct
import zipfile

from tests.hostile import CONTAINERS, beside, call, g, i, lst, pid, raw, s, stored, stream, t, zipped


def _swapped(size: int) -> bytes:
    """A big-endian array of the remembered bytes."""
    empty = call("numpy._core.multiarray._reconstruct", g("numpy.ndarray"), t(i(0)), raw(b"b"))
    kind = call("numpy.dtype", s("f4"), b"\x89", b"\x88") + t(i(3), s(">"), *[b"N"] * 3, i(-1), i(-1), i(0)) + b"b"
    return empty + t(i(1), t(i(size // 4)), kind, b"\x89", b"h\xfa") + b"b"


def _nested(size: int) -> bytes:
    """A torch file of one storage, as a bare pickle keeps it."""
    return stream(b"\x80\x02" + pid(numel=size // 4, tail=b"N") + b".", numel=size // 4, data=bytes(size))


def _deflated(payload: bytes) -> bytes:
    return zipped([("m/data.pkl", beside(payload))], zipfile.ZIP_DEFLATED)


# payloads
PAYLOADS: dict[str, tuple[bytes, str]] = {
    "many_memo_entries": (b"]" + b"\x94" * 500_000, "pickles more than"),
    "many_memo_numbers": (b"]" + b"".join(b"r" + struct.pack("<I", n << 7) for n in range(200_000)), "pickles more than"),
    "many_strings": (b"(" + b"\x8c\x01\xff" * 400_000 + b"l", "pickles more than"),
    "many_wide_strings": (b"(" + b"\x8c\x04\xf0\x9f\x98\x80" * 300_000 + b"l", "pickles more than"),
    "many_numpy_arrays": (lst(raw(bytes(1 << 20)) + b"q\xfa", _swapped(1 << 20) * 60), "needs more than"),
    "many_nested_files": (
        lst(raw(_nested(1 << 20)) + b"q\xfa", (g("torch.storage._load_from_bytes") + b"h\xfa\x85R") * 60),
        "needs more",
    ),
}
# whole files
FILES: dict[str, tuple[bytes, str]] = {
    "zip_bomb_of_many": (
        zipped([("m/data.pkl", beside(b"N")), *((f"m/data/{n}", bytes(7 << 20)) for n in range(5))], zipfile.ZIP_DEFLATED),
        "bytes that becomes 36,7",
    ),
    "wide_string_bomb": (
        _deflated(b"X" + struct.pack("<I", 7 << 20) + "😀".encode() + b"a" * ((7 << 20) - 4)),
        "pickles more than",
    ),
    "bytes_bomb": (_deflated(b"(" + raw(bytes(1 << 20)) * 7), "needs more than|pickles more than"),
    "st_many_objects": (stored(b'{"__metadata__":{"a":[' + b"{}," * 300_000 + b"{}]}}"), "header of 300,004 lists"),
}


def corpus() -> dict[str, tuple[bytes, str | None, str | None]]:
    """All of them by name, as `hostile.corpus` gives its own."""
    files: dict[str, tuple[bytes, str | None, str | None]] = {name: (data, words, None) for name, (data, words) in FILES.items()}
    for kind, wrap in CONTAINERS.items():
        files |= {f"{kind}_{name}": (wrap(payload), words, None) for name, (payload, words) in PAYLOADS.items()}
    return files
