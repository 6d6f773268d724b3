"""Adversarial training (Madry et al., arXiv 1706.06083), plain: craft, step, average.

Each step crafts an adversarial batch with the network in eval mode (batch statistics are not touched by crafting), then
minimises cross-entropy on it in train mode. The exponential moving average of the weights is what is kept.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from interp.attacks.pgd import PGD, attack
from interp.loading.detect import mismatch
from interp.loading.formats import unwrap
from interp.loading.read import read
from interp.models.build import build
from interp.training.augment import crop_and_flip
from interp.training.recipe import Recipe
from interp.types import InputError


@dataclass(frozen=True)
class Schedule:
    """Learning rate and ε as shares of their peak, at a share t ∈ [0, 1] of all steps."""

    lr_warmup: float
    eps_warmup: float

    def lr(self, t: float) -> float:
        """Linear from 0 to 1 over lr_warmup, then half a cosine down to 0 at t = 1."""
        if t < self.lr_warmup:
            return t / self.lr_warmup
        return 0.5 * (1 + math.cos(math.pi * (t - self.lr_warmup) / (1 - self.lr_warmup)))

    def eps(self, t: float) -> float:
        """Linear from 0 to 1 over eps_warmup, then 1."""
        return min(1.0, t / self.eps_warmup) if self.eps_warmup else 1.0


class _Normalised(nn.Module):
    """The network on [0, 1] images, in whatever mode it is in (a `Model` is always frozen)."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.net = net
        for name, values in (("mean", recipe.preprocess.mean), ("std", recipe.preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def train(recipe: Recipe, images: Tensor, labels: Tensor, *, log: Path | None = None, device: str = "cpu") -> nn.Module:
    """Train on images (n, 3, h, w) uint8 with labels (n,) and return the averaged bare network in eval mode.

    log: a CSV written as training goes on (step, loss, accuracy on the crafted batches, images per second). Raises
    InputError for labels the recipe has no class for and for fewer images than a batch, FloatingPointError where the loss
    stops being finite.
    """
    if int(labels.min()) < 0:
        raise InputError("some training images have no labels; give parquet: or folder:")
    if int(labels.max()) >= recipe.num_classes:
        raise InputError(f"labels go up to {int(labels.max())}, the recipe has num_classes = {recipe.num_classes}")
    if len(images) < recipe.batch_size:
        raise InputError(f"{len(images)} images do not fill one batch of {recipe.batch_size}; give more, or a smaller batch_size")
    torch.manual_seed(recipe.seed)
    net = build(recipe.arch, num_classes=recipe.num_classes, arch_args=recipe.arch_args)
    if recipe.start:
        load_weights(net, Path(recipe.start))
    model = _Normalised(net, recipe).to(device).to(memory_format=torch.channels_last)
    average = ModelEmaV3(model, decay=recipe.ema, use_warmup=True)
    optimiser = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.lr)
    schedule = Schedule(recipe.lr_warmup, recipe.eps_warmup)
    total = max(1, int(recipe.epochs * (len(images) // recipe.batch_size)))
    meter = _Meter(log, recipe.batch_size)
    for step, (x, y) in enumerate(
        tqdm(_batches(recipe, images, labels, total, device), total=total, desc=recipe.id, mininterval=5)
    ):
        share = step / total
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * schedule.lr(share)
        if eps := recipe.eps * schedule.eps(share):
            pgd = PGD(eps, recipe.norm, recipe.steps, recipe.step_size * eps, seed=recipe.seed + step + 1)
            x = attack(model.eval(), x, y, pgd).x
        logits = model.train()(x)
        loss = F.cross_entropy(logits, y)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step} of {total}; lower lr (now {recipe.lr:g})")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        average.update(model, step=step)
        meter.update(step, loss, (logits.argmax(1) == y).float().mean())
    meter.close()
    return average.module.net.eval().requires_grad_(False)


def load_weights(net: nn.Module, path: Path) -> None:
    """Fill a network from a checkpoint of the same architecture; raises InputError where names or shapes differ."""
    tensors = unwrap(read(path).root).tensors
    if difference := mismatch(tensors, {k: v.shape for k, v in net.state_dict().items()}):
        raise InputError(f"{path} does not fit the recipe's architecture: {difference}")
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only, not for biases, norms and layer scales."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _batches(recipe: Recipe, images: Tensor, labels: Tensor, total: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """`total` augmented batches, reshuffled each epoch, the incomplete last one left out."""
    generator = torch.Generator().manual_seed(recipe.seed)
    done = 0
    while done < total:
        order = torch.randperm(len(images), generator=generator)
        for rows in order.split(recipe.batch_size):
            if len(rows) < recipe.batch_size or done == total:
                break
            x = images[rows].to(device).float().div_(255)
            x = crop_and_flip(x, pad=recipe.pad, flip=recipe.flip, generator=generator)
            yield x.contiguous(memory_format=torch.channels_last), labels[rows].to(device)
            done += 1


class _Meter:
    """Averages of 50 steps, appended to a CSV."""

    def __init__(self, path: Path | None, batch_size: int) -> None:
        self.file = path.open("w", newline="") if path else None
        self.writer = csv.writer(self.file) if self.file else None
        if self.writer:
            self.writer.writerow(["step", "loss", "accuracy", "images_per_second"])
        self.batch_size, self.sums, self.count, self.since = batch_size, [0.0, 0.0], 0, time.perf_counter()

    def update(self, step: int, loss: Tensor, accuracy: Tensor) -> None:
        self.sums[0] += loss.item()
        self.sums[1] += accuracy.item()
        self.count += 1
        if self.count == 50 and self.writer and self.file:
            rate = self.count * self.batch_size / (time.perf_counter() - self.since)
            self.writer.writerow([step + 1, f"{self.sums[0] / 50:.4f}", f"{self.sums[1] / 50:.4f}", f"{rate:.0f}"])
            self.file.flush()
        if self.count == 50:
            self.sums, self.count, self.since = [0.0, 0.0], 0, time.perf_counter()

    def close(self) -> None:
        if self.file:
            self.file.close()
