"""Small plain networks: convolutions with BatchNorm or GroupNorm, and multilayer perceptrons."""

from __future__ import annotations

from torch import Tensor, nn

from upcycle.zoo.resnet import initialise


class ConvNet(nn.Module):
    """Three times 3x3 convolution, BatchNorm and ReLU, halved by max-pooling between, then average pooling.

    Images (b, c, h, w) of at least 4 x 4 pixels to logits (b, k).

    Args:
        widths: channels of the three blocks.
        num_classes: k.
        in_channels: c.
        groups: of a GroupNorm in place of each BatchNorm, so that no sample depends on its batch; 0 for BatchNorm.
    """

    def __init__(self, widths: tuple[int, int, int], num_classes: int, in_channels: int, groups: int = 0) -> None:
        super().__init__()
        self.block1 = _block(in_channels, widths[0], groups)
        self.block2 = nn.Sequential(nn.MaxPool2d(2), *_block(widths[0], widths[1], groups))
        self.block3 = nn.Sequential(nn.MaxPool2d(2), *_block(widths[1], widths[2], groups))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[2], num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(images)))
        return self.linear(self.pool(x).flatten(1))


def _block(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    norm = nn.GroupNorm(groups, outputs) if groups else nn.BatchNorm2d(outputs)
    return nn.Sequential(convolution, norm, nn.ReLU())


class MLP(nn.Sequential):
    """Linear layers with ReLU and dropout over the flattened image, as in section 3 of arXiv:1503.02531.

    Args:
        inputs: c * h * w of the images.
        widths: of the hidden layers.
        num_classes: outputs.
        dropout: probability after each hidden layer.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], num_classes: int, dropout: float) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, num_classes))
