"""Contributions against explicit convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.core.test_layers import Same
from upcycle.assembly.disassembly import contribution


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((3, 5), (2, 1), (0, 2), (1, 1)),
        ((2, 3), (2, 3), (1, 2), (2, 1)),
        ((1, 1), (2, 2), (0, 0), (1, 1)),
        ((7, 7), (2, 2), (3, 3), (1, 1)),
    ],
)
def test_contributions_are_those_of_explicit_convolutions_and_sum_to_the_output(
    size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x, m = torch.randn(3, 4, 9, 11), nn.Conv2d(4, 5, size, stride, padding, dilation)
    found = contribution.contribution_conv(x, m.weight, stride, padding, dilation)
    for k in range(5):
        for p in range(4):
            one = F.conv2d(x[:, p : p + 1], m.weight[k : k + 1, p : p + 1], None, stride, padding, dilation)
            assert torch.allclose(found[:, k, p], one.sum((1, 2, 3)), atol=1e-4)
    y = m(x)
    assert torch.allclose(found.sum(2) + y[0, 0].numel() * m.bias, y.sum((2, 3)), atol=1e-3)
    z = contribution.tap_sums(x, size, stride, padding, dilation)
    summed = contribution.summed_contribution(z.flatten(2), m.weight.flatten(2))
    assert torch.allclose(summed, found.relu().sum(0), atol=1e-4)


def test_linear_contributions_need_no_array_of_all_samples() -> None:
    torch.manual_seed(0)
    x, m = torch.randn(6, 7), nn.Linear(7, 3)
    each = contribution.contribution_linear(x, m.weight)
    assert torch.allclose(each.sum(2) + m.bias, m(x), atol=1e-5)
    assert torch.allclose(
        contribution.summed_contribution(x[:, :, None], m.weight[:, :, None]), each.relu().sum(0), atol=1e-5
    )


def test_relative_contribution_is_a_min_max_over_the_inputs() -> None:
    s = torch.tensor([[0.0, 5.0, 10.0], [3.0, 3.0, 3.0]])
    assert torch.allclose(contribution.relative(s), torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]), atol=1e-5)


@pytest.mark.parametrize(
    "m",
    [
        nn.Conv2d(2, 3, (2, 3), padding="same", bias=False),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", bias=False),
        Same(2, 3, 3, stride=2, bias=False),
    ],
    ids=["same", "reflect", "TensorFlow"],
)
def test_other_paddings(m: nn.Conv2d) -> None:
    x = torch.randn(2, 2, 6, 6)
    z = contribution.layer_tap_sums(m, x)
    assert torch.allclose(torch.einsum("bit,oit->bo", z, m.weight.flatten(2)), m(x).sum((2, 3)), atol=1e-4)
