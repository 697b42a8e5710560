"""What the headline comparison of a claim decides: it works, no difference is shown, or it harms."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

Measured = dict[str, list[float]]  # arm -> one figure per seed
Arms = str | tuple[str, ...]

ENOUGH = 5
"""With fewer seeds than this, what is undecided is too few seeds to tell."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of a headline: what its paired differences show.

    Args:
        word: ``works``, ``costs nothing`` (where that is claimed), ``no difference shown``, ``loss not excluded``
            (where it is claimed to cost nothing), ``harms``, ``too few seeds to tell`` or ``not measured``.
        gain: the mean of the differences.
        low, high: their 95 % interval (Student's t, paired); infinite for one seed.
        seeds: how many.
    """

    word: str
    gain: float
    low: float
    high: float
    seeds: int

    @property
    def good(self) -> bool:
        """Whether it shows what is claimed."""
        return self.word in ("works", "costs nothing")


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The one comparison that decides a claim: the product that a user gets, against the fair baseline.

    Args:
        product: the arm of what a user gets; of several, their mean counts.
        baseline: the arm of what a user would do otherwise at the same budget, or a fixed figure.
        says: the comparison in words, for example ``KD over cross-entropy on the same images``.
        margin: what the gain has to exceed.
        allowed: for a claim that something costs nothing, how much may be lost for it; ``None`` where a gain is
            claimed.
        reason: why that much, where ``margin`` or ``allowed`` is given.
        unit: of the arms.
    """

    product: Arms
    baseline: Arms | float
    says: str
    margin: float = 0.0
    allowed: float | None = None
    reason: str = ""
    unit: str = "points"

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that decide."""
        return tuple(
            arm
            for side in (self.product, self.baseline)
            if not isinstance(side, float)
            for arm in ((side,) if isinstance(side, str) else side)
        )

    def differences(self, measured: Measured) -> list[float]:
        """Product less baseline, one for each seed that all of the arms have."""
        product = _of(self.product, measured)
        baseline = [self.baseline] * len(product) if isinstance(self.baseline, float) else _of(self.baseline, measured)
        return [ours - theirs for ours, theirs in zip(product, baseline, strict=False)]

    def verdict(self, measured: Measured) -> Verdict:
        """Give what the figures decide."""
        d = self.differences(measured)
        if not d:
            return Verdict(word="not measured", gain=0.0, low=-math.inf, high=math.inf, seeds=0)
        gain, (low, high) = statistics.fmean(d), interval(d)
        if self.allowed is None:
            word = "works" if low > self.margin else "harms" if high < 0 else "no difference shown"
        else:
            word = "costs nothing" if low > -self.allowed else "harms" if high < -self.allowed else "loss not excluded"
        if len(d) < ENOUGH and word in ("no difference shown", "loss not excluded"):
            word = "too few seeds to tell"
        return Verdict(word=word, gain=gain, low=low, high=high, seeds=len(d))


def interval(differences: list[float]) -> tuple[float, float]:
    """The 95 % interval of a mean, by Student's t."""
    from scipy.special import stdtrit

    n, mean = len(differences), statistics.fmean(differences)
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.inf
    return mean - half, mean + half


def _of(side: Arms, measured: Measured) -> list[float]:
    """The figures of one side, seed by seed."""
    arms = [measured.get(arm, []) for arm in ((side,) if isinstance(side, str) else side)]
    return [statistics.fmean(values) for values in zip(*arms, strict=False)]
