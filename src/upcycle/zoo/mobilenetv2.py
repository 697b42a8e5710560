"""MobileNetV2, narrow and for small images: Inverted Residuals and Linear Bottlenecks.

Sandler, Howard, Zhu, Zhmoginov, Chen (arXiv:1801.04381), section 4. Departures for 32 x 32 pixels: the first
convolution keeps the size, and there are four stages, in three of which the sides are halved.

With coordinate attention (Hou, Zhou, Feng, arXiv:2103.02907) as its paper has it: in every block that expands, on the
wide channels, between the depthwise convolution and the projection.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from upcycle.zoo import keys
from upcycle.zoo.from_timm import gate_class, import_timm
from upcycle.zoo.resnet import initialise

# Expansion t, channels c, blocks n and first stride s, as in table 2 of the paper.
SMALL = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 48, 3, 2), (4, 96, 2, 2))


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel by itself, project by a linear 1x1 convolution (figure 4).

    The input is added where the shape stays.

    Args:
        inputs, outputs: channels.
        stride: of the depthwise convolution.
        expansion: t; with 1 there is no expanding convolution.
        attention: follow the depthwise convolution by coordinate attention.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, attention: bool = False) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand: nn.Module = nn.Identity() if expansion == 1 else _layer(inputs, hidden, 1)
        # Every second pixel of a convolution without stride is the convolution with stride 2, whose backward in
        # bf16 is many times slower on a CPU.
        self.depthwise = _layer(hidden, hidden, 3, groups=hidden)
        if stride > 1:
            self.depthwise.insert(1, nn.MaxPool2d(1, stride))
        if attention:
            self.depthwise.append(coordinate_attention(hidden))
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Images (b, c, h, w) of any size to logits (b, k).

    Args:
        stages: (expansion, channels, blocks, stride of the first block) of each.
        num_classes: k.
        in_channels: c.
        last: channels of the 1x1 convolution before the pooling.
        attention: coordinate attention in every block that expands.
    """

    def __init__(
        self,
        stages: tuple[tuple[int, int, int, int], ...],
        num_classes: int,
        in_channels: int = 3,
        last: int = 320,
        attention: bool = False,
    ) -> None:
        super().__init__()
        width = stages[0][1]
        self.stem = _layer(in_channels, width, 3)
        self.stages = nn.Sequential()
        for expansion, outputs, blocks, stride in stages:
            gated = attention and expansion > 1
            first = InvertedResidual(width, outputs, stride, expansion, gated)
            rest = (InvertedResidual(outputs, outputs, 1, expansion, gated) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
            width = outputs
        self.last = _layer(width, last, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(last, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.last(self.stages(self.stem(images)))
        return self.linear(self.pool(x).flatten(1))


def published_with_attention(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Make MobileNetV2 of the published size with coordinate attention: timm's, with it in the place of SE.

    Args:
        shape: (c, h, w); any size is taken.
        num_classes: k.
    """
    made: nn.Module = import_timm().create_model("mobilenetv2_100", num_classes=num_classes, in_chans=shape[0])
    for name, module in list(made.named_modules()):
        if name.endswith(".se") and not name.startswith("blocks.0."):
            assert isinstance(module, nn.Identity)
            depthwise = made.get_submodule(f"{name[:-3]}.conv_dw")
            assert isinstance(depthwise, nn.Conv2d)
            made.set_submodule(name, coordinate_attention(depthwise.out_channels))
    made.published_names = keys.MOBILENETV2_CA  # type: ignore[assignment]
    return made


def coordinate_attention(channels: int, hidden: int | None = None, gate: Any = nn.Sigmoid) -> nn.Module:
    """Make coordinate attention: timm's module with the hidden width and biases of the paper, which it does not have.

    Args:
        channels: C.
        hidden: the width of the narrow layer; max(8, C div 32), as published, when not given.
        gate: the class of the function that gives the gates.

    Raises:
        UserError: timm is missing, or too old.
    """
    width = hidden or max(8, channels // 32)
    made: nn.Module = gate_class("coord")(channels, rd_channels=width, bias=True, gate_layer=gate)
    return made


def _layer(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())
