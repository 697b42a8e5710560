"""Rules for a network that errs less, and for seeing what a network learns from a teacher."""

from __future__ import annotations

from upcycle.verbs.advice.situation import Fit, Rule, Situation


def _modeldoctor(have: Situation) -> Fit | str:
    if have.goal != "mend":
        return "it trains a network on, and makes no other; ask for --goal mend."
    if have.architecture == "transformer":
        return "its paper treats convolutional networks, and nothing was measured on a transformer."
    reason = (
        "training goes on with a penalty on channels that speak for wrong classes, beside the same training without "
        "one; see first where the network errs, by upcycle diagnose MODEL."
    )
    return Fit(0, reason)


def _kdexplainer(have: Situation) -> Fit | str:
    if have.goal != "explain":
        return "its student is a tree of experts, made to be looked at; ask for --goal explain."
    if have.architecture in ("same", "transformer"):
        return "its student is a tree of convolutional experts, zoo:tree."
    reason = (
        "a tree of experts learns from the teacher, and shows which classes share which expert. For what a trained "
        "network looks at: upcycle diagnose MODEL."
    )
    return Fit(0, reason, networks="--teacher TEACHER --student zoo:tree")


RULES: dict[str, Rule] = {"modeldoctor": _modeldoctor, "kdexplainer": _kdexplainer}
