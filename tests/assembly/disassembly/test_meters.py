"""Slopes of confident answers, and sums of them over samples."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.assembly.networks import CPU, Flat, seen
from upcycle.assembly.disassembly import meters, routes
from upcycle.data import Images
from upcycle.surgery.following import follow_channels


def test_the_slope_of_a_sure_answer_is_not_cancelled() -> None:
    z, y = torch.tensor([[30.0, 0.0, -5.0], [0.3, -1.0, 2.0]]), torch.tensor([0, 1])
    exact = z.double().requires_grad_()
    exact.softmax(1).gather(1, y[:, None]).sum().backward()
    assert exact.grad is not None
    found = meters._softmax_slope(z, y)
    assert torch.allclose(found[1].double(), exact.grad[1], rtol=1e-5)
    assert found[0, 0] == pytest.approx(torch.tensor([-30.0, -35.0]).exp().sum().item(), rel=1e-4)
    assert found[0, 0] > 0 > found[0, 1]


def test_gradient_scores_are_those_of_autograd(digits: Images) -> None:
    net = seen(Flat(4), seed=3)
    split = digits.train.normalised((0.3,), (0.4,))
    channels = follow_channels(net, torch.randn(2, 1, 8, 8))
    meter = meters.GradientMeter(copy.deepcopy(net).requires_grad_(False), channels)
    found = meter(split, {2: torch.arange(70)}, CPU)[2]
    images = split.batch(torch.arange(70), device=CPU).images
    maps = net.bn(net.conv1(images)).relu()
    kept = net.conv2(F.max_pool2d(maps, 2))
    p = net.fc2(net.fc1(kept.relu().flatten(1)).relu()).softmax(1)[:, 2].sum()
    slope = torch.autograd.grad(p, kept)[0]
    assert torch.allclose(found["conv2"], slope.relu().sum((0, 2, 3)), rtol=1e-3, atol=1e-7)
    rows = routes.find_routes(net, channels, split, {2: torch.arange(70)}, score="gradient")
    assert all(rows[0, layer.outputs].any() for layer in channels.layers)
    assert not rows.all()
