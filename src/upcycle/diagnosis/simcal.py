"""SimCal: a second classifier, trained on batches that show every class as often, which answers for rare classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control
from upcycle.core.models import Model, copy_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.diagnosis.long_tail.further import REFUSES, SAMPLED, further
from upcycle.diagnosis.long_tail.heads import Dual, layers
from upcycle.diagnosis.long_tail.repair import NEEDS, Repair, mends
from upcycle.diagnosis.long_tail.trunk import Trunk, number, problems, recorded

if TYPE_CHECKING:
    from upcycle.data.images import Images


@dataclass(kw_only=True, eq=False, repr=False)
class SimCal(Repair):
    """The calibrated head of The Devil is in Classification (Wang et al.; ECCV 2020; arXiv:2007.11978).

    The network stays as it is, in evaluation mode, with its classifier, whose softmax is p. Beside it a second one is
    trained by cross-entropy on the same features, whose softmax is p'; every class comes as often in its batches. The
    score of a class of n_j training images is

        p'_j  where n_j < T,    p_j  elsewhere,

    so frequent classes keep the answers of the classifier that saw them as often as they are. The scores of an image
    come from two softmaxes, and do not sum to one.

    The paper repairs segmenters: it draws classes, then images with that class, and adds as many regions of background.
    Here an image is one sample. With a ``background`` class, batches take its samples in equal number beside those that
    are drawn by class, and p answers for it.

    Departures: momentum, and the house's schedule, for the paper's 12,000 steps without.

    Args:
        source: a trained classifier that ends in a linear layer.
        T: training images below which the calibrated head answers for a class (LVIS in the paper: 100); null: for every
            class, the calibrated head alone.
        hidden: width of the hidden layer of the calibrated head; 0: a linear one that starts as the trained classifier.
        background: the name of the class that is no object, if there is one.
        recipe: training of the calibrated head.
    """

    source: Model | nn.Module
    T: int | None = 100
    hidden: int = 256
    background: str | None = None
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=20, lr=0.01, weight_decay=0.0, sampler="class"))

    admits, refuses = SAMPLED, REFUSES
    card = Card(
        name="simcal",
        title="The Devil is in Classification: A Simple Framework for Long-tail Instance Segmentation",
        paper="Wang, Li, Kang, Li, Liew, Tang, Hoi, Feng; ECCV 2020; arXiv:2007.11978",
        verb="treat",
        needs=NEEDS,
        summary="The same network with a second classifier, which answers for rare classes only.",
        cost="one forward of each image",
        published="LVIS v0.5, Mask R-CNN R50: AP 18.0 → 22.2, rarest classes 0.0 → 13.3 (README of the code)",
        rare=True,
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | None:
        """To mend rare classes and leave the answers for frequent ones."""
        reason = (
            "a second classifier answers for classes of fewer than T training images, and the old one for all others; "
            "the scores are no probabilities."
        )
        return mends(have, 16, reason)

    def __post_init__(self) -> None:
        ranges(self, not_negative=("T", "hidden"))

    def controls(self) -> dict[str, Control]:
        """As many updates of the old classifier, on batches as the images are."""
        return further(self.source, self.recipe)

    def rare(self, trunk: Trunk) -> list[int]:
        """The classes that the calibrated head answers for."""
        background = number(trunk.source, self.background)
        return [c for c, n in enumerate(trunk.n.tolist()) if c != background and (self.T is None or n < self.T)]

    def check(self, data: Images) -> list[str]:
        """Labelled images of every class, a classifier to stand beside, and a class that the new head answers for."""
        if found := problems(self, data, background=self.background):
            return found
        trunk = Trunk.of(self, data)
        if self.T and not self.rare(trunk):
            return [
                f"no class of {data.name} has fewer than T = {self.T:,} training images, so the calibrated head would "
                f"answer for none; the rarest has {int(trunk.n.min()):,}: set a higher --T, or null for all classes"
            ]
        return []

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network."""
        trunk = Trunk.of(self, data)
        rows, held = trunk.rows(run, "train", "validation")
        background, k = number(trunk.source, self.background), len(trunk.n)
        is_background = rows.labels == (-1 if background is None else background)
        beside, objects = is_background.nonzero()[:, 0], rows.subset((~is_background).nonzero()[:, 0])
        new = layers(trunk.layer.in_features, self.hidden, k) if self.hidden else copy_of(trunk.layer)
        used = torch.zeros(k, dtype=torch.bool)
        used[self.rare(trunk)] = True
        head = Dual(copy_of(trunk.layer).requires_grad_(False), new.requires_grad_(True), used)
        head, optimizer = run.setup(head, self.recipe)
        size = self.recipe.batch_size
        for _ in run.epochs(self.recipe.epochs):
            more = run.others(rows, size, "background", among=beside) if len(beside) else None
            for f, y, _ in run.batches(objects, self.recipe):
                total = run.count
                if more is not None:
                    g, v, _ = next(more)
                    f, y, total = torch.cat([f, g]), torch.cat([y, v]), total + (size or len(beside))
                run.step(cross_entropy(head.calibrated(f), y, total), optimizer, self.recipe, "sum")
            run.evaluate(head, held)
        return trunk.ended(run, head)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The network with both classifiers."""
        return recorded(self, module, data, "dual", {"hidden": self.hidden, "rare": self.rare(Trunk.of(self, data))})
