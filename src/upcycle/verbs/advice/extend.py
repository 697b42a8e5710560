"""Rules for a network that learns one task after another."""

from __future__ import annotations

from upcycle.verbs.advice.situation import Fit, Rule, Situation


def _kept(have: Situation, place: int, reason: str, *, boundaries: bool = False) -> Fit | str:
    """A method that keeps images of earlier tasks."""
    if have.store == "nothing":
        return "it keeps some images of earlier tasks (--store images)."
    if boundaries and have.boundaries == "unknown":
        return "it must know where a task ends (--boundaries known)."
    return Fit(place, reason)


def _derpp(have: Situation) -> Fit | str:
    reason = (
        "a few images stay in a memory, with what the network answered when it saw them, and are learnt again beside "
        "the new ones; it needs neither the task of an image nor to know where one ends."
    )
    return _kept(have, 10, reason)


def _er(have: Situation) -> Fit | str:
    return _kept(have, 14, "derpp without the answers: simpler, less memory, two thirds of the time.")


def _coca(have: Situation) -> Fit | str:
    reason = (
        "derpp whose replayed images also teach each other, with two self-supervised tasks beside: about twice the "
        "time. Try it after derpp, and compare."
    )
    return _kept(have, 12, reason)


def _vpr(have: Situation) -> Fit | str:
    if have.data == "unlabelled":
        return "it needs a few images with labels, and yours have none."
    reason = (
        "each class is kept as a Gaussian among the network's features and an image or so: for the smallest memory, "
        "and for a handful of labelled images a class."
    )
    if have.data == "few":
        reason = f"if your few images have labels: {reason}"
    return _kept(have, 16, reason, boundaries=True)


def _joint(have: Situation) -> Fit | str:
    reason = (
        "if the images of all tasks can be kept: nothing is forgotten where all are learnt at once. The others "
        "show it beside them as their upper bound."
    )
    return _kept(have, 70, reason)


def _finetune(have: Situation) -> Fit | str:
    return Fit(80, "nothing is done against forgetting; the others show it beside them as their lower bound.")


def _held(place: int, reason: str) -> Rule:
    """A method that holds on to weights or answers, without images: it keeps little where tasks are not told."""

    def rule(have: Situation) -> Fit | str:
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

    return rule


def _told(have: Situation) -> str:
    """Why a method cannot serve that is told the task of each image; empty if it can."""
    if have.task_id == "unknown":
        return "it must be told the task of an image when it classifies one (--task_id known)."
    if have.boundaries == "unknown":
        return "it must know in training where a task ends (--boundaries known)."
    return ""


def _blip(have: Situation) -> Fit | str:
    if why := _told(have):
        return why
    if have.architecture == "transformer":
        return "it freezes the bits of linear layers and convolutions; for a transformer there is meat."
    reason = (
        "after each task as many leading bits of each weight are frozen as it has taught: no images are kept, and no "
        "more memory with more tasks. The network must be without BatchNorm."
    )
    return Fit(4, reason)


def _meat(have: Situation) -> Fit | str:
    if why := _told(have):
        return why
    if have.architecture in ("conv", "same"):
        return "it is for vision transformers (--architecture transformer)."
    if have.growth == "none":
        return "it keeps masks and a head for every task, which grow with them (--growth allowed)."
    only = "" if have.architecture == "transformer" else "if MODEL is a trained vision transformer: "
    reason = (
        f"{only}its weights stay as they are, and each task gets masks of a bit a weight and a head of its own, so "
        "nothing is forgotten."
    )
    return Fit(0 if have.architecture == "transformer" else 5, reason)


def _streaming(have: Situation) -> Fit | str:
    reason = (
        "for images without labels: the features go on learning by themselves, chunk after chunk; where there are "
        "labels, a classifier on them is trained at the end, on all tasks at once."
    )
    options = "--replay 0" if have.store == "nothing" else ""
    return Fit(2 if have.data == "unlabelled" else 85, reason, options)


RULES: dict[str, Rule] = {
    "finetune": _finetune,
    "joint": _joint,
    "er": _er,
    "derpp": _derpp,
    "coca": _coca,
    "vpr": _vpr,
    "blip": _blip,
    "meat": _meat,
    "streaming": _streaming,
    "oewc": _held(20, "weights that earlier tasks depend on are held, the more so the more they do: no image is kept."),
    "si": _held(22, "like oewc, with the importance of a weight added up while it is learnt."),
    "lwf": _held(24, "the network's own answers of before are held on the new images: no image is kept."),
}
