"""The share of tokens that the poll-and-pool blocks of a network keep: read, set, or chosen to fit a budget."""

from __future__ import annotations

from torch import nn

from upcycle.core.errors import require
from upcycle.core.models import Model, copy_of
from upcycle.core.outputs import called
from upcycle.measure.cost import Budget, count
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


def largest_ratio(model: Model, budget: Budget) -> float | None:
    """The largest ratio, to a hundredth, at which a network keeps within a budget; ``None`` where it does at none.

    Args:
        model: a network with poll-and-pool blocks; it stays as it is.
        budget: whose upper ends count.
    """
    network = copy_of(model.module)

    def fits(hundredths: int) -> bool:
        set_ratio(network, hundredths / 100)
        cost = count(network, model.input_shape)
        return cost.parameters <= budget.params and cost.macs <= budget.macs

    if not fits(1):
        return None
    low, high = 1, 101  # fits at low, and not, as far as is known, at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low / 100
