"""What one has and wants, and how well a method serves it: the words between methods and ``upcycle advise``.

Each method says by its :meth:`~upcycle.core.method.Method.serves` where it stands in a :class:`Situation`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from upcycle.core.errors import unknown

Data = Literal["none", "few", "unlabelled", "labelled"]
Access = Literal["none", "predictions", "features", "weights"]
Architecture = Literal["any", "same", "conv", "transformer"]
Goal = Literal["smaller", "better", "part", "join", "mend", "explain", "task", "domain", "extend", "spikes"]
Source = Literal["none", "labelled"]
Present = Literal["all", "some"]
Known = Literal["unknown", "known"]
Store = Literal["images", "nothing"]
Growth = Literal["allowed", "none"]
Inputs = Literal["images", "graphs"]

DATA_LEVELS: tuple[Data, ...] = get_args(Data)
ACCESS_LEVELS: tuple[Access, ...] = get_args(Access)

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
    "spikes": "a network that computes with spikes, for a device that does",
}
VERB_GOALS: dict[str, tuple[Goal, ...]] = {
    "distill": ("smaller", "better"),
    "disassemble": ("part",),
    "assemble": ("join",),
    "reassemble": ("join",),
    "treat": ("mend",),
    "adapt": ("task", "domain"),
    "extend": ("extend",),
}
"""The goals that a verb is for: those of a method that says nothing of its own."""

_ELSEWHERE: dict[Goal, str] = {
    "part": "it keeps all classes.",
    "join": "it takes one network, not several.",
    "mend": "it makes another network, and mends none.",
    "explain": "it makes a network, and says nothing of how. For a trained one: upcycle diagnose MODEL.",
    "task": "it is for the classes that its networks have.",
    "domain": "it knows of no other domain than that of its images.",
    "extend": "it learns once, and not one task after another.",
    "spikes": "what it makes sends numbers from layer to layer, and no spikes.",
}
_VERBS = {
    "assemble": "it joins several networks of different classes; ask for --goal join.",
    "treat": "it trains a network on, and makes no other; ask for --goal mend.",
    "adapt": "it adapts a network to other images; ask for --goal task or --goal domain.",
    "extend": "it teaches a network one task after another; ask for --goal extend.",
}
"""What is said of a method that has nothing to say for a goal; of its verb where the goal is a network like another."""

ANSWERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "data": ("level of data", get_args(Data)),
    "teacher": ("level of access to the teacher", get_args(Access)),
    "architecture": ("kind of architecture", get_args(Architecture)),
    "goal": ("goal", get_args(Goal)),
    "source": ("kind of images of the old domain", get_args(Source)),
    "present": ("share of classes", get_args(Present)),
    "task_id": ("answer to whether the task is known", get_args(Known)),
    "store": ("kind of what may be kept", get_args(Store)),
    "growth": ("answer to whether it may grow", get_args(Growth)),
    "boundaries": ("answer to whether boundaries are known", get_args(Known)),
    "inputs": ("kind of inputs", get_args(Inputs)),
}
"""For each field of a :class:`Situation` what it is, and its answers."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A person's answers, what there is and what is wanted, to the questions of :func:`upcycle.verbs.advise.advise`.

    Raises:
        UserError: a value that no question has as an answer, with the nearest.
    """

    data: Data
    teacher: Access = "weights"
    architecture: Architecture = "any"
    goal: Goal = "smaller"
    source: Source = "none"
    present: Present = "all"
    task_id: Known = "unknown"
    store: Store = "images"
    growth: Growth = "allowed"
    boundaries: Known = "known"
    inputs: Inputs = "images"

    def __post_init__(self) -> None:
        for name, (kind, answers) in ANSWERS.items():
            if getattr(self, name) not in answers:
                raise unknown(kind, getattr(self, name), answers)

    def said(self, text: str) -> str:
        """A sentence about images as one about the inputs that there are."""
        one = self.inputs.removesuffix("s")
        return text if self.inputs == "images" else text.replace("an image", f"a {one}").replace("image", one)

    def words(self) -> str:
        """The situation in sentences."""
        images, access = DATA_WORDS[self.data], ACCESS_WORDS[self.teacher]
        if self.goal in ("task", "domain"):
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
        return self.said(
            f"You have {images}{old} and {access}; {ARCHITECTURE_WORDS[self.architecture]}. {some}"
            f"You want {GOAL_WORDS[self.goal]}."
        )

    def lacks(self, data: Data, teacher: Access) -> list[tuple[str, str]]:
        """List what is needed and not there, each with what is there instead, in words."""
        found = []
        if DATA_LEVELS.index(self.data) < DATA_LEVELS.index(data):
            found.append((self.said(DATA_WORDS[data]), self.said(DATA_WORDS[self.data])))
        if ACCESS_LEVELS.index(self.teacher) < ACCESS_LEVELS.index(teacher):
            found.append((ACCESS_WORDS[teacher], ACCESS_WORDS[self.teacher]))
        return found

    def supplied(self, data: Data, teacher: Access) -> Situation:
        """The same with what is needed at least."""
        return dataclasses.replace(
            self,
            data=max(self.data, data, key=DATA_LEVELS.index),
            teacher=max(self.teacher, teacher, key=ACCESS_LEVELS.index),
        )


@dataclass(frozen=True)
class Fit:
    """Where a method stands among those that can work, and why.

    Args:
        rank: its place; lower is better. About 0: made for exactly this; 10: what one takes first; 20: worth a try
            after that; 30 to 50: it works, and something else is likely to be better; 60 and more: for when nothing
            else may be used, or as a bound.
        reason: in words that follow its name.
        options: of the command line, beside networks and data.
        teacher: whether a method of ``distill`` is to be given a teacher.
        networks: of the command line, where they are others than the verb's.
        data: whether the command names the images, where there are some.
    """

    rank: int
    reason: str
    options: str = ""
    teacher: bool = True
    networks: str = ""
    data: bool = True


def elsewhere(verb: str, goal: Goal) -> str:
    """Say that a method of ``verb`` is for another goal."""
    return _ELSEWHERE.get(goal) or _VERBS.get(verb) or f"upcycle {verb} is for another goal than this."


def imitates(have: Situation) -> str:
    """Say why imitating a teacher does not give a better network; empty if it may."""
    if have.goal == "better" and have.data == "few":
        return "a few images make no network better; that takes many."
    if have.goal == "better" and have.data != "labelled" and have.architecture == "same":
        return "a student that only imitates a teacher built like itself gets no better than that teacher."
    return ""


def if_labelled(have: Situation, reason: str) -> str:
    """Put the condition before a reason that takes labels, which a few images may have or not."""
    return f"if your few images have labels: {reason}" if have.data == "few" else reason
