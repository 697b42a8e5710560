"""Layers that put a block before, behind or in place of a module; torch.fx traces all of them.

So their forwards are typed for tensors and for what torch.fx traces with. Whatever a network hands to a module beside
its first argument reaches the module, and not the block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from upcycle.surgery.inserts.base import How, Kind
from upcycle.surgery.signals import Signal


class Before(nn.Module):
    """A block in front of a module: module(block(x))."""

    def __init__(self, module: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.module, self.block = module, block

    def forward(self, x: Any, *more: Any, **named: Any) -> Any:
        return self.module(self.block(x), *more, **named)


class After(nn.Module):
    """A block behind a module: block(module(x))."""

    def __init__(self, module: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.module, self.block = module, block

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.block(self.module(*given, **named))


class Instead(nn.Module):
    """A block in place of a module."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Any, *more: Any, **named: Any) -> Any:
        return self.block(x)


class AsMap(nn.Module):
    """A block of maps (b, c, h, w) at work on tokens (b, e + h w, c) or on a grid (b, h, w, c).

    Args:
        block: takes and gives maps, perhaps of other channels or another size.
        signal: tokens, whose first e are kept aside and put back, or grid.
    """

    def __init__(self, block: nn.Module, signal: Signal) -> None:
        super().__init__()
        self.block, self.signal = block, signal

    def forward(self, x: Any) -> Any:
        if self.signal.layout == "grid":
            return self.block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        extra = self.signal.extra
        patches = x[:, extra:].transpose(1, 2).unflatten(2, self.signal.size)
        y = self.block(patches).flatten(2).transpose(1, 2)
        return torch.cat([x[:, :extra], y], dim=1) if extra else y

    def extra_repr(self) -> str:
        return f"{self.signal.layout}, size={self.signal.size}, extra={self.signal.extra}"


class AsTokens(nn.Module):
    """A block of tokens (b, h w, c) at work on a grid (b, h, w, c)."""

    def __init__(self, block: nn.Module, signal: Signal) -> None:
        super().__init__()
        self.block, self.signal = block, signal

    def forward(self, x: Any) -> Any:
        return self.block(x.flatten(1, 2)).unflatten(1, self.signal.size)


def wrapped(module: nn.Module, block: nn.Module, how: How, kind: Kind, signal: Signal) -> nn.Module:
    """The module that stands at a place with a block in it.

    Args:
        module: that stood there.
        block: as its ``make`` gave it.
        how: where the block is put.
        kind: of the signal as the block is given it.
        signal: that the network has there, before the block.
    """
    inner = block
    if kind == "square":
        inner = AsMap(block, signal)
    elif kind == "tokens" and signal.layout == "grid":
        inner = AsTokens(block, signal)
    if how == "replace":
        return Instead(inner)
    return Before(module, inner) if how == "before" else After(module, inner)
