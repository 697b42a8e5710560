"""Labels that exist are used, and what is measured is called what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import upcycle
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.data import load
from upcycle.verbs.pairing import answered_by

HALF: dict[str, Any] = {"recipe": {"epochs": 2}, "terms": {"w_ce": 0.0}, "quiet": True}


def digits(root: Path, folders: dict[str, bool], n: int = 60) -> Path:
    """Digits in folders of splits, in folders of classes where these are to have labels."""
    found = upcycle.load_data("digits")
    sources = {"train": found.train, "val": found.validation, "test": found.test}
    for split, labelled in folders.items():
        for i in range(n):
            label = str(int(sources[split].labels[i]))
            folder = root / split / label if labelled else root / split
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sources[split].images[i, :, :, 0].numpy()).save(folder / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def teacher() -> Model:
    """One that errs on some of the images, so that agreement with it is no accuracy."""
    torch.manual_seed(0)
    net = resolve("zoo:digits_teacher")
    with torch.no_grad():
        for weight in net.module.parameters():
            weight.add_(0.12 * torch.randn_like(weight))
    return net


def test_unlabelled_training_images_beside_labelled_test_images(teacher: Model, tmp_path: Path) -> None:
    root = digits(tmp_path / "digits of mine", {"train": False, "test": True})
    made = upcycle.distill(teacher=teacher, student="zoo:convnet_small", data=root, out=tmp_path / "run", **HALF)
    truth = upcycle.evaluate(tmp_path / "run", root).accuracy
    assert made.rows[-1]["accuracy"] == [truth]
    assert made.rows[0]["accuracy"] == [upcycle.evaluate(teacher, root).accuracy] != [1.0]
    assert f"The student reaches {100 * truth:.1f} % on the 60 test images" in made.sentence
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["figure"] == "test accuracy" and result["data"]["answered"] == []
    assert any("validation images of digits of mine have no labels, so nothing is" in note for note in result["notes"])
    page = made.report.read_text()
    assert "agreement with the teacher" not in page and "Validation a" not in page and "Test accuracy" in page


def test_no_labels_at_all(teacher: Model, tmp_path: Path) -> None:
    root = digits(tmp_path / "blank", {"train": False})
    made = upcycle.distill(teacher=teacher, student="zoo:convnet_small", data=root, out=tmp_path / "run", **HALF)
    assert made.rows[0]["accuracy"] == [1.0]  # the teacher's own answers
    assert "The student gives its teacher's answer for " in made.sentence and "reaches" not in made.sentence
    assert "test images of blank, which have no labels; this is agreement and no accuracy" in made.sentence
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["figure"] == "agreement" and result["data"]["answered"] == ["validation", "test"]
    page = made.report.read_text()
    assert "Validation agreement" in page and "Validation accuracy" not in page and "Test accuracy" not in page


def test_labelled_validation_beside_unlabelled_test_images(teacher: Model, tmp_path: Path) -> None:
    data = load(digits(tmp_path / "half", {"train": True, "val": True, "test": False}))
    answered = answered_by(teacher, data, torch.device("cpu"))
    assert answered.answered == ("test",) and answered.validation.labels.equal(data.validation.labels)
    assert "The test images of half have no labels: every figure on them is agreement" in answered.notes[-1]
    whole = load(digits(tmp_path / "whole", {"train": True, "val": True, "test": True}))
    assert answered_by(teacher, whole, torch.device("cpu")) is whole


def test_a_network_that_is_tuned_without_labelled_test_images(teacher: Model, tmp_path: Path) -> None:
    """It is made, and the sentence says that nothing was measured."""
    root = digits(tmp_path / "half", {"train": True, "val": True, "test": False})
    brief = {key: value for key, value in HALF.items() if key != "terms"}
    made = upcycle.adapt(teacher, method="ssf", data=root, out=tmp_path / "run", **brief)
    assert "no labelled test images" in made.sentence and made.rows[-1]["accuracy"] == []
    treated = upcycle.treat("zoo:digits_teacher", data=root, control=False, out=tmp_path / "treated", **brief)
    assert "there were no test images to measure it on" in treated.sentence
