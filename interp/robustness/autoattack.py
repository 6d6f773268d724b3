"""AutoAttack, the field's standard measure of robustness: an image counts only where four different attacks all fail.

Croce & Hein 2020 (arXiv 2003.01690): APGD on the cross-entropy, targeted APGD on the difference of logits ratio (DLR), targeted
FAB (arXiv 1907.02044) and, without gradients, Square (arXiv 1912.00049), each on what the last one left. The attacks are the
authors' own (github.com/fra31/auto-attack), as the package pyautoattack carries them; here they only get what they need.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from interp.models.load import check_labels
from interp.models.model import Model
from interp.types import Batch, Images, InputError

log = logging.getLogger(__name__)

OFFICIAL = {"linf": "Linf", "l2": "L2"}
VERSIONS = ("standard", "plus", "rand")
TARGETS = 9  # classes that the targeted attacks aim at, the likeliest first
CLASSES = {"apgd-dlr": 3, "apgd-t": 4}  # DLR divides by a difference to the third largest logit, its targeted form to the fourth


def autoattack(
    model: Model,
    batch: Batch,
    *,
    norm: str = "linf",
    eps: float = 8 / 255,
    version: str = "standard",
    chunk: int = 64,
    seed: int = 0,
) -> np.ndarray:
    """Which images (n,) the model classifies as labelled and AutoAttack does not break (Croce & Hein 2020, arXiv 2003.01690).

    eps in units of [0, 1] (L2: over the whole image). version: standard; plus, with more restarts; rand, for models that draw
    random numbers. Every chunk of images starts from `seed`, as in the official code, so that another chunk draws otherwise.
    With fewer than four classes the attacks on the DLR loss are left out, and that is logged. Limit: a linear model keeps exactly
    the images whose margin exceeds ε times the dual norm of the weights' difference. Raises InputError without labels.
    """
    _check(model, batch, norm, eps, version, chunk)
    from pyautoattack import AutoAttack

    device = model.mean.device
    with _as_it_was(device), tqdm(desc="AutoAttack", unit=" images", unit_scale=True, leave=False) as bar:

        def read(x: Images) -> torch.Tensor:
            bar.update(len(x))  # nobody knows how many there will be: a broken image is not attacked again
            return model(x)

        official = AutoAttack(read, norm=OFFICIAL[norm], eps=eps, version=version, seed=seed, device=device)
        official.verbose = False
        _fit(official, model.card.num_classes)
        labels = batch.labels.to(device)
        _, predicted = official.run_standard_evaluation(batch.images.to(device), labels, batch_size=chunk)
    return (predicted == labels).cpu().numpy()


def _check(model: Model, batch: Batch, norm: str, eps: float, version: str, chunk: int) -> None:
    """Raise InputError where AutoAttack cannot be run as asked."""
    if norm not in OFFICIAL:
        raise InputError(f"norm is {norm!r}; AutoAttack is run in one of {', '.join(OFFICIAL)}")
    if version not in VERSIONS:
        raise InputError(f"version is {version!r}; expected one of {', '.join(VERSIONS)}")
    if not 0 < eps < math.inf:
        raise InputError(f"ε is {eps}; AutoAttack needs a number > 0 in units of [0, 1], such as 8/255")
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; expected at least 1 image at a time")
    if bool((batch.labels < 0).any()):
        raise InputError("AutoAttack needs labelled images; a single image file has no label: use folder: or parquet:")
    model.check_images(batch.images.shape)
    check_labels(model.card, batch)


def _fit(official: Any, classes: int) -> None:
    """Aim at no more classes than there are, and leave out the attacks whose loss needs more than there are."""
    official.apgd_targeted.n_target_classes = official.fab.n_target_classes = min(TARGETS, classes - 1)
    left_out = [name for name in official.attacks_to_run if classes < CLASSES.get(name, 0)]
    if left_out:
        official.attacks_to_run = [name for name in official.attacks_to_run if name not in left_out]
        log.warning(
            "AutoAttack without %s: the DLR loss is not defined for %d classes; left are %s",
            ", ".join(left_out),
            classes,
            ", ".join(official.attacks_to_run),
        )


@contextmanager
def _as_it_was(device: torch.device) -> Iterator[None]:
    """Inside, torch's generators are seeded and the tracer is taken off, as the package does; outside both go on as they were."""
    cuda = {torch.cuda.current_device(), device.index or 0} if torch.cuda.is_available() else set()
    tracer = sys.gettrace()
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        if sys.gettrace() is not tracer:
            sys.settrace(tracer)
