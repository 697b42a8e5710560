"""Strip pooling and mixed pooling: context from means over whole rows and columns of a map.

Hou, Zhang, Cheng, Feng: Strip Pooling, Rethinking Spatial Pooling for Scene Parsing (arXiv:2003.13328), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.surgery.inserts.base import Block, How, Place, Start
from upcycle.surgery.inserts.gates import B0, constant, gate_of
from upcycle.surgery.signals import Signal


class StripPooling(nn.Module):
    """Multiply x by σ(1x1(ReLU(v + h))), where v are means over rows and h over columns, each filtered along itself.

    Figure 2 of the paper, which shows no ReLU between the sum and the 1x1 convolution; the authors' code has it.

    Args:
        channels: of x.
        gate: the class of the gate function.
    """

    def __init__(self, channels: int, gate: Any = nn.Sigmoid) -> None:
        super().__init__()
        self.vertical = _filter(channels, channels, (3, 1))
        self.horizontal = _filter(channels, channels, (1, 3))
        self.last = nn.Conv2d(channels, channels, 1)
        self.gate = gate()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Give x times its gate."""
        v = self.vertical(x.mean(3, keepdim=True))
        h = self.horizontal(x.mean(2, keepdim=True))
        return x * self.gate(self.last(F.relu(v + h)))


class MixedPooling(nn.Module):
    """Add to x what pools of two grids and of strips see: the mixed pooling module (figure 3b of the paper).

    Departures: the grids are a third and a fifth of the map's sides, which are the published 20 and 12 on the authors'
    maps of 60 x 60 and stay grids on smaller ones; and the pool of a strip is spread by adding, which is what bilinear
    upsampling of one row or column gives.

    Args:
        channels: of x; the pools work on a quarter of them.
        size: (h, w) of the map that the grids are made for; maps of any size are taken.
        relu: close by a ReLU, as published.
    """

    def __init__(self, channels: int, size: tuple[int, int], relu: bool = True) -> None:
        super().__init__()
        c = max(channels // 4, 1)
        self.grids = [(max(round(size[0] / n), 1), max(round(size[1] / n), 1)) for n in (3, 5)]
        self.short = nn.Sequential(_filter(channels, c, (1, 1)), nn.ReLU())
        self.long = nn.Sequential(_filter(channels, c, (1, 1)), nn.ReLU())
        self.near = _filter(c, c, (3, 3))
        self.pools = nn.ModuleList(_filter(c, c, (3, 3)) for _ in self.grids)
        self.horizontal = _filter(c, c, (1, 3))
        self.vertical = _filter(c, c, (3, 1))
        self.merge_short = nn.Sequential(_filter(c, c, (3, 3)), nn.ReLU())
        self.merge_long = nn.Sequential(_filter(c, c, (3, 3)), nn.ReLU())
        self.last = _filter(2 * c, channels, (1, 1))
        self.relu: nn.Module = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Give ReLU(x + what is pooled)."""
        near, far = self.short(x), self.long(x)
        total = self.near(near)
        for grid, pool in zip(self.grids, self.pools, strict=True):
            pooled = pool(F.adaptive_avg_pool2d(near, grid))
            total = total + F.interpolate(pooled, size=x.shape[2:], mode="bilinear", align_corners=True)
        strips = self.horizontal(far.mean(2, keepdim=True)) + self.vertical(far.mean(3, keepdim=True))
        both = torch.cat([self.merge_short(F.relu(total)), self.merge_long(F.relu(strips))], dim=1)
        return self.relu(x + self.last(both))


def _filter(inputs: int, outputs: int, size: tuple[int, int]) -> nn.Sequential:
    padding = (size[0] // 2, size[1] // 2)
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, padding=padding, bias=False), nn.BatchNorm2d(outputs))


def spm(place: Place, how: How, start: Start, *, b0: float = B0) -> nn.Module:
    """Gate every value by means over its row and its column: strip pooling.

    Args:
        b0: the bias at which the gate starts.
    """
    made = StripPooling(place.takes.channels, gate_of(start, b0))
    if start == "same":
        constant(made.last, b0)
    return made


def mpm(place: Place, how: How, start: Start) -> nn.Module:
    """Add pools of grids and strips: mixed pooling.

    A start at the network's own function is without the closing ReLU, and what is added begins with scales of 0.

    Raises:
        UserError: fewer than 4 channels, of which there is no quarter.
    """
    signal = place.takes
    require(signal.channels >= 4, f"mpm needs maps of 4 channels or more, and {place.name} has {signal.channels}.")
    made = MixedPooling(signal.channels, signal.size, relu=start == "fresh")
    if start == "same":
        constant(made.last[1], 0.0)
    return made


def _spm_parameters(s: Signal, b0: float = B0) -> int:
    return 7 * s.channels**2 + 5 * s.channels


def _spm_macs(s: Signal, b0: float = B0) -> int:
    h, w = s.size
    return s.channels**2 * (3 * h + 3 * w + h * w)


def _mpm_parameters(s: Signal) -> int:
    c, narrow = s.channels, s.channels // 4
    return 4 * c * narrow + (5 * 9 + 2 * 3) * narrow**2 + 2 * 9 * narrow + 2 * c


def _mpm_macs(s: Signal) -> int:
    (h, w), c, narrow = s.size, s.channels, s.channels // 4
    grids = sum(max(round(h / n), 1) * max(round(w / n), 1) for n in (3, 5))
    return 4 * c * narrow * h * w + narrow**2 * (9 * (3 * h * w + grids) + 3 * (h + w))


STRIPS = (
    Block(
        name="spm",
        summary="gates every value by means over its row and its column (strip pooling)",
        paper="Hou, Zhang, Cheng, Feng; arXiv:2003.13328",
        kinds=("map",),
        how="gate",
        others=("replace",),
        make=spm,
        exact=("gate",),
        parameters=_spm_parameters,
        macs=_spm_macs,
    ),
    Block(
        name="mpm",
        summary="adds means over grids and strips (mixed pooling)",
        paper="Hou, Zhang, Cheng, Feng; arXiv:2003.13328",
        kinds=("map",),
        how="after",
        others=("before",),
        make=mpm,
        exact=("after", "before"),
        parameters=_mpm_parameters,
        macs=_mpm_macs,
    ),
)
