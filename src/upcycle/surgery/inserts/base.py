"""Blocks that can be put into a trained network: where they go and what they may ask for while it is tuned."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from upcycle.surgery.signals import Signal

How = Literal["gate", "replace", "before", "after"]
Kind = Literal["map", "square", "tokens"]
"""The signals that blocks work on: maps (b, c, h, w), tokens on a square of places, tokens however they lie."""
Start = Literal["same", "fresh"]


@dataclass(frozen=True, eq=False)
class Place:
    """A place in a trained network at which a block is put.

    Args:
        name: of the module there, as ``named_modules`` has it.
        module: the module itself, with its weights; a block that replaces it may use them.
        takes: the tensor that goes in.
        gives: the tensor that comes out.
    """

    name: str
    module: nn.Module
    takes: Signal
    gives: Signal


class Insert(nn.Module):
    """A block that asks for something while the network around it is tuned; one that asks for nothing is any module."""

    def prepare(self, progress: float, generator: torch.Generator) -> None:
        """Get ready for the next batch of the tuning; called before its forward, on every process with equal draws.

        Args:
            progress: the share of the tuning that is done, from 0 to 1.
            generator: for what is drawn once a batch.
        """

    def penalty(self) -> Tensor | None:
        """Give the block's own term of the loss, weighted, from the last forward in training mode; None has none."""
        return None


@dataclass(frozen=True, kw_only=True)
class Block:
    """A kind of block that can be put into a trained network.

    Args:
        name: what ``--block`` takes.
        summary: one clause, what it does.
        paper: authors and arXiv id.
        kinds: the signals that it works on.
        how: the place that it was made for, beside or instead of a module.
        others: further ways in which it can be put there.
        make: called with a :class:`Place`, the way, the start and the block's options, which are keyword arguments of
            plain data with defaults: the module that stands at the place. With ``gate`` and ``after`` it takes the
            module's output, with ``before`` its input, and what it gives goes on instead: a gate gives back what it
            takes, each value times one of its own. With ``replace`` it stands for the module. The same place, way,
            start and options make the same architecture, so a record of these four is enough to build it again.
        exact: the ways in which the network starts at its own function, to 1e-6.
        parameters: of a block made with ``start="fresh"``, from the signal that it takes and its options.
        macs: its multiply-adds of one sample (convolutions and matrix products), likewise.
    """

    name: str
    summary: str
    paper: str
    kinds: tuple[Kind, ...]
    how: How
    others: tuple[How, ...] = ()
    make: Callable[..., nn.Module]
    exact: tuple[How, ...] = ()
    parameters: Callable[..., int]
    macs: Callable[..., int]

    def options(self) -> dict[str, Any]:
        """The block's options with their defaults."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
