"""cRT: a new classifier on the features of a trained network, trained on batches that show every class as often."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, fresh_copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.diagnosis.long_tail.further import REFUSES, SAMPLED, further
from upcycle.diagnosis.long_tail.trunk import Trunk, named, problems

if TYPE_CHECKING:
    from upcycle.data.images import Images


@dataclass(kw_only=True, eq=False, repr=False)
class CRT(Method):
    """The retrained classifier of Decoupling Representation and Classifier (Kang et al.; arXiv:1910.09217).

    The network stays as it is, in evaluation mode. Its classifier W, b begins anew and is trained by cross-entropy on
    the features f of the training images. An image is drawn by its class first, each class as often, then among the
    images of the class, alike. The finding of the paper: features learn best from images as they come, and only the
    classifier has to be balanced.

    Departures: features are computed once, from images without augmentation, where the authors' code augments; so a
    repair takes seconds. That code freezes weights alone, and leaves BatchNorm in training mode, whose statistics
    drift; here they stay. It shows four images of a class in a row, see :func:`upcycle.core.sampling.order`.

    Args:
        source: a trained classifier that ends in a linear layer.
        recipe: training of the classifier (ImageNet-LT in the paper: 10 epochs, rate 0.2 for batches of 512).
    """

    source: Model | nn.Module
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=10, sampler="class"))

    roles: ClassVar[tuple[str, ...]] = ("source",)
    trains: ClassVar[tuple[str, ...]] = ()
    admits, refuses = SAMPLED, REFUSES
    card = Card(
        name="crt",
        title="Decoupling Representation and Classifier for Long-Tailed Recognition: classifier re-training",
        paper="Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis; ICLR 2020; arXiv:1910.09217",
        verb="treat",
        needs=Needs(data="labelled", teacher="weights", architectures="a classifier that ends in a linear layer"),
        summary="The same network with a new classifier, trained on batches that show rare classes as often as others.",
        cost="one forward of each image",
        published="ImageNet-LT, ResNeXt-50: all classes 49.6, few-shot 27.4, against 44.4 and 7.7 (README of the code)",
        rare=True,
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """To mend rare classes by training the classifier alone."""
        if have.goal != "mend":
            return None
        reason = (
            "if rare classes go wrong (see upcycle diagnose MODEL): a new classifier on the network's features, "
            "trained in seconds on batches that show every class as often."
        )
        return Fit(13, reason)

    def controls(self) -> dict[str, Control]:
        """As many updates of the old classifier, on batches as the images are."""
        return further(self.source, self.recipe)

    def work(self, n: int, teacher: int, student: int) -> float:
        """A forward of each image, beside which a linear layer counts for nothing."""
        return float(n * max(teacher, student))

    def check(self, data: Images) -> list[str]:
        """Labelled images of every class, and a classifier to replace."""
        return problems(self, data)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network."""
        trunk = Trunk.of(self, data)
        rows, held = trunk.rows(run, "train", "validation")
        head, optimizer = run.setup(fresh_copy_of(trunk.layer).requires_grad_(True), self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            for f, y, _ in run.batches(rows, self.recipe):
                run.step(ce_loss(head(f), y), optimizer, self.recipe)
            run.evaluate(head, held)
        return trunk.ended(run, head)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture."""
        return named(self, module, data)
