"""The commands that look into a network, explain and treat it, on real digits; and the page that they write."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import upcycle
from tests.browser import Browser, find_chromium, open_browser
from upcycle import cli
from upcycle.core.references import resolve
from upcycle.core.saved import load
from upcycle.data import load as load_data
from upcycle.reports import pictures
from upcycle.verbs.heatmaps import as_heat, encoded

TEACHER = "zoo:digits_teacher"
TREAT = ("treat", TEACHER, "--recipe.epochs=2", "--recipe.batch_size=64", "--quiet")


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diagnosis of the shipped network."""
    place = tmp_path_factory.mktemp("diagnosis") / "run"
    assert cli.main(["diagnose", TEACHER, "--out", str(place), "--images", "6", "--methods", "gradcam,saliency"]) == 0
    return place


def test_a_diagnosis_says_and_shows_what_it_saw(diagnosed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, inside = (json.loads((diagnosed / f"{name}.json").read_text()) for name in ("result", "diagnosis"))
    row = result["rows"][0]
    assert row["role"] == "source" and f"{row['accuracy'][0]:.1%}" in result["sentence"]
    counts = torch.tensor(row["confusion"]).fill_diagonal_(0)
    a, b = divmod(int(counts.argmax()), 10)
    assert f"{a} taken for {b} ({int(counts.max())} times)" in result["sentence"]
    assert len(inside["scores"]) == 10 and len(inside["scores"][0]) == len(inside["mask"][0]) == 128
    pictures = {file.stem: json.loads(file.read_text()) for file in diagnosed.glob("pictures/*.json")}
    assert set(pictures) == {"1-wrong", "2-right", "3-channels", "4-shared"}
    wrong, right = pictures["1-wrong"]["items"], pictures["2-right"]["items"]
    assert len(wrong) == min(6, int(counts.sum())) and all("taken for" in item["label"] for item in wrong)
    assert [item["label"] for item in right] == ["0", "1", "2", "3", "4", "5"]
    text = (diagnosed / "report.html").read_text()
    assert "cannot be drawn" not in text and text.index("Inside the network") < text.index("Class by class")
    assert f"upcycle treat {TEACHER} --data digits" in text


def test_a_shortcut_is_suspected(tmp_path: Path) -> None:
    """Digits 4 without their lower half in the test set alone."""
    data = load_data("digits")
    data.test.images[data.test.labels == 4, 4:] = 0
    found = upcycle.diagnose(TEACHER, data=data, out=tmp_path / "run", images=2, methods=("saliency",),
                             say=lambda text: None)  # fmt: skip
    assert "Beware of 4:" in found.sentence and found.sentence.count("Beware") == 1
    picture = json.loads((tmp_path / "run" / "pictures" / "0-suspect-4.json").read_text())
    assert len(picture["items"]) == 2 and all(item["label"].startswith("4") for item in picture["items"])


def test_a_diagnosis_changes_nothing(tmp_path: Path) -> None:
    model = resolve(TEACHER)
    before = {name: t.clone() for name, t in model.module.state_dict().items()}
    upcycle.diagnose(model, data="digits", out=tmp_path / "run", images=1, methods=("saliency",), say=lambda text: None)
    assert all(torch.equal(t, before[name]) for name, t in model.module.state_dict().items())
    assert all(p.requires_grad for p in model.module.parameters())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["diagnose", "zoo:mlp", "--data", "mnist"], "no trained weights"),
        (["diagnose", TEACHER, "--methods", "gradcamm"], "Did you mean 'gradcam'"),
        (["diagnose", TEACHER, "--images", "0"], "at least 1"),
        (["diagnose", TEACHER, "--layer", "block9"], "block9"),
        (["diagnose", TEACHER, "--data", "no/such/folder"], "no/such/folder"),
        (["explain", TEACHER, "no/such/folder"], "no folder"),
        (["treat"], "treat needs a classifier"),
        (["treat", TEACHER, "--a", "-1"], "a must"),
        (["treat", TEACHER, "--method", "kd"], "upcycle distill"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1 and said in found
    assert not list(tmp_path.iterdir())


def test_a_folder_is_explained(tmp_path: Path) -> None:
    data, folder = load_data("digits"), tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(data.test.images[i, ..., 0].numpy()).save(folder / f"{i}.png")
    out = tmp_path / "out"
    assert cli.main(["explain", TEACHER, str(folder), "--methods", "saliency", "--target", "4", "--out", str(out)]) == 0
    rows = list(csv.DictReader((out / "explained.csv").open()))
    assert [row["path"] for row in rows] == ["0.png", "1.png", "2.png"] and {row["class"] for row in rows} == {"4"}
    assert len(list((out / "maps" / "saliency").glob("*.png"))) == 3
    assert "What speaks for 4" in (out / "report.html").read_text()


def test_a_treatment_stands_beside_plain_further_training(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert cli.main([*TREAT, "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert [row["role"] for row in result["rows"]] == ["source", "control", "product"]
    assert "after the same training without the treatment" in result["sentence"]
    treated = load(out)
    assert treated.lineage is not None and treated.lineage["parents"][0]["role"] == "source"
    assert "cannot be drawn" not in (out / "report.html").read_text()


def test_without_control_the_sentence_says_so(tmp_path: Path) -> None:
    assert cli.main([*TREAT, "--control", "false", "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [row["role"] for row in result["rows"]] == ["source", "product"] and "not measured" in result["sentence"]


# -- the page -------------------------------------------------------------------------------------------------


def overlay(methods: int) -> dict[str, object]:
    """Two grey images with a heat map by each method."""
    names = [f"method {i}" for i in range(methods)]
    plain = encoded(Image.new("L", (8, 8), 128))
    items = [{"png": plain, "label": f"image {i}", "maps": {n: encoded(as_heat(torch.rand(8, 8))) for n in names}}
             for i in range(2)]  # fmt: skip
    return {"kind": "overlay", "title": "maps", "methods": names, "items": items}


def test_more_methods_than_the_page_has_styles_for_are_refused(tmp_path: Path) -> None:
    for methods, drawn in ((8, True), (9, False), (0, False)):
        (tmp_path / "p.json").write_text(json.dumps(overlay(methods)))
        assert ("cannot be drawn" not in pictures.picture(tmp_path / "p.json").caption) == drawn


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


SEEN = """(() => {
  const shown = [...document.querySelectorAll('.overlay')][0];
  const inputs = [...shown.querySelectorAll('input')];
  const visible = () => [...shown.querySelectorAll('.over')].filter(e => getComputedStyle(e).visibility === 'visible')
                        .map(e => e.alt);
  const found = [];
  for (const input of inputs) { input.checked = true; found.push([...new Set(visible())]); }
  return {found, names: inputs.map(i => i.labels[0].textContent), legend: shown.querySelector('legend').textContent};
})()"""


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 400])
def test_the_switch_shows_one_method_at_a_time(diagnosed: Path, browser: Browser, width: int) -> None:
    seen = browser.visit(diagnosed / "report.html", width, script=SEEN)
    assert not seen.errors and not seen.outside and seen.page_width <= width
    assert seen.answer["names"] == ["gradcam", "saliency", "image alone"] and seen.answer["legend"]
    assert seen.answer["found"] == [["where gradcam sees the reason"], ["where saliency sees the reason"], []]
