"""Two views of an image that lie over each other but for a few pixels: one to reconstruct, one to be told apart."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from upcycle.core.batches import Batch, View
from upcycle.core.seeds import uniform
from upcycle.data.augment import LUMA, color, color_factors
from upcycle.data.images import ImageSplit
from upcycle.data.windows import SplitOfViews, resized_crop, windows

JITTERED, GREYED, BLURRED = 0.8, 0.2, 0.5
"""Shares of the images whose brightness, contrast and saturation change, that lose their colour, that are blurred."""
SIGMA = (0.1 / 224, 2 / 224)
"""The standard deviation of the blur, over the height of the image: from, to."""


@dataclass(eq=False)
class ShiftedViews(SplitOfViews):
    """A split each of whose samples is an online and a target view of an image; implements ``Split``.

    1. The split's own augmentation, and a window of a random share of the area, of aspect 3/4 to 4/3, brought to
       (h + s, w + s).
    2. Online: the h x w pixels at (0, 0), colours as they are.
    3. Target: those at (r_y, r_x), each uniform in 0 to s, with other colours.

    All of it is a function of (seed, epoch, sample).

    Args:
        split: the images.
        shift: s, pixels.
        scale: the smallest share of the area; 1 for the whole image.
        recolour: change colours of the target view.
        target: make it; otherwise there is the online view alone, with the same bits.
    """

    shift: int
    scale: float
    recolour: bool = True
    target: bool = True
    _plain: ImageSplit = field(init=False)

    def __post_init__(self) -> None:
        c = self.split.shape[0]
        self._plain = replace(self.split, mean=(0.0,) * c, std=(1.0,) * c)

    def ahead(self, plan: Iterable[tuple[Tensor, View]]) -> AbstractContextManager[None]:
        """See :func:`upcycle.core.batches.reading_ahead`; the images are augmented first."""
        return self._plain.ahead((index, view or (0, 0)) for index, view in plan)

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        """Images (b, 2, c, h, w), online and target; (b, 1, c, h, w) without a target."""
        view = view or (0, 0)
        batch, ids = self._plain.batch(index, device=device, view=view), self.split.ids.index_select(0, index)
        _, h, w = self.split.shape
        whole = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(len(ids), -1)
        window = whole if self.scale == 1 else windows(view, ids, self.scale)
        master = resized_crop(batch.images, window, (h + self.shift, w + self.shift))
        made = [master[:, :, :h, :w]]
        if self.target:
            offsets = (uniform(*view, ids, "shift", 2) * (self.shift + 1)).long().to(device)
            moved = cut(master, offsets, (h, w))
            made.append(recoloured(moved, view, ids) if self.recolour else moved)
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.split.mean, self.split.std))
        return batch._replace(inputs=(torch.stack(made, 1) - mean) / std)


def cut(images: Float[Tensor, "b c hh ww"], offsets: Int[Tensor, "b 2"], size: tuple[int, int]) -> Tensor:
    """Cut out the pixels (b, c, h, w) of each image that begin at its offset, a row and a column."""
    b, c = images.shape[:2]
    rows = (offsets[:, :1] + torch.arange(size[0], device=offsets.device))[:, None, :, None]
    columns = (offsets[:, 1:] + torch.arange(size[1], device=offsets.device))[:, None, None, :]
    first = torch.arange(b, device=offsets.device)[:, None, None, None]
    return images[first, torch.arange(c, device=offsets.device)[None, :, None, None], rows, columns]


def recoloured(images: Float[Tensor, "b c h w"], view: tuple[int, int], ids: Int[Tensor, " b"]) -> Tensor:
    """Change brightness, contrast and saturation of images in [0, 1]; make some of them grey, and blur some.

    Jitter of 0.4 as :func:`upcycle.data.augment.color` has it. Departure: hues stay as they are.
    """
    jittered, greyed, blurred, sigma = uniform(*view, ids, "recoloured", 4).to(images.device).unbind(1)
    factors = color_factors(view, ids).to(images.device)
    factors = torch.where((jittered < JITTERED)[:, None], factors, 1.0)
    made = color(images.permute(0, 2, 3, 1).contiguous(), factors).permute(0, 3, 1, 2)
    if made.shape[1] == 3:
        red, green, blue = made.split(1, 1)
        luma = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
        made = torch.where((greyed < GREYED)[:, None, None, None], luma, made)
    sigma = (SIGMA[0] + (SIGMA[1] - SIGMA[0]) * sigma) * images.shape[2]
    return torch.where((blurred < BLURRED)[:, None, None, None], blur(made, sigma.to(made.dtype)), made)


def blur(images: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """Blur each image by a Gaussian of its own standard deviation, in pixels; beyond the border it is mirrored.

    Sums of shifted images, so that no image depends on the others of the batch.
    """
    reach = max(1, int(3 * SIGMA[1] * images.shape[2] + 0.999))
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-(steps**2) / (2 * sigma[:, None] ** 2))
    weights = weights / weights.sum(1, keepdim=True)
    for axis in (2, 3):
        n = images.shape[axis]
        padded = F.pad(images, (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0), mode="reflect")
        total = torch.zeros_like(images)
        for i in range(2 * reach + 1):
            total = total + padded.narrow(axis, i, n) * weights[:, i, None, None, None]
        images = total
    return images
