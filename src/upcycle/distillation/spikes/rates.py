"""Activations as rates of spikes: percentiles, targets, and how far a spiking network is from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from upcycle.core.undisturbed import undisturbed
from upcycle.zoo.spiking import Spiking

MOST = 1_000_000
"""Elements that a percentile is taken of; of more, so many are drawn."""


def percentile(a: Tensor, q: float, generator: torch.Generator | None = None) -> Float[Tensor, ""]:
    """The q-th percentile of all elements of a tensor, by the nearest rank: the ⌈q n / 100⌉-th smallest of n.

    Args:
        a: of any shape.
        q: above 0, at most 100.
        generator: on the CPU, draws :data:`MOST` elements, with replacement, where there are more; without one always
            the same.
    """
    flat = a.detach().flatten()
    if len(flat) > MOST:
        drawn = generator or torch.Generator().manual_seed(0)
        flat = flat[torch.randint(len(flat), (MOST,), generator=drawn).to(flat.device)]
    rank = math.ceil(round(q * len(flat) / 100, 6))  # 99.9 % of 1,000 is 999, and in floating point a little more
    return flat.kthvalue(max(rank, 1)).values


def target(a: Float[Tensor, " b *n"], P: Float[Tensor, ""]) -> Float[Tensor, " b *n"]:
    """A = clip(a / P, 0, 1): the rates that activations stand for; zeros where the whole layer is zero.

    Args:
        a: activations of a layer, none below 0.
        P: their percentile.
    """
    return (a / P.clamp_min(torch.finfo(a.dtype).tiny)).clamp(0, 1)


@torch.no_grad()
def distances(spikes: Sequence[Tensor], A: Sequence[Tensor]) -> list[float]:
    """mean |r - A| of each layer, r the mean of its spikes (T, b, ...) over all steps."""
    return [float((s.mean(0) - A_l).abs().mean()) for s, A_l in zip(spikes, A, strict=True)]


def firing(network: Spiking, images: Tensor) -> list[list[float]]:
    """The share of the neurons of each layer that fire at each step."""
    with undisturbed(network):
        _, spikes = network.simulate(images)
    return [[float(step.mean()) for step in s] for s in spikes]
