"""Digits, a network that knows them, and its components for five classes each."""

from __future__ import annotations

import pytest

from tests.assembly.networks import part_of
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.data import Images, load


@pytest.fixture(scope="module")
def digits() -> Images:
    return load("digits")


@pytest.fixture(scope="module")
def teacher() -> Model:
    return resolve("zoo:digits_teacher")


@pytest.fixture(scope="module")
def halves(teacher: Model, digits: Images) -> tuple[Model, Model]:
    return tuple(part_of(teacher, digits, classes=names) for names in (teacher.classes[:5], teacher.classes[5:]))  # type: ignore[return-value]
