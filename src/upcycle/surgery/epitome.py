"""Layers whose weights are sampled from a smaller tensor, the epitome (Zhou et al., arXiv:1907.05642)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil, pi, sqrt
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from upcycle.core.errors import require
from upcycle.core.layers import base_of
from upcycle.core.models import Model, copy_of
from upcycle.core.outputs import called

Mode = Literal["learned", "tile"]

# The tracer of torch.fx takes these as one operation: what they do depends on shapes and buffers.
fx.wrap("wrapped_conv2d")
fx.wrap("tiled_conv2d")


# -- sampling -----------------------------------------------------------------------------------------------------


def shift(x: Float[Tensor, "*size"], start: Float[Tensor, ""], dim: int) -> Float[Tensor, "*size"]:
    """``x`` read along ``dim`` from a real-valued start, round the end: y[k] = Σ_q x[q] max(0, 1 - |start + k - q|).

    With start = floor + frac that is (1 - frac) x[k + floor] + frac x[k + floor + 1], indices modulo the size: exact
    at integers, and differentiable in ``x`` and in ``start`` (through frac).
    """
    n, whole = x.shape[dim], start.detach().floor()
    index = (torch.arange(n, device=x.device) + whole.long()) % n
    frac = (start - whole).to(x.dtype)
    return torch.lerp(x.index_select(dim, index), x.index_select(dim, (index + 1) % n), frac)


def circular_mean(turns: Float[Tensor, " n *shape"], weights: Float[Tensor, " n"]) -> Float[Tensor, "*shape"]:
    """The weighted mean of positions on a circle, in turns from 0 to 1: 0.95 and 0.05 average to 0, not to 0.5."""
    angles, shape = 2 * pi * turns, (-1,) + (1,) * (turns.dim() - 1)
    sin, cos = ((weights.view(shape) * f(angles)).sum(0) for f in (torch.sin, torch.cos))
    return torch.atan2(sin, cos) / (2 * pi) % 1.0


def sample(
    epitome: Float[Tensor, "e_out e_in kh kw"],
    routing: Float[Tensor, "r_out columns"] | None,
    channels: tuple[int, int],
) -> Float[Tensor, "c_out c_in kh kw"]:
    """Put the whole weight θ together of R_out x R_in patches, cut to (C_out, C_in).

    Patch (a, b) is E read from o_a along its outputs and from i_ab along its inputs (see :func:`shift`), or E itself
    without a routing map.

    Args:
        epitome: E.
        routing: M, in turns of each circle: column 0 has o_a / E_out, column 1 + b has i_ab / E_in.
        channels: (C_out, C_in).
    """
    (e_out, e_in, *_), (c_out, c_in) = epitome.shape, channels
    r_out, r_in = ceil(c_out / e_out), ceil(c_in / e_in)
    if routing is None:
        return epitome.repeat(r_out, r_in, 1, 1)[:c_out, :c_in]
    rows = []
    for row in routing:
        read = shift(epitome, row[0] * e_out, 0)
        rows.append(torch.cat([shift(read, start * e_in, 1) for start in row[1:]], 1))
    return torch.cat(rows)[:c_out, :c_in]


def wrapped_conv2d(
    x: Float[Tensor, "b c_in h w"],
    epitome: Float[Tensor, "e_out e_in kh kw"],
    routing: Float[Tensor, "r_out columns"],
    channels: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
) -> Float[Tensor, "b c_out oh ow"]:
    """``conv2d(x, sample(epitome, routing, channels))`` with R_in times fewer multiply-adds.

    A kernel that meets several groups of input channels meets their sum just as well, since convolution is linear:

        out_a = conv(F~_a, E from o_a),   F~_a = Σ_b (group b of x, read from -i_ab along its channels).

    The two products a channel that blend a group are not counted in that.
    """
    (e_out, e_in, *_), (c_out, c_in) = epitome.shape, channels
    conv = partial(F.conv2d, stride=stride, padding=padding, dilation=dilation)
    if e_in >= c_in:  # one group: nothing to wrap
        return conv(x, sample(epitome, routing, channels))
    groups = _groups(x, e_in)
    out = []
    for a, row in enumerate(routing):
        folded = torch.stack([shift(groups[:, b], -start * e_in, 1) for b, start in enumerate(row[1:])]).sum(0)
        out.append(conv(folded, shift(epitome, row[0] * e_out, 0)[: c_out - a * e_out]))
    return torch.cat(out, 1)


def tiled_conv2d(
    x: Float[Tensor, "b c_in h w"],
    epitome: Float[Tensor, "e_out e_in kh kw"],
    channels: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
) -> Float[Tensor, "b c_out oh ow"]:
    """``conv2d`` with E repeated to (C_out, C_in), and R_out R_in times fewer multiply-adds.

    Groups of input channels are summed, and the outputs repeated.
    """
    (e_out, e_in, *_), (c_out, _) = epitome.shape, channels
    out = F.conv2d(_groups(x, e_in).sum(1), epitome, stride=stride, padding=padding, dilation=dilation)
    return out.repeat(1, ceil(c_out / e_out), 1, 1)[:, :c_out]


def _groups(x: Tensor, e_in: int) -> Tensor:
    """(b, c, h, w) as (b, R_in, E_in, h, w), filled up with zero channels."""
    missing = -x.shape[1] % e_in
    return F.pad(x, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, e_in))


# -- layers -------------------------------------------------------------------------------------------------------


class Learner(nn.Module):
    """A small network that says where patches begin, in turns from 0 to 1, from a layer's inputs (b, c, h, w).

    It gives one answer for the whole batch.

    3x3 convolution with stride 2, BatchNorm, ReLU6, mean over batch and positions, linear map, sigmoid.

    Departures: the published learner ends in a 1x1 convolution and another BatchNorm before the mean. The mean of
    a BatchNorm's outputs over batch and positions is its bias, whatever went in, so that one is left out; and a 1x1
    convolution comes to the same after the mean.

    Args:
        channels: c.
        start: its first answer.
        generator: of its first convolution; its linear map starts at zero.
    """

    def __init__(self, channels: int, start: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.conv = nn.utils.skip_init(nn.Conv2d, channels, channels, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu", generator=generator)
        self.bn = nn.BatchNorm2d(channels, track_running_stats=False)  # it never answers in eval mode
        self.weight = nn.Parameter(torch.zeros(*start.shape, channels))
        self.bias = nn.Parameter(start.logit())
        self.gather: Callable[[Tensor], Tensor] = lambda rows: rows  # several processes put theirs together here

    def forward(self, x: Tensor) -> Tensor:
        seen = F.relu6(self.bn(self.conv(x))).to(self.bias.dtype).mean((2, 3))
        total = torch.cat([seen.sum(0), seen.new_tensor([len(seen)])])  # so that shares of a batch may differ in size
        total = self.gather(total[None]).sum(0)
        return torch.sigmoid((self.weight * (total[:-1] / total[-1])).sum(-1) + self.bias)


class EpitomeConv2d(nn.Module):
    """A convolution whose weight is sampled from an epitome.

    While it has a learner and trains, the weight is sampled at the learner's live offsets, and the routing map follows
    them as a moving average on the circle. Otherwise it runs wrapped (or tiled) with its stored routing map.

    Args:
        conv: gives shape, geometry and whether there is a bias; its weights are not used.
        ratio: stored numbers (epitome and routing map) over those of the weight, as near as a row of E allows. A layer
            with few weights stores more when the ratio is small, for its routing map has a number for each patch.
        mode: learned, with a routing map and a learner; or tile, with E repeated.
        momentum: μ of the moving average M ← (1 - μ) M + μ offsets.
        generator: of the epitome and the learner.

    Attributes:
        epitome: E (E_out, E_in, kh, kw).
        routing: M (R_out, 1 + R_in) in turns, see :func:`sample`; ``None`` in mode tile.
        learner: a :class:`Learner`, or ``None`` once it has served.
        channels: (C_out, C_in).
    """

    routing: Tensor | None

    def __init__(self, conv: nn.Conv2d, ratio: float, mode: Mode, momentum: float, generator: torch.Generator) -> None:
        super().__init__()
        self.channels, area = (conv.out_channels, conv.in_channels), conv.kernel_size[0] * conv.kernel_size[1]
        self.geometry: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        self.momentum = momentum
        e_out, e_in = _sizes(*self.channels, area, ratio, mode)
        # In the wrapped form each input is a sum of R_in channels, so the fan-in is that of the whole layer.
        std = sqrt(2 / (area * conv.in_channels))
        self.epitome = nn.Parameter(std * torch.randn(e_out, e_in, *conv.kernel_size, generator=generator))
        self.bias = nn.Parameter(torch.zeros(conv.out_channels)) if conv.bias is not None else None
        routing, self.learner = None, None
        if mode == "learned":
            routing = _even(ceil(conv.out_channels / e_out), ceil(conv.in_channels / e_in))
            self.learner = Learner(conv.in_channels, routing, generator)
        self.register_buffer("routing", routing)

    def forward(self, x: Any) -> Any:  # tensors, or what torch.fx traces with
        if self.learner is not None and self.training:
            assert self.routing is not None
            live = self.learner(x)
            with torch.no_grad():
                weights = live.new_tensor([1 - self.momentum, self.momentum])
                self.routing.copy_(circular_mean(torch.stack([self.routing, live]), weights))
            return F.conv2d(x, sample(self.epitome, live, self.channels), self.bias, **self.geometry)
        if self.routing is None:
            out = tiled_conv2d(x, self.epitome, self.channels, **self.geometry)
        else:
            out = wrapped_conv2d(x, self.epitome, self.routing, self.channels, **self.geometry)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)

    def materialise(self) -> nn.Conv2d:
        """The ordinary convolution with the whole weight, equal in eval mode up to rounding."""
        (c_out, c_in), kernel = self.channels, tuple(self.epitome.shape[2:])
        conv = nn.utils.skip_init(
            nn.Conv2d,
            c_in,
            c_out,
            kernel,
            bias=self.bias is not None,
            **self.geometry,
            device=self.epitome.device,
            dtype=self.epitome.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(sample(self.epitome, self.routing, self.channels))
            if self.bias is not None:
                conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        c_out, c_in = self.channels
        return f"{c_in}, {c_out}, epitome={tuple(self.epitome.shape)}, mode={'tile' if self.routing is None else 'map'}"


def _sizes(c_out: int, c_in: int, area: int, ratio: float, mode: Mode) -> tuple[int, int]:
    """E_out and E_in: the square root of the ratio along the inputs, and the rest, as near as can be, along outputs."""
    e_in = max(1, round(c_in * sqrt(ratio)))

    def error(e_out: int) -> float:
        routing = ceil(c_out / e_out) * (1 + ceil(c_in / e_in)) if mode == "learned" else 0
        return abs(e_out * e_in * area + routing - ratio * c_out * c_in * area)

    return min(range(1, c_out + 1), key=error), e_in


def _even(r_out: int, r_in: int) -> Tensor:
    """The routing map that a layer starts with: even steps, of another length in each row.

    Rows that differ by a turn alone would all see the same sums of input channels.
    """
    a, b = torch.arange(r_out)[:, None], torch.arange(r_in)
    inputs = (a * r_in + a * b + 0.5) / (r_out * r_in) % 1.0
    return torch.cat([(a + 0.5) / r_out, inputs], 1)


# -- networks -----------------------------------------------------------------------------------------------------


def compress(
    module: nn.Module, ratio: float, mode: Mode = "learned", *, momentum: float = 0.1, generator: torch.Generator
) -> nn.Module:
    """A copy of a network whose convolutions are :class:`EpitomeConv2d` with fresh epitomes.

    All but the first convolution are replaced, where they are plain ``nn.Conv2d`` in one group with zero padding.
    Grouped and depthwise ones and all other layers stay, with their weights.

    Args:
        module: any network.
        ratio: of stored numbers, in each replaced layer.
        mode: learned or tile, see :class:`EpitomeConv2d`.
        momentum: μ of the moving average of offsets.
        generator: of the epitomes and learners, on the CPU.

    Raises:
        UserError: impossible values, or no convolution that could be replaced.
    """
    require(0.01 <= ratio <= 1, f"ratio must lie between 0.01 and 1, not {ratio}.")
    require(mode in ("learned", "tile"), f"mode must be learned or tile, not '{mode}'.")
    network = copy_of(module)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    made: dict[nn.Module, nn.Module] = {
        conv: EpitomeConv2d(conv, ratio, mode, momentum, generator).train(conv.training)
        for conv in convolutions[1:]
        if replaceable(conv)
    }
    require(
        bool(made),
        f"{called(module)} has nothing to compress: besides its first, it has no nn.Conv2d in "
        "one group with zero padding.",
    )
    return _exchange(network, made)


def materialise(module: nn.Module) -> nn.Module:
    """A copy with every epitome layer as an ordinary convolution; equal in eval mode up to rounding."""
    network = copy_of(module)
    return _exchange(network, {layer: layer.materialise() for layer in epitomes(network)})


def epitomes(module: nn.Module) -> list[EpitomeConv2d]:
    """The epitome layers of a network."""
    return [m for m in module.modules() if isinstance(m, EpitomeConv2d)]


def count_stored(module: nn.Module) -> int:
    """Count the numbers that a compressed network stores: parameters without learners, and routing maps."""
    count = sum(p.numel() for p in module.parameters())
    for layer in epitomes(module):
        count += layer.routing.numel() if layer.routing is not None else 0
        count -= sum(p.numel() for p in layer.learner.parameters()) if layer.learner is not None else 0
    return count


def rebuild_epitome(
    source: dict[str, Any], ratio: float, mode: Mode, rebuild: Callable[[dict[str, Any]], Model]
) -> nn.Module:
    """The architecture that neural epitome search made of ``source``, with fresh weights and without learners."""
    network = compress(rebuild(source).module, ratio, mode, generator=torch.Generator().manual_seed(0))
    drop_learners(network)
    return network


def replaceable(conv: nn.Conv2d) -> bool:
    """Whether a convolution can be sampled from an epitome: a plain one, in one group, with zero padding."""
    return base_of(conv) is nn.Conv2d and conv.groups == 1 and conv.padding_mode == "zeros"


def _exchange(network: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """``network`` with modules in place of others, wherever these are used."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):  # also the second name of a shared one
            if child in new:
                setattr(parent, name, new[child])
    return network


def drop_learners(network: nn.Module) -> None:
    """Take the learners out of a network, in place; its layers keep their stored routing maps."""
    for layer in epitomes(network):
        layer.learner = None
