"""Choices that claims make before their seeds, and their miniatures, which run."""

import dataclasses
import importlib
import pkgutil
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmarks import claim_grids

from upcycle import claims
from upcycle.claims import Check, Claim, derpp, find, gain, ssf
from upcycle.claims.settings import BESIDE, at_edge, best, by_validation, fresh
from upcycle.core.errors import UserError
from upcycle.data import load

AT_EDGE = {
    ("derpp", "oEWC"): "three times as much goes to infinity",
}
"""Claim and arm whose best value is the last on its side, and why nothing beyond it was tried."""


def with_grids() -> dict[str, ModuleType]:
    """The claims that say which values they tried."""
    found = {
        file.name: importlib.import_module(f"upcycle.claims.{file.name}")
        for file in pkgutil.iter_modules(claims.__path__)
    }
    return {name: module for name, module in found.items() if hasattr(module, "TRIED")}


def at_hand(claim: Claim) -> None:
    """Skip where the data of a claim are not."""
    try:
        for name in claim.data:
            load(name)
    except UserError as error:
        pytest.skip(str(error))


def test_the_best_is_what_validation_says_and_an_edge_is_seen() -> None:
    assert best({0.1: 80.0, 0.3: 82.0, 1.0: 81.0}) == 0.3 and best({1.0: 5.0, 2.0: 5.0}) == 1.0
    assert at_edge({0.1: 83.0, 0.3: 82.0}) and at_edge({0.1: 80.0, 0.3: 82.0}) and at_edge({1.0: 0.0})
    assert not at_edge({0.3: 82.0, 0.1: 80.0, 1.0: 81.0})


def test_values_are_judged_by_validation_images_alone() -> None:
    data = load("digits")
    judged = by_validation(data)
    assert torch.equal(judged.test.ids, data.validation.ids) and torch.equal(judged.train.ids, data.train.ids)
    assert not set(judged.test.ids.tolist()) & set(data.test.ids.tolist())


def test_no_claim_stops_at_the_edge_of_what_it_tried() -> None:
    grids = with_grids()
    assert {"beta", "blip", "derpp", "dine", "simplecil", "ssf"} <= set(grids)
    edges = {(name, arm) for name, module in grids.items() for arm, tried in module.TRIED.items() if at_edge(tried)}
    assert edges == set(AT_EDGE) and all(AT_EDGE.values())


def test_arms_take_the_best_value() -> None:
    made: dict[str, Any] = {name: derpp.ARMS[name][1][option] for name, option in derpp.WEIGHTS.items()}
    assert made == {name: best(tried) for name, tried in derpp.TRIED.items()}
    assert {name: best(tried) for name, tried in ssf.TRIED.items()} == ssf.RATES


def test_a_difference_is_of_the_seeds_that_both_arms_have() -> None:
    measured = {"ours": [1.0, 2.0, 3.0, 40.0, 50.0], "theirs": [0.5, 1.5, 2.5]}
    assert gain("ours", "theirs")(measured) == 0.5
    assert Check(text="", value=gain("ours", "theirs"), bound=0.5, exact=False).holds(measured)


def test_grids_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(derpp, "on_validation", lambda arm, value, quick: 10 * value + quick)
    claim_grids.main(["derpp", "LwF", "1", "0.3", "--quick"])
    assert capsys.readouterr().out == "derpp, LwF, 1: 11.0\nderpp, LwF, 0.3: 4.0\n"


# -- miniatures ---------------------------------------------------------------------------------------------------


def test_each_adapter_counts_what_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of 64 x 4 + 4 numbers; SSF's scales and shifts, IA3's scales and LoRA's two factors beside it."""
    pytest.importorskip("peft")
    digits = load("digits")
    few = {name: getattr(digits, name).subset(torch.arange(32)) for name in ("train", "validation", "test")}
    data = dataclasses.replace(digits, **few)
    source = fresh("zoo:convnet_small", digits, 0)
    monkeypatch.setattr(ssf, "setting", lambda quick: (source, data))
    numbers = {name: ssf.trained(name, data, 0, True, 1e-2)[1] for name in ssf.TRIED}
    head = sum(p.numel() for p in source.module.get_submodule("linear").parameters())
    convolutions = [m for m in source.module.modules() if isinstance(m, torch.nn.Conv2d)]
    assert numbers["linear probe"] == head
    assert numbers["IA3"] == head + sum(m.out_channels for m in convolutions)
    factors = sum(m.in_channels * m.kernel_size[0] * m.kernel_size[1] + m.out_channels for m in convolutions)
    assert numbers["LoRA"] == head + 8 * factors
    assert numbers["full"] == sum(p.numel() for p in source.module.parameters())
    assert head < numbers["SSF"] < numbers["full"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["derpp", "ssf", "cmi"])
def test_a_miniature_has_every_arm_that_decides_and_the_others_for_three_seeds(name: str) -> None:
    claim = find(name)
    at_hand(claim)
    first, later = claim.measure(0, True), claim.measure(BESIDE, True)
    deciding = {arm for h in (claim.headline, *claim.covers.values()) if h is not None for arm in h.arms}
    assert deciding <= set(later) <= set(first)
    assert all(0 <= first[arm] <= 100 for arm in deciding)
    measured = {arm: [value] for arm, value in first.items()}
    for check in claim.checks:
        check.holds(measured)  # its arms are there


def test_a_value_is_tried_on_validation_images() -> None:
    at_hand(find("derpp"))
    low, high = (derpp.on_validation("SI", c, quick=True) for c in (0.0, 100.0))
    assert min(low, high) >= 0 and low != high
