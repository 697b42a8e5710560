"""Augmentation in batched tensor code, drawn per sample.

Every random number is a function of (seed, epoch, sample id, stream): a counter-based hash, not a generator
with a state. So a sample is augmented alike in an epoch whatever the batch, the worker or the process it is
met in.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from upcycle.core.seeds import uniform as uniform

OPERATIONS = ("crop", "flip", "color")
STRENGTH = 0.4  # of each colour jitter: factors between 1 - STRENGTH and 1 + STRENGTH
CHUNK = 2**18  # values that are jittered at a time, so that what lies between stays in the processor's cache
WINDOW = "resized_crop"
"""The operation that needs whole images, and so is one of sets alone that are read from disk."""
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of its window: shares of the image, width over height
TRIES = 10  # windows that are drawn before the centre is taken
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, red, green, blue


def padding(length: int) -> int:
    """Pixels of zero padding on each side of an image side of ``length``: 4 of 32, as for CIFAR."""
    return length // 8


def crop_offsets(view: tuple[int, int], ids: Tensor, height: int, width: int) -> Tensor:
    """Where each sample's crop begins in its padded image: int64 (b, 2), (row, column), 0 to 2 paddings."""
    choices = torch.tensor([2 * padding(height) + 1, 2 * padding(width) + 1])
    return (uniform(*view, ids, "crop", 2) * choices).long()


def flipped(view: tuple[int, int], ids: Tensor) -> Tensor:
    """Which samples are mirrored: bool (b,), each with probability one half."""
    return uniform(*view, ids, "flip")[:, 0] < 0.5


def color_factors(view: tuple[int, int], ids: Tensor) -> Tensor:
    """Each sample's brightness, contrast and saturation: float32 (b, 3), 1 for unchanged."""
    return (1 + STRENGTH * (2 * uniform(*view, ids, "color", 3) - 1)).float()


def window_draws(view: tuple[int, int], ids: Tensor) -> Tensor:
    """Each sample's numbers for :func:`resized_window`: float64 (b, 4 x 10) in [0, 1)."""
    return uniform(*view, ids, WINDOW, 4 * TRIES)


def resized_window(height: int, width: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """A window of an image, as torchvision's RandomResizedCrop draws it: top, left, height, width in pixels.

    Area uniform in 8 to 100 % of the image's, the logarithm of the aspect uniform in 3/4 to 4/3. Of ten windows the
    first one that fits; otherwise the largest in the centre whose aspect is in the range.

    Args:
        draws: in [0, 1): four for each window, see :func:`window_draws`.
    """
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for area, aspect, row, column in draws.reshape(TRIES, 4).tolist():
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
        aspect = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(row * (height - h + 1)), int(column * (width - w + 1)), h, w
    h, w = min(height, round(width / ASPECT[0])), min(width, round(height * ASPECT[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def crop(pixels: Tensor, offsets: Tensor) -> Tensor:
    """Pad with zeros by :func:`padding`, then cut the original size out at ``offsets``.

    Args:
        pixels: (b, h, w, c), any dtype.
        offsets: int64 (b, 2), see :func:`crop_offsets`.
    """
    b, h, w, c = pixels.shape
    top, left = padding(h), padding(w)
    height, width = h + 2 * top, w + 2 * left
    padded = pixels.new_zeros(b, height, width, c)
    padded[:, top : top + h, left : left + w] = pixels
    # A row of a crop is w pixels that lie together in memory: overlapping windows of w pixels, one for each
    # pixel to begin at, turn the whole crop into one gather of b * h rows.
    windows = padded.view(-1).as_strided((b * height * width - w + 1, w * c), (c, 1))
    rows = (torch.arange(b) * height + offsets[:, 0])[:, None] + torch.arange(h)
    first = rows * width + offsets[:, 1:]
    return windows.index_select(0, first.view(-1)).view(b, h, w, c)


def flip(pixels: Tensor, which: Tensor) -> Tensor:
    """Mirror left and right the samples where ``which`` (bool (b,)) holds; pixels (b, h, w, c), any dtype."""
    mirrored = which.nonzero().squeeze(1)
    source = torch.arange(len(pixels))
    source[mirrored] = len(pixels) + torch.arange(len(mirrored))
    return torch.cat([pixels, pixels.index_select(0, mirrored).flip(2)]).index_select(0, source)


def color(pixels: Tensor, factors: Tensor, top: float = 1.0) -> Tensor:
    """Jitter brightness, contrast and saturation, in that order, clamping to [0, 1] after each.

    Args:
        pixels: (b, h, w, c), any dtype. Grey images (c not 3) have no saturation.
        factors: float32 (b, 3), see :func:`color_factors`.
        top: what white is.

    Returns:
        float32 (b, h, w, c) in [0, 1].
    """
    each = CHUNK // max(1, pixels[:1].numel()) if pixels.device.type == "cpu" else len(pixels)
    jittered = torch.empty(pixels.shape, device=pixels.device)
    parts = (t.split(max(each, 1)) for t in (jittered, pixels, factors))
    for out, part, own in zip(*parts, strict=True):
        _jitter(part.to(torch.float32) / top, own, out)
    return jittered


def _jitter(images: Tensor, factors: Tensor, out: Tensor) -> None:
    """:func:`color` of float32 images into ``out``."""
    b, h, w, c = images.shape
    brightness, contrast, saturation = factors.view(b, 3, 1, 1).unbind(1)
    # Channels apart, so that the inner loops run over h * w numbers that lie together and not over c.
    planes = images.reshape(b, h * w, c).transpose(1, 2).contiguous()
    planes = (planes * brightness).clamp_(0, 1)
    # Summed as integers, since a sum of floats would depend on the batch through the order of its terms.
    levels = (_grey(planes) * 65536).long()
    mean = (levels.sum((1, 2), keepdim=True) / (h * w * 65536.0)).float()
    planes.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 1)
    if c == 3:
        grey = _grey(planes)
        planes.sub_(grey).mul_(saturation).add_(grey).clamp_(0, 1)
    out.view(b, h * w, c).copy_(planes.transpose(1, 2))


def _grey(planes: Tensor) -> Tensor:
    """The luma (b, 1, p) of RGB planes (b, 3, p), else the mean over the channels."""
    if planes.shape[1] != 3:
        return planes.mean(1, keepdim=True)
    red, green, blue = planes.split(1, 1)
    return (red * LUMA[0]).add_(green * LUMA[1]).add_(blue * LUMA[2])
