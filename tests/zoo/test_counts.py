"""Parameters (to the digit) and multiply-adds of networks, as their papers and released networks have them."""

from __future__ import annotations

import pytest

from upcycle.core.references import resolve
from upcycle.measure.cost import count
from upcycle.surgery.operate import Cut, operate

# Parameters and millions of multiply-adds (convolutions and matrix products) with 1,000 classes at 224 x 224 pixels.
# Those of EMO agree with every digit of the authors' logs (1.361, 2.377, 5.109 and 6.168 M); those of Shunted with
# 11.5, 22.4 and 39.6 M of the authors' README.
PUBLISHED = {
    "emo_1m": (1_361_168, 255.2),
    "emo_2m": (2_377_472, 431.9),
    "emo_5m": (5_108_848, 892.2),
    "emo_6m": (6_168_496, 950.3),  # 950.250
    "shunted_t": (11_553_576, 2146.7),
    "shunted_s": (22_401_256, 4993.1),
    "shunted_b": (39_614_376, 8149.8),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_emo_and_shunted(name: str) -> None:
    parameters, millions = PUBLISHED[name]
    size = count(resolve(f"zoo:{name}", pretrained=False, num_classes=1000).module, (3, 224, 224))
    assert size.parameters == parameters
    assert size.macs / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_first_part_of_emo() -> None:
    net = resolve("zoo:emo_1m", pretrained=False).module
    assert sum(p.numel() for p in net.stem.parameters()) == 2760


@pytest.mark.parametrize(("name", "parameters", "macs"), [("emo_tiny", 129_650, 8.7), ("shunted_tiny", 516_362, 22.2)])
def test_our_tiny_sizes(name: str, parameters: int, macs: float) -> None:
    size = count(resolve(f"zoo:{name}", pretrained=False).module, (3, 32, 32))
    assert size.parameters == parameters
    assert size.macs / 1e6 == pytest.approx(macs, abs=0.06)


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
        ("zoo:mobilenetv2_100_ca", 3_950_648, 0.31),
    ],
)
def test_metaformer_and_coordinate_attention(reference: str, parameters: int, giga: float) -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    model = resolve(reference, pretrained=False, num_classes=1000, input_shape=IMAGE)
    counted = count(model.module, IMAGE)
    assert counted.parameters == parameters
    assert round(counted.macs / 1e9, 2) == giga


@pytest.mark.parametrize(
    ("block", "options", "parameters", "mega"),
    [("coord", {}, 3_950_648, 306.67), ("se", {"r": 24}, 3_890_136, 301.15)],
)
def test_mobilenetv2_with_gates(block: str, options: dict[str, int], parameters: int, mega: float) -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    plain = resolve("timm:mobilenetv2_100", pretrained=False, num_classes=1000, input_shape=IMAGE)
    size = count(plain.module, IMAGE)
    assert (size.parameters, round(size.macs / 1e6, 1)) == (3_504_872, 300.8)
    cut = Cut(at=("blocks.[1-6].*.se",), block=block, how="replace", options=options)
    size = count(operate(plain, cut, "fresh").module, IMAGE)
    assert size.parameters == parameters
    assert round(size.macs / 1e6, 2) == mega


@pytest.mark.parametrize(("name", "numbers"), [("cnn", 141_130), ("odenet", 142_410), ("tisode", 141_130)])
def test_the_networks_of_tisode_have_as_many_numbers_as_published(name: str, numbers: int) -> None:
    model = resolve(f"zoo:mnist_{name}", pretrained=False)
    assert count(model.module, model.input_shape).parameters == numbers
