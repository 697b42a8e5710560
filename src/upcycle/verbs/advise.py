"""``upcycle advise``: from what one has and wants to the methods that serve, each with its command."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from upcycle.claims.found import found, short
from upcycle.core.advice import (
    DATA_LEVELS,
    DATA_WORDS,
    Access,
    Architecture,
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
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.method import Card, Method
from upcycle.verbs.advise_looks import look
from upcycle.verbs.advise_tries import on_real_things
from upcycle.verbs.advised import Advice, Choice, Refusal
from upcycle.verbs.asking import asked
from upcycle.verbs.methods import all_methods
from upcycle.verbs.naming import Naming, Reference, options_as


def advise(
    *,
    model: Reference | None = None,
    data: Any = None,
    teacher: Access = "weights",
    architecture: Architecture = "any",
    goal: Goal | None = None,
    source: Source = "none",
    present: Present = "all",
    task_id: Known = "unknown",
    store: Store = "images",
    growth: Growth = "allowed",
    boundaries: Known = "known",
    inputs: Inputs = "images",
    all: bool = False,
    methods: Iterable[type[Method]] | None = None,
    **naming: Any,
) -> Advice:
    """Which methods serve what one has, best first, each with its reason and its command.

    What can work follows from the :class:`~upcycle.core.method.Needs` of each card: none whose needs are not met is
    recommended. Where a method stands among the others, and what it cannot do, it says itself
    (:meth:`~upcycle.core.method.Method.serves`). One that did harm when it was measured is not first where another
    serves.

    With a ``model`` the network and the data are looked at, a student is suggested, and a dry run tries each command
    and reckons its time.

    Args:
        model: a reference, an endpoint's address or an ONNX file; in Python also a module or a Model.
        data: none; few: about 1 to 50 images a class; unlabelled: many; labelled: many, each with its label. With a
            model, the data themselves, as for distill, or none. If neither is given, it and the others are asked for on
            the terminal.
        teacher: none; predictions: it only answers; features: its inner activations can be read too; weights:
            it is at hand as a whole. With a model this is seen.
        architecture: any, if it is open; same, if the student is built exactly like the teacher; conv or
            transformer, if both are. With a model this is seen.
        goal: a smaller network, or a better one of the same size; a part for some of its classes; to join several
            trained networks; to mend one that errs; to explain what a teacher's answers change; a network for
            another task; one for another domain, that is, the same classes on images that look otherwise; to
            extend a network by one task after another; or spikes, for a device that computes with them. If not given,
            smaller; with a model whose classes are not those of the data, task.
        source: for another domain, whether there are labelled images of the old one.
        present: for another domain, whether all classes occur there, or only some, which ones being unknown.
        task_id: to extend, whether the task of an image is known when it is classified.
        store: to extend, whether some images of earlier tasks may be kept, or nothing of them.
        growth: to extend, whether what is kept beside the network may grow with every task.
        boundaries: to extend, whether it is known in training where a task ends.
        inputs: images or graphs: what the network takes and the data are. With a model this is seen.
        all: show all that can work, with a model try it too, and say why the others cannot; otherwise the best three.
        methods: to choose from; all methods, plugins included, if not given.
        naming: fields of :class:`~upcycle.verbs.naming.Naming`, that is, what the reference of the model does not say.

    Raises:
        UserError: a value that is not among those above, with the nearest; a network or data that cannot be used.
    """
    said, seen = options_as(Naming, "advise", naming), None
    if model is not None:
        require(data is not None, "Say what you have beside the network: --data DATA, or --data none.")
        seen = look(model, data, said)
        data, teacher, inputs = seen.level, seen.access, seen.inputs
        architecture = "same" if goal == "better" else seen.architecture
        goal = goal or seen.goal
    elif data is None:
        require(sys.stdin.isatty(), "Say what you have: --data none, few, unlabelled or labelled.")
        return advise(**asked(goal), all=all, methods=methods)
    if model is None and data not in DATA_LEVELS:
        images = "to have images of your own looked at, give the network too: --model REFERENCE."
        raise UserError(f"{unknown('level of data', str(data), DATA_LEVELS)} Or, {images}")
    require(
        seen is not None or said == Naming(),
        "What is said about a network needs the network too: give --model REFERENCE.",
    )
    goal = goal or "smaller"
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
    known = {method.card.name: method for method in (all_methods() if methods is None else methods)}
    for method in known.values():
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
    missing = "" if choices else _missing(have, paths)
    found = Advice(have=have.words(), choices=choices, refused=tuple(refused), missing=missing, all=all)
    return found if seen is None else on_real_things(found, known, seen, better=goal == "better", everything=all)


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
