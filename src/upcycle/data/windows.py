"""Views of images, as self-supervision has them: a split of them, and the random windows that they begin with."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from upcycle.core.batches import View
from upcycle.core.seeds import uniform
from upcycle.core.task import CLASSIFICATION, Task
from upcycle.data.images import ImageSplit


@dataclass(eq=False)
class SplitOfViews:
    """A split each of whose samples is several views of an image; ``batch`` of a class derived from it makes them.

    Args:
        split: the images.
    """

    augment: ClassVar[tuple[str, ...]] = ("window",)
    together: ClassVar[bool] = False
    task: ClassVar[Task] = CLASSIFICATION

    split: ImageSplit

    def __len__(self) -> int:
        return len(self.split)

    def ahead(self, plan: Iterable[tuple[Tensor, View]]) -> AbstractContextManager[None]:
        """See :func:`upcycle.core.batches.reading_ahead`; the images are read without augmentation of their own."""
        return self.split.ahead((index, None) for index, _ in plan)

    @property
    def ordered(self) -> bool:
        """Whether the images come in the order in which they lie."""
        return self.split.ordered

    @property
    def labels(self) -> Tensor:
        """Those of the images."""
        return self.split.labels


def windows(view: tuple[int, int], ids: Int[Tensor, " b"], scale: float) -> Float[Tensor, "b 4"]:
    """Each sample's window: height, width, and its middle's row and column.

    In the coordinates of ``affine_grid``, in which the image reaches from -1 to 1. Area uniform in [scale, 1], the
    logarithm of the aspect uniform, sides cut at the image's.
    """
    area, aspect, row, column = uniform(*view, ids, "window", 4).unbind(1)
    area, aspect = scale + (1 - scale) * area, (4 / 3) ** (2 * aspect - 1)
    height, width = (area / aspect).sqrt().clamp_max(1), (area * aspect).sqrt().clamp_max(1)
    return torch.stack([height, width, (1 - height) * (2 * row - 1), (1 - width) * (2 * column - 1)], 1).float()


def resized_crop(
    images: Float[Tensor, "b c h w"], window: Float[Tensor, "b 4"], size: tuple[int, int] | None = None
) -> Float[Tensor, "b c hh ww"]:
    """The window (see :func:`windows`) of each image, brought to a height and a width, bilinear.

    Args:
        size: height and width; those of the images if not given.
    """
    height, width, row, column = window.to(images.device).unbind(1)
    zero = torch.zeros_like(row)
    matrix = torch.stack([width, zero, column, zero, height, row], 1).view(-1, 2, 3)
    shape = [*images.shape[:2], *(size or images.shape[2:])]
    grid = F.affine_grid(matrix, shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
