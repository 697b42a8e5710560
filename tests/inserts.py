"""Blocks for tests: one that asks for something while it is tuned, and some that no network can use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upcycle.surgery.inserts.base import Block, How, Insert, Place, Start


class Asking(Insert):
    """x + u, where u is a learnt shift that starts at 0; notes what it is told and asked."""

    def __init__(self, channels: int, weight: float) -> None:
        super().__init__()
        self.shift, self.weight = nn.Parameter(torch.zeros(channels, 1, 1)), weight
        self.told: list[tuple[float, float]] = []
        self.forwards = 0

    def prepare(self, progress: float, generator: torch.Generator) -> None:
        self.told.append((progress, float(torch.rand((), generator=generator))))

    def penalty(self) -> Tensor | None:
        return self.weight * (self.shift - 1).square().sum() if self.weight else None

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return x + self.shift


def asking(place: Place, how: How, start: Start, *, weight: float = 0.0) -> nn.Module:
    """An asking block.

    Args:
        weight: of its term of the loss, which pulls its shift to 1.
    """
    return Asking(place.takes.channels, weight)


class Halving(nn.Module):
    """A block that changes the shape of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


class Shifting(nn.Module):
    """A block that says that it starts at the network's own function, and does not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01


def _block(name: str, make: object, how: How = "after") -> Block:
    return Block(
        name=name,
        summary="for tests",
        paper="none",
        kinds=("map", "square"),
        how=how,
        others=tuple(way for way in ("before", "after", "replace") if way != how),  # type: ignore[arg-type]
        make=make,  # type: ignore[arg-type]
        exact=("before", "after"),
        parameters=lambda signal, weight=0.0: signal.channels,
        macs=lambda signal, weight=0.0: 0,
    )


BLOCKS = {
    "asking": _block("asking", asking),
    "halving": _block("halving", lambda place, how, start: Halving()),
    "shifting": _block("shifting", lambda place, how, start: Shifting()),
}
