"""A frozen teacher is shared by those who ask the same of it, and by nobody else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from upcycle.core import guide
from upcycle.core.frozen import Frozen, frozen
from upcycle.core.references import resolve
from upcycle.data import load


def test_the_copy_of_a_split_is_made_once_until_weights_or_images_change(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("digits")
    teacher = resolve("zoo:digits_teacher")
    split = data.normalised(teacher.mean, teacher.std).validation
    made: list[Frozen] = []

    def noted(*words: Any, **kind: Any) -> Any:
        made.append(frozen(*words, **kind))
        return made[-1]

    monkeypatch.setattr(guide, "frozen", noted)

    def ask(split: Any = split, **kind: Any) -> Frozen:
        return guide.frozen_for(split, teacher, torch.device("cpu"), "auto", **kind)

    assert ask() is ask() and len(made) == 1
    assert ask(input_grad=True) is not made[0]
    assert ask(split.subset(torch.arange(100))).agreement == 1
    assert len(made) == 3
    with torch.no_grad():
        next(teacher.module.parameters()).data.mul_(1.01)  # which no counter of writes sees
    fresh = ask(split)
    images = split.batch(torch.arange(20), device=torch.device("cpu")).images
    assert not torch.equal(fresh(images), made[0](images)) and len(made) == 4
