"""The channels of a network by number: which belong together, which layers read and make them.

:func:`~upcycle.surgery.following.follow_channels` finds them. Two channels with one id stay or go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer.

    Args:
        name: of the module.
        inputs: int64 (i,), the id of each input channel (feature, behind a flatten).
        outputs: int64 (o,), the id of each output channel.
        groups: of a convolution; the channels of one group share an id unless there is one group only.
    """

    name: str
    inputs: Int[Tensor, " i"]
    outputs: Int[Tensor, " o"]
    groups: int = 1


class Step(NamedTuple):
    """One operation of a forward.

    Args:
        what: operation or module with its settings, in words, without widths.
        reads: its arguments; other steps by number.
        module: name of the module, or "".
    """

    what: str
    reads: str
    module: str


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a network, by ids from 0 to n - 1; two with one id stay or go together.

    Args:
        n: how many there are.
        layers: convolutions and linear layers in the order in which they run.
        passes: BatchNorms, PReLUs and weightless shortcuts: the ids of the channels that come in and go out.
        image: int64 (c,), of the image's channels; they always stay.
        logits: int64 (k,), of the outputs, all different.
        steps: the forward as a list, for comparing networks whatever their widths.
        fixed: int64 (f,), of channels that the forward counts by numbers of its own, such as a slice with a fixed end;
            they always stay.
    """

    n: int
    layers: tuple[Layer, ...]
    passes: dict[str, tuple[Tensor, Tensor]]
    image: Int[Tensor, " c"]
    logits: Int[Tensor, " k"]
    steps: tuple[Step, ...]
    fixed: Int[Tensor, " f"]

    def reads_image(self, layer: Layer) -> bool:
        """Whether a layer sees the image itself."""
        return bool(torch.isin(layer.inputs, self.image).all())

    def makes_logits(self, layer: Layer) -> bool:
        """Whether a layer's outputs are the network's."""
        return torch.equal(layer.outputs, self.logits)
