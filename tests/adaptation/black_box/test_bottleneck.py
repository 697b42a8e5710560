"""The option group: its ranges, its parameter groups, and how the command line names it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.settings import tiny_model
from upcycle import cli
from upcycle.adaptation import BA3US, BETA, DINE
from upcycle.adaptation.black_box.bottleneck import Bottleneck
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.store import tensor_digest


@pytest.mark.parametrize("values", [{"width": 0}, {"backbone_rate": -0.1}, {"backbone_rate": math.nan}])
def test_a_value_that_cannot_be_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        Bottleneck(**values)


def test_the_backbone_gets_its_share_of_the_rate_and_every_parameter_one_group() -> None:
    bottleneck = Bottleneck(width=8, backbone_rate=0.25)
    network = bottleneck.place(tiny_model("student", 0), 10, norm=True, weight_norm=True)
    optimizer = bottleneck.optimizer(network, Recipe(lr=0.4))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.4]
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, network.parameters()))


def test_what_it_is_placed_in_stays_as_it_was() -> None:
    start = tiny_model("student", 0)
    before = tensor_digest(start.module.state_dict())
    network = Bottleneck(width=8).place(start, 3, norm=False, weight_norm=False)
    assert network.head[0][0].out_features == 8 and network.head[1].out_features == 3  # type: ignore[index]
    assert tensor_digest(start.module.state_dict()) == before


@pytest.mark.parametrize("method", [DINE, BETA, BA3US])
def test_the_methods_have_the_published_defaults_and_the_command_line_sets_each_alone(method: Any) -> None:
    made = method.options()["bottleneck"].default_factory()
    assert (made.width, made.backbone_rate) == (256, 0.1)
    words = ["--method", method.card.name, "--student", "zoo:lenet", "--bottleneck.width", "16"]
    values, _ = cli.arguments_of("adapt", words)
    assert values["bottleneck"] == Bottleneck(width=16)
