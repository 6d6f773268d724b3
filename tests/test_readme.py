"""The README's Python runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.weights
def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "gradients.png").stat().st_size > 5000


def test_every_command_named_exists() -> None:
    from interp.cli import app

    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert set(re.findall(r"`interp ([a-z]+)", README)) <= known
    assert known <= set(re.findall(r"`interp ([a-z]+)", README))


def test_links_and_paths_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
    for path in re.findall(r"`((?:checkpoints|recipes|notebooks|tests)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path


def test_map_of_the_code_names_every_module() -> None:
    modules = {p.relative_to(ROOT / "interp").parts[0].removesuffix(".py") for p in (ROOT / "interp").rglob("*.py")}
    for name in modules - {"__init__"}:
        assert f"`{name}" in README, name


def test_the_ablation_shown_is_the_one_saved() -> None:
    import interp
    from interp.ablation import Ablation, ablation_table

    (file,) = (ROOT / "figures" / "readme").glob("ablation-*.nc")
    result = interp.open(file)
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert ablation_table(result) in text
    plan = Ablation.read(ROOT / "recipes" / "ablation.toml")
    assert (plan.base, plan.grid) == (result.params["base"], result.params["grid"])
    assert {plan.recipe(run).id for run in plan.runs({"eps_period": 0.15, "weight_decay": 0.05})} <= {*result.data["run"].values}
