"""EMO: Rethinking Mobile Block for Efficient Attention-based Models.

Zhang et al. (arXiv:2301.01146); widths, depths and ratios are those of the authors' released networks
(github.com/zhangzjn/EMO). The only block is MobileNet's inverted residual with attention in windows before its
expansion. Sizes of our own for 32 x 32 pixels: :data:`SIZES` ``["tiny"]``, with a first convolution of stride 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from upcycle.zoo import keys
from upcycle.zoo.layers import ChannelNorm, DropPath, drop_rates

EPS = 1e-6
"""Of all normalisations."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Blocks of one width.

    Args:
        depth: the number of blocks, the first with stride 2.
        width: channels.
        ratio: of the expansion; twice that in the first block.
        kernel: side of the depthwise convolution.
        head: channels of a head of attention; 0 has none. The first block never has any.
        norm: before each block, over the batch (with SiLU behind the expansion) or over channels (with GELU).
    """

    depth: int
    width: int
    ratio: float
    kernel: int = 3
    head: int = 0
    norm: Literal["batch", "layer"] = "batch"


@dataclass(frozen=True, kw_only=True)
class Size:
    """A network of the family.

    Args:
        stages: in order.
        drop_path: probability with which the last block is left out in training; it grows linearly from 0.
        window: side of the attention's windows.
        stem: channels of the first convolution.
        stride: of the first convolution.
    """

    stages: tuple[Stage, ...]
    drop_path: float = 0.0
    window: int = 7
    stem: int = 24
    stride: int = 2


def _published(
    depths: tuple[int, ...],
    widths: tuple[int, ...],
    ratios: tuple[float, ...],
    heads: tuple[int, int],
    drop_path: float,
) -> Size:
    """A released network; ``heads`` are those of the last two stages."""
    stages = []
    for i, (depth, width, ratio) in enumerate(zip(depths, widths, ratios, strict=True)):
        late: dict[str, Any] = {"kernel": 5, "head": heads[i - 2], "norm": "layer"} if i >= 2 else {}
        stages.append(Stage(depth=depth, width=width, ratio=ratio, **late))
    return Size(stages=tuple(stages), drop_path=drop_path)


SIZES = {
    "1m": _published((2, 2, 8, 3), (32, 48, 80, 168), (2, 2.5, 3, 3.5), (20, 21), 0.04036),
    "2m": _published((3, 3, 9, 3), (32, 48, 120, 200), (2, 2.5, 3, 3.5), (20, 20), 0.05),
    "5m": _published((3, 3, 9, 3), (48, 72, 160, 288), (2, 3, 4, 4), (32, 32), 0.05),
    "6m": _published((3, 3, 9, 3), (48, 72, 160, 320), (2, 3, 4, 5), (20, 32), 0.05),
    "tiny": Size(
        stages=(
            Stage(depth=1, width=24, ratio=2),
            Stage(depth=2, width=40, ratio=2.5, head=20, norm="layer"),
            Stage(depth=3, width=64, ratio=3, head=16, norm="layer"),
        ),
        window=4,
        stride=1,
    ),
}


def split_windows(x: Tensor, side: int, heads: int) -> Tensor:
    """Take a map apart into strided windows and heads.

    Of a map with n1 x n2 windows, pixel (i, j) belongs to window (i mod n1, j mod n2), at place (i div n1, j div n2):
    neighbours lie in different windows, and each window sees the whole map at a lower resolution.

    Args:
        x: (b, c, h, w); h and w are multiples of ``side``.
        side: of a window.
        heads: c is a multiple of them.

    Returns:
        (b, n1, n2, heads, side ** 2, c / heads).
    """
    places = x.permute(0, 2, 3, 1).unflatten(3, (heads, -1)).unflatten(2, (side, -1)).unflatten(1, (side, -1))
    return places.permute(0, 2, 4, 5, 1, 3, 6).flatten(4, 5)


def join_windows(x: Tensor, side: int) -> Tensor:
    """Undo :func:`split_windows`."""
    places = x.unflatten(4, (side, side)).permute(0, 4, 1, 5, 2, 3, 6)
    return places.flatten(5, 6).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Average a map (b, c, h, w) over the pixels of its windows, by softmax(Q K' / sqrt(d)) of each head.

    There are no values of its own: the heads average the map as it is, so that the cost follows c and not the
    expanded width. Right and bottom are padded with zeros, which take part as keys, as in the released networks.

    Args:
        channels: c, a multiple of ``head``.
        head: d, channels of a head.
        window: side of a window.
    """

    def __init__(self, channels: int, head: int, window: int) -> None:
        super().__init__()
        self.heads, self.window, self.scale = channels // head, window, head**-0.5
        self.qk = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, u: Tensor) -> Tensor:
        h, w = u.shape[2], u.shape[3]
        u = nn.functional.pad(u, (0, -w % self.window, 0, -h % self.window))
        q, k = split_windows(self.qk(u), self.window, 2 * self.heads).chunk(2, dim=3)
        weights = (q @ k.transpose(4, 5) * self.scale).softmax(dim=5)
        return join_windows(weights @ split_windows(u, self.window, self.heads), self.window)[:, :, :h, :w]


class SqueezeExcite(nn.Module):
    """Multiply each channel of a map by a factor in (0, 1) that the means of all channels decide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels, 1)
        self.act = nn.SiLU()
        self.expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.act(self.reduce(self.pool(x)))).sigmoid()


class IRMB(nn.Module):
    """Inverted residual mobile block (equations 3 to 5): attend, expand, filter each channel by itself, project.

    v = act(W_v A norm(x)), d = SiLU(BN(depthwise(v))), and x + W_p (v + d) where the shape stays, else W_p d.

    Args:
        inputs, outputs: channels.
        ratio: of the expanded channels to ``inputs``.
        kernel: side of the depthwise convolution.
        stride: of the depthwise convolution.
        head: channels of a head of the attention; 0 leaves it out.
        window: side of the attention's windows.
        norm: of the input, over the batch or over channels; the activation of the expansion follows from it.
        drop_path: probability with which the block is left out in training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        ratio: float,
        kernel: int,
        stride: int = 1,
        head: int = 0,
        window: int = 7,
        norm: Literal["batch", "layer"] = "batch",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(inputs * ratio)
        batch = norm == "batch"
        self.norm = nn.BatchNorm2d(inputs, eps=EPS) if batch else ChannelNorm(inputs, eps=EPS)
        self.attention: nn.Module = WindowAttention(inputs, head, window) if head else nn.Identity()
        self.expand = nn.Sequential(nn.Conv2d(inputs, hidden, 1), nn.SiLU() if batch else nn.GELU())
        self.depthwise = _depthwise(hidden, kernel, stride)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.drop = DropPath(drop_path)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        v = self.expand(self.attention(self.norm(x)))
        d = self.depthwise(v)
        return x + self.drop(self.project(v + d)) if self.residual else self.project(d)


class EMO(nn.Module):
    """Images (b, c, h, w) of any size to logits (b, k).

    Args:
        size: depths and widths; one of :data:`SIZES`.
        num_classes: k.
        in_channels: c.
    """

    published_names = keys.EMO

    def __init__(self, size: Size, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        width = size.stem
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, size.stride, padding=1),
            nn.BatchNorm2d(width, eps=EPS),
            *_depthwise(width, 3, 1),
            SqueezeExcite(width),
            nn.Conv2d(width, width, 1, bias=False),
        )
        drops = drop_rates(size.drop_path, sum(stage.depth for stage in size.stages))
        self.stages = nn.Sequential()
        for stage in size.stages:
            blocks = []
            for i in range(stage.depth):
                ratio, stride, head = (2 * stage.ratio, 2, 0) if i == 0 else (stage.ratio, 1, stage.head)
                inside = (stride, head, size.window, stage.norm, next(drops))
                blocks.append(IRMB(width, stage.width, ratio, stage.kernel, *inside))
                width = stage.width
            self.stages.append(nn.Sequential(*blocks))
        self.norm = ChannelNorm(width, eps=EPS)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps behind the stem and each stage, with strides 2, 4, 8, 16 and 32 in the released networks."""
        return list(itertools.accumulate(self.stages, lambda x, stage: stage(x), initial=self.stem(images)))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.stem(images))
        return self.linear(self.pool(self.norm(x)).flatten(1))


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels, eps=EPS), nn.SiLU())


def _maker(size: Size) -> Callable[[tuple[int, int, int], int], nn.Module]:
    return lambda shape, k: EMO(size, k, shape[0])


MAKERS = {f"emo_{name}": _maker(size) for name, size in SIZES.items()}
"""By name in the zoo, called with (c, h, w) and a number of classes."""
