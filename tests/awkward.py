"""Networks that people have and that are awkward to take, by kind; for images (3, 32, 32) of ten classes."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SHAPE = (3, 32, 32)
CLASSES = 10
Answers = namedtuple("Answers", ["logits", "aux"])  # as torchvision has it, without types


class Viewing(nn.Module):
    """A view of a feature map, which memory in channels_last order does not have."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv, self.bn, self.pool = (
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.MaxPool2d(4),
        )
        self.linear = nn.Linear(16 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn(self.conv(x)).relu())
        return self.linear(x.view(len(x), -1))


class Body(nn.Module):
    """An ordinary small network: two convolutions with BatchNorm, a mean over positions, a linear classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width)
        self.linear = nn.Linear(2 * width, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x)).relu()

    def forward(self, x: Tensor) -> Any:
        return self.linear(self.features(x).mean((2, 3)))


class Auxiliary(Body):
    """A second head that answers in training mode only.

    Args:
        wrap: what the two answers come in.
    """

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.aux, self.wrap = nn.Linear(16, CLASSES), wrap

    def forward(self, x: Tensor) -> Any:
        x = self.features(x).mean((2, 3))
        return self.wrap(self.linear(x), self.aux(x)) if self.training else self.linear(x)


class Silent(Body):
    """``train`` that returns nothing, so that calls cannot be chained."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)


class Narrow(Body):
    """BatchNorm over maps of one pixel, which a batch of one has no statistics for."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.norm = nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Any:
        return self.linear(self.norm(self.pool(self.features(x))).flatten(1))


class OwnStatistics(Body):
    """BatchNorm that normalises by the batch at hand for good, so that an answer depends on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.bn2 = nn.BatchNorm2d(16, track_running_stats=False)


class AlwaysDropping(Body):
    """Dropout in evaluation mode too."""

    def forward(self, x: Tensor) -> Any:
        return self.linear(nn.functional.dropout(self.features(x).mean((2, 3)), 0.5))


class Pairs(Body):
    """A forward written for batches of two images."""

    def forward(self, x: Tensor) -> Any:
        return self.linear(self.features(x).mean((2, 3)).reshape(2, -1))


class NoGradient(Body):
    """A forward that records no gradient."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class Float32Only(Body):
    """Adds features to memory made in float32, where those of mixed precision do not go."""

    def features(self, x: Tensor) -> Tensor:
        x = self.conv2(self.bn1(self.conv1(x)).relu())
        return torch.zeros(x.shape, device=x.device).index_add(0, torch.arange(x.shape[0], device=x.device), x)


class Hardcoded(Body):
    """A forward that makes its images half precision itself."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.half())


def fixed() -> nn.Module:
    """No parameter that trains."""
    return Body().requires_grad_(False)


def scripted() -> nn.Module:
    return torch.jit.script(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    )


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(CLASSES))


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Body(), {nn.Linear}, dtype=torch.qint8)


def exported() -> nn.Module:
    return torch.export.export(Body().eval(), (torch.zeros(2, *SHAPE),)).module()


def meta() -> nn.Module:
    return Body().to("meta")


def compiled() -> nn.Module:
    return torch.compile(Body())  # type: ignore[return-value]


AUXILIARY: dict[str, Callable[[], nn.Module]] = {
    "tuple": lambda: Auxiliary(lambda a, b: (a, b)),
    "list": lambda: Auxiliary(lambda a, b: [a, b]),
    "dict": lambda: Auxiliary(lambda a, b: {"logits": a, "aux": b}),
    "other dict": lambda: Auxiliary(lambda a, b: {"aux": b, "out": a}),
    "named tuple": lambda: Auxiliary(Answers),
    "auxiliary first": lambda: Auxiliary(lambda a, b: (b, a)),
}
"""Networks with a second answer in training mode, by what the two come in."""

DTYPES: dict[str, Callable[[], nn.Module]] = {
    "float16": lambda: Body().half(),
    "bfloat16": lambda: Body().bfloat16(),
    "float64": lambda: Body().double(),
}

AWKWARD: dict[str, Callable[[], nn.Module]] = {
    "view": Viewing,
    "auxiliary": AUXILIARY["named tuple"],
    "float16": DTYPES["float16"],
    "fixed": fixed,
    "silent": Silent,
    "compiled": compiled,
    "torchscript": scripted,
    "lazy": lazy,
    "quantised": quantised,
    "meta": meta,
}
"""One of each kind, for the matrix of architectures and verbs."""
