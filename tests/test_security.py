"""Files nobody should trust: nothing in them runs, none of them crashes the reader or fills the memory, and each says why."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from interp.errors import InputError
from interp.loading.inert import Limits, Stub
from interp.loading.read import Contents, read
from tests import bombs, hostile
from tests.hostile import WEIGHTS, beside, call, dct, g, i, pid, raw, s, saved, stream, t, tensor, torch_zip
from tests.mutate import small_states

ROOT = Path(__file__).parents[1]
FILES = hostile.corpus() | bombs.corpus()
DIGEST = hashlib.sha256(hostile.RAW).hexdigest()
ENOUGH = 400 << 20  # bytes that reading the corpus may add to the peak; each limit of the child is 64 MB
SPARE, SLACK = 8 << 20, 16 << 20  # the child's limit beside 20 times the file, and what Python keeps for itself


def child(folder: Path, *more: int, timeout: float = 300) -> dict[str, Any]:
    """What `reads_files` found in a folder."""
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.reads_files", str(folder), *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, env=here, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def write_good(folder: Path) -> None:
    for name, data in {
        "good.pt": saved({"w": WEIGHTS}),
        "good_legacy.pt": hostile.LEGACY,
        "good.safetensors": hostile.SAFE,
    }.items():
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hostile")
    write_good(folder)
    for name, (data, _, _) in FILES.items():
        (folder / name).write_bytes(data)
    return child(folder)


def test_the_corpus_is_large_enough() -> None:
    assert len(FILES) >= 250 and len(hostile.RUNS) >= 30 and len(hostile.REFUSED) + len(hostile.BROKEN) >= 90


def test_nothing_ran_and_memory_stayed(found: dict[str, Any]) -> None:
    assert not found["canary"]
    assert not {name: one["events"] for name, one in found["files"].items() if one["events"]}
    assert found["grown"] < ENOUGH
    assert max(one["seconds"] for one in found["files"].values()) < 20
    over = {n: one["grown"] for n, one in found["files"].items() if one["grown"] > 20 * one["size"] + SPARE + SLACK}
    assert not over


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_or_read_without_what_it_calls(name: str, found: dict[str, Any]) -> None:
    one, (_, words, listed) = found["files"][name], FILES[name]
    if words is not None:
        assert one["error"] is not None, one
        assert "\n" not in one["error"] and "Traceback" not in one["error"] and "; " in one["error"]
        with pytest.raises(InputError, match=words):
            raise InputError(one["error"])
    else:
        assert one["error"] is None, one["error"]
        assert one["w"] == DIGEST and (one["reader"] == "inert" or not listed)
        assert listed in one["refused"] if listed else not one["refused"]


def test_the_hostile_payloads_are_hostile(tmp_path: Path) -> None:
    """Python's own pickle does run each of them, so that the test above can fail."""
    for name, (payload, _) in hostile.RUNS.items():
        (tmp_path / name).write_bytes((b"\x80\x04" if b"\x93" in payload else b"\x80\x02") + payload + b".")
    code = (
        "import os, pickle, sys, pathlib, types, timeit, numpy, torch\n"
        "for p in sorted(pathlib.Path('.').iterdir()):\n"
        "    try: pickle.loads(p.read_bytes())\n"
        "    except Exception: pass\n"
        "    ran = os.path.exists('canary')\n"
        "    print(p.name, ran)\n"
        "    ran and os.remove('canary')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    ran = dict(line.split() for line in done.stdout.splitlines())
    assert ran == dict.fromkeys(hostile.RUNS, "True")


def test_the_watcher_sees_what_runs(found: dict[str, Any]) -> None:
    assert {"os.system", "exec", "open", "pickle.find_class"} <= set(found["seen"])


def test_missing_files_folders_and_devices(tmp_path: Path) -> None:
    for path, words in {
        tmp_path / "no.pt": "there is no file",
        tmp_path: "is a folder",
        Path("/dev/zero"): "device or a pipe",
        tmp_path / "a\0b": "there is no file",
    }.items():
        with pytest.raises(InputError, match=words):
            read(path)


def test_flipped_bits_never_crash(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    path = tmp_path / "x"
    for whole in (saved({"w": WEIGHTS, "n": 3}), hostile.LEGACY, hostile.SAFE):
        intact = refused = 0
        for _ in range(150):
            data = bytearray(whole)
            data[draw.integers(len(data))] ^= 1 << int(draw.integers(8))
            path.write_bytes(data)
            try:
                intact += isinstance(read(path), Contents)
            except InputError:
                refused += 1
        assert intact + refused == 150 and refused > 10


def test_flipped_weights_of_a_zip_are_noticed(tmp_path: Path) -> None:
    path, whole = tmp_path / "x.pt", saved({"w": WEIGHTS})
    at = whole.index(hostile.RAW)
    for bit in range(0, len(hostile.RAW) * 8, 7):
        data = bytearray(whole)
        data[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(InputError, match="checksum"):
            read(path)


def test_limits_are_what_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(1000), "b": torch.ones(1000)}, path)
    assert read(path, limits=Limits(max_bytes=path.stat().st_size)).root["a"].sum() == 1000
    with pytest.raises(InputError, match=r"holds [\d,]+ bytes; at most"):
        read(path, limits=Limits(max_bytes=path.stat().st_size - 1))
    with pytest.raises(InputError, match="holds 2 tensors; at most 1"):
        read(path, limits=Limits(max_tensors=1))
    with pytest.raises(InputError, match="pickles more than 500 bytes"):
        read(path, limits=Limits(max_objects=500))


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64, torch.complex128),
]


def all_kinds() -> dict[str, Tensor]:
    """Tensors of all types, empty, scalar, transposed, sliced, tied and channels-last ones."""
    torch.manual_seed(0)
    kinds = {str(d): (torch.randn(3, 5) * 40).to(d) for d in DTYPES}
    base = torch.randn(4, 6, 5, 3)
    views = {"t": base.permute(3, 0, 2, 1), "part": base[1:3, :, 2], "tied": base, "tied_too": base, "step": base[:, ::2]}
    odd = {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 7), "last": base.contiguous(memory_format=torch.channels_last)}
    return kinds | views | odd | {"parameter": nn.Parameter(torch.randn(3)), "expanded": torch.ones(1, 1).expand(8, 9)}


def same(found: Any, wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        other = found[name]
        assert type(other) is Tensor and other.dtype == value.dtype and other.shape == value.shape and not other.requires_grad
        assert other.contiguous().view(-1).view(torch.uint8).equal(value.detach().contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_is_read_bit_for_bit(protocol: int, legacy: bool, tmp_path: Path) -> None:
    wanted, path = all_kinds(), tmp_path / "m.pth.tar"
    extras = {"epoch": 3, "size": torch.Size([1, 2]), "where": torch.device("cuda", 1), "type": torch.float16, "none": None}
    path.write_bytes(saved(extras | {"state_dict": wanted}, legacy=legacy, protocol=protocol))
    contents = read(path)
    assert contents.container == ("torch legacy" if legacy else "torch zip") and contents.refused == ()
    assert contents.reader == ("weights_only" if protocol < 4 and not legacy else "inert")
    same(contents.root["state_dict"], wanted)
    rest = {k: v for k, v in contents.root.items() if k != "state_dict"}
    assert rest == {"epoch": 3, "size": (1, 2), "where": "cuda:1", "type": torch.float16, "none": None}
    assert contents.root["state_dict"]["tied"].data_ptr() == contents.root["state_dict"]["tied_too"].data_ptr()
    assert any("share a part of the bytes" in w for w in contents.warnings)
    assert contents.size == path.stat().st_size and contents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_of_a_state_dict_is_read(protocol: int, tmp_path: Path) -> None:
    wanted = {k: v for k, v in all_kinds().items() if k not in ("tied_too", "parameter")}
    path = tmp_path / "m.bin"
    path.write_bytes(pickle.dumps(OrderedDict(wanted), protocol))
    contents = read(path)
    assert contents.container == "pickle" and contents.reader == "inert" and contents.refused == ()
    same(contents.root, wanted)


def test_types_without_a_storage_of_their_own(tmp_path: Path) -> None:
    wanted = {
        str(d): torch.arange(6).to(d) for d in (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)
    }
    (tmp_path / "x").write_bytes(saved(wanted))
    same(read(tmp_path / "x").root, wanted)


def test_safetensors_under_another_name(tmp_path: Path) -> None:
    wanted = {k: v.detach().contiguous().clone() for k, v in all_kinds().items() if not v.is_complex()}
    save_file(wanted, tmp_path / "m.pth", {"made": "by hand", "epoch": "3"})
    contents = read(tmp_path / "m.pth")
    same(dict(sorted(contents.root.items())), dict(sorted(wanted.items())))
    assert contents.container == contents.reader == "safetensors" and contents.metadata == {"made": "by hand", "epoch": "3"}


class Recipe:
    """A class that the reader must not know."""

    def __init__(self) -> None:
        self.eps, self.layers = 4 / 255, [1, 2]


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_programs_put_beside_the_weights(legacy: bool, tmp_path: Path) -> None:
    content = {
        "args": Namespace(model="xcit_small_12_p16_224", mean=(0.5, 0.5, 0.5), opt=None),
        "recipe": Recipe(),
        "best_acc": np.float64(41.78),
        "steps": np.int64(9),
        "ok": np.bool_(True),
        "losses": np.arange(6.0).reshape(2, 3).T,
        "big_endian": np.arange(4, dtype=">f4"),
        "counts": Counter("aab"),
        "by_key": defaultdict(list, {1: [2]}),
        "path": Path("/data"),
        "names": {"a", "b"},
        "cut": slice(1, 2),
        "raw": b"\x00\xff",
        "state_dict": {"w": WEIGHTS},
    }
    (tmp_path / "x.pth.tar").write_bytes(saved(content, legacy=legacy))
    contents = read(tmp_path / "x.pth.tar")
    root = contents.root
    assert isinstance(root["args"], Stub) and root["args"].name == "argparse.Namespace"
    assert root["args"].state == {"model": "xcit_small_12_p16_224", "mean": (0.5, 0.5, 0.5), "opt": None}
    assert root["recipe"].state == {"eps": 4 / 255, "layers": [1, 2]} and root["recipe"].name.endswith("test_security.Recipe")
    assert (root["best_acc"], root["steps"], root["ok"]) == (41.78, 9, True) and type(root["best_acc"]) is float
    assert torch.equal(root["losses"], torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T)
    assert torch.equal(root["big_endian"], torch.arange(4.0))
    assert root["counts"] == {"a": 2, "b": 1} and root["by_key"] == {1: [2]} and root["names"] == {"a", "b"}
    assert root["path"].args == ("/", "data") and root["cut"].args == (1, 2, None) and root["raw"] == b"\x00\xff"
    same(root["state_dict"], {"w": WEIGHTS})
    assert {"argparse.Namespace", "builtins.slice"} < set(contents.refused) and contents.reader == "inert"


def test_a_whole_pickled_module_gives_its_weights_in_stubs(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm2d(2))
    (tmp_path / "x.pt").write_bytes(saved(net))
    contents = read(tmp_path / "x.pt")
    linear = contents.root.state["_modules"]["0"]
    assert linear.name == "torch.nn.modules.linear.Linear" and torch.equal(linear.state["_parameters"]["weight"], net[0].weight)
    assert "torch.nn.modules.container.Sequential" in contents.refused


def dill_like(tail: bytes) -> bytes:
    """What dill writes for {'w', 'x': an object of a class of the main program}: class, function and code as calls."""
    kind = call("dill._dill._load_type", s("type"))
    code = call("dill._dill._create_code", call("_codecs.encode", s("\x00d\x01"), s("latin1")), b"N")
    function = call("dill._dill._create_function", code, g("__main__.__dict__"), s("f"), b"N", b"N")
    cls = call("dill._dill._create_type", kind, s("Schedule"), t(g("builtins.object")), dct(s("f"), function))
    return beside(cls + b")\x81" + dct(s("params"), dct(s("eps"), b"G" + struct.pack(">d", 3.0))) + b"b", tail=tail)


def test_dill_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(stream(dill_like(b"N")))
    (tmp_path / "y.pt").write_bytes(hostile.around(dill_like(b"")))
    for name in ("x.pt", "y.pt"):
        contents = read(tmp_path / name)
        same({"w": contents.root["w"]}, {"w": WEIGHTS})
        assert contents.root["x"].state == {"params": {"eps": 3.0}} and contents.root["x"].name == "dill._dill._create_type()"
        assert "dill._dill._create_function" in contents.refused and "__main__.__dict__" in contents.refused


def test_old_files_with_views_of_one_large_storage(tmp_path: Path) -> None:
    """Until torch 0.4 a storage could be a part of another, and `_rebuild_tensor` had four arguments."""
    part = tensor(pid(tail=t(s("v1"), i(2), i(4))), size=t(i(2), i(2)), stride=t(i(2), i(1))).replace(b"_tensor_v2", b"_tensor")
    part = part[: part.rindex(b"\x89")] + b"tR"
    bound = call("torch._utils._rebuild_parameter", tensor(pid(tail=b"N")), b"\x88", call("collections.OrderedDict"))
    python2 = b"U\x01a" + b"U\x02\xe4b"  # Python 2's strings
    content = b"\x80\x02" + dct(s("part"), part, s("whole"), bound, python2) + b"."
    (tmp_path / "x").write_bytes(stream(content))
    contents = read(tmp_path / "x")
    same({"whole": contents.root["whole"]}, {"whole": WEIGHTS})
    assert torch.equal(contents.root["part"], WEIGHTS.flatten()[2:].reshape(2, 2)) and contents.root["a"] == "äb"
    assert any("share a part" in w for w in contents.warnings)


def test_stubs_are_inert_records(tmp_path: Path) -> None:
    stub = call("a.B", i(1)) + dct(s("k"), b"\x88") + b"b" + b"(K\x01K\x02e" + b"K\x05K\x06s"
    payload = b"}" + stub + b"K\x09s"
    (tmp_path / "x").write_bytes(torch_zip(payload))
    ((key, value),) = read(tmp_path / "x").root["x"].items()
    assert value == 9 and key.name == "a.B" and key.args == (1,) and key.state == {"k": True}
    assert key.items == [1, 2] and key.mapping == {5: 6} and repr(key) == "<not called: a.B>" and hash(key) == hash(key)


def test_training_state_may_be_infinite_weights_may_not(tmp_path: Path) -> None:
    best = torch.tensor(torch.inf)
    content = {"state_dict": {"w": WEIGHTS}, "best": best, "optimizer": {"state": {0: {"avg": torch.tensor([torch.nan])}}}}
    (tmp_path / "x").write_bytes(saved(content))
    assert read(tmp_path / "x").warnings == ("2 values of the training state are not finite (best, optimizer/state/0/avg)",)
    (tmp_path / "y").write_bytes(saved({"temperature": best, "w": WEIGHTS}))
    with pytest.raises(InputError, match="not finite: temperature"):
        read(tmp_path / "y")


def test_whole_numbers_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(saved({"w": torch.tensor([2**62, -1])}))
    same(read(tmp_path / "x").root, {"w": torch.tensor([2**62, -1])})


def test_nothing_needs_the_name(tmp_path: Path) -> None:
    for name in ("a.th", "b.txt", "c", "d.safetensors"):
        (tmp_path / name).write_bytes(saved({"w": WEIGHTS}))
        same(read(tmp_path / name).root, {"w": WEIGHTS})


def test_bytes_after_the_end_are_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(hostile.LEGACY + b"12345")
    assert read(tmp_path / "x").warnings == ("5 bytes after the last storage were not read",)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_takes_is_far_below_the_limits(legacy: bool, tmp_path: Path) -> None:
    net = nn.Sequential(*[nn.Linear(300, 300) for _ in range(6)])
    optimizer = torch.optim.AdamW(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    history = [{"epoch": n, "loss": n / 7, "top1": n / 3} for n in range(300)]
    content = {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    (tmp_path / "x").write_bytes(saved(content, legacy=legacy))
    assert read(tmp_path / "x", limits=Limits(spare=0, max_ratio=2)).root["history"] == history
    many = {f"layers.{n}.weight": torch.ones(1) for n in range(5000)}
    (tmp_path / "x").write_bytes(saved(many, legacy=legacy))
    same(read(tmp_path / "x", limits=Limits(spare=32 << 20)).root, many)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [20240229])
def test_twelve_thousand_mutations_are_refused_or_read_unwrapped_and_detected(seed: int, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write_good(folder)
    makers: dict[str, Callable[[], bytes]] = {
        "kinds.pt": lambda: saved({"state_dict": all_kinds(), "epoch": 3}),
        "kinds_legacy.pt": lambda: saved({"state_dict": all_kinds(), "epoch": 3}, legacy=True),
        "kinds_5.pt": lambda: saved({"w": WEIGHTS, "acc": np.float64(3), "a": Namespace(b=1), "arr": np.arange(3.0)}, protocol=5),
        "bare.bin": lambda: pickle.dumps({"w": WEIGHTS, "s": {1, 2}}, 4),
        "dill.pt": lambda: stream(dill_like(b"N")),
        "dill_zip.pt": lambda: hostile.around(dill_like(b"")),
        "view.pt": lambda: stream(beside(raw(b"12"), tail=t(s("v"), i(0), i(6)))),
        "runs.pt": lambda: torch_zip(hostile.RUNS["setstate"][0]),
    }
    for name, state in small_states().items():
        safe = name.endswith("safetensors")
        wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
        (folder / name).write_bytes(hostile.save(state, {"architecture": name}) if safe else saved(wrapped))
    for name, make in makers.items():
        (folder / name).write_bytes(make())
    found = child(folder, 12_000, seed, timeout=550)
    assert not found["canary"] and found["files"]["problems"] == []
    counts = found["files"]["counts"]
    assert sum(counts.values()) == 12_000 and counts["no state dict"] > 100
    assert all(counts[f"unwrapped, {reader}"] > 20 for reader in ("weights_only", "inert", "safetensors"))
    assert sum(n for stage, n in counts.items() if stage.startswith("detected")) > 100
    assert found["grown"] < ENOUGH
