"""Supervised training is distillation with its first term left out, bit for bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.settings import tiny_data, tiny_model
from upcycle.core.losses import Terms
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.distillation import KD
from upcycle.training.supervised import Supervised


@pytest.mark.parametrize("labelled", [160, 40])
def test_it_is_distillation_without_the_teacher(labelled: int) -> None:
    data = tiny_data().augmented(("crop",))
    labels = data.train.labels.clone()
    labels[torch.arange(len(labels)) >= labelled] = -1
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
    recipe = Recipe(epochs=2, batch_size=16, lr=0.05, warmup=0.5)
    net = tiny_model("student", 3)
    before = tensor_digest(net.module.state_dict())
    plain = Supervised(student=tiny_model("student", 3), recipe=recipe)
    same = KD(teacher=net, student=net, terms=Terms(w_kd=0.0, w_ce=1.0), cache="off", recipe=recipe)
    runs = [Run(None, seed=5, quiet=True) for _ in range(2)]
    made = [tensor_digest(m.fit(run, data).state_dict()) for m, run in zip((plain, same), runs, strict=True)]
    assert made[0] == made[1] != before
    assert plain.steps(160) == same.steps(160)
    assert runs[0].journal.rows == runs[1].journal.rows  # the same losses and accuracies
