"""Tiny seeded models, the bundled photographs, and a folder of published twins that stands in for the shipped one."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import interp
from interp.cli import main
from interp.data.labels import CIFAR10
from interp.models.build import build
from interp.models.model import Model
from interp.publish import publish
from interp.training.recipe import Recipe
from interp.types import Batch, Card, Preprocess

os.environ["OMP_NUM_THREADS"] = "1"  # of the notebooks and commands that tests start: one thread each, beside other workers

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "xcit": ("xcit_p4", {"embed_dim": 32, "depth": 2}),
    "mobilevit": ("mobilevit_32", {"variant": "mobilevit_xxs", "strides": [1, 2, 2, 2, 1, 1]}),
    "resnet": ("resnet50_32", {"width": 4, "stem_stride": 2, "output_stride": 16}),
}
CIFAR10_PREPROCESS = Preprocess(32, 32, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))


def seeded(arch: str, args: dict[str, Any], seed: int) -> nn.Module:
    """Random weights, and random statistics in every batch norm, so that no part computes an identity."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build(arch, num_classes=10, arch_args=args)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test measures (chunk sizes) is remembered on the user's machine."""
    torch.set_num_threads(1)
    os.environ["INTERP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Model]:
    """tiny("xcit" | "mobilevit" | "resnet", seed=0, **card fields) → a Model of width ≤ 32 with its own Card."""

    def make(family: str, *, seed: int = 0, **card: Any) -> Model:
        arch, args = TINY[family]
        fields: dict[str, Any] = {"id": f"tiny_{family}", "preprocess": CIFAR10_PREPROCESS} | card
        return Model(seeded(arch, args, seed), Card(arch=arch, arch_args=args, num_classes=10, **fields))

    return make


@pytest.fixture(scope="session")
def samples() -> Batch:
    return interp.images("samples:cifar10")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, samples: Batch) -> Path:
    """Two tiny XCiT twins as `publish` writes them; read-only, see `checkpoints`."""
    folder = tmp_path_factory.mktemp("published")
    arch, args = TINY["xcit"]
    linf = Recipe("tiny_linf", arch, args, preprocess=CIFAR10_PREPROCESS, objective="pgd", eps=8 / 255)
    for seed, recipe in enumerate((linf, dataclasses.replace(linf, id="tiny_standard", objective="standard", eps=0.0))):
        publish(seeded(arch, args, seed), recipe, samples[:4], folder=folder, attacked=2)
    return folder


@pytest.fixture
def checkpoints(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the published twins that the test may spoil, found by `shipped()`."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(published, folder)
    monkeypatch.setenv("INTERP_CHECKPOINTS", str(folder))
    return folder


@pytest.fixture(scope="session")
def model_test() -> Path:
    """The CIFAR-10 ResNet-18 from elsewhere that the pyautoattack wheel carries."""
    spec = importlib.util.find_spec("pyautoattack")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "examples" / "model_test.pt"


@pytest.fixture(scope="session")
def tiny_models(tiny: Callable[..., Model]) -> list[Model]:
    """One tiny model of each family, with class names."""
    return [tiny(family, labels=CIFAR10) for family in TINY]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run("attention", …) → exit code, what it printed, what it said on stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["interp", *map(str, argv)])
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        said = capsys.readouterr()
        return (code if isinstance(code, int) else 0 if code is None else 1), said.out, said.err

    return call
