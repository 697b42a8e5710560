"""A classifier with a second head that predicts rotations, and whether its two losses agree."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.adaptation.test_time.losses import rotate, turn_loss
from upcycle.core.heads import classifier, linear
from upcycle.core.losses import ce_loss
from upcycle.core.models import Model


class JointNetwork(nn.Module):
    """A classifier taken apart into the encoder e_θ and the main head φ, and a rotation head ψ on the same features.

    Args:
        model: the classifier, which must end in a linear layer; its module is taken over, not copied, and
            :meth:`whole` gives it back.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.name = classifier(model)
        self.phi = linear(model.module, self.name)
        model.module.set_submodule(self.name, nn.Identity())
        self.encoder = model.module
        self.psi = nn.Linear(self.phi.in_features, 4).to(self.phi.weight.device, self.phi.weight.dtype)

    def parts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the classes (n, k), and of the four turns (n, 4)."""
        features = self.encoder(images)
        return self.phi(features), self.psi(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.phi(self.encoder(images))

    def turns(self, images: Tensor) -> Tensor:
        """Logits of the four turns (n, 4)."""
        return self.psi(self.encoder(images))

    def whole(self) -> nn.Module:
        """The classifier without ψ."""
        self.encoder.set_submodule(self.name, self.phi)
        return self.encoder


def gradient_alignment(joint: JointNetwork, x: Float[Tensor, "b c h w"], y: Int[Tensor, " b"]) -> tuple[float, float]:
    """Measure the mean over samples of cos(∇_θ L_main, ∇_θ L_ssl), in evaluation mode, and its standard error.

    Of one sample the error is 0. Below zero, a step on the self-supervised loss of a sample tends to make its main
    loss worse to first order (Sun et al.; ICML 2020; arXiv:1909.13231, theorem 1).
    """
    joint.eval()
    theta = [p for p in joint.encoder.parameters() if p.requires_grad]
    cosines = []
    for i in range(len(x)):
        z, turns = joint.parts(rotate(x[i : i + 1]))
        grads = (
            torch.autograd.grad(loss, theta, retain_graph=True, materialize_grads=True)
            for loss in (ce_loss(z[:1], y[i : i + 1]), turn_loss(turns))
        )
        main, ssl = (torch.cat([g.flatten() for g in found]) for found in grads)
        cosines.append(F.cosine_similarity(main, ssl, dim=0))
    c = torch.stack(cosines)
    return float(c.mean()), float(c.std(correction=min(1, len(c) - 1))) / math.sqrt(len(c))
