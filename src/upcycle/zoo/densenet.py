"""DenseNet-BC for small images: Densely Connected Convolutional Networks.

Huang, Liu, van der Maaten, Weinberger (arXiv:1608.06993), section 3: growth 12, bottlenecks of 4 growths,
transitions that halve the channels. Departures: the blocks deepen from first to last, as the paper has it for
ImageNet, and the first convolution has 16 channels, since layers on whole images cost most.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upcycle.zoo.resnet import initialise

SMALL = (2, 4, 6)


class DenseLayer(nn.Module):
    """x with ``growth`` new channels behind it: BatchNorm, ReLU and convolution, 1x1 to 4 growths and then 3x3."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(4 * growth), nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu1(self.bn1(x)))
        return torch.cat([x, self.conv2(self.relu2(self.bn2(out)))], dim=1)


class DenseNet(nn.Module):
    """Images (b, c, h, w) of at least 4 x 4 pixels to logits (b, k).

    Args:
        blocks: dense layers in each of the three blocks.
        num_classes: k.
        in_channels: c.
        growth: channels that each layer adds.
    """

    def __init__(self, blocks: tuple[int, int, int], num_classes: int, in_channels: int = 3, growth: int = 12) -> None:
        super().__init__()
        width = 16
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.features = nn.Sequential()
        for i, layers in enumerate(blocks):
            if i:
                self.features.append(_transition(width, width // 2))
                width //= 2
            self.features.append(nn.Sequential(*(DenseLayer(width + j * growth, growth) for j in range(layers))))
            width += layers * growth
        self.norm, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.norm(self.features(self.stem(images))))
        return self.linear(self.pool(x).flatten(1))


def _transition(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), convolution, nn.AvgPool2d(2))
