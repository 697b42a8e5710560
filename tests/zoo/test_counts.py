"""Sizes of networks of the zoo, to the digit."""

from __future__ import annotations

import pytest

from upcycle import zoo
from upcycle.measure.cost import count


@pytest.mark.parametrize(("name", "numbers"), [("cnn", 141_130), ("odenet", 142_410), ("tisode", 141_130)])
def test_the_networks_of_tisode_have_as_many_numbers_as_published(name: str, numbers: int) -> None:
    model = zoo.build(f"mnist_{name}", pretrained=False)
    assert count(model.module, model.input_shape).parameters == numbers
