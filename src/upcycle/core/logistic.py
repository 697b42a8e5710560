"""Logistic regression on the features of a network, and the linear probe that it is: what features are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.heads import classifier, features, linear
from upcycle.core.models import Model
from upcycle.core.optimizers import eager
from upcycle.core.patterns import Values

if TYPE_CHECKING:
    from upcycle.core.run import Run

LBFGS = eager(torch.optim.LBFGS)
STEPS = 200
"""The most steps of L-BFGS; a few dozen are usual."""
LEAST = 1e-6
"""The least standard deviation that a feature is divided by, over that of the largest."""


def logistic_regression(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], k: int
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """W and b that minimise Σ_i CE(W x_i + b, y_i) + ½ Σ (σ_j W_cj)², where σ_j is the standard deviation of feature j.

    So features count alike whatever their scale, as if they had been standardised before; the strength is the default
    of scikit-learn. In float64 by L-BFGS from zeros: nothing is drawn, and no learning rate has to be chosen.

    Args:
        x: features.
        y: classes, 0 to k - 1; some may be without samples.
        k: the number of classes.
    """
    x = x.double()
    mean, std = x.mean(0), x.std(0, correction=0)
    std = std.clamp_min(LEAST * float(std.max())) if bool(std.any()) else torch.ones_like(std)
    z = (x - mean) / std
    W, b = z.new_zeros(k, z.shape[1], requires_grad=True), z.new_zeros(k, requires_grad=True)
    found = LBFGS([W, b], max_iter=STEPS, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        found.zero_grad()
        value = F.cross_entropy(F.linear(z, W, b), y) + W.square().sum() / (2 * len(z))
        value.backward()
        return value

    with torch.enable_grad():
        found.step(loss)
    V = W.detach() / std
    return V, b.detach() - V @ mean


class Probe(NamedTuple):
    """A linear probe of a network, fitted in a run.

    Args:
        head: the linear layer that takes the place of the classifier.
        split: the split whose labels it was fitted to: train, or validation.
        labels: how many these were.
    """

    head: nn.Linear
    split: str
    labels: int


def linear_probe(run: Run, model: Model, data: Any) -> Probe | None:
    """Fit a linear classifier to what the classifier of a network is given, for the classes of the data.

    The labels are those of training samples, as far as they are known; where none is, those of validation samples,
    whose figures say nothing then. Samples are taken without augmentation. All processes get the same.

    Args:
        run: keeps the fit in its stage "probe".
        model: that ends in one linear layer; it stays as it is.
        data: a collection of images, normalised as the network expects.

    Returns:
        ``None`` where neither has a label.

    Raises:
        UserError: see :func:`upcycle.core.heads.features`.
    """
    for name in ("train", "validation"):
        split = getattr(data, name)
        known = (split.labels >= 0).nonzero()[:, 0] if len(split) else torch.arange(0)
        if len(known):
            break
    else:
        return None
    k, d = len(data.classes), linear(model.module, classifier(model)).in_features

    def fit() -> tuple[Tensor, Tensor]:
        (x,) = features(run, model, split.subset(known))
        return logistic_regression(x, split.labels[known], k)

    W, b = run.stage("probe", fit, (Values((k, d)), Values((k,))))
    head = nn.Linear(d, k)
    with torch.no_grad():
        head.weight.copy_(W)
        head.bias.copy_(b)
    return Probe(head, name, len(known))
