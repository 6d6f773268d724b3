"""Files as other codes write them: state dicts inside their training files, with the extras that make readers stumble.

Each function takes a bare network (and writes to a path); the layout is that of the code named in its docstring.
"""

from __future__ import annotations

import argparse
import collections
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


class Normalise(nn.Module):
    """A normaliser with the buffer names that a code uses, in front of its network."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], names: tuple[str, str] = ("mean", "std")) -> None:
        super().__init__()
        self.names = names
        for name, value in zip(names, (mean, std), strict=True):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (getattr(self, name) for name in self.names)
        return (x - mean) / std


def averaged(net: nn.Module) -> dict[str, Tensor]:
    """Another copy, as an exponential moving average would be: every weight a little off."""
    return {k: v * 1.01 if v.is_floating_point() else v.clone() for k, v in net.state_dict().items()}


def optimiser(net: nn.Module) -> dict[str, Any]:
    """The state of a real optimiser after a step."""
    adam = torch.optim.AdamW(net.parameters(), 1e-3)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    adam.step()
    adam.zero_grad()
    return adam.state_dict()


def bare(net: nn.Module, path: Path) -> None:
    """torch.save(model.state_dict()); vits-robustness-torch's released files (util_scripts/prepare_checkpoint.py) too."""
    torch.save(net.state_dict(), path)


def timm_training(net: nn.Module, path: Path, *, arch: str = "", said: bool = True) -> None:
    """huggingface/pytorch-image-models, timm/utils/checkpoint_saver.py: args is a Namespace, EMA beside the raw weights.

    said: --mean and --std were given; by default they are None.
    """
    mean, std = (list(v) for v in IMAGENET) if said else (None, None)
    torch.save(
        {
            "epoch": 12,
            "arch": arch,
            "state_dict": net.state_dict(),
            "optimizer": optimiser(net),
            "version": 2,
            "args": argparse.Namespace(model=arch, mean=mean, std=std, lr=0.1, device="cuda:0"),
            "state_dict_ema": averaged(net),
            "metric": np.float64(71.2),
        },
        path,
    )


def vits_training(net: nn.Module, path: Path, *, arch: str = "") -> None:
    """dedeswim/vits-robustness-torch by timm's bits (timm/bits/checkpoint_manager.py, version 3): `model`, `hparams`."""
    hparams = {"model": arch, "no_normalize": True, "normalize_model": False, "adv_training": "pgd"}
    hparams |= {"attack_eps": 4, "attack_norm": "linf", "mean": None, "std": None, "eps_schedule": "linear"}
    extra = {"version": 3, "arch": arch, "hparams": hparams, "metrics": collections.OrderedDict(top1=72.3, robust_top1=49.2)}
    torch.save({"epoch": 99, "model": net.state_dict(), "optimizer": optimiser(net)} | extra, path)


def vits_normalised(net: nn.Module, path: Path) -> None:
    """The same with normalize_model: the network wrapped as `normalize.*` and `model.*` (src/utils.py, normalize_model)."""
    inside = nn.Sequential(collections.OrderedDict(normalize=Normalise((0.5,) * 3, (0.5,) * 3), model=net))
    torch.save({"epoch": 99, "model": inside.state_dict(), "version": 3, "hparams": {"normalize_model": True}}, path)


def robustbench(net: nn.Module, path: Path) -> None:
    """RobustBench (robustbench/utils.py, load_model): `state_dict` with `module.model.` and `module.normalize.*`."""
    inside = nn.Sequential(collections.OrderedDict(normalize=Normalise(*IMAGENET), model=net))
    torch.save({"state_dict": {f"module.{k}": v for k, v in inside.state_dict().items()}, "epoch": 7}, path)


def robustbench_mu_sigma(net: nn.Module, path: Path) -> None:
    """RobustBench Engstrom2019 and Wu2020-like files: the buffers `mu` and `sigma` among the network's names."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in CIFAR10)
    torch.save({"mu": mean, "sigma": std, **net.state_dict()}, path)


def madry(net: nn.Module, path: Path) -> None:
    """MadryLab/robustness (train.py, 2019–2020) and Salman et al.: AttackerModel in DataParallel, legacy, numpy scalars.

    The real files are written with dill, which for these contents names the same globals as pickle does.
    """
    normaliser = Normalise(*IMAGENET, names=("new_mean", "new_std"))
    attacker = nn.ModuleDict({"normalize": normaliser, "model": net})
    both = nn.ModuleDict({"normalizer": normaliser, "model": net, "attacker": attacker})
    weights = {f"module.{k}": v for k, v in both.state_dict().items()}
    content = {"model": weights, "optimizer": optimiser(net), "schedule": None, "epoch": 105, "amp": None}
    content |= {
        "nat_prec1": np.float64(62.4),
        "adv_prec1": torch.tensor(33.4),
        "args": Parameters({"eps": 4 / 255, "arch": None}),
    }
    torch.save(content, path, _use_new_zipfile_serialization=False)


class Parameters:
    """Stands for cox.utils.Parameters, which MadryLab files may hold: a class that the reader does not have."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.params = dict(values)


def lightning(net: nn.Module, path: Path) -> None:
    """Lightning (checkpoint_connector.py, dump_checkpoint): the module's weights, a criterion's beside them."""
    weights = {f"model.{k}": v for k, v in net.state_dict().items()} | {"criterion.weight": torch.ones(10)}
    torch.save(
        {
            "epoch": 3,
            "global_step": 1200,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": weights,
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
            "callbacks": {"ModelCheckpoint{'monitor': 'acc'}": {"best_model_score": torch.tensor(0.7)}},
            "optimizer_states": [optimiser(net)],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 0.1, "path": Path("/data")},
        },
        path,
    )


def lightning_ema(net: nn.Module, path: Path) -> None:
    """The same with an averaged copy as a second attribute of the module."""
    weights = {f"net.{k}": v for k, v in net.state_dict().items()} | {f"ema_model.{k}": v for k, v in averaged(net).items()}
    torch.save({"epoch": 3, "pytorch-lightning_version": "2.4.0", "state_dict": weights}, path)


def compiled_parallel(net: nn.Module, path: Path) -> None:
    """torch.compile inside DataParallel, half precision, under `net`: names start with `module._orig_mod.`."""
    torch.save({"net": nn.DataParallel(torch.compile(net)).state_dict(), "acc": 94.1}, path)


def parallel_compiled(net: nn.Module, path: Path) -> None:
    """DataParallel inside torch.compile: names start with `_orig_mod.module.`."""
    torch.save(torch.compile(nn.DataParallel(net)).state_dict(), path)


def trades(net: nn.Module, path: Path) -> None:
    """yaodongyu/TRADES (train_trades_cifar10.py): the state dict of a DataParallel model, legacy container."""
    torch.save(nn.DataParallel(net).state_dict(), path, _use_new_zipfile_serialization=False)


def sequential(net: nn.Module, path: Path) -> None:
    """nn.Sequential(normaliser, network): the names of its children are 0 and 1."""
    torch.save(nn.Sequential(Normalise(*CIFAR10), net).state_dict(), path)


def facebook(weights: Mapping[str, Tensor], path: Path) -> None:
    """facebookresearch/deit and xcit (main.py): `model` beside optimiser, scaler and args."""
    torch.save({"model": weights, "epoch": 399, "scaler": {}, "args": argparse.Namespace(model="", input_size=224)}, path)


def whole_module(net: nn.Module, path: Path) -> None:
    """torch.save(model): every class of it is a global that is not called."""
    torch.save(net, path)


def profiled(net: nn.Module, path: Path) -> None:
    """With thop's counters among the weights, and without the counters that batch norms have had since torch 0.4.1."""
    weights = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(weights | {"total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)}, path)


def plain_pickle(net: nn.Module, path: Path) -> None:
    """pickle.dump of numpy arrays by name, as conversion scripts write them."""
    with path.open("wb") as f:
        pickle.dump({k: v.numpy() for k, v in net.state_dict().items()}, f)


def safetensors_bare(net: nn.Module, path: Path) -> None:
    """safetensors without metadata."""
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)


def safetensors_hub(net: nn.Module, path: Path) -> None:
    """safetensors with the metadata of the hub."""
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path, metadata={"format": "pt"})
