"""The engine of the name translations: rules that rename, join, split or flatten tensors, and what came of them.

A rule is a pattern for the whole name and the new name, with the pattern's groups put in its braces; `words` says what a
group's text becomes there. A name that no rule knows keeps its own, so that a strict loader reports it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

JOINED = " + "  # between several old names in `Translation.renamed`


@dataclass(frozen=True)
class Translation:
    """A state dict under timm's names, and what was done to get there.

    tensors: by timm's names. renamed: new → old name where they differ (several old ones joined by `JOINED`). dropped: old
    name → why it is not needed. channels: order of the input's channels; 'either' where readers of the origin disagree, None
    where RGB is not in doubt. arch_args: what timm.create_model must be told besides the architecture's name. note: for the
    user, may be empty.
    Every name of the file is in tensors under its own name, in renamed or in dropped.
    """

    tensors: dict[str, Tensor]
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    channels: Literal["rgb", "bgr", "either"] | None = None
    arch_args: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Rule:
    """One way to rename.

    new ends in `#n` for the n-th of the three tensors to be joined along the rows, holds `*` where one tensor is to be split
    into q, k and v (rows in that order), and ends in `~` where all dimensions are to be made one.
    """

    pattern: re.Pattern[str]
    new: str
    words: Mapping[str, Mapping[str, str]]

    def __call__(self, name: str) -> str | None:
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        groups = {k: self.words.get(k, {}).get(v, v) for k, v in match.groupdict().items() if v is not None}
        return self.new.format_map(groups)


def rules(words: Mapping[str, Mapping[str, str]], *pairs: tuple[str, str]) -> tuple[Rule, ...]:
    """Rules from (pattern, new name) pairs; `%group%` in a pattern is any of that group's words."""

    def group(match: re.Match[str]) -> str:
        return f"(?P<{match[1]}>{'|'.join(map(re.escape, words[match[1]]))})"

    return tuple(Rule(re.compile(re.sub(r"%(\w+)%", group, pattern)), new, words) for pattern, new in pairs)


def translate(tensors: Mapping[str, Tensor], table: tuple[Rule, ...], **said: Any) -> Translation:
    """A state dict renamed by the first rule that knows each name; said: the other fields of the Translation.

    Nothing is lost and nothing is overwritten: what would need a name that another tensor has is dropped where the two are
    equal and keeps its own name otherwise, as do the parts of a join that is incomplete.
    """
    result = Translation({}, dropped=dict(said.pop("dropped", {})), **said)
    moves: list[tuple[str, list[str], Tensor]] = []
    joins: dict[str, dict[int, str]] = {}
    for old, tensor in tensors.items():
        if old in result.dropped:
            continue
        new = next((n for rule in table if (n := rule(old)) is not None), old)
        base, mark, part = new.partition("#")
        if mark:
            joins.setdefault(base, {})[int(part)] = old
        elif "*" in new and tensor.ndim and tensor.shape[0] % 3 == 0:
            moves += [(new.replace("*", n), [old], rows.clone()) for n, rows in zip("qkv", tensor.chunk(3), strict=True)]
        elif new.endswith("~"):
            moves.append((new.removesuffix("~"), [old], tensor.flatten()))
        else:
            moves.append((old if "*" in new else new, [old], tensor))
    for new, parts in joins.items():
        olds = [parts[i] for i in sorted(parts)]
        found = [tensors[k] for k in olds]
        if sorted(parts) == [0, 1, 2] and all(t.ndim and t.shape[1:] == found[0].shape[1:] for t in found):
            moves.append((new, olds, torch.cat(found)))
        else:
            moves += [(k, [k], t) for k, t in zip(olds, found, strict=True)]
    for new, olds, tensor in sorted(moves, key=lambda move: move[0] != move[1][0]):  # unchanged names come first
        _place(result, new, olds, tensor)
    return result


def _place(result: Translation, new: str, olds: list[str], tensor: Tensor) -> None:
    if new not in result.tensors:
        result.tensors[new] = tensor
        if olds != [new]:
            result.renamed[new] = JOINED.join(olds)
    elif len(olds) == 1 and torch.equal(result.tensors[new], tensor):
        result.dropped[olds[0]] = f"the same as {new}"
    else:
        own = JOINED.join(olds)
        while own in result.tensors:
            own += "'"
        result.tensors[own] = tensor
        if [own] != olds:
            result.renamed[own] = JOINED.join(olds)


def has(tensors: Mapping[str, Tensor], *patterns: str) -> bool:
    """Whether each pattern is the whole name of some tensor."""
    return all(any(re.fullmatch(p, k) for k in tensors) for p in patterns)
