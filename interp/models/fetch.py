"""`fetch`: a published checkpoint → a verified file with its card, ready for `interp.load`.

https addresses are read here, resumable by Range requests (RFC 9110, section 14; `If-Range` so that a file changed meanwhile is
read anew); the hub by huggingface_hub; Google Drive by gdown, an optional extra. Bytes gather under another name and get theirs
only after size and sha256 agree with what is published. Where a host refuses, one line says what to do by hand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from interp.loading.read import sha256_of
from interp.models.catalogue import Entry, find
from interp.models.hub import quiet
from interp.models.known import checkpoint_folder
from interp.types import InputError

CHUNK = 1 << 20
ATTEMPTS = 5  # connections to one file, as long as each brings something
TIMEOUT = 30.0  # seconds without a byte
LOCAL = ("localhost", "127.0.0.1", "::1")


class _Refused(Exception):
    """A host gave something else than the file; the text says what."""


def fetch_folder() -> Path:
    """Where fetched files lie: `fetched` within the folder of the shipped checkpoints, so that these stay what ships."""
    return checkpoint_folder() / "fetched"


def place(entry: Entry, folder: Path | None = None) -> Path:
    """Path of an entry's file: its id with every sign but letters, digits, - and _ made an underscore, and its own ending."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", entry.id)
    ending = ".pth.tar" if entry.filename.endswith(".pth.tar") else Path(entry.filename).suffix
    return (folder or fetch_folder()) / f"{stem}{ending}"


def on_disk(entry: Entry, folder: Path | None = None) -> Path | None:
    """The fetched file of an entry, or None where it or its card is missing."""
    path = place(entry, folder)
    return path if path.is_file() and _card(path).is_file() else None


def fetch(name: str, *, folder: Path | None = None, progress: bool = True) -> Path:
    """Download a catalogue entry (id, alias or unique short name) unless it is here; returns the path of its file.

    Beside the file lies its card (.toml), with which `interp.load` knows all. A file put there by hand is verified and gets its
    card. Raises InputError where the host refuses, the bytes are no checkpoint, or size or sha256 are not as published.
    """
    return fetch_entry(find(name), folder=folder, progress=progress)


def fetch_entry(entry: Entry, *, folder: Path | None = None, progress: bool = True) -> Path:
    """`fetch` for an entry that is at hand, from the catalogue or not."""
    path = place(entry, folder)
    if on_disk(entry, folder):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    by_hand = path.is_file()
    part = path if by_hand else path.with_name(path.name + ".part")
    try:
        if not by_hand:
            _download(entry, part, progress)
        sha = _verify(entry, part, keep=by_hand)
    except _Refused as refusal:
        raise InputError(f"{entry.id}: {refusal}. By hand: save {entry.url} as {path}, then run this again") from refusal
    card = dataclasses.replace(entry.card, weights=path.name, sha256=sha, origin=f"{entry.origin}, {entry.url}")
    text = path.with_name(path.name + ".card")
    text.write_text(card.to_toml(), encoding="utf-8")
    part.replace(path)
    text.replace(_card(path))  # last: a card says that its file is whole
    return path


def _card(path: Path) -> Path:
    return path.with_name(path.name.split(".")[0] + ".toml")


def _download(entry: Entry, part: Path, progress: bool) -> None:
    kind, _, rest = entry.host.partition(":")
    if kind == "gdrive":
        _from_drive(rest, part, progress)
    elif kind == "hf-hub":
        _from_hub(rest, entry.filename, part)
    else:
        _from_https(entry.host, part, entry.id if progress else None)


def _verify(entry: Entry, part: Path, *, keep: bool) -> str:
    """The file's sha256; raises _Refused where it is not what is published, and removes it unless `keep`."""
    wrong = ""
    with part.open("rb") as file:
        start = file.read(256).lstrip().lower()
    size, sha = part.stat().st_size, sha256_of(part)
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        wrong = "the host answered with a web page, not with the file (a login, a quota or a virus warning)"
    elif size == 0:
        wrong = "the file is empty"
    elif entry.size is not None and size != entry.size:
        wrong = f"the file has {size:,} bytes, published are {entry.size:,}"
    elif not sha.startswith(entry.card.sha256):
        wrong = f"the file has sha256 {sha[:12]}…, published is {entry.card.sha256[:12]}…"
    if wrong:
        if not keep:
            part.unlink()
        raise _Refused(wrong)
    return sha


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never out of https."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        try:
            _check_scheme(newurl)
        except _Refused:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
        raise _Refused(f"{url} is no https address")


def _from_https(url: str, part: Path, name: str | None) -> None:
    """Append to `part` until it is whole: a connection that breaks is taken up again where it broke."""
    _check_scheme(url)
    opener = urllib.request.build_opener(_Redirects)
    for attempt in range(1, ATTEMPTS + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            if _read(opener, url, part, name):
                _tag(part).unlink(missing_ok=True)
                return
            error = "the connection broke"
        except urllib.error.HTTPError as answer:
            answer.close()
            if answer.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                if answer.headers.get("Content-Range") == f"bytes */{before}":
                    return  # nothing is missing
                part.unlink()  # it is of another file
                continue
            raise _Refused(f"the host refuses ({answer.code} {answer.reason})") from answer
        except (urllib.error.URLError, http.client.HTTPException, OSError) as broken:
            error = str(getattr(broken, "reason", broken)) or type(broken).__name__
        have = part.stat().st_size if part.exists() else 0
        if have <= before or attempt == ATTEMPTS:
            break
    kept = f"; {have:,} bytes are kept, the same command goes on from there" if have else ""
    raise _Refused(f"the host cannot be read ({error}){kept}")


def _read(opener: urllib.request.OpenerDirector, url: str, part: Path, name: str | None) -> bool:
    """One connection; whether the file is whole after it."""
    tag = _tag(part)
    version = tag.read_text() if tag.exists() else ""
    have = part.stat().st_size if part.exists() and version else 0  # bytes of an unknown version are not gone on from
    headers = {"User-Agent": "interp", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise _Refused("the host answered with a web page, not with the file (a login, a quota or a virus warning)")
        resumed = answer.status == http.client.PARTIAL_CONTENT
        now = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if resumed and (not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-") or now != version):
            part.unlink()
            raise _Refused("the host goes on with other bytes than it began with; nothing is kept")
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        if now and not now.startswith("W/"):  # If-Range takes strong validators only
            tag.write_text(now)
        else:
            tag.unlink(missing_ok=True)
        with part.open("ab" if resumed else "wb") as file, _bar(total, have, name) as bar:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        return total is None or part.stat().st_size == total


def _tag(part: Path) -> Path:
    """Where the host's name for this version of the file is kept while it is incomplete."""
    return part.with_name(part.name + ".tag")


@contextlib.contextmanager
def _bar(total: int | None, done: int, name: str | None) -> Iterator[tqdm]:
    with tqdm(total=total, initial=done, unit="B", unit_scale=True, unit_divisor=1024, desc=name, disable=name is None) as bar:
        yield bar


def _from_hub(repo: str, filename: str, part: Path) -> None:
    """A file of a hub repository, from the hub's cache where it is there; the hub's client resumes interrupted downloads."""
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise _Refused("this needs huggingface_hub: pip install 'robust-interp[download]'") from error
    cached = try_to_load_from_cache(repo, filename)
    if isinstance(cached, str):
        shutil.copyfile(cached, part)
        return
    folder = part.with_name(part.name + ".hub")
    try:
        with quiet("huggingface_hub"):
            got = hf_hub_download(repo, filename, local_dir=folder, endpoint=os.environ.get("HF_ENDPOINT"))
    except LocalEntryNotFoundError as error:  # the client's word for no connection
        raise _Refused("the hub cannot be reached") from error
    except GatedRepoError as error:
        raise _Refused(f"{repo} asks for an accepted licence: log in on the hub") from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise _Refused(f"the hub has no {filename} in {repo}") from error
    except Exception as error:  # the client's transport raises its own kinds; each means that nothing came
        raise _Refused(f"the hub cannot be read ({_first_line(error)})") from error
    Path(got).replace(part)
    shutil.rmtree(folder)


def _from_drive(key: str, part: Path, progress: bool) -> None:
    """A file of Google Drive, by gdown, which knows Drive's confirmation pages and resumes."""
    try:
        import gdown  # type: ignore[import-not-found]
    except ImportError as error:
        raise _Refused("it lies on Google Drive, for which gdown is needed: pip install 'robust-interp[download]'") from error
    try:
        got = gdown.download(id=key, output=str(part), quiet=not progress, resume=True)
    except Exception as error:  # gdown raises its own kinds and its transport's; each means that nothing came
        raise _Refused(f"Google Drive refuses ({_first_line(error)})") from error
    if got is None or not part.is_file():
        raise _Refused("Google Drive gave no file")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
