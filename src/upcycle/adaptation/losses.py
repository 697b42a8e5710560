"""The losses that several methods of adaptation share. Logits z are (n, k), targets p rows of probabilities (n, k)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPS = 1e-5
"""Inside the logarithm of entropies, as in the code of SHOT and DINE."""


def entropy(p: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    """H(p) of each row, in nats."""
    return -(p * (p + EPS).log()).sum(-1)


def information(z: Float[Tensor, "n k"], *, diversity: bool = True) -> Float[Tensor, ""]:
    """mean_i H(q_i) - H(mean_i q_i) with q = softmax(z): the negative mutual information of input and class.

    Small where every answer is certain and all classes occur (Liang, Hu, Feng; ICML 2020, eq. 3).

    Args:
        diversity: with the second term, which is wrong where classes are missing.
    """
    q = z.softmax(1)
    loss = entropy(q).mean()
    return loss - entropy(q.mean(0)) if diversity else loss


def divergence(p: Float[Tensor, "n k"], z: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """mean over rows of KL(p ‖ softmax(z)); no gradient to p is asked for."""
    return F.kl_div(z.log_softmax(1), p, reduction="batchmean")


def mixed(x: Float[Tensor, "n ..."], order: Tensor, lam: float) -> Tensor:
    """λ x + (1 - λ) x[order]: MixUp of inputs or of targets (Zhang et al., ICLR 2018).

    Args:
        order: a permutation of the n samples.
        lam: λ in [0, 1].
    """
    return lam * x + (1 - lam) * x[order]


def beta(a: float, generator: torch.Generator) -> float:
    """A draw from Beta(a, a), by two Gamma draws as Jöhnk (1964) has it: exact, and from one given generator."""
    while True:
        u, v = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        x, y = u ** (1 / a), v ** (1 / a)
        if 0 < x + y <= 1:
            return x / (x + y)
