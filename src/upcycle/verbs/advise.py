"""``upcycle advise``: from what one has and wants to the methods that serve, each with its command."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from upcycle.core.errors import require, unknown
from upcycle.core.method import ACCESS_LEVELS, DATA_LEVELS, Access, Card, Data, Method
from upcycle.verbs.advice.judgement import judge
from upcycle.verbs.advice.situation import (
    ACCESS_WORDS,
    DATA_WORDS,
    Architecture,
    Fit,
    Goal,
    Growth,
    Known,
    Present,
    Situation,
    Source,
    Store,
)
from upcycle.verbs.methods import all_methods

PLACEHOLDERS = (
    "TEACHER, STUDENT, MODEL, PART and ZOO stand for a reference: zoo:NAME, timm:NAME, torchvision:NAME, hf:ORG/NAME, "
    "package.module:callable or a saved model; to be asked, MODEL may also be http://HOST:PORT/PATH or FILE.onnx. "
    "DATA and SOURCE stand for a data set's name, a folder of images, "
    "a Parquet folder, pool:PATH or hub:ORG/NAME. STREAM stands for splits:DATA/5 (its classes in 5 tasks), "
    "permuted:DATA/10, rotated:DATA/10, parts:DATA/5, drifting:DATA, or folders:PATH (TASK/CLASS/IMAGE in it)."
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method that can work: why it stands where it stands, and the command to run."""

    method: str
    reason: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A method that cannot work, and why."""

    method: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What :func:`advise` answers.

    Args:
        have: what was said to be at hand and wanted, in words.
        choices: the methods that can work, best first.
        refused: those that cannot.
        missing: when nothing can work, what would be needed; else empty.
    """

    have: str
    choices: tuple[Choice, ...]
    refused: tuple[Refusal, ...]
    missing: str = ""

    def text(self) -> str:
        """The advice for a terminal; commands are on lines of their own, unbroken."""
        lines = [*_wrapped(self.have), ""]
        for i, choice in enumerate(self.choices, 1):
            lines += [*_wrapped(choice.reason, f"{i}. {choice.method}: "), f"     {choice.command}", ""]
        if not self.choices:
            lines += [*_wrapped(self.missing, "Nothing here can work. ", ""), ""]
        if self.refused:
            lines.append("Cannot work here:")
            named: dict[str, list[str]] = {}  # methods that one reason rules out stand together
            for r in self.refused:
                named.setdefault(r.reason, []).append(r.method)
            for reason, methods in named.items():
                lines += _wrapped(f"{', '.join(methods)}: {reason}", "   ", "     ")
            lines.append("")
        return "\n".join(lines + (_wrapped(PLACEHOLDERS) if self.choices else [])).rstrip()


def _wrapped(text: str, first: str = "", rest: str = "   ") -> list[str]:
    return textwrap.wrap(
        text,
        88,
        initial_indent=first,
        subsequent_indent=rest if first else "",
        break_on_hyphens=False,
        break_long_words=False,
    )


def advise(
    *,
    data: Data | None = None,
    teacher: Access = "weights",
    architecture: Architecture = "any",
    goal: Goal = "smaller",
    source: Source = "none",
    present: Present = "all",
    task_id: Known = "unknown",
    store: Store = "images",
    growth: Growth = "allowed",
    boundaries: Known = "known",
    methods: Iterable[type[Method]] | None = None,
) -> Advice:
    """Which methods serve what one has, best first, each with its reason and its command.

    What can work follows from the :class:`~upcycle.core.method.Needs` of each card; a method whose needs are
    not met is never recommended. Which of the others comes first, and what a method cannot do for a goal or
    an architecture, is judgement, and stands in :mod:`upcycle.verbs.advice`.

    Args:
        data: none; few: about 1 to 50 images a class; unlabelled: many; labelled: many, each with its label. If it is
            not given, it and the others are asked for on the terminal.
        teacher: none; predictions: it only answers; features: its inner activations can be read too; weights:
            it is at hand as a whole.
        architecture: any, if it is open; same, if the student is built exactly like the teacher; conv or
            transformer, if both are.
        goal: a smaller network, or a better one of the same size; a part for some of its classes; to join several
            trained networks; to mend one that errs; to explain what a teacher's answers change; a network for
            another task; one for another domain, that is, the same classes on images that look otherwise; or to
            extend a network by one task after another.
        source: for another domain, whether there are labelled images of the old one.
        present: for another domain, whether all classes occur there, or only some, which ones being unknown.
        task_id: to extend, whether the task of an image is known when it is classified.
        store: to extend, whether some images of earlier tasks may be kept, or nothing of them.
        growth: to extend, whether what is kept beside the network may grow with every task.
        boundaries: to extend, whether it is known in training where a task ends.
        methods: to choose from; all methods, plugins included, if not given.

    Raises:
        UserError: a value that is not among those above, with the nearest.
    """
    if data is None:
        require(sys.stdin.isatty(), "Say what you have: --data none, few, unlabelled or labelled.")
        return advise(**_asked(), methods=methods)
    for kind, value, known in (
        ("level of data", data, DATA_LEVELS),
        ("level of access to the teacher", teacher, ACCESS_LEVELS),
        ("kind of architecture", architecture, get_args(Architecture)),
        ("goal", goal, get_args(Goal)),
        ("kind of images of the old domain", source, get_args(Source)),
        ("share of classes", present, get_args(Present)),
        ("answer to whether the task is known", task_id, get_args(Known)),
        ("kind of what may be kept", store, get_args(Store)),
        ("answer to whether it may grow", growth, get_args(Growth)),
        ("answer to whether boundaries are known", boundaries, get_args(Known)),
    ):
        if value not in known:
            raise unknown(kind, value, known)
    have = Situation(
        data=data,
        teacher=teacher,
        architecture=architecture,
        goal=goal,
        source=source,
        present=present,
        task_id=task_id,
        store=store,
        growth=growth,
        boundaries=boundaries,
    )
    fits: list[tuple[Card, Fit]] = []
    refused: list[Refusal] = []
    paths: dict[str, list[str]] = {}
    for card in (m.card for m in (all_methods() if methods is None else methods)):
        judged = _lacking(card, have) or judge(card, have)
        if isinstance(judged, Fit):
            fits.append((card, judged))
            continue
        refused.append(Refusal(method=card.name, reason=judged))
        if isinstance(judge(card, _supplied(card, have)), Fit):
            paths.setdefault(_needed(card, have), []).append(card.name)
    fits.sort(key=lambda pair: pair[1].rank)
    choices = tuple(Choice(method=c.name, reason=f.reason, command=_command(c, f)) for c, f in fits)
    missing = "" if choices else _missing(have, paths)
    return Advice(have=have.words(), choices=choices, refused=tuple(refused), missing=missing)


_QUESTIONS = {
    "data": ("Which images do you have?", ("none", "few", "unlabelled", "labelled")),
    "teacher": ("What can you get of the teacher?", ("none", "predictions", "features", "weights")),
    "architecture": ("What shall the student be?", ("any", "same", "conv", "transformer")),
    "goal": ("What is it for?", ("smaller", "better", "part", "join", "mend", "explain", "task", "domain", "extend")),
    "source": ("Which images of the old domain do you have?", ("none", "labelled")),
    "present": ("Which of the classes occur in the new domain?", ("all", "some")),
    "task_id": ("Is the task of an image known when it is classified?", ("unknown", "known")),
    "store": ("What may be kept of earlier tasks?", ("images", "nothing")),
    "growth": ("May what is kept grow with every task?", ("allowed", "none")),
    "boundaries": ("Is it known in training where a task ends?", ("known", "unknown")),
}
_DEFAULTS = {
    "architecture": "any",
    "goal": "smaller",
    "source": "none",
    "present": "all",
    "task_id": "unknown",
    "store": "images",
    "growth": "allowed",
    "boundaries": "known",
}
_ONLY = {
    "source": "domain",
    "present": "domain",
    **dict.fromkeys(("task_id", "store", "growth", "boundaries"), "extend"),
}
"""The goal that a question belongs to."""


def _asked() -> dict[str, Any]:
    """The answers of the person at the terminal; an empty one takes the default."""
    answers: dict[str, Any] = {}
    for name, (question, choices) in _QUESTIONS.items():
        if name in _ONLY and answers["goal"] != _ONLY[name]:
            continue
        default = _DEFAULTS.get(name, choices[-1])
        answer = input(f"{question} ({', '.join(choices)}) [{default}] ").strip().lower() or default
        if answer not in choices:
            raise unknown(f"answer to '{question}'", answer, choices)
        answers[name] = answer
    return answers


# kd is worth having with many images; on a few it still runs, and is recommended last and called weak. vpr is made for
# a few, which must have labels.
_RUNS_ON: dict[str, Data] = {"kd": "few", "vpr": "few"}


def _lacking(card: Card, have: Situation) -> str:
    """Which of the card's needs are not met, in words; empty if all are."""
    data, access, lacks = _RUNS_ON.get(card.name, card.needs.data), card.needs.teacher, []
    if DATA_LEVELS.index(have.data) < DATA_LEVELS.index(data):
        lacks.append(f"it needs {DATA_WORDS[card.needs.data]}, and you have {DATA_WORDS[have.data]}")
    if ACCESS_LEVELS.index(have.teacher) < ACCESS_LEVELS.index(access):
        lacks.append(f"it needs {ACCESS_WORDS[access]}, and you have {ACCESS_WORDS[have.teacher]}")
    return "; ".join(lacks) + "." if lacks else ""


def _supplied(card: Card, have: Situation) -> Situation:
    """``have`` with what the card still needs."""
    data = max(have.data, card.needs.data, key=DATA_LEVELS.index)
    teacher = max(have.teacher, card.needs.teacher, key=ACCESS_LEVELS.index)
    return dataclasses.replace(have, data=data, teacher=teacher)


def _needed(card: Card, have: Situation) -> str:
    """What would have to be added to ``have`` for the card's needs to be met."""
    supplied, added = _supplied(card, have), []
    if supplied.data != have.data:
        folder = " (a folder of any public images of the same kind serves)"
        added.append(DATA_WORDS[supplied.data] + (folder if supplied.data == "unlabelled" else ""))
    if supplied.teacher != have.teacher:
        added.append(ACCESS_WORDS[supplied.teacher])
    return " and ".join(added)


def _missing(have: Situation, paths: dict[str, list[str]]) -> str:
    """What would be needed, from the methods that each addition would make work."""
    if have.goal == "smaller" and have.architecture == "same":
        return "Choose a smaller student, or ask for --goal better."
    if not paths:
        return "No method serves this goal with these architectures."
    # Every level of data but "none" speaks of images; a path without them leads to a method that makes its own.
    least = "At least a few images are needed. " if have.data == "none" and all("images" in p for p in paths) else ""
    return least + " ".join(f"With {what}: {', '.join(names)}." for what, names in paths.items())


_NETWORKS = {
    "distill": "--teacher TEACHER --student STUDENT",
    "disassemble": "MODEL",
    "assemble": "PART1 PART2",
    "reassemble": "--zoo ZOO1,ZOO2",
    "treat": "MODEL",
    "adapt": "MODEL",
    "extend": "MODEL",
}


def _command(card: Card, fit: Fit) -> str:
    networks = fit.networks or (_NETWORKS[card.verb] if fit.teacher else "--student STUDENT")
    data = "" if card.needs.data == "none" else "--data DATA "
    data = "--stream STREAM " if card.verb == "extend" else data
    return f"upcycle {card.verb} {networks} {data}--method {card.name} {fit.options}".strip()
