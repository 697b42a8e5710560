"""``upcycle advise``: from what one has and wants to the methods that serve, each with its command."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from upcycle.claims.found import found, short
from upcycle.core import cells
from upcycle.core.advice import (
    DATA_WORDS,
    Access,
    Architecture,
    Data,
    Fit,
    Goal,
    Growth,
    Inputs,
    Known,
    Present,
    Situation,
    Source,
    Store,
    elsewhere,
)
from upcycle.core.errors import require
from upcycle.core.method import Card, Method
from upcycle.verbs.asking import asked
from upcycle.verbs.methods import all_methods

PLACEHOLDERS = (
    "TEACHER, STUDENT, MODEL, PART and ZOO stand for a reference: zoo:NAME, timm:NAME, torchvision:NAME, hf:ORG/NAME, "
    "pyg:NAME, package.module:callable or a saved model; to be asked, MODEL may also be http://HOST:PORT/PATH or "
    "FILE.onnx. DATA and SOURCE stand for a data set's name, a folder of images, a Parquet folder, pool:PATH, "
    "hub:ORG/NAME or graphs:PATH. STREAM stands for splits:DATA/5 (its classes in 5 tasks), permuted:DATA/10, "
    "rotated:DATA/10, parts:DATA/5, drifting:DATA, folders:PATH (TASK/CLASS/IMAGE in it) or tasks:PATH (a set of "
    "graphs a task)."
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method that can work.

    Args:
        method: its name.
        reason: why it stands where it stands.
        command: to run.
        verdict: what was found when its claim was measured, and against what; empty where nothing was.
    """

    method: str
    reason: str
    command: str
    verdict: str = ""


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

    def __repr__(self) -> str:
        names = ", ".join(choice.method for choice in self.choices)
        return cells.line(self, f"take {names}" if names else "nothing here can work")

    def _repr_html_(self) -> str:
        return cells.block(self.text())

    def record(self) -> dict[str, Any]:
        """The advice as JSON data."""
        return asdict(self)

    def text(self) -> str:
        """The advice for a terminal; commands are on lines of their own, unbroken."""
        lines = [*_wrapped(self.have), ""]
        for i, choice in enumerate(self.choices, 1):
            lines += _wrapped(choice.reason, f"{i}. {choice.method}: ")
            lines += _wrapped(choice.verdict, "     ", "     ") if choice.verdict else []
            lines += [f"     {choice.command}", ""]
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
    rest = rest if first else ""
    return textwrap.wrap(
        text, 88, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
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
    inputs: Inputs = "images",
    methods: Iterable[type[Method]] | None = None,
) -> Advice:
    """Which methods serve what one has, best first, each with its reason and its command.

    What can work follows from the :class:`~upcycle.core.method.Needs` of each card: none whose needs are not met is
    recommended. Where a method stands among the others, and what it cannot do, it says itself
    (:meth:`~upcycle.core.method.Method.serves`). One that did harm when it was measured is not first where another
    serves.

    Args:
        data: none; few: about 1 to 50 images a class; unlabelled: many; labelled: many, each with its label. If it is
            not given, it and the others are asked for on the terminal.
        teacher: none; predictions: it only answers; features: its inner activations can be read too; weights:
            it is at hand as a whole.
        architecture: any, if it is open; same, if the student is built exactly like the teacher; conv or
            transformer, if both are.
        goal: a smaller network, or a better one of the same size; a part for some of its classes; to join several
            trained networks; to mend one that errs; to explain what a teacher's answers change; a network for
            another task; one for another domain, that is, the same classes on images that look otherwise; to
            extend a network by one task after another; or spikes, for a device that computes with them.
        source: for another domain, whether there are labelled images of the old one.
        present: for another domain, whether all classes occur there, or only some, which ones being unknown.
        task_id: to extend, whether the task of an image is known when it is classified.
        store: to extend, whether some images of earlier tasks may be kept, or nothing of them.
        growth: to extend, whether what is kept beside the network may grow with every task.
        boundaries: to extend, whether it is known in training where a task ends.
        inputs: images or graphs: what the network takes and the data are.
        methods: to choose from; all methods, plugins included, if not given.

    Raises:
        UserError: a value that is not among those above, with the nearest.
    """
    if data is None:
        require(sys.stdin.isatty(), "Say what you have: --data none, few, unlabelled or labelled.")
        return advise(**asked(), methods=methods)
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
        inputs=inputs,
    )
    fits: list[tuple[Card, Fit]] = []
    refused: list[Refusal] = []
    paths: dict[str, list[str]] = {}
    for method in all_methods() if methods is None else methods:
        card = method.card
        if not card.needs.admits(have.inputs, "classification"):
            refused.append(
                Refusal(
                    method=card.name,
                    reason=f"it works on {' and '.join(card.needs.inputs)}, and yours are {have.inputs}.",
                )
            )
            continue
        judged = _lacking(method, have) or _judge(method, have)
        if isinstance(judged, Fit):
            fits.append((card, judged))
            continue
        refused.append(Refusal(method=card.name, reason=judged))
        if isinstance(_judge(method, have.supplied(card.needs.data, card.needs.teacher)), Fit):
            what = " and ".join(words for words, _ in have.lacks(card.needs.data, card.needs.teacher))
            paths.setdefault(what, []).append(card.name)
    choices = tuple(_choice(card, fit, have) for card, fit in _ranked(fits))
    return Advice(
        have=have.words(), choices=choices, refused=tuple(refused), missing="" if choices else _missing(have, paths)
    )


# -- what each method says ----------------------------------------------------------------------------------------


def _judge(method: type[Method], have: Situation) -> Fit | str:
    """Where a method stands whose needs are met, or why it cannot serve."""
    judged = method.serves(have)
    if judged is None:
        return elsewhere(method.card.verb, have.goal)
    if have.goal == "smaller" and have.architecture == "same":
        return "a student that is built exactly like its teacher is as large as the teacher."
    return judged


def _ranked(fits: list[tuple[Card, Fit]]) -> list[tuple[Card, Fit]]:
    """By their places; but before those that did harm comes the first that did not."""
    fits = sorted(fits, key=lambda pair: pair[1].rank)
    harmful = {name for name, measured in found().items() if measured["verdict"] == "harms"}
    harmless = next((pair for pair in fits if pair[0].name not in harmful), None)
    return fits if harmless is None else [harmless, *(pair for pair in fits if pair is not harmless)]


def _lacking(method: type[Method], have: Situation) -> str:
    """Which of the method's needs are not met, in words; empty if all are."""
    needs = method.card.needs
    lacks = have.lacks(have.data if have.data in method.runs_on else needs.data, needs.teacher)
    few = " (a few serve too)" if needs.data == "labelled" and "few" in method.runs_on else ""
    words = (f"it needs {what}{few if 'labels' in what else ''}, and you have {there}" for what, there in lacks)
    return "; ".join(words) + "." * bool(lacks)


def _missing(have: Situation, paths: dict[str, list[str]]) -> str:
    """What would be needed, from the methods that each addition would make work."""
    if have.goal == "smaller" and have.architecture == "same":
        return "Choose a smaller student, or ask for --goal better."
    if not paths:
        return "No method serves this goal with these architectures."
    # Every level of data but "none" speaks of images; a path without them leads to a method that makes its own.
    least = "At least a few images are needed. " if have.data == "none" and all("images" in p for p in paths) else ""
    many = DATA_WORDS["unlabelled"]
    public = f"{many} (a folder of any public images of the same kind serves)"
    return least + " ".join(f"With {what.replace(many, public)}: {', '.join(names)}." for what, names in paths.items())


_NETWORKS = {
    "distill": "--teacher TEACHER --student STUDENT",
    "assemble": "PART1 PART2",
    "reassemble": "--zoo ZOO1,ZOO2",
}
"""Of the verbs that take other networks than ``MODEL``."""


def _choice(card: Card, fit: Fit, have: Situation) -> Choice:
    """The method as it is shown: with its command, and what was found when it was measured."""
    networks = fit.networks or (_NETWORKS.get(card.verb, "MODEL") if fit.teacher else "--student STUDENT")
    images = "" if not fit.data or "none" in (card.needs.data, have.data) else "--data DATA"
    images = "--stream STREAM" if card.verb == "extend" else images
    told = "--scenario task" if card.verb == "extend" and have.task_id == "known" else ""
    command = ["upcycle", card.verb, networks, images, "--method", card.name, told, fit.options]
    measured = found().get(card.name)
    # A method that works on images too was measured on them.
    elsewhere = "; measured on images" if have.inputs == "graphs" and "images" in card.needs.inputs else ""
    return Choice(
        method=card.name,
        reason=have.said(fit.reason),
        command=" ".join(filter(None, command)),
        verdict=f"{short(measured)}, {measured['says']}{elsewhere}" if measured else "",
    )
