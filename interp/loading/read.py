"""Bytes → tensors, running no foreign code: safetensors, or pickles through torch's weights-only reader alone."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.types import InputError

PICKLED = (".pt", ".pth", ".tar", ".ckpt", ".bin")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, on the CPU.

    Raises InputError where the path is missing or a folder, the file is empty, an HTML page, truncated, of an unknown
    kind, holds objects that are not tensors and plain containers, or weights that are not finite.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}; expected a checkpoint (.safetensors, .pt, .pth, .pth.tar)")
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected one checkpoint file (.safetensors, .pt, .pth, .pth.tar)")
    with path.open("rb") as f:
        head = f.read(512)
    if not head:
        raise InputError(f"{path} is empty; the download or the copy did not finish: fetch the file again")
    if head.lstrip()[:1] == b"<":
        raise InputError(f"{path} is an HTML page, not a checkpoint; the host answered with a web page: download it by hand")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in PICKLED:
        tensors = state_dict(_read_pickled(path), path)
    else:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}; expected .safetensors, .pt, .pth or .pth.tar")
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise InputError(f"{path} has weights that are not finite: {', '.join(bad[:5])}; the training diverged")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is no complete safetensors file ({error}); fetch it again and compare its size") from error


def _read_pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # what follows is refused or read all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = str(error).splitlines()
        found = next((line.strip() for line in lines if "GLOBAL" in line or "Unsupported" in line), str(error)[:200])
        found = found.removeprefix("WeightsUnpickler error: ").partition(" was not an allowed")[0]  # torch advises to trust it
        with path.open("rb") as f:
            pickled = f.read(2) in (b"PK", *(bytes((0x80, protocol)) for protocol in range(6)))  # torch's zip, or a bare pickle
        if not pickled:
            raise InputError(f"{path} is no checkpoint torch can read ({found}); fetch it again") from error
        raise InputError(
            f"{path} holds more than tensors and was not opened, since that would run code from the file ({found}); "
            f"save only the state dict: torch.save(model.state_dict(), …) or safetensors"
        ) from error
    except Exception as error:  # damaged bytes make torch's reader raise IndexError, RuntimeError, EOFError, struct.error, …
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is damaged or truncated ({first}); fetch it again and compare its size") from error


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The one mapping of names to tensors in a file's content, training-file wrappers and `module.` prefixes removed."""
    for wrapper in ("state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        kinds = sorted({type(v).__name__ for v in content.values()}) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path} holds {kinds}; expected a state dict (names to tensors), bare or under 'state_dict' or 'model'")
    tensors = {str(k): v for k, v in content.items()}
    while all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
