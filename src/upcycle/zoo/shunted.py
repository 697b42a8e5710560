"""Shunted Transformer: Shunted Self-Attention via Multi-Scale Token Aggregation.

Ren et al. (arXiv:2111.15193); widths, depths and rates are those of the authors' released networks
(github.com/OliverRensu/Shunted-Transformer), which have two rates a stage where the paper draws more. The heads of one
layer look at keys of different granularity: half of them at coarsely merged tokens, half at finely merged ones. Our own
:data:`SIZES` ``["tiny"]`` for 32 x 32 pixels has two stages.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from upcycle.core.errors import require
from upcycle.zoo import keys
from upcycle.zoo.layers import ChannelNorm, DropPath, drop_rates

EPS, INNER_EPS = 1e-6, 1e-5
"""Of the normalisations before attention, before the feed-forward part and behind a stage; and of all others."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Blocks of one width.

    Args:
        depth: the number of blocks.
        width: channels.
        heads: of the attention.
        rates: the sides of the squares of tokens that are merged to a key, coarse first, each for an equal share of
            the heads; none leaves every token a key of its own.
        expansion: of the feed-forward part.
    """

    depth: int
    width: int
    heads: int
    rates: tuple[int, ...]
    expansion: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """A network of the family.

    Args:
        stages: in order; the first has tokens of 4 x 4 pixels, each further one halves the sides.
        convolutions: 3x3 ones in the stem.
        drop_path: probability with which the last block is left out in training; it grows linearly from 0.
        kernel: side of the stem's first convolution.
    """

    stages: tuple[Stage, ...]
    convolutions: int = 0
    drop_path: float = 0.0
    kernel: int = 7

    @property
    def divisor(self) -> int:
        """The number that both sides of an image must be multiples of, so that every merged square is whole."""
        return math.lcm(*(4 * 2**i * max(stage.rates, default=1) for i, stage in enumerate(self.stages)))


def _published(depths: tuple[int, ...], convolutions: int, drop_path: float) -> Size:
    rates = ((8, 4), (4, 2), (2, 1), ())
    stages = (
        Stage(depth=depth, width=64 * 2**i, heads=2 * 2**i, rates=rates[i], expansion=(8, 8, 4, 4)[i])
        for i, depth in enumerate(depths)
    )
    return Size(stages=tuple(stages), convolutions=convolutions, drop_path=drop_path)


SIZES = {
    "t": _published((1, 2, 4, 1), 0, 0.1),
    "s": _published((2, 4, 12, 1), 1, 0.2),
    "b": _published((3, 4, 24, 2), 2, 0.3),
    "tiny": Size(
        stages=(
            Stage(depth=2, width=64, heads=2, rates=(2, 1), expansion=2),
            Stage(depth=2, width=128, heads=4, rates=(), expansion=2),
        ),
        kernel=3,
        convolutions=1,
    ),
}


class MergedKeys(nn.Module):
    """Keys and values of some heads, from tokens that are merged by squares.

    t = GELU(LN(convolution(x))) with one output a square, (k, v) = W_kv t, and v + depthwise(v) for v.

    Args:
        channels: of the tokens.
        width: of the keys of all these heads together.
        heads: of the width, in groups that lie one after the other.
        rate: side of a square.
    """

    def __init__(self, channels: int, width: int, heads: int, rate: int) -> None:
        super().__init__()
        self.heads = heads
        self.merge = nn.Conv2d(channels, channels, rate, rate)
        self.norm = nn.LayerNorm(channels, eps=INNER_EPS)
        self.kv = nn.Linear(channels, 2 * width)
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take (b, h, w, c) to keys and values (b, heads, h w / rate ** 2, d)."""
        t = F.gelu(self.norm(self.merge(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        k, v = self.kv(t).chunk(2, dim=3)
        return split_heads(k, self.heads), split_heads(v + on_map(self.local, v), self.heads)


class ShuntedAttention(nn.Module):
    """Self-attention of tokens (b, h, w, c) whose heads see merged tokens, each group of them at its own rate.

    Args:
        channels: c.
        heads: a multiple of the number of rates; each has c / heads channels.
        rates: see :class:`Stage`. Without any this is ordinary attention, and a depthwise convolution of the values is
            added behind it, unlike before.
    """

    def __init__(self, channels: int, heads: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        n = len(rates)
        self.merged = nn.ModuleList(MergedKeys(channels, channels // n, heads // n, rate) for rate in rates)
        if not rates:
            self.kv = nn.Linear(channels, 2 * channels)
            self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q = split_heads(self.q(x), self.heads)
        if len(self.merged) == 0:
            k, v = self.kv(x).chunk(2, dim=3)
            o = attend(q, split_heads(k, self.heads), split_heads(v, self.heads))
            return self.out(o.view_as(x) + on_map(self.local, v))
        n = self.heads // len(self.merged)
        parts = [attend(q[:, i * n : (i + 1) * n], *merged(x)) for i, merged in enumerate(self.merged)]
        return self.out(torch.cat(parts, dim=2).view_as(x))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Take tokens (b, h, w, c) apart into (b, heads, h w, c / heads)."""
    return x.flatten(1, 2).unflatten(2, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Average values by softmax(q k' / sqrt(d)); (b, heads, n, d) and twice (b, heads, m, d) to (b, n, heads d)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def on_map(convolution: nn.Module, x: Tensor) -> Tensor:
    """Run a convolution on tokens (b, h, w, c)."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class FeedForward(nn.Module):
    """W2 GELU(y + depthwise(y)) with y = W1 x, for tokens (b, h, w, c): the detail-specific part of a block."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, hidden)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        return self.project(F.gelu(y + on_map(self.local, y)))


class Block(nn.Module):
    """x + attention(norm(x)), and then x + feed_forward(norm(x)), on maps (b, c, h, w).

    Args:
        stage: its width, heads, rates and expansion.
        drop_path: probability with which each part is left out in training.
    """

    def __init__(self, stage: Stage, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(stage.width, eps=EPS)
        self.attention = ShuntedAttention(stage.width, stage.heads, stage.rates)
        self.norm2 = nn.LayerNorm(stage.width, eps=EPS)
        self.feed_forward = FeedForward(stage.width, stage.expansion * stage.width)
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self.drop(self.attention(self.norm1(x)))
        return (x + self.drop(self.feed_forward(self.norm2(x)))).permute(0, 3, 1, 2)


class ShuntedTransformer(nn.Module):
    """Images (b, c, h, w), whose sides are multiples of ``size.divisor``, to logits (b, k).

    Args:
        size: depths and widths; one of :data:`SIZES`.
        num_classes: k.
        in_channels: c.
    """

    published_names = keys.SHUNTED

    def __init__(self, size: Size, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.divisor = size.divisor
        drops = drop_rates(size.drop_path, sum(stage.depth for stage in size.stages))
        width = 0
        self.stages = nn.Sequential()
        for stage in size.stages:
            halving = nn.Conv2d(width, stage.width, 3, 2, padding=1) if width else _stem(size, in_channels)
            width = stage.width
            parts = {
                "embed": nn.Sequential(OrderedDict(conv=halving, norm=ChannelNorm(width, eps=INNER_EPS))),
                "blocks": nn.Sequential(*(Block(stage, next(drops)) for _ in range(stage.depth))),
                "norm": ChannelNorm(width, eps=EPS),
            }
            self.stages.append(nn.Sequential(OrderedDict(parts)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, num_classes)
        initialise(self)

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps behind each stage, with strides 4, 8, 16 and 32 in the released networks."""
        images = whole_squares(images, self.divisor)
        return list(itertools.accumulate(self.stages, lambda x, stage: stage(x), initial=images))[1:]

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(whole_squares(images, self.divisor))
        return self.linear(self.pool(x).flatten(1))


def whole_squares(images: Tensor, divisor: int) -> Tensor:
    """Give the images as they are.

    Raises:
        UserError: a side is no multiple of ``divisor``.
    """
    check_sides(images.shape[2], images.shape[3], divisor)
    return images


fx.wrap("whole_squares")  # a question about sizes, which a trace cannot answer


def check_sides(h: int, w: int, divisor: int) -> None:
    """Raise UserError for images whose sides are no multiples of ``divisor``."""
    require(
        h % divisor == 0 and w % divisor == 0,
        f"This Shunted Transformer needs images whose sides are multiples of {divisor}, not {h} x {w}; crop or resize "
        "them.",
    )


def _stem(size: Size, in_channels: int) -> nn.Sequential:
    """Images to a map of every fourth pixel."""
    width, kernel = size.stages[0].width, size.kernel
    first = nn.Conv2d(in_channels, width, kernel, 2, padding=kernel // 2, bias=False)
    layers: list[nn.Module] = [first, nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(size.convolutions):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 2, 2))


def initialise(network: nn.Module) -> None:
    """As the released networks begin: convolutions by their fan-out, linear layers from a narrow normal."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _maker(size: Size) -> Callable[[tuple[int, int, int], int], nn.Module]:
    def make(shape: tuple[int, int, int], k: int) -> nn.Module:
        check_sides(shape[1], shape[2], size.divisor)
        return ShuntedTransformer(size, k, shape[0])

    return make


MAKERS = {f"shunted_{name}": _maker(size) for name, size in SIZES.items()}
"""By name in the zoo, called with (c, h, w) and a number of classes."""
