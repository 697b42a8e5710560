"""Networks for digits whose middle is a residual block, an ODE, or an ODE that comes to rest.

Yan, Du, Tan, Feng, "On Robustness of Neural Ordinary Differential Equations" (ICLR 2020, arXiv:1910.05513), the part
about MNIST. Grey images in [0, 1], without further normalisation. Facts that the paper leaves open (widths, the place
of the time among the channels, padding) are those of the published networks (github.com/HanshuYAN/TisODE).

Departure: with fewer than 32 channels GroupNorm has as many groups as channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.euler import euler, euler_to_rest
from upcycle.zoo import keys

Kind = Literal["cnn", "odenet", "tisode"]
KINDS: tuple[Kind, ...] = ("cnn", "odenet", "tisode")
STEP = {"odenet": 0.1, "tisode": 0.05}
"""h of the published networks."""
WINDOW = (0.9, 1.5)
"""T1 and T2 of the steady-state term in the published training log."""


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of as many as there are channels."""
    return nn.GroupNorm(min(32, channels), channels)


class TimedConv2d(nn.Conv2d):
    """A 3x3 convolution, with bias, of a map and of the time as one more channel, which is the first.

    The time is the same everywhere, so its part of the sum is t times a map that no sample changes: it is computed
    once a call, for one sample, and the map of (b, 1 + c, h, w) is never built.

    Args:
        channels: c, in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1 + channels, channels, 3, padding=1)

    def forward(self, x: Tensor, t: float = 0.0) -> Tensor:
        out = F.conv2d(x, self.weight[:, 1:], self.bias, padding=1)
        if t == 0:
            return out
        everywhere = torch.full_like(x[:1, :1], t)
        return out + F.conv2d(everywhere, self.weight[:, :1], padding=1)


class Field(nn.Module):
    """f(t, z) = ReLU(GN(conv2(ReLU(GN(conv1 z))))) on maps (b, c, h, w).

    Args:
        channels: c, a multiple of 32, or at most 32.
        timed: the time is a further channel of both convolutions, which then have a bias; else f is autonomous.
    """

    def __init__(self, channels: int, timed: bool) -> None:
        super().__init__()
        self.timed = timed
        self.conv1, self.conv2 = (
            TimedConv2d(channels) if timed else nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            for _ in range(2)
        )
        self.norm1, self.norm2 = group_norm(channels), group_norm(channels)

    def forward(self, t: float, z: Tensor) -> Tensor:
        time = (t,) if self.timed else ()
        z = F.relu(self.norm1(self.conv1(z, *time)))
        return F.relu(self.norm2(self.conv2(z, *time)))


class OdeNet(nn.Module):
    """Images (b, c, h, w) to logits (b, k): a stem, a middle that keeps the shape, a mean over places, a linear layer.

    Args:
        kind: cnn: z + f(z); odenet: z(1) of dz/dt = f(t, z); tisode: z(1) of dz/dt = f(z).
        num_classes: k.
        in_channels: c.
        channels: of the state; 64 as published.
        halvings: 4x4 convolutions of stride 2 in the stem; with one, as published, a 3x3 convolution stands before it.
        step: h; that of the published networks if not given.
        window: T1 and T2 of :meth:`forward_to_rest`.
    """

    published_names = keys.TISODE
    """The three published networks name their parts differently."""

    def __init__(
        self,
        kind: Kind,
        num_classes: int,
        in_channels: int = 1,
        channels: int = 64,
        halvings: int = 1,
        step: float | None = None,
        window: tuple[float, float] = WINDOW,
    ) -> None:
        super().__init__()
        self.kind, self.window = kind, window
        self.step = step or STEP.get(kind, 1.0)  # one step with h = T = 1 is the residual block
        first = [nn.Conv2d(in_channels, channels, 3)] if halvings == 1 else []
        inputs = channels if first else in_channels
        first += [nn.Conv2d(inputs if i == 0 else channels, channels, 4, stride=2, padding=1) for i in range(halvings)]
        self.stem = nn.Sequential(*(m for conv in first for m in (conv, group_norm(channels), nn.ReLU())))
        self.field = Field(channels, timed=kind == "odenet")
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        z = euler(self.field, self.stem(images), self.step)
        return self.linear(z.mean(dim=(2, 3)))

    def forward_to_rest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the steady-state term of :func:`~upcycle.core.euler.euler_to_rest`."""
        z, moved = euler_to_rest(self.field, self.stem(images), self.step, self.window)
        return self.linear(z.mean(dim=(2, 3))), moved
