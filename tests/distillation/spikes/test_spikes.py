"""Percentiles, targets, the layers that are copied, and naive conversion."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from tests.settings import tiny_data
from tests.settings_spiking import model, tiny_capped, tiny_spiking
from upcycle.core.models import Model
from upcycle.distillation.spikes import rates
from upcycle.distillation.spikes.conversion import converted
from upcycle.distillation.spikes.layers import copied, looked_at
from upcycle.distillation.spikes.rates import distances, firing, percentile, target

DRAWN = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("q", [0.1, 50.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("n", [1, 2, 10, 999, 1000, 1001])
def test_a_percentile_is_the_nearest_rank(n: int, q: float) -> None:
    a = torch.randn(n, generator=DRAWN, dtype=torch.float64)
    rank = max(1, math.ceil(Fraction(str(q)) * n / 100))
    assert float(percentile(a.view(1, 1, n), q)) == float(a.sort().values[rank - 1])
    if not (q * n / 100).is_integer():  # where numpy and floating point may see another rank
        assert float(percentile(a, q)) == np.percentile(a.numpy(), q, method="inverted_cdf")


def test_of_many_elements_some_are_drawn_by_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MOST", 20_000)
    a = torch.rand(200_000, generator=DRAWN)
    one, same, other = (percentile(a, 99.0, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one == same != other and abs(float(one) - 0.99) < 0.004
    assert percentile(a, 99.0) == percentile(a, 99.0)


@pytest.mark.parametrize("q", [90.0, 99.0, 99.9])
def test_targets_are_rates_and_few_are_clipped(q: float) -> None:
    a = torch.randn(64, 8, 5, 5, generator=DRAWN).clamp_min(0)
    P = percentile(a, q)
    A = target(a, P)
    assert float(A.min()) == 0 and float(A.max()) == 1
    assert float((a > P).double().mean()) <= (100 - q) / 100 + 1e-12
    torch.testing.assert_close(A[a <= P], (a / P)[a <= P])


def test_a_layer_of_zeros_has_zeros_for_targets() -> None:
    a = torch.zeros(4, 6)
    assert not target(a, percentile(a, 99.9)).any()
    a[0, 0] = 1e-3  # above a percentile that is 0
    assert target(a, percentile(a, 50.0)).sum() == 1


def test_distances_are_those_of_rates() -> None:
    spikes = torch.tensor([[[1.0, 0, 0]], [[1, 1, 0]]])  # rates 1, 1/2, 0
    assert distances([spikes], [torch.tensor([[0.5, 0.5, 0.25]])]) == [pytest.approx(0.25)]
    net = tiny_spiking()
    shares = firing(net, torch.randn(6, 1, 8, 8, generator=DRAWN))
    assert [len(s) for s in shares] == [4, 4, 4] and all(0 <= v <= 1 for s in shares for v in s)
    assert sum(shares[0]) > 0


def test_activations_are_found_in_their_order_or_by_name() -> None:
    capped = model(tiny_capped(), "capped")
    found = copied(capped)
    assert [type(capped.module.get_submodule(name)) for name in found] == [nn.Hardtanh] * 3
    assert copied(capped, ["linear"]) == ("linear",)
    gelu = model(nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(64, 10), nn.Tanh()), "gelu")
    assert copied(gelu) == ("1", "3")


# -- conversion -------------------------------------------------------------------------------------------------------


def trained_capped() -> Model:
    from tests.distillation.test_ltl import trained

    return trained()


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_a_converted_network_has_the_activations_as_rates(reset: str) -> None:
    """For many steps those of soft reset come close; a hard reset loses what exceeds the threshold."""
    teacher, data = trained_capped(), tiny_data()
    images = looked_at(teacher, data)
    names = copied(teacher)
    made = converted(teacher, tiny_spiking(time_steps=400), images, names, q=100.0, reset=reset)  # type: ignore[arg-type]
    with torch.no_grad():
        z, z_s = teacher.module(images), made(images)
    error = float((z - z_s).abs().mean() / z.abs().mean())
    assert error < 0.05 if reset == "subtract" else error < 0.6
    if reset == "subtract":
        assert float((z.argmax(1) == z_s.argmax(1)).double().mean()) >= 0.95
    assert made.neurons[0].decay == 1 and made.neurons[0].theta == 1 and made.time_steps == 400


def test_a_conversion_scales_by_percentiles_and_folds() -> None:
    teacher, data = trained_capped(), tiny_data()
    images, names = looked_at(teacher, data), copied(teacher)
    seen: list[torch.Tensor] = []
    teacher.module.blocks[0].register_forward_hook(lambda m, x, a: seen.append(a))
    with torch.no_grad():
        teacher.module(images)
    teacher.module.blocks[0]._forward_hooks.clear()
    made = converted(teacher, tiny_spiking(), images, names)
    with torch.no_grad():
        currents = made.synapses[0](images).clamp_min(0) * percentile(seen[0], 99.9)
    torch.testing.assert_close(currents.clamp_max(2.0), seen[0], rtol=1e-4, atol=1e-5)


def test_networks_of_other_shapes_are_not_converted() -> None:
    other = model(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, 10)), "other")
    with pytest.raises(ValueError, match="other and the spiking network have layers of other shapes"):
        converted(other, tiny_spiking(), other.example(2), ["1"])
