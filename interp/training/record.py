"""What a run leaves behind while it goes on: metrics as CSV and for TensorBoard, and the state to continue from.

metrics.csv         step, epoch, loss, accuracy (of what is trained on), lr, eps, images_per_second; clean, pgd10 if watched
tensorboard/        the same, where tensorboard is installed
recipe.toml         the recipe, defaults too
state.pt            network, average, optimiser, step
last.safetensors    the averaged weights of that state, which `interp.load` reads
"""

from __future__ import annotations

import csv
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from interp.models.known import CARD
from interp.training.recipe import Recipe
from interp.training.trainer import Seen, Trainer
from interp.types import InputError

COLUMNS = ("step", "epoch", "loss", "accuracy", "lr", "eps", "images_per_second", "clean", "pgd10")


class Meter:
    """Means over the steps since the last row, written as a row; earlier rows of a continued run are kept up to its step."""

    def __init__(self, folder: Path | None, trainer: Trainer) -> None:
        self.trainer, self.folder = trainer, folder
        self.seen: list[Seen] = []
        self.since = time.perf_counter()
        self.board = _board(folder, trainer.index)
        if folder:
            kept = [row for row in rows_of(folder) if int(row["step"]) <= trainer.index]
            _write_rows(folder / "metrics.csv", kept)

    def update(self, seen: Seen) -> None:
        """Take note of a step; nothing is computed, so that a GPU is not waited for."""
        self.seen.append(seen)

    def loss(self) -> float:
        """Mean loss since the last row, infinite or NaN where one was."""
        return float(torch.stack([s.loss for s in self.seen]).mean()) if self.seen else 0.0

    def write(self, watch: Callable[[], tuple[float, float] | None] | None = None) -> dict[str, float]:
        """Close a row, with the clean and PGD-10 accuracy that `watch` gives (its time is not training); returns it."""
        trainer, recipe = self.trainer, self.trainer.recipe
        if not self.seen:
            return {}
        seconds = time.perf_counter() - self.since
        row = {
            "step": trainer.index,
            "epoch": round(trainer.index / trainer.per_epoch, 4),
            "loss": round(self.loss(), 5),
            "accuracy": round(float(torch.stack([s.accuracy for s in self.seen]).mean()), 5),
            "lr": round(self.seen[-1].lr, 8),
            "eps": round(self.seen[-1].eps, 6),
            "images_per_second": round(len(self.seen) * recipe.batch_size / seconds, 1),
        }
        if watch and (watched := watch()):
            row |= {"clean": round(watched[0], 4), "pgd10": round(watched[1], 4)}
        if self.folder:
            with (self.folder / "metrics.csv").open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)
        if self.board is not None:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(name, value, trainer.index)
            self.board.flush()
        self.seen = []
        self.start()
        return row

    def start(self) -> None:
        """Count time from now: what was watched or saved in between is not training."""
        self.since = time.perf_counter()

    def close(self) -> None:
        """Let go of TensorBoard's file."""
        if self.board is not None:
            self.board.close()


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics, empty where there are none."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def save_state(trainer: Trainer, folder: Path, told: dict[str, Any]) -> None:
    """Write state.pt and last.safetensors, each complete or not at all. told: what else belongs to the state, plain values."""
    recipe = trainer.recipe
    state = trainer.state() | {"recipe": recipe.to_toml()} | told
    _replace(folder / "state.pt", lambda part: torch.save(state, part))
    weights = {k: v.detach().cpu().contiguous() for k, v in trainer.average.module.net.state_dict().items()}
    card = recipe.card(origin="interp train, not finished")
    _replace(folder / "last.safetensors", lambda part: save_file(weights, part, metadata={CARD: card.to_toml()}))


def read_state(folder: Path, recipe: Recipe, made_of: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The state to continue from, None where there is none; raises InputError where recipe, data or processes are others."""
    path = folder / "state.pt"
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        told = state["recipe"]
    except Exception as error:  # torch raises many kinds on damaged files
        first = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be read ({first}); start anew with --fresh, or give another --out-dir") from error
    if told != recipe.to_toml():
        ours, theirs = recipe.to_toml().splitlines(), told.splitlines()
        differing = [line for line in ours if line not in theirs] or [line for line in theirs if line not in ours]
        raise InputError(
            f"{folder} holds a run of another recipe (now {'; '.join(differing[:3])}); "
            "give another --out-dir or id, or start anew with --fresh"
        )
    for name, value in (made_of or {}).items():
        if state.get(name) != value:
            what = f"{state.get(name)} processes, now {value}" if name == "processes" else "other training images"
            raise InputError(f"{folder} holds a run on {what}; give another --out-dir or id, or start anew with --fresh")
    return state


def minutes_of(folder: Path) -> float:
    """How long the run in a folder has trained, over all its legs."""
    return float(torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["minutes"])


def _replace(path: Path, write: Callable[[str], Any]) -> None:
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=".tmp")
    os.close(handle)
    try:
        write(part)
        Path(part).chmod(0o644)
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    def write(part: str) -> None:
        with Path(part).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    _replace(path, write)


def _board(folder: Path | None, step: int) -> Any:
    """TensorBoard's writer, None without a folder or without tensorboard."""
    if folder is None or importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
