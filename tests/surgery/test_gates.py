"""Gates: the modules of their papers, costs in closed form, and a start at the network's own function."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.data import load
from upcycle.measure import cost
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.inserts.base import Place
from upcycle.surgery.inserts.gates import Scaled
from upcycle.surgery.inserts.strip_pooling import MixedPooling, StripPooling
from upcycle.surgery.operate import Cut, operate, start_error
from upcycle.surgery.signals import Signal

pytest.importorskip("timm", reason="timm is not installed (extra vision)")

GATES = ["coord", "se", "ese", "eca", "cbam", "gc", "spm"]
SIZES = pytest.mark.parametrize("size", [(6, 9), (1, 5), (5, 1), (8, 8)])


def place(channels: int = 16, size: tuple[int, int] = (6, 9), module: nn.Module | None = None) -> Place:
    signal = Signal("map", channels, size)
    return Place("stage.1", module or nn.Identity(), signal, signal)


def made(name: str, start: str = "fresh", channels: int = 16, size: tuple[int, int] = (6, 9), **options: Any) -> Any:
    """A block with statistics and weights that no start has, so that nothing is equal by chance."""
    torch.manual_seed(0)
    block = BLOCKS[name]
    module = block.make(place(channels, size), block.how, start, **options)
    if start == "fresh":
        for parameter in module.parameters():
            parameter.detach().uniform_(-0.2, 0.2)
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return module.eval()


def images(channels: int = 16, size: tuple[int, int] = (6, 9), n: int = 3) -> Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(1))


# -- every gate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*GATES, "mpm"])
@pytest.mark.parametrize("channels", [16, 72, 384])
def test_costs_are_those_that_are_counted(name: str, channels: int) -> None:
    block, signal = BLOCKS[name], Signal("map", channels, (6, 9))
    counted = cost.count(made(name, channels=channels), (channels, 6, 9))
    assert (block.parameters(signal), block.macs(signal)) == (counted.parameters, counted.macs)


@pytest.mark.parametrize(("name", "r"), [("coord", 2), ("se", 4), ("cbam", 3), ("gc", 64)])
def test_costs_follow_the_reduction(name: str, r: int) -> None:
    block, signal = BLOCKS[name], Signal("map", 48, (6, 9))
    counted = cost.count(made(name, channels=48, r=r), (48, 6, 9))
    assert (block.parameters(signal, r=r), block.macs(signal, r=r)) == (counted.parameters, counted.macs)


@pytest.mark.parametrize("name", GATES)
@SIZES
def test_shapes_stay_and_values_keep_their_signs_and_shrink(name: str, size: tuple[int, int]) -> None:
    x = images(size=size)
    y = made(name, size=size)(x)
    assert y.shape == x.shape
    assert ((y / x) > 0).all() and ((y / x) < 1).all()


@pytest.mark.parametrize("name", [*GATES, "mpm"])
@pytest.mark.parametrize("training", [True, False])
def test_the_start_is_the_networks_own_function(name: str, training: bool) -> None:
    for options in ({}, {"b0": 0.0}, {"b0": -3.0}) if "b0" in BLOCKS[name].options() else ({},):
        module = made(name, "same", **options).train(training)
        x = images()
        assert (module(x) - x).abs().max() <= 1e-6


@pytest.mark.parametrize("name", [*GATES, "mpm"])
def test_from_there_its_last_layer_learns(name: str) -> None:
    module = made(name, "same").train()
    (module(images()) * images().flip(0)).sum().backward()
    learning = {key for key, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    last = {
        "coord": {"conv_h.weight", "conv_w.bias"},
        "se": {"fc2.weight"},
        "ese": {"fc.weight"},
        "eca": {"conv.weight"},
        "cbam": {"channel.fc2.weight", "spatial.conv.bn.weight"},
        "gc": {"mlp_scale.fc2.weight"},
        "spm": {"last.weight"},
        "mpm": {"last.1.weight"},
    }
    assert last[name] <= learning


@pytest.mark.parametrize("name", GATES)
def test_a_fresh_one_has_no_constant_and_the_weights_of_timms_module(name: str) -> None:
    same, fresh = made(name, "same"), made(name)
    assert same.state_dict().keys() == fresh.state_dict().keys()
    fresh.load_state_dict(same.state_dict())
    x = images()
    factor = {"coord": 0.9900**2, "cbam": 0.25, "eca": 0.5, "ese": 0.5}.get(name, 0.9900)
    assert torch.allclose(fresh(x), factor * x, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("coord", {"r": 0}, "r must be at least 1, and it is 0"),
        ("coord", {"b0": 40.0}, "b0 must lie between -10 and 10, where a sigmoid still moves, and it is 40"),
        ("se", {"b0": float("nan")}, "b0 must lie between -10 and 10"),
        ("mpm", {"channels": 3}, r"mpm needs maps of 4 channels or more, and stage\.1 has 3"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        made(name, "same", **options)


# -- coordinate attention --------------------------------------------------------------------------------------


def published(module: nn.Module, x: Tensor) -> Tensor:
    """Equations 4 to 8 of the paper, one map after another."""
    m = module.state_dict()
    z = torch.cat([x.mean(3), x.mean(2)], dim=2)  # rows, then columns
    z = F.conv1d(z, m["conv1.weight"][..., 0], m["conv1.bias"])
    z = F.batch_norm(z, m["bn1.running_mean"], m["bn1.running_var"], m["bn1.weight"], m["bn1.bias"])
    z = z * F.relu6(z + 3) / 6
    rows, columns = z.split([x.shape[2], x.shape[3]], dim=2)
    g_h = torch.sigmoid(F.conv1d(rows, m["conv_h.weight"][..., 0], m["conv_h.bias"]))
    g_w = torch.sigmoid(F.conv1d(columns, m["conv_w.weight"][..., 0], m["conv_w.bias"]))
    return x * g_h[..., None] * g_w[:, :, None]


@SIZES
def test_coordinate_attention_is_that_of_the_paper(size: tuple[int, int]) -> None:
    module, x = made("coord", size=size), images(size=size)
    assert (module(x) - published(module, x)).abs().max() < 1e-6


def test_its_size_is_that_of_the_paper_and_not_timms_default() -> None:
    for c, m in ((96, 8), (192, 8), (384, 12), (960, 30)):
        assert BLOCKS["coord"].parameters(Signal("map", c, (7, 7))) == c * m + m + 2 * m + 2 * (m * c + c)
        assert made("coord", channels=c).conv1.out_channels == m


def test_without_weights_a_quarter_comes_out() -> None:
    module, x = made("coord"), images()
    for key in ("conv_h", "conv_w"):
        for p in module.get_submodule(key).parameters():
            nn.init.zeros_(p)
    assert torch.equal(module(x), x / 4)


def test_transposing_swaps_rows_and_columns() -> None:
    module, other, x = made("coord"), made("coord"), images()
    with torch.no_grad():
        module.conv_h.weight.normal_()
        other.load_state_dict(module.state_dict())
        other.conv_h, other.conv_w = other.conv_w, other.conv_h
    assert (module(x) - module.train(False)(x.transpose(2, 3)).transpose(2, 3)).abs().max() > 1e-3
    assert (module(x) - other(x.transpose(2, 3)).transpose(2, 3)).abs().max() < 1e-6


def test_the_gate_of_a_channel_has_rank_one() -> None:
    module = made("coord")
    for p in module.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(len(p)))
    x = images()
    values = torch.linalg.svdvals((module(x) / x).double())
    assert (values[..., 1] < 1e-5 * values[..., 0]).all()
    uniform = made("spm")(x) / x
    assert (torch.linalg.svdvals(uniform.double())[..., 1] > 1e-5).any()  # that of strip pooling has not


def test_columns_in_another_order_come_out_in_that_order() -> None:
    module, x = made("coord"), images()
    for order, axis in ((torch.randperm(9), 3), (torch.randperm(6), 2)):
        moved = x.index_select(axis, order)
        assert (module(moved) - module(x).index_select(axis, order)).abs().max() < 1e-6


def test_a_trained_network_keeps_its_function_and_without_the_constant_nearly_so(cifar10: Path) -> None:
    model, data = resolve("zoo:cifar10_resnet20"), load("cifar10")
    data = data.normalised(model.mean, model.std)
    x = data.test.batch(torch.arange(64), device=torch.device("cpu")).images
    product = operate(model, Cut(at=("layer*.bn2",), block="coord"))
    assert start_error(model, product, x) <= 1e-7
    for gate in product.module.modules():
        if isinstance(gate, Scaled):
            gate.one = 1.0  # σ(4.6)² = 0.98 of each branch
    with torch.no_grad():
        before, after = model.module.eval()(x), product.module.eval()(x)
    assert 1e-3 < (after - before).norm() / before.norm() < 0.05


# Channels and side of the maps behind the depthwise convolutions of MobileNetV2 that widen.
WIDE = ((64, 16), (96, 16), (96, 8), (192, 8), (192, 8), (192, 4), (384, 4))


@pytest.mark.parametrize("name", GATES)
def test_put_into_a_trained_network(name: str, cifar10: Path) -> None:
    model, block = resolve("zoo:cifar10_mobilenetv2"), BLOCKS[name]
    product = operate(model, Cut(at=("stages.[1-9].*.depthwise",), block=name))
    assert start_error(model, product, model.example(16)) <= 1e-7
    before, after = (cost.count(m.module, m.input_shape) for m in (model, product))
    signals = [Signal("map", c, (side, side)) for c, side in WIDE]
    assert after.parameters - before.parameters == sum(map(block.parameters, signals))
    assert after.macs - before.macs == sum(map(block.macs, signals))


# -- strip pooling and mixed pooling ---------------------------------------------------------------------------


def test_sizes_of_strip_and_mixed_pooling() -> None:
    assert BLOCKS["spm"].parameters(Signal("map", 10, (4, 7))) == 7 * 10**2 + 5 * 10
    assert BLOCKS["mpm"].parameters(Signal("map", 1024, (60, 60))) == 4_397_568
    assert MixedPooling(8, (60, 60)).grids == [(20, 20), (12, 12)]
    assert MixedPooling(8, (6, 9)).grids == [(2, 3), (1, 2)]


def test_strip_pooling_without_weights_halves() -> None:
    module, x = StripPooling(6).eval(), images(6)
    nn.init.zeros_(module.last.weight)
    assert module.last.bias is not None
    nn.init.zeros_(module.last.bias)
    assert torch.equal(module(x), x / 2)


def test_a_value_sees_its_row_and_its_column_alone() -> None:
    module = made("spm", channels=4, size=(9, 11))
    x = torch.rand(1, 4, 9, 11, requires_grad=True)
    module(x)[0, :, 4, 6].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0) > 0
    expected = torch.zeros(9, 11, dtype=torch.bool)
    expected[3:6] = True
    expected[:, 5:8] = True
    assert torch.equal(seen, expected)


def test_transposing_swaps_the_strips() -> None:
    module, other, x = made("spm"), made("spm"), images()
    for convolution in (module.vertical[0], module.horizontal[0]):
        nn.init.normal_(convolution.weight)
    state = module.state_dict()
    turned = {k: v.transpose(2, 3) if v.ndim == 4 else v for k, v in state.items()}
    swapped = {
        k.replace("vertical", "?").replace("horizontal", "vertical").replace("?", "horizontal"): v
        for k, v in turned.items()
    }
    other.load_state_dict(swapped)
    assert (module(x) - other(x.transpose(2, 3)).transpose(2, 3)).abs().max() < 1e-6


def test_mixed_pooling_without_its_last_scale_is_a_relu() -> None:
    module, x = MixedPooling(8, (6, 9)).eval(), images(8)
    nn.init.zeros_(module.last[1].weight)
    assert torch.equal(module(x), F.relu(x))
    bare = dataclasses.replace(place(8), name="stage.2")
    assert torch.equal(BLOCKS["mpm"].make(bare, "after", "same").eval()(x), x)


def test_a_strip_is_spread_as_bilinear_upsampling_spreads_it() -> None:
    row = torch.randn(2, 3, 1, 9)
    spread = F.interpolate(row, size=(6, 9), mode="bilinear", align_corners=True)
    assert (spread - row.expand(2, 3, 6, 9)).abs().max() < 1e-6
