"""The strong augmentation of images that are normalised already, decided by given random numbers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def strong_augment(images: Float[Tensor, "b c h w"], u: Float[Tensor, "b 9"]) -> Float[Tensor, "b c h w"]:
    """Make the strong view of weakly augmented, normalised images, grey or colour.

    Each is turned by up to 20°, sheared by up to 0.2, zoomed by up to 15 % and moved by up to an eighth of its sides.
    Its contrast changes by up to a half, its brightness by up to 0.3 standard deviations, and a square of a quarter of
    its sides is cut out. Pixels from outside are 0, the mean colour.

    *Reconstructed*: the released code takes ImageNet's AutoAugment, which was searched for colour photographs.

    Args:
        images: a batch after the weak augmentation.
        u: random numbers in [0, 1) that decide all of it.
    """
    b, c, h, w = images.shape
    u = u.to(images)
    v = 2 * u - 1
    angle, shear, zoom, zero = math.pi / 9 * v[:, 0], 0.2 * v[:, 1], 1 + 0.15 * v[:, 2], torch.zeros_like(v[:, 0])
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(b, 2, 2)
    stretch = torch.stack([zoom, shear, zero, zoom], 1).view(b, 2, 2)
    theta = torch.cat([turn @ stretch, v[:, 3:5, None] / 4], 2)  # sides are 2 long there
    x = F.grid_sample(images, F.affine_grid(theta, [b, c, h, w], align_corners=False), align_corners=False)
    contrast, brightness = 1 + 0.5 * v[:, 5].view(b, 1, 1, 1), 0.3 * v[:, 6].view(b, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + contrast * (x - mean) + brightness
    rows, columns = (
        ((torch.arange(n, device=x.device) + 0.5) / n - u[:, i, None]).abs() < 1 / 8 for n, i in ((h, 7), (w, 8))
    )
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
