"""Small networks with everything that channels are followed through, and components of networks."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from upcycle.assembly import MDA
from upcycle.assembly.disassembly.component import cut_component
from upcycle.core.models import Model
from upcycle.core.run import Run
from upcycle.data import Images
from upcycle.surgery.following import follow_channels

CPU = torch.device("cpu")


def seen(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` with random weights and BatchNorms that are no identities."""
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for name, low, high in (
                ("running_mean", -0.3, 0.3),
                ("running_var", 0.5, 1.5),
                ("weight", 0.5, 1.5),
                ("bias", -0.3, 0.3),
            ):
                getattr(m, name).data.uniform_(low, high, generator=g)
        elif isinstance(m, nn.Conv2d | nn.Linear):
            m.weight.data.normal_(0.0, (2 / m.weight[0].numel()) ** 0.5, generator=g)
    return module.eval()


class Flat(nn.Module):
    """conv-BN-ReLU, pooling, conv-ReLU, and a flatten of 2 x 2 places into two linear layers; 8 x 8 grey."""

    def __init__(self, k: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(20, 7), nn.Linear(7, k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.bn(self.conv1(x)).relu(), 2)
        return self.fc2(self.fc1(self.conv2(x).relu().flatten(1)).relu())


class Gated(nn.Module):
    """Depthwise convolutions, a gate, a sum and a concatenation, as in MobileNets; 8 x 8 grey."""

    def __init__(self, k: int = 4) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.up, self.depthwise, self.down = (
            nn.Conv2d(6, 12, 1),
            nn.Conv2d(12, 12, 3, 1, 1, groups=12),
            nn.Conv2d(12, 6, 1),
        )
        self.squeeze, self.excite = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.prelu, self.head = nn.PReLU(), nn.Linear(12, k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn(self.stem(x)))
        y = self.depthwise(self.up(x)).relu()
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(torch.cat([x + self.down(y), x], 1).mean((2, 3)))


def model(module: nn.Module, names: str = "abcd", name: str = "net", stats: tuple[float, float] = (0.3, 0.4)) -> Model:
    return Model(module=module, input_shape=(1, 8, 8), mean=stats[:1], std=stats[1:], classes=tuple(names), name=name)


def run() -> Run:
    return Run(None, quiet=True)


def part_of(source: Model, digits: Images, **options: object) -> Model:
    method = MDA(source=source, **options)
    return method.product(method.fit(run(), digits), digits)


def some_part(kind: type[nn.Module], seed: int, share: float, **facts: object) -> Model:
    """A component with random routes."""
    whole = model(seen(kind(), seed))
    channels = follow_channels(whole.module, whole.example(2))
    g = torch.Generator().manual_seed(seed)
    keep = torch.rand(2, channels.n, generator=g) < share
    for layer in channels.layers:
        keep[:, layer.outputs[0]] = True
    made = cut_component(whole.module, channels, keep, [3, 1], example=whole.example(4))
    return dataclasses.replace(whole, module=made, **facts)  # type: ignore[arg-type]
