"""What a layer computes: harmless subclasses are told from those that compute their weight or pad by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from upcycle.core.frozen import fold_batchnorm, frozen
from upcycle.core.layers import base_of, padded


class Named(nn.Conv2d):
    """A subclass that adds a name."""


class Rewritten(nn.Linear):
    """A forward of its own that computes the same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1, computed anew in each forward."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / std, self.bias)


class Adapted(nn.Linear):
    """A low-rank change beside the weight, zero as yet: it answers as a linear layer does, and holds more."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.low = nn.Parameter(torch.zeros(sizes[1], sizes[0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.low, self.bias)


class Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Same(nn.Conv2d):
    """TensorFlow's padding: the odd pixel of zeros lies behind."""

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        h, w = (max((-(-n // s) - 1) * s + k - n, 0) for n in x.shape[2:])
        x = F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Picky(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("another input, please")


CASES: dict[str, tuple[Any, Any, Any]] = {  # the layer, its base, and its base where padding is not asked for
    "linear": (lambda: nn.Linear(4, 3), nn.Linear, nn.Linear),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding_mode="reflect", padding=1), nn.Conv2d, nn.Conv2d),
    "a name": (lambda: Named(4, 6, 3, stride=2, padding="valid", dilation=2), nn.Conv2d, nn.Conv2d),
    "circular": (lambda: Named(4, 6, 3, padding=1, padding_mode="circular"), nn.Conv2d, nn.Conv2d),
    "a forward of its own": (lambda: Rewritten(4, 3, bias=False), nn.Linear, nn.Linear),
    "half precision": (lambda: Rewritten(4, 3).bfloat16(), nn.Linear, nn.Linear),
    "norm": (lambda: nn.BatchNorm2d(4), nn.BatchNorm2d, nn.BatchNorm2d),
    "norm without statistics": (lambda: nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d, nn.BatchNorm1d),
    "another padding": (lambda: Same(4, 6, 3, stride=2), None, nn.Conv2d),
    "standardised weights": (lambda: Standardised(4, 6, 3), None, None),
    "more parameters": (lambda: Adapted(4, 3), None, None),
    "parametrised": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), None, None),
    "weight norm of old": (lambda: nn.utils.weight_norm(nn.Linear(4, 3)), None, None),
    "an activation behind": (lambda: Activated(4), None, None),
    "no answer": (lambda: Picky(4, 3), None, None),
    "no weights": (lambda: nn.Linear(4, 3, device="meta"), nn.Linear, nn.Linear),
    "another layer": (lambda: nn.LayerNorm(4), None, None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_what_a_layer_computes(name: str) -> None:
    make, base, repadded = CASES[name]
    torch.manual_seed(0)
    layer, state = make(), torch.random.get_rng_state()
    assert (base_of(layer), base_of(layer, repadded=True)) == (base, repadded)
    assert layer.training and torch.equal(torch.random.get_rng_state(), state)


def test_layers_of_timm_and_transformers() -> None:
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    assert base_of(timm.layers.Linear(4, 3)) is nn.Linear
    same = timm.layers.Conv2dSame(4, 6, 3, stride=2)
    assert base_of(same) is None and base_of(same, repadded=True) is nn.Conv2d
    for kind in (timm.layers.ScaledStdConv2d, timm.layers.ScaledStdConv2dSame, timm.layers.StdConv2d):
        assert base_of(kind(4, 6, 3), repadded=True) is None
    assert base_of(timm.layers.BatchNormAct2d(4)) is None
    assert base_of(transformers.pytorch_utils.Conv1D(3, 4)) is None


@pytest.mark.parametrize("size", [7, 8])
def test_an_image_as_the_kernel_meets_it(size: int) -> None:
    x = torch.randn(2, 4, size, size + 1)
    for m in (
        Same(4, 6, 3, stride=2),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, (3, 2), padding="same"),
    ):
        filled = padded(m, x)
        assert filled is not None
        right = F.conv2d(filled, m.weight, m.bias, m.stride, 0, m.dilation)
        torch.testing.assert_close(m(x), right)
    assert padded(nn.Conv2d(4, 6, 3, padding=1), x) is None


def test_batchnorms_fold_into_harmless_subclasses_and_into_no_others() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        Named(3, 4, 3),
        nn.BatchNorm2d(4),
        Same(4, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        Standardised(4, 4, 1),
        nn.BatchNorm2d(4),
        Activated(4),
    ).eval()
    for m in net:
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-1, 1)
            m.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 3, 9, 9)
    folded, count = fold_batchnorm(net)
    assert count == 2
    torch.testing.assert_close(folded(x), net(x))
    assert frozen(net, x).folded == 2
