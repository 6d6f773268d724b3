"""What options say of files without a card: which there are, which file each value is for, and what it then means.

A value answers for every file that leaves the question open; FILE=VALUE answers for one file, whatever it says itself.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from interp.models.answers import Said
    from interp.types import Card

OPEN = "What a checkpoint file leaves open"
KEYWORD = inspect.Parameter.KEYWORD_ONLY
ANSWERS = "--arch, --arch-arg, --normalise, --size, --channels, --ema and --raw"
ADDRESSED = {"arch": "--arch", "arch_args": "--arch-arg", "normalise": "--normalise", "channels": "--channels"}
"""Fields of Said, and the options whose value may be for one file."""
OPTIONS: Mapping[str, Any] = {
    "arch": Annotated[
        list[str] | None,
        typer.Option(
            help="Architecture of the files whose names and shapes leave it open; FILE=NAME for one of several files, and so for "
            "--arch-arg, --normalise and --channels; may be repeated.",
            rich_help_panel=OPEN,
        ),
    ],
    "arch_arg": Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE, an argument of the architecture; may be repeated.", rich_help_panel=OPEN)
    ],
    "normalise": Annotated[
        list[str] | None,
        typer.Option("--normalise", "--normalize", help="none, imagenet, half, cifar10, … or m,m,m/s,s,s.", rich_help_panel=OPEN),
    ],
    "size": Annotated[int | None, typer.Option(help="Input size in pixels of all files without a card.", rich_help_panel=OPEN)],
    "channels": Annotated[list[str] | None, typer.Option(help="rgb or bgr.", rich_help_panel=OPEN)],
    "ema": Annotated[
        bool | None,
        typer.Option("--ema/--raw", help="The averaged or the raw copy, where the file holds both.", rich_help_panel=OPEN),
    ],
}


@dataclass(frozen=True)
class Answers:
    """What options say of files without a card: `every` answers for all that leave it open, `each` for one, by its name."""

    every: Said
    each: Mapping[str, Said]

    def of(self, spec: str, left: Container[str] = ADDRESSED) -> Said:
        """What is said of one file: what names it, and what names none where it answers `left`, the fields it leaves open."""
        from interp.models.answers import Said

        own, every = self.each.get(spec, Said()), self.every

        def pick(name: str) -> str | None:
            value: str | None = getattr(own, name)
            return value if value is not None or name not in left else getattr(every, name)

        shared = every.arch_args if own.arch is not None or "arch_args" in left else {}
        return Said(pick("arch"), {**shared, **own.arch_args}, pick("normalise"), every.size, pick("channels"), every.ema)


def bare_ones(specs: Sequence[str]) -> list[bool]:
    """Which of the models are files without a card."""
    from interp.models.inspect import has_card
    from interp.models.load import locate

    return [not spec.startswith("timm:") and not has_card(locate(spec)) for spec in specs]


def said_of(specs: Sequence[str], said: Answers | None) -> list[Said]:
    """What is said of each model: nothing of one with a card, all of the only file without, of several what they leave open."""
    from interp.models.answers import Said

    nothing = Said()
    if said is None or (said.every == nothing and not said.each):
        return [nothing] * len(specs)
    bare = [spec for spec, is_bare in zip(specs, bare_ones(specs), strict=True) if is_bare]
    if not bare:
        raise InputError(f"{ANSWERS} are for files without a card, and {', '.join(specs)} includes none; leave them out")
    if carded := [spec for spec in said.each if spec not in bare]:
        raise InputError(f"{carded[0]} is no file without a card and leaves nothing open; leave {carded[0]}=… out")
    left = {spec: set(ADDRESSED) if len(bare) == 1 else _left_open(spec, said.of(spec, ())) for spec in bare}
    for name, option in ADDRESSED.items():
        needed = any(name in fields for fields in left.values())
        told = name == "arch_args" and any(own.arch for own in said.each.values())
        if getattr(said.every, name) and not needed and not told:
            raise InputError(
                f"{option} answers what a file leaves open, but none of {', '.join(bare)} leaves that open; leave it out, or "
                f"overrule one of them: {option} {bare[0]}=…"
            )
    return [said.of(spec, left[spec]) if spec in left else nothing for spec in specs]


def _left_open(spec: str, said: Said) -> set[str]:
    """The fields of Said that a file leaves open; all where it cannot be told, and loading will say why."""
    from interp.models.inspect import inspect as run
    from interp.models.load import locate

    try:
        found = run(locate(spec), said)
    except InputError:
        return set(ADDRESSED)
    answers = {"arch": found.arch, "arch_args": found.arch, "normalise": found.normaliser, "channels": found.channels}
    return {name for name, answer in answers.items() if answer is None}


@contextlib.contextmanager
def for_one(spec: str, several: bool) -> Iterator[None]:
    """Errors that ask for an answer say, where there are several models, how to give it for this one alone."""
    try:
        yield
    except InputError as error:
        ways = [
            f"{option} {spec}={'KEY=' * (name == 'arch_args')}VALUE" for name, option in ADDRESSED.items() if option in str(error)
        ]
        if not several or not ways:
            raise
        raise InputError(f"{error}. For this file alone, of several: {' '.join(ways)}") from error


def common_size(cards: Sequence[Card], bare: Sequence[bool]) -> str:
    """The advice to say a size, where there is one that every file without a card takes and the others have.

    None below half the size that a file has of itself: what the model sees there is not what it was trained on.
    """
    from interp.models.load import takes

    for size in sorted({card.preprocess.size for card in cards}):
        if all(
            size == card.preprocess.size or (is_bare and 2 * size >= card.preprocess.size and takes(card, size))
            for card, is_bare in zip(cards, bare, strict=True)
        ):
            return f", or say --size {size}, which all of them take"
    return ""


def answered(of: str = "models") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command OPTIONS in place of its parameter `said`, the Answers that they are for what its parameter `of` names."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            named = given[of]
            options = [given.pop(name) for name in OPTIONS]
            command(**given, said=from_options([named] if isinstance(named, str) else named, *options))

        kept = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "said"]
        more = [inspect.Parameter(name, KEYWORD, default=None, annotation=option) for name, option in OPTIONS.items()]
        run.__signature__ = inspect.Signature([*kept, *more])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*kept, *more)}
        return run

    return decorate


def from_options(
    specs: Sequence[str] | None,
    arch: list[str] | None,
    args: list[str] | None,
    normalise: list[str] | None,
    size: int | None,
    channels: list[str] | None,
    ema: bool | None,
) -> Answers:
    """The options of a command as what is said of its files (specs); values of --arch-arg are TOML, or words."""
    from interp.models.answers import Said

    given: dict[str, dict[str, list[str]]] = {"": {}}  # by file ('' for every one), then by field
    for name, texts in zip(ADDRESSED, (arch, args, normalise, channels), strict=True):
        for text in texts or ():
            spec, value = _addressed(name, text, specs or ())
            given.setdefault(spec, {}).setdefault(name, []).append(value)

    def about(spec: str) -> Said:
        arch, normalise, channels = (_once(name, given[spec].get(name)) for name in ("arch", "normalise", "channels"))
        return Said(arch, key_values(given[spec].get("arch_args"), "--arch-arg", "depth=12"), normalise, channels=channels)

    return Answers(replace(about(""), size=size, ema=ema), {spec: about(spec) for spec in given if spec})


def _addressed(name: str, text: str, specs: Sequence[str]) -> tuple[str, str]:
    """The file that a value is for, '' for every one, and the value."""
    spec = max((s for s in specs if text.startswith(f"{s}=")), key=len, default="")
    file = text.rpartition("=")[0] if name != "arch_args" else text.rpartition("=")[0].rpartition("=")[0]  # of FILE=KEY=VALUE
    if not spec and file:
        raise InputError(
            f"{ADDRESSED[name]} is {text!r}, but no model is given as {file}; expected FILE=VALUE with "
            f"one of {', '.join(specs) or 'the files given'}"
        )
    return spec, text.removeprefix(f"{spec}=") if spec else text


def _once(name: str, values: list[str] | None) -> str | None:
    """The only value of an option for a file, None where it was not given."""
    if values is not None and len(values) > 1:
        raise InputError(f"{ADDRESSED[name]} is {' and '.join(values)}; give one, or for one of several files FILE=VALUE")
    return values[0] if values else None


def key_values(texts: list[str] | None, option: str, example: str) -> dict[str, Any]:
    """KEY=VALUE options; values are TOML, or words."""
    import tomllib

    values: dict[str, Any] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"{option} is {text!r}; expected KEY=VALUE, such as {example}")
        try:
            values[key] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            values[key] = value
    return values
