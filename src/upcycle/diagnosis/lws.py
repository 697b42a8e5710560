"""LWS: one factor for each class of a trained classifier, learnt on batches that show every class as often."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.method import Card, Control
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.diagnosis.long_tail.further import REFUSES, SAMPLED, further
from upcycle.diagnosis.long_tail.repair import DECOUPLING, NEEDS, Repair, mends, trained
from upcycle.diagnosis.long_tail.trunk import Trunk

if TYPE_CHECKING:
    from upcycle.data.images import Images


class Scales(nn.Module):
    """z_j ↦ s_j z_j; s begins at 1.

    Args:
        k: classes.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.ones(k))

    def forward(self, z: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        return self.s * z


@dataclass(kw_only=True, eq=False, repr=False)
class LWS(Repair):
    """Learnable weight scaling of Decoupling Representation and Classifier (Kang et al.; arXiv:1910.09217).

    The network and its classifier W, b stay as they are. The logits become

        z_j = s_j (w_j · f + b_j),

    and only s, one number for each class, is learnt by cross-entropy on batches that show every class as often. It is
    τ-normalisation with a free factor in place of 1 / |w_j|^τ, which needs no images held out.

    s begins at 1 and scales the bias too, as in the authors' code. Weight decay would pull s to 0 and not to 1, so
    there is none, whatever ``recipe`` says. Features are computed once, without augmentation, and BatchNorm stays as it
    is, as for ``crt``.

    The network that is returned has the architecture of the source, with s multiplied into its classifier.

    Args:
        source: a trained classifier that ends in a linear layer.
        recipe: training of s, without its weight decay (ImageNet-LT in the paper: 5 epochs, rate 0.2 for batches of
            512).
    """

    source: Model | nn.Module
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=10, weight_decay=0.0, sampler="class"))

    admits, refuses = SAMPLED, REFUSES
    card = Card(
        name="lws",
        title="Decoupling Representation and Classifier for Long-Tailed Recognition: learnable weight scaling",
        paper=DECOUPLING,
        verb="treat",
        needs=NEEDS,
        summary="The same network, each of its logits scaled by a number learnt where all classes are as frequent.",
        cost="one forward of each image",
        published="ImageNet-LT, ResNeXt-50: all classes 49.9, few-shot 30.3, against 44.4 and 7.7 (README of the code)",
        rare=True,
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | None:
        """To mend rare classes by one number a class."""
        reason = (
            "one factor a class on the logits, learnt in seconds on batches that show every class as often; the "
            "directions of the classifier stay."
        )
        return mends(have, 14, reason)

    def controls(self) -> dict[str, Control]:
        """As many updates of the old classifier, on batches as the images are."""
        return further(self.source, self.recipe)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network."""
        trunk = Trunk.of(self, data)
        W, b = trunk.layer.weight.detach().cpu(), trunk.bias().cpu()
        logits, held = (replace(rows, x=rows.x @ W.T + b) for rows in trunk.rows(run, "train", "validation"))
        recipe = replace(self.recipe, weight_decay=0.0, decayed="all")
        scales = run.plain(trained(run, Scales(len(W)), logits, held, recipe))
        assert isinstance(scales, Scales)
        s = scales.s.detach()
        return trunk.ended(run, trunk.head(s[:, None] * W, s * b))
