"""Layers whose weights are sampled from epitomes, and networks of such layers: exact invariants."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.settings import tiny_model
from upcycle.core.cut import cut
from upcycle.core.frozen import frozen
from upcycle.core.references import resolve
from upcycle.core.store import tensor_digest
from upcycle.measure.cost import count
from upcycle.surgery.epitome import (
    EpitomeConv2d,
    circular_mean,
    compress,
    count_stored,
    epitomes,
    materialise,
    rebuild_epitome,
    sample,
    shift,
    tiled_conv2d,
    wrapped_conv2d,
)

PLAIN: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def routing(c_out: int, c_in: int, epitome: Tensor, seed: int = 0, *, whole: bool = False) -> Tensor:
    """A random routing map; at whole offsets if asked."""
    e_out, e_in = epitome.shape[:2]
    turns = torch.rand(ceil(c_out / e_out), 1 + ceil(c_in / e_in), generator=seeded(seed), dtype=epitome.dtype)
    if whole:
        size = torch.tensor([e_out] + [e_in] * (turns.shape[1] - 1), dtype=epitome.dtype)
        turns = (turns * size).floor() / size
    return turns


def layer(mode: str = "learned", ratio: float = 0.25, c_in: int = 12, c_out: int = 20, **conv: Any) -> EpitomeConv2d:
    return EpitomeConv2d(nn.Conv2d(c_in, c_out, 3, padding=1, **conv), ratio, mode, 0.1, seeded())


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("start", [0, 3, 7, -2, 23])
def test_whole_offsets_roll_exactly(dim: int, start: int) -> None:
    e = draw(8, 6, 3, 3)
    assert torch.equal(shift(e, torch.tensor(float(start)), dim), torch.roll(e, -start, dim))


def test_shift_is_the_interpolation_kernel_round_a_circle() -> None:
    e, start, n = draw(7, 2, dtype=torch.float64), 4.3, 7
    expected = torch.zeros_like(e)
    for k in range(n):
        for q in range(-n, 3 * n):
            expected[k] += e[q % n] * max(0.0, 1 - abs(start + k - q))
    assert torch.allclose(shift(e, torch.tensor(start, dtype=torch.float64), 0), expected, atol=1e-12)


def test_a_patch_is_the_rolled_epitome_cut_to_size() -> None:
    e = draw(4, 8, 3, 3)
    turns = torch.tensor([[0.0, 0.0, 0.25], [0.5, 0.125, 0.75]])
    theta = sample(e, turns, (7, 13))
    assert theta.shape == (7, 13, 3, 3)
    assert torch.equal(theta[:4, :8], e)
    assert torch.equal(theta[:4, 8:], e.roll(-2, 1)[:, :5])
    assert torch.equal(theta[4:, :8], e.roll((-2, -1), (0, 1))[:3])
    assert torch.equal(theta[4:, 8:], e.roll((-2, -6), (0, 1))[:3, :5])


def test_an_epitome_of_the_whole_size_is_an_ordinary_convolution() -> None:
    conv = nn.Conv2d(6, 10, 3, padding=1, stride=2)
    made = EpitomeConv2d(conv, 1.0, "learned", 0.1, seeded()).eval()
    assert made.epitome.shape == conv.weight.shape
    made.routing.zero_()
    made.epitome.data, made.bias.data = conv.weight.data, conv.bias.data
    x = draw(2, 6, 9, 9)
    assert torch.allclose(made(x), conv(x), atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("c_out", "c_in"), [(16, 16), (15, 13), (4, 20), (20, 5), (9, 8)])
def test_wrapped_is_the_convolution_with_the_whole_weight(c_out: int, c_in: int, whole: bool) -> None:
    e, x = draw(4, 5, 3, 3), draw(2, c_in, 7, 7, seed=1)
    for seed, geometry in enumerate((PLAIN, {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)})):
        turns = routing(c_out, c_in, e, seed, whole=whole)
        expected = F.conv2d(x, sample(e, turns, (c_out, c_in)), **geometry)
        assert torch.allclose(wrapped_conv2d(x, e, turns, (c_out, c_in), **geometry), expected, atol=1e-5)


@pytest.mark.parametrize(("c_out", "c_in"), [(16, 15), (14, 13), (4, 5)])
def test_tiled_is_the_convolution_with_the_repeated_epitome(c_out: int, c_in: int) -> None:
    e, x = draw(4, 5, 3, 3) / 8, draw(2, c_in, 7, 7, seed=1)
    expected = F.conv2d(x, e.repeat(4, 3, 1, 1)[:c_out, :c_in], **PLAIN)
    assert torch.allclose(tiled_conv2d(x, e, (c_out, c_in), **PLAIN), expected, atol=1e-6)


def test_the_gradient_to_offsets_is_that_of_finite_differences() -> None:
    e = draw(4, 5, 3, 3, dtype=torch.float64)
    goal = draw(10, 12, 3, 3, seed=1, dtype=torch.float64)
    turns = (routing(10, 12, e, whole=True) + 0.05).requires_grad_()  # 0.2 to 0.25 past whole offsets

    def loss(turns: Tensor) -> Tensor:
        return (sample(e, turns, (10, 12)) - goal).square().sum()

    (found,) = torch.autograd.grad(loss(turns), turns)
    for at in ((0, 0), (0, 2), (1, 1), (2, 3)):
        step = torch.zeros_like(found)
        step[at] = 1e-6
        with torch.no_grad():
            slope = float(loss(turns + step) - loss(turns - step)) / 2e-6
        assert float(found[at]) == pytest.approx(slope, rel=1e-5)


def test_positions_on_a_circle_average_across_its_end() -> None:
    half = torch.tensor([0.5, 0.5])
    mean = circular_mean(torch.tensor([[0.95, 0.2], [0.05, 0.4]]), half)
    assert min(float(mean[0]), 1 - float(mean[0])) < 1e-6 and float(mean[1]) == pytest.approx(0.3)


@pytest.mark.parametrize("mode", ["learned", "tile"])
def test_eval_sees_one_sample_alone(mode: str) -> None:
    made, x = layer(mode).eval(), draw(4, 12, 8, 8)
    assert torch.allclose(made(x)[:1], made(x[:1]), atol=1e-6)


def test_training_lets_samples_of_a_batch_see_each_other() -> None:
    made, x = layer(), draw(4, 12, 8, 8)
    made.learner.weight.data.normal_(generator=seeded())  # at the start its answer is constant
    other = torch.cat([x[:2], draw(2, 12, 8, 8, seed=5) ** 2])
    assert not torch.allclose(made(x)[:2], made(other)[:2], atol=1e-4)


def test_the_routing_map_follows_the_live_offsets() -> None:
    made, x = layer(), draw(4, 12, 8, 8)
    before, made.learner.bias.data = made.routing.clone(), made.learner.bias.data + 0.3
    live = made.learner(x)
    made(x)
    assert torch.allclose(made.routing, circular_mean(torch.stack([before, live]), torch.tensor([0.9, 0.1])))
    assert not torch.equal(made.routing, before)
    made.eval()(x)
    for _ in range(200):
        made.train()(x)
    assert torch.allclose(made.routing, live, atol=1e-4)
    assert torch.allclose(made(x), made.eval()(x), atol=1e-4)


def test_the_learner_gets_gradients_through_the_offsets() -> None:
    made, x = layer(), draw(4, 12, 8, 8)
    made(x).square().mean().backward()
    assert float(made.learner.bias.grad.abs().min()) > 0 and float(made.learner.weight.grad.abs().max()) > 0


def test_rows_start_with_sums_of_other_channels() -> None:
    made = layer(ratio=0.1, c_in=32, c_out=32)
    starts = made.routing[:, 1:]
    assert starts.shape[0] >= 3
    apart = (starts[:, 1:] - starts[:, :1]) % 1.0
    assert len({tuple(row) for row in apart.round(decimals=4).tolist()}) == len(starts)
    assert float(starts.min()) > 0 and float(starts.max()) < 1


def test_the_outputs_of_a_layer_begin_as_large_as_those_of_the_whole_one() -> None:
    x = draw(8, 64, 12, 12).relu()
    for mode in ("learned", "tile"):
        made = EpitomeConv2d(nn.Conv2d(64, 64, 3, bias=False), 0.25, mode, 0.1, seeded()).eval()
        whole = nn.Conv2d(64, 64, 3, bias=False)
        nn.init.kaiming_normal_(whole.weight, nonlinearity="relu", generator=seeded(1))
        assert 0.5 < float((made(x).std() / whole(x).std()).detach()) < 1.5


@pytest.mark.parametrize("mode", ["learned", "tile"])
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.25, 0.5, 0.8, 1.0])
def test_the_ratio_is_kept_within_a_row(mode: str, ratio: float) -> None:
    for c_in, c_out, k in ((64, 64, 3), (32, 64, 3), (96, 384, 1), (24, 10, 5)):
        made = EpitomeConv2d(nn.Conv2d(c_in, c_out, k, bias=False), ratio, mode, 0.1, seeded())
        row = made.epitome[0].numel() + (made.routing.shape[1] if made.routing is not None else 0)
        assert abs(count_stored(made) - ratio * c_in * c_out * k * k) <= row


class Deep(nn.Module):
    """Every kind of convolution that stays, and two that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.mirror = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.expand, self.same = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding="same", dilation=2, bias=False)
        self.norm, self.head = nn.BatchNorm2d(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mirror(self.depthwise(self.stem(x).relu())).relu()
        return self.head(self.norm(self.same(self.expand(x))).relu().mean((2, 3)))


@pytest.mark.parametrize("mode", ["learned", "tile"])
def test_a_compressed_network(mode: str) -> None:
    net = Deep().eval()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    made = compress(net, 0.25, mode, generator=seeded())
    assert {name for name, m in made.named_modules() if isinstance(m, EpitomeConv2d)} == {"expand", "same"}
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    kept = sum(p.numel() for name, p in net.named_parameters() if name not in ("expand.weight", "same.weight"))
    new = sum(m.epitome.numel() + (m.routing.numel() if mode == "learned" else 0) for m in epitomes(made))
    assert count_stored(made) == kept + new
    x = draw(3, 1, 8, 8)
    ordinary = materialise(made)
    assert not epitomes(ordinary) and len(epitomes(made)) == 2
    assert {k: v.shape for k, v in ordinary.state_dict().items()} == {k: v.shape for k, v in before.items()}
    with torch.no_grad():
        assert torch.allclose(ordinary(x), made(x), atol=1e-5)


def test_the_same_seed_the_same_network_and_no_global_randomness() -> None:
    before = torch.get_rng_state()
    digests = [tensor_digest(compress(tiny_model("a", 0).module, 0.25, generator=seeded(s)).state_dict())
               for s in (1, 1, 2)]  # fmt: skip
    torch.set_rng_state(before)
    compress(tiny_model("a", 0).module, 0.25, generator=seeded())
    state = torch.get_rng_state()
    tiny_model("a", 0)
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_multiply_adds_fall_by_the_number_of_wrapped_groups() -> None:
    whole = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1))
    stem, layer2 = 32 * 9 * 64, 32 * 32 * 9 * 64
    assert count(whole, (1, 8, 8)).macs == stem + layer2
    for mode, fewer in (("learned", 2), ("tile", 4)):
        made = compress(whole, 0.25, mode, generator=seeded()).eval()
        assert count(made, (1, 8, 8)).macs == stem + layer2 // fewer
        assert count(materialise(made), (1, 8, 8)).macs == stem + layer2


def test_it_can_be_traced_cut_frozen_and_rebuilt() -> None:
    model = resolve("zoo:convnet", pretrained=False, num_classes=10, input_shape=(1, 8, 8))
    options = {"source": {"reference": "zoo:convnet"}, "ratio": 0.25}
    for mode in ("learned", "tile"):
        made = rebuild_epitome(mode=mode, rebuild=lambda source: model, **options).eval()
        assert not any(m.learner for m in epitomes(made))
        x = draw(64, 1, 8, 8)
        with torch.no_grad():
            expected = made(x)
            first, second = cut(made, ["block2"])
            assert torch.allclose(second(first(x)), expected, atol=1e-5)
            assert torch.allclose(fx.symbolic_trace(made)(x), expected, atol=1e-5)
        fast = frozen(made, x, precision="32-true")
        assert torch.allclose(fast(x), expected, atol=1e-4) and fast.folded >= 1
