"""A slice of the matrix of architectures and verbs; the whole is benchmarks/architectures.py."""

from __future__ import annotations

import pytest
from benchmarks.architectures import NETWORKS, VERBS, cell

WHOLE = ("awkward:view", "awkward:auxiliary", "torchvision:squeezenet1_1")
REFUSED = {"awkward:lazy": "lazy layers", "awkward:meta": "meta device"}
CHEAP = ("distill, as teacher", "explain", "evaluate", "predict", "export to torch")


def test_p15_the_matrix_has_forty_architectures_and_ten_awkward_networks() -> None:
    awkward = [name for name in NETWORKS if name.startswith("awkward:")]
    assert (len(NETWORKS) - len(awkward), len(awkward)) == (40, 10)


@pytest.mark.parametrize("verb", CHEAP)
@pytest.mark.parametrize("network", WHOLE)
def test_p15_a_network_goes_into_a_verb(network: str, verb: str) -> None:
    found = cell(network, verb)
    assert found["outcome"] == "worked", found["reason"]


@pytest.mark.parametrize("network", REFUSED)
def test_p15_what_no_verb_takes_is_refused_by_each_in_the_same_words(network: str) -> None:
    cells = [cell(network, verb) for verb in VERBS]
    assert {found["outcome"] for found in cells} == {"refused"}
    assert len({found["reason"] for found in cells}) == 1 and REFUSED[network] in cells[0]["reason"]
