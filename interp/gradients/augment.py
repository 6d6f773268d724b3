"""Random views of images that are differentiable in the pixels: mirrored, moved, cropped and enlarged, dimmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from interp.types import Images

SHIFT = 0.125  # at most, as a share of the side (4 of 32 pixels, the usual augmentation of CIFAR-10)
CROP = 0.75  # the smallest crop's side, as a share of the image's
DIM = 0.3  # brightness is lowered by at most this share; raising it would leave the box [0, 1]


def augmentation(generators: Sequence[torch.Generator]) -> Callable[[Images], Images]:
    """One random view of each of n images, image i's drawn from generator i.

    Pixels are read bilinearly, beyond the border mirrored. Limit: linear in the image, so that the gradient of a linear loss
    through the view is the view's transpose of its weight.
    """
    u = torch.stack([torch.rand(5, generator=g) for g in generators])
    side = CROP + (1 - CROP) * u[:, 0]
    theta = torch.zeros(len(u), 2, 3)
    theta[:, 0, 0] = torch.where(u[:, 1] < 0.5, -side, side)
    theta[:, 1, 1] = side
    theta[:, :, 2] = 2 * SHIFT * (2 * u[:, 2:4] - 1)
    light = (1 - DIM * u[:, 4]).view(-1, 1, 1, 1)

    def view(x: Images) -> Images:
        places = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
        return light.to(x) * F.grid_sample(x, places, mode="bilinear", padding_mode="reflection", align_corners=False)

    return view
