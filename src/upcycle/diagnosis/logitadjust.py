"""Logit adjustment: from each logit of a trained network the logarithm of its class' share of the images is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.method import Card
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.run import Run
from upcycle.diagnosis.long_tail.repair import NEEDS, Repair, mends
from upcycle.diagnosis.long_tail.trunk import Trunk, problems

if TYPE_CHECKING:
    from upcycle.data.images import Images


def log_priors(n: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
    """log π_j, with π_j = n_j / Σ n; all n_j are positive."""
    return (n.double() / n.sum()).log()


@dataclass(kw_only=True, eq=False, repr=False)
class LogitAdjust(Repair):
    """Long-Tail Learning via Logit Adjustment, after training (Menon et al.; ICLR 2021; arXiv:2007.07314).

    A network that was trained on classes of shares π_j = n_j / N gives z_j ≈ log p(j | x) + a number that all classes
    share. On images where all classes are as frequent, the answer that errs least is the highest of

        z_j - τ log π_j,    τ = 1,

    since p(j | x) / π_j is proportional to p(x | j). So the classifier's bias changes, and nothing else; no image is
    needed, only the numbers n_j.

    The network that is returned has the architecture of the source. Its probabilities are those for images of which
    every class has as many.

    Args:
        source: a trained classifier that ends in a linear layer with a bias.
        tau: factor τ of the logarithms; 1 is the answer that errs least if the logits are right, 0 changes nothing.
    """

    source: Model | nn.Module
    tau: float = 1.0

    card = Card(
        name="logitadjust",
        title="Long-Tail Learning via Logit Adjustment",
        paper="Menon, Jayasumana, Rawat, Jain, Veit, Kumar; ICLR 2021; arXiv:2007.07314",
        verb="treat",
        needs=NEEDS,
        summary="The same network, its logits lowered by how frequent their classes were in training.",
        cost="nothing but counting",
        published="ImageNet-LT and others, ahead of τ-normalisation (from memory, unchecked)",
        rare=True,
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | None:
        """First to mend rare classes: it takes the numbers of images alone."""
        reason = (
            "logits are lowered by how frequent their classes were; nothing is trained, and only the numbers of "
            "training images are needed."
        )
        return mends(have, 10, reason)

    def __post_init__(self) -> None:
        ranges(self, not_negative=("tau",))

    def steps(self, n: int) -> int:
        """None."""
        return 0

    def check(self, data: Images) -> list[str]:
        """Labelled images of every class, and a classifier with a bias."""
        if found := problems(self, data, bias="tau and lws serve without"):
            return found
        fits = bool((self.tau * log_priors(Trunk.of(self, data).n)).float().isfinite().all())
        return [] if fits else [f"tau {self.tau:g} gives biases beyond all numbers; 1 is usual"]

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network."""
        trunk = Trunk.of(self, data)
        (held,) = trunk.rows(run, "validation")
        b = trunk.bias().double().cpu() - self.tau * log_priors(trunk.n)
        return trunk.ended(run, trunk.head(trunk.layer.weight, b), held)
