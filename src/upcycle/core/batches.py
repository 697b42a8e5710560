"""The protocol of a data split, and the division of a split into batches."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from upcycle.core.errors import require
from upcycle.core.task import Task


class Batch(NamedTuple):
    """One batch on the device: what the network takes, what the task asks for, and sample indices (b,).

    Args:
        inputs: a tensor, or whatever else is :class:`Inputs`.
        labels: of classes int64 (b,), -1 for unknown; of another task its targets.
        index: int64 (b,), places in the split.
    """

    inputs: Any
    labels: Any
    index: Tensor  # type: ignore[assignment]  # a better name than what it hides, tuple.index

    @property
    def images(self) -> Tensor:
        """The inputs of a batch of images, (b, c, h, w)."""
        found: Tensor = self.inputs
        return found


class Inputs(Protocol):
    """Inputs of a network, as far as anything but the network looks at them. A tensor is such."""

    @property
    def dtype(self) -> torch.dtype:
        """The number format of its floating part; where it has none, the one that answers come in."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        ...

    @property
    def is_cuda(self) -> bool:
        """Whether that is a GPU of CUDA."""
        ...

    @property
    def ndim(self) -> int:
        """The number of axes; 4 for images alone, which are brought to channels_last order."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The same on a device or in a number format, or in those of a tensor; whole numbers stay such."""
        ...

    def double(self) -> Self:
        """The same in float64."""
        ...

    def clone(self) -> Self:
        """A copy, which can be written to."""
        ...

    def __len__(self) -> int:
        """The samples that it asks an answer for."""
        ...

    def __getitem__(self, part: Any) -> Self:
        """Some of the samples: a slice, or their rows, int64."""
        ...


class Split(Protocol):
    """One split of a data set. Images, graphs and streams implement it."""

    @property
    def labels(self) -> Any:
        """Targets of every sample, as the task has them: of classes int64 (n,), -1 unknown."""
        ...

    @property
    def augment(self) -> tuple[str, ...]:
        """The operations that its batches are augmented with, by name."""
        ...

    @property
    def together(self) -> bool:
        """Whether one forward answers every sample, since they lie in one thing, such as a graph."""
        ...

    @property
    def task(self) -> Task:
        """The task that its labels are of, by which answers are judged."""
        ...

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


View = tuple[int, int] | None
"""The view of a batch, see :meth:`Split.batch`."""


def reading_ahead(split: Split, plan: Iterable[tuple[Tensor, View]]) -> contextlib.AbstractContextManager[None]:
    """Let a split prepare batches while others are worked on, where it can; its method ``ahead`` takes the plan.

    It changes when a sample is read and nothing that comes out.

    Args:
        plan: the samples that will be asked for, in their order and in batches or otherwise, with the view of each.
    """
    ahead = getattr(split, "ahead", None)
    found: contextlib.AbstractContextManager[None] = contextlib.nullcontext() if ahead is None else ahead(plan)
    return found


def read_in_order(
    split: Split, asked: Iterable[tuple[Tensor, View]], read: Callable[[Split, Tensor, View], Batch]
) -> Iterator[Batch]:
    """Read the batches that are asked for, each when it is wanted, with :func:`reading_ahead`.

    Args:
        asked: the samples of each and its view, perhaps without end.
        read: gives a batch.
    """
    asked, plan = itertools.tee(asked)
    with reading_ahead(split, plan):
        for samples, view in asked:
            yield read(split, samples, view)


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
        batch_size: samples in a batch; 0: all of them.
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
        fit = [b for b in order(n, number).split(batch_size or max(n, 1)) if len(b) >= least]
        require(bool(fit), f"{n} samples are too few for one batch.")
        batches += [(number, b) for b in fit]
        number += 1
    return batches[:steps]


def endless(places: Tensor, batch_size: int, order: Callable[[int, int], Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Whole batches of ``places`` without end; what is left at the end of a pass joins the next one.

    Args:
        places: of samples, int64.
        batch_size: samples in a batch; 0: all of them.
        order: of the places in a pass, from their number and that of the pass.

    Yields:
        how many passes had begun before the batch, and its samples.
    """
    left, number, batch_size = places[:0], 0, batch_size or len(places)
    while True:
        begun = number
        while len(left) < batch_size:
            left = torch.cat([left, places[order(len(places), number)]])
            number += 1
        yield begun, left[:batch_size]
        left = left[batch_size:]
