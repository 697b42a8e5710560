"""A hierarchical mixture of experts that hardens into a tree: the explaining student of KDExplainer.

Xue, Song, Wang, Chen, Wang, Song (IJCAI 2021; arXiv:2105.04181) and their published code. Levels of 2, 4 and 8 expert
blocks stand one behind the other, and behind them one head for each class. A branching matrix S between two levels says
which block hears which.

Departures: a head ends in one number (the code can also give it a no and a yes); there is no stem for images larger
than CIFAR's; the code pools to 7 x 7 before the heads, which repeats pixels of a smaller map, and here a small map
stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

HARD = 1000.0
"""The entry of S at the one parent that a child of a hard tree has: all others get a weight of exactly zero."""


def routing(S: Float[Tensor, "c p"], t: Float[Tensor, ""] | float) -> Float[Tensor, "c p"]:
    """A = softmax(log(pi) / t) with pi = softmax(S / 0.5), both over the parents; t = 1 gives pi.

    Args:
        S: a row for each child, a column for each parent.
        t: > 0; towards infinity A is uniform, towards zero it is one at the largest of each row.

    No noise is drawn. From logarithms, since the published form underflows once t is small.
    """
    return F.softmax(F.log_softmax(S / 0.5, dim=1) / t, dim=1)


class Linears(nn.Module):
    """A linear layer of its own for each of k classes: (k, b, inputs) to (k, b, outputs)."""

    def __init__(self, k: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(k, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(k, 1, outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As ``nn.Linear`` has it."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)  # a tenth of the time of a grouped convolution


class Tree(nn.Module):
    """Levels of expert blocks and a head for each class; images (b, c, h, w) to logits (b, k).

    A block is a 3x3 convolution to ``width`` channels, BatchNorm, ReLU, a 3x3 convolution, BatchNorm, ReLU and
    max-pooling by 2. The blocks of the first level see the image; child c of a later level, and the head of class c,
    sees sum_p A[c, p] times the output of parent p, with A = routing(S, t).

    Args:
        levels: the number of blocks of each level.
        channels: that each block of a level gives out.
        num_classes: k.
        input_shape: (c, h, w); h and w are at least 2 to the number of levels.
        width: channels inside a block.
        hidden: width of a head's two hidden layers.
        dropout: probability after each of them.
    """

    t: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        width: int = 64,
        hidden: int = 128,
        dropout: float = 0.15,
    ) -> None:
        super().__init__()
        c, h, w = input_shape
        made, inputs = [], c
        for i, (n, outputs) in enumerate(zip(levels, channels, strict=True)):
            # All blocks of a level in one grouped convolution, a little faster than one by one. Those of the first
            # share their input, so it has no groups.
            made.append(_blocks(inputs if i == 0 else n * inputs, n * width, n * outputs, n, first=i == 0))
            inputs = outputs
        self.levels = nn.ModuleList(made)
        children = [*levels[1:], num_classes]
        self.branching = nn.ParameterList(torch.empty(c, p) for c, p in zip(children, levels, strict=True))
        self.register_buffer("t", torch.ones(()))
        h, w = h >> len(levels), w >> len(levels)
        side = max(min(h, w) // 7, 1)
        self.pool = nn.AvgPool2d(side)
        self.heads = nn.Sequential(
            *(Linears(num_classes, inputs * (h // side) * (w // side), hidden), nn.ReLU(), nn.Dropout(dropout)),
            *(Linears(num_classes, hidden, hidden), nn.ReLU(), nn.Dropout(dropout)),
            Linears(num_classes, hidden, 1),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the branching matrices from U(0, 1)."""
        for S in self.branching:
            nn.init.uniform_(S)

    def weights(self) -> list[nn.Parameter]:
        """All parameters but the branching matrices."""
        own = {id(S) for S in self.branching}
        return [p for p in self.parameters() if id(p) not in own]

    @torch.no_grad()
    def harden(self) -> None:
        """Leave each child the parent that its row of S is largest for: every A is one-hot from now on."""
        for S in self.branching:
            S.copy_(HARD * F.one_hot(S.argmax(dim=1), S.shape[1]))
        self.t.fill_(1.0)

    def forward(self, images: Tensor) -> Tensor:
        x = self.levels[0](images)
        for S, level in zip(self.branching, self.levels[1:], strict=False):
            # Channels last, as the convolutions have them.
            parents = x.permute(0, 2, 3, 1).unflatten(3, (S.shape[1], -1))
            mixed = torch.einsum("cp,bhwpd->bhwcd", routing(S, self.t), parents)
            x = level(mixed.flatten(3).permute(0, 3, 1, 2))
        S = self.branching[-1]
        parents = self.pool(x).flatten(1).unflatten(1, (S.shape[1], -1))
        return self.heads(torch.einsum("kp,bpd->kbd", routing(S, self.t), parents)).squeeze(2).T


def _blocks(inputs: int, width: int, outputs: int, n: int, *, first: bool) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(inputs, width, 3, padding=1, groups=1 if first else n, bias=False), nn.BatchNorm2d(width)),
        nn.ReLU(),
        *(nn.Conv2d(width, outputs, 3, padding=1, groups=n, bias=False), nn.BatchNorm2d(outputs)),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
