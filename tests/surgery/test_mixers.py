"""Token mixers: what each computes on maps, grids and tokens, and costs in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.measure import cost
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.inserts.base import Place
from upcycle.surgery.operate import Cut, operate
from upcycle.surgery.signals import Layout, Signal

pytest.importorskip("timm", reason="timm is not installed (extra vision)")

MIXERS = ["pool", "identity", "random", "sepconv", "attention"]
H, W, C = 6, 9, 64


def made(name: str, layout: Layout = "map", channels: int = C, extra: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    signal = Signal(layout, channels, (H, W), extra)
    place = Place("blocks.0.mixer", nn.Identity(), signal, signal)
    return BLOCKS[name].make(place, "replace", "fresh", **options).eval()


def some(n: int = 2) -> Tensor:
    return torch.randn(n, C, H, W, generator=torch.Generator().manual_seed(1))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ("name", "layout", "extra"),
    [*((name, "map", 0) for name in MIXERS), ("identity", "tokens", 2), ("attention", "tokens", 2)],
)
def test_costs_are_those_that_are_counted(name: str, layout: Layout, extra: int) -> None:
    block, signal = BLOCKS[name], Signal(layout, C, (H, W), extra)
    assert layout in block.kinds
    counted = cost.count(made(name, layout, extra=extra), signal.shape(1)[1:])
    assert (block.parameters(signal), block.macs(signal)) == (counted.parameters, counted.macs)


@pytest.mark.parametrize(
    ("name", "options"),
    [("pool", {"size": 5}), ("sepconv", {"expansion": 3, "kernel": 5}), ("attention", {"head": 16})],
)
def test_costs_follow_the_options(name: str, options: dict[str, Any]) -> None:
    block, signal = BLOCKS[name], Signal("map", C, (H, W))
    counted = cost.count(made(name, **options), (C, H, W))
    assert (block.parameters(signal, **options), block.macs(signal, **options)) == (counted.parameters, counted.macs)


def test_pooling_takes_the_value_off_and_counts_no_padding() -> None:
    module, x = made("pool"), some()
    assert module(torch.full_like(x, 3.0)).abs().max() < 1e-6
    corner = x[:, :, :2, :2].mean((2, 3)) - x[:, :, 0, 0]
    assert torch.allclose(module(x)[:, :, 0, 0], corner, atol=1e-6)
    middle = x[:, :, 2:5, 3:6].mean((2, 3)) - x[:, :, 3, 4]
    assert torch.allclose(module(x)[:, :, 3, 4], middle, atol=1e-6)


def test_no_mixing_gives_back_what_came() -> None:
    assert torch.equal(made("identity")(some()), some())


def test_random_mixing_is_a_mean_that_never_learns() -> None:
    module, x = made("random"), some()
    state = module.state_dict()["random_matrix"].clone()
    assert state.shape == (H * W, H * W) and state.min() > 0
    assert torch.allclose(state.sum(1), torch.ones(H * W))
    # Uniform numbers before the softmax: no entry is over e times another of its row.
    assert (state.amax(1) / state.amin(1)).max() < torch.e
    constant = torch.full_like(x, 2.0)
    assert torch.allclose(module(constant), constant, atol=1e-5)
    out = module(x.requires_grad_())
    assert torch.allclose(out.flatten(2), torch.einsum("mn,bcn->bcm", state, x.flatten(2)), atol=1e-6)
    out.square().sum().backward()
    assert not list(module.parameters()) and torch.equal(module.state_dict()["random_matrix"], state)


def test_random_mixing_refuses_another_size() -> None:
    with pytest.raises(UserError, match=rf"made for {H * W} places, not for {H * (W - 1)}"):
        made("random")(torch.randn(2, C, H, W - 1))


def test_a_separable_convolution_is_two_linear_layers_around_a_filter() -> None:
    module, x = made("sepconv"), some()
    state = module.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        "pwconv1.weight": (2 * C, C, 1, 1),
        "act1.scale": (1,),
        "act1.bias": (1,),
        "dwconv.weight": (2 * C, 1, 7, 7),
        "pwconv2.weight": (C, 2 * C, 1, 1),
    }
    state["act1.scale"].fill_(0.9)
    state["act1.bias"].fill_(-0.4)
    wide = 0.9 * F.relu(F.conv2d(x, state["pwconv1.weight"])) ** 2 - 0.4
    expected = F.conv2d(F.conv2d(wide, state["dwconv.weight"], padding=3, groups=2 * C), state["pwconv2.weight"])
    with torch.no_grad():
        assert torch.allclose(module(x), expected, atol=1e-5)


def test_attention_is_that_of_pytorch_without_positions() -> None:
    module, x = made("attention", "tokens"), tokens(some())
    theirs = nn.MultiheadAttention(C, C // 32, bias=False, batch_first=True)
    state = module.state_dict()
    theirs.load_state_dict({"in_proj_weight": state["qkv.weight"], "out_proj.weight": state["proj.weight"]})
    on_maps = made("attention")
    on_maps.load_state_dict({f"module.{key}": value for key, value in state.items()})
    with torch.no_grad():
        assert torch.allclose(module(x), theirs(x, x, x)[0], atol=1e-5)
        order = torch.randperm(H * W)
        assert torch.allclose(module(x[:, order]), module(x)[:, order], atol=1e-5)
        assert torch.allclose(tokens(on_maps(some())), module(x), atol=1e-6)


@pytest.mark.parametrize("name", MIXERS)
def test_in_place_of_the_attention_of_a_vision_transformer(name: str) -> None:
    model = resolve("zoo:vit", pretrained=False)
    product = operate(model, Cut(at=("blocks.*.attention",), block=name), "fresh")
    before, after = (cost.count(m.module, m.input_shape) for m in (model, product))
    signal, block = Signal("map", 96, (8, 8)), BLOCKS[name]
    old = 4 * 64 * 96**2 + 2 * 64**2 * 96
    assert after.macs - before.macs == 4 * (block.macs(signal) - old)
    assert after.parameters - before.parameters == 4 * (block.parameters(signal) - 4 * 96**2 - 96)
    product.module.train()(product.example(4)).square().mean().backward()
    for key, weight in product.module.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, key


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("attention", {"channels": 48}, r"head must divide the 48 channels at blocks\.0\.mixer, and it is 32"),
        ("pool", {"size": 2}, "size must be an odd number from 3 on, and it is 2"),
        ("sepconv", {"kernel": 4}, "kernel must be an odd number from 1 on, and it is 4"),
        ("sepconv", {"expansion": 0}, "expansion must be at least 1, and it is 0"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        made(name, **options)
