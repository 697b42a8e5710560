"""The questions of ``upcycle advise``, asked on the terminal."""

from __future__ import annotations

from typing import Any

from upcycle.core.advice import ANSWERS, Goal
from upcycle.core.errors import unknown

_QUESTIONS = (
    ("data", "Which images do you have?", "labelled"),
    ("teacher", "What can you get of the teacher?", "weights"),
    ("architecture", "What shall the student be?", "any"),
    ("goal", "What is it for?", "smaller"),
    ("source", "Which images of the old domain do you have?", "none"),
    ("present", "Which of the classes occur in the new domain?", "all"),
    ("task_id", "Is the task of an image known when it is classified?", "unknown"),
    ("store", "What may be kept of earlier tasks?", "images"),
    ("growth", "May what is kept grow with every task?", "allowed"),
    ("boundaries", "Is it known in training where a task ends?", "known"),
)
"""Each with the answer that is taken for an empty one."""
_ONLY = {
    "source": "domain",
    "present": "domain",
    **dict.fromkeys(("task_id", "store", "growth", "boundaries"), "extend"),
}
"""The goal that a question belongs to."""


def asked(goal: Goal | None = None) -> dict[str, Any]:
    """The answers of the person at the terminal; questions that do not belong to the goal are left out.

    Args:
        goal: what it is for, where that was said and need not be asked.
    """
    answers: dict[str, Any] = {} if goal is None else {"goal": goal}
    for name, question, default in _QUESTIONS:
        if name in answers or (name in _ONLY and answers["goal"] != _ONLY[name]):
            continue
        choices = ANSWERS[name][1]
        answer = input(f"{question} ({', '.join(choices)}) [{default}] ").strip().lower() or default
        if answer not in choices:
            raise unknown(f"answer to '{question}'", answer, choices)
        answers[name] = answer
    return answers
