"""Fetching from a real server on this machine: whole, broken, changed, refused, disguised; and what then lies in the folder."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from timm.models import save_for_hf

import interp
from interp.cli import main
from interp.models import catalogue as module
from interp.models.build import build
from interp.models.catalogue import Entry, catalogue
from interp.models.fetch import fetch, fetch_entry, fetch_folder, on_disk, place
from interp.models.hub import from_hub
from interp.models.inspect import inspect
from interp.models.model import Model
from interp.types import Card, InputError, Preprocess

BODY = bytes(range(256)) * 4096  # 1 MiB, no text
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """A host that answers by the first word of the path; each request is noted as (method, path, Range, status)."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, *, body: bool) -> None:
        server: Host = self.server  # type: ignore[assignment]
        word = self.path.strip("/").split("/")[0]
        if word in ("forbidden", "missing"):
            return self.say(403 if word == "forbidden" else 404, b"no")
        if word == "elsewhere":
            return self.say(302, b"", Location="http://example.org/whole/a.pt")
        if word == "moved":
            return self.say(302, b"", Location="/whole/a.pt")
        if word == "page":
            return self.say(
                200, b"<!DOCTYPE html><title>Virus scan warning</title>", **{"Content-Type": "text/html; charset=utf-8"}
            )
        if word == "disguised":
            return self.say(200, b"\n <html>too many downloads</html>")
        if word == "empty":
            return self.say(200, b"")
        return self.serve(word, server, body)

    def serve(self, word: str, server: Host, body: bool) -> None:
        data = server.files.get(self.path, BODY)
        tag = f'"{hashlib.sha256(data).hexdigest()[:8]}"'
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked and (word == "plain" or self.headers.get("If-Range", tag) != tag):
            asked, start = None, 0
        if start >= len(data) and asked:
            return self.say(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
        rest = data[start:]
        stop = len(rest)
        if word == "breaks" and not asked:
            stop //= 2
        if word == "crawls":  # a quarter of the file in each connection, and never the last bytes
            stop = min(stop - 1, len(data) // 4)
        self.note(206 if asked else 200)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(rest)))
        if word != "untagged":
            self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", 40 * "a")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(rest[:stop])
        if stop < len(rest):
            self.close_connection = True
        return None

    def say(self, status: int, data: bytes, **headers: str) -> None:
        self.note(status)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def note(self, status: int) -> None:
        self.server.seen.append((self.command, self.path, self.headers.get("Range"), status))  # type: ignore[attr-defined]


class Host(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str, str | None, int]] = []
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


CARD = Card("zoo:a/B_1.5", "resnet18_32", 10, Preprocess(32, 32), sha256=SHA[:8], training="standard")


def entry(host: Host, word: str, **fields: object) -> Entry:
    made = Entry(CARD, f"{host.url}/{word}/a.pt", "a.pt", "cifar10", size=len(BODY))
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("word", ["whole", "moved", "breaks", "untagged"])
def test_a_file_arrives_whole_with_its_card_and_only_once(word: str, host: Host, tmp_path: Path) -> None:
    wanted = entry(host, word)
    assert on_disk(wanted, tmp_path) is None
    path = fetch_entry(wanted, folder=tmp_path, progress=False)
    assert path == tmp_path / "zoo_a_B_1_5.pt" == on_disk(wanted, tmp_path) and path.read_bytes() == BODY
    assert names(tmp_path) == ["zoo_a_B_1_5.pt", "zoo_a_B_1_5.toml"]
    card = Card.read(tmp_path / "zoo_a_B_1_5.toml")
    assert card == dataclasses.replace(CARD, weights=path.name, sha256=SHA, origin=f"zoo, {wanted.url}")
    seen = len(host.seen)
    assert fetch_entry(wanted, folder=tmp_path, progress=False) == path and len(host.seen) == seen


def test_a_connection_that_breaks_is_taken_up_where_it_broke(host: Host, tmp_path: Path) -> None:
    fetch_entry(entry(host, "breaks"), folder=tmp_path, progress=False)
    half = len(BODY) // 2
    assert [(asked, status) for _, _, asked, status in host.seen] == [(None, 200), (f"bytes={half}-", 206)]


def test_a_later_run_goes_on_from_what_an_earlier_one_kept(host: Host, tmp_path: Path) -> None:
    wanted = entry(host, "crawls")
    with pytest.raises(
        InputError, match=r"the connection broke\); 1,048,57\d bytes are kept, the same command goes on from there"
    ):
        fetch_entry(wanted, folder=tmp_path, progress=False)
    assert names(tmp_path) == ["zoo_a_B_1_5.pt.part", "zoo_a_B_1_5.pt.part.tag"]
    kept = (tmp_path / "zoo_a_B_1_5.pt.part").stat().st_size
    path = fetch_entry(dataclasses.replace(wanted, host=f"{host.url}/whole/a.pt"), folder=tmp_path, progress=False)
    assert host.seen[-1] == ("GET", "/whole/a.pt", f"bytes={kept}-", 206)
    assert path.read_bytes() == BODY and names(tmp_path) == ["zoo_a_B_1_5.pt", "zoo_a_B_1_5.toml"]


def test_a_file_that_changed_meanwhile_is_read_anew(host: Host, tmp_path: Path) -> None:
    part = tmp_path / "zoo_a_B_1_5.pt.part"
    for tag in ('"older"', None):  # of another version, or of none that is known
        part.write_bytes(b"\xff" * 1000)
        if tag:
            part.with_name(part.name + ".tag").write_text(tag)
        path = fetch_entry(entry(host, "whole"), folder=tmp_path, progress=False)
        assert path.read_bytes() == BODY and host.seen[-1][-1] == 200
        path.unlink()


def test_a_whole_part_is_not_read_again_and_a_longer_one_is_thrown_away(host: Host, tmp_path: Path) -> None:
    part = tmp_path / "zoo_a_B_1_5.pt.part"
    for had, answers in ((BODY, [416]), (BODY + b"more", [416, 200])):
        part.write_bytes(had)
        part.with_name(part.name + ".tag").write_text(f'"{SHA[:8]}"')
        host.seen.clear()
        path = fetch_entry(entry(host, "whole"), folder=tmp_path, progress=False)
        assert path.read_bytes() == BODY and [status for *_, status in host.seen] == answers
        path.unlink()


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "forbidden": ({}, "the host refuses (403 Forbidden)"),
    "missing": ({}, "the host refuses (404 Not Found)"),
    "page": ({}, "the host answered with a web page, not with the file (a login, a quota or a virus warning)"),
    "disguised": ({"size": None}, "the host answered with a web page, not with the file"),
    "empty": ({"size": None}, "the file is empty"),
    "elsewhere": ({}, "http://example.org/whole/a.pt is no https address"),
    "whole": ({"size": 7}, "the file has 1,048,576 bytes, published are 7"),
    "plain": ({"card": dataclasses.replace(CARD, sha256="0676ba61")}, f"the file has sha256 {SHA[:12]}…, published is 0676ba61…"),
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_refusal_says_in_one_line_what_to_do_by_hand_and_leaves_nothing(word: str, host: Host, tmp_path: Path) -> None:
    fields, says = REFUSED[word]
    wanted = entry(host, word, **fields)
    with pytest.raises(InputError) as caught:
        fetch_entry(wanted, folder=tmp_path, progress=False)
    text = str(caught.value)
    assert text.startswith(f"zoo:a/B_1.5: {says}") and "\n" not in text
    assert text.endswith(f". By hand: save {wanted.url} as {tmp_path / 'zoo_a_B_1_5.pt'}, then run this again")
    assert not [name for name in names(tmp_path) if not name.endswith(".tag")]


@pytest.mark.parametrize("url", ["http://example.org/a.pt", "ftp://127.0.0.1/a.pt", "file:///etc/passwd"])
def test_nothing_but_https_is_read(url: str, tmp_path: Path) -> None:
    wanted = Entry(CARD, url, "a.pt", "cifar10")
    with pytest.raises(InputError, match="is no https address"):
        fetch_entry(wanted, folder=tmp_path, progress=False)
    assert not names(tmp_path)


def test_no_server_is_said(host: Host, tmp_path: Path) -> None:
    wanted = entry(host, "whole")
    wanted = dataclasses.replace(wanted, host="http://127.0.0.1:9/a.pt")  # the discard port: nobody listens
    with pytest.raises(InputError, match=r"the host cannot be read \(.*refused\)\. By hand: save http"):
        fetch_entry(wanted, folder=tmp_path, progress=False)


def test_a_file_put_there_by_hand_is_verified_and_gets_its_card(host: Host, tmp_path: Path) -> None:
    wanted = entry(host, "forbidden")
    path = place(wanted, tmp_path)
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="the file has 14 bytes, published are 1,048,576"):
        fetch_entry(wanted, folder=tmp_path, progress=False)
    assert path.read_bytes() == b"something else"  # the user's own file stays
    path.write_bytes(BODY)
    assert fetch_entry(wanted, folder=tmp_path, progress=False) == path and not host.seen
    assert Card.read(path.with_suffix(".toml")).sha256 == SHA


def test_the_hub_is_read_by_its_own_client(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", host.url)
    wanted = Entry(CARD, "hf-hub:whole/repo", "model.safetensors", "cifar10")
    assert wanted.url == "https://huggingface.co/whole/repo/resolve/main/model.safetensors"
    path = fetch_entry(wanted, folder=tmp_path, progress=False)
    assert path.name == "zoo_a_B_1_5.safetensors" and path.read_bytes() == BODY
    assert names(tmp_path) == ["zoo_a_B_1_5.safetensors", "zoo_a_B_1_5.toml"]
    assert ("GET", "/whole/repo/resolve/main/model.safetensors", None, 200) in host.seen
    with pytest.raises(InputError, match=r"zoo:a/B_1.5: the hub .*\. By hand: save https://huggingface.co/missing/repo/"):
        fetch_entry(Entry(CARD, "hf-hub:missing/repo", "model.safetensors", "cifar10"), folder=tmp_path / "other", progress=False)


def test_a_repository_of_the_hub_loads_with_its_configuration(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build("resnet18", num_classes=10).eval()
    save_for_hf(net, tmp_path / "saved", safe_serialization=True)
    monkeypatch.setenv("HF_ENDPOINT", host.url)
    for file in (tmp_path / "saved").iterdir():
        host.files[f"/whole/net/resolve/main/{file.name}"] = file.read_bytes()
    host.files["/whole/net/resolve/main/preprocessor_config.json"] = b"{}"
    path = from_hub("whole/net", cache=tmp_path / "cache")
    found = inspect(path)
    assert path.name == "model.safetensors" and found.settled
    assert found.normaliser is not None and "config.json" in found.normaliser.source
    with pytest.raises(InputError, match=r"missing/net"):
        from_hub("missing/net", cache=tmp_path / "cache")


def test_without_gdown_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)  # what an absent module is to import
    with pytest.raises(InputError) as caught:
        fetch("robustbench:Salman2020Do_R50", folder=tmp_path)
    text = str(caught.value)
    assert "it lies on Google Drive, for which gdown is needed: pip install 'robust-interp[download]'" in text
    assert "save https://drive.google.com/file/d/1TmT5oGa1UvVjM3d-XeSj_XmKqBNRUg8r/view as" in text


def test_every_entry_has_a_place_of_its_own(tmp_path: Path) -> None:
    places = [place(e, tmp_path) for e in catalogue().values()]
    stems = {p.name.split(".")[0].lower() for p in places}
    assert len(stems) == len(places)  # so also where letters' case does not count, and for the cards
    assert {p.name[len(p.name.split(".")[0]) :] for p in places} <= {".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors"}
    assert place(next(iter(catalogue().values()))).parent == fetch_folder()


SMALL = """
[normaliser]
none = {{ mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }}
[dataset.cifar10]
num_classes = 10
size = 32
n = 10000
[[group]]
id = "zoo:{{name}}"
host = "{url}/breaks/{{filename}}"
filename = "{{name}}.safetensors"
dataset = "cifar10"
arch = "{arch}"
args = {args}
normalise = "none"
training = "adversarial"
norm = "linf"
eps = "8/255"
source = "here"
note = "a tiny one"
rows = [ {{ name = "tiny", clean = 50.0, autoattack = 25.0, sha256 = "{sha}", bytes = {size} }} ]
[base]
[[unavailable]]
reason = "none"
ids = []
"""


@pytest.fixture
def zoo(host: Host, tiny: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """A catalogue of one row, whose file the server has: a tiny network's weights."""
    model = tiny("xcit", seed=3)
    data = save({k: v.contiguous() for k, v in model.net.state_dict().items()})
    host.files["/breaks/tiny.safetensors"] = data
    args = ", ".join(f"{k} = {v}" for k, v in model.card.arch_args.items())
    filled = {"arch": model.card.arch, "args": f"{{ {args} }}", "sha": hashlib.sha256(data).hexdigest(), "size": len(data)}
    file = tmp_path / "catalogue.toml"
    file.write_text(SMALL.format(url=host.url, **filled), encoding="utf-8")
    caches = (module.catalogue, module.unavailable, module._names, module._by_prefix)
    monkeypatch.setattr(module, "FILE", file)
    monkeypatch.setenv("INTERP_CHECKPOINTS", str(tmp_path / "checkpoints"))
    for cache in caches:
        cache.cache_clear()
    yield model
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def test_what_was_fetched_loads_with_its_card(zoo: Model, tmp_path: Path) -> None:
    path = fetch("tiny", progress=False)
    assert path == tmp_path / "checkpoints" / "fetched" / "zoo_tiny.safetensors"
    model = interp.load(path)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model.card.threat is not None and model.card.threat.eps == 8 / 255 and model.card.preprocess.mean == (0.0, 0.0, 0.0)
    assert torch.equal(model(x), zoo.net(x))
    assert not interp.shipped()  # what ships stays what ships


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["interp", *map(str, argv)])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    return caught.value.code or 0, said.out, said.err


def test_the_commands(zoo: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(monkeypatch, capsys, "models", "zoo:*")
    assert code == 0 and "  tiny " in printed and "50.00 / 25.00" in printed and "*" not in printed.splitlines()[-1]
    path = tmp_path / "checkpoints" / "fetched" / "zoo_tiny.safetensors"
    code, printed, said = run(monkeypatch, capsys, "fetch", "tiny")
    assert (code, printed) == (0, f"zoo:tiny is there now: {path}\nnote: a tiny one\n") and "100%" in said  # the bar
    code, printed, said = run(monkeypatch, capsys, "fetch", "zoo:tiny")
    assert (code, printed, said) == (0, f"zoo:tiny is already there: {path}\nnote: a tiny one\n", "")
    assert "* tiny" in run(monkeypatch, capsys, "models", "tiny")[1]
    assert "1 published checkpoints are known, 1 of them on disk: 1 zoo." in run(monkeypatch, capsys, "models")[1]
    code, printed, said = run(monkeypatch, capsys, "models", "zoo:tiny", "--json")
    assert f'"on_disk": "{path}"' in printed and '"value": 0.25' in printed
    code, printed, said = run(monkeypatch, capsys, "fetch", "tony")
    assert (
        code == 2 and said == "interp: the catalogue has no 'tony'; the nearest ids are zoo:tiny (interp models '*' lists all)\n"
    )
