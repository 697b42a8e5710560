"""Model cards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.settings import TinyNet
from upcycle.core import lineage, saved
from upcycle.core.lineage import child, node
from upcycle.core.models import Model
from upcycle.core.references import resolve
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
    start = node(name="tiny", digest="b" * 64, licence="Apache-2.0", role="initial weights")
    return child(
        [teacher, start],
        name="tiny",
        digest="c" * 64,
        verb="distill",
        method="kd",
        config={"teacher": "runs/teacher", "student": "hf:org/tiny", "data": "digits"},
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
        "figure": "test accuracy",
        "rows": [{"name": "a|b", "accuracy": [0.9], "parameters": 1234}],
    }
    card = model_card(family, result)
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "apache-2.0",
        "library_name": "upcycle",
        "pipeline_tag": "image-classification",
        "tags": ["upcycle", "distill", "kd"],
        "base_model": ["org/tiny"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": "tiny",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": "digits", "type": "digits", "split": "test"},
                        "metrics": [{"type": "accuracy", "value": 0.9, "name": "test accuracy"}],
                    }
                ],
            }
        ],
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


@pytest.mark.parametrize(
    ("config", "name", "found"),
    [
        ({"data": "cifar10"}, "cifar10", "uoft-cs/cifar10"),
        ({"data": "hub:org/cats"}, "org/cats", "org/cats"),
        ({"data": "my/cifar10"}, "cifar10", None),  # a folder that is called so
        ({"stream": "splits:digits/5"}, "digits", None),
        ({"data": "hub:org/../x"}, "x", None),
    ],
)
def test_only_data_of_the_hub_are_named_as_such(config: dict[str, str], name: str, found: str | None) -> None:
    made = node(name="m", digest="", config=config, data={"name": name, "digest": "", "licence": "unknown"})
    result = {"rows": [{"name": "m", "accuracy": [0.5, 0.6]}], "data": {"name": name}, "figure": "test accuracy"}
    header = yaml.safe_load(model_card(made, result).split("---\n")[1])
    assert header.get("datasets") == (None if found is None else [found])
    (measured,) = header["model-index"][0]["results"]
    assert measured["dataset"] == {"name": name, "type": found or name, "split": "test"}
    assert measured["metrics"] == [{"type": "accuracy", "value": 0.55, "name": "test accuracy, mean of 2 seeds"}]
    agreement = yaml.safe_load(model_card(made, {**result, "figure": "agreement"}).split("---\n")[1])
    assert "model-index" not in agreement  # which no index of the hub knows


def test_the_hub_reads_the_card(family: lineage.Node) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra hub)")
    result = {"rows": [{"name": "tiny", "accuracy": [0.9]}], "data": {"name": "digits"}, "figure": "test accuracy"}
    data = hub.ModelCard(model_card(family, result), ignore_metadata_errors=False).data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("upcycle", "image-classification", ["org/tiny"])
    (found,) = data.eval_results
    assert (found.task_type, found.dataset_name, found.metric_type, found.metric_value) == (
        "image-classification", "digits", "accuracy", 0.9,
    )  # fmt: skip
    assert data.to_dict()["model-index"][0]["name"] == "tiny"


def use(of: Model) -> str:
    """The lines of the card that load a model."""
    return model_card(node(name="m", digest=""), of=of).split("```python\n")[1].split("```")[0]


def test_the_lines_of_the_card_run(tmp_path: Path) -> None:
    net = resolve("zoo:convnet_small", num_classes=3, input_shape=(1, 8, 8), pretrained=False)
    saved.save(net, tmp_path / "net")
    Image.new("L", (20, 30), 90).save(tmp_path / "image.png")
    names: dict[str, Any] = {}
    lines = use(net).replace("path/to/this/folder", str(tmp_path / "net"))
    exec(lines.replace("image.png", str(tmp_path / "image.png")), names)
    assert len(names["answer"].predicted) == 1
    own = Model(
        module=TinyNet(4), input_shape=(1, 8, 8), mean=(0.0,), std=(1.0,), classes=tuple("abcdefghij"), name="own"
    )
    saved.save(own, tmp_path / "own")
    assert "into=network)  # an instance of TinyNet" in use(own)
    names = {"network": TinyNet(4)}
    lines = use(own).replace("path/to/this/folder", str(tmp_path / "own"))
    exec(lines.replace("image.png", str(tmp_path / "image.png")), names)
    assert names["answer"].classes == tuple("abcdefghij")
    assert "trust=('nets',)" in use(dataclasses.replace(own, reference="nets.small:net"))
