"""Checkpoints of the Hugging Face hub: fetching a repository's weights, and what the files beside them say.

timm writes `config.json` (architecture, pretrained_cfg), transformers `preprocessor_config.json` (mean, standard deviation, size,
channel order). They are read wherever they lie beside a file with one of the hub's names.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interp.types import InputError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONFIGS = ("config.json", "preprocessor_config.json")
LARGEST = 1 << 20  # bytes of a configuration that is read


def beside(path: Path) -> dict[str, Any]:
    """What the hub's configuration files in the folder of a checkpoint say, under the names of training options."""
    if path.name not in WEIGHTS:
        return {}
    config, processor = (_read(path.with_name(name)) for name in CONFIGS)
    facts: dict[str, Any] = {}
    cfg = config.get("pretrained_cfg")
    if isinstance(cfg, Mapping):
        facts = {k: cfg[k] for k in ("mean", "std", "input_size") if k in cfg} | {"architecture": config.get("architecture")}
    facts |= {"layer_norm_eps": config.get("layer_norm_eps")}
    if processor and processor.get("do_rescale", True) is True:
        facts |= _of_processor(processor)
    return {k: v for k, v in facts.items() if v is not None}


def file_in(path: Path) -> Path:
    """The weights in a folder of the hub's kind; any other path as it is."""
    return next((path / name for name in WEIGHTS if (path / name).is_file()), path) if path.is_dir() else path


def _of_processor(processor: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers image processor's settings; those of MobileViT never normalise and have no `do_normalize`."""
    normalises = processor.get("do_normalize", False) is True
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    side = size.get("height", size.get("shortest_edge")) if isinstance(size, Mapping) else size
    flips = processor.get("do_flip_channel_order")
    return {
        "mean": processor.get("image_mean") if normalises else [0.0] * 3,
        "std": processor.get("image_std") if normalises else [1.0] * 3,
        "input_size": side if isinstance(side, int) else None,
        "channels": None if flips is None else "bgr" if flips else "rgb",
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > LARGEST:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}); restore it, or move the weights out of its folder") from error
    return found if isinstance(found, dict) else {}


def from_hub(name: str, *, cache: Path | None = None) -> Path:
    """The weights of a hub repository ('OWNER/REPO' or 'OWNER/REPO/FILE') in the hub's cache, its configuration beside them.

    cache: another folder than the hub's usual cache. Raises InputError where the hub cannot be reached or has no such weights.
    """
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    if not owner or not repo:
        raise InputError(f"hf-hub:{name} names no repository; expected hf-hub:OWNER/REPO or hf-hub:OWNER/REPO/FILE")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT")

    def get(wanted: str) -> Path | None:
        try:
            with quiet("huggingface_hub"):
                return Path(hf_hub_download(f"{owner}/{repo}", wanted, cache_dir=cache, endpoint=endpoint))
        except LocalEntryNotFoundError as error:  # the client's word for no connection; a kind of EntryNotFoundError
            raise InputError(f"the hub cannot be reached for {wanted} of {owner}/{repo}; fetch it while online") from error
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise InputError(f"hf-hub:{owner}/{repo} cannot be read ({str(error).splitlines()[0]}); check its name") from error

    path = next((found for wanted in ((file,) if file else WEIGHTS) if (found := get(wanted))), None)
    if path is None:
        raise InputError(f"{owner}/{repo} has no {file or ' or '.join(WEIGHTS)}; name its file: hf-hub:{owner}/{repo}/FILE")
    for config in CONFIGS:
        get(config)
    return path


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Without the warnings of one logger: each retry is one, and the last failure is said anyway."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
