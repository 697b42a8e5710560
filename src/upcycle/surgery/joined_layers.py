"""Layers without trained weights that a network needs once several were joined into it side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.zoo.resnet import PadShortcut


class Scatter(nn.Module):
    """A shortcut without weights that puts each input channel to its place and zeros elsewhere.

    What :class:`~upcycle.zoo.resnet.PadShortcut` becomes when networks are put together and its channels no longer
    lie in one run.

    Args:
        index: int64 (o,), for each output channel the input channel that it takes; ``inputs`` for zeros.
        inputs: how many channels come in.
        stride: distance of the pixels that are taken.
    """

    index: Tensor

    def __init__(self, index: Int[Tensor, " o"], inputs: int, stride: int) -> None:
        super().__init__()
        self.inputs, self.stride = inputs, stride
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, 1)).index_select(1, self.index)

    @classmethod
    def like(cls, shortcut: PadShortcut, inputs: int) -> Scatter:
        """The same map as ``shortcut`` computes from ``inputs`` channels."""
        index = torch.arange(-shortcut.before, inputs + shortcut.after)
        return cls(torch.where((index < 0) | (index >= inputs), inputs, index), inputs, shortcut.stride)


class Renormalise(nn.Module):
    """A layer that gives an image once for each of several networks that expect it normalised differently.

    (b, c, h, w) to (b, n c, h, w): copy j is ``x * scale[j] + shift[j]``. It stands in front of a first convolution,
    for folded into that it would be wrong at the border, where the padding is zero after normalisation.

    Args:
        scale: factors (n c, 1, 1), those of one copy after another.
        shift: summands (n c, 1, 1), likewise.
        copies: n.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Float[Tensor, "m 1 1"], shift: Float[Tensor, "m 1 1"], copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, self.copies, 1, 1) * self.scale + self.shift
