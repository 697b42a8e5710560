"""The commands that look into a network, explain and treat it, on real digits; and the page that they write."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import upcycle
from tests.browser import Browser, find_chromium, open_browser
from upcycle import cli
from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.core.saved import load
from upcycle.core.task import Evaluation
from upcycle.data import load as load_data
from upcycle.measure.units import times
from upcycle.reports import pictures
from upcycle.verbs.figures import show_accuracy
from upcycle.verbs.heatmaps import as_heat, encoded
from upcycle.zoo.vit import ViT

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
    assert f"'{a}' taken for '{b}' ({times(int(counts.max()))})" in result["sentence"]
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
    assert "Beware of '4':" in found.sentence and found.sentence.count("Beware") == 1
    picture = json.loads((tmp_path / "run" / "pictures" / "0-suspect-4.json").read_text())
    assert len(picture["items"]) == 2 and all(item["label"].startswith("4") for item in picture["items"])


def bare(module: nn.Module) -> Model:
    """A network of digits, as a person's own is."""
    return Model(module=module, input_shape=(1, 8, 8), mean=(0.3,), std=(0.4,), classes=tuple("0123456789"), name="own")


class Remembering(nn.Module):
    """A network that is wrong about every fourth image that it has not learnt by heart.

    Args:
        known: images (n, 1, 8, 8) that it learnt, as it sees them.
        labels: what they are.
        network: one that is right otherwise.
    """

    def __init__(self, known: Tensor, labels: Tensor, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("known", known.flatten(1))
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        distance, at = torch.cdist(flat, self.known, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        new = (distance > 1e-3)[:, None]
        z = self.network(x)
        weak = new & (flat.sum(1).round().long() % 4 == 0)[:, None]
        sure = torch.nn.functional.one_hot(self.labels[at], z.shape[1]) * 20.0
        return torch.where(new, torch.where(weak, z.roll(1, 1), z), sure + 0 * z)


@pytest.mark.parametrize("heart", ["training", "training and validation"])
def test_memory_is_not_taken_for_a_shortcut(heart: str, tmp_path: Path) -> None:
    """Where validation images were trained on, a gap to test images says nothing; where they were not, it is none."""
    teacher = resolve(TEACHER)
    data = load_data("digits").normalised(teacher.mean, teacher.std)
    parts = [data.train] if heart == "training" else [data.train, data.validation]
    seen = [part.batch(torch.arange(len(part)), device=torch.device("cpu")) for part in parts]
    known, labels = (torch.cat([getattr(b, name) for b in seen]) for name in ("images", "labels"))
    net = dataclasses.replace(teacher, module=Remembering(known, labels, teacher.module), reference=None, name="own")
    found = upcycle.diagnose(
        net, data=data, out=tmp_path / "run", images=1, methods=("saliency",), say=lambda text: None
    )
    assert "Beware" not in found.sentence
    assert ("cannot be told" in found.sentence) == found.inside.familiar == (heart != "training")
    assert not list((tmp_path / "run" / "pictures").glob("0-suspect-*"))


def test_a_shortcut_of_one_class_is_suspected_even_where_validation_images_are_familiar(tmp_path: Path) -> None:
    """All other classes are recognised in test images as well as in validation images, so memory explains nothing."""
    data = load_data("digits")
    data = dataclasses.replace(
        data, validation=data.train.subset(torch.arange(0, 1000, 3)), train=data.train.subset(torch.arange(1, 1000, 3))
    )
    data.test.images[data.test.labels == 4, 4:] = 0
    found = upcycle.diagnose(
        TEACHER, data=data, out=tmp_path / "run", images=1, methods=("saliency",), say=lambda text: None
    )
    assert found.inside.familiar and "Beware of '4':" in found.sentence and "cannot be told" not in found.sentence


def test_a_class_that_is_never_recognised_is_said(tmp_path: Path) -> None:
    teacher = resolve(TEACHER)
    with torch.no_grad():
        next(m for m in teacher.module.modules() if isinstance(m, nn.Linear)).bias[8] -= 1000.0
    found = upcycle.diagnose(
        teacher, data="digits", out=tmp_path / "run", images=1, methods=("saliency",), say=lambda text: None
    )
    n = sum(found.evaluation.confusion[8])
    assert f"It never recognises '8': of {n} test images it takes" in found.sentence
    assert "No training image of '8' is recognised, so no channel speaks for it." in found.sentence
    assert "least often" not in found.sentence and found.inside.unrecognised.keys() == {"8"}
    assert "cannot be drawn" not in found.report.read_text()


class Unfollowed(nn.Module):
    """A network that records no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x)


def plain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


NETWORKS = {
    "a transformer": (
        lambda: ViT((1, 8, 8), 10, width=8, depth=2, heads=2),
        {"gradcam", "saliency"},
        {"learned", "gradcam"},
    ),
    "weight norm": (
        lambda: plain(
            weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        ),
        {"gradcam", "saliency"},
        {"learned", "gradcam"},
    ),
    "a perceptron": (
        lambda: plain(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10)),
        {"saliency"},
        {"learned"},
    ),
    "a linear classifier": (lambda: plain(nn.Flatten(), nn.Linear(64, 10)), {"saliency"}, {"occlusion"}),
    "no gradient": (lambda: Unfollowed(resolve(TEACHER).module), {"occlusion"}, {"occlusion"}),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_of_every_kind_are_looked_into_as_far_as_they_allow(kind: str, tmp_path: Path) -> None:
    """Nothing named: what serves the network is shown, and it is said what does not."""
    make, looked, explained = NETWORKS[kind]
    net = bare(make().eval())
    found = upcycle.diagnose(net, data="digits", out=tmp_path / "run", images=1, say=lambda text: None)
    shown = json.loads((tmp_path / "run" / "pictures" / "1-wrong.json").read_text())
    assert looked <= set(shown["methods"]) and ("occlusion" in shown["methods"]) == (looked == {"occlusion"})
    assert (
        bool(shown["notes"]) == ("gradcam" not in shown["methods"]) or kind == "weight norm" or kind == "a transformer"
    )
    assert (found.inside.layer is None) == (kind in ("a linear classifier", "no gradient"))
    assert (tmp_path / "run" / "pictures" / "3-channels.json").exists() == (found.inside.layer is not None)
    assert "cannot be drawn" not in found.report.read_text()
    Image.fromarray(load_data("digits").test.images[0, ..., 0].numpy()).save(tmp_path / "0.png")
    told: list[str] = []
    maps = upcycle.explain_images(net, tmp_path / "0.png", out=tmp_path / "why", say=told.append).maps
    assert set(maps) == explained
    assert sum(text.startswith("No map by") for text in told) == len({"learned", "gradcam"} - explained)
    with pytest.raises(UserError):
        upcycle.explain_images(net, tmp_path / "0.png", methods=("gradcam", "lrpp"), out=tmp_path / "no")
    if "gradcam" not in explained:  # asked for by name, it is refused, and nothing is written
        with pytest.raises(UserError, match=r"gradcam|Grad-CAM"):
            upcycle.explain_images(net, tmp_path / "0.png", methods=("gradcam",), out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


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
  const key = shown.querySelector('.heat i');
  const coloured = key.getBoundingClientRect().width > 40 && getComputedStyle(key).backgroundImage.includes('gradient');
  return {found, coloured, names: inputs.map(i => i.labels[0].textContent),
          legend: shown.querySelector('legend').textContent};
})()"""


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 400])
def test_the_switch_shows_one_method_at_a_time(diagnosed: Path, browser: Browser, width: int) -> None:
    seen = browser.visit(diagnosed / "report.html", width, script=SEEN)
    assert not seen.errors and not seen.outside and seen.page_width <= width
    assert seen.answer["names"] == ["gradcam", "saliency", "image alone"] and seen.answer["legend"]
    assert seen.answer["coloured"]  # the key of the colours
    assert seen.answer["found"] == [["where gradcam sees the reason"], ["where saliency sees the reason"], []]


@pytest.mark.parametrize(("k", "accuracy", "near"), [(3, 0.6, False), (3, 0.4, True), (10, 0.19, True)])
def test_near_chance_depends_on_the_number_of_classes(k: int, accuracy: float, near: bool) -> None:
    data = load_data("digits").only(tuple("0123456789"[:k]))
    found = Evaluation(accuracy=accuracy, loss=1.0, ece=0.0, per_class=[], confusion=[], count=9, confidence={})
    said: list[str] = []
    show_accuracy(said.append, "model", resolve(TEACHER), data, found)
    assert any("near chance" in line for line in said) == near
