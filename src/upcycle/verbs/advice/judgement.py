"""The judgement where a method stands in a situation once its needs are met, or why it still cannot serve."""

from __future__ import annotations

import dataclasses

from upcycle.core.method import Card
from upcycle.verbs.advice import adapt, extend, inside, parts, smaller, without_data
from upcycle.verbs.advice.situation import ADAPT, Fit, Goal, Rule, Situation

RULES: dict[str, Rule] = smaller.RULES | without_data.RULES | parts.RULES | inside.RULES | adapt.RULES | extend.RULES
"""By the name of a method; a method without a rule is judged by its card alone."""

_TUNED = ("ssf", "lora", "ia3", "probe")
_SERVES: dict[Goal, tuple[tuple[str, ...], str]] = {
    "part": (("mda",), "it keeps all classes."),
    "join": (("mdaassembly", "dery"), "it takes one network, not several."),
    "mend": (("modeldoctor",), "it makes another network, and mends none."),
    "explain": (
        ("kdexplainer",),
        "it makes a network, and says nothing of how. For a trained one: upcycle diagnose MODEL.",
    ),
    "task": (_TUNED, "it is for the classes that its networks have."),
    "domain": (
        ("dine", "beta", "ba3us", "iso", "attentiondiversification", *_TUNED),
        "it knows of no other domain than that of its images.",
    ),
}
"""The methods that alone serve a goal, and why all others do not."""


def judge(card: Card, have: Situation) -> Fit | str:
    """Where the method of a card stands, or why it cannot serve."""
    serving, why_not = _SERVES.get(have.goal, ((card.name,), ""))
    if card.name not in serving:
        return why_not
    if have.goal == "extend" and card.verb != "extend":
        return "it learns once, and not one task after another."
    if have.goal != "extend" and card.verb == "extend":
        return "it teaches a network one task after another; ask for --goal extend."
    if have.goal not in ADAPT and card.verb == "adapt":
        return "it adapts a network to other images; ask for --goal task or --goal domain."
    if have.goal == "smaller" and have.architecture == "same":
        return "a student that is built exactly like its teacher is as large as the teacher."
    if card.name in RULES:
        found = RULES[card.name](have)
        if have.goal == "extend" and have.task_id == "known" and isinstance(found, Fit):
            return dataclasses.replace(found, options=f"--scenario task {found.options}".strip())
        return found
    return Fit(40, card.summary, teacher=card.needs.teacher != "none")
