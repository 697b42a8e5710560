"""The control of a repair: the same classifier, trained on as long, on batches as the images are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from upcycle.core.method import Card, Control
from upcycle.core.models import Model, copy_of, own_copy
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.diagnosis.long_tail.repair import NEEDS, Repair, trained
from upcycle.diagnosis.long_tail.trunk import Trunk

if TYPE_CHECKING:
    from upcycle.data.images import Images

SAMPLED = frozenset({"sampler"})
"""The ingredient that repairs take which train a head on kept features; the control shows each image as often."""
REFUSES = {"any": "it trains a classifier alone, on features that are computed once"}
"""Why they take no other."""


@dataclass(kw_only=True, eq=False, repr=False)
class FurtherTraining(Repair):
    """Cross-entropy of the classifier of a trained network on its kept features, every image as often.

    Args:
        source: a trained classifier that ends in a linear layer.
        recipe: training of the classifier.
    """

    source: Model | nn.Module
    recipe: Recipe

    card = Card(
        name="trained",
        title="Further training of a classifier",
        paper="common practice",
        verb="treat",
        needs=NEEDS,
        summary="The same network, its classifier trained on: what a repair must beat.",
        cost="one forward of each image",
        published="none: it is what others are compared with",
    )

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network."""
        trunk = Trunk.of(self, data)
        rows, held = trunk.rows(run, "train", "validation")
        head = copy_of(trunk.layer).requires_grad_(True)
        return trunk.ended(run, trained(run, head, rows, held, self.recipe))


def further(source: Model | nn.Module, recipe: Recipe) -> dict[str, Control]:
    """Give a repair that trains its control: as many updates of the old classifier, on batches as the images are."""
    made = FurtherTraining(source=own_copy(source), recipe=replace(recipe, sampler="instance"))
    return {"control": Control(method=made, words="classifier trained on")}
