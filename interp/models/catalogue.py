"""Published checkpoints: what is known of each before its file is here.

The rows lie in `catalogue.toml` beside this file: ids, architectures, preprocessing, published accuracies and hosts, from the
READMEs and model zoos that each row names as its source. Intervals are Wilson's (interp.stats). No number is our own.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import itertools
import re
import string
import tomllib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.stats import wilson
from interp.types import Card, InputError, Number, Preprocess, Threat, fraction

FILE = Path(__file__).with_name("catalogue.toml")
MEASURED = ("clean", "autoattack", "external", "pgd100")
KEYS = frozenset(MEASURED) | {
    *("id", "name", "base", "aliases", "host", "filename", "file", "drive", "table", "sha256", "bytes", "note"),
    *("arch", "args", "dataset", "size", "resize", "crop", "interpolation", "normalise", "channels"),
    *("norm", "eps", "training", "extra", "n", "source", "licence", "citation"),
}
DIGITS = 8  # of a sha256: the fewest that publishers put into file names


@dataclass(frozen=True)
class Entry:
    """One published checkpoint: its card, and where its file is.

    host: 'gdrive:ID', 'hf-hub:OWNER/REPO' or an https address. filename: the file's name there. size: bytes, where published.
    aliases: other names that `find` takes. note: what a reader of the numbers or of the file should know.
    `card.sha256` may be only the first digits, as published in a file name; empty where none are.
    """

    card: Card
    host: str
    filename: str
    dataset: str
    size: int | None = None
    aliases: tuple[str, ...] = ()
    note: str = ""

    @property
    def id(self) -> str:
        """The id of its card."""
        return self.card.id

    @property
    def name(self) -> str:
        """What stands behind the last slash of the id, or behind the colon."""
        return _short(self.id)[0]

    @property
    def origin(self) -> str:
        """Who publishes it: what stands before the colon of the id."""
        return self.id.split(":")[0]

    @property
    def url(self) -> str:
        """An address that a browser can open to save the file by hand."""
        kind, _, rest = self.host.partition(":")
        if kind == "gdrive":
            return f"https://drive.google.com/file/d/{rest}/view"
        if kind == "hf-hub":
            return f"https://huggingface.co/{rest}/resolve/main/{self.filename}"
        return self.host


@functools.cache
def catalogue() -> dict[str, Entry]:
    """All rows by id, in the order of the file."""
    raw = tomllib.loads(FILE.read_text(encoding="utf-8"))
    entries: dict[str, Entry] = {}
    for group in raw["group"]:
        shared = raw["base"].get(group.get("base"), {}) | {k: v for k, v in group.items() if k != "rows"}
        for row in group["rows"]:
            entry = _entry(shared, row, raw)
            if entry.id in entries:
                raise InputError(f"{FILE} has two rows {entry.id}; ids must differ")
            entries[entry.id] = entry
    return entries


@functools.cache
def unavailable() -> dict[str, str]:
    """Entries of RobustBench's tables without a row, by the id they would have, with the reason."""
    raw = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: group["reason"] for group in raw["unavailable"] for name in group["ids"]}


def find(name: str) -> Entry:
    """The entry of that id, alias, or unique short name (the part behind the last slash or the colon).

    Raises InputError where no entry or several match, naming the nearest or all of them, or why it is not available.
    """
    names = _names()
    found = names.get(name) or names.get(name.lower())
    if found and len(found) == 1:
        return catalogue()[found[0]]
    if found:
        raise InputError(f"{name!r} is the name of {len(found)} checkpoints; write which: {', '.join(found)}")
    refused = {key: why for key, why in unavailable().items() if name in (key, *_short(key))}
    if refused:
        raise InputError(f"{name!r} cannot be built or fetched: {'; '.join(sorted(set(refused.values())))}")
    close = difflib.get_close_matches(name.lower(), names, n=6, cutoff=0.4)
    near = list(dict.fromkeys(i for key in close for i in names[key]))[:4]
    raise InputError(
        f"the catalogue has no {name!r}; the nearest ids are {', '.join(near) or 'none'} (interp models '*' lists all)"
    )


def by_sha256(sha: str) -> Entry | None:
    """The entry whose file has that sha256, given whole or its first 8 or more digits; None where none is known to.

    Where several rows name one file, its publisher's. Raises InputError where `sha` is no such number.
    """
    sha = sha.lower()
    if not DIGITS <= len(sha) <= 64 or set(sha) - set(string.hexdigits):
        raise InputError(f"{sha!r} is no sha256; expected {DIGITS} to 64 hexadecimal digits")
    known = (e for e in _by_prefix().get(sha[:DIGITS], ()))
    return next((e for e in known if e.card.sha256.startswith(sha) or sha.startswith(e.card.sha256)), None)


def match(glob: str) -> list[Entry]:
    """Entries whose id or alias fits a pattern such as 'robustbench:cifar10/*'; plain text is looked for anywhere in them."""
    pattern = (glob if set(glob) & set("*?[") else f"*{glob}*").lower()
    return [e for e in catalogue().values() if any(fnmatch.fnmatchcase(n.lower(), pattern) for n in (e.id, *e.aliases))]


@functools.cache
def _names() -> dict[str, list[str]]:
    """Every name, as written and in lower case → the ids that bear it; ids and aliases hide short names."""
    exact: dict[str, list[str]] = {}
    short: dict[str, list[str]] = {}
    for entry in catalogue().values():
        for name in dict.fromkeys(n for given in (entry.id, *entry.aliases) for n in (given, given.lower())):
            exact.setdefault(name, []).append(entry.id)
        for name in dict.fromkeys(n for given in (entry.id, *entry.aliases) for s in _short(given) for n in (s, s.lower())):
            short.setdefault(name, []).append(entry.id)
    return short | exact


def _short(name: str) -> tuple[str, str]:
    """'robustbench:imagenet/Linf/X' → 'X' and 'robustbench:X'."""
    origin, _, rest = name.rpartition(":")
    last = rest.rsplit("/", 1)[-1]
    return last, f"{origin}:{last}"


@functools.cache
def _by_prefix() -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in sorted(catalogue().values(), key=lambda e: e.origin == "robustbench"):  # a zoo may point to others' files
        if entry.card.sha256:
            found.setdefault(entry.card.sha256[:DIGITS], []).append(entry)
    return found


def _entry(shared: Mapping[str, Any], row: Mapping[str, Any], raw: Mapping[str, Any]) -> Entry:
    """One row, filled up from its group, base and data set."""
    r = {**shared, **row, "args": {**shared.get("args", {}), **row.get("args", {})}}
    if unknown := r.keys() - KEYS:
        raise InputError(f"{FILE}: row {r['name']!r} has unknown keys {', '.join(sorted(unknown))}; compare with KEYS")
    data = raw["dataset"][r["dataset"]]
    text = r | {"stem": r["name"].split(".")[0], "short": r["name"].rsplit("/", 1)[-1]}
    text["filename"] = filename = r["filename"].format_map(text)
    threat = Threat(r["norm"], fraction(r["eps"])) if r["norm"] else None
    card = Card(
        id=r["id"].format_map(text),
        arch=r["arch"].format_map(text),
        num_classes=data["num_classes"],
        preprocess=_preprocess(r, data["size"], raw["normaliser"][r["normalise"]]),
        arch_args=r["args"],
        labels=tuple(data.get("labels", ())),
        sha256=r.get("sha256", ""),
        training=r["training"] + (", with additional data" if r.get("extra") else ""),
        threat=threat,
        numbers=tuple(_number(key, r, r.get("n") or data["n"]) for key in MEASURED if key in r),
        licence=r.get("licence", ""),
        citation=r.get("citation", ""),
    )
    host = r["host"].format_map(text)
    return Entry(card, host, filename, r["dataset"], r.get("bytes"), tuple(r.get("aliases", ())), r.get("note", ""))


def _preprocess(r: Mapping[str, Any], size: int, normaliser: Mapping[str, list[float]]) -> Preprocess:
    """Size and resize in pixels; `crop` is the share of the resized image's shorter side that is kept, as timm writes it."""
    size = r.get("size", size)
    resize = r.get("resize") or int(size / r.get("crop", 1.0))
    mean, std = (tuple(normaliser[key]) for key in ("mean", "std"))
    how = r.get("interpolation", "bicubic")
    return Preprocess(size, resize, how, mean, std, r.get("channels", "rgb"))  # type: ignore[arg-type]  # three values each


def _number(name: str, r: Mapping[str, Any], n: int) -> Number:
    """A published percentage as a share, with the Wilson interval of the count behind it."""
    value = r[name] / 100
    interval = wilson(round(value * n), n)
    return Number(name, round(value, 6), n, round(interval.low, 6), round(interval.high, 6), r["source"])


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry as plain values: the card's fields, with the host's beside them."""
    card = {k: v for k, v in dataclasses.asdict(entry.card).items() if k not in ("weights", "origin", "labels")}
    host = {"url": entry.url, "filename": entry.filename, "size": entry.size, "aliases": entry.aliases, "note": entry.note}
    return card | {"origin": entry.origin, "dataset": entry.dataset, "host": entry.host} | host


def listing(entries: Sequence[Entry], *, here: Container[str] = (), width: int = 100) -> str:
    """Entries as a table of text, under lines with what their ids begin with; `here` holds the ids of those on disk.

    Names are never cut: the architecture's column takes what they leave of `width`, and folds; where that is under 16, the
    table is wider.
    """
    rows = [(_marked(e, here), _built(e.card), _withstands(e.card), _accuracies(e.card), _count(e.card)) for e in entries]
    head = ("id (* on disk)", "architecture", "threat", "clean / AA %", "n")
    wide = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    wide[1] = max(16, min(wide[1], width - (sum(wide) - wide[1]) - 2 * (len(head) - 1)))
    form = f"{{:<{wide[0]}}}  {{:<{wide[1]}}}  {{:<{wide[2]}}}  {{:<{wide[3]}}}  {{:>{wide[4]}}}"
    lines = [form.format(*head)]
    for start, group in itertools.groupby(
        zip(entries, rows, strict=True), key=lambda pair: pair[0].id.removesuffix(pair[0].name)
    ):
        lines.append(start)
        for _, (name, arch, *rest) in group:
            first, *more = _fold(arch, wide[1])
            lines.append(form.format(name, first, *rest))
            lines += [" " * (wide[0] + 4) + part for part in more]
    return "\n".join(lines)


def _marked(entry: Entry, here: Container[str]) -> str:
    return f"{'*' if entry.id in here else ' '} {entry.name}"


def _fold(text: str, width: int) -> list[str]:
    """Lines of at most `width`, broken behind blanks and underscores."""
    lines = [""]
    for piece in re.findall(r"[^_ ]*[_ ]|[^_ ]+$", text):
        if lines[-1] and len(lines[-1]) + len(piece) > width - 2 * (len(lines) > 1):
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _built(card: Card) -> str:
    """The architecture with its sizes, such as 'wide_resnet 34-10'; switches and activations are left to the card."""
    args = {k: v for k, v in card.arch_args.items() if not isinstance(v, bool) and k != "activation"}
    shape = [f"{args.pop('depth')}-{args.pop('width')}"] if "width" in args else []
    return " ".join([card.arch, *shape, *map(str, args.values())])


def _withstands(card: Card) -> str:
    if card.threat is None:
        return "–"
    eps = f"{card.threat.eps * 255:.3g}/255" if card.threat.norm == "linf" else f"{card.threat.eps:g}"
    return f"{card.threat.norm} {eps}"


def _accuracies(card: Card) -> str:
    shown = (card.number("clean"), card.number("autoattack"))
    return " / ".join(f"{100 * number.value:5.2f}" if number else "    –" for number in shown)


def _count(card: Card) -> str:
    return f"{card.numbers[0].n:,}" if card.numbers else "–"


def counts() -> dict[str, int]:
    """Number of rows per origin."""
    return dict(Counter(e.origin for e in catalogue().values()))
