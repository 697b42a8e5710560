"""Gradient reversal with a coefficient from outside (Ganin, Lempitsky; ICML 2015; arXiv:1409.7495)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kappa: float) -> Tensor:
        ctx.kappa = kappa
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.kappa * grad, None


def grad_reverse(x: Tensor, kappa: float = 1.0) -> Tensor:
    """``x`` as it is, whose gradient comes back multiplied by -κ."""
    return _Reverse.apply(x, kappa)


def ramp(progress: float, gamma: float = 10.0) -> float:
    """κ = 2 / (1 + exp(-γ p)) - 1 after a share p of the training: from 0 to nearly 1."""
    return 2 / (1 + math.exp(-gamma * progress)) - 1
