"""Whether a network with blocks in it keeps within a budget, and the cheapest that could be had where it does not."""

from __future__ import annotations

from dataclasses import replace

import torch

from upcycle.core.errors import UserError
from upcycle.core.models import Model, copy_of
from upcycle.measure.cost import Budget, Cost, count
from upcycle.measure.units import si
from upcycle.surgery.inserts.base import Start
from upcycle.surgery.operate import Cut, inserts, operate, places
from upcycle.surgery.places import block_of

STEPS = 100
"""Values of an option that a budget chooses among, evenly spaced up to the one that was asked for."""


def cost_of(model: Model) -> Cost:
    """The cost of a network when its tuning is over: a block may change its own until then."""
    network = copy_of(model.module)
    for block in inserts(network):
        block.prepare(1.0, torch.Generator().manual_seed(0))
    return count(network, model.input_shape)


def within(source: Model, cut: Cut, start: Start, budget: Budget) -> Cut:
    """The cut whose product keeps within a budget: as it is, or with the largest value of its block's scale that does.

    Args:
        source: the network that it is for.
        cut: what is to be put where.
        start: see :func:`~upcycle.surgery.operate.operate`.
        budget: whose upper ends count.

    Raises:
        UserError: there is none, naming the cheapest that can be had.
    """
    cost = cost_of(operate(source, cut, start))
    if budget.allows(cost.parameters, cost.macs):
        return cut
    block, _, options = block_of(cut)
    if block.scaled:
        low, high = 0, STEPS  # what fits, as far as is known, and what does not
        while high - low > 1:
            middle = (low + high) // 2
            found = cost_of(operate(source, _scaled(cut, block.scaled, options[block.scaled] * middle / STEPS), start))
            low, high = (middle, high) if budget.allows(found.parameters, found.macs) else (low, middle)
        if low:
            return _scaled(cut, block.scaled, options[block.scaled] * low / STEPS)
        cut = _scaled(cut, block.scaled, options[block.scaled] / STEPS)
        cost = cost_of(operate(source, cut, start))
    raise UserError(_too_dear(source, cut, start, budget, cost))


def _scaled(cut: Cut, option: str, value: float) -> Cut:
    return replace(cut, options={**cut.options, option: value})


def _too_dear(source: Model, cut: Cut, start: Start, budget: Budget, cost: Cost) -> str:
    """The sentence that refuses a product, and names the cheapest: with the block at all places, or at one alone."""
    names = [place.name for place in places(source, cut)]
    found = {f"at all {len(names)} places" if len(names) > 1 else f"at '{names[0]}'": cost}
    for name in names if len(names) > 1 else ():
        found[f"at '{name}' alone"] = cost_of(operate(source, replace(cut, at=(name,)), start))
    by_macs = cost.parameters <= budget.params
    where = min(found, key=lambda key: found[key].macs if by_macs else found[key].parameters)
    return (
        f"with {cut.block} {next(iter(found))} the network has {_words(cost)}, and the budget is {budget}; the "
        f"cheapest that can be had, with it {where}, has {_words(found[where])}, and without it "
        f"{_words(cost_of(source))}"
    )


def _words(cost: Cost) -> str:
    return f"{si(cost.parameters)} parameters and {si(cost.macs)} multiply-adds"
