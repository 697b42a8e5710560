"""Plain training is distillation with its first term left out, bit for bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import upcycle
from tests.settings import tiny_data, tiny_model
from upcycle.core.errors import UserError
from upcycle.core.losses import Terms
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.distillation import KD, Plain

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.05, warmup=0.5)


def fit(method: Any, data: Any, seed: int = 5) -> tuple[dict[str, Tensor], Any]:
    run = Run(None, seed=seed, quiet=True)
    return method.fit(run, data).state_dict(), run.journal.rows


def plain(**options: Any) -> Plain:
    return Plain(student=tiny_model("student", 3), recipe=RECIPE, **options)


@pytest.mark.parametrize(("labelled", "views"), [(160, 0), (160, 2), (40, 0)])
def test_it_is_distillation_without_the_teacher(labelled: int, views: int) -> None:
    data = tiny_data().augmented(("crop",))
    labels = data.train.labels.clone()
    labels[torch.arange(len(labels)) >= labelled] = -1
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
    net = tiny_model("student", 3)
    before = tensor_digest(net.module.state_dict())
    same = KD(
        teacher=tiny_model("teacher", 4),
        student=net,
        terms=Terms(w_kd=0.0, w_ce=1.0),
        cache="off",
        views=views,
        recipe=RECIPE,
    )
    (weights, rows), (others, other_rows) = fit(plain(views=views), data), fit(same, data)
    assert tensor_digest(weights) == tensor_digest(others) != before
    assert rows == other_rows  # the same losses and accuracies
    assert plain().steps(160) == same.steps(160)


def test_each_option_moves_the_weights() -> None:
    data = tiny_data().augmented(("crop",))
    made = [
        fit(plain(**options), data)[0] for options in ({}, {"label_smoothing": 0.1}, {"views": 1}, {"balanced": True})
    ]
    assert len({tensor_digest(weights) for weights in made}) == 4


def test_labels_are_all_that_it_learns_from() -> None:
    assert not plain().check(tiny_data().hide_labels(1, 0))
    with pytest.raises(UserError, match="plain cannot run here: there are no labels"):
        plain().require(tiny_data().hide_labels(0, 0))


@pytest.mark.parametrize("options", [{"label_smoothing": -0.1}, {"label_smoothing": 1.5}, {"views": -1}])
def test_values_have_ranges(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        plain(**options)


def test_the_command_takes_neither_a_teacher_nor_alone(tmp_path: Any) -> None:
    given: dict[str, Any] = {"student": "zoo:convnet_small", "method": "plain", "out": tmp_path / "run"}
    with pytest.raises(UserError, match="plain takes no teacher; leave out --teacher"):
        upcycle.distill(teacher="zoo:digits_teacher", **given)
    with pytest.raises(UserError, match="plain already trains the student alone; leave out --alone"):
        upcycle.distill(alone=True, **given)
    assert not (tmp_path / "run").exists()
    made = upcycle.distill(recipe=Recipe(epochs=1, batch_size=64), say=lambda text: None, **given)
    assert [row["role"] for row in made.rows] == ["student"] and "trained alone" not in made.sentence
