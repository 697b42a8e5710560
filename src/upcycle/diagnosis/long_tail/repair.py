"""The repairs of a trained classifier, as far as they are alike: one network, of which only the classifier changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.losses import ce_loss
from upcycle.core.method import Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.diagnosis.long_tail.trunk import Rows, named, problems

if TYPE_CHECKING:
    from upcycle.data.images import Images

NEEDS = Needs(data="labelled", teacher="weights", architectures="a classifier that ends in a linear layer")
DECOUPLING = "Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis; ICLR 2020; arXiv:1910.09217"
"""The paper of tau, ncm, crt and lws."""


class Repair(Method):
    """Base of methods that give a trained network, ``source``, another classifier and leave the rest as it is.

    A subclass is a dataclass with that field; its ``fit`` makes the classifier.
    """

    source: Model | nn.Module

    roles: ClassVar[tuple[str, ...]] = ("source",)
    trains: ClassVar[tuple[str, ...]] = ()

    def work(self, n: int, teacher: int, student: int) -> float:
        """A forward of each image, beside which a classifier counts for nothing."""
        return float(n * max(teacher, student))

    def check(self, data: Images) -> list[str]:
        """Labelled images of every class, and a classifier to replace."""
        return problems(self, data)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture."""
        return named(self, module, data)


def mends(have: Situation, place: int, reason: str) -> Fit | None:
    """Place a repair of rare classes, among those that mend a network."""
    if have.goal != "mend":
        return None
    return Fit(place, f"if rare classes go wrong (see upcycle diagnose MODEL): {reason}")


def trained(run: Run, head: nn.Module, rows: Rows, held: Rows, recipe: Recipe) -> nn.Module:
    """Train a head on kept features by cross-entropy; gives it as the run has set it up.

    Args:
        rows, held: what the head is given, for each image to train on and to validate.
        recipe: which samples a batch has, and how many epochs.
    """
    head, optimizer = run.setup(head, recipe)
    for _ in run.epochs(recipe.epochs):
        for f, y, _ in run.batches(rows, recipe):
            run.step(ce_loss(head(f), y), optimizer, recipe)
        run.evaluate(head, held)
    return head
