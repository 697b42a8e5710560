"""Wide residual networks for small images.

Zagoruyko, Komodakis (arXiv:1605.07146), section 2: the residual networks of
:mod:`upcycle.zoo.resnet` made wider instead of deeper, with BatchNorm and ReLU before each convolution. WRN-40-2 has
40 layers and twice the channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.zoo.resnet import initialise


class WideBlock(nn.Module):
    """x' + conv2(relu(bn2(conv1(a)))) with a = relu(bn1(x)); x' is x, or a 1x1 convolution of a where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(a)
        return x + self.conv2(F.relu(self.bn2(self.conv1(a))))


class WRN(nn.Module):
    """A wide residual network; images (b, c, h, w) of any size to logits (b, k).

    Args:
        depth: 6n + 4, with n blocks in each of the three stages.
        width: times 16, 32 and 64 channels.
        num_classes: k.
        in_channels: c.
    """

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        n = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16 * width, n, 1)
        self.layer2 = _stage(16 * width, 32 * width, n, 2)
        self.layer3 = _stage(32 * width, 64 * width, n, 2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64 * width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.linear(self.pool(F.relu(self.bn(x))).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (WideBlock(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(WideBlock(inputs, outputs, stride), *rest)
