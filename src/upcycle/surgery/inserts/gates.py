"""Gates, which multiply each value of a map by one between 0 and 1: coordinate attention, SE and others of timm.

Published gates start near 1/2, or 1/4 where two are multiplied, which shrinks every branch of a trained network. Here
the last layer of a gate starts with weight 0 and bias b0, so that it gives σ(b0) everywhere, and the gate is divided by
that number: the network starts at its own function for every b0 (our addition). The slope of σ is 0.0099 at b0 = 4.6
and 0.25 at 0, so b0 trades how far a gate can open above 1 against how fast it learns. A gate whose last layer has no
bias starts at σ(0) = 1/2, and one with a hard sigmoid too, since that is flat from 3 on.

Not here, of the names that ``timm.layers.create_attn`` knows: gca, nl and bat add and do not multiply; sk, splat,
lambda, bottleneck and halo stand for a convolution; ecam, ceca, lcbam, scoord and strip are variants without a paper;
ela has an activation behind its normalisation that its paper does not have; ge cannot be built in timm 1.0.31.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.surgery.inserts.base import Block, How, Place, Start
from upcycle.surgery.signals import Signal
from upcycle.zoo.from_timm import gate_class
from upcycle.zoo.mobilenetv2 import coordinate_attention

B0 = 4.6
"""σ(4.6) = 0.99."""


class Scaled(nn.Module):
    """A gate function over its value at b0, so that it gives 1 there.

    Args:
        b0: the number at which it gives 1.
        gate: the function, such as ``torch.sigmoid``.
    """

    def __init__(self, b0: float, gate: Any = torch.sigmoid) -> None:
        super().__init__()
        self.gate = gate
        # Of the bias as float32 has it, and in float64, so that a start is exact in both.
        self.one = gate(torch.tensor(b0, dtype=torch.float32).double()).item()

    def forward(self, t: Any) -> Any:  # a tensor, or what torch.fx traces with
        return self.gate(t) / self.one


def gate_of(start: Start, b0: float) -> Any:
    """Give the class of the gate function: the sigmoid, or σ(t) / σ(b0) for a start at the network's own function.

    Raises:
        UserError: a b0 at which a sigmoid in float32 hardly moves.
    """
    require(abs(b0) <= 10, f"b0 must lie between -10 and 10, where a sigmoid still moves, and it is {b0}.")
    return functools.partial(Scaled, b0) if start == "same" else nn.Sigmoid


@torch.no_grad()
def constant(last: nn.Module, value: float) -> None:
    """Let a layer give ``value`` for whatever it takes: weight 0, and ``value`` as its bias where it has one.

    Raises:
        ValueError: it has no bias, and ``value`` is not 0.
    """
    assert isinstance(last.weight, Tensor)
    last.weight.zero_()
    if isinstance(last.bias, Tensor):
        last.bias.fill_(value)
    elif value:
        raise ValueError(f"{type(last).__name__} has no bias that could be {value}")


def hidden(channels: int, r: int) -> int:
    """The width of the narrow layer, m = max(8, C div r).

    Raises:
        UserError: an r below 1.
    """
    require(r >= 1, f"r must be at least 1, and it is {r}.")
    return max(8, channels // r)


def coord(place: Place, how: How, start: Start, *, r: int = 32, b0: float = B0) -> nn.Module:
    """Coordinate attention: x times a gate along the height and one along the width.

    Hou, Zhou, Feng (arXiv:2103.02907), equations 4 to 8. It is timm's ``CoordAttn`` with the hidden width and the
    biases of the paper, which are not timm's defaults.

    Args:
        r: channels over hidden width, which is at least 8.
        b0: the bias at which both gates start.
    """
    c = place.takes.channels
    made = coordinate_attention(c, hidden(c, r), gate_of(start, b0))
    if start == "same":
        constant(made.get_submodule("conv_h"), b0)
        constant(made.get_submodule("conv_w"), b0)
    return made


def se(place: Place, how: How, start: Start, *, r: int = 16, b0: float = B0) -> nn.Module:
    """Squeeze and excitation: x times a gate for each channel, from the means of all (Hu et al., arXiv:1709.01507).

    Args:
        r: channels over hidden width, which is at least 8.
        b0: the bias at which the gate starts.
    """
    c = place.takes.channels
    made: nn.Module = gate_class("se")(c, rd_channels=hidden(c, r), gate_layer=gate_of(start, b0))
    if start == "same":
        constant(made.get_submodule("fc2"), b0)
    return made


def ese(place: Place, how: How, start: Start) -> nn.Module:
    """Effective squeeze and excitation: SE with one full layer and a hard sigmoid (Lee, Park, arXiv:1911.06667)."""
    function: Any = functools.partial(Scaled, 0.0, nn.functional.hardsigmoid) if start == "same" else nn.Hardsigmoid
    made: nn.Module = gate_class("ese")(place.takes.channels, gate_layer=function)
    if start == "same":
        constant(made.get_submodule("fc"), 0.0)
    return made


def eca(place: Place, how: How, start: Start) -> nn.Module:
    """Efficient channel attention: SE with a convolution over neighbouring channels (Wang et al., arXiv:1910.03151)."""
    made: nn.Module = gate_class("eca")(place.takes.channels, gate_layer=gate_of(start, 0.0))
    if start == "same":
        constant(made.get_submodule("conv"), 0.0)
    return made


def cbam(place: Place, how: How, start: Start, *, r: int = 16) -> nn.Module:
    """Gate channels from their means and maxima, then places likewise: CBAM (Woo et al., arXiv:1807.06521).

    timm's layers of the first gate have no biases; the authors' have.

    Args:
        r: channels over hidden width, which is at least 8.
    """
    c = place.takes.channels
    made: nn.Module = gate_class("cbam")(c, rd_channels=hidden(c, r), gate_layer=gate_of(start, 0.0))
    if start == "same":
        constant(made.get_submodule("channel.fc2"), 0.0)
        constant(made.get_submodule("spatial.conv.bn"), 0.0)
    return made


def gc(place: Place, how: How, start: Start, *, r: int = 8, b0: float = B0) -> nn.Module:
    """Global context: SE whose mean is weighted by attention over places (Cao et al., arXiv:1904.11492).

    The paper adds what comes out; this is timm's form that multiplies.

    Args:
        r: channels over hidden width, which is at least 8.
        b0: the bias at which the gate starts.
    """
    c = place.takes.channels
    made: nn.Module = gate_class("gc")(c, rd_channels=hidden(c, r), gate_layer=gate_of(start, b0))
    if start == "same":
        constant(made.get_submodule("mlp_scale.fc2"), b0)
    return made


def eca_kernel(channels: int) -> int:
    """The odd kernel of ECA, |(log2 C + 1) / 2| rounded as the authors do, at least 3."""
    t = int(abs(math.log2(channels) + 1) / 2)
    return max(t if t % 2 else t + 1, 3)


def _places(s: Signal) -> int:
    return s.size[0] * s.size[1]


def _coord_parameters(s: Signal, r: int = 32, b0: float = B0) -> int:
    c, m = s.channels, hidden(s.channels, r)
    return c * m + m + 2 * m + 2 * (m * c + c)


def _coord_macs(s: Signal, r: int = 32, b0: float = B0) -> int:
    return 2 * sum(s.size) * s.channels * hidden(s.channels, r)


def _se_parameters(s: Signal, r: int = 16, b0: float = B0) -> int:
    c, m = s.channels, hidden(s.channels, r)
    return 2 * c * m + m + c


def _se_macs(s: Signal, r: int = 16, b0: float = B0) -> int:
    return 2 * s.channels * hidden(s.channels, r)


def _cbam_parameters(s: Signal, r: int = 16) -> int:
    return 2 * s.channels * hidden(s.channels, r) + 2 * 7 * 7 + 2


def _cbam_macs(s: Signal, r: int = 16) -> int:
    return 4 * s.channels * hidden(s.channels, r) + 2 * 7 * 7 * _places(s)


def _gc_parameters(s: Signal, r: int = 8, b0: float = B0) -> int:
    c, m = s.channels, hidden(s.channels, r)
    return c + 1 + 2 * c * m + m + 2 * m + c


def _gc_macs(s: Signal, r: int = 8, b0: float = B0) -> int:
    return 2 * s.channels * _places(s) + 2 * s.channels * hidden(s.channels, r)


def _gate(name: str, summary: str, paper: str, make: Any, parameters: Any, macs: Any) -> Block:
    return Block(
        name=name,
        summary=summary,
        paper=paper,
        kinds=("map",),
        how="gate",
        others=("replace",),
        make=make,
        exact=("gate",),
        parameters=parameters,
        macs=macs,
    )


GATES = (
    _gate(
        "coord",
        "gates rows and columns of each channel (coordinate attention)",
        "Hou, Zhou, Feng; arXiv:2103.02907",
        coord,
        _coord_parameters,
        _coord_macs,
    ),
    _gate(
        "se",
        "gates channels by the means of all (squeeze and excitation)",
        "Hu, Shen, Albanie, Sun, Wu; arXiv:1709.01507",
        se,
        _se_parameters,
        _se_macs,
    ),
    _gate(
        "ese",
        "gates channels by one full layer of their means (effective squeeze and excitation)",
        "Lee, Park; arXiv:1911.06667",
        ese,
        lambda s: s.channels * s.channels + s.channels,
        lambda s: s.channels * s.channels,
    ),
    _gate(
        "eca",
        "gates channels by the means of their neighbours (efficient channel attention)",
        "Wang, Wu, Zhu, Li, Zuo, Hu; arXiv:1910.03151",
        eca,
        lambda s: eca_kernel(s.channels),
        lambda s: s.channels * eca_kernel(s.channels),
    ),
    _gate(
        "cbam",
        "gates channels and then places by means and maxima (CBAM)",
        "Woo, Park, Lee, Kweon; arXiv:1807.06521",
        cbam,
        _cbam_parameters,
        _cbam_macs,
    ),
    _gate(
        "gc",
        "gates channels by means over the places that it attends to (global context)",
        "Cao, Xu, Lin, Wei, Hu; arXiv:1904.11492",
        gc,
        _gc_parameters,
        _gc_macs,
    ),
)
