"""The division of a target into samples whose labels can be trusted and samples whose labels cannot."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from upcycle.core.errors import require


def easiness(losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Estimate w, how probably each label is right, from its losses under a network.

    Losses are scaled to [0, 1], a mixture of two Gaussians is fitted to them (at most 10 iterations, tolerance 1e-2,
    variances of at least 5e-4 more), and w is the posterior of the one with the smaller mean. Where all losses or both
    means are equal nothing tells labels apart, and all are easy.

    Raises:
        UserError: a loss that is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    require(bool(losses.isfinite().all()), "A loss of the target's images is not finite; lower lr.")
    low, high = losses.double().aminmax()
    if high - low < 1e-8:
        return torch.ones_like(losses)
    x = ((losses.double() - low) / (high - low)).cpu().numpy()[:, None]
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    with warnings.catch_warnings(), threadpool_limits(1):  # several threads would add up in any order
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(x)
    means = mixture.means_[:, 0]
    if abs(means[0] - means[1]) < 1e-6:
        return torch.ones_like(losses)
    return torch.from_numpy(mixture.predict_proba(x)[:, means.argmin()]).to(losses)


def split_easy_hard(w: Float[Tensor, " n"], tau: float) -> tuple[Int[Tensor, " e"], Int[Tensor, " h"]]:
    """Split the samples into easy ones (w >= τ) and hard ones; returns their positions."""
    easy: Bool[Tensor, " n"] = w >= tau
    return easy.nonzero()[:, 0], (~easy).nonzero()[:, 0]
