"""Which semantic attributes a class has: tables beside this file, one TOML per data set, or a user's own.

Binary class-level attributes as in "Animals with Attributes" (Lampert et al. 2009), for the classes of CIFAR-10 and Imagenette,
chosen by hand, and `awa2`: the 85 attributes of Animals with Attributes 2 for the animals that the data sets used here have too.
`attributes` reads as well

awa2           the bundled table of that name, or `cifar10`, `imagenette`
a TOML file    `classes`, a list, and the table `attributes`: each attribute with a list of the classes that have it
a folder       of Animals with Attributes 2 (Xian et al., arXiv 1707.00600): classes.txt and predicates.txt, a number and a name
               on each line, and predicate-matrix-binary.txt, a row of 0 and 1 per class, a column per predicate

whose classes are matched by name, whatever the case and with `_`, `-`, `+` and spaces alike. A class named after a kind of animal
of which the table has several ("cat": Persian and Siamese), and a breed that it lacks, has what all of these kinds have, lacks
what none has, and is left open where they differ: no breed stands for another. Other classes without a row are left open.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp.types import InputError

FILES = ("classes.txt", "predicates.txt", "predicate-matrix-binary.txt")
ANIMALS = "awa2"
KINDS = {
    "cat": ("persian cat", "siamese cat"),
    "dog": ("chihuahua", "dalmatian", "german shepherd", "collie"),
    "bear": ("grizzly bear", "polar bear"),
    "whale": ("blue whale", "humpback whale"),
}
"""Kinds of animals, and the classes of Animals with Attributes 2 that are of each."""
BREEDS = {
    "cat": (
        "abyssinian", "bengal", "birman", "bombay", "british shorthair", "egyptian mau", "maine coon", "ragdoll", "russian blue",
        "sphynx", "persian", "siamese", "tabby", "tabby cat", "tiger cat", "egyptian cat",
    ),
    "dog": (
        "american bulldog", "american pit bull terrier", "basset hound", "beagle", "boxer", "english cocker spaniel",
        "english setter", "english springer", "german shorthaired", "great pyrenees", "havanese", "japanese chin", "keeshond",
        "leonberger", "miniature pinscher", "newfoundland", "pomeranian", "pug", "saint bernard", "samoyed", "scottish terrier",
        "shiba inu", "staffordshire bull terrier", "wheaten terrier", "yorkshire terrier",
    ),
}  # fmt: skip
"""Breeds of Oxford-IIIT Pet, and cats and a dog of ImageNet's, by kind."""
SAME = {
    "persian": "persian cat", "siamese": "siamese cat", "panda": "giant panda", "orca": "killer whale", "hippo": "hippopotamus",
    "rhino": "rhinoceros", "alsatian": "german shepherd",
}  # fmt: skip
"""Other names of one animal."""


class Table(NamedTuple):
    """Names of attributes; has, known (attributes, classes) bool: which class has which, and where a table says so."""

    names: tuple[str, ...]
    has: Tensor
    known: Tensor


def attributes(classes: tuple[str, ...], *, source: str = "") -> Table:
    """Which of these classes has which attributes, columns in the order of `classes`.

    source: '', the bundled table that knows all classes; else its name, or the path of a TOML file or a folder. Among a part of a
    table's classes an attribute may be common to all or to none. Raises InputError where no bundled table knows all classes, a
    source is missing or malformed, or fewer than two classes have a row in it.
    """
    if source:
        return _matched(classes, *_read(Path(source)), source)
    table = next((t for t in tables().values() if classes and set(classes) <= set(t["classes"])), None)
    if table is None:
        known = "; ".join(f"{name} ({', '.join(t['classes'])})" for name, t in tables().items())
        raise InputError(f"no table of attributes has the classes {str(classes)[:120]}; expected classes of one of: {known}")
    has = _owned(classes, table["attributes"])
    return Table(tuple(table["attributes"]), has, torch.ones_like(has))


def telling(table: Table) -> Table:
    """The attributes that some classes are known to have and others to lack; those that are so of the same classes are one.

    That one is named after all of them. Of attributes that are the contrary of one another the first is kept, which says the
    same. Raises InputError where no attribute is left. Limit: of four classes of which all is known at most seven are left.
    """
    some = (table.has & table.known).any(1) & (~table.has & table.known).any(1)
    alike: dict[tuple[bool, ...], list[int]] = {}
    for a in some.nonzero()[:, 0].tolist():
        known = table.known[a]
        contrary = (*(~table.has[a] & known).tolist(), *known.tolist())
        if contrary not in alike:
            alike.setdefault((*(table.has[a] & known).tolist(), *known.tolist()), []).append(a)
    if not alike:
        raise InputError(
            f"none of {', '.join(table.names)[:300]} tells the classes apart; give attributes that some classes lack"
        )
    first = [of[0] for of in alike.values()]
    return Table(tuple(", ".join(table.names[a] for a in of) for of in alike.values()), table.has[first], table.known[first])


@cache
def tables() -> dict[str, dict[str, Any]]:
    """The tables by data set, that of animals last: `classes`, and `attributes` with the classes that have each."""
    files = sorted(Path(__file__).parent.glob("*.toml"), key=lambda f: (f.stem == ANIMALS, f.stem))
    return {f.stem: tomllib.loads(f.read_text(encoding="utf-8")) for f in files}


def _owned(classes: tuple[str, ...], owners: dict[str, list[str]]) -> Tensor:
    return torch.tensor([[c in having for c in classes] for having in owners.values()])


def _plain(name: str) -> str:
    return re.sub(r"[\s_+-]+", " ", name).strip().lower()


def _matched(classes: tuple[str, ...], names: tuple[str, ...], rows: dict[str, Tensor], source: str) -> Table:
    """The table of classes whose rows (attributes,) are known by their plain names, or by those of their kinds."""
    has, known = (torch.zeros(len(names), len(classes), dtype=torch.bool) for _ in range(2))
    for k, label in enumerate(classes):
        of = [rows[name] for name in _sources(_plain(label), rows)]
        if of:
            stacked = torch.stack(of)
            has[:, k], known[:, k] = stacked.all(0), stacked.all(0) | ~stacked.any(0)
    found = [c for c, any_known in zip(classes, known.any(0).tolist(), strict=True) if any_known]
    if len(found) < 2:
        raise InputError(
            f"{source} says something of {', '.join(found) or 'none'} of the classes {str(classes)[:120]}; attributes written "
            f"from one class to another need two of: {', '.join(rows)[:600]}"
        )
    return Table(names, has, known)


def _sources(label: str, rows: dict[str, Tensor]) -> tuple[str, ...]:
    """The rows that speak for a class: its own, that of the same animal, or those of its kind.

    A label may hold several names, as ImageNet's do: `n02123394 Persian cat`, `German shepherd, German shepherd dog, alsatian`.
    """
    names = re.sub(r"^n\d{8} ", "", label).split(", ")
    for name in (*names, *(SAME.get(name, "") for name in names)):
        if name in rows:
            return (name,)
    kind = next((k for k, breeds in BREEDS.items() if set(names) & set(breeds)), names[0])
    return (kind,) if kind in rows else tuple(name for name in KINDS.get(kind, ()) if name in rows)


def _read(path: Path) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Names of a table's attributes, and the row (attributes,) bool of each class by its plain name."""
    if path.is_dir():
        return _folder(path)
    if str(path) in tables():
        path = Path(__file__).parent / f"{path}.toml"
    if path.suffix != ".toml" or not path.is_file():
        raise InputError(
            f"there is no table of attributes {path}; expected {', '.join(tables())}, a .toml file, or a folder with "
            f"{', '.join(FILES)}"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML ({error}); expected `classes = […]` and a table [attributes]") from error
    classes, owners = table.get("classes", []), table.get("attributes", {})
    if not classes or not _names(classes) or not isinstance(owners, dict) or not owners or not all(map(_names, owners.values())):
        raise InputError(f"{path} has {', '.join(table) or 'nothing'}; expected `classes`, a list of names, and a table "
                         "[attributes] with a list of classes for each")  # fmt: skip
    strange = sorted({c for having in owners.values() for c in having} - set(classes))
    if strange:
        raise InputError(f"{path} gives attributes to {', '.join(strange)[:200]}, which its `classes` lack; add them there")
    has = _owned(tuple(classes), owners)
    return tuple(owners), {_plain(c): has[:, k] for k, c in enumerate(classes)}


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _folder(root: Path) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """The tables of Animals with Attributes."""
    missing = [name for name in FILES if not (root / name).is_file()]
    if missing:
        raise InputError(f"{root} lacks {', '.join(missing)}; expected {', '.join(FILES)} of Animals with Attributes 2")
    texts = [(root / name).read_text(encoding="utf-8").splitlines() for name in FILES]
    classes, names = (tuple(re.sub(r"^\s*\d+\s+", "", line).strip() for line in lines if line.strip()) for lines in texts[:2])
    cells = [line.split() for line in texts[2] if line.strip()]
    if len(cells) != len(classes) or any(len(row) != len(names) or set(row) - {"0", "1"} for row in cells):
        widths = sorted({len(row) for row in cells})
        raise InputError(
            f"{root / FILES[2]} has {len(cells)} rows of {', '.join(map(str, widths))} values; expected {len(classes)} rows, one "
            f"per class, of {len(names)} values 0 or 1, one per predicate"
        )
    has = torch.tensor([[cell == "1" for cell in row] for row in cells])
    return names, {_plain(c): row for c, row in zip(classes, has, strict=True)}
