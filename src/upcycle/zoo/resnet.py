"""Residual networks for small images: Deep Residual Learning for Image Recognition.

He, Zhang, Ren, Sun (arXiv:1512.03385), section 4.2: a 3x3 convolution, three stages of n blocks with 16, 32
and 64 channels, global average pooling and a linear layer; 6n + 2 layers with weights. The names of the
submodules are those of the published CIFAR-10 weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (8, 14, 20, 32, 44, 56, 110)


class PadShortcut(nn.Module):
    """Option A of the paper: every second pixel, and new channels of zeros, half of them on either side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """relu(x' + bn2(conv2(relu(bn1(conv1(x)))))), where x' is x, brought to the new shape where that changes.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution and the shortcut.
        projection: a 1x1 convolution with BatchNorm for the shortcut (option B) in place of option A.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if projection and (stride != 1 or inputs != outputs):
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
        elif stride != 1 or inputs != outputs:
            self.downsample = PadShortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class ResNet(nn.Module):
    """A CIFAR ResNet; images (b, c, h, w) of any size to logits (b, k).

    Args:
        blocks: in each of the three stages; n in all of them makes the paper's network of depth 6n + 2.
        num_classes: k.
        in_channels: c.
        projection: option B for the shortcuts. Published weights of that kind call the last layer ``fc``,
            those with option A ``linear``, and so do we.
    """

    def __init__(
        self, blocks: tuple[int, int, int], num_classes: int, in_channels: int = 3, projection: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks[0], 1, projection)
        self.layer2 = _stage(16, 32, blocks[1], 2, projection)
        self.layer3 = _stage(32, 64, blocks[2], 2, projection)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = "fc" if projection else "linear"
        self.add_module(self.head, nn.Linear(64, num_classes))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return getattr(self, self.head)(self.pool(x).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int, projection: bool) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, projection)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, projection) for _ in range(blocks - 1)))


def initialise(network: nn.Module) -> None:
    """Kaiming normal weights by fan-out for every convolution (He et al., arXiv:1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
