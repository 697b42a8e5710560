"""The operations of networks that send spikes, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.settings_spiking import SHAPE, model, tiny_capped, tiny_spiking
from upcycle.core.models import Model
from upcycle.measure.cost import count
from upcycle.measure.energy import joules_of, operations


def of_one(layer: nn.Module, x: Tensor) -> Model:
    return Model(module=layer, input_shape=tuple(x.shape[1:]), mean=(0.0,), std=(1.0,))  # type: ignore[arg-type]


def test_a_spike_adds_once_for_each_synapse_that_it_meets() -> None:
    conv = nn.Conv2d(1, 6, 3, padding=1)
    x = torch.zeros(2, 1, 5, 5)
    x[0, 0, 2, 2] = 1  # in the middle 9 windows meet it, in a corner 4
    x[1, 0, 0, 0] = 1
    found = operations(of_one(conv, x), x)
    assert (found.additions, found.macs) == ((9 + 4) * 6 / 2, 0)
    linear, x = nn.Linear(4, 3), torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    assert operations(of_one(linear, x), x).additions == 2 * 3 / 2
    strided = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
    x = torch.ones(1, 2, 4, 4)
    assert operations(of_one(strided, x), x).additions == 2 * 2 * (4 + 6 + 6 + 9)


def test_numbers_are_multiplied() -> None:
    net = model(tiny_capped(), "capped")
    found = operations(net, net.example(5))
    assert (found.additions, found.macs) == (0, count(net.module, SHAPE).macs)


def test_a_spiking_network_multiplies_in_its_first_layer_alone() -> None:
    net = model(tiny_spiking(), "spiking")
    x = net.example(5)
    found = operations(net, x)
    assert found.macs == 8 * 8 * 4 * 9
    _, spikes = net.module.simulate(x)
    # Behind the last convolution every spike meets all 12 neurons of the linear layer, and theirs the 10 outputs.
    flat = float(spikes[1].sum()) * 12 + float(spikes[2].sum()) * 10
    assert flat / 5 < found.additions < flat / 5 + float(spikes[0].sum()) * 9 * 8 / 5
    assert found.joules == pytest.approx(found.additions * 0.9e-12 + found.macs * 4.6e-12)
    assert joules_of(1e6) == pytest.approx(4.6e-6)


def test_weights_and_modes_stay() -> None:
    net = model(tiny_spiking().train(), "spiking")
    before = [p.clone() for p in net.module.parameters()]
    operations(net, net.example(3))
    assert net.module.training and all(map(torch.equal, before, net.module.parameters()))
