"""The ResNet-8 of MLPerf Tiny, the image classifier of that benchmark.

Banbury et al., MLPerf Tiny Benchmark (arXiv:2106.07597), after He et al. (arXiv:1512.03385). Its weights come from
TensorFlow, so convolutions have a bias before BatchNorm, and padding with stride 2 falls on the right and below where
the side is even. The names of the submodules are those of the published weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class TinyResNet8(nn.Module):
    """Three residual blocks with 16, 32 and 64 channels; images (b, c, h, w) to logits (b, k).

    Args:
        shape: (c, h, w); where the padding falls depends on the size.
        num_classes: k.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv0, self.bn0 = nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16, eps=1e-3)
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16, eps=1e-3)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16, eps=1e-3)
        self.pad3 = _same(height, width)
        self.conv3, self.bn3 = nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32, eps=1e-3)
        self.conv4, self.bn4 = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32, eps=1e-3)
        self.conv5 = nn.Conv2d(16, 32, 1, stride=2)
        self.pad6 = _same(-(-height // 2), -(-width // 2))
        self.conv6, self.bn5 = nn.Conv2d(32, 64, 3, stride=2), nn.BatchNorm2d(64, eps=1e-3)
        self.conv7, self.bn6 = nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64, eps=1e-3)
        self.conv8 = nn.Conv2d(32, 64, 1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(images)))
        out = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(out)))
        out = F.relu(self.bn3(self.conv3(self.pad3(x))))
        x = F.relu(self.conv5(x) + self.bn4(self.conv4(out)))
        out = F.relu(self.bn5(self.conv6(self.pad6(x))))
        x = F.relu(self.conv8(x) + self.bn6(self.conv7(out)))
        return self.fc(self.pool(x).flatten(1))


def _same(height: int, width: int) -> nn.ZeroPad2d:
    """What TensorFlow's "same" pads for a 3x3 kernel of stride 2: one pixel behind, and one before an odd side."""
    return nn.ZeroPad2d((width % 2, 1, height % 2, 1))
