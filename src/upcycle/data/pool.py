"""Images that a method has made itself, kept like a data set."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from upcycle.core.batches import Batch
from upcycle.core.errors import require
from upcycle.core.store import tensor_digest
from upcycle.core.task import CLASSIFICATION, Task
from upcycle.data import cache
from upcycle.data.images import ImageSplit
from upcycle.data.memory import within_share


class Pool:
    """A bounded store of uint8 images; a :class:`~upcycle.core.batches.Split` that grows.

    Once ``capacity`` is reached the oldest images make room. A pool that would take more than a quarter of the memory
    when it is full lies in a file, whose pages come and go. Its state joins a run's save points:
    ``run.register("pool", pool)``.

    Args:
        capacity: the most images that it holds.
        shape: (c, h, w) of one image.
        mean, std: what batches are normalised with, per channel.
        augment: any of crop, flip, color; applied when a batch is asked for with a view.

    Attributes:
        made: how many images were ever added.
    """

    together: ClassVar[bool] = False
    task: ClassVar[Task] = CLASSIFICATION

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: tuple[str, ...] = (),
    ) -> None:
        require(capacity >= 2, f"capacity must be at least 2 images, not {capacity}.")
        c, h, w = shape
        self.capacity, self.mean, self.std, self.augment = capacity, tuple(mean), tuple(std), tuple(augment)
        self.made = 0
        self._images = _room((capacity, h, w, c))
        self._labels = torch.empty(capacity, dtype=torch.int64)

    def __len__(self) -> int:
        return min(self.made, self.capacity)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        h, w, c = self._images.shape[1:]
        return (c, h, w)

    @property
    def images(self) -> Tensor:
        """What it holds, uint8 (n, h, w, c); in the order of :meth:`append` while nothing was replaced."""
        return self._images[: len(self)]

    @property
    def labels(self) -> Tensor:
        """The class that each image was made for, int64 (n,); -1 for none."""
        return self._labels[: len(self)]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what it holds."""
        return tensor_digest({"images": self.images, "labels": self.labels})

    def append(self, images: Tensor, labels: Tensor) -> Tensor:
        """Add images (b, c, h, w) in [0, 1], rounded to 8 bits, and their classes (b,); b at most ``capacity``.

        Returns:
            their places, int64 (b,).
        """
        b = len(images)
        require(b <= self.capacity, f"{b} images do not go into a pool of {self.capacity}.")
        places = (self.made + torch.arange(b)) % self.capacity
        pixels = images.detach().float().mul(255).round_().clamp_(0, 255).to(torch.uint8)
        self._images[places] = pixels.permute(0, 2, 3, 1).cpu()
        self._labels[places] = labels.cpu()
        self.made += b
        return places

    def split(self) -> ImageSplit:
        """What it holds now as an ordinary split; shares the pixels."""
        return ImageSplit(images=self.images, labels=self.labels, ids=torch.arange(len(self)),
                          mean=self.mean, std=self.std, augment=self.augment)  # fmt: skip

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        """See :class:`upcycle.core.batches.Split`."""
        return self.split().batch(index, device=device, view=view)

    def state_dict(self) -> dict[str, Any]:
        """Only what it holds, so that a young pool is saved fast."""
        return {"images": self.images, "labels": self.labels, "made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.made = state["made"]
        self.images.copy_(state["images"])
        self.labels.copy_(state["labels"])


def _room(shape: tuple[int, int, int, int]) -> Tensor:
    """Room for pixels, uint8, in memory or in a file without a name."""
    size = math.prod(shape)
    if within_share(size):  # untouched pages of an empty tensor cost no memory, so a pool takes what it holds
        return torch.empty(shape, dtype=torch.uint8)
    with cache.scratch(size) as file:  # mapped, it stays for as long as the tensor does
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=shape))
