"""Photographs of many sizes and kinds in six layouts: one reading, one figure, before and after images are added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import upcycle
from tests.data.photographs import CLASSES, DEEP, LAYOUTS, photographs
from upcycle.core import saved
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.data.images import Images
from upcycle.data.listing import image_files

SIZE = (12, 16)
SAID = {
    "classes": "The test split of photos is ours: ",
    "usual": "The splits of photos are its folders train (train), val (validation), test (test).",
    "Training and Testing": "The splits of photos are its folders Training (train), Testing (test).",
    "archive": "The splits of photos are its folders seg_train/seg_train (train), seg_test/seg_test (test).",
    "Train and Valid": "The splits of photos are its folders Train (train), Valid (validation).",
    "dev and test": "photos has no train split: its validation images are trained on, and some of them set aside.",
}


@pytest.fixture(scope="module")
def teacher() -> Model:
    torch.manual_seed(0)
    return resolve("zoo:convnet_small", pretrained=False, num_classes=3, input_shape=(3, *SIZE), classes=CLASSES)


def contents(data: Images, root: Path, split: str) -> set[bytes]:
    """The files of a split that is drawn, or of one that lies in folders of its own."""
    files = image_files(root)
    return {files[i].read_bytes() for i in getattr(data, split).ids.tolist()}


def by_path(root: Path, layout: str, data: Images) -> set[str]:
    """The paths of the test images, below the folder."""
    folders = LAYOUTS[layout]
    if len(folders) > 1 and "Valid" not in folders:
        place = root / folders[-1]
        return {str(p.relative_to(root)) for p in image_files(place)}
    place = root / folders[0]
    files = image_files(place)
    return {str(files[i].relative_to(root)) for i in data.test.ids.tolist()}


def agreeing(run: Path, root: Path, layout: str) -> str:
    """Give what ``evaluate`` says as text, after ``predict`` is found to give the same accuracy to the digit."""
    measured = upcycle.evaluate(str(run), str(root))
    data = upcycle.load_data(root, size=SIZE, channels=3, reading=saved.load(run).reading)
    paths, found = by_path(root, layout, data), upcycle.predict(str(run), root)
    answers = {p: name for p, name in zip(found.paths, found.predicted, strict=True) if p in paths}
    assert len(answers) == measured.count == len(data.test)
    right = sum(Path(path).parent.name == name for path, name in answers.items())
    assert f"{right / len(answers):.10f}" == f"{measured.accuracy:.10f}"
    return measured.text()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_figure_for_photographs_in_any_layout(
    layout: str, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = photographs(Path("photos"), layout, range(100))
    half: dict[str, Any] = {"recipe": {"epochs": 1, "lr": 0.1, "batch_size": 32}, "terms": {"w_kd": 0.0, "w_ce": 1.0}}
    for out, resize in (("before", "pad"), ("after", None)):
        made = upcycle.distill(
            teacher=teacher, student="zoo:convnet_small", data="photos", resize=resize, out=Path(out), **half
        )
        printed = capsys.readouterr().out
        assert SAID[layout] in printed and "images were scaled" in printed and "(--resize)" in printed
        assert "end at 4,095 among the training images; that is taken to be white" in printed
        text = agreeing(made.directory, root, layout)
        assert SAID[layout] in text and "images were scaled" in text
        # The report, the record and the sentence have the same figure.
        result = json.loads((made.directory / "result.json").read_text())
        accuracy = result["rows"][-1]["accuracy"][0]
        assert f"accuracy           {accuracy:.2%}" in text and f"{100 * accuracy:.1f} %" in made.sentence
        assert f"{100 * accuracy:.1f}" in made.report.read_text() and SAID[layout] in made.report.read_text()
        reading = saved.load(made.directory).reading
        assert (reading.resize, reading.white) == (resize or "crop", DEEP)
        photographs(root, layout, range(100, 110))
        assert len(image_files(root)) == 330
    agreeing(Path("before"), root, layout)  # an earlier network on more images


def test_ten_more_images_move_none(tmp_path: Path) -> None:
    root = photographs(tmp_path / "photos", "classes", range(100))
    before = upcycle.load_data(root, size=SIZE)
    held = {split: contents(before, root, split) for split in ("train", "validation", "test")}
    photographs(root, "classes", range(100, 110))
    after = upcycle.load_data(root, size=SIZE)
    now = {split: contents(after, root, split) for split in ("train", "validation", "test")}
    assert len(set().union(*now.values())) == len(set().union(*held.values())) + 30
    for split, files in held.items():
        assert files <= now[split]
    shares = [len(now[split]) / 330 for split in ("train", "validation", "test")]
    assert abs(shares[2] - 0.2) < 0.06 and abs(shares[1] - 0.1) < 0.05
