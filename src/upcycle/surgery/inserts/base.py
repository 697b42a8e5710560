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
"""The signals that blocks work on.

map: (b, c, h, w). square: tokens (b, n, c) that lie on h x w places, or Swin's grids (b, h, w, c); the block is given
them as a map, without class tokens, which are kept aside and put back. tokens: (b, n, c) however they lie, all of them,
class tokens first.
"""
Start = Literal["same", "fresh"]


@dataclass(frozen=True, eq=False)
class Place:
    """A place in a trained network at which a block is put.

    Args:
        name: of the module there, as ``named_modules`` has it.
        module: the module itself, with its weights; a block that replaces it may use them.
        takes: the tensor that the block is given, as its kind has it: of a square of tokens a map. With ``before`` the
            module's input, with ``gate`` and ``after`` its output.
        gives: the tensor that must come out of the block; differs from ``takes`` with ``replace`` alone.
    """

    name: str
    module: nn.Module
    takes: Signal
    gives: Signal


class Insert(nn.Module):
    """A block that asks for something while the network around it is tuned; one that asks for nothing is any module.

    In evaluation mode it is a pure function of its input.
    """

    def prepare(self, progress: float, generator: torch.Generator) -> None:
        """Get ready for the next batch of the tuning; called before its forward, on every process with equal draws.

        Once more when the tuning is over, with the progress 1: what it is then is what is saved.

        Args:
            progress: the share of the tuning that is done, from 0 to 1.
            generator: for what is drawn once a batch.
        """

    def penalty(self) -> Tensor | None:
        """Give the block's own term of the loss, weighted, from the last forward in training mode; None has none.

        A scalar, the mean over the samples of that forward, so that several processes equal one.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Block:
    """A kind of block that can be put into a trained network.

    Args:
        name: what ``--block`` takes.
        summary: one clause, what it does.
        paper: authors and arXiv id.
        kinds: the signals that it works on; of several that fit a place the first is taken.
        how: the place that it was made for, beside or instead of a module.
        others: further ways in which it can be put there.
        make: called as ``make(place, how, start, **options)``, the options being arguments of plain data with defaults:
            the module for a :class:`Place`, in training mode, whose fresh weights are drawn from torch's global random
            state. With ``gate`` and ``after`` it takes the module's output, with ``before`` its input; with
            ``replace`` it stands for the module. A gate gives what it takes, each value times one of its own.
            Keys and shapes of its state are the same for both starts. :class:`UserError` refuses a place or an option,
            in a sentence that names the place.
        exact: the ways in which the network starts at its own function, to 1e-6.
        parameters: of a block made with ``start="fresh"``, as ``parameters(signal, **options)`` from the signal that
            it takes.
        macs: its multiply-adds of one sample (convolutions and matrix products), likewise.
        scaled: the name of an option between 0 and 1 that makes the network cheaper the smaller it is; a budget takes
            the largest that fits. Empty where there is none.
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
    scaled: str = ""

    def options(self) -> dict[str, Any]:
        """The block's options with their defaults."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
