"""Family trees."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upcycle.core import lineage
from upcycle.core.licences import TERMS
from upcycle.core.lineage import child, node, tree

ids = st.sampled_from([*TERMS, "unknown", "WTFPL"])


@settings(max_examples=50)
@given(st.lists(ids, min_size=3, max_size=3))
def test_a_family_is_associative(licences: list[str]) -> None:
    a, b, c = (node(name=f"m{i}", digest="", licence=x, role="teacher") for i, x in enumerate(licences))
    made = {"digest": "", "versions": {}}

    def joined(*parents):
        return child(parents, name="x", **made)

    assert joined(joined(a, b), c)["licence"] == joined(a, joined(b, c))["licence"] == joined(a, b, c)["licence"]


@pytest.fixture
def family() -> lineage.Node:
    digits = {"name": "digits", "digest": "d1", "licence": "CC-BY-4.0"}
    teacher = node(
        name="resnet56",
        digest="a" * 64,
        licence="MIT",
        data=digits,
        role="teacher",
        metrics={"test accuracy": 0.944},
        date="2026-01-02",
    )
    start = node(name="hf:org/tiny", digest="b" * 64, licence="Apache-2.0", role="initial weights")
    return child(
        [teacher, start],
        name="tiny",
        digest="c" * 64,
        verb="distill",
        method="kd",
        data=digits,
        metrics={"test_accuracy": [0.91, 0.93]},
        date="2026-03-04",
    )


def test_the_tree_of_a_family(family: lineage.Node) -> None:
    family["parents"][1]["parents"] = [node(name="older", digest="e" * 64, licence="MIT", role="teacher")]
    assert tree(family).splitlines() == [
        "tiny  (distill kd on digits, test accuracy 92.0 ± 1.4 %, licence Apache-2.0, 2026-03-04, weights cccccccc)",
        "├─ teacher: resnet56  (trained on digits, test accuracy 94.4 %, licence MIT, 2026-01-02, weights aaaaaaaa)",
        "└─ initial weights: hf:org/tiny  (licence Apache-2.0, weights bbbbbbbb)",
        "   └─ teacher: older  (licence MIT, weights eeeeeeee)",
    ]


def test_a_lineage_is_json_and_hostile_names_do_not_reach_the_terminal(family: lineage.Node) -> None:
    assert json.loads(json.dumps(family)) == family
    assert "\x1b" not in tree(node(name="\x1b[2Jgone\r", digest="")) and "\n" not in tree(node(name="a\nb", digest=""))


def test_versions_are_of_this_installation() -> None:
    import numpy
    import torch

    found = lineage.versions()
    assert found["numpy"] == numpy.__version__ and torch.__version__.startswith(found["torch"].split("+")[0])
    assert set(found) == {"python", "upcycle", "torch", "numpy"}
