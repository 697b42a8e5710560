"""A linear probe: a new classifier on a network that stays as it is, the least that any tuning must beat."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from upcycle.core.advice import Fit, Situation, if_labelled
from upcycle.core.errors import UserError
from upcycle.core.heads import classifiers, for_classes, linear
from upcycle.core.ingredients import EVERY
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, own_copy
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images


@dataclass(kw_only=True, eq=False, repr=False)
class LinearProbe(Method):
    """Cross-entropy of a linear classifier on the features of a frozen network (Alain, Bengio; arXiv:1610.01644).

    Args:
        source: a trained classifier that ends in a linear layer. Where the data have its classes its classifier is
            the start, otherwise a new one, of zeros.
        recipe: training of the classifier.
    """

    source: Model | nn.Module
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=20, batch_size=64, optimizer="adamw", lr=1e-2, weight_decay=0.05, warmup=1
        )
    )

    roles: ClassVar[tuple[str, ...]] = ("source",)
    card = Card(
        name="probe",
        title="Understanding intermediate layers using linear classifier probes",
        paper="Alain, Bengio; ICLR workshop 2017; arXiv:1610.01644",
        verb="adapt",
        needs=Needs(data="labelled", teacher="weights", architectures="a classifier that ends in a linear layer"),
        summary="The same network with a new linear classifier: what its features are worth for other classes.",
        cost="a third of fine-tuning: no backward through the network",
        published="CIFAR-100 ViT-B/16 88.70, against 93.99 with SSF (secondary notes, unchecked)",
    )
    admits = EVERY

    runs_on = ("few",)

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """First where a few labelled images have to determine all that is trained; else what others must beat."""
        if have.goal not in ("task", "domain"):
            return None
        if have.data == "few":
            reason = (
                "only a new classifier is trained, on the features of MODEL as they are, and a few images determine "
                "that; what the others must beat."
            )
            return Fit(0, if_labelled(have, reason))
        return Fit(12, "only a new classifier is trained; what the others must beat.")

    def work(self, n: int, teacher: int, student: int) -> float:
        """A forward of each sample of each update."""
        return float(self.steps(n) * self.recipe.batch_size * max(teacher, student))

    def check(self, data: Images) -> list[str]:
        """Labels, and a classifier to replace."""
        source = self.model("source", data)
        try:
            classifiers(source)
        except UserError as error:
            return [str(error).rstrip(".")]
        without = int((data.train.labels < 0).sum())
        return [f"it learns from labels, and {without} of {len(data.train)} training images have none"] * (without > 0)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network with its new classifier."""
        start = for_classes(self.model("source", data), data.classes)
        data = data.normalised(start.mean, start.std)
        start.module.requires_grad_(False)
        for name in classifiers(start):
            linear(start.module, name).requires_grad_(True)
        student, optimizer = run.setup(start.module, self.recipe)
        student.eval()  # dropout and BatchNorm as in use
        for _ in run.epochs(self.recipe.epochs):
            for images, y, _ in run.batches(data.train, self.recipe):
                run.step(ce_loss(student(images), y, reduction=run.reduction), optimizer, self.recipe)
            run.evaluate(student, data.validation)
        return run.plain(student).requires_grad_(True)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture with the classes of the data."""
        source = self.model("source", data)
        made = for_classes(source, data.classes)
        return dataclasses.replace(made, module=module, lineage=None, name=f"{source.name}-probe")


def probed(source: Model | nn.Module, recipe: Recipe) -> dict[str, Control]:
    """Give methods that go on from a trained network their control: its linear probe, trained as long."""
    return {"linear probe": Control(method=LinearProbe(source=own_copy(source), recipe=recipe), words="linear probe")}
