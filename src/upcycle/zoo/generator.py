"""The small image generator of data-free distillation."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Noise (b, nz) to images (b, c, h, w) in (0, 1): a linear layer, upsampling and 3x3 convolutions.

    The network of Contrastive Model Inversion (arXiv:2105.08584): Linear to 2 ngf channels at a quarter of the
    side, BatchNorm, then twice (nearest upsampling, convolution, BatchNorm, LeakyReLU 0.2), a convolution to c
    channels and a sigmoid. Sides over 64 get further doublings in front, so that the linear layer stays small;
    a side that is no multiple of the start is cut out of the next larger one.

    Args:
        shape: (c, h, w).
        nz: length of the noise.
        ngf: base width.
    """

    def __init__(self, shape: tuple[int, int, int], nz: int = 256, ngf: int = 64) -> None:
        super().__init__()
        self.shape, self.nz, self.ngf = shape, nz, ngf
        doublings = max(2, math.ceil(math.log2(max(shape[1:]) / 16)))
        self.start = (math.ceil(shape[1] / 2**doublings), math.ceil(shape[2] / 2**doublings))
        self.linear = nn.Linear(nz, 2 * ngf * self.start[0] * self.start[1])
        self.norm = nn.BatchNorm2d(2 * ngf)
        widths = [2 * ngf] * doublings + [ngf]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [nn.Upsample(scale_factor=2), convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(ngf, shape[0], 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z).view(-1, 2 * self.ngf, *self.start)
        if z.device.type == "cpu" or z.is_cuda:
            x = x.contiguous(memory_format=torch.channels_last)
        x = torch.sigmoid(self.layers(self.norm(x)))
        top, left = (x.shape[2] - self.shape[1]) // 2, (x.shape[3] - self.shape[2]) // 2
        return x[:, :, top : top + self.shape[1], left : left + self.shape[2]]

    @torch.no_grad()
    def reset(self, random: torch.Generator) -> None:
        """Draw all weights anew: convolutions and linear N(0, 0.02), BatchNorm N(1, 0.02), biases 0."""
        for m in self.modules():
            _draw(m, 1.0, random)

    @torch.no_grad()
    def reset_first(self, random: torch.Generator) -> None:
        """Draw the linear layer and the first BatchNorm anew, the latter's weights around 0 (FastDFKD's code)."""
        _draw(self.linear, 0.0, random)
        _draw(self.norm, 0.0, random)


def _draw(m: nn.Module, centre: float, random: torch.Generator) -> None:
    if not isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
        return
    mean = centre if isinstance(m, nn.BatchNorm2d) else 0.0
    # Drawn on the CPU, so that the device does not change the numbers.
    m.weight.copy_(torch.randn(m.weight.shape, generator=random) * 0.02 + mean)
    if m.bias is not None:
        m.bias.zero_()
    if isinstance(m, nn.BatchNorm2d):
        m.reset_running_stats()
