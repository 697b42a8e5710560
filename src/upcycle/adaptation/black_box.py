"""What a predictor said of each image, as targets to learn from: smoothing, and the memory that moves towards the
student."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from upcycle.core.errors import require


def adaptive_smoothing(
    classes: Int[Tensor, "n t"], probabilities: Float[Tensor, "n t"], k: int, r: int
) -> Float[Tensor, "n k"]:
    """AdaLS: the r largest probabilities stay, what remains is spread evenly over the other classes (DINE, eq. 2).

    Args:
        classes: of the t answers to each image, best first.
        probabilities: theirs; of all k classes they sum to 1.
        k: classes in all.
        r: how many stay; r >= t takes all that there are, r >= k changes nothing.

    Returns:
        rows that sum to 1.
    """
    require(r >= 1, f"r must be at least 1, not {r}.")
    r = min(r, classes.shape[1])
    top, kept = classes[:, :r], probabilities[:, :r]
    rest = (1 - kept.sum(1, keepdim=True)).clamp_min(0)
    if r == k:
        return torch.zeros(len(top), k, dtype=kept.dtype).scatter(1, top, kept)
    return (rest / (k - r)).expand(-1, k).scatter(1, top, kept)


def moved(memory: Float[Tensor, "n k"], q: Float[Tensor, "n k"], gamma: float) -> None:
    """P ← γ P + (1 - γ) q, in place (DINE, eq. 5)."""
    memory.mul_(gamma).add_(q, alpha=1 - gamma)


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
