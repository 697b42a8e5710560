"""τ-normalisation: the rows of a classifier brought nearer to one length, so that rare classes are not held back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.frequency import counts_of
from upcycle.core.method import Card
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.run import Run
from upcycle.diagnosis.long_tail.repair import DECOUPLING, NEEDS, Repair, mends
from upcycle.diagnosis.long_tail.trunk import Trunk, problems

if TYPE_CHECKING:
    from upcycle.data.images import Images

GRID = tuple(i / 10 for i in range(21))
"""The values of τ that are tried, as in the authors' code."""


def tau_normalised(W: Float[Tensor, "k d"], tau: float) -> Float[Tensor, "k d"]:
    """w̃_j = w_j / |w_j|^τ: the rows themselves at τ = 0, rows of length 1 at τ = 1. A row of zeros stays."""
    norms = W.norm(dim=1, keepdim=True)
    return W / norms.where(norms > 0, 1.0) ** tau


def mean_recall(z: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> float:
    """The mean over classes of the share of right answers; each class has a sample."""
    k, right = z.shape[1], y[z.argmax(1) == y]
    return float((right.bincount(minlength=k) / y.bincount(minlength=k)).mean())


@dataclass(kw_only=True, eq=False, repr=False)
class Tau(Repair):
    """The τ-normalised classifier of Decoupling Representation and Classifier (Kang et al.; arXiv:1910.09217).

    After training on classes of very different numbers of images, the row w_j of the classifier is the longer the more
    images class j had. The logits become

        z_j = w_j · f / |w_j|^τ,

    without the bias, which holds back rare classes too. τ is that of 0, 0.1, ... 2 at which the mean recall over
    classes is highest on validation images, of equals the smallest. These must be held out: on images that the network
    was trained on every class looks recognised. No weight is trained.

    The network that is returned has the architecture of the source, its classifier's bias at 0.

    Args:
        source: a trained classifier that ends in a linear layer.
        tau: power τ of the length; if not given, chosen on validation images.
        held: validation images that each class must have for τ to be chosen.
    """

    source: Model | nn.Module
    tau: float | None = None
    held: int = 50

    card = Card(
        name="tau",
        title="Decoupling Representation and Classifier for Long-Tailed Recognition: τ-normalisation",
        paper=DECOUPLING,
        verb="treat",
        needs=NEEDS,
        summary="The same network, the rows of its classifier nearer to one length, so that rare classes are found.",
        cost="one forward of each validation image",
        published="ImageNet-LT, ResNeXt-50: all classes 49.4, few-shot 30.7, against 44.4 and 7.7 (README of the code)",
        rare=True,
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | None:
        """To mend rare classes without training, where images were held out."""
        reason = (
            "the classifier's rows are brought nearer to one length; nothing is trained, and about 50 images of each "
            "class must have been held out."
        )
        return mends(have, 11, reason)

    def __post_init__(self) -> None:
        ranges(self, not_negative=("tau",), at_least={"held": 1})

    def steps(self, n: int) -> int:
        """None."""
        return 0

    def check(self, data: Images) -> list[str]:
        """A classifier to replace, and held-out images of every class unless τ is given."""
        if found := problems(self, data):
            return found
        if self.tau is not None:
            W = tau_normalised(Trunk.of(self, data).layer.weight.detach().double(), self.tau)
            fits = bool(W.float().norm(dim=1).isfinite().all() and W.float().any(1).any())
            return [] if fits else [f"tau {self.tau:g} gives weights beyond all numbers; take one nearer to 1"]
        held = counts_of(data.validation.labels, len(data.classes))
        worst = held.index(min(held))
        if held[worst] < self.held:
            return [
                f"τ is chosen on {self.held} images of each class that were held out before the network was trained, "
                f"and {data.name} has {held[worst]} validation images of {data.classes[worst]}; give --tau, or "
                "take logitadjust, which needs none"
            ]
        return []

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network."""
        trunk = Trunk.of(self, data)
        (held,) = trunk.rows(run, "validation")
        W, tau = trunk.layer.weight.detach().double().cpu(), self.tau
        if tau is None:
            f, y = held.x.double(), held.labels
            recalls = [mean_recall(f @ tau_normalised(W, t).T, y) for t in GRID]
            tau = GRID[recalls.index(max(recalls))]
            run.note(f"τ = {tau:g} has the highest mean recall on {len(y):,} validation images, {max(recalls):.1%}.")
        return trunk.ended(run, trunk.head(tau_normalised(W, tau), torch.zeros(len(W))), held)
