"""Orders in which samples are drawn, by their class."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def order(labels: Int[Tensor, " n"], sampler: str, progress: float, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draw the samples of one pass, with replacement: as many as there are.

    Args:
        labels: class of each sample, on the CPU; -1, unknown, is a class of its own.
        sampler: "class", "sqrt" or "progressive", see :class:`upcycle.core.recipe.Recipe`.
        progress: the share of training that was done when the epoch began, from 0 to below 1.
        generator: the same on every process and after a resume.

    Returns:
        positions of samples.
    """
    raise NotImplementedError("samplers are not there yet")
