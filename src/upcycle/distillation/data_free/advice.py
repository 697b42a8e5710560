"""What the methods that make their own images have in common when they are advised."""

from __future__ import annotations

from upcycle.core.advice import Fit, Situation


def from_the_teacher(have: Situation, place: int, reason: str) -> Fit | str | None:
    """Place a method that makes its own images: ``place`` among its kind, after all others where there are images."""
    if have.goal not in ("smaller", "better"):
        return None
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
