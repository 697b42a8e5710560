"""What each method promises, in a form that can fail: run by ``upcycle prove NAME``."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass

Measured = dict[str, list[float]]  # arm -> one figure per seed
CLAIMS = {name: f"upcycle.claims.{name}" for name in
          ("kd", "tfkd", "netgraft", "vam", "kdexplainer", "fastdfkd", "cmi", "deepinversion", "onestagegan", "mda",
           "dery", "nes", "modeldoctor", "attribution", "ssf", "dine", "beta", "ba3us", "attentiondiversification",
           "iso", "coca", "streaming", "meat", "blip", "vpr", "derpp")}  # fmt: skip
CLAIMS |= {"mdaassembly": CLAIMS["mda"], **dict.fromkeys(("lora", "ia3", "probe"), CLAIMS["ssf"])}
CLAIMS |= dict.fromkeys(("finetune", "joint", "er", "oewc", "si", "lwf"), CLAIMS["derpp"])


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line that holds or does not: a difference of two arms, or one arm, against a bound.

    Args:
        text: what is asked, in words.
        value: the figure, from all seeds of all arms.
        bound: the least that will do.
    """

    text: str
    value: Callable[[Measured], float]
    bound: float

    def holds(self, measured: Measured) -> bool:
        """Whether the figure reaches the bound."""
        return self.value(measured) >= self.bound


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
        checks: what must hold over the seeds.
    """

    method: str
    sentence: str
    published: str
    setting: str
    data: tuple[str, ...]
    measure: Callable[[int, bool], dict[str, float]]
    checks: tuple[Check, ...]


def mean(measured: Measured, arm: str) -> float:
    """The mean of one arm over the seeds."""
    return statistics.fmean(measured[arm])


def gain(arm: str, baseline: str) -> Callable[[Measured], float]:
    """The mean difference of two arms over the seeds."""
    return lambda measured: mean(measured, arm) - mean(measured, baseline)


def find(name: str) -> Claim:
    """The claim of a method."""
    return importlib.import_module(CLAIMS[name]).CLAIM
