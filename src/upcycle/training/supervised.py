"""Supervised training: a network learns the labels there are, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from upcycle.core.method import ANY, Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.collection import Collection


@dataclass(kw_only=True, eq=False, repr=False)
class Supervised(Method):
    """The loss of the data's task on the labelled samples: what stands beside a method that takes more than labels.

    Of classes it is cross-entropy.

    Args:
        student: the network to train.
        recipe: ordinary training of the student.
    """

    roles = ("student",)

    student: Model | nn.Module
    recipe: Recipe = field(default_factory=Recipe)

    card = Card(
        name="supervised",
        title="Supervised training",
        paper="common practice",
        verb="distill",
        needs=Needs(data="labelled", teacher="none", architectures="any", inputs=ANY, tasks=ANY),
        summary="A network that learns from labels alone.",
        cost="student training",
        published="none",
    )

    def fit(self, run: Run, data: Collection) -> nn.Module:
        """The algorithm; returns the student."""
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for inputs, labels, _ in run.batches(data.train, self.recipe.batch_size):
                run.step(data.train.task.loss(student(inputs), labels), optimizer, self.recipe)
            run.evaluate(student, data.validation)
        return run.plain(student)
