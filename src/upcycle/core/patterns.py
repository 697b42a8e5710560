"""Patterns that what a run kept must fit before a method goes on with it: names, sizes of tensors, ranges of values.

A digest says that a state is as it was written, not that it makes sense; and a position out of range reads another
sample, or none. A pattern has the form of the state, with what may stand in each place::

    {"samples": Values((None,), low=0, high=n - 1, whole=True), "layer": str, "scales": [float]}

A dict has just these names; a tuple just these items, in a tuple or a list; a list of one pattern one item or more;
:class:`Values` stands for a tensor, and any type for plain data, as in :mod:`upcycle.core.read`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.read import checked


@dataclass(frozen=True)
class Values:
    """A tensor.

    Args:
        shape: its sizes; ``None`` for any.
        low, high: what its values lie between, both included; ``None`` for no bound, and for none that is not finite.
        whole: it holds whole numbers, or truth values.
    """

    shape: tuple[int | None, ...]
    low: float | None = None
    high: float | None = None
    whole: bool = False


def weights_of(module: nn.Module) -> dict[str, Values]:
    """The pattern of a network's ``state_dict``."""
    return {
        key: Values(tuple(t.shape), whole=not t.is_floating_point())
        for key, t in module.state_dict().items()
        if isinstance(t, Tensor)
    }


def check(value: Any, pattern: Any, path: Path, place: str = "$") -> None:
    """Check that a state fits a pattern.

    Args:
        path: of the file that it comes from.
        place: where it stands in that file.

    Raises:
        UserError: it does not, naming the file and the place.
    """
    if isinstance(pattern, Values):
        if problem := _problem(value, pattern):
            raise UserError(f"{path} is damaged: {place} {problem}.")
    elif isinstance(pattern, Mapping):
        names = set(value) if isinstance(value, dict) else None
        if names is None or names != set(pattern):
            odd = "" if names is None else "".join(f"; {name}" for name in sorted(map(str, names ^ set(pattern)))[:1])
            raise UserError(f"{path} is damaged: {place} must be a mapping of the names that belong there{odd}.")
        for key, item in pattern.items():
            check(value[key], item, path, f"{place}.{key}")
    elif isinstance(pattern, list | tuple):
        fixed = isinstance(pattern, tuple)
        if not isinstance(value, list | tuple) or not (len(value) == len(pattern) if fixed else value):
            many = f" of {len(pattern)}" if fixed else " of one item or more"
            raise UserError(f"{path} is damaged: {place} must be a list{many}.")
        for i, item in enumerate(value):
            check(item, pattern[i] if fixed else pattern[0], path, f"{place}[{i}]")
    else:
        checked(value, pattern, path, place)


def _problem(value: Any, pattern: Values) -> str:
    """Give what is wrong with a tensor, in words; empty where nothing is."""
    if not isinstance(value, Tensor):
        return "must be a tensor"
    sizes = tuple(value.shape)
    if len(sizes) != len(pattern.shape) or any(b not in (None, a) for a, b in zip(sizes, pattern.shape, strict=True)):
        wanted = " x ".join("any" if n is None else str(n) for n in pattern.shape)
        return f"must be a tensor of {wanted or 'one number'}, not of {' x '.join(map(str, sizes)) or 'one number'}"
    if value.is_complex() or value.is_floating_point() == pattern.whole:
        return f"must hold {'whole numbers' if pattern.whole else 'numbers with fractions'}"
    if value.numel() and (pattern.low is not None or pattern.high is not None):
        low, high = float(value.min()), float(value.max())
        if not (pattern.low is None or low >= pattern.low) or not (pattern.high is None or high <= pattern.high):
            return f"must lie between {pattern.low} and {pattern.high}, not between {low:g} and {high:g}"
    return ""
