"""Rules for a smaller network, or a better one of the same size, from a teacher and images."""

from __future__ import annotations

from upcycle.verbs.advice.situation import Fit, Rule, Situation


def _no_better(have: Situation) -> str:
    """Why imitating a teacher does not give a better network; empty if it may."""
    if have.goal == "better" and have.data == "few":
        return "a few images make no network better; that takes many."
    if have.goal == "better" and have.data != "labelled" and have.architecture == "same":
        return "a student that only imitates a teacher built like itself gets no better than that teacher."
    return ""


def _kd(have: Situation) -> Fit | str:
    if why := _no_better(have):
        return why
    if have.data == "few":
        reason = (
            "weak on a few images, which crop and flip stretch but do not replace; a folder of any public "
            "images of the same kind serves better. If yours have labels, leave out --terms.w_ce 0."
        )
        return Fit(30, reason, "--terms.w_ce 0")
    stronger = " It helps most when the teacher is the stronger network." if have.goal == "better" else ""
    if have.data == "unlabelled":
        reason = (
            "the student learns the teacher's predictions on your images, without any label. If a part of "
            "them has labels, leave out --terms.w_ce 0 and these count."
        )
        return Fit(10, reason + stronger, "--terms.w_ce 0")
    reason = "the student learns from your labels and from the teacher's predictions on the same images."
    return Fit(10, reason + stronger)


def _vam(have: Situation) -> Fit | str:
    if have.architecture == "transformer":
        return "it works on the student's convolutions, and a transformer has next to none."
    if why := _no_better(have):
        return why
    condition = ", if the student has convolutions" if have.architecture == "any" else ""
    reason = (
        f"kd{condition} with attention over groups of filters while training, folded away afterwards. Its published "
        "gain is some tenths of a point, which did not show here: try it after kd."
    )
    return Fit(20, reason, "" if have.data == "labelled" else "--terms.w_ce 0")


def _netgraft(have: Situation) -> Fit | str:
    if have.goal == "better":
        return "it makes a smaller network that imitates its teacher, not a better one."
    options = []
    if have.architecture == "transformer":
        cut = "both networks need the same tokens and width, as only depth shrinks; MODULE names where to cut"
        options.append("--cuts '[MODULE,MODULE]'")
    else:
        cut = "both networks must cut into blocks of equal spatial size, at layer1 to layer3 or your --cuts"
    if have.data == "few":
        rank, reason = (
            0,
            "made for a few images, without labels: the student grows block by block in the teacher",
        )
    else:
        rank, reason = (
            25,
            "made for a few images; with as many as you have, kd trains the whole student freely",
        )
    if have.data == "labelled":  # drawing so many of each class takes labels
        options.append("--shots 10")
    return Fit(rank, f"{reason}; {cut}.", " ".join(options))


def _tfkd(have: Situation) -> Fit | str:
    if have.architecture == "same" and have.teacher != "none":
        reason = (
            "the teacher serves as the student's earlier self: a fresh network of its build learns from it "
            "and from your labels."
        )
        return Fit(5, reason)
    reason = "the student learns from your labels and its own earlier self (--variant reg: in one training)."
    if have.teacher != "none":
        reason = f"for when the teacher, which it does not use, is no better than the student could be: {reason}"
        return Fit(30, reason, teacher=False)
    small = " It shrinks nothing: choose a small STUDENT." if have.goal == "smaller" else ""
    return Fit(10, reason + small, teacher=False)


def _nes(have: Situation) -> Fit | str:
    if have.architecture == "transformer":
        return "it compresses convolutions, and a transformer has next to none."
    if have.goal == "better":
        return "it stores a network in fewer numbers and makes none better."
    reason = (
        "a network of the student's shapes is trained whose layers are read from smaller tensors: fewer stored "
        "parameters with the same layers. A narrower student by kd is the simpler way; compare."
    )
    return Fit(36, reason, teacher=have.teacher != "none")


RULES: dict[str, Rule] = {"kd": _kd, "vam": _vam, "netgraft": _netgraft, "tfkd": _tfkd, "nes": _nes}
