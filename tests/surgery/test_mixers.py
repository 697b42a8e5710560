"""Token mixers: what each computes on maps, grids and tokens, and costs in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.measure import cost
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.inserts.base import Place
from upcycle.surgery.signals import Layout, Signal

pytest.importorskip("timm", reason="timm is not installed (extra vision)")

MIXERS = ["pool", "identity", "random", "sepconv", "attention"]
LAYOUTS = pytest.mark.parametrize("layout", ["map", "grid", "tokens"])
H, W, C = 6, 9, 64


def made(name: str, layout: Layout = "map", channels: int = C, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    signal = Signal(layout, channels, (H, W))
    return (
        BLOCKS[name].make(Place("blocks.0.mixer", nn.Identity(), signal, signal), "replace", "fresh", **options).eval()
    )


def laid_out(x: Tensor, layout: Layout) -> Tensor:
    """A map (b, c, h, w) in another layout."""
    return {"map": x, "grid": x.permute(0, 2, 3, 1), "tokens": x.flatten(2).transpose(1, 2)}[layout]


def some(n: int = 2) -> Tensor:
    return torch.randn(n, C, H, W, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MIXERS)
@LAYOUTS
def test_costs_are_those_that_are_counted_and_layouts_compute_the_same(name: str, layout: Layout) -> None:
    block, signal = BLOCKS[name], Signal(layout, C, (H, W))
    module, on_maps = made(name, layout), made(name)
    counted = cost.count(module, signal.shape(1)[1:])
    assert (block.parameters(signal), block.macs(signal)) == (counted.parameters, counted.macs)
    for mine, theirs in zip(module.state_dict().values(), on_maps.state_dict().values(), strict=True):
        mine.copy_(theirs)
    with torch.no_grad():
        assert torch.allclose(module(laid_out(some(), layout)), laid_out(on_maps(some()), layout), atol=1e-6)


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


@LAYOUTS
def test_random_mixing_refuses_another_size(layout: Layout) -> None:
    other = torch.randn(2, C, H, W - 1)
    with pytest.raises(UserError, match=rf"made for {H * W} places, not for {H * (W - 1)}"):
        made("random", layout)(laid_out(other, layout))


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
    module, x = made("attention", "tokens"), laid_out(some(), "tokens")
    theirs = nn.MultiheadAttention(C, C // 32, bias=False, batch_first=True)
    theirs.load_state_dict({"in_proj_weight": module.state_dict()["qkv.weight"],
                            "out_proj.weight": module.state_dict()["proj.weight"]})  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(module(x), theirs(x, x, x)[0], atol=1e-5)
        order = torch.randperm(H * W)
        assert torch.allclose(module(x[:, order]), module(x)[:, order], atol=1e-5)


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
