"""Layers that several networks of the zoo are made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Normalise each pixel of a map (b, c, h, w) over its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Leave out a residual branch (b, ...) for each sample of a batch with probability ``p``, in training.

    What stays is divided by 1 - p, so that its mean is that of the branch (stochastic depth, Huang et al.,
    arXiv:1603.09382).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0 or not self.training:
            return x
        kept = F.dropout(x.new_ones(x.shape[0]), self.p)
        return (x.transpose(0, -1) * kept).transpose(0, -1)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def drop_rates(highest: float, n: int) -> Iterator[float]:
    """Give n probabilities for :class:`DropPath` that grow linearly from 0."""
    return (highest * i / max(n - 1, 1) for i in range(n))
