"""A situation in which advice is asked for, and the answer that a rule about a method gives in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from upcycle.core.method import Access, Data

Architecture = Literal["any", "same", "conv", "transformer"]


Goal = Literal["smaller", "better", "part", "join", "mend", "explain", "task", "domain", "extend"]


Source = Literal["none", "labelled"]


Present = Literal["all", "some"]


Known = Literal["unknown", "known"]


Store = Literal["images", "nothing"]


Growth = Literal["allowed", "none"]


DATA_WORDS: dict[Data, str] = {
    "none": "no images",
    "few": "a few images",
    "unlabelled": "many images without labels",
    "labelled": "many images with labels",
}


ACCESS_WORDS: dict[Access, str] = {
    "none": "no teacher",
    "predictions": "the teacher's predictions",
    "features": "the teacher's inner features",
    "weights": "the teacher's weights",
}


ARCHITECTURE_WORDS: dict[Architecture, str] = {
    "any": "architectures are open",
    "same": "the student is built like the teacher",
    "conv": "the networks are convolutional",
    "transformer": "the networks are transformers",
}


GOAL_WORDS: dict[Goal, str] = {
    "smaller": "a smaller network",
    "better": "a better network of the same size",
    "part": "a network for some of its classes only",
    "join": "one network made of several trained ones",
    "mend": "a network that errs less, without starting over",
    "explain": "to see what a network learns from a teacher",
    "task": "a trained network to tell other classes apart",
    "domain": "a network that works on images which look otherwise than those that one was trained on",
    "extend": "a network that learns one task after another and keeps the first ones",
}


ADAPT = ("task", "domain")  # the goals of upcycle adapt; what the others ask of a teacher is there asked of a network


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The answers to the questions of :func:`upcycle.verbs.advise.advise`."""

    data: Data
    teacher: Access
    architecture: Architecture
    goal: Goal
    source: Source = "none"
    present: Present = "all"
    task_id: Known = "unknown"
    store: Store = "images"
    growth: Growth = "allowed"
    boundaries: Known = "known"

    def words(self) -> str:
        """The situation in sentences."""
        images, access = DATA_WORDS[self.data], ACCESS_WORDS[self.teacher]
        if self.goal in ADAPT:
            images, access = f"{images} of the new {self.goal}", access.replace("teacher", "network")
        if self.goal == "extend":
            images, access = f"{images} of each task", access.replace("teacher", "network")
        old = ", labelled images of the old domain" if self.source == "labelled" else ""
        some = "Some of the classes do not occur. " if self.present == "some" else ""
        if self.goal == "extend":
            which = {"unknown": "is not known", "known": "is known"}
            some = (
                f"The task of an image {which[self.task_id]} when it is classified, where one task ends "
                f"{which[self.boundaries]} in training; of earlier tasks "
                f"{'some images' if self.store == 'images' else 'no images'} may be kept, and the network "
                f"{'may' if self.growth == 'allowed' else 'may not'} grow with the tasks. "
            )
        return (
            f"You have {images}{old} and {access}; {ARCHITECTURE_WORDS[self.architecture]}. {some}"
            f"You want {GOAL_WORDS[self.goal]}."
        )


@dataclass(frozen=True)
class Fit:
    """Where a method stands among those that can work, and why.

    Args:
        rank: its place; lower is better.
        reason: in words that follow its name.
        options: of the command line, beside networks and data.
        teacher: whether a method of ``distill`` is to be given a teacher.
        networks: of the command line, where they are others than the verb's.
    """

    rank: int
    reason: str
    options: str = ""
    teacher: bool = True
    networks: str = ""


Rule = Callable[[Situation], Fit | str]
"""Where a method stands in a situation that has what it needs, or why it still cannot serve there."""
