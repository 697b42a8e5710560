"""Signals: the one tensor that crosses a cut between two blocks, and how it is laid out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from upcycle.core.errors import UserError

Layout = Literal["map", "grid", "tokens"]


EXTRA = 8
"""The most tokens without a place that are taken for class tokens and registers."""


@dataclass(frozen=True)
class Signal:
    """The one tensor that crosses a cut, for one sample.

    Args:
        layout: map (b, c, h, w), grid (b, h, w, c: Swin's tokens in their places) or tokens (b, t, c).
        channels: c.
        size: (h, w); that of the patches for tokens.
        extra: tokens before those of the patches, such as a class token: t = extra + h w.
    """

    layout: Layout
    channels: int
    size: tuple[int, int]
    extra: int = 0

    @property
    def kind(self) -> Literal["map", "tokens"]:
        """Whether convolutions (map) or linear layers (tokens) work on it, which is all that a stitch must know."""
        return "map" if self.layout == "map" else "tokens"

    def shape(self, batch: int) -> tuple[int, ...]:
        """The shape of the tensor for ``batch`` samples."""
        h, w = self.size
        if self.layout == "tokens":
            return (batch, self.extra + h * w, self.channels)
        return (batch, self.channels, h, w) if self.layout == "map" else (batch, h, w, self.channels)

    def record(self) -> dict[str, Any]:
        """The signal as plain data."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Signal:
        """The signal of :meth:`record`.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        h, w = map(int, record["size"])
        return cls(record["layout"], int(record["channels"]), (h, w), int(record["extra"]))


def signal_at_cut(
    shape: tuple[int, ...], seen: list[tuple[int, ...]], before: Signal, image: tuple[int, int], name: str
) -> Signal:
    """Find out how a tensor that crosses a cut is laid out.

    Args:
        shape: of the tensor, batch first.
        seen: shapes of all tensors made on the way there from ``before``.
        before: the signal at the cut before.
        image: (h, w) of the network's input.
        name: of the network, for the error.

    Raises:
        UserError: it has tokens that lie on no grid.
    """
    if len(shape) == 4:
        as_map, as_grid = _proportioned(*shape[2:], image), _proportioned(*shape[1:3], image)
        if as_grid and (not as_map or before.layout == "grid"):
            return Signal("grid", shape[3], (shape[1], shape[2]))
        return Signal("map", shape[1], (shape[2], shape[3]))
    maps = [s for s in reversed(seen) if len(s) == 4]
    grids = [(s[1], s[2]) for s in maps if _proportioned(*s[1:3], image)]
    places = [before.size, *((s[2], s[3]) for s in maps), *grids]
    for h, w in places:
        if 0 <= shape[1] - h * w <= EXTRA:
            return Signal("tokens", shape[2], (h, w), shape[1] - h * w)
    raise UserError(f"{name} cannot be cut into blocks: its {shape[1]} tokens lie on no grid of patches that it made.")


def _proportioned(h: int, w: int, image: tuple[int, int]) -> bool:
    """Whether a size has about the proportions of the image."""
    return 0.75 < (h * image[1]) / (w * image[0]) < 1.34


def signal_at_size(shape: tuple[int, ...], signal: Signal, takes: Signal, native: Signal) -> Signal | None:
    """Find out how the output of a node is laid out when its input has another size.

    Args:
        shape: of the output for one sample, batch first.
        signal: the input.
        takes: the input at the network's own size.
        native: the output at the network's own size.

    Returns:
        ``None`` where the output is laid out in no way that is known.
    """
    if len(shape) != len(native.shape(1)) or 0 in shape:
        return None
    if native.layout != "tokens":
        size = (shape[2], shape[3]) if native.layout == "map" else (shape[1], shape[2])
        return Signal(native.layout, native.channels, size)
    in_proportion = tuple(n * g // t for n, g, t in zip(signal.size, native.size, takes.size, strict=True))
    for h, w in (signal.size, in_proportion):
        if 0 <= shape[1] - h * w <= EXTRA:
            return Signal("tokens", native.channels, (h, w), shape[1] - h * w)
    return None


def global_pool(x: Tensor, layout: Layout) -> Float[Tensor, "b d"]:
    """Average over places: maps over h and w, tokens over all of them."""
    return x.mean({"map": (2, 3), "grid": (1, 2), "tokens": (1,)}[layout])
