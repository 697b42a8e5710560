"""Rules for the methods that make their own images out of a teacher."""

from __future__ import annotations

from upcycle.verbs.advice.situation import Fit, Rule, Situation


def _from_the_teacher(have: Situation, place: int, reason: str) -> Fit | str:
    """A method that makes its own images: ``place`` among its kind, after all others where images are at hand."""
    if have.architecture == "transformer":
        return (
            "it makes images from the statistics that BatchNorm layers keep, and a transformer has none; images of "
            "any kind would serve, with kd."
        )
    if have.goal == "better":
        return "a student of images that a teacher dreamt up gets no better than that teacher."
    if have.data != "none":
        kind = "a few real images say more" if have.data == "few" else "real images teach more"
        reason = (
            f"it needs no images, and {kind} than those it makes: for when yours may not be used. As to it, {reason}"
        )
        return Fit(60 + place, reason)
    return Fit(place, f"{reason} The teacher must have BatchNorm layers.")


def _fastdfkd(have: Situation) -> Fit | str:
    reason = (
        "images are inverted out of the teacher by a generator that is a few steps away from each batch, and the "
        "student learns on them: few steps a batch, so most of the time is the student's (--dry_run says how much)."
    )
    return _from_the_teacher(have, 1, reason)


def _cmi(have: Situation) -> Fit | str:
    reason = (
        "like fastdfkd with a new generator and hundreds of steps for every batch, held apart from all images before: "
        "more diverse, for many times the synthesis. Try it when fastdfkd falls short and there are hours to spend."
    )
    return _from_the_teacher(have, 2, reason)


def _deepinversion(have: Situation) -> Fit | str:
    reason = (
        "each batch of pixels is descended by itself, without a generator, in a thousand steps: the baseline that the "
        "others are measured against."
    )
    return _from_the_teacher(have, 3, reason)


def _onestagegan(have: Situation) -> Fit | str:
    reason = (
        "generator and student learn from the same pass, one against the other: no step is spent on the generator "
        "alone, and which classes its images are of is not chosen."
    )
    return _from_the_teacher(have, 4, reason)


RULES: dict[str, Rule] = {
    "fastdfkd": _fastdfkd,
    "cmi": _cmi,
    "deepinversion": _deepinversion,
    "onestagegan": _onestagegan,
}
