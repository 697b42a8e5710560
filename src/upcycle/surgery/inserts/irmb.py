"""The inverted residual mobile block in place of an inverted residual: attention in windows before its expansion.

Zhang et al. (arXiv:2301.01146); see :mod:`upcycle.zoo.emo`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError, require
from upcycle.surgery.inserts.base import Block, How, Place, Start
from upcycle.surgery.signals import Signal
from upcycle.zoo.emo import IRMB

WINDOW = 7
"""Side of a window in the paper."""


def irmb(
    place: Place, how: How, start: Start, *, ratio: float = 4.0, kernel: int = 3, head: int = 0, window: int = 0
) -> nn.Module:
    """Make the block for a place, with the weights of the inverted residual that is there.

    The expansion and the depthwise convolution keep their weights and statistics, BatchNorms folded where the new block
    has none; the projection keeps its weights and scales, and loses its shift, for which the new block has no place.
    The queries start at 0, so that attention is the mean over a window, and the keys are drawn: with both at 0 neither
    would ever get a gradient. Squeeze-and-excitation of the old block is left out. All that is another function, so the
    block is regressed on the old one first.

    Args:
        ratio: expanded channels over those that come in, as in the old block.
        kernel: side of the depthwise convolution, as in the old block.
        head: channels of a head of the attention; 0 takes the most up to 32 that divide the channels.
        window: side of a window; 0 takes the most up to 7 that divides both sides of the map, or else 7.

    Raises:
        UserError: there is no inverted residual that keeps its shape, or it has another ratio or kernel.
    """
    c, name = place.takes.channels, place.name
    require(place.gives == place.takes, f"irmb stands for blocks that keep their shape, and '{name}' does not.")
    d = head or _head(c)
    require(d > 0 and c % d == 0, f"head must divide the {c} channels at '{name}', and it is {head}.")
    require(window >= 0, f"window must be 0 or more, and it is {window}.")
    old = _inverted(place)
    hidden = old.project.in_channels
    require(
        (int(c * ratio), kernel) == (hidden, old.depthwise.kernel_size[0]),
        f"The block at '{name}' expands {c} channels to {hidden}, with a kernel of {old.depthwise.kernel_size[0]}: "
        f"give irmb ratio {hidden / c:g} and kernel {old.depthwise.kernel_size[0]}, not {ratio:g} and {kernel}.",
    )
    made = IRMB(c, c, ratio, kernel, head=d, window=_window(place.takes, window))
    _keep(made, old)
    return made


@dataclass(frozen=True, eq=False)
class _Inverted:
    """The convolutions of an inverted residual, each with the BatchNorm behind it."""

    expand: nn.Conv2d
    expand_norm: nn.BatchNorm2d
    depthwise: nn.Conv2d
    depthwise_norm: nn.BatchNorm2d
    project: nn.Conv2d
    project_norm: nn.BatchNorm2d


def _inverted(place: Place) -> _Inverted:
    """Find the parts of an inverted residual, whatever library it is of.

    Raises:
        UserError: it is none.
    """
    layers = [m for m in place.module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    pairs = [
        (a, b)
        for a, b in itertools.pairwise(layers)
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d) and a.out_channels == b.num_features
    ]
    convolutions = [a for a, _ in pairs]
    c = place.takes.channels
    fits = len(pairs) == 3 and [a.groups for a in convolutions] == [1, convolutions[0].out_channels, 1]
    fits = fits and convolutions[0].kernel_size == convolutions[2].kernel_size == (1, 1)
    fits = fits and convolutions[0].in_channels == convolutions[2].out_channels == c
    if not fits or any(b.running_mean is None for _, b in pairs):
        raise UserError(
            f"irmb stands for an inverted residual, a 1x1, a depthwise and a 1x1 convolution with BatchNorms, and "
            f"'{place.name}' is none."
        )
    (expand, expand_norm), (depthwise, depthwise_norm), (project, project_norm) = pairs
    return _Inverted(expand, expand_norm, depthwise, depthwise_norm, project, project_norm)


@torch.no_grad()
def _keep(made: IRMB, old: _Inverted) -> None:
    """Give a new block the weights of an old one, and queries of 0."""
    scale, shift = _affine(old.expand_norm)
    expand = made.get_submodule("expand.0")
    assert isinstance(expand, nn.Conv2d) and expand.bias is not None
    expand.weight.copy_(old.expand.weight * scale[:, None, None, None])
    bias = 0.0 if old.expand.bias is None else old.expand.bias
    expand.bias.copy_(shift + scale * bias)
    made.get_submodule("depthwise.0").get_parameter("weight").copy_(old.depthwise.weight)
    norm, before = made.get_submodule("depthwise.1"), old.depthwise_norm
    norm.load_state_dict(before.state_dict(), strict=False)
    norm.get_buffer("running_var").add_(before.eps - norm.eps)  # type: ignore[operator]
    if old.depthwise.bias is not None:
        norm.get_buffer("running_mean").sub_(old.depthwise.bias)
    made.project.weight.copy_(old.project.weight * _affine(old.project_norm)[0][:, None, None, None])
    qk = made.get_submodule("attention.qk")
    c = made.project.out_channels
    qk.get_parameter("weight")[:c] = 0
    qk.get_parameter("bias")[:c] = 0


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The factor and the summand of each channel that a BatchNorm is in evaluation mode."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    return scale, (0 if norm.bias is None else norm.bias) - norm.running_mean * scale


def _head(channels: int) -> int:
    return next(d for d in range(32, 0, -1) if channels % d == 0)


def _window(s: Signal, window: int) -> int:
    h, w = s.size
    return window or next((n for n in range(WINDOW, 1, -1) if h % n == 0 and w % n == 0), WINDOW)


def _parameters(s: Signal, ratio: float = 4.0, kernel: int = 3, head: int = 0, window: int = 0) -> int:
    c, hidden = s.channels, int(s.channels * ratio)
    return 2 * c + 2 * c * (c + 1) + hidden * (2 * c + 1) + hidden * (kernel**2 + 2)


def _macs(s: Signal, ratio: float = 4.0, kernel: int = 3, head: int = 0, window: int = 0) -> int:
    c, hidden, (h, w) = s.channels, int(s.channels * ratio), s.size
    side = _window(s, window)
    padded = (h + -h % side) * (w + -w % side)
    return h * w * hidden * (2 * c + kernel**2) + padded * (2 * c**2 + 2 * side**2 * c)


IRMB_BLOCK = Block(
    name="irmb",
    summary="an inverted residual with attention in windows before its expansion (EMO)",
    paper="Zhang et al.; arXiv:2301.01146",
    kinds=("map",),
    how="replace",
    make=irmb,
    parameters=_parameters,
    macs=_macs,
)
