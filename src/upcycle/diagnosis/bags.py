"""BAGS: a softmax for each group of classes of like frequency, so that frequent classes hold no rare one down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import require
from upcycle.core.method import Card, Control
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import uniform
from upcycle.diagnosis.long_tail.further import REFUSES, SAMPLED, further
from upcycle.diagnosis.long_tail.heads import Grouped
from upcycle.diagnosis.long_tail.repair import NEEDS, Repair, mends
from upcycle.diagnosis.long_tail.trunk import Trunk, number, problems, recorded

if TYPE_CHECKING:
    from upcycle.data.images import Images


def frequency_groups(n: Int[Tensor, " k"], edges: Sequence[int], background: int | None = None) -> list[list[int]]:
    """The classes of each group: those with fewer than the first edge, then from one edge to below the next.

    Args:
        n: n_j.
        edges: ascending.
        background: a class of no group.

    Returns:
        groups without a class are left out.
    """
    groups: list[list[int]] = [[] for _ in range(len(edges) + 1)]
    for c, count in enumerate(n.tolist()):
        if c != background:
            groups[sum(count >= edge for edge in edges)].append(c)
    return [group for group in groups if group]


def chosen(own: Bool[Tensor, "b g"], u: Float[Tensor, "b g"], beta: float) -> Bool[Tensor, "b g"]:
    """The samples that each group's loss counts: all of its own, and β times as many others, those of the least u.

    Args:
        own: whether a sample's class is of the group; a group without any has no loss.
        u: a random number for each sample and group.
        beta: β.
    """
    place = u.masked_fill(own, torch.inf).argsort(dim=0, stable=True).argsort(dim=0)
    return own | (place < beta * own.sum(0))


def group_loss(
    logits: Sequence[Float[Tensor, "b _"]], target: Int[Tensor, "b g"], weight: Float[Tensor, "b g"]
) -> Float[Tensor, ""]:
    """Σ_i Σ_b w_bi CE(z_i, t_bi) / max(Σ_b w_bi, 1), over groups i.

    Args:
        logits: of each group.
        target: t, the index in each group, 0 for "others".
        weight: w.
    """
    losses = [
        (w * F.cross_entropy(z, t, reduction="none")).sum() / w.sum().clamp_min(1)
        for z, t, w in zip(logits, target.unbind(1), weight.unbind(1), strict=True)
    ]
    return torch.stack(losses).sum()


def _of_groups(groups: Sequence[Sequence[int]]) -> str:
    """Say how the classes were divided."""
    sizes = [str(len(group)) for group in groups]
    if len(sizes) == 1:
        return "All classes are in one group, as in an ordinary softmax; give --edges between their numbers of images."
    return f"The {len(sizes)} groups have {', '.join(sizes[:-1])} and {sizes[-1]} classes, the rarest first."


@dataclass(kw_only=True, eq=False, repr=False)
class BAGS(Repair):
    """Balanced group softmax (Li et al.; CVPR 2020; arXiv:2006.10408).

    Classes are divided into groups G_i by their numbers of training images. The network stays as it is, in evaluation
    mode; on its features a new linear layer is trained, with a softmax for each group, of its classes and of "others".
    A sample of G_i counts in the loss of its group, and as "others" in those of the other groups. Of others a batch
    gives each group at most β times as many as samples of its own, drawn anew; see :func:`group_loss`. So no class is
    pushed down by classes far more frequent than itself.

    To answer, each class has its probability in its group; "others" are dropped. With a ``background`` class there is
    G₀ of background and foreground, by whose foreground all others are multiplied. The scores of an image do not sum to
    one.

    The paper repairs detectors, with batches as they come (``recipe.sampler instance``). With few classes that does not
    help, since the "others" swamp small groups; batches in which every class comes as often are the default here.

    Args:
        source: a trained classifier that ends in a linear layer.
        edges: numbers of training images at which a group ends and the next begins, ascending.
        beta: others a group's loss counts, at most, for each sample of its own; β.
        background: the name of the class that is no object, if there is one.
        recipe: training of the layer (LVIS in the paper: 12 epochs, rate 0.01).
    """

    source: Model | nn.Module
    edges: tuple[int, ...] = (10, 100, 1000)
    beta: float = 8.0
    background: str | None = None
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=10, weight_decay=1e-4, sampler="class"))

    admits, refuses = SAMPLED, REFUSES
    card = Card(
        name="bags",
        title="Overcoming Classifier Imbalance for Long-tail Object Detection with Balanced Group Softmax",
        paper="Li, Wang, Kang, Tang, Wang, Li, Feng; CVPR 2020; arXiv:2006.10408",
        verb="treat",
        needs=NEEDS,
        summary="The same network with a classifier in which only classes of like frequency compete.",
        cost="one forward of each image",
        published="LVIS v0.5, Faster R-CNN R50: mAP 25.96 against 20.98 (README of the code); no classification",
        rare=True,
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | None:
        """To mend rare classes by a classifier in groups."""
        reason = (
            "a new classifier on the network's features, in which only classes of like frequency compete; its scores "
            "are no probabilities."
        )
        return mends(have, 15, reason)

    def __post_init__(self) -> None:
        self.edges = tuple(self.edges)
        ranges(self, positive=("edges", "beta"))
        ascending = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
        require(bool(self.edges) and ascending, f"edges must ascend, and they are {', '.join(map(str, self.edges))}.")

    def controls(self) -> dict[str, Control]:
        """As many updates of the old classifier, on batches as the images are."""
        return further(self.source, self.recipe)

    def check(self, data: Images) -> list[str]:
        """Labelled images of every class, a classifier to replace, and the background among the classes."""
        return problems(self, data, background=self.background)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network."""
        trunk = Trunk.of(self, data)
        rows, held = trunk.rows(run, "train", "validation")
        background = number(trunk.source, self.background)
        groups = frequency_groups(trunk.n, self.edges, background)
        head = Grouped(trunk.layer.in_features, groups, background)
        nn.init.normal_(head.linear.weight, std=0.01)
        nn.init.zeros_(head.linear.bias)
        head, optimizer = run.setup(head, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            for f, y, index in run.batches(rows, self.recipe):
                target = run.gather(head.target[y])
                u = uniform(run.seed, run.view, rows.ids[index.cpu()], "bags", target.shape[1]).to(run.device)
                weight = chosen(target > 0, run.gather(u), self.beta)
                if background is not None:
                    weight[:, 0] = True  # G₀ counts all
                logits = [run.gather(z) for z in head.logits(f)]
                run.step(group_loss(logits, target, weight.to(f.dtype)), optimizer, self.recipe, "global")
            run.evaluate(head, held)
        run.note(_of_groups(groups))
        return trunk.ended(run, head)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The network with a grouped classifier."""
        head = module.get_submodule(Trunk.of(self, data).name)
        assert isinstance(head, Grouped)
        return recorded(self, module, data, "grouped", {"groups": head.groups, "background": head.background})
