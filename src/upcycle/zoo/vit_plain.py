"""A vision transformer as its paper has it: An Image is Worth 16x16 Words.

Dosovitskiy et al. (arXiv:2010.11929), equations 1 to 4: one projection of each patch, a class token, learnt positions,
blocks with the normalisation first and an MLP four times as wide, a linear classifier of the class token. So a token
has seen nothing but its own patch before the first block, which ``zoo:vit`` does not promise.

Departures: the class token is classified by one linear layer also in pre-training; no dropout.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.core.ranges import ranges
from upcycle.zoo.vit import Block, Tokens


class ClassTokens(Tokens):
    """A map (b, d, h, w) to tokens (b, 1 + h w, d): a learnt one first, and to each a learnt position added.

    Args:
        number: h w.
        width: d.
    """

    def __init__(self, number: int, width: int) -> None:
        super().__init__(1 + number, width)
        self.first = nn.Parameter(torch.empty(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        patches = x.flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(x.shape[0], -1, -1), patches], 1) + self.position


class PlainViT(nn.Module):
    """Images (b, c, h, w) to logits (b, k).

    Args:
        shape: (c, h, w); the positions make the size part of the network.
        num_classes: k.
        patch: side of a patch in pixels; h and w are multiples of it.
        width: of a token, a multiple of ``heads``.
        depth: blocks.
        heads: of each attention.
        pool: what is classified, the class token or the mean of the patches' tokens, as masked autoencoders are used.

    Raises:
        UserError: an image that is no whole number of patches, or a width that the heads do not divide.
    """

    num_prefix_tokens = 1  # as timm has it

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        patch: int = 4,
        width: int = 72,
        depth: int = 4,
        heads: int = 9,
        pool: Literal["class", "mean"] = "class",
    ) -> None:
        super().__init__()
        self.pool = pool
        self.patch, self.width, self.depth, self.heads = patch, width, depth, heads
        ranges(self, at_least=dict.fromkeys(("patch", "width", "depth", "heads"), 1))
        require(width % heads == 0, f"{heads} heads do not divide a width of {width}; take a multiple.")
        channels, h, w = shape
        require(
            h % patch == 0 and w % patch == 0 and min(h, w) > 0,
            f"vit_plain cuts images into patches of {patch} x {patch} pixels, and {h} x {w} is no multiple of that: "
            f"bring them to {-(-h // patch) * patch} x {-(-w // patch) * patch} by --size.",
        )
        self.stem = nn.Conv2d(channels, width, patch, stride=patch)
        self.tokens = ClassTokens((h // patch) * (w // patch), width)
        self.blocks = nn.Sequential(*(Block(width, heads, ratio=4, bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.tokens(self.stem(images)))
        x = self.norm(x)
        return self.linear(x[:, 0] if self.pool == "class" else x[:, 1:].mean(dim=1))


def initialise(network: PlainViT) -> None:
    """Weights as the paper's code draws them: Xavier uniform, biases of the MLPs N(0, 1e-6), other biases 0.

    The projection of patches counts as the matrix that it is. Class token and positions are N(0, 0.02). Departure: the
    classifier is drawn as the others are, where the paper's begins at zero.
    """
    for name, p in network.named_parameters():
        if name.startswith("tokens."):
            nn.init.normal_(p, std=0.02)
        elif p.ndim >= 2:
            nn.init.xavier_uniform_(p.data.flatten(1))
        elif name.endswith("bias"):
            nn.init.normal_(p, std=1e-6) if ".mlp." in name else nn.init.zeros_(p)
