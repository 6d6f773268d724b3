"""One command's worth of training: recipe and data → a run folder with weights, card, metrics and state."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from interp.data.source import images, read_encoded, read_pixels
from interp.publish import check_test_images, publish
from interp.training.feed import Source
from interp.training.loop import train
from interp.training.recipe import Recipe
from interp.training.record import minutes_of
from interp.types import Card, InputError


@dataclass(frozen=True)
class Machine:
    """Where a run happens: device ('' for the best there is), processor threads (0: all), worker processes (−1: by cores)."""

    device: str = ""
    threads: int = 0
    workers: int = -1

    def settle(self) -> tuple[torch.device, int]:
        """The device and the number of workers; raises InputError where there is no such device."""
        if self.threads:
            torch.set_num_threads(self.threads)
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            device = torch.device(self.device or best)
        except RuntimeError as error:
            raise InputError(f"device is {self.device!r}; expected cpu, cuda, cuda:0 or mps") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError("device is cuda, and torch finds no GPU here; give --device cpu, or install a CUDA build of torch")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        cores = os.cpu_count() or 1
        return device, (min(8, cores - 2) if cores > 2 else 0) if self.workers < 0 else self.workers


def train_and_publish(
    recipe: Recipe,
    data: str,
    test: str,
    *,
    extra: str | None = None,
    folder: Path,
    machine: Machine = Machine(),
    fresh: bool = False,
    tested: int | None = None,
    watched: int = 256,
    attacked: int = 1000,
    autoattack: int = 0,
    said: Mapping[str, str] | None = None,
) -> Card | None:
    """Train in FOLDER, measure, and leave FOLDER/ID.safetensors with its card there; a run found in FOLDER is continued.

    tested, watched, attacked, autoattack: how many test images to measure (all if None), to look at after each epoch, and to
    attack at the end. said: recipe file and command, for the card. Returns the card, None in all but the first of several
    processes. Raises InputError where recipe, data and test images do not fit together.
    """
    if min(watched, attacked, autoattack) < 0:
        raise InputError(
            f"watched, attacked and autoattack are {watched}, {attacked} and {autoattack}; expected 0 or more of each"
        )
    device, workers = machine.settle()
    held_out = images(test, n=tested, preprocess=recipe.preprocess)
    check_test_images(recipe, held_out)
    sources = [_source(recipe, spec) for spec in (data, extra) if spec]
    for source in sources:
        if source.classes and held_out.classes and source.classes != held_out.classes:
            ours, theirs = (", ".join(classes[:4]) for classes in (source.classes, held_out.classes))
            raise InputError(
                f"training images have the classes {ours}…, test images {theirs}…; give sets with the same ones in the same order"
            )
    net = train(
        recipe,
        sources[0],
        extra=sources[1] if extra else None,
        watch=held_out.some(watched) if watched else None,
        folder=folder,
        fresh=fresh,
        device=str(device),
        workers=workers,
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if int(os.environ.get("RANK", "0")):
        return None
    trained = dict(said or {}) | {
        "hardware": hardware(device),
        "minutes": round(minutes_of(folder), 1),
        "epochs": float(recipe.epochs),
        "finished": time.strftime("%Y-%m-%d"),
    }
    return publish(
        net, recipe, held_out, folder=folder, attacked=attacked, autoattack=autoattack, trained=trained, device=str(device)
    )


def hardware(device: torch.device) -> str:
    """What a run was computed on, in a few words."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "cuda":
        return f"{processes} × {torch.cuda.get_device_name(device)}"
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores, {_processor()}" + (
        f", {processes} processes" if processes > 1 else ""
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _source(recipe: Recipe, spec: str) -> Source:
    """Pixels in memory; files decoded as they are needed where each view is another crop of the original."""
    return read_encoded(spec) if recipe.resized_crop else read_pixels(spec, preprocess=recipe.preprocess)
