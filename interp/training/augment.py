"""Pad, crop and flip for a whole batch at once, on the device the images are on."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from interp.types import Images


def crop_and_flip(x: Images, *, pad: int, flip: bool, generator: torch.Generator) -> Images:
    """Zero-pad by `pad`, cut a window at a random place and mirror half of the images. Limit: pad=0, flip=False is x."""
    n, _, h, w = x.shape
    if pad:
        padded = F.pad(x, (pad, pad, pad, pad))
        dy, dx = (torch.randint(0, 2 * pad + 1, (n, 1), generator=generator).to(x.device) for _ in range(2))
        rows = (dy + torch.arange(h, device=x.device))[:, None, :, None]
        cols = (dx + torch.arange(w, device=x.device))[:, None, None, :]
        index = torch.arange(n, device=x.device)[:, None, None, None]
        x = padded[index, torch.arange(3, device=x.device)[None, :, None, None], rows, cols]
    if flip:
        mirrored = (torch.rand(n, generator=generator) < 0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x
