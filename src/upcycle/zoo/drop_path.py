"""Stochastic depth: Deep Networks with Stochastic Depth (Huang et al., arXiv:1603.09382)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DropPath(nn.Module):
    """Leave out a residual branch (b, ...) for each sample of a batch with probability ``p``, in training.

    What stays is divided by 1 - p, so that its mean is that of the branch.
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
