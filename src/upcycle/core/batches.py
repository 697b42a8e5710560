"""The protocol of a data split, and the division of a split into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from upcycle.core.errors import require
from upcycle.core.task import CLASSIFICATION, Task


class Batch(NamedTuple):
    """One batch on the device: inputs, labels (b,) with -1 for unknown, and sample indices (b,)."""

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # a better name than what it hides, tuple.index


class Split(Protocol):
    """One split of a data set. Images, graphs and streams implement it; who inherits from it gets the defaults.

    Attributes:
        labels: what the task asks for, of every sample: of classes int64 (n,), -1 unknown.
        augment: the operations that its batches are augmented with, by name.
        together: one forward answers every sample, since they lie in one thing, such as a graph.
        task: what its labels are, and how answers are judged by them.
    """

    labels: Any
    augment: tuple[str, ...] = ()
    together: bool = False
    task: Task = CLASSIFICATION

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


_PASS = 1_000_003  # apart from each other in the numbering of views: an epoch's further passes over a split


def view_of(epoch: int, number: int, views: int) -> int:
    """The number of the view of pass ``number`` over a split in an epoch; if ``views`` is positive, they repeat."""
    view = epoch + number * _PASS
    return view % views if views else view


def divide(
    n: int, batch_size: int, steps: int | None, least: int, order: Callable[[int, int], Tensor]
) -> list[tuple[int, Tensor]]:
    """The batches of one pass over ``n`` samples, or of as many passes as ``steps`` batches take.

    Args:
        least: samples in a batch; smaller ones are dropped.
        order: of the samples in a pass, from ``n`` and the number of the pass.

    Returns:
        for each batch the number of its pass, and its samples.

    Raises:
        UserError: a pass has no batch.
    """
    batches: list[tuple[int, Tensor]] = []
    number = 0
    while not batches or (steps is not None and len(batches) < steps):
        fit = [b for b in order(n, number).split(batch_size) if len(b) >= least]
        require(bool(fit), f"{n} samples are too few for one batch.")
        batches += [(number, b) for b in fit]
        number += 1
    return batches[:steps]


def endless(places: Tensor, batch_size: int, order: Callable[[int, int], Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Whole batches of ``places`` without end; what is left at the end of a pass joins the next one.

    Args:
        places: of samples, int64.
        order: of the places in a pass, from their number and that of the pass.

    Yields:
        how many passes had begun before the batch, and its samples.
    """
    left, number = places[:0], 0
    while True:
        begun = number
        while len(left) < batch_size:
            left = torch.cat([left, places[order(len(places), number)]])
            number += 1
        yield begun, left[:batch_size]
        left = left[batch_size:]
