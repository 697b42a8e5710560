"""Reasons why networks cannot serve together, in words: the checks that several methods make before any work."""

from __future__ import annotations

from typing import Any

from upcycle.core.errors import UserError
from upcycle.core.heads import classifier
from upcycle.core.models import Model
from upcycle.core.takes import Pictures


def same_classes(teacher: Model, student: Model) -> list[str]:
    """List the reasons why the outputs of two classifiers cannot be compared, in words."""
    problems = []
    if len(teacher.classes) != len(student.classes):
        problems.append(
            f"the teacher has {len(teacher.classes)} classes and the student {len(student.classes)}: "
            "build the student with as many, or map them with --label_map"
        )
    return problems + inputs_apart(teacher, student)


def inputs_apart(teacher: Model, student: Model) -> list[str]:
    """List the reasons why two networks cannot take the same inputs, in words; many take images of any size."""
    ours, theirs = teacher.takes, student.takes
    if not (isinstance(ours, Pictures) and isinstance(theirs, Pictures)):
        return [f"the teacher does not take what the student takes: {problem}" for problem in ours.problems(theirs)]
    if ours.shape[0] == theirs.shape[0]:
        return []
    return [f"the teacher takes {ours.shape[0]} input channels and the student {theirs.shape[0]}"]


def problems_of(student: Model, data: Any) -> list[str]:
    """List the reasons why a student cannot take images of these channels or another classifier, in words.

    A network over graphs whose outputs are the classes of the data needs no other classifier, so it may end in whatever
    gives its logits, such as a layer of attention.

    Args:
        data: a collection or a stream.
    """
    if not isinstance(student.takes, Pictures):
        if student.classes == data.classes:
            return []
    elif student.input_shape[0] != data.shape[0]:
        return [f"the student takes {student.input_shape[0]} input channels and the images have {data.shape[0]}"]
    try:
        classifier(student)
    except UserError as error:
        return [str(error).rstrip(".")]
    return []
