"""A small vision transformer: An Image is Worth 16x16 Words.

Dosovitskiy et al. (arXiv:2010.11929), section 3.1. Departures: two 3x3 convolutions of stride 2 make the tokens of
4 x 4 pixels, since few images teach a plain cut into patches badly (Xiao et al., Early Convolutions Help Transformers
See Better, arXiv:2106.14881), and the tokens' mean is classified, so there is no class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upcycle.zoo.resnet import initialise


class Tokens(nn.Module):
    """A map (b, d, h, w) to tokens (b, h w, d), each with a learnt position added."""

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(1, number, width))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2) + self.position


class Attention(nn.Module):
    """Multi-head self-attention of tokens (b, n, d).

    Args:
        width: d.
        heads: which divide it.
        bias: of queries, keys and values.
    """

    def __init__(self, width: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.split = (3, heads, width // heads)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, self.split).permute(2, 0, 3, 1, 4)
        # Written out: with tokens this few, the fused attention of PyTorch trains at half the speed on a CPU.
        weights = (qkv[0] @ qkv[1].transpose(2, 3) * self.split[2] ** -0.5).softmax(dim=3)
        return self.out((weights @ qkv[2]).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), and then x + mlp(norm(x)): equations 2 and 3.

    Args:
        width: of a token.
        heads: of the attention.
        ratio: how many times as wide as the tokens the MLP is.
        bias: of queries, keys and values.
    """

    def __init__(self, width: int, heads: int, ratio: int = 2, bias: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Images (b, c, h, w) to logits (b, k).

    Args:
        shape: (c, h, w); the positions make the size part of the network.
        num_classes: k.
        width: of a token, a multiple of ``heads``.
        depth: blocks.
        heads: of each attention.
    """

    def __init__(
        self, shape: tuple[int, int, int], num_classes: int, width: int = 96, depth: int = 4, heads: int = 3
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_halving(shape[0], width // 2), *_halving(width // 2, width), nn.Conv2d(width, width, 1)
        )
        self.tokens = Tokens(-(-shape[1] // 4) * -(-shape[2] // 4), width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.tokens(self.stem(images)))
        return self.linear(self.norm(x).mean(dim=1))


def _halving(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
