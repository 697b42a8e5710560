"""Reasons why networks cannot serve together, in words: the checks that several methods make before any work."""

from __future__ import annotations

from upcycle.core.errors import UserError
from upcycle.core.heads import classifier
from upcycle.core.models import Model


def same_classes(teacher: Model, student: Model) -> list[str]:
    """List the reasons why the outputs of two classifiers cannot be compared, in words."""
    problems = []
    if len(teacher.classes) != len(student.classes):
        problems.append(
            f"the teacher has {len(teacher.classes)} classes and the student {len(student.classes)}: "
            "build the student with as many, or map them with --label_map"
        )
    if teacher.input_shape[0] != student.input_shape[0]:
        problems.append(
            f"the teacher takes {teacher.input_shape[0]} input channels and the student {student.input_shape[0]}"
        )
    return problems


def problems_of(student: Model, channels: int) -> list[str]:
    """List the reasons why a student cannot take images with so many channels or another classifier, in words."""
    if student.input_shape[0] != channels:
        return [f"the student takes {student.input_shape[0]} input channels and the images have {channels}"]
    try:
        classifier(student)
    except UserError as error:
        return [str(error).rstrip(".")]
    return []
