"""What BatchNorm sees while a network adapts: its own statistics for good, or the batch's without keeping them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batchnorms(module: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm inside."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def use_running(module: nn.Module) -> None:
    """Train with the running statistics as they are: BatchNorms in evaluation mode; call it after ``train()``."""
    for m in batchnorms(module):
        m.eval()


@contextlib.contextmanager
def unrecorded(module: nn.Module) -> Iterator[None]:
    """Within: batches are normalised by their own statistics, and the running ones do not move."""
    before = [(m, m.momentum, m.num_batches_tracked) for m in batchnorms(module)]
    counts = [None if n is None else n.clone() for _, _, n in before]
    try:
        for m, _, _ in before:
            m.momentum = 0.0
        yield
    finally:
        for (m, momentum, counter), count in zip(before, counts, strict=True):
            m.momentum = momentum
            if counter is not None and count is not None:
                counter.copy_(count)
