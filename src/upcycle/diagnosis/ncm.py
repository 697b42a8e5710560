"""NCM: every image belongs to the class whose mean feature is nearest, so that no class is held back by being rare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.method import Card
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.run import Run
from upcycle.diagnosis.long_tail.heads import Normalised
from upcycle.diagnosis.long_tail.repair import DECOUPLING, NEEDS, Repair, mends
from upcycle.diagnosis.long_tail.trunk import Trunk, named, problems, recorded

if TYPE_CHECKING:
    from upcycle.data.images import Images

Kind = Literal["cl2n", "l2n", "raw"]


def class_means(u: Float[Tensor, "n d"], y: Int[Tensor, " n"], k: int) -> Float[Tensor, "k d"]:
    """c_j, the mean of the rows of each of k classes, all of which have some."""
    return u.new_zeros(k, u.shape[1]).index_add_(0, y, u) / y.bincount(minlength=k)[:, None]


def nearest(c: Float[Tensor, "k d"]) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """W = 2c and b = -|c|²: W u + b is -|u - c_j|² but for -|u|², which is the same for all classes."""
    return 2 * c, -c.square().sum(1)


@dataclass(kw_only=True, eq=False, repr=False)
class NCM(Repair):
    """The nearest class mean of Decoupling Representation and Classifier (Kang et al.; arXiv:1910.09217).

    With the mean c_j of the features of class j on training images as they are, without augmentation, the scores are

        z_j = -|u - c_j|²,

    in which u is the feature f itself (``raw``), f / |f| (``l2n``), or (f - μ) / |f - μ| with the mean μ of all
    training features (``cl2n``, the default of the authors' code); c_j are means of u and not normalised again. A class
    of few images has a mean like any other. No weight is trained.

    The network that is returned has the architecture of the source for ``raw``. For the others, where u is no linear
    map of f, it has a small module in place of the classifier, and its scores lie between -4 and 0: no probabilities.

    Args:
        source: a trained classifier that ends in a linear layer.
        features: whose means are taken: cl2n (centred, then of length 1), l2n (of length 1) or raw.
    """

    source: Model | nn.Module
    features: Kind = "cl2n"

    card = Card(
        name="ncm",
        title="Decoupling Representation and Classifier for Long-Tailed Recognition: nearest class mean",
        paper=DECOUPLING,
        verb="treat",
        needs=NEEDS,
        summary="The same network with the mean feature of each class, however rare, in place of its classifier.",
        cost="one forward of each image",
        published="ImageNet-LT, ResNeXt-50: all classes 47.3, few-shot 28.1, against 44.4 and 7.7 (README of the code)",
        rare=True,
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | None:
        """To mend rare classes without training, where the features tell classes apart."""
        reason = (
            "an image belongs to the class whose mean feature is nearest; nothing is trained, and it is as good as the "
            "features are for these classes."
        )
        return mends(have, 12, reason)

    def __post_init__(self) -> None:
        ranges(self, one_of={"features": ("cl2n", "l2n", "raw")})

    def steps(self, n: int) -> int:
        """None."""
        return 0

    def check(self, data: Images) -> list[str]:
        """Labelled images of every class, and a classifier to replace."""
        return problems(self, data, bias="--features cl2n serves without" if self.features == "raw" else "")

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network."""
        trunk = Trunk.of(self, data)
        rows, held = trunk.rows(run, "train", "validation")
        u = rows.x.double()
        mu = u.mean(0) if self.features == "cl2n" else torch.zeros(u.shape[1], dtype=torch.float64)
        if self.features != "raw":
            u = F.normalize(u - mu, dim=1)
        W, b = nearest(class_means(u, rows.labels, len(trunk.n)))
        if self.features == "raw":
            return trunk.ended(run, trunk.head(W, b), held)
        linear = nn.Linear(W.shape[1], W.shape[0])
        with torch.no_grad():
            linear.weight.copy_(W)
            linear.bias.copy_(b - 1)  # |u|² = 1
        return trunk.ended(run, Normalised(linear, mu.float()), held)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture, with a module in place of its classifier unless features are taken raw."""
        if self.features == "raw":
            return named(self, module, data)
        return recorded(self, module, data, "normalised", {})
