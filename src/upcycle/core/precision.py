"""The number format that a network trains in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.core.frozen import fast_bf16
from upcycle.core.outputs import mapped

Precision = Literal["auto", "32-true", "bf16-mixed", "64-true"]


def choose(precision: str, device: torch.device, kind: str = "images") -> str:
    """The number format of a run: what is asked for, or for ``auto`` bf16-mixed where flags say that it is fast.

    Args:
        kind: of the inputs; whatever is no image does not gain by bf16, or does not work in it.
    """
    if precision == "auto":
        return "bf16-mixed" if kind == "images" and fast_bf16(device) else "32-true"
    require(precision in ("32-true", "bf16-mixed", "64-true"),
            f"precision must be auto, 32-true, bf16-mixed or 64-true, not '{precision}'.")  # fmt: skip
    return precision


def autocast(device: str, tensors: bool = False) -> Callable[..., Any]:
    """A ``forward`` that runs the class's own in bf16 autocast and returns float32; survives deepcopy.

    Args:
        tensors: only where tensors go in.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        fit = not tensors or any(isinstance(a, Tensor) for a in args)
        with torch.autocast(device, torch.bfloat16, enabled=fit):
            output = type(self).forward(self, *args, **kwargs)
        return mapped(Tensor.float, output)

    forward.upcycle = True  # type: ignore[attr-defined]
    return forward


def double(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A ``forward`` that takes inputs of any float type in float64."""
    inputs = (a.double() if hasattr(a, "double") and not isinstance(a, nn.Module) else a for a in args)
    return type(self).forward(self, *inputs, **kwargs)


double.upcycle = True  # type: ignore[attr-defined]
