"""The command line: bad input ends with exit code 2, one message and nothing written; a second run computes nothing."""

from __future__ import annotations

import dataclasses
import inspect
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

import interp
from interp.cli.options import app, class_index, print_success

Run = Callable[..., tuple[int, str, str]]


class Foreign:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


def write_image(path: Path, size: tuple[int, int], *, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def world(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a bad file of every sort, beside good checkpoints."""
    there = tmp_path / "world"
    (there / "a_folder").mkdir(parents=True)
    (there / "page.pt").write_text("<html>not found</html>")
    whole = (checkpoints / "tiny_linf.safetensors").read_bytes()
    (there / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (there / "foreign.pt").write_bytes(pickle.dumps(Foreign()))
    torch.save(load_file(checkpoints / "tiny_linf.safetensors"), there / "bare.pt")
    for i in range(5):
        write_image(there / "five" / f"class{i}" / "a.png", (32, 32), seed=i)
    write_image(there / "small.png", (20, 20))
    (there / "torn.png").write_bytes(write_image(there / "whole.png", (32, 32)).read_bytes()[:600])
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(there / "deep.png")
    monkeypatch.chdir(there)
    return there


BAD: dict[str, tuple[list[str], str]] = {
    "missing file": (["attention", "missing.pt"], "there is no file missing.pt; expected a checkpoint"),
    "a folder": (["attention", "./a_folder"], "is a folder; expected one checkpoint file"),
    "a folder, bare": (["gradients", "a_folder"], "a_folder is a folder; expected one checkpoint file"),
    "HTML": (["accuracy", "page.pt"], "page.pt is an HTML page, not a checkpoint"),
    "HTML, analyze": (["analyze", "page.pt"], "page.pt is an HTML page, not a checkpoint"),
    "truncated": (["perturb", "cut.safetensors"], "cut.safetensors is truncated: it holds"),
    "truncated, analyze": (["analyze", "cut.safetensors"], "cut.safetensors is truncated: it holds"),
    "foreign": (["compare", "foreign.pt"], "found no state dict, but a posix.system (not called)"),
    "foreign, report": (["report", "foreign.pt"], "found no state dict, but a posix.system (not called)"),
    "classes": (["gradients", "tiny_linf", "--images", "folder:five"], "10 classes, the images come with 5 (class0, class1"),
    "classes, analyze": (["analyze", "tiny_linf", "--images", "folder:five"], "10 classes, the images come with 5 (class0"),
    "classes, report": (["report", "--images", "folder:five"], "10 classes, the images come with 5"),
    "small image": (["gradients", "tiny_linf", "--images", "small.png"], "small.png is 20×20 pixels, smaller than the 32×32"),
    "image mode": (["attention", "tiny_linf", "--images", "deep.png"], "deep.png has mode I"),
    "torn image": (["attention", "tiny_linf", "--images", "torn.png"], "torn.png is not a readable image"),
    "ε < 0": (["perturb", "tiny_linf", "--eps=-8/255"], "ε is -0.03137"),
    "ε < 0, later": (["perturb", "tiny_linf", "--eps=8/255,-1"], "ε is -1.0; expected a number ≥ 0"),
    "ε < 0, gradients": (["gradients", "tiny_linf", "--eps=-8/255"], "ε is -0.03137"),
    "ε < 0, accuracy": (["accuracy", "tiny_linf", "--eps=-8/255"], "ε is -0.03137"),
    "ε < 0, compare": (["compare", "tiny_linf", "--eps=-8/255"], "ε is -0.03137"),
    "groups": (["compare", "tiny_linf", "--groups", "colour"], "groups are colour; expected some of perturbation, appearance"),
    "groups twice": (["compare", "tiny_linf", "--groups", "shape,shape"], "discovery, each once"),
    "ε text": (["perturb", "tiny_linf", "--eps", "big"], "'big' is not a number; write ε as 8/255 or 0.03"),
    "ε half a fraction": (["accuracy", "tiny_linf", "--eps", "8/"], "'8/' is not a number"),
    "ε nan": (["accuracy", "tiny_linf", "--eps", "nan"], "ε is nan"),
    "spec": (["attention", "tiny_lnif"], "the nearest ids are tiny_linf"),
    "spec, analyze": (["analyze", "tiny_lnif"], "the nearest ids are tiny_linf"),
    "norm": (["perturb", "tiny_linf", "--norm", "l3"], "norm is 'l3'; expected one of linf, l2"),
    "steps": (["perturb", "tiny_linf", "--steps", "0"], "steps is 0"),
    "step size": (["perturb", "tiny_linf", "--step-size", "0"], "step size is 0.0; expected a number > 0"),
    "step size of apgd": (["perturb", "tiny_linf", "--rule", "apgd", "--step-size", "1/255"], "but apgd chooses its own"),
    "rule": (["perturb", "tiny_linf", "--rule", "adam"], "rule is 'adam'; expected one of pgd, momentum, apgd"),
    "loss": (["perturb", "tiny_linf", "--loss", "kl"], "loss is 'kl'; a sweep moves away from and toward labels"),
    "basis": (["perturb", "tiny_linf", "--basis", "wavelets"], "basis is 'wavelets'; expected one of pixels, fourier"),
    "apgd in L1 and fourier": (
        ["perturb", "tiny_linf", "--rule", "apgd", "--norm", "l1", "--basis", "fourier"],
        "apgd in L1 moves single pixels, of which the fourier basis has none",
    ),
    "start": (["perturb", "tiny_linf", "--start", "grey"], "start is 'grey'; expected uniform or image"),
    "precision": (["perturb", "tiny_linf", "--precision", "float16"], "precision is 'float16'"),
    "jitter": (["perturb", "tiny_linf", "--jitter=-1"], "jitter is -1; expected a number ≥ 0"),
    "chunk": (["perturb", "tiny_linf", "--chunk", "0"], "chunk is 0; expected at least 1 image per pass"),
    "ε twice": (["perturb", "tiny_linf", "--eps", "8/255,8/255"], "expected each once"),
    "animate": (["perturb", "tiny_linf", "--animate", "avi"], "animate is 'avi'; expected gif or mp4"),
    "slider": (["perturb", "tiny_linf", "--slider", "time"], "slider is 'time'; expected eps or step"),
    "synthesis, start": (["synthesise", "tiny_linf", "--start", "grey"], "start 'grey'; expected ≥ 1 and one of noise, gaussian"),
    "synthesis, seeds": (["synthesise", "tiny_linf", "--seeds", "0"], "seeds is 0"),
    "synthesis, target": (["synthesise", "tiny_linf", "--target", "cat,cow"], "'cow' is no class of tiny_linf"),
    "synthesis, too few": (
        ["synthesise", "tiny_linf", "-n", "3", "--start", "gaussian"],
        "a Gaussian start needs at least two of each target",
    ),
    "invert, layer": (["invert", "tiny_linf", "--layer", "blocks.9"], "there is no layer 'blocks.9'; layers are named like"),
    "invert, start": (["invert", "tiny_linf", "--start", "gaussian"], "start is 'gaussian'; expected one of noise, images"),
    "invert, one": (["invert", "tiny_linf", "-n", "1", "--start", "images"], "one image has no other to start from"),
    "target": (["perturb", "tiny_linf", "--target", "cow"], "'cow' is no class of tiny_linf; its classes are airplane"),
    "target of two": (["synthesise", "tiny_linf", "--start", "gaussian"], "only classes that have two, such as "),
    "method and over": (
        ["gradients", "tiny_linf", "--method", "captum:Saliency", "--over", "steps"],
        "captum:Saliency takes the place of --over",
    ),
    "ε without attack": (
        ["gradients", "tiny_linf", "--over", "noise", "--eps", "1"],
        "--eps is 1, but over noise takes no attack",
    ),
    "width without noise": (
        ["gradients", "tiny_linf", "--over", "steps", "--sigma", "0.5"],
        "--sigma is 0.5, but over steps does not take it; of these options it takes --samples, --norm, --loss, --use",
    ),
    "start without path": (
        ["gradients", "tiny_linf", "--over", "noise", "--baseline", "white"],
        "--baseline is white, but over noise",
    ),
    "norm without attack": (["gradients", "tiny_linf", "--over", "path", "--norm", "l2"], "--norm is l2, but over path does not"),
    "draws without any": (["gradients", "tiny_linf", "--over", "class", "--samples", "9"], "--samples is 9, but over class does"),
    "rule of captum": (
        ["gradients", "tiny_linf", "--method", "captum:Saliency", "--rule", "midpoint"],
        "--rule is midpoint, but captum:Saliency does not take it; leave it out",
    ),
    "no draws": (["gradients", "tiny_linf", "--over", "noise", "--n", "0"], "n is 0, sigma 0.1, chunk None; expected n ≥ 1"),
    "keep": (["perturb", "tiny_linf", "--keep", "first"], "keep is 'first'; expected one of last, best"),
    "all of the target": (
        ["perturb", "tiny_linf", "-n", "1", "--target", "cat"],
        "all 1 images are of the target class cat; expected some of another",
    ),
    "ε of one": (["accuracy", "tiny_linf", "--eps", "8/255,1"], "'8/255,1' is not a number"),
    "device": (["gradients", "tiny_linf", "--device", "gpu"], "device is 'gpu'; expected cpu, cuda, cuda:0 or mps"),
    "over": (["gradients", "tiny_linf", "--over", "time"], "over is 'time'; expected one of steps, noise, path"),
    "images": (["attention", "tiny_linf", "--images", "cifar"], "'cifar' is no image source; expected samples:cifar10"),
    "samples": (["attention", "tiny_linf", "--images", "samples:mnist"], "no samples 'mnist'"),
    "layer of a relevance": (
        ["attention", "tiny_linf", "--method", "raw,chefer", "--layer", "cls_attn_blocks.1.attn"],
        "--layer is cls_attn_blocks.1.attn, but chefer chains all layers of the last stage",
    ),
    "attention layer of a class activation map": (
        ["attention", "tiny_linf", "--method", "gradcam,raw", "--layer", "cls_attn_blocks.1.attn"],
        "an attention layer of tiny_linf, but gradcam reads a feature map; give a layer such as blocks.-1",
    ),
    "answers about a card": (
        ["attention", "tiny_linf", "--images", "whole.png", "--normalise", "half"],
        "are for files without a card, and tiny_linf includes none",
    ),
    "answers about a card, judged": (["faithfulness", "tiny_linf", "--arch", "xcit_p4"], "and tiny_linf includes none"),
    "normaliser": (["attention", "bare.pt", "--images", "whole.png", "--normalise", "grey"], "normalise is 'grey'; expected"),
    "open questions": (["faithfulness", "bare.pt", "--images", "whole.png"], "say --normalise none|imagenet|half"),
    "method to judge": (
        ["faithfulness", "--methods", "saliency,salience"],
        "there is no method 'salience'; expected some of saliency",
    ),
    "method to judge twice": (["faithfulness", "--methods", "raw,raw"], "expected each once"),
    "filling": (["faithfulness", "--baseline", "red"], "baseline is 'red'; expected one of black, mean, blur, noise"),
    "patch": (["faithfulness", "tiny_linf", "-n", "1", "--patch", "5"], "patches of 5 pixels do not tile an image of 32 × 32"),
    "no labels": (["accuracy", "tiny_linf", "--images", "whole.png"], "accuracy needs labelled images"),
    "n = 0": (["accuracy", "tiny_linf", "-n", "0"], "0 images were asked for; expected at least 1"),
    "n = 0, attention": (["attention", "tiny_linf", "-n", "0"], "0 images were asked for; expected at least 1"),
    "n < 0, gradients": (["gradients", "tiny_linf", "-n", "-3"], "-3 images were asked for; expected at least 1"),
    "no result": (["plot", "missing.nc"], "there is no result at missing.nc"),
    "other result": (["plot", "page.pt"], "page.pt is not a result of interp"),
    "no recipe": (["train", "r.toml", "--data", "folder:five", "--test", "folder:five"], "there is no recipe at r.toml"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_message_and_nothing_written(case: str, world: Path, run: Run) -> None:
    argv, says = BAD[case]
    before = sorted(world.rglob("*"))
    code, printed, said = run(*argv, "--out-dir", "out")
    assert code == 2
    assert said.startswith("interp: ") and says in said
    assert "Traceback" not in said and said.count("\n") == 1 and not printed
    assert sorted(world.rglob("*")) == before


def test_without_any_checkpoint_the_message_says_where_they_are_looked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTERP_CHECKPOINTS", str(tmp_path))
    code, _, said = run("attention", "--out-dir", tmp_path / "out")
    assert code == 2 and "no shipped checkpoints were found" in said and not any(tmp_path.iterdir())


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    here = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=here, timeout=120)


HEAVY = "import sys; found = {'torch', 'timm', 'matplotlib', 'xarray', 'pandas'} & set(sys.modules); assert not found, found"


def ending_well(*argv: str) -> str:
    call = "try: main()\nexcept SystemExit as e: assert not e.code"
    return f"import sys; sys.argv = {list(argv)}\nfrom interp.cli import main\n{call}"


@pytest.mark.parametrize(
    "code",
    [
        "import interp",
        "import interp, interp.cli; interp.InputError; dir(interp)",
        ending_well("interp", "--help"),
        ending_well("interp", "perturb", "--help"),
    ],
)
def test_import_and_help_need_nothing_heavy(code: str) -> None:
    done = python(f"{code}\n{HEAVY}")
    assert done.returncode == 0, done.stderr


def test_the_real_process_exits_with_2_and_one_line(checkpoints: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['interp', 'attention', 'no_such', '--out-dir', {str(tmp_path / 'out')!r}]"
    done = python(f"{code}\nfrom interp.cli import main; main()", INTERP_CHECKPOINTS=str(checkpoints))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("interp: 'no_such' is neither")
    assert not (tmp_path / "out").exists() and not done.stdout


def test_every_public_name_is_there_each_time_it_is_asked_for() -> None:
    done = python("import interp\nfor name in 2 * interp.__all__: assert callable(getattr(interp, name)), name")
    assert done.returncode == 0, done.stderr
    assert dir(interp) == sorted(interp.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'lod'; it has PGD"):
        interp.lod  # noqa: B018


STRIPS = (("perturbations", ""), ("deltas", "_away"), ("deltas", "_toward"))
TWINS = ("linf", "standard")
HAPPY: dict[str, tuple[list[str], list[str]]] = {
    "attention": (
        ["-n", "2"],
        [
            "attention",
            "attention_layers",
            *(f"{kind}_tiny_{twin}_0" for kind in ("heads", "channels") for twin in ("linf", "standard")),
        ],
    ),
    "gradients": (["-n", "2", "--samples", "2"], ["gradients", "profiles"]),
    "perturb": (
        ["-n", "2", "--steps", "1", "--eps", "8/255,1"],
        [*(f"{name}_{i}{way}" for i in (0, 1) for name, way in STRIPS), "curves", "success"],
    ),
    "accuracy": (["-n", "3"], ["accuracy"]),
    "synthesise": (["--steps", "2"], ["synthesis"]),
    "invert": (["--steps", "2", "-n", "2"], ["inversion"]),
}


RESULTS = {"attention": ["attention", "attention_heads", "attention_heads", "attention_layers", "attention_queries"]}


@pytest.mark.parametrize("command", HAPPY)
def test_a_command_writes_figures_and_its_results_and_the_second_run_computes_nothing(
    command: str, checkpoints: Path, tmp_path: Path, run: Run
) -> None:
    argv, figures = HAPPY[command]
    folder = tmp_path / "out"
    code, printed, _ = run(command, *argv, "--out-dir", folder)
    assert code == 0
    for name in figures:
        assert str(folder / f"{name}.png") in printed
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(p.stem for p in folder.glob("*.p*")) == sorted(2 * figures)
    saved = sorted((folder / "results").iterdir())
    results = [interp.open(path) for path in saved]
    assert [path.name for path in saved] == [f"{r.kind}-{r.key}.nc" for r in results]
    assert len(saved) == 1 or [r.kind for r in results] == RESULTS[command]
    for data in (r.data for r in results if r.kind != "attention_heads"):
        assert data["model"].values.tolist() == ["tiny_linf", "tiny_standard"]
        assert data["robust"].values.tolist() == [True, False]
    drawn = folder / f"{figures[0]}.png"
    first = [path.stat().st_mtime_ns for path in saved], drawn.read_bytes()
    assert run(command, *argv, "--out-dir", folder)[0] == 0
    assert sorted((folder / "results").iterdir()) == saved
    assert ([path.stat().st_mtime_ns for path in saved], drawn.read_bytes()) == first


def test_perturb_takes_its_options_and_writes_films_and_pages(checkpoints: Path, tmp_path: Path, run: Run) -> None:
    options = ["--norm", "l2", "--eps", "1/2", "--target", "each", "--steps", "2", "--step-size", "1/8", "--loss", "margin"]
    options += ["--rule", "momentum", "--start", "image", "--basis", "fourier", "--jitter", "1", "--blur", "0.5", "--seed", "3"]
    options += ["--precision", "float64", "--chunk", "7", "--animate", "gif", "--slider", "step"]
    code, printed, _ = run("perturb", "tiny_linf", "-n", "1", *options, "--out-dir", tmp_path)
    assert code == 0
    for name in ("perturbations_0.png", "classes_0.png", "animation_0.gif", "slider_0.html", "curves.png", "success.png"):
        assert str(tmp_path / name) in printed and (tmp_path / name).stat().st_size > 2000
    assert "success (n = 1)" in printed and "toward truck" in printed and "ε = 0.5" in printed
    (saved,) = (tmp_path / "results").iterdir()
    params = interp.open(saved).params
    attack = {"norm": "l2", "eps": 0.5, "steps": 2, "step_size": 0.125, "loss": "margin", "rule": "momentum", "seed": 3}
    attack |= {"random_start": False, "basis": "fourier", "jitter": 1, "blur": 0.5, "targeted": False, "restarts": 1}
    assert params == {"eps": [0.5], "target": "each", "frames": 25, "precision": "float64", "attack": attack}


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", [8 / 255, 32 / 255, 128 / 255, 1]), ("l2", [0.5, 2, 8, 32]), ("l1", [10, 50, 200, 1000])]
)
def test_perturb_takes_the_norms_own_eps(norm: str, eps: list[float], checkpoints: Path, tmp_path: Path, run: Run) -> None:
    assert run("perturb", "tiny_linf", "-n", "1", "--steps", "1", "--norm", norm, "--out-dir", tmp_path)[0] == 0
    assert interp.open(next((tmp_path / "results").iterdir())).params["eps"] == pytest.approx(eps)


@pytest.mark.parametrize("command", ["synthesise", "invert"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_syntheses_and_inversions_are_not_bound_by_default(
    command: str, norm: str, checkpoints: Path, tmp_path: Path, run: Run
) -> None:
    few = ["--target", "cat"] if command == "synthesise" else ["-n", "1"]
    options = [*few, "--steps", "1", "--norm", norm, "--device", "cpu"]
    assert run(command, "tiny_linf", *options, "--out-dir", tmp_path)[0] == 0
    eps = interp.open(next((tmp_path / "results").iterdir())).params["attack"]["eps"]
    d = 3 * 32 * 32
    asked = {"linf": 15, "l2": 40 if command == "invert" else 56, "l1": d}[norm]
    assert eps == asked and (eps >= {"linf": 1, "l2": d**0.5, "l1": d}[norm] or command == "invert")


def test_faithfulness_takes_its_options_and_prints_its_table(checkpoints: Path, tmp_path: Path, run: Run) -> None:
    argv = [
        "-n",
        "1",
        "--steps",
        "2",
        "--patch",
        "16",
        "--methods",
        "raw",
        "--no-randomise",
        "--baseline",
        "black",
        "--seed",
        "3",
    ]
    code, printed, _ = run("faithfulness", *argv, "--chunk", "5", "--out-dir", tmp_path)
    assert code == 0
    result = interp.open(next((tmp_path / "results").iterdir()))
    asked = {"methods": ["raw"], "steps": 2, "patch": 16, "randomise": False, "baseline": "black", "seed": 3, "example": 0}
    assert result.params == asked
    assert result.data["model"].values.tolist() == ["tiny_linf", "tiny_standard"] and result.data.sizes["image"] == 1
    assert "randomisation_similarity" not in result.data
    assert (tmp_path / "faithfulness.png").read_bytes().startswith(b"\x89PNG")
    assert printed.startswith(f"wrote {tmp_path / 'faithfulness.png'}") and all(
        str(v) in printed for v in result.data["label"].values
    )


CHEAP = {
    "attention": ("map", ["--grids", "0"]),
    "faithfulness": ("example", ["--methods", "raw", "--steps", "1", "--patch", "16", "--no-randomise"]),
}


@pytest.mark.parametrize(("command", "normalise"), [("attention", "cifar10"), ("attention", "none"), ("faithfulness", "none")])
def test_a_bare_file_is_what_is_said_of_it_and_a_model_beside_it_what_its_card_says(
    command: str, normalise: str, world: Path, run: Run
) -> None:
    name, cheap = CHEAP[command]
    said = ["--arch", "xcit_p4", "--arch-arg", "embed_dim=32", "--arch-arg", "depth=2", "--normalise", normalise]
    code, _, error = run(command, "bare.pt", "tiny_linf", "--images", "whole.png", "-n", "1", *cheap, *said, "--out-dir", "out")
    assert code == 0, error
    (saved,) = (world / "out" / "results").glob(f"{command}-*.nc")
    bare, carded = interp.open(saved).data[name].isel(reading=0).values
    assert np.array_equal(bare, carded) == (normalise == "cifar10")  # the same weights; the card says cifar10


@pytest.mark.parametrize(
    ("method", "layer", "drawn"),
    [
        ("gradcam", "blocks.0", ["cls_attn_blocks.0.attn", "cls_attn_blocks.1.attn"]),
        ("raw", "cls_attn_blocks.0.attn", ["cls_attn_blocks.0.attn"]),
    ],
)
def test_attention_reads_the_layer_that_is_named(
    method: str, layer: str, drawn: list[str], checkpoints: Path, tmp_path: Path, run: Run
) -> None:
    assert run("attention", "tiny_linf", "-n", "1", "--method", method, "--layer", layer, "--out-dir", tmp_path)[0] == 0
    saved = {path.name.rpartition("-")[0]: interp.open(path).data for path in (tmp_path / "results").iterdir()}
    assert str(saved["attention"]["how"].values[0, 0]).endswith(f"at layer {layer}")
    assert saved["attention_heads"]["layer"].values.tolist() == drawn


def test_compare_takes_its_options_prints_its_table_and_writes_the_page(checkpoints: Path, tmp_path: Path, run: Run) -> None:
    argv = ["-n", "2", "--steps", "1", "--eps", "16/255", "--groups", "appearance,written", "--chunk", "1", "--device", "cpu"]
    code, printed, _ = run("compare", *argv, "--out-dir", tmp_path)
    assert code == 0
    result = interp.open(next((tmp_path / "results").iterdir()))
    assert result.params["groups"] == ["appearance", "written"] and result.params["attack"]["eps"] == pytest.approx(16 / 255)
    for name in ("compare.png", "judges_perturbation.png", "judges_image.png", "examples.png", "spectra.png", "measures.html"):
        assert f"wrote {tmp_path / name}" in printed and (tmp_path / name).is_file()
    assert "edge alignment" in printed and "left out: written: " in printed


def test_faithfulness_lists_its_methods_and_starts_with_the_default_ones() -> None:
    from interp.cli.attention import faithfulness
    from interp.faithfulness.methods import DEFAULT, METHODS, named

    assert named(inspect.signature(faithfulness).parameters["methods"].default.split(",")) == DEFAULT
    words = words_of_help("faithfulness").replace(":", ",").replace(".", ",")
    assert all(f" {name}," in words for name in METHODS)


@pytest.mark.parametrize("command", ["perturb", "synthesise", "invert"])
def test_the_best_point_is_kept_on_demand(command: str, checkpoints: Path, tmp_path: Path, run: Run) -> None:
    few = ["--target", "cat,ship"] if command == "synthesise" else ["-n", "2"]
    code, printed, _ = run(command, "tiny_linf", *few, "--steps", "2", "--keep", "best", "--device", "cpu", "--out-dir", tmp_path)
    assert code == 0
    assert interp.open(next((tmp_path / "results").iterdir())).params["attack"]["keep"] == "best"
    assert ("steps of 11.25 leap across the box" in printed) == (command == "synthesise")


def test_a_folder_of_some_classes_is_read_by_their_names(checkpoints: Path, tmp_path: Path, run: Run) -> None:
    for i, name in enumerate(("frog", "cat")):
        write_image(tmp_path / "some" / name / "a.png", (32, 32), seed=i)
    options = ["--images", f"folder:{tmp_path / 'some'}", "--samples", "2", "--device", "cpu"]
    assert run("gradients", "tiny_linf", *options, "--out-dir", tmp_path / "out")[0] == 0
    data = interp.open(next((tmp_path / "out" / "results").iterdir())).data
    assert dict(zip(data["image"].values.tolist(), data["truth"].values.tolist(), strict=True)) == {
        "cat/a.png": 3,
        "frog/a.png": 6,
    }


def test_the_table_of_success_fits_eighty_columns_and_leaves_out_what_nothing_counts_in(
    tiny_models: list[interp.Model], samples: interp.Batch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = interp.Sweep((8 / 255, 32 / 255, 128 / 255, 1.0), interp.PGD(0.1, steps=1), target="each")
    result = interp.sweep(tiny_models[:1], samples[:1], params)
    monkeypatch.setattr("interp.cli.options.out", Console(width=80))
    print_success(result)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert all(
        name in lines[1] + lines[0] for name in ("success (n = 1)", "ε = 8/255", "ε = 32/255", "ε = 128/255", "(unbounded)")
    )
    assert max(map(len, lines)) <= 80 and not any("nan" in line for line in lines)
    kept = int((result.data["success_n"].values[0, :, 0] > 0).sum())
    assert sum("%, " in line for line in lines) == kept and kept in (9, 10)  # away, and all but its class and what it is read as
    assert lines[-1].startswith(f"left out: {11 - kept} rows")


def test_gradients_take_norm_and_seed(checkpoints: Path, tmp_path: Path, run: Run) -> None:
    options = ["-n", "1", "--samples", "2", "--norm", "l2", "--seed", "4", "--device", "cpu"]
    assert run("gradients", "tiny_linf", *options, "--out-dir", tmp_path)[0] == 0
    attack = interp.open(next((tmp_path / "results").iterdir())).params["attack"]
    assert (attack["norm"], attack["eps"], attack["seed"]) == ("l2", 0.5, 4)


def words_of_help(command: str) -> str:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "400"}).output
    return " ".join(shown.split())


def test_help_says_several_only_where_several_are_taken() -> None:
    several = {c: "several with commas" in words_of_help(c) for c in ("perturb", "invert", "gradients", "compare", "accuracy")}
    assert several == {"perturb": True, "invert": False, "gradients": False, "compare": False, "accuracy": False}
    assert "L2 0.5,2,8,32" in words_of_help("perturb")
    told = words_of_help("gradients")
    assert "Gradients per image: --samples" in told and "Images: -n" in told


def test_a_class_is_found_by_its_first_synonym_and_otherwise_the_nearest_are_named(tiny: Callable[..., interp.Model]) -> None:
    names = [
        "tench, Tinca tinca",
        "crane",
        "great grey owl, Strix nebulosa",
        "crane, tower crane",
        *(f"owl{i}" for i in range(30)),
    ]
    card = dataclasses.replace(tiny("xcit").card, num_classes=34, labels=tuple(names))
    model = SimpleNamespace(card=card)
    asked = ("tench", "tench, Tinca tinca", "great grey owl", "crane, tower crane", "7")
    assert [class_index(model, text) for text in asked] == [0, 0, 2, 3, 7]  # type: ignore[arg-type]
    assert class_index(model, "crane") == 1  # type: ignore[arg-type]  # the whole of one name before the first word of another
    with pytest.raises(interp.InputError, match=r"the nearest of its 34 classes are great grey owl; give a name") as caught:
        class_index(model, "Great gray owl")  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200
    twice = SimpleNamespace(card=dataclasses.replace(card, labels=("crane", *names[1:])))
    with pytest.raises(interp.InputError, match="'crane' is the name of the classes 0 and 1"):
        class_index(twice, "crane")  # type: ignore[arg-type]
    with pytest.raises(interp.InputError) as caught:
        class_index(model, "owl")  # type: ignore[arg-type]
    assert str(caught.value).count("owl") <= 9


def test_synthesise_from_a_gaussian_toward_named_classes(checkpoints: Path, tmp_path: Path, run: Run) -> None:
    options = ["--start", "gaussian", "--target", "ship,6", "--seeds", "2", "--norm", "l2", "--eps", "4", "--steps", "2"]
    code, printed, _ = run("synthesise", *options, "--out-dir", tmp_path)
    assert code == 0 and "synthesis_0.png" in printed and "synthesis_1.png" in printed
    result = interp.open(next((tmp_path / "results").iterdir()))
    assert result.data["target"].values.tolist() == ["ship", "frog"]
    moved = np.sqrt(((result.data["picture"] - result.data["start"]) ** 2).sum(("y", "x", "channel")))
    assert (moved > 0.1).all() and (moved < 4 + 1e-4).all()


@pytest.mark.parametrize(("kind", "made"), [("attention", "attention.png"), ("attention_queries", "attention.html")])
def test_a_saved_result_is_drawn_again_without_torch(kind: str, made: str, checkpoints: Path, tmp_path: Path, run: Run) -> None:
    assert run("attention", "tiny_linf", "-n", "1", "--grids", "0", "--out-dir", tmp_path / "out")[0] == 0
    (saved,) = (tmp_path / "out" / "results").glob(f"{kind}-*.nc")
    code = ending_well("interp", "plot", str(saved), "--out-dir", str(tmp_path / "again"))
    done = python(f"{code}\nassert 'torch' not in sys.modules and 'timm' not in sys.modules")
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path / 'again' / made}" in " ".join(done.stdout.split())
    assert (tmp_path / "again" / made).read_bytes() == (tmp_path / "out" / made).read_bytes()


NEEDLESS = {
    "attention": ["--grids", "0"],
    "faithfulness": ["--methods", "raw", "--steps", "1", "--patch", "16", "--no-randomise"],
    "invert": ["--steps", "1"],
    "synthesise": ["--steps", "1", "--target", "cat"],
    "attention, attacked": ["--grids", "0", "--under-attack", "8/255", "--steps", "1"],
}


@pytest.mark.parametrize("command", NEEDLESS)
def test_labels_that_are_not_the_models_are_left_out_where_none_are_needed(
    command: str, world: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    argv = [command.partition(",")[0], "tiny_linf", "--images", "folder:five", "-n", "2", *NEEDLESS[command], "--out-dir", "out"]
    code, _, error = run(*argv)
    assert code == 0, error
    (warned,) = (record.getMessage() for record in caplog.records if "labels" in record.getMessage())
    assert warned.startswith("the images' labels are left out, since nothing here needs them: model tiny_linf has 10 classes")
    data = interp.open(next((world / "out" / "results").glob(f"{'inversion' if command == 'invert' else command[:8]}*.nc"))).data
    assert "truth" not in data or data["truth"].values.tolist() == [-1, -1]


def test_the_maps_under_attack_are_read_by_the_first_method(checkpoints: Path, tmp_path: Path, run: Run) -> None:
    options = ["--method", "gradcam,raw", "--under-attack", "8/255", "--steps", "1", "-n", "1", "--grids", "0"]
    assert run("attention", "tiny_linf", *options, "--out-dir", tmp_path)[0] == 0
    (saved,) = (tmp_path / "results").glob("attention_shift-*.nc")
    result = interp.open(saved)
    assert result.params["method"] == "gradcam" and str(result.data["how"].values[0]).startswith("Grad-CAM")
    told = words_of_help("attention")
    assert "read by the first of --method; --layer, --head and --query do not apply" in told


@pytest.mark.parametrize(("asked", "drawn", "measured"), [([], 6, 20), (["-n", "3"], 3, 3)])
def test_the_numbers_by_layer_are_of_as_many_images_as_were_asked_for(
    asked: list[str], drawn: int, measured: int, checkpoints: Path, tmp_path: Path, run: Run
) -> None:
    assert run("attention", "tiny_linf", *asked, "--grids", "0", "--out-dir", tmp_path)[0] == 0
    saved = {path.name.rpartition("-")[0]: interp.open(path).data for path in (tmp_path / "results").iterdir()}
    assert {kind: data.sizes["image"] for kind, data in saved.items()} == {
        "attention": drawn,
        "attention_queries": drawn,
        "attention_layers": measured,
    }
    assert "if not given, 6, and 20 for the numbers by layer" in words_of_help("attention")


def test_models_lists_the_cards(checkpoints: Path, run: Run) -> None:
    code, printed, _ = run("models")
    assert code == 0 and "linf 8/255" in printed
    assert [word for word in printed.split() if word.startswith("tiny")] == ["tiny_linf", "tiny_standard"]


def test_ctrl_c_ends_with_130_keeps_what_was_done_and_leaves_nothing_half(
    checkpoints: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("attention", "-n", "1", "--out-dir", tmp_path / "out")[0] == 0
    done = sorted(p for p in (tmp_path / "out").rglob("*"))
    monkeypatch.setattr("interp.attention.attend.read", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    code, _, said = run("attention", "-n", "2", "--out-dir", tmp_path / "out")
    assert code == 130 and "Traceback" not in said
    assert sorted(p for p in (tmp_path / "out").rglob("*")) == done


def test_ctrl_c_ends_with_130_and_one_line_and_leaves_no_half_file(checkpoints: Path, tmp_path: Path) -> None:
    code = "import sys; from interp.cli import main; sys.argv = ['interp', *sys.argv[1:]]; main()"
    command = [sys.executable, "-c", code, "gradients", "tiny_linf", "--samples", "1000000", "--out-dir", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = ""
        while "gradients over steps" not in seen:  # the bar is up: the analysis runs
            seen += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished results are kept" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()
