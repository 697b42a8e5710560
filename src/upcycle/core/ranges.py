"""The values that options may have, one phrasing for each rule."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from upcycle.core.errors import require, unknown


def ranges(
    method: Any,
    *,
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    share: Iterable[str] = (),
    below_one: Iterable[str] = (),
    at_least: Mapping[str, float] | None = None,
    one_of: Mapping[str, Collection[Any]] | None = None,
) -> None:
    """Refuse options outside of their range, by the names of the fields of ``method``.

    ``None`` is in every range. Of a tuple each element must be. No number may be infinite or NaN.

    Args:
        method: the dataclass whose fields are read; called in its ``__post_init__``.
        positive: above zero.
        not_negative: zero or above.
        share: between 0 and 1, both ends included.
        below_one: at least 0 and below 1.
        at_least: each with the least that will do.
        one_of: each with the values there are.

    Raises:
        UserError: naming the option, its range and its value.
    """
    for name in positive:
        _each(method, name, lambda v: v > 0, "be positive")
    for name in not_negative:
        _each(method, name, lambda v: v >= 0, "not be negative")
    for name in share:
        _each(method, name, lambda v: 0 <= v <= 1, "lie between 0 and 1")
    for name in below_one:
        _each(method, name, lambda v: 0 <= v < 1, "be at least 0 and below 1")
    for name, least in (at_least or {}).items():
        _each(method, name, lambda v, least=least: v >= least, f"be at least {least:g}")
    for name, known in (one_of or {}).items():
        for value in _values(method, name):
            if value not in known:
                raise unknown(name, value, map(str, known))


def _each(method: Any, name: str, holds: Any, rule: str) -> None:
    for value in _values(method, name):
        require(math.isfinite(value) and holds(value), f"{name} must {rule}, and it is {value}.")


def _values(method: Any, name: str) -> tuple[Any, ...]:
    value = getattr(method, name)
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)
