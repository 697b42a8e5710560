"""The share of tokens that the poll-and-pool blocks of a network keep: read and set."""

from __future__ import annotations

from torch import nn

from upcycle.core.errors import require
from upcycle.core.outputs import called
from upcycle.surgery.inserts.pnp import PollAndPool


def blocks_in(network: nn.Module) -> list[PollAndPool]:
    """The blocks of a network whose ratio can be set.

    Raises:
        UserError: there is none.
    """
    found = [m for m in network.modules() if isinstance(m, PollAndPool)]
    require(
        bool(found),
        f"{called(network)} has no block whose ratio of tokens can be set; upcycle reassemble --method swap "
        "--block pnp makes such a network.",
    )
    return found


def ratio_of(network: nn.Module) -> float:
    """The share of tokens that the first poll-and-pool block of a network polls.

    Raises:
        UserError: there is no such block.
    """
    return blocks_in(network)[0].ratio


def set_ratio(network: nn.Module, ratio: float) -> None:
    """Set the share of tokens that every poll-and-pool block of a network polls; it is saved with the network.

    Args:
        network: one that such a block was put into.
        ratio: above 0, at most 1. Training has seen 1/3 to 0.8.

    Raises:
        UserError: there is no such block, or the ratio is out of range.
    """
    for block in blocks_in(network):
        block.ratio = ratio
