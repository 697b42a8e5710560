"""Costs against independent counts, and the words they are shown in."""

import json

import pytest
import torch
from torch import nn

from upcycle.core.errors import UserError
from upcycle.measure.cost import count, latency, peak_memory
from upcycle.measure.machine import machine, matmul_rate
from upcycle.measure.units import bytes_, duration, si


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def hooked_macs(net: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds counted from shapes seen by hooks, the usual way of counters."""
    total = 0

    def add(module, args, out) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += out[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += out[0].numel() * module.in_features

    handles = [m.register_forward_hook(add) for m in net.modules()]
    net(x)
    for handle in handles:
        handle.remove()
    return total


def test_counts_agree_with_hooks_and_with_hand() -> None:
    net = convolutional()
    cost = count(net, (3, 16, 16))
    by_hand = 16 * 16 * 8 * 27 + 8 * 8 * 8 * 9 + 8 * 8 * 16 * 8 + 160
    assert cost.macs == by_hand == hooked_macs(net.eval(), torch.zeros(1, 3, 16, 16))
    assert cost.parameters == 3 * 8 * 9 + 16 + 80 + (8 * 16 + 16) + 170
    # Buffers: mean and variance in float32, and one int64 counter.
    assert cost.bytes == 4 * cost.parameters + 2 * 8 * 4 + 8


def test_torchvision_resnet18_has_its_published_cost() -> None:
    models = pytest.importorskip("torchvision.models")
    cost = count(models.resnet18(), (3, 224, 224))
    assert cost.parameters == 11_689_512
    assert si(cost.macs) == "1.81 G"


def test_fused_attention_counts_as_on_tensors_without_memory() -> None:
    class Attends(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert count(Attends(), (2, 6, 8)).macs == 2 * 2 * 6 * 6 * 8  # heads, then two products


def test_attention_counts() -> None:
    d, n = 16, 5
    layer = nn.TransformerEncoderLayer(d, 4, dim_feedforward=32, batch_first=True)
    projections = n * (3 * d * d + d * d + 2 * d * 32)
    assert count(layer, (n, d)).macs == projections + 2 * n * n * d
    assert torch.backends.mha.get_fastpath_enabled()


def test_measuring_leaves_no_trace() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)).train()
    net[1].eval()
    state, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    count(net, (4,)), latency(net, (4,), batch=2, repetitions=3), peak_memory(net, (4,), batch=2)
    assert [m.training for m in net] == [True, False, True]
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(UserError, match=r"Sequential does not take inputs of 1 x 16 x 16: .*channels"):
        count(convolutional(), (1, 16, 16))


def test_latency_grows_with_the_work() -> None:
    small = latency(nn.Linear(16, 16), (16,))
    large = latency(nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))), (512,), batch=256)
    assert 0 < small < large < 5


def test_peak_memory_is_the_largest_sum_of_live_tensors() -> None:
    # x and one output are alive during each layer; the wide one is the worst moment.
    net = nn.Sequential(nn.Linear(10, 1000, bias=False), nn.ReLU(), nn.Linear(1000, 10, bias=False))
    weights, batch = 4 * 20_000, 7
    x, wide = 4 * batch * 10, 4 * batch * 1000
    assert peak_memory(net, (10,), batch) == weights + x + 2 * wide
    net[1] = nn.ReLU(inplace=True)
    assert peak_memory(net, (10,), batch) == weights + x + wide + x

    class Hoarder(nn.Module):
        def forward(self, x):
            kept = [x + i for i in range(5)]
            return sum(kept)

    # A chain needs the input, one result and one operand; keeping all five needs them all.
    chain = nn.Sequential(*(nn.Softplus() for _ in range(5)))
    assert peak_memory(chain, (100,)) == 3 * 400
    assert peak_memory(Hoarder(), (100,)) >= 7 * 400


def test_machine_is_plain_data() -> None:
    here = machine()
    assert json.loads(json.dumps(here)) == here
    assert here["processor"] and here["cores"] >= 1
    assert here["threads"] == torch.get_num_threads()


def test_the_rate_of_matrix_products_is_measured_once() -> None:
    assert matmul_rate() > 1e8
    assert matmul_rate() == matmul_rate()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (si(272474), "272 k"),
        (si(1_280_000), "1.28 M"),
        (si(125_487_360), "125 M"),
        (si(999_999), "1.00 M"),
        (si(999), "999"),
        (si(0), "0"),
        (bytes_(512), "512 B"),
        (bytes_(1_234_567), "1.23 MB"),
        (bytes_(98_765), "98.8 kB"),
        (duration(0), "0 ns"),
        (duration(0.00123), "1.23 ms"),
        (duration(0.0000456), "45.6 µs"),
        (duration(0.9999), "1.00 s"),
        (duration(12.34), "12.3 s"),
        (duration(59.99), "1 min 0 s"),
        (duration(75), "1 min 15 s"),
        (duration(3599.9), "1 h 0 min"),
        (duration(3720), "1 h 2 min"),
    ],
)
def test_formats(text, expected) -> None:
    assert text == expected
