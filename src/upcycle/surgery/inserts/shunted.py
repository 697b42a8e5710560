"""Shunted attention in place of a token mixer: half of the heads see coarsely merged places, half finely merged ones.

Ren et al. (arXiv:2111.15193); see :mod:`upcycle.zoo.shunted`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.surgery.inserts.base import Block, How, Place, Start
from upcycle.surgery.signals import Signal
from upcycle.zoo.shunted import ShuntedAttention, initialise


class ShuntedMixer(nn.Module):
    """Shunted attention on maps (b, c, h, w)."""

    def __init__(self, channels: int, heads: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.attention = ShuntedAttention(channels, heads, rates)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def shunted(place: Place, how: How, start: Start, *, rates: Sequence[int] = (2, 1), head: int = 0) -> nn.Module:
    """Make shunted attention for a place.

    Args:
        rates: sides of the squares of places that are merged to a key, coarse first, each for an equal share of the
            heads; none leaves every place a key of its own.
        head: channels of a head; 0 takes the most up to 32 that fit.

    Raises:
        UserError: rates that do not divide the sides, or heads that do not divide the channels.
    """
    c, (h, w), name = place.takes.channels, place.takes.size, place.name
    require(place.gives == place.takes, f"shunted gives what it takes in shape, and '{name}' does not.")
    for rate in rates:
        require(
            rate >= 1 and h % rate == 0 and w % rate == 0,
            f"The rates of shunted must divide the sides of the {h} x {w} places at '{name}', and {rate} does not.",
        )
    shares = max(len(rates), 1)
    d = head or _head(c, shares)
    require(
        d > 0 and c % (shares * d) == 0,
        f"The {c} channels at '{name}' cannot be shared by heads of {d} at {shares} rates alike; choose another head.",
    )
    return ShuntedMixer(c, c // d, tuple(rates))


def _head(channels: int, shares: int) -> int:
    """The most channels of a head, up to 32, of which each rate gets as many; 0 where there are none."""
    return next((d for d in range(32, 0, -1) if channels % (shares * d) == 0), 0)


def _parameters(s: Signal, rates: Sequence[int] = (2, 1), head: int = 0) -> int:
    c = s.channels
    width = c // max(len(rates), 1)
    keys = 2 * c * width + 2 * width + 10 * width  # their projection, and the depthwise convolution of the values
    merges = sum(rate**2 * c**2 + 3 * c for rate in rates)  # a convolution and a normalisation
    return 2 * (c**2 + c) + max(len(rates), 1) * keys + merges


def _macs(s: Signal, rates: Sequence[int] = (2, 1), head: int = 0) -> int:
    c, n = s.channels, s.size[0] * s.size[1]
    width = c // max(len(rates), 1)
    total = 2 * n * c**2 + len(rates) * n * c**2
    for rate in rates or (1,):
        m = n // rate**2
        total += m * width * (2 * c + 9) + 2 * n * m * width
    return total


SHUNTED = Block(
    name="shunted",
    summary="attention whose heads see places merged at two rates (Shunted Transformer)",
    paper="Ren et al.; arXiv:2111.15193",
    kinds=("map", "square"),
    how="replace",
    make=shunted,
    parameters=_parameters,
    macs=_macs,
)
