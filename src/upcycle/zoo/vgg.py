"""VGG with BatchNorm, small: Very Deep Convolutional Networks for Large-Scale Image Recognition.

Simonyan, Zisserman (arXiv:1409.1556), section 2: 3x3 convolutions, and the channels double where max-pooling halves
the sides. Departures: BatchNorm behind each convolution, and average pooling with one linear layer in place of three.
"""

from __future__ import annotations

from torch import Tensor, nn

from upcycle.zoo.resnet import initialise

SMALL = (32, "M", 64, "M", 128, 128, "M")


class VGG(nn.Module):
    """Images (b, c, h, w) of at least 8 x 8 pixels to logits (b, k).

    Args:
        plan: the channels of each convolution in turn, and "M" for a max-pooling.
        num_classes: k.
        in_channels: c.
    """

    def __init__(self, plan: tuple[int | str, ...], num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for outputs in plan:
            if isinstance(outputs, str):
                layers.append(nn.MaxPool2d(2))
            else:
                convolution = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
                width = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.pool(self.features(images)).flatten(1))
