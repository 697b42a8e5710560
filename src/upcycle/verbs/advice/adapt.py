"""Rules for a trained network that is to tell other classes apart, or to work on another domain."""

from __future__ import annotations

from upcycle.verbs.advice.situation import Fit, Rule, Situation


def _tuned(place: int, reason: str) -> Rule:
    """A method that tunes a network with labels: the same judgement for a task and for a domain."""

    def rule(have: Situation) -> Fit | str:
        return Fit(place, reason)

    return rule


def _dine(have: Situation) -> Fit | str:
    reason = (
        "a network of your choice learns from what MODEL says of your images, and then from how sure it is of them "
        "itself; no image of the old domain and no weight of MODEL is needed."
    )
    partial = " Classes that do not occur are not forced to (--partial)." if have.present == "some" else ""
    return Fit(10, reason + partial, "--partial" if partial else "", networks="MODEL --student STUDENT")


def _beta(have: Situation) -> Fit | str:
    if have.present == "some":
        return "it expects every class in every batch; dine --partial does not."
    reason = (
        "for when MODEL is wrong on a quarter of your images or more: two networks sort its answers into likely right "
        "and likely wrong, and each cleans the other's; about five times the time of dine."
    )
    return Fit(20, reason, networks="MODEL --student STUDENT")


def _ba3us(have: Situation) -> Fit | str:
    if have.source == "none":
        return "it needs labelled images of the old domain (--source labelled)."
    reason = (
        "made for a new domain in which only some of the old classes occur, which it finds out; it learns from "
        "labelled images of the old domain and unlabelled ones of the new."
    )
    place = 5 if have.present == "some" else 25
    return Fit(place, reason, networks="--student STUDENT --source_data SOURCE")


def _iso(have: Situation) -> Fit | str:
    if have.source == "none":
        return "it trains MODEL on labelled images of the old domain first (--source labelled)."
    reason = (
        "for a shift that shows in use, image by image: MODEL is trained with a second task that needs no labels, and "
        "goes on with that one before each answer."
    )
    return Fit(30, reason, networks="MODEL --source_data SOURCE")


def _attentiondiversification(have: Situation) -> Fit | str:
    if have.source == "none":
        return "it needs labelled images of two old domains or more (--source labelled), and none of the new one."
    reason = (
        "for a domain that nobody has seen yet: one network is trained on several labelled domains, so that its "
        "channels look at different places; DATA only measures."
    )
    return Fit(40, reason, networks="--student STUDENT --source_data SOURCE1,SOURCE2")


RULES: dict[str, Rule] = {
    "ssf": _tuned(
        0,
        "a scale and a shift behind every layer are trained, under a hundredth of the weights, and then "
        "folded into them: the network's size and speed stay as they were.",
    ),
    "lora": _tuned(
        5,
        "low-rank changes of the weights are trained and merged into them; --rank says how much may "
        "change. Its library, peft, comes with upcycle[peft].",
    ),
    "ia3": _tuned(8, "one factor a channel of some layers is trained, even less than ssf's scales and shifts."),
    "probe": _tuned(12, "only a new classifier is trained; what the others must beat."),
    "dine": _dine,
    "beta": _beta,
    "ba3us": _ba3us,
    "iso": _iso,
    "attentiondiversification": _attentiondiversification,
}
