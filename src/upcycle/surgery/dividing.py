"""Channels that a forward divides into parts: which stay or go together for that, and which must stay."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, fx


class Division(NamedTuple):
    """The demands of an operation on the channels that it divides.

    Args:
        rows: int64 (parts, c), the ids of even parts, whose counts must stay equal: those of one column are one. Empty
            where it makes none.
        fixed: int64 (f,), the ids that it counts by numbers of its own, which must all stay.
    """

    rows: Int[Tensor, "p c"]
    fixed: Int[Tensor, " f"]


NOTHING = torch.empty(0, dtype=torch.long)


def division(n: fx.Node, x: Int[Tensor, "b ..."], moved: Any) -> Division:
    """Find out how an operation that moves channels divides them.

    Halves (``chunk``) and the view of a channel shuffle follow how many channels there are, as long as the parts stay
    even. A slice with a fixed end, or a split into fixed sizes, follows nothing.

    Args:
        n: the operation.
        x: the ids that it is given, at all places.
        moved: what it makes of them.
    """
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    if name == "chunk" and isinstance(moved, tuple) and len({part.shape for part in moved}) == 1:
        rows = torch.stack([_vector(part) for part in moved])
        return Division(rows if rows.numel() == x.shape[1] else rows[:0], NOTHING)
    if name == "channel_shuffle":
        return Division(_vector(x).view(_argument(n, 1, "groups"), -1), NOTHING)
    if name in ("view", "reshape") and x.dim() == 4 and moved.dim() == 5 and moved.shape[3:] == x.shape[2:]:
        sizes = n.args[1] if isinstance(n.args[1], tuple | list) else n.args[1:]
        outer, inner = (type(size) is int and size > 0 for size in sizes[1:3])
        rows = moved[0, :, :, 0, 0]
        return Division(rows[:0], rows.flatten()) if outer and inner else Division(rows if outer else rows.T, NOTHING)
    return Division(NOTHING[None, :0], x.flatten().unique() if _counts(n, name, x) else NOTHING)


def _vector(x: Tensor) -> Tensor:
    return x.flatten(2)[0, :, 0] if x.dim() > 2 else x[0]


def _argument(n: fx.Node, place: int, name: str, default: Any = None) -> Any:
    return n.kwargs.get(name, n.args[place] if len(n.args) > place else default)


def _counts(n: fx.Node, name: str, x: Tensor) -> bool:
    """Whether an operation divides channels by numbers that do not follow from how many there are."""
    if name == "split":
        sizes = next((n.kwargs[key] for key in ("split_size_or_sections", "split_size") if key in n.kwargs), None)
        sizes = n.args[1] if len(n.args) > 1 else sizes
        return _argument(n, 2, "dim", 0) in (1, 1 - x.dim()) and not isinstance(sizes, fx.Node)
    index = n.args[1] if name == "getitem" else None
    if not isinstance(index, tuple) or len(index) < 2 or not all(isinstance(i, slice) for i in index[:2]):
        return False
    first, last = index[1].start, index[1].stop
    return (type(first) is int and first != 0) or (type(last) is int and last < x.shape[1])
