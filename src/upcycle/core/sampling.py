"""Samplers: how often an epoch shows the samples of each class, where some classes have far more than others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from upcycle.core.errors import unknown

_SHARES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "class": lambda n, t: torch.ones_like(n),
    "sqrt": lambda n, t: n.sqrt(),
    "progressive": lambda n, t: (1 - t) * n / n.sum() + t / len(n),
}


def probabilities(counts: Int[Tensor, " k"], sampler: str, progress: float) -> Float[Tensor, " k"]:
    """p_j, the probability that the next sample is of class j; float64, sums to 1.

    With n_j samples of class j of N in k classes, and t from 0 to 1, p_j is proportional to 1 for ``class``, to
    sqrt(n_j) for ``sqrt``, and is (1 - t) n_j / N + t / k for ``progressive`` (Kang et al., arXiv:1910.09217).

    Args:
        counts: n_j, all positive.
        sampler: class, sqrt or progressive.
        progress: t, the share of the training that is done.

    Raises:
        UserError: no such sampler.
    """
    if sampler not in _SHARES:
        raise unknown("sampler", sampler, _SHARES)
    share = _SHARES[sampler](counts.double(), progress)
    return share / share.sum()


def order(labels: Int[Tensor, " n"], sampler: str, progress: float, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Positions of an epoch's samples, as many as there are, drawn with replacement.

    First a class is drawn by :func:`probabilities`, then one of its samples, all alike. Samples without a label (-1)
    are a class of their own.

    Departure: the authors' code shows four samples of a class in a row, and each before any comes again; here the draws
    are independent. Their t reaches 1 in the last epoch, ours is the share that is done before the epoch.

    Args:
        labels: the class of each sample, -1 where unknown.
        sampler: class, sqrt or progressive; ``instance`` is an ordinary permutation, and not drawn here.
        progress: see :func:`probabilities`.
        generator: on the CPU; one draw of n numbers of each kind.
    """
    _, own, counts = labels.unique(return_inverse=True, return_counts=True)
    n, first = len(labels), counts.cumsum(0) - counts
    drawn = torch.multinomial(probabilities(counts, sampler, progress), n, replacement=True, generator=generator)
    place = (torch.rand(n, dtype=torch.float64, generator=generator) * counts[drawn]).long()
    return own.argsort(stable=True)[first[drawn] + place]
