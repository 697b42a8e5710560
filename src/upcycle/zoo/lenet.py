"""LeNet-5 with ReLU and max-pooling: Gradient-Based Learning Applied to Document Recognition.

LeCun, Bottou, Bengio, Haffner (Proceedings of the IEEE 86, 1998), figure 2. The names of the submodules are those of
the published CIFAR-10 weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """Images (b, c, h, w) to logits (b, k).

    Args:
        shape: (c, h, w) with sides of at least 16; linear layers on the map make the size part of the network.
        num_classes: k.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        height, width = (((side - 4) // 2 - 4) // 2 for side in shape[1:])
        self.conv1, self.pool1 = nn.Conv2d(shape[0], 6, 5), nn.MaxPool2d(2)
        self.conv2, self.pool2 = nn.Conv2d(6, 16, 5), nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.conv1(images)))
        x = self.pool2(F.relu(self.conv2(x))).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
