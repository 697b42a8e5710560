"""cRT: a new classifier on the features of a trained network, trained on batches that show every class as often."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.method import Card, Control
from upcycle.core.models import Model, fresh_copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.diagnosis.long_tail.further import REFUSES, SAMPLED, further
from upcycle.diagnosis.long_tail.repair import DECOUPLING, NEEDS, Repair, mends, trained
from upcycle.diagnosis.long_tail.trunk import Trunk

if TYPE_CHECKING:
    from upcycle.data.images import Images


@dataclass(kw_only=True, eq=False, repr=False)
class CRT(Repair):
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

    admits, refuses = SAMPLED, REFUSES
    card = Card(
        name="crt",
        title="Decoupling Representation and Classifier for Long-Tailed Recognition: classifier re-training",
        paper=DECOUPLING,
        verb="treat",
        needs=NEEDS,
        summary="The same network with a new classifier, trained on batches that show rare classes as often as others.",
        cost="one forward of each image",
        published="ImageNet-LT, ResNeXt-50: all classes 49.6, few-shot 27.4, against 44.4 and 7.7 (README of the code)",
        rare=True,
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | None:
        """To mend rare classes by training the classifier alone."""
        reason = (
            "a new classifier on the network's features, trained in seconds on batches that show every class as often."
        )
        return mends(have, 13, reason)

    def controls(self) -> dict[str, Control]:
        """As many updates of the old classifier, on batches as the images are."""
        return further(self.source, self.recipe)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network."""
        trunk = Trunk.of(self, data)
        rows, held = trunk.rows(run, "train", "validation")
        head = fresh_copy_of(trunk.layer).requires_grad_(True)
        return trunk.ended(run, trained(run, head, rows, held, self.recipe))
