"""What keeps networks from serving together, in words: the checks that several methods make before any work."""

from __future__ import annotations

from upcycle.core.errors import UserError
from upcycle.core.heads import classifier
from upcycle.core.models import Model


def same_classes(teacher: Model, student: Model) -> list[str]:
    """What keeps the outputs of two classifiers from being compared, in words."""
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
    """What keeps a student from images with so many channels, and its classifier from being replaced, in words."""
    if student.input_shape[0] != channels:
        return [f"the student takes {student.input_shape[0]} input channels and the images have {channels}"]
    try:
        classifier(student)
    except UserError as error:
        return [str(error).rstrip(".")]
    return []
