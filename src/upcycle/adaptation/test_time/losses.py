"""Losses of an input alone: rotation prediction and the entropy of answers; and a shift to try them on."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from upcycle.core.errors import require
from upcycle.core.losses import information

SHIFTS = tuple(sorted(itertools.product(range(-2, 3), repeat=2), key=lambda s: (s[0] ** 2 + s[1] ** 2, s)))
"""By how many pixels the copies of an image are moved, the nearest first; the first one not at all."""


def shift_copies(x: Float[Tensor, "b c h w"], copies: int) -> Float[Tensor, "n c h w"]:
    """Make ``copies`` of each image, moved by :data:`SHIFTS`, with the border repeated; n = copies b."""
    _, _, h, w = x.shape
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    return torch.cat([padded[:, :, 2 + i : 2 + i + h, 2 + j : 2 + j + w] for i, j in SHIFTS[:copies]])


def rotate(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "4*b c h w"]:
    """Rotate all images by 0, then all by 90, 180 and 270 degrees."""
    require(
        x.shape[2] == x.shape[3],
        f"Rotation prediction turns images by 90 degrees, so they must be square, not "
        f"{x.shape[2]} x {x.shape[3]}; crop or resize them.",
    )
    return torch.cat([torch.rot90(x, turn, (2, 3)) for turn in range(4)])


def rotation_loss(
    predict: Callable[[Tensor], Tensor], x: Float[Tensor, "b c h w"], copies: int = 16
) -> Float[Tensor, ""]:
    """Give the mean cross-entropy of predicting how ``copies`` of x are rotated (Gidaris et al., arXiv:1803.07728).

    Args:
        predict: the network, from images (n, c, h, w) to logits (n, 4) of the turns by 0, 90, 180 and 270 degrees.
        x: images.
        copies: number of copies of each image; every four of them are one shift in all its turns.
    """
    views = rotate(shift_copies(x, copies // 4))
    return turn_loss(predict(views))


def turn_loss(z: Float[Tensor, "n 4"]) -> Float[Tensor, ""]:
    """Give the mean cross-entropy of logits for the images of :func:`rotate`."""
    return F.cross_entropy(z, torch.arange(4, device=z.device).repeat_interleave(len(z) // 4))


def entropy_loss(predict: Callable[[Tensor], Tensor], x: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """Give the mean entropy of the network's own answers, in nats (as in Wang et al., arXiv:2006.10726)."""
    return information(predict(x), diversity=False)


def simulate_shift(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Simulate a shift to try adaptation on where the real one has no labels.

    Images are blurred by 3 x 3 means, and a tenth of the pixels becomes black or white (the least and the greatest
    value of x), the same ones at each call.
    """
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    u = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
    return torch.where(u < 0.05, x.min(), torch.where(u > 0.95, x.max(), blurred))
