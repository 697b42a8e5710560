"""What was found when the claims were measured: a line a method, shipped with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypedDict

from upcycle.core.read import read

FILE = Path(__file__).with_name("found.json")
"""Made of the committed records by ``python -m scripts.docs``."""


class Found(TypedDict):
    """The verdict on one method.

    ``gain`` and ``interval`` are in ``unit``; ``says`` is the comparison that decides, in words; ``commit`` and
    ``date`` are those of the last seed.
    """

    verdict: str
    says: str
    gain: float
    interval: list[float] | None
    unit: str
    seeds: int
    claim: str
    date: str
    commit: str


@cache
def found() -> dict[str, Found]:
    """The verdicts by method; a method that nothing was measured for is not among them."""
    return read(FILE, dict[str, Found])


def short(verdict: Found) -> str:
    """A verdict in one line, for example ``works: +5.4 points (+5.3 to +5.5, 5 seeds)``."""
    low, high = verdict["interval"] or (None, None)
    spread = f"{low:+.1f} to {high:+.1f}, {verdict['seeds']} seeds" if low is not None else "one seed"
    return f"{verdict['verdict']}: {verdict['gain']:+.1f} {verdict['unit']} ({spread})"
