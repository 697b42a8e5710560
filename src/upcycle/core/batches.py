"""What ``Run`` asks of a data split."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One batch on the device: inputs, labels (b,) with -1 for unknown, and sample indices (b,)."""

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # a better name than what it hides, tuple.index


class Split(Protocol):
    """One split of a data set. Images, graphs and streams implement it."""

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        """The samples ``index`` (int64, (b,), on the CPU).

        Args:
            index: positions in this split.
            device: where the batch is wanted.
            view: (seed, epoch) that each sample's augmentation is drawn from, together with its index, so that
                it does not depend on the batch, the worker or the process; ``None`` for no augmentation.
        """
        ...
