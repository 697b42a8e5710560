"""A linear classifier on features, fitted at once: what frozen features are worth, as a figure and as a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.core.heads import classifier, features, linear
from upcycle.core.models import Model
from upcycle.core.seeds import uniform

if TYPE_CHECKING:
    from upcycle.core.run import Run
    from upcycle.data.images import Images, ImageSplit

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties λ that a probe chooses from."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A linear classifier on features: logits x W' + b.

    Args:
        weight: float64 (k, d); b is ``bias`` (k,).
        strength: the penalty λ that was chosen.
        validation: its accuracy on the validation features; ``None`` where there were none.
    """

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]
    strength: float
    validation: float | None

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits, float64. Classes that the probe saw no image of have the lowest."""
        return x.double() @ self.weight.T + self.bias

    def accuracy(self, x: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> float:
        """The share of features that are put into their class."""
        return float((self(x).argmax(1) == y).double().mean())


UNSEEN = -1e4
"""The logit of a class that no image of was seen."""


def linear_probe(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    classes: int,
    validation: tuple[Float[Tensor, "m d"], Int[Tensor, " m"]] | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """Logistic regression, mean cross-entropy + λ/2 |W|² on standardised features, with the best λ on ``validation``.

    The first of equally good ones, from the strongest on; without validation images the one in the middle.

    Args:
        x: features to learn from.
        y: their classes.
        classes: k, the number of all classes.
        validation: features and classes to choose λ on.
        strengths: penalties λ to choose from.

    Raises:
        UserError: images of fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    seen = y.unique()
    require(len(seen) > 1, "A linear probe needs labelled images of at least two classes.")
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    std = torch.where(std > 1e-9 * x.abs().amax().double(), std, 1.0)
    standardised = ((x.double() - mean) / std).numpy()

    def fitted(strength: float) -> Probe:
        model = LogisticRegression(C=1 / (strength * len(x)), max_iter=300, tol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that is nearly there serves as well
            model.fit(standardised, y.numpy())
        rows, offsets = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(seen) == 2:  # scikit-learn gives one row, the second class against the first
            rows, offsets = torch.cat([-rows, rows]) / 2, torch.cat([-offsets, offsets]) / 2
        weight = torch.zeros(classes, x.shape[1], dtype=torch.float64)
        bias = torch.full((classes,), UNSEEN, dtype=torch.float64)
        weight[seen] = rows / std
        bias[seen] = offsets - weight[seen] @ mean
        made = Probe(weight=weight, bias=bias, strength=strength, validation=None)
        if validation is None:
            return made
        return Probe(weight=weight, bias=bias, strength=strength, validation=made.accuracy(*validation))

    ordered = sorted(strengths, reverse=True)
    if validation is None:
        return fitted(ordered[len(ordered) // 2])
    return max((fitted(s) for s in ordered), key=lambda probe: probe.validation or 0.0)


class Probed(NamedTuple):
    """A linear probe in the place of a network's classifier.

    Args:
        head: the layer that takes its place.
        split: whose labels it was fitted to: train, or validation.
        labels: how many these were.
    """

    head: nn.Linear
    split: str
    labels: int


def probe_of(run: Run, model: Model, data: Images, most: int = 10_000) -> Probed | None:
    """Fit a linear probe to what the classifier of a network is given, for the classes of the data.

    On labelled training images, with the penalty that the labelled validation images choose; where no two classes of
    training images are labelled on those of validation, whose figures say nothing then. Images are taken without
    augmentation. All processes get the same.

    Args:
        run: that the features are computed in.
        model: ends in one linear layer; it stays as it is.
        data: normalised as the network expects.
        most: labelled images of each split that are looked at.

    Returns:
        ``None`` where neither has two classes with labels.

    Raises:
        UserError: see :func:`upcycle.core.heads.features`.
    """
    splits = {name: _labelled(getattr(data, name), most) for name in ("train", "validation")}
    usable = [name for name, split in splits.items() if len(split.labels.unique()) > 1]
    if not usable:
        return None
    name, beside = usable[0], [splits[other] for other in usable[1:]]
    x, *others = features(run, model, splits[name], *beside)
    chosen = (others[0], beside[0].labels) if others else None
    found = linear_probe(x, splits[name].labels, len(data.classes), chosen)
    head = nn.Linear(x.shape[1], len(data.classes)).to(linear(model.module, classifier(model)).weight)
    head.load_state_dict({"weight": found.weight, "bias": found.bias})
    return Probed(head, name, len(splits[name]))


def _labelled(split: ImageSplit, most: int) -> ImageSplit:
    """At most so many labelled images of a split, always the same, without augmentation."""
    known = (split.labels >= 0).nonzero()[:, 0]
    order = uniform(0, 0, split.ids[known], "probe")[:, 0].argsort(stable=True)
    return replace(split.subset(known[order[:most]]), augment=())
