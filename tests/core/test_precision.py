"""The number format in which a run's networks compute."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.precision import autocast, double


class Beside(nn.Module):
    """Takes a network and a tensor, or something else."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.seen: list[torch.dtype] = []

    def forward(self, first: Any, x: Any = None) -> Tensor:
        x = x if isinstance(first, nn.Module) else first
        z: Tensor = self.last(x if isinstance(x, Tensor) else x["x"])
        self.seen.append(z.dtype)
        return z


def test_auto_is_mixed_wherever_a_tensor_goes_in() -> None:
    net, x = Beside(), torch.randn(3, 4)
    net.forward = MethodType(autocast("cpu", tensors=True), net)  # type: ignore[method-assign]
    answers = [net(x), net(nn.Identity(), x), net({"x": x})]
    assert net.seen == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert all(z.dtype == torch.float32 for z in answers)


def test_float64_reaches_inputs_and_no_network_beside_them() -> None:
    net, other = Beside().double(), nn.Linear(4, 4)
    net.forward = MethodType(double, net)  # type: ignore[method-assign]
    assert net(other, torch.randn(3, 4)).dtype == torch.float64
    assert other.weight.dtype == torch.float32
