"""What several continual methods have in common when they are advised: what they keep, and what they must know."""

from __future__ import annotations

from upcycle.core.advice import Fit, Situation


def kept(have: Situation, place: int, reason: str, *, boundaries: bool = False) -> Fit | str | None:
    """Place a method that keeps images of earlier tasks, and may need their boundaries."""
    if have.goal != "extend":
        return None
    if have.store == "nothing":
        return "it keeps some images of earlier tasks (--store images)."
    if boundaries and have.boundaries == "unknown":
        return "it must know where a task ends (--boundaries known)."
    return Fit(place, reason)


def held(have: Situation, place: int, reason: str) -> Fit | str | None:
    """Place a method that holds on to weights or answers, without images: it keeps little where tasks are not told."""
    if have.goal != "extend":
        return None
    if have.boundaries == "unknown":
        return "it takes stock at the end of each task, so it must know where that is (--boundaries known)."
    if have.task_id == "known":
        return Fit(place, reason)
    weak = (
        " Where the task of an image is not known, it keeps next to nothing of classes that came apart from each "
        "other (on Split CIFAR-10 no more than fine-tuning, arXiv:2004.07211); for the same classes seen "
        "differently it helps."
    )
    return Fit(place + 40, reason + weak)


def untold(have: Situation) -> str:
    """Say why a method cannot serve that is told the task of each image; empty if it can."""
    if have.task_id == "unknown":
        return "it must be told the task of an image when it classifies one (--task_id known)."
    if have.boundaries == "unknown":
        return "it must know in training where a task ends (--boundaries known)."
    return ""
