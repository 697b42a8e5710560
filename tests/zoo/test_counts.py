"""Parameters (to the digit) and multiply-adds of networks, as their papers and released networks have them."""

from __future__ import annotations

import pytest

from upcycle.core.references import resolve
from upcycle.measure.cost import count

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
