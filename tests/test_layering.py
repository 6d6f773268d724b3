"""Who may import whom: the walls of the house, held by reading every import in the source."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import interp

ROOT = Path(interp.__file__).parent
LAYER = {
    "called": 0,
    "errors": 0,
    "types": 0,
    "result": 0,
    "stats": 0,
    "loading": 1,
    "data": 1,
    "models": 2,
    "attacks": 3,
    "attention": 3,
    "gradients": 4,
    "robustness": 4,
    "training": 4,
    "attributes": 5,
    "faithfulness": 5,
    "study": 6,
    "publish": 7,
    "train_job": 7,
    "ablation": 7,
    "job": 7,
    "cli": 7,
    "interp": 7,
}
SIDE = {"plots": {"errors", "result"}, "report": {"errors", "result", "plots"}}
WITHIN_LAYER_0 = {("types", "errors"), ("result", "errors")}
LAZY = {("result", "plots")}  # Result.plot only, inside the function


@dataclass(frozen=True)
class Import:
    """One import of an interp module, by names without the leading `interp.`; the package itself is `interp`."""

    who: str
    whom: str
    when: str  # "load", "call" (inside a function) or "typing"

    @property
    def rooms(self) -> tuple[str, str]:
        return self.who.split(".")[0], self.whom.split(".")[0]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "interp"


FILES = {name_of(p): p for p in sorted(ROOT.rglob("*.py"))}


def imports_of(who: str, source: str) -> list[Import]:
    found: list[Import] = []

    def add(full: str, when: str) -> None:
        short = full.removeprefix("interp").removeprefix(".")
        found.append(Import(who, short or "interp", when))

    def visit(node: ast.AST, when: str) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "interp":
                    add(alias.name, when)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{who} imports relatively; write the full name"
            if (node.module or "").split(".")[0] == "interp":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    add(inner if inner.removeprefix("interp.") in FILES else str(node.module), when)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, "typing")
            for child in node.orelse:
                visit(child, when)
            return
        inside = "call" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else when
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), "load")
    return found


IMPORTS = [i for name, path in FILES.items() for i in imports_of(name, path.read_text(encoding="utf-8"))]


def breaks(i: Import) -> bool:
    """Whether an import crosses a wall."""
    a, b = i.rooms
    if (b == "cli" and a != "cli") or (i.whom == "interp" and i.who != "interp"):
        return True
    if i.who == "interp":
        return False
    if a == "attributes" == b:
        return i.who not in ("attributes.compare", "attributes.gather", "attributes.groups", "attributes.panel")
    if a == b or (i.when == "call" and (a, b) in LAZY):
        return False
    if a in SIDE:
        return b not in SIDE[a]
    if LAYER[a] == 7:
        return False
    if LAYER[a] == 0:
        return (a, b) not in WITHIN_LAYER_0
    return b in SIDE or LAYER[b] >= LAYER[a]


def test_every_room_has_a_layer() -> None:
    rooms = {name.split(".")[0] for name in FILES}
    assert rooms == LAYER.keys() | SIDE.keys()
    assert {i.whom for i in IMPORTS} <= FILES.keys()


def test_nobody_crosses_a_wall() -> None:
    assert not [f"{i.who} → {i.whom} ({i.when})" for i in IMPORTS if breaks(i)]


@pytest.mark.parametrize(
    ("who", "line"),
    [
        ("types", "import interp.result"),
        ("stats", "from interp.errors import InputError"),
        ("result", "from interp.plots import figure"),
        ("loading.read", "from interp.data import source"),
        ("data.source", "from interp.models.model import Model"),
        ("models.build", "from interp.attacks.pgd import PGD"),
        ("attention.attend", "from interp.attacks.sweep import pixels"),
        ("attacks.pgd", "def f():\n    import interp.attention.capture"),
        ("gradients.sources", "from interp.robustness import accuracy"),
        ("attributes.edges", "from interp.attributes.spectrum import radial"),
        ("attributes.compare", "from interp import study"),
        ("study", "from interp.job import write_report"),
        ("plots.images", "from interp.types import Batch"),
        ("plots.images", "from interp.report.words import interval"),
        ("report.page", "from interp.models.load import shipped"),
        ("job", "from interp.cli import app"),
        ("job", "from interp.cli.options import inputs"),
        ("gradients.accumulate", "from interp import InputError"),
        ("attacks.sweep", "from interp.plots.style import save"),
    ],
)
def test_the_rules_see_each_kind_of_breach(who: str, line: str) -> None:
    (found,) = imports_of(who, line)
    assert breaks(found)


def test_the_rules_allow_what_they_should() -> None:
    for who, line in {
        "result": "def plot():\n    from interp.plots import figure",
        "attention.capture": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from interp.models.model import Model",
        "attributes.compare": "from interp.attributes.edges import alignment",
        "plots.curves": "from interp.result import Result",
        "report.page": "from interp.plots.style import save",
        "cli": "from interp.job import write_report",
    }.items():
        (found,) = imports_of(who, line)
        assert not breaks(found), line


def test_there_are_no_cycles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in FILES}
    for i in IMPORTS:
        if i.when == "load" and i.whom != i.who:
            graph[i.who].add(i.whom)
    while free := [name for name, needs in graph.items() if not needs]:
        for name in free:
            del graph[name]
        for needs in graph.values():
            needs.difference_update(free)
    assert not graph, f"these import each other: {graph}"


def test_helpers_live_with_their_user_or_have_a_name() -> None:
    assert not {p.stem for p in FILES.values()} & {"util", "utils", "helper", "helpers", "common", "misc", "tools", "core"}


@pytest.mark.parametrize(
    "names",
    [
        "plots.images, interp.plots.matrices, interp.plots.curves, interp.plots.interactive, interp.plots.style",
        "plots.perturbations, interp.plots.gradients, interp.plots.animate, interp.plots.slider",
        "result, interp.errors, interp.cli",
        "report.page",
    ],
)
def test_what_draws_needs_no_torch(names: str) -> None:
    code = f"import sys, interp.{names}\nassert not {{'torch', 'timm'}} & set(sys.modules)"
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=here, timeout=120)
    assert done.returncode == 0, done.stderr
