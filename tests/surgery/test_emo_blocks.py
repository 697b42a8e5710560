"""The blocks irmb and shunted: costs in closed form, weights that are kept, and places where they cannot stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.core.saved import load, save
from upcycle.measure import cost
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.inserts.base import Place
from upcycle.surgery.inserts.irmb import _inverted
from upcycle.surgery.operate import Cut, operate
from upcycle.surgery.signals import Signal
from upcycle.zoo.emo import IRMB
from upcycle.zoo.mobilenetv2 import InvertedResidual


def made(
    name: str, channels: int, size: tuple[int, int], module: nn.Module | None = None, **options: Any
) -> tuple[nn.Module, Signal]:
    torch.manual_seed(0)
    signal = Signal("map", channels, size)
    place = Place("blocks.1", module or nn.Identity(), signal, signal)
    return BLOCKS[name].make(place, "replace", "fresh", **options), signal


@pytest.mark.parametrize(
    ("channels", "size", "options"),
    [
        (64, (8, 8), {}),
        (96, (8, 12), {"rates": (4, 2)}),
        (64, (6, 6), {"rates": (3, 2, 1, 1), "head": 8}),
        (48, (4, 6), {"rates": (2,)}),
        (96, (7, 5), {"rates": ()}),
    ],
)
def test_costs_of_shunted(channels: int, size: tuple[int, int], options: dict[str, Any]) -> None:
    module, signal = made("shunted", channels, size, **options)
    counted, block = cost.count(module, (channels, *size)), BLOCKS["shunted"]
    assert counted.parameters == block.parameters(signal, **options)
    assert counted.macs == block.macs(signal, **options)
    assert module(torch.randn(2, channels, *size)).shape == (2, channels, *size)


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "ratio", "options"),
    [
        (24, (8, 8), 3, 4, {}),
        (16, (14, 14), 5, 6, {"head": 8}),
        (40, (9, 5), 3, 2, {"window": 4}),
        (40, (11, 13), 3, 3, {}),
    ],
)
def test_costs_of_irmb(channels: int, size: tuple[int, int], kernel: int, ratio: int, options: dict[str, Any]) -> None:
    options = {**options, "ratio": float(ratio), "kernel": kernel}
    old = InvertedResidual(channels, channels, 1, ratio)
    hidden = channels * ratio
    old.depthwise[0] = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden, bias=False)
    module, signal = made("irmb", channels, size, old, **options)
    counted, block = cost.count(module, (channels, *size)), BLOCKS["irmb"]
    assert counted.parameters == block.parameters(signal, **options)
    assert counted.macs == block.macs(signal, **options)
    assert module(torch.randn(2, channels, *size)).shape == (2, channels, *size)


def unsettled(module: nn.Module) -> nn.Module:
    """A network with statistics of BatchNorm that are neither 0 nor 1."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor, (low, high) in (
                (m.weight, (0.5, 1.5)),
                (m.bias, (-0.3, 0.3)),
                (m.running_mean, (-0.3, 0.3)),
                (m.running_var, (0.5, 2)),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    return module.eval()


def test_the_convolutions_and_their_norms_keep_their_weights() -> None:
    torch.manual_seed(0)
    old = unsettled(InvertedResidual(24, 24, 1, 4))
    module, _ = made("irmb", 24, (8, 8), old)
    assert isinstance(module, IRMB)
    module.eval()
    x, v = torch.randn(2, 24, 8, 8), torch.randn(2, 96, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(module.expand[0](x), old.expand[:2](x))
        torch.testing.assert_close(module.depthwise[:2](v), old.depthwise[:2](v))
        shift = old.project(torch.zeros(1, 96, 1, 1))
        torch.testing.assert_close(module.project(v), old.project(v) - shift)


def test_attention_starts_as_the_mean_of_a_window_and_can_leave_it() -> None:
    module, _ = made("irmb", 24, (8, 8), InvertedResidual(24, 24, 1, 4))
    assert isinstance(module, IRMB)
    x = torch.randn(2, 24, 8, 8)
    found = module.attention(x)  # windows of 4 x 4 pixels, every second of 8
    for i in (0, 1):
        for j in (0, 1):
            mean = x[:, :, i::2, j::2].mean(dim=(2, 3), keepdim=True)
            torch.testing.assert_close(found[:, :, i::2, j::2], mean.expand(-1, -1, 4, 4), atol=1e-6, rtol=0)
    (module(x) - 1).square().mean().backward()
    grad = module.get_parameter("attention.qk.weight").grad
    assert grad is not None and grad[:24].abs().max() > 0


@pytest.mark.parametrize("library", ["timm:mobilenetv2_050", "torchvision:mobilenet_v2"])
def test_inverted_residuals_of_libraries_are_found(library: str) -> None:
    pytest.importorskip(library.partition(":")[0])
    net = resolve(library, pretrained=False, num_classes=3, input_shape=(3, 32, 32)).module
    at = "blocks.1.1" if library.startswith("timm") else "features.3"
    c = 16 if library.startswith("timm") else 24
    signal = Signal("map", c, (4, 4))
    old = _inverted(Place(at, net.get_submodule(at), signal, signal))
    assert old.expand.out_channels == old.depthwise.groups == old.project.in_channels == 6 * c


@pytest.mark.parametrize(
    ("name", "module", "options", "says"),
    [
        ("irmb", InvertedResidual(24, 24, 1, 4), {"ratio": 6.0}, "with a kernel of 3: give irmb ratio 4 and kernel 3"),
        ("irmb", nn.Conv2d(24, 24, 3), {}, "'blocks.1' is none"),
        ("irmb", InvertedResidual(24, 24, 1, 1), {}, "'blocks.1' is none"),
        ("irmb", InvertedResidual(24, 24, 1, 4), {"head": 7}, "head must divide the 24 channels at 'blocks.1'"),
        ("shunted", nn.Identity(), {"rates": (3, 1)}, "must divide the sides of the 8 x 8 places at 'blocks.1', and 3"),
        ("shunted", nn.Identity(), {"head": 24}, "24 channels at 'blocks.1' cannot be shared by heads of 24 at 2"),
    ],
)
def test_places_where_they_cannot_stand(name: str, module: nn.Module, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        made(name, 24, (8, 8), module, **options)


def trained(reference: str) -> Model:
    torch.manual_seed(0)
    model = resolve(reference, pretrained=False)
    unsettled(model.module)
    return model


@pytest.mark.parametrize(
    ("reference", "cut", "places"),
    [
        ("zoo:mobilenetv2", Cut(at=("stages.*.1",), block="irmb", options={"ratio": 4.0}), 3),
        ("zoo:vit", Cut(at=("blocks.*.attention",), block="shunted"), 4),
    ],
)
def test_a_network_with_them_is_saved_and_learns(reference: str, cut: Cut, places: int, tmp_path: Path) -> None:
    model = operate(trained(reference), cut, "fresh")
    kinds = [type(m).__name__ for m in model.module.modules()]
    assert kinds.count("IRMB") + kinds.count("ShuntedMixer") == places
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    x = model.example()
    with torch.no_grad():
        assert torch.equal(again.module.eval()(x), model.module.eval()(x))
    model.module.train()
    model.module(model.example(4)).square().mean().backward()
    for name, p in model.module.named_parameters():
        assert p.grad is not None and (p.grad.abs().sum() > 0 or name.endswith("qk.bias")), name
