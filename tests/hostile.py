"""Hostile, broken and good checkpoint files, written by hand: opcodes, archives, headers. `touch canary` is what runs.

A payload is the opcodes of one value. `torch_zip`, `torch_legacy` and `bare` put it beside a tensor into the three containers.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable

import torch
from safetensors.torch import save

WEIGHTS = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7
RAW = WEIGHTS.numpy().tobytes()
DO = "touch canary"
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)


def s(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def i(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def g(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def t(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(name: str, *args: bytes) -> bytes:
    return g(name) + t(*args) + b"R"


def dotted(module: str, name: str) -> bytes:
    return s(module) + s(name) + b"\x93"


def lst(*parts: bytes) -> bytes:
    return b"](" + b"".join(parts) + b"e"


def dct(*parts: bytes) -> bytes:
    return b"}(" + b"".join(parts) + b"u"


def raw(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def pid(
    *, cls: bytes = g("torch.FloatStorage"), key: bytes = s("0"), numel: int = 6, tail: bytes = b"", kind: str = "storage"
) -> bytes:
    return t(s(kind), cls, key, s("cpu"), i(numel), tail) + b"Q"


def tensor(storage: bytes, offset: bytes = i(0), size: bytes = t(i(2), i(3)), stride: bytes = t(i(3), i(1))) -> bytes:
    return call("torch._utils._rebuild_tensor_v2", storage, offset, size, stride, b"\x89", call("collections.OrderedDict"))


def beside(payload: bytes, *, tail: bytes = b"", **storage: bytes | int) -> bytes:
    """A pickle of {'w': WEIGHTS, 'x': payload}."""
    return b"\x80\x02" + dct(s("w"), tensor(pid(tail=tail, **storage)), s("x"), payload) + b"."  # type: ignore[arg-type]


def zipped(records: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in records:
            z.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def around(pickled: bytes, data: bytes = RAW) -> bytes:
    return zipped([("m/data.pkl", pickled), ("m/byteorder", b"little"), ("m/data/0", data), ("m/version", b"3\n")])


def torch_zip(payload: bytes) -> bytes:
    return around(beside(payload))


def stream(pickled: bytes, *, keys: tuple[str, ...] = ("0",), numel: int = 6, data: bytes = RAW, little: bool = True) -> bytes:
    head = MAGIC + pickle.dumps({"protocol_version": 1001, "little_endian": little}, 2)
    return head + pickled + pickle.dumps(list(keys), 2) + struct.pack("<q", numel) + data


def torch_legacy(payload: bytes) -> bytes:
    return stream(beside(payload, tail=b"N"))


def bare(payload: bytes) -> bytes:
    """A bare pickle, as pickle.dump(state_dict) writes one: the storage is a torch file within it."""
    inner = stream(b"\x80\x02" + pid(tail=b"N") + b".")
    return b"\x80\x03" + dct(s("w"), tensor(call("torch.storage._load_from_bytes", raw(inner))), s("x"), payload) + b"."


CONTAINERS = {"zip": torch_zip, "legacy": torch_legacy, "bare": bare}

HOSTILE_LEGACY = stream(b"\x80\x02" + call("os.system", s(DO)) + b".", keys=(), data=b"")
# payload → the global that must be listed. All run `touch canary` when Python's own pickle reads them.
RUNS: dict[str, tuple[bytes, str]] = {
    "os_system": (call("os.system", s(DO)), "os.system"),
    "text_protocol": (b"cposix\nsystem\n(S'touch canary'\ntR", "posix.system"),
    "stack_global": (dotted("posix", "system") + t(s(DO)) + b"R", "posix.system"),
    "dotted_name": (dotted("torch", "os.system") + t(s(DO)) + b"R", "torch.os.system"),
    "subprocess": (call("subprocess.call", lst(s("touch"), s("canary"))), "subprocess.call"),
    "getoutput": (call("subprocess.getoutput", s(DO)), "subprocess.getoutput"),
    "exec": (call("builtins.exec", s("open('canary', 'w')")), "builtins.exec"),
    "eval": (call("builtins.eval", s("open('canary', 'w')")), "builtins.eval"),
    "python2_eval": (b"c__builtin__\neval\n" + t(s("open('canary', 'w')")) + b"R", "builtins.eval"),
    "open": (call("builtins.open", s("canary"), s("w")), "builtins.open"),
    "import": (
        call("builtins.getattr", call("builtins.__import__", s("os")), s("system")) + t(s(DO)) + b"R",
        "builtins.__import__",
    ),
    "partial": (call("functools.partial", g("os.system"), s(DO)) + b")R", "functools.partial"),
    "map_in_list": (call("builtins.list", call("builtins.map", g("os.system"), lst(s(DO)))), "builtins.map"),
    "map_in_bytes": (g("builtins.bytes") + t(call("builtins.map", g("os.system"), lst(s(DO)))) + b"\x81", "builtins.map"),
    "map_in_dict": (call("collections.OrderedDict", call("builtins.map", g("os.system"), lst(s(DO)))), "builtins.map"),
    "nested_pickle": (call("pickle.loads", raw(b"\x80\x02" + call("os.system", s(DO)) + b".")), "pickle.loads"),
    "nested_c_pickle": (call("_pickle.loads", raw(b"\x80\x02" + call("os.system", s(DO)) + b".")), "_pickle.loads"),
    "nested_torch": (call("torch.storage._load_from_bytes", raw(HOSTILE_LEGACY)), "os.system"),
    "numpy_reduce": (
        call("numpy.testing._private.utils.runstring", s("open('canary', 'w')"), b"}"),
        "numpy.testing._private.utils.runstring",
    ),
    "numpy_dtype": (call("numpy.dtype", call("os.system", s(DO))), "os.system"),
    "timeit": (call("timeit.timeit", s("open('canary', 'w')"), s("pass"), g("timeit.default_timer"), i(1)), "timeit.timeit"),
    "method": (dotted("pathlib", "Path.touch") + t(call("pathlib.Path", s("canary"))) + b"R", "pathlib.Path.touch"),
    "setstate": (
        call("types.SimpleNamespace") + dct(s("__setstate__"), g("os.system")) + b"b" + s(DO) + b"b",
        "types.SimpleNamespace",
    ),
    "inst": (b"(S'touch canary'\nios\nsystem\n", "os.system"),
    "obj": (b"(" + g("os.system") + s(DO) + b"o", "os.system"),
    "newobj_function": (
        call("copyreg.__newobj_ex__", g("subprocess.Popen"), t(), b"}") + b"0" + call("os.system", s(DO)),
        "subprocess.Popen",
    ),
    "tensor_subclass": (
        call("torch._tensor._rebuild_from_type_v2", g("os.system"), g("torch.Tensor"), t(s(DO)), b"}"),
        "os.system",
    ),
    "appended_to": (call("os.system", s(DO)) + b"0" + call("collections.deque") + b"(K\x01K\x02e", "collections.deque"),
    "popped_again": (call("os.system", s(DO)) + b"0N", "os.system"),
    "key": (b"}" + call("os.system", s(DO)) + b"K\x01s", "os.system"),
    "tuple_key": (b"}" + t(call("os.system", s(DO)), i(1)) + b"K\x01s", "os.system"),
    "in_a_set": (b"\x8f(" + call("os.system", s(DO)) + b"\x90", "os.system"),
    "default_factory": (call("collections.defaultdict", g("os.system")) + b"0" + call("os.system", s(DO)), "os.system"),
}
# payload → globals that must be listed; they run nothing even in pickle, but trip a careless reader
ODD: dict[str, tuple[bytes, str | None]] = {
    "extension": (b"\x82\x05", "copyreg.extension 5"),
    "extension_4": (b"\x84\xff\xff\xff\x7f", "copyreg.extension 2147483647"),
    "bytearray_of_a_size": (call("builtins.bytearray", i(10**12)), "builtins.bytearray"),
    "legacy_constructor": (call("torch.FloatTensor", i(10**12)), "torch.FloatTensor"),
    "numpy_zeros": (call("numpy.zeros", i(10**12)), "numpy.zeros"),
    "decompression": (call("_codecs.decode", raw(zlib.compress(bytes(1 << 20))), s("zlib")), "_codecs.decode"),
    "codec": (call("_codecs.encode", s("x" * 9), s("zlib")), "_codecs.encode"),
    "quantised_storage": (tensor(pid(cls=g("torch.QInt8Storage"), key=s("9"))), "torch.QInt8Storage"),
    "storage_of_os_system": (pid(cls=g("os.system"), key=s("9")), "os.system"),
    "module_of_os_system": (t(s("module"), g("os.system"), s("a.py"), s("source")) + b"Q", "os.system"),
    "hooks": (call("torch._utils._rebuild_tensor_v2", pid(), i(0), t(), t(), b"\x89", dct(s("a"), g("os.system"))), "os.system"),
    "negative_bit": (
        call("torch._utils._rebuild_tensor_v2", pid(), i(0), t(), t(), b"\x89", b"}", dct(s("neg"), b"\x88")),
        "torch._utils._rebuild_tensor_v2",
    ),
    "state_of_a_dict": (call("collections.OrderedDict") + dct(s("__class__"), g("os.system")) + b"b", "os.system"),
    "class_key": (b"}" + g("torch.FloatStorage") + b"K\x01s", None),
    "stub_circle": (call("a.B") + b"q\x05" + dct(s("self"), b"h\x05") + b"b", "a.B"),
    "huge_memo_index": (b"Nr\xff\xff\xff\xff", None),
    "huge_memo_text": (b"Np" + b"9" * 500 + b"\n", None),
    "terminal_codes": (g("evil\x1b[2J\x07.B") + b")R", "evil\\x1b[2J\\x07.B"),
}


def _laughs(depth: int) -> bytes:
    return b"]q\x000" + b"".join(b"](h%ch%ceq%c0" % (n, n, n + 1) for n in range(depth)) + b"h%c" % depth


def _bomb(dims: tuple[int, ...], stride: tuple[int, ...], **more: bytes) -> bytes:
    return tensor(pid(), size=t(*map(i, dims)), stride=t(*map(i, stride)), **more)


OUTSIDE, CANNOT = "some of it lies outside", "which cannot be"
# payloads that must be refused with these words
REFUSED: dict[str, tuple[bytes, str]] = {
    "billion_laughs": (_laughs(60), "unfolds to more than"),
    "billion_laughs_of_tensors": (tensor(pid()) + b"q\xfa0](" + b"h\xfa" * 1200 + b"e", "holds 1,201 tensors"),
    "deep_tuples": (b")" + b"\x85" * 9_000, "nests containers more than"),
    "deep_lists": (b"]" * 9_000 + b"a" * 8_999, "nests containers more than"),
    "deep_tuple_as_key": (b"})" + b"\x85" * 9_000 + b"K\x01s", "damaged pickle"),
    "list_in_itself": (b"]q\x05h\x05a", "contains itself"),
    "list_as_key": (b"}]K\x01s", "damaged pickle"),
    "colliding_keys": (b"}(" + b"".join(i(n * (2**61 - 1)) + b"N" for n in range(1, 50)) + b"u", "damaged pickle"),
    "long_number": (b"\x8b\xff\xff\xff\x7f" + b"1" * 50, "whole number of 2,147,483,647 bytes"),
    "long_digits": (b"I" + b"7" * 100_000 + b"\n", "damaged pickle"),
    "long_text": (b"\x8d" + struct.pack("<Q", 1 << 60) + b"x", "more than|declares a value"),
    "long_bytes": (b"\x8e" + struct.pack("<Q", 1 << 62) + b"x", "more than|declares a value"),
    "negative_length": (b"\x8b\xff\xff\xff\xff", "truncated"),
    "many_lists": (b"(" + b"]" * 300_000 + b"l", "pickles more than"),
    "many_marks": (b"(" * 600_000, "pickles more than"),
    "quadratic_copies": (
        lst(*[b"N"] * 5000) + b"q\x050(" + (g("builtins.list") + b"h\x05\x85R") * 3000 + b"l",
        "pickles more than",
    ),
    "no_opcode": (b"\xfe", "is 0xfe, no opcode"),
    "pickle_of_the_future": (b"\x80\x4d", "version 77"),
    "empty_stack": (b"0000", "damaged pickle"),
    "unknown_memo": (b"h\x77", "damaged pickle"),
    "out_of_band": (b"\x97", "outside of the file"),
    "text_id": (b"P0\n", "unknown persistent id"),
    "id_of_another_kind": (pid(kind="file"), "unknown persistent id"),
    "id_of_text": (s("storage") + b"Q", "unknown persistent id"),
    "id_of_a_list_key": (pid(key=b"]"), "id that is damaged"),
    "called_text": (s("os.system") + b")R", "damaged pickle"),
    "storage_negative": (pid(key=s("1"), numel=-1), CANNOT),
    "storage_two_sizes": (pid(numel=5), "declares 20 and 24 bytes"),
    "storage_too_small": (_bomb((2, 4), (4, 1)), OUTSIDE),
    "offset_outside": (tensor(pid(), offset=i(1)), OUTSIDE),
    "offset_negative": (tensor(pid(), offset=i(-1)), CANNOT),
    "size_negative": (_bomb((-2, 3), (3, 1)), CANNOT),
    "stride_negative": (_bomb((2, 3), (-3, 1)), CANNOT),
    "stride_outside": (_bomb((2, 3), (4, 1)), OUTSIDE),
    "size_overflows": (_bomb((2**40, 2**40), (0, 0)), CANNOT),
    "size_of_a_fraction": (tensor(pid(), size=t(b"G" + bytes(8), i(3))), CANNOT),
    "strides_missing": (_bomb((2, 3), (3,)), "2 sizes and 1 strides"),
    "dimensions": (_bomb((1,) * 1000, (1,) * 1000), "1000 sizes"),
    "expanded": (_bomb((2**30,), (0,)), "by repeating them"),
    "tensor_of_text": (tensor(s("storage")), "damaged pickle"),
}


def stored(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _f32(shape: list[int], *span: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(span)}


def _renamed(old: bytes, new: bytes) -> bytes:
    return around(beside(b"N")).replace(old, new)


def _twice() -> bytes:
    data = zipped([("m/data.pkl", beside(b"N")), ("m/data/1", RAW), ("m/data/0", RAW)])
    return data.replace(b"m/data/1", b"m/data/0")


def _overlapping() -> bytes:
    """The last entry of the directory points to the first record again, under its own name."""
    data = zipped([("m/aaaaaaaa", RAW), ("m/data.pkl", beside(b"N")), ("m/data/0", RAW)])
    return data[: data.rindex(b"PK\x01\x02") + 42] + struct.pack("<I", 0) + data[data.rindex(b"PK\x01\x02") + 46 :]


ZIP, LEGACY = around(beside(b"K\x07")), stream(beside(b"K\x07", tail=b"N"))
SAFE = save({"w": WEIGHTS, "b": torch.ones(3, dtype=torch.bfloat16)}, {"made": "by hand"})
NOT_FINITE = {"nan": torch.tensor([1.0, torch.nan]), "inf": torch.tensor([[1.0, -torch.inf]]).half(), "ok": torch.ones(2)}


def saved(content: object, *, legacy: bool = False, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return out.getvalue()


# whole files that must be refused with these words
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "html": (b"\n <!DOCTYPE html><html>Quota exceeded</html>", "HTML page"),
    "git_lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS"),
    "text": (b"hello world, I am no model", "unknown kind .text that begins"),
    "noise": (bytes(range(130, 250)), "unknown kind .0x8283"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(99), "NumPy array"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "gzip"),
    "tar": (bytes(257) + b"ustar\x0000" + bytes(248), "tar archive"),
    "onnx": (b"\x08\x07\x12\x07pytorch" + bytes(50), "TensorFlow or ONNX"),
    "tensorflow_index": (bytes(100) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "TensorFlow or ONNX"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(50), "TensorFlow Lite"),
    "npz": (zipped([("a.npy", b"\x93NUMPY")]), "NumPy archive"),
    "plain_zip": (zipped([("model/weights.pt", ZIP)]), "zip archive without a pickle"),
    "torchscript": (zipped([("m/data.pkl", b"."), ("m/code/__torch__.py", b""), ("m/constants.pkl", b".")]), "TorchScript"),
    "two_pickles": (zipped([("m/data.pkl", ZIP), ("n/data.pkl", ZIP)]), "without a pickle"),
    "traversal": (_renamed(b"m/data/0", b"../../.x"), "would leave its folder"),
    "absolute_name": (_renamed(b"m/version", b"/etc/pass"), "would leave its folder"),
    "backslash_name": (_renamed(b"m/version", b"m\\..\\..\\x"), "would leave its folder"),
    "duplicate_name": (_twice(), "names m/data/0 twice"),
    "overlapping_records": (_overlapping(), "damaged zip archive"),
    "two_archives": (ZIP + zipped([("m/data.pkl", beside(b"N")), ("m/data/0", RAW)]), "directory is not where it says"),
    "zip_comment": (ZIP[:-2] + b"\x04\x00evil", "directory that ends a zip archive is missing"),
    "names_differ": (ZIP.replace(b"m/data/0", b"m/data/1", 1), "differs from the directory"),
    "encrypted": (ZIP.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"), "encrypted"),
    "zip_bomb": (
        zipped([("m/data.pkl", beside(b"N")), ("m/data/0", bytes(1 << 25))], zipfile.ZIP_DEFLATED),
        "that becomes 33,55",
    ),
    "pickle_bomb": (zipped([("m/data.pkl", b"\x80\x02(" + b"]" * (1 << 25))], zipfile.ZIP_DEFLATED), "that becomes"),
    "record_too_small": (around(beside(b"N"), RAW[:-4]), "declares 24 bytes, the archive holds 20"),
    "record_of_10_gb": (around(beside(b"N", numel=10 * 2**28)), "declares more than 67,108,864"),
    "record_missing": (around(beside(b"N", key=s("7"))), "storage 7 is missing"),
    "record_outside": (around(beside(b"N", key=s("../../../etc/passwd"))), "is missing from the archive"),
    "wrong_checksum": (ZIP.replace(RAW, RAW[:-1] + b"\x01"), "checksum"),
    "big_endian": (_renamed(b"little", b"biggie"), "big-endian|damaged|checksum"),
    "legacy_big_endian": (stream(beside(b"N", tail=b"N"), little=False), "big-endian"),
    "legacy_10_gb": (stream(beside(b"N", tail=b"N", numel=10 * 2**28), numel=10 * 2**28), "declares more than 67,108,864"),
    "legacy_60_mb": (
        stream(beside(b"N", tail=b"N", numel=15 << 20), numel=15 << 20),
        r"is truncated: it holds \d+ bytes and declares",
    ),
    "legacy_two_sizes": (stream(beside(b"N", tail=b"N"), numel=7), "declares 24 bytes, and 28 where"),
    "legacy_no_keys": (stream(beside(b"N", tail=b"N"), keys=()), "use 1 storages, and it lists 0"),
    "legacy_view_outside": (stream(beside(b"N", tail=t(s("v"), i(4), i(6)))), "declares 6 elements from 4 on"),
    "legacy_version": (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(77, 2), "version 77"),
    "bare_with_storages": (beside(b"N"), "points to data outside"),
    "cut_pickle": (b"\x80\x02}q\x00(", "truncated"),
    "st_header_of_10_gb": (stored({"w": _f32([2], 0, 8)}, bytes(8), 10 * 2**30), "header declares 10,737,418,240 bytes"),
    "st_no_json": (stored(b"{'w': 1}"), "no JSON"),
    "st_deep_json": (stored(b'{"a":' + b"[" * 3_999), "no JSON"),
    "st_two_names": (
        stored(
            b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', RAW
        ),
        "unique",
    ),
    "st_unknown_type": (stored({"w": _f32([2], 0, 8, dtype="F31")}, bytes(8)), "holds w as F31"),
    "st_negative": (stored({"w": _f32([2], -8, 0)}, bytes(8)), "sizes of w cannot be"),
    "st_shape": (stored({"w": _f32([3], 0, 8)}, bytes(8)), "does not fit its bytes"),
    "st_overlap": (stored({"w": _f32([2], 0, 8), "v": _f32([2], 4, 12)}, bytes(12)), "damaged safetensors"),
    "st_hole": (stored({"w": _f32([2], 0, 8), "v": _f32([2], 12, 20)}, bytes(20)), "damaged safetensors"),
    "st_short": (stored({"w": _f32([2, 2], 0, 16)}, bytes(8)), r"is truncated: it holds \d+ bytes and declares"),
    "st_entry": (stored({"w": [1, 2]}, bytes(8)), "entry of w is no tensor"),
    "st_metadata": (stored({"__metadata__": {"a": 1}, "w": _f32([2], 0, 8)}, bytes(8)), "metadata"),
    "st_too_many": (stored({f"w{n}": _f32([0], 0, 0) for n in range(1001)}), "holds 1,001 tensors"),
    "st_long_header": (stored(b"{" + b" " * (1 << 21) + b"}"), "at most 1,048,576"),
    "st_not_finite": (save(NOT_FINITE), "not finite: "),
    "zip_not_finite": (saved({"state_dict": NOT_FINITE}), "not finite: state_dict/nan, state_dict/inf"),
    "legacy_not_finite": (saved(NOT_FINITE, legacy=True), "not finite: nan, inf"),
    "fp8_not_finite": (saved({"w": torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn)}), "not finite: w"),
    "complex_not_finite": (saved({"w": torch.tensor([1.0, complex(0, torch.inf)])}), "not finite: w"),
}


def corpus() -> dict[str, tuple[bytes, str | None, str | None]]:
    """All hostile files by name: bytes, words of the refusal (None: it is read), the global that is listed."""
    files: dict[str, tuple[bytes, str | None, str | None]] = {}
    for kind, wrap in CONTAINERS.items():
        for name, (payload, listed) in (RUNS | ODD).items():
            if kind != "bare" or b"Q" not in payload:
                files[f"{kind}_{name}"] = wrap(payload), None, listed
        for name, (payload, words) in REFUSED.items():
            if kind != "bare" or b"storage" not in payload:
                files[f"{kind}_{name}"] = wrap(payload), words, None
    files |= {name: (data, words, None) for name, (data, words) in BROKEN.items()}
    for kind, whole in {"zip": saved({"w": WEIGHTS}), "legacy": LEGACY, "safetensors": SAFE}.items():
        for tenth in range(1, 10):
            files[f"{kind}_cut_{tenth}"] = whole[: len(whole) * tenth // 10], "truncated|empty|damaged|unknown kind", None
    return files
