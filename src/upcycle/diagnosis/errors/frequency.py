"""Whether a classifier recognises its classes by how many training samples they had."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from upcycle.core.errors import UserError
from upcycle.core.heads import classifier, linear
from upcycle.core.models import Model

LEAST = 4
"""Classes that a correlation is taken of; of three it is 1 by chance in one case of six."""
FOLLOWS = 0.6
"""A rank correlation above which recall is said to follow the number of training samples."""


@dataclass(frozen=True)
class Following:
    """How recall and classifier go with the number n_j of training samples of a class; ``None``: it cannot be told.

    Args:
        recall: Spearman's correlation rho of recall and n_j.
        norms: Pearson's correlation r of ||w_j||, the norms of the classifier's rows, and log n_j.
    """

    recall: float | None
    norms: float | None

    @property
    def follows(self) -> bool:
        """Whether recall follows the number of training samples."""
        return self.recall is not None and self.recall > FOLLOWS


def following(model: Model, per_class: Sequence[float | None], counts: Sequence[int]) -> Following:
    """Look whether recall, and the norms of the classifier, go with the number of training samples.

    Joint training on imbalanced data makes both do so (Kang et al., arXiv:1910.09217, section 4.2). Classes without
    training or test samples are left out. Norms of a network that does not end in one linear layer have no figure.

    Args:
        model: a classifier; it stays as it is.
        per_class: recall of each of its classes, ``None`` for one without test samples.
        counts: n_j of each of its classes.
    """
    pairs = [(float(n), r) for n, r in zip(counts, per_class, strict=True) if n and r is not None]
    rho = spearman([n for n, _ in pairs], [r for _, r in pairs])
    try:
        weight = linear(model.module, classifier(model)).weight
    except UserError:
        return Following(rho, None)
    norms = weight.detach().double().flatten(1).norm(dim=1).tolist()
    known = [(math.log(n), norm) for n, norm in zip(counts, norms, strict=True) if n]
    return Following(rho, pearson([n for n, _ in known], [norm for _, norm in known]))


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The linear correlation of two figures of each class; ``None`` of too few (:data:`LEAST`) or of a constant one."""
    if len(x) < LEAST or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return statistics.correlation(x, y)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The correlation of ranks, equal values sharing the mean of theirs; ``None`` as for :func:`pearson`."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) + 1) / 2 for v in values]
