"""The control of a swap: the network without the block, trained on as long with the same loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from upcycle.core.ingredients import EVERY
from upcycle.core.losses import Terms
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images


@dataclass(kw_only=True, eq=False, repr=False)
class TrainedOn(Method):
    """A trained network that goes on training, on labels and its own first answers.

    Args:
        source: the trained network.
        terms: temperature and weights of the two terms.
        recipe: training of all weights.
    """

    source: Model | nn.Module
    terms: Terms
    recipe: Recipe

    roles: ClassVar[tuple[str, ...]] = ("source",)
    admits = EVERY
    card = Card(
        name="trainedon",
        title="Further training of a network",
        paper="common practice",
        verb="reassemble",
        needs=Needs(data="unlabelled", teacher="weights"),
        summary="The same network, trained on: what a block must beat.",
        cost="training + one forward of the network a step",
        published="none: it is what others are compared with",
    )

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network."""
        source = self.model("source", data)
        data = data.normalised(source.mean, source.std)
        teacher = run.frozen(source, data.validation)
        student, optimizer = run.setup(copy_of(source.module).requires_grad_(True), self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for images, y, _ in run.batches(data.train, self.recipe):
                run.step(
                    self.terms(student(images), teacher(images), y, reduction=run.reduction), optimizer, self.recipe
                )
            run.evaluate(student, data.validation)
        return run.plain(student)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture."""
        source = self.model("source", data)
        return replace(source, module=module, lineage=None)
