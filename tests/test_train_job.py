"""`interp train` and `interp ablate` from files to files, and what they say where data, recipe or machine do not fit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import interp
from interp.ablation import Ablation, ablate, ablation_table
from interp.errors import InputError
from interp.training.record import rows_of
from interp.types import Card

RECIPE = """
id = "mini"
arch = "resnet_32"
arch_args = { depth = 18, width = 8, stem_stride = 2 }
num_classes = 2
objective = "pgd"
eps = "8/255"
epochs = 1
batch_size = 4
preprocess = { size = 32, resize = 32 }
"""
GRID = """
id = "grid"
[recipe]
arch = "resnet_32"
arch_args = { depth = 18, width = 8, stem_stride = 2 }
num_classes = 2
objective = "pgd"
eps = "8/255"
epochs = 0.5
batch_size = 4
[grid]
cutmix = [0.0, 1.0]
randaugment = ["", "rand-m9-mstd0.5-inc1"]
"""
Run = Callable[..., tuple[int, str, str]]


def folder_of(root: Path, names: tuple[str, ...] = ("dark", "light"), n: int = 8) -> Path:
    """n images of each class; the second is brighter."""
    draw = np.random.default_rng(0)
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(n):
            noise = draw.integers(0, 100, (32, 32, 3)) + 60 * c
            Image.fromarray(noise.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data, a recipe and a grid."""
    folder_of(tmp_path / "two")
    folder_of(tmp_path / "other", ("cat", "dog"), 2)
    folder_of(tmp_path / "three", ("a", "b", "c"), 2)
    image = {"bytes": (tmp_path / "two" / "dark" / "0.png").read_bytes()}
    pq.write_table(pa.table({"img": [image] * 5, "label": list(range(5))}), tmp_path / "five.parquet")
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "grid.toml").write_text(GRID)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TWO = ("--data", "folder:two", "--test", "folder:two", "--device", "cpu")


def test_train_leaves_a_run_that_the_other_commands_take(world: Path, run: Run) -> None:
    code, printed, said = run("train", "r.toml", *TWO, "--set", "epochs=2", "--watched", 4, "--attacked", 6, "--autoattack", 1)
    assert code == 0, said
    folder = world / "runs" / "mini"
    assert {p.name for p in folder.iterdir() if p.is_file()} == {
        *("metrics.csv", "recipe.toml", "state.pt", "last.safetensors", "mini.safetensors", "mini.toml")
    }
    card = Card.read(folder / "mini.toml")
    assert [n.name for n in card.numbers] == ["clean", "pgd20", "autoattack"] and [n.n for n in card.numbers] == [16, 6, 1]
    command = "interp train r.toml --set epochs=2 --data folder:two --test folder:two"
    assert card.trained["command"] == command and card.trained["epochs"] == 2 and "core" in card.trained["hardware"]
    assert card.threat is not None and card.labels == ("dark", "light")
    assert "mini.safetensors: clean" in printed and rows_of(folder)[-1]["clean"] != ""
    assert interp.load(folder / "mini.safetensors").card == card
    digest = interp.load(folder / "mini.safetensors").digest
    assert run("train", "r.toml", *TWO, "--set", "epochs=2", "--attacked", 6)[0] == 0  # found finished: only measured again
    assert interp.load(folder / "mini.safetensors").digest == digest
    assert [r["step"] for r in rows_of(folder)] == ["4", "8"]


BAD: dict[str, tuple[list[str], str]] = {
    "missing data": (["--data", "parquet:no.parquet", "--test", "folder:two"], "there is no parquet file no.parquet"),
    "missing test": (["--data", "folder:two", "--test", "folder:nowhere"], "there is no folder nowhere"),
    "other classes": (
        ["--data", "folder:other", "--test", "folder:two"],
        "training images have the classes cat, dog…, test images",
    ),
    "too many classes": (["--data", "folder:three", "--test", "folder:three"], "recipe mini has 2 classes, the test images 3"),
    "8 for 8/255": ([*TWO, "--set", "eps=8"], 'eps is 8; expected a value in [0, 1), such as "8/255"'),
    "labels beyond": (["--data", "folder:two", "--test", "parquet:five.parquet"], "test labels go up to 4"),
    "negative count": ([*TWO, "--attacked", "-1"], "expected 0 or more of each"),
    "a typo": ([*TWO, "--set", "weight_dekay=1"], "has the key 'weight_dekay'; did you mean 'weight_decay'?"),
    "no value": ([*TWO, "--set", "epochs"], "--set is 'epochs'; expected KEY=VALUE, such as eps=4/255"),
    "no GPU": ([*TWO[:4], "--device", "cuda"], "device is cuda, and torch finds no GPU here"),
    "no device": ([*TWO[:4], "--device", "gpu"], "device is 'gpu'; expected cpu, cuda"),
    "too few": ([*TWO, "--set", "batch_size=400"], "16 images do not fill one batch of 400"),
    "no extra": ([*TWO, "--set", "extra_share=0.5"], "extra_share is 0.5 and 1 data sets were given"),
    "arch": ([*TWO, "--set", "arch=resnet_33"], "no architecture is called 'resnet_33'; the nearest names are"),
    "drop path": ([*TWO, "--set", "arch=resnet_cifar", "--set", "arch_args={}", "--set", "drop_path=0.1"], "does not take these"),
    "start": ([*TWO, "--set", "start=nowhere.pt"], "there is no file nowhere.pt"),
    "helper": ([*TWO, "--set", "objective=hat", "--set", "helper=nowhere.pt"], "there is no file nowhere.pt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_training_ends_with_one_message(case: str, world: Path, run: Run) -> None:
    import torch

    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    argv, says = BAD[case]
    code, printed, said = run("train", "r.toml", *argv)
    assert code == 2 and says in said, said
    assert "Traceback" not in said and said.strip().count("\n") == 0 and not printed
    assert not list(world.rglob("*.safetensors"))


def test_a_generated_set_is_mixed_in(world: Path, run: Run) -> None:
    code, _, said = run("train", "r.toml", *TWO, "--extra", "folder:two", "--set", "extra_share=0.5", "--attacked", 2)
    assert code == 0, said
    card = Card.read(world / "runs" / "mini" / "mini.toml")
    assert "50% of each batch from a second data set" in card.training and card.trained["command"].endswith("--extra folder:two")


def test_ctrl_c_keeps_what_was_trained_and_the_same_command_goes_on(world: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "interp.cli",
        "train",
        "r.toml",
        *TWO,
        "--set",
        "epochs=12",
        "--attacked",
        "2",
        "--threads",
        "1",
    ]
    code = "import sys; from interp.cli import main; sys.argv = ['interp', *sys.argv[1:]]; main()"
    argv[1:3] = ["-c", code]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as job:
        folder = world / "runs" / "mini"
        deadline = time.monotonic() + 120
        while len(rows_of(folder)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        job.send_signal(signal.SIGINT)
        said = job.communicate(timeout=60)[1]
    assert job.returncode == 130 and "stopped; finished results are kept" in said and "Traceback" not in said
    done = len(rows_of(folder))
    assert 2 <= done < 12 and (folder / "state.pt").is_file()
    ended = subprocess.run([*argv, "--set", "epochs=12"], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert [int(r["step"]) for r in rows_of(folder) if int(r["step"]) % 4 == 0] == list(range(4, 52, 4))


def test_an_ablation_trains_every_combination_once(world: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("grid.toml", *TWO, "-n", 8, "--attacked", 4, "--workers", 0, "--out-dir", "abl")
    code, printed, said = run("ablate", *args, "--only", "cutmix=0.0")
    assert code == 0, said
    assert len(list((world / "abl" / "runs").glob("*/measured.json"))) == 2 and "| cutmix | randaugment |" in printed
    stamps = {p: p.stat().st_mtime_ns for p in (world / "abl" / "runs").glob("*/measured.json")}
    code, printed, said = run("ablate", *args)
    assert code == 0, said
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items())
    assert (world / "abl" / "ablation.png").stat().st_size > 10_000
    files = sorted((world / "abl").glob("ablation-*.nc"), key=lambda p: p.stat().st_mtime)
    result = interp.open(files[-1])
    assert result.data.sizes == {"run": 4} and set(result.measures) == {"clean", "fgsm", "pgd20"}
    table = result.table()
    assert set(table["n"]) == {8, 4} and ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert ablation_table(result).count("\n") == 5 and ablation_table(result) in printed
    pixels = interp.read_pixels("folder:two", n=8)
    with pytest.raises(InputError, match=r"measured\.json was measured on other images"):
        ablate(Ablation.read(world / "grid.toml"), pixels, interp.images("folder:two", n=8), world / "abl", attacked=4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"[grid]": "[gird]"}, "has the key 'gird'; did you mean 'grid'?"),
        ({"cutmix = [0.0, 1.0]": "cutmix = 1.0"}, "has no [grid]; expected a table of keys with lists of values"),
        ({"cutmix": "cutmics"}, "has the key 'cutmics'; did you mean 'cutmix'?"),
        ({"[0.0, 1.0]": "[0.0, -1.0]"}, "cutmix is -1.0; expected a number ≥ 0"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_trained(change: dict[str, str], says: str, world: Path, run: Run) -> None:
    text = GRID
    for old, new in change.items():
        text = text.replace(old, new)
    (world / "grid.toml").write_text(text)
    code, _, said = run("ablate", "grid.toml", *TWO)
    assert code == 2 and says in said, said


def test_grids_of_words_and_of_tables_are_drawn_and_a_run_that_diverges_is_left_out(world: Path, run: Run) -> None:
    grid = GRID[: GRID.index("[grid]")].replace('eps = "8/255"', 'eps = "8/255"\nclip = 0.0')
    depths = ", ".join(f"{{ depth = {d}, width = 8, stem_stride = 2 }}" for d in (18, 34))
    grid += f'[grid]\nobjective = ["pgd", "trades"]\nlr = [0.002, 1e30]\narch_args = [{depths}]\n'
    (world / "grid.toml").write_text(grid)
    code, printed, said = run("ablate", "grid.toml", *TWO, "--attacked", 2, "--out-dir", "abl", "--only", "objective=pgd")
    assert code == 0, said
    result = interp.open(next((world / "abl").glob("ablation-*.nc")))
    assert result.data.sizes == {"run": 2} and set(result.data["lr"].values) == {0.002}
    assert '{"depth": 34' in printed and (world / "abl" / "ablation.png").is_file()


def test_a_test_set_sorted_by_class_is_attacked_in_all_of_them() -> None:
    from collections import Counter

    import torch

    from interp.types import Batch

    batch = Batch(torch.zeros(20, 3, 2, 2), torch.arange(20) // 4)
    assert Counter(batch.some(10).labels.tolist()) == dict.fromkeys(range(5), 2)
    mixed = Batch(torch.zeros(4, 3, 2, 2), torch.tensor([3, 0, 2, 1]))
    assert mixed.some(2).labels.tolist() == [3, 0] and mixed.some(9) is mixed


def test_only_values_of_the_grid_can_be_chosen(world: Path, run: Run) -> None:
    code, _, said = run("ablate", "grid.toml", *TWO, "--only", "cutmix=0.5")
    assert code == 2 and "only cutmix = 0.5: the grid has cutmix = [0.0, 1.0]" in said
    code, _, said = run("ablate", "grid.toml", *TWO, "--set", "cutmix=0.5")
    assert code == 2 and "cutmix is in the grid of grid.toml; choose among its values with --only" in said
