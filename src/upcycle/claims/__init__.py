"""The claims of methods, in a form that can fail: run by ``upcycle prove NAME``.

A claim is a file here with a ``CLAIM``, named like the method that makes it; :func:`find` needs no list.
"""

from __future__ import annotations

import importlib
import pkgutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from upcycle.claims.verdicts import Headline as Headline
from upcycle.claims.verdicts import Measured as Measured
from upcycle.claims.verdicts import Verdict as Verdict
from upcycle.core.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Check:
    """A condition that holds or does not beside the headline: a difference of two arms, or one arm, against a bound.

    Args:
        text: what is asked, in words.
        value: the figure, from all seeds of all arms.
        bound: the least that will do.
        exact: a statement that has to hold in every seed by itself.
    """

    text: str
    value: Callable[[Measured], float]
    bound: float
    exact: bool = False

    def holds(self, measured: Measured) -> bool:
        """Whether the figure reaches the bound."""
        if not self.exact:
            return self.value(measured) >= self.bound
        seeds = max(map(len, measured.values()))
        return all(
            self.value({arm: [v[min(i, len(v) - 1)]] for arm, v in measured.items()}) >= self.bound
            for i in range(seeds)
        )


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The sentence that makes a method worth having, and a small real setting in which it can fail.

    Args:
        method: its name.
        sentence: the claim in words.
        published: the paper's figure and where it stands.
        setting: data, networks, schedule and baseline, in words.
        data: names of the data sets that must be at hand.
        measure: from a seed and whether to run the miniature, the figure of each arm in per cent (or another unit
            that the arm's name says), after the last epoch, on test data.
        headline: the comparison that gives the verdict.
        checks: what must hold besides.
        covers: further methods that this claim measures beside its own, and which have no claim of their own, each
            with its headline; ``None`` for one that others are compared with.
    """

    method: str
    sentence: str
    published: str
    setting: str
    data: tuple[str, ...]
    measure: Callable[[int, bool], dict[str, float]]
    headline: Headline
    checks: tuple[Check, ...] = ()
    covers: dict[str, Headline | None] = field(default_factory=dict)

    def of(self, name: str) -> Headline | None:
        """The headline of the method, or of one that it covers."""
        return self.headline if name == self.method else self.covers[name]


def mean(measured: Measured, arm: str) -> float:
    """The mean of one arm over the seeds."""
    return statistics.fmean(measured[arm])


def gain(arm: str, baseline: str) -> Callable[[Measured], float]:
    """The mean difference of two arms over the seeds that both have."""

    def value(measured: Measured) -> float:
        n = min(len(measured[arm]), len(measured[baseline]))
        return statistics.fmean(measured[arm][:n]) - statistics.fmean(measured[baseline][:n])

    return value


def find(name: str) -> Claim:
    """The claim of a method: that in the file of its name, or else the one that covers it.

    Raises:
        UserError: there is neither.
    """
    name = name.lower()
    if name in _files() and (own := _in_file(name)):
        return own
    claims = all_claims()
    for claim in claims.values():
        if name in claim.covers:
            return claim
    raise unknown("claim", name, [*claims, *(other for claim in claims.values() for other in claim.covers)])


def all_claims() -> dict[str, Claim]:
    """Every claim by the name of its file; this imports them all."""
    return {name: claim for name in _files() if (claim := _in_file(name))}


def _files() -> list[str]:
    return sorted(file.name for file in pkgutil.iter_modules(__path__))


def _in_file(name: str) -> Claim | None:
    """The claim of a file here; ``None`` for one that holds what several claims share."""
    claim: Claim | None = getattr(importlib.import_module(f"{__name__}.{name}"), "CLAIM", None)
    return claim
