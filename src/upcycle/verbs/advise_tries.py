"""Advice on real things: commands with their names in place, a student, and a dry run that shows whether they work."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from upcycle.core import references
from upcycle.core.errors import UserError
from upcycle.core.memory import free_memory
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.taps import observed
from upcycle.data import Images
from upcycle.measure.cost import Cost, count
from upcycle.measure.units import bytes_, si
from upcycle.verbs.advise_looks import Seen
from upcycle.verbs.advised import SHOWN, Advice, Choice, Refusal
from upcycle.verbs.figures import like_of
from upcycle.verbs.loading import is_files
from upcycle.verbs.naming import SAID, Naming
from upcycle.verbs.options import command_line, default_of, plain

STUDENTS = {
    "small images": ("zoo:resnet56", "zoo:resnet20", "zoo:mobilenetv2", "zoo:resnet8", "zoo:convnet_small"),
    "large images": ("timm:resnet50", "timm:resnet18", "timm:mobilenetv3_small_100", "timm:mobilenetv3_small_050"),
    "small images, transformer": ("zoo:vit", "zoo:vit_small"),
    "large images, transformer": ("timm:vit_small_patch16_224", "timm:vit_tiny_patch16_224"),
    "graphs": ("zoo:gcn_5_32", "zoo:gcn_3_32", "zoo:gcn_2_16"),
}
"""Networks to suggest, by what they are for, the largest first."""
LARGE = 96
"""Pixels a side from which images are large."""
TRIED = 2
"""Students that a method is tried with."""
SLOWER = 1.1
"""Multiply-adds of a suggested student over those of the network, at most."""
IF_LABELLED = "if your few images have labels: "
KEPT = 2.0
"""Bytes that a step of training holds, over those of its activations: they and their gradients."""
PER_WEIGHT = 16
"""Bytes of a weight, its gradient and two numbers of the optimiser."""
ROOM = 0.8
"""The share of the free memory that training may take."""
UPDATES, LEAST = 5, 16
"""Updates of an epoch below which smaller batches are taken, and the smallest that are."""


@dataclass(frozen=True)
class Student:
    """A network to suggest: its reference, itself with fresh weights, and its cost."""

    reference: str
    model: Model
    cost: Cost


def on_real_things(
    advice: Advice, methods: Mapping[str, type[Method]], seen: Seen, *, better: bool, everything: bool
) -> Advice:
    """Turn general advice into commands for a network and data, each tried by a dry run.

    Args:
        advice: with placeholders in its commands, best first.
        methods: by their names.
        seen: the network and the data.
        better: the student is to be built like the network, and not to be smaller.
        everything: try all that may work; otherwise only until three do.

    Returns:
        those that were tried and work first, then those with something to fill in, then those that were not tried;
        what a dry run refused is among the others that cannot work.
    """
    students = _students(seen, better)
    works: list[Choice] = []
    unfilled: list[Choice] = []
    refused, rest = list(advice.refused), list(advice.choices)
    while rest and (everything or len(works) < SHOWN):
        choice = rest.pop(0)
        found = _tried(methods[choice.method], choice, seen, students)
        if isinstance(found, str):
            refused.append(Refusal(method=choice.method, reason=found))
        else:
            (works if found.time else unfilled).append(found)
    others = [_filled(choice, seen, students[:1])[0] for choice in rest]
    choices = (*works, *unfilled, *others)
    none = "Each method for this was tried on your network and data, and none can run." if advice.choices else ""
    missing = "" if choices else none or advice.missing
    return dataclasses.replace(
        advice, choices=choices, refused=tuple(refused), missing=missing, seen=seen.facts, all=everything
    )


# -- one method ---------------------------------------------------------------------------------------------------


def _tried(method: type[Method], choice: Choice, seen: Seen, students: list[Student]) -> Choice | str:
    """The choice with real names and its time, if a dry run passes with one of the students; else why none does."""
    if seen.model is None and method.card.needs.teacher != "none" and "predictors" not in method.given:
        return "it reads the network as it learns, and yours only answers."
    why = ""
    for student in students if "STUDENT" in choice.command.split() and students else [None]:
        filled, open_words = _filled(choice, seen, [student] if student else [])
        if open_words:
            return filled
        batch, note = _smaller_batch(method, seen, student)
        more = f" --recipe.batch_size {batch}" if batch else ""
        try:
            time = _dry_run(method, choice.command, seen, student, batch)
        except UserError as error:
            why = why or str(error).removeprefix(f"{method.card.name} cannot run here: ")
            continue
        notes = (*filled.notes, *filter(None, [note]))
        return dataclasses.replace(filled, time=time, command=filled.command + more, notes=notes)
    return why if why.endswith(".") else f"{why}."


def _filled(choice: Choice, seen: Seen, students: list[Student]) -> tuple[Choice, list[str]]:
    """The choice with real names for its placeholders, and those that are left."""
    student = students[0] if students and "STUDENT" in choice.command.split() else None
    there = {"TEACHER": seen.reference, "MODEL": seen.reference, "STUDENT": student and student.reference}
    there |= {"DATA": seen.data_ref if seen.data is not None else None, "STREAM": _stream(seen)}
    names = {name: str(value) for name, value in there.items() if isinstance(value, str | Path)}
    words = shlex.split(choice.command)
    left = [word for word in words if word not in names and re.fullmatch(r"[\[\],A-Z0-9]*[A-Z]{2}[\[\],A-Z0-9]*", word)]
    command = shlex.join([names.get(word, word) for word in words])
    said = command_line("", _said(seen, words[1]), (), lambda key: None).removeprefix("upcycle ''").strip()
    notes = list(choice.notes)
    if "STUDENT" in left and seen.cost is not None:
        notes.append("No network that could be suggested is half as large as yours.")
    if left:
        notes.append(f"Fill in {' and '.join(dict.fromkeys(left))} before you run it.")
    reason = choice.reason.removeprefix(IF_LABELLED) if seen.labels else choice.reason
    command = " ".join(filter(None, (command, said)))
    return dataclasses.replace(
        choice, reason=reason, command=command, student=_words(student, seen), notes=tuple(notes)
    ), left


def _said(seen: Seen, verb: str) -> dict[str, Any]:
    """The options that say what the reference of the network does not, as ``verb`` calls them."""
    given = {f.name: getattr(seen.naming, f.name) for f in dataclasses.fields(Naming)}
    if seen.resized and verb != "adapt" and isinstance(seen.data, Images) and not is_files(seen.data_ref):
        given["size"] = given["size"] or seen.data.shape[1:]
    role = "teacher_" if verb == "distill" else ""
    return {
        f"{role}{name}" if name in SAID else name: plain(value)
        for name, value in given.items()
        if value not in (None, ())
    }


def _words(student: Student | None, seen: Seen) -> str:
    """A suggested student and its size."""
    if student is None:
        return ""
    beside = "" if seen.cost is None else f", {student.cost.parameters / seen.cost.parameters:.0%} of your network's"
    if seen.cost is not None and student.cost == seen.cost:
        beside = ", built like your network"
    return f"suggested student: {student.reference}, {si(student.cost.parameters)} parameters{beside}"


def _dry_run(method: type[Method], template: str, seen: Seen, student: Student | None, batch: int) -> str:
    """What a dry run of a command says of its time, on the network and the data as they were read already.

    Args:
        template: the command with its placeholders.
        batch: the batch size; 0 for the method's own.

    Raises:
        UserError: what keeps the command from running.
    """
    network = seen.model if seen.model is not None else seen.reference
    objects = {"TEACHER": network, "MODEL": network, "DATA": seen.data, "STREAM": _stream(seen)}
    objects |= {"STUDENT": student.reference} if student is not None else {}
    (verb, *words), positional, options = shlex.split(template)[1:], [], dict[str, Any]()
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            positional.append(objects.get(word, word))
            continue
        value = words.pop(0) if words and not words[0].startswith("--") else "true"
        group, dot, inner = word.removeprefix("--").partition(".")
        given = objects[value] if value in objects else yaml.safe_load(value)
        if dot:
            options.setdefault(group, {})[inner] = given
        else:
            options[group] = given
    if batch:
        options.setdefault("recipe", {})["batch_size"] = batch
    said = ("label_map", "trust", *(SAID if seen.model is None else ()))  # the rest was read already
    options |= {name: value for name in said if (value := getattr(seen.naming, name))}
    options |= {"method": method, "dry_run": True, "say": lambda text: None}
    return str(getattr(importlib.import_module(f"upcycle.verbs.{verb}"), verb)(*positional, **options).sentence)


def _stream(seen: Seen) -> str | None:
    """The classes of the data in tasks, as ``extend`` takes them."""
    ref = seen.data_ref
    return f"splits:{ref}/{min(5, seen.classes)}" if seen.data is not None and isinstance(ref, str | Path) else None


# -- students and memory ------------------------------------------------------------------------------------------


def _students(seen: Seen, better: bool) -> list[Student]:
    """The largest networks with half of the network's weights at most that are no slower; or one built like it."""
    names: tuple[str, ...]
    if better:
        names = (seen.reference,) if isinstance(seen.reference, str) and seen.model is not None else ()
    elif seen.inputs == "graphs":
        names = STUDENTS["graphs"]
    else:
        small = "small" if min(seen.shape[1:]) < LARGE else "large"
        names = STUDENTS[f"{small} images{', transformer' if seen.architecture == 'transformer' else ''}"]
        names = names if seen.cost is not None else names[1:]  # of one that only answers the size is not known
    found: list[Student] = []
    for name in names:
        if len(found) == TRIED:
            break
        try:
            model = _fresh(name, seen)
            cost = count(model.module, like_of(model, seen.data) if seen.data is not None else model.example(1))
        except UserError:  # a library that is missing, or images that it does not take
            continue
        limit = seen.cost
        if better or limit is None or (2 * cost.parameters <= limit.parameters and cost.macs <= SLOWER * limit.macs):
            found.append(Student(name, model, cost))
    return found


def _fresh(name: str, seen: Seen) -> Model:
    if seen.inputs == "graphs":
        takes = seen.model.takes if seen.model is not None else None
        return references.resolve(name, pretrained=False, num_classes=seen.classes, takes=takes)
    return references.resolve(
        name, pretrained=False, num_classes=seen.classes, input_shape=seen.shape, trust=seen.naming.trust
    )


def _smaller_batch(method: type[Method], seen: Seen, student: Student | None) -> tuple[int, str]:
    """The batch size that fits into memory and makes some updates an epoch, and a note; 0 for the method's own."""
    model = student.model if student is not None else seen.model
    if model is None or "recipe" not in method.options() or seen.inputs == "graphs":
        return 0, ""
    own = default_of(method, "recipe").batch_size
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else free_memory()
    leaves = [call.output for call in observed(model) if not any(call.module.children())]
    each = KEPT * sum(t.numel() * t.element_size() for t in leaves if isinstance(t, torch.Tensor)) / 2  # of two images
    weights = PER_WEIGHT * sum(p.numel() for p in model.module.parameters())
    if free and weights + own * each > ROOM * free:
        batch = min(2 ** (max(int((ROOM * free - weights) // each), 1).bit_length() - 1), own)
        return batch, (
            f"Batches of {own} would take about {bytes_(weights + own * each)}, and {bytes_(free)} of memory are free: "
            f"batches of {batch} take less."
        )
    batch, n = own, len(seen.data.train) if seen.data is not None and method.card.needs.data != "none" else 0
    while n and n < UPDATES * batch and batch >= 2 * LEAST:
        batch //= 2
    return (0, "") if batch == own else (batch, f"With {n:,} images, batches of {batch} give more updates.")
