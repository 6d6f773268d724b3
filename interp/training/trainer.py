"""One step of training after another: prepare, craft, minimise, average.

Crafting runs with the network in eval mode, so that batch statistics see one batch per step and never the crafting. Every
random number is a function of (seed, step, process): a run continued from its state equals one that was never stopped.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from interp.attacks.norms import NORMS
from interp.attacks.pgd import PGD, craft
from interp.models.load import load
from interp.training.augment import crop_and_flip, erase, mixer, reseed, smooth
from interp.training.awp import moved_weights
from interp.training.losses import OBJECTIVES, Views
from interp.training.recipe import Recipe
from interp.training.schedule import eps_share, lr_share
from interp.training.start import first_network
from interp.types import Images, InputError, Labels


@dataclass(frozen=True)
class World:
    """This process among those that train together (torchrun sets RANK, WORLD_SIZE, LOCAL_RANK)."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> World:
        """Join the processes that torchrun started, or be alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(int(os.environ.get("RANK", "0")), size)

    def mean(self, value: Tensor) -> Tensor:
        """Average over the processes."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
            value = value / self.size
        return value


class Normalised(nn.Module):
    """The network on [0, 1] images, in whatever mode it is in (a `Model` is always frozen)."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.net = net
        self.bgr = recipe.preprocess.channels == "bgr"
        for name, values in (("mean", recipe.preprocess.mean), ("std", recipe.preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(((x.flip(1) if self.bgr else x) - self.mean) / self.std).float()


@dataclass(frozen=True)
class Seen:
    """What one step saw: its loss, the share of (crafted) images classified right, learning rate and ε in force."""

    loss: Tensor
    accuracy: Tensor
    lr: float
    eps: float


class Trainer:
    """The network in training, its average, its optimiser; `step` moves all of them. total, per_epoch: lengths in steps."""

    def __init__(self, recipe: Recipe, *, total: int, per_epoch: float, device: torch.device, world: World = World()) -> None:
        self.recipe, self.total, self.per_epoch = recipe, total, per_epoch
        self.device, self.world, self.index = device, world, 0
        reseed(recipe.seed)
        self.model = Normalised(first_network(recipe), recipe).to(device).to(memory_format=torch.channels_last)
        self.average = ModelEmaV3(self.model, decay=recipe.ema, use_warmup=True)
        self.optimiser = _optimiser(self.model, recipe)
        self.objective = OBJECTIVES[recipe.objective]
        self.mix = mixer(recipe)
        self.helper = _helper(recipe, device)
        self.forward: nn.Module = self.model
        self.look: Callable[[Tensor], Tensor] = self.model
        if recipe.compile:
            self.forward = self.look = torch.compile(self.model)  # type: ignore[assignment]
        if world.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            with warnings.catch_warnings():  # newer torch has another name for it, older does not know that
                warnings.simplefilter("ignore", FutureWarning)
                self.forward = nn.parallel.DistributedDataParallel(self.forward, device_ids=ids, broadcast_buffers=False)

    def step(self, x: Tensor, y: Labels) -> Seen:
        """One update from a batch (n, 3, h, w) uint8 with labels (n,)."""
        recipe, epoch = self.recipe, self.index / self.per_epoch
        reseed(recipe.seed, self.index, self.world.rank)
        share = lr_share(recipe.lr_schedule, self.index / self.total, recipe.lr_warmup * self.per_epoch / self.total)
        lr = max(recipe.lr * share, min(recipe.lr_min, recipe.lr))
        eps = recipe.eps * eps_share(recipe.eps_schedule, epoch, recipe.eps_period)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        images, target = self._prepare(x, y)
        labels = target.argmax(1) if target.ndim == 2 else target
        crafted = self._craft(images, labels, eps) if self.objective.craft else images

        def look(network: nn.Module) -> tuple[Tensor, Tensor]:
            return self._loss(network, images, crafted, target)

        self.forward.train()
        awp = recipe.awp if epoch >= recipe.awp_from else 0.0
        moved = moved_weights(self.model, lambda: look(self.model)[0], awp, mean=self.world.mean)
        with moved if awp else contextlib.nullcontext():
            loss, logits = look(self.forward)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimiser.step()
        self._share_statistics()
        self.average.update(self.model, step=self.index)
        self.index += 1
        return Seen(loss.detach(), (logits.argmax(1) == labels).float().mean(), lr, eps)

    def _prepare(self, x: Tensor, y: Labels) -> tuple[Images, Tensor]:
        """Augmented images in [0, 1] and their targets."""
        recipe = self.recipe
        images = x.float().div_(255)
        pad = 0 if recipe.resized_crop else recipe.pad
        images = crop_and_flip(images, pad=pad, flip=recipe.flip, generator=torch.default_generator)
        if recipe.erasing:
            images = erase(images, recipe.erasing)
        target: Tensor = smooth(y, recipe.num_classes, recipe.label_smoothing)
        if self.mix is not None:
            images, target = self.mix(images, y)
        return images.contiguous(memory_format=torch.channels_last), target

    def _craft(self, x: Images, labels: Labels, eps: float) -> Images:
        recipe = self.recipe
        step = recipe.step_share * (eps if recipe.step_follows else recipe.eps)
        pgd = PGD(eps, recipe.norm, recipe.steps, max(step, 1e-12), random_start=False, loss=self.objective.craft)
        self.model.eval()
        with self._precision():
            aim: Tensor = labels
            if self.objective.craft != "ce":
                with torch.no_grad():
                    aim = self.look(x).softmax(1)
            start = x
            if recipe.random_start:
                radius = torch.full((len(x),), eps, device=x.device)
                start = x + NORMS[recipe.norm].start(torch.randn_like(x), torch.rand(len(x), device=x.device), radius)
            return craft(self.look, x, aim, pgd, start=start).detach()  # type: ignore[arg-type]

    def _loss(self, net: nn.Module, x: Images, crafted: Images, target: Tensor) -> tuple[Tensor, Tensor]:
        """The objective and the logits that accuracies are read from."""
        with self._precision():
            views: dict[str, Any] = {}
            if "clean" in self.objective.views:
                views["clean"] = net(x)
            if "crafted" in self.objective.views:
                views["crafted"] = net(crafted)
            if "beyond" in self.objective.views and self.helper is not None:
                views["beyond"] = net(x + self.recipe.helper_step * (crafted - x))
                with torch.no_grad():
                    views["helper_labels"] = self.helper(crafted).argmax(1)
        seen = Views(**({"clean": None, "crafted": None} | views))
        loss = self.objective.loss(seen, target, self.recipe.beta, self.recipe.gamma)
        logits = seen.clean if seen.crafted is None else seen.crafted
        assert logits is not None  # every objective looks at one of them
        return loss, logits.detach()

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _share_statistics(self) -> None:
        """Average the running statistics over the processes, so that all hold one network and any can be continued from."""
        running = [b for b in self.model.buffers() if b.is_floating_point()] if self.world.size > 1 else []
        if running:
            shared = self.world.mean(torch.cat([b.flatten() for b in running]))
            for buffer, part in zip(running, shared.split([b.numel() for b in running]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def averaged(self) -> nn.Module:
        """The averaged network on [0, 1] images, in eval mode."""
        return self.average.module.eval()

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {
            "step": self.index,
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.index = int(state["step"])
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])


def accuracies(model: nn.Module, x: Images, y: Labels, eps: float, norm: str, *, chunk: int = 128) -> tuple[float, float]:
    """Clean accuracy and accuracy under PGD-10 (step ε/4) of a network on [0, 1] images: what to watch while it trains."""
    pgd = PGD(eps, norm, 10, eps / 4, random_start=False)
    clean = held = 0
    for images, labels in zip(x.split(chunk), y.split(chunk), strict=True):
        with torch.no_grad():
            right = model(images).argmax(1) == labels
        clean += int(right.sum())
        if bool(right.any()):
            crafted = craft(model, images[right], labels[right], pgd)
            with torch.no_grad():
                held += int((model(crafted).argmax(1) == labels[right]).sum())
    return clean / len(x), held / len(x)


def _optimiser(model: Normalised, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay for matrices and kernels only: not for biases, norms, layer scales, nor what the network's own list names."""
    spared: set[str] = getattr(model.net, "no_weight_decay", set)()
    decayed = {
        name: p.ndim > 1 and not any(fnmatch.fnmatch(name.removeprefix("net."), rule) for rule in spared)
        for name, p in model.named_parameters()
    }
    matrices = [p for name, p in model.named_parameters() if decayed[name]]
    vectors = [p for name, p in model.named_parameters() if not decayed[name]]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return torch.optim.AdamW(groups, lr=recipe.lr)


def _helper(recipe: Recipe, device: torch.device) -> nn.Module | None:
    if not recipe.helper:
        return None
    helper = load(recipe.helper, device=str(device))
    if helper.card.num_classes != recipe.num_classes:
        raise InputError(f"helper {recipe.helper} has {helper.card.num_classes} classes, the recipe {recipe.num_classes}")
    return helper
