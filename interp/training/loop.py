"""Adversarial training from a recipe to weights: resumable, watched, on a processor, one GPU or several (torchrun)."""

from __future__ import annotations

import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from interp.training.augment import generators_kept
from interp.training.feed import Feed, Source
from interp.training.recipe import Recipe
from interp.training.record import Meter, read_state, save_state
from interp.training.trainer import Trainer, World, accuracies
from interp.types import Batch, InputError

log = logging.getLogger(__name__)

ROW = 50  # steps per row of the metrics
SAVE_EVERY = 600.0  # seconds between states within an epoch


class Diverged(InputError):
    """The loss is no number any more; the message says where the last good weights are."""


def train(
    recipe: Recipe,
    data: Source,
    *,
    extra: Source | None = None,
    watch: Batch | None = None,
    folder: Path | None = None,
    fresh: bool = False,
    device: str = "cpu",
    workers: int = 0,
) -> nn.Module:
    """Train by a recipe and return the averaged bare network in eval mode, on the processor.

    data, extra: as `read_pixels` or `read_encoded` give them. watch: images whose clean and PGD-10 accuracy is taken after each
    epoch. folder: where metrics and state go; a run found there is continued unless `fresh`. workers: processes that decode and
    augment single images. Raises InputError for data that do not fit the recipe or the memory, Diverged where the loss becomes
    infinite or NaN (the last good weights stay in the folder).
    """
    where = torch.device(device)
    world = World.join(where)
    sources = [data] if extra is None else [data, extra]
    feed = Feed(recipe, sources, rank=world.rank, world=world.size)
    with generators_kept():
        try:
            trainer = Trainer(recipe, total=feed.total, per_epoch=feed.per_epoch, device=where, world=world)
            run = _Run(trainer, feed, folder if world.rank == 0 else None, watch)
            run.resume(folder, fresh)
            run.go(workers)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise InputError(_too_large(recipe, where)) from error
    net: nn.Module = trainer.averaged().net  # type: ignore[assignment]
    return net.cpu().eval().requires_grad_(False)


class _Run:
    """The loop around a trainer: rows, states, progress."""

    def __init__(self, trainer: Trainer, feed: Feed, folder: Path | None, watch: Batch | None) -> None:
        self.trainer, self.feed, self.folder = trainer, feed, folder
        self.watch, self.minutes = watch, 0.0
        self.made_of = {"data": feed.digest, "processes": trainer.world.size}
        self.look_every = 1 if trainer.device.type == "cpu" else 20  # a GPU waits whenever a loss is looked at

    def resume(self, folder: Path | None, fresh: bool) -> None:
        """Go on from the folder's state, or begin there."""
        if folder is None:
            return
        if fresh and self.folder:
            for name in ("state.pt", "last.safetensors", "metrics.csv"):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        state = None if fresh else read_state(folder, self.trainer.recipe, self.made_of)
        if state is not None:
            self.trainer.restore(state)
            self.minutes = float(state["minutes"])
            log.info("%s: continued at step %d of %d", folder, self.trainer.index, self.feed.total)
        if self.folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "recipe.toml").write_text(self.trainer.recipe.to_toml(), encoding="utf-8")

    def go(self, workers: int) -> None:
        """Train to the end; a state is kept at each epoch's end, every ten minutes and when interrupted."""
        trainer, recipe = self.trainer, self.trainer.recipe
        meter = Meter(self.folder, trainer)
        self.started = self.saved = time.monotonic()
        bar = tqdm(initial=trainer.index, total=self.feed.total, desc=recipe.id, mininterval=2, disable=trainer.world.rank > 0)
        told: dict[str, float] = {}
        with _steps_finished() as interrupted, _closing(bar, meter):
            for x, y in self.feed.batches(trainer.index, trainer.device, workers=workers):
                meter.update(trainer.step(x, y))
                bar.update()
                if trainer.index % self.look_every == 0 or trainer.index == self.feed.total:
                    self._check(meter.loss())
                ended = int(trainer.index / self.feed.per_epoch) > int((trainer.index - 1) / self.feed.per_epoch)
                ended = ended or trainer.index == self.feed.total
                if ended or trainer.index % ROW == 0:
                    told |= meter.write(self._watched if ended else None)
                    shown = {k: f"{told[k]:.3f}" for k in ("loss", "accuracy", "clean", "pgd10") if k in told}
                    bar.set_postfix(shown, refresh=False)
                if ended or interrupted or time.monotonic() - self.saved > SAVE_EVERY:
                    self._save()
                    meter.start()
                if interrupted:
                    raise KeyboardInterrupt

    def _check(self, loss: float) -> None:
        """Raise Diverged where the loss is no number."""
        if math.isfinite(loss):
            return
        trainer, recipe = self.trainer, self.trainer.recipe
        kept = self.folder / "last.safetensors" if self.folder else None
        good = f"; the last good weights are {kept}" if kept and kept.is_file() else ""
        raise Diverged(
            f"the loss is {loss} at step {trainer.index} of {trainer.total}{good}. Lower lr (now {recipe.lr:g}), "
            f"or set clip (now {recipe.clip:g}) or a longer lr_warmup (now {recipe.lr_warmup:g} epochs), under another id; "
            "start = FILE goes on from weights"
        )

    def _watched(self) -> tuple[float, float] | None:
        if self.watch is None:
            return None
        model = self.trainer.averaged()
        if self.trainer.world.rank:
            return None
        recipe, device = self.trainer.recipe, self.trainer.device
        x, y = self.watch.images.to(device), self.watch.labels.to(device)
        return accuracies(model, x, y, recipe.eps or 8 / 255, recipe.norm)

    def _save(self) -> None:
        """Keep the state, unless the last step spoilt the weights, which its loss does not show yet."""
        sizes = torch.stack([p.detach().norm() for p in self.trainer.model.parameters()])
        self._check(float(sizes.sum()))
        now = time.monotonic()
        self.minutes += (now - self.started) / 60
        self.started = self.saved = now
        if self.folder:
            save_state(self.trainer, self.folder, self.made_of | {"minutes": round(self.minutes, 3)})


@contextmanager
def _steps_finished() -> Iterator[list[int]]:
    """Inside, the first Ctrl-C fills the list instead of raising, so that no step is left half done; the second raises."""
    seen: list[int] = []

    def note(number: int, _: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _closing(bar: tqdm, meter: Meter) -> Iterator[None]:
    try:
        yield
    finally:
        bar.close()
        meter.close()


def _too_large(recipe: Recipe, device: torch.device) -> str:
    half = max(2, recipe.batch_size // 2)
    bf16 = "" if recipe.precision == "bf16" else ', or precision = "bf16"'
    return (
        f"{recipe.id} with batch_size {recipe.batch_size} does not fit into the memory of {device}; "
        f"try --set batch_size={half} (and lr={recipe.lr / 2:g}){bf16}"
    )
