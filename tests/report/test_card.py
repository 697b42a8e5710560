"""Model cards."""

from __future__ import annotations

import pytest
import yaml

from upcycle.core import lineage
from upcycle.core.lineage import child, node
from upcycle.reports.card import model_card


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


def test_the_model_card_has_the_header_of_the_hub_and_says_it_all(family: lineage.Node) -> None:
    result = {
        "sentence": "It works.",
        "paper": "Hinton et al.",
        "title": "Distilling",
        "notes": ["Two seeds only."],
        "command": "upcycle distill --student tiny",
        "data": {"name": "digits"},
        "rows": [{"name": "a|b", "accuracy": [0.9], "parameters": 1234}],
    }
    card = model_card(family, result)
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "apache-2.0",
        "library_name": "upcycle",
        "tags": ["upcycle", "distill", "kd"],
        "base_model": ["org/tiny", "resnet56"],
        "datasets": ["digits"],
        "metrics": ["accuracy"],
    }
    for needed in (
        "# tiny",
        "It works.",
        r"| a\|b | 90.0 % | 1,234 |",
        "upcycle distill --student tiny",
        "└─ initial weights",
        "**Apache-2.0**",
        "keep its notices (MIT)",
        "The data digits are under CC-BY-4.0",
        "Two seeds only.",
    ):
        assert needed in body, needed
    assert card.count("not legal advice") == 1


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", {"license": "mit"}),
        ("GPL-3.0-or-later", {"license": "gpl-3.0"}),
        ("unknown", {"license": "unknown"}),
        ("llama3", {"license": "other", "license_name": "licenseref-llama-community"}),
        ("WTFPL", {"license": "other", "license_name": "wtfpl"}),
        ("openrail", {"license": "openrail"}),
    ],
)
def test_the_card_speaks_the_hubs_licence_names(licence: str, expected: dict[str, str]) -> None:
    header = yaml.safe_load(model_card(node(name="m", digest="", licence=licence)).split("---\n")[1])
    assert {key: value for key, value in header.items() if key.startswith("license")} == expected


def test_unknown_licences_are_said() -> None:
    card = model_card(node(name="m", digest="", data={"name": "mine", "digest": "", "licence": "unknown"}))
    assert "Nobody has stated a licence." in card and "The data mine come without a stated licence." in card
