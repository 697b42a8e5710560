"""Parameters and multiply-adds of published networks, by our own counter, at 224 x 224 pixels and 1,000 classes."""

from __future__ import annotations

import pytest
from torch import nn

from upcycle.core.references import resolve
from upcycle.measure import cost
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.inserts.base import Place
from upcycle.surgery.signals import Signal

IMAGE = (3, 224, 224)


@pytest.mark.parametrize(
    ("reference", "parameters", "giga"),
    [
        ("timm:poolformer_s12", 11_915_176, 1.81),
        ("timm:poolformerv2_s12", 11_891_712, 1.81),
        ("zoo:identityformer_s12", 11_891_712, 1.81),
        ("zoo:randformer_s12", 11_891_712, 1.89),
        ("timm:convformer_s18", 26_774_448, 3.94),
        ("timm:caformer_s18", 26_341_656, 4.11),
    ],
)
def test_metaformer(reference: str, parameters: int, giga: float) -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    model = resolve(reference, pretrained=False, num_classes=1000, input_shape=IMAGE)
    counted = cost.count(model.module, IMAGE)
    assert counted.parameters == parameters
    assert round(counted.macs / 1e9, 2) == giga


@pytest.mark.parametrize(
    ("block", "options", "parameters", "mega"),
    [("coord", {}, 3_950_648, 306.67), ("se", {"r": 24}, 3_890_136, 301.15)],
)
def test_mobilenetv2_with_gates(block: str, options: dict[str, int], parameters: int, mega: float) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    network: nn.Module = timm.create_model("mobilenetv2_100")
    plain = cost.count(network, IMAGE)
    assert (plain.parameters, round(plain.macs / 1e6, 1)) == (3_504_872, 300.8)
    places = [name for name, _ in network.named_modules() if name.endswith(".se") and not name.startswith("blocks.0")]
    assert len(places) == 16
    for name in places:
        signal = Signal("map", network.get_submodule(name[:-3] + ".conv_pwl").in_channels, (7, 7))
        place = Place(name, network.get_submodule(name), signal, signal)
        network.set_submodule(name, BLOCKS[block].make(place, "replace", "fresh", **options))
    counted = cost.count(network, IMAGE)
    assert counted.parameters == parameters
    assert round(counted.macs / 1e6, 2) == mega
