"""In a notebook: cells run twice, results show themselves in a line and as a table, models take images as they come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import upcycle
from tests.corpus import picture_folder
from upcycle.core.errors import UserError
from upcycle.core.graphs import GraphTakes
from upcycle.core.models import Model
from upcycle.core.reading import Reading
from upcycle.verbs.directory import numbered

BRIEF = {"recipe": {"epochs": 1, "batch_size": 500}, "quiet": True}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_cell_runs_twice_and_goes_on_with_the_last_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cell(**more: object) -> upcycle.Result:
        return upcycle.distill(student="zoo:convnet_small", method="plain", data="digits", **{**BRIEF, **more})

    first, second = cell(), cell(quiet=False)
    assert first.directory == Path("runs/distill-plain-digits") and second.directory.name == "distill-plain-digits-2"
    assert "run      runs/distill-plain-digits-2, since runs/distill-plain-digits is used" in capsys.readouterr().out
    assert (first.model.lineage or {})["digest"] == (second.model.lineage or {})["digest"]
    assert cell(resume=True).directory == second.directory
    assert (
        cell(dry_run=True).directory.name == "distill-plain-digits-3"
        and not (here / "runs" / "distill-plain-digits-3").exists()
    )


def test_numbers_go_on_and_the_last_used_one_is_gone_on_with(tmp_path: Path) -> None:
    place = tmp_path / "run"
    assert numbered(place) == place == numbered(place, last=True)
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert numbered(place).name == "run-3" and numbered(place, last=True).name == "run-2"
    (tmp_path / "run-3").mkdir()  # empty: killed before it wrote
    assert numbered(place).name == "run-3"


def test_several_processes_share_one_directory(here: Path) -> None:
    from upcycle.verbs.distill import Setting
    from upcycle.verbs.session import Session

    (here / "runs" / "distill-plain-digits").mkdir(parents=True)
    (here / "runs" / "distill-plain-digits" / "config.yaml").touch()
    for devices, name in ((1, "distill-plain-digits-2"), (2, "distill-plain-digits")):
        found = Session("distill", "plain", {}, "digits", print, {"devices": devices, "quiet": True}, kind=Setting)
        assert found.out.name == name


def test_results_show_themselves(here: Path) -> None:
    teacher = upcycle.resolve("zoo:digits_teacher")
    made = upcycle.distill(teacher=teacher, student="zoo:convnet_small", data="digits", **BRIEF)
    found = upcycle.evaluate(teacher)
    data = upcycle.load_data("digits")
    shown = {
        "Result": (made, "runs/distill-kd-digits", ">convnet_small by kd<"),
        "Evaluated": (found, "accuracy 9", ">all<"),
        "Leaderboard": (upcycle.compare("runs"), "distill-kd-digits", "<th"),
        "Model": (teacher, "digits_teacher, 1 x 8 x 8 images, 10 classes", ">zoo:digits_teacher<"),
        "Images": (data, "1,000 train", ">validation<"),
        "Predictions": (teacher(data.test.images[:30].permute(0, 3, 1, 2)), "30 images", "and 10 more"),
        "Advice": (upcycle.advise(data="labelled"), "take ", "<pre>"),
    }
    for name, (thing, line, part) in shown.items():
        text = repr(thing)
        assert text.startswith(f"<{name}: ") and line in text and "\n" not in text and len(text) < 300, text
        html = thing._repr_html_()
        assert part in html and html.count("<table>") == html.count("</table>"), html
    assert repr(data.train) == "<ImageSplit: 1,000 samples>"


def test_names_of_others_are_text_in_a_view() -> None:
    net = Model(module=nn.Identity(), input_shape=(1, 4, 4), mean=(0.0,), std=(1.0,), classes=("<b>", "b"), name="<i>x")
    assert "<b>, b" not in net._repr_html_() and "&lt;b&gt;, b" in net._repr_html_() and "<i>" not in net._repr_html_()


# -- a model and images -----------------------------------------------------------------------------------------


class Brightness(nn.Module):
    """Two classes: dark and bright, by the mean of what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([-mean, mean], 1)


@pytest.fixture
def model() -> Model:
    return Model(
        module=Brightness(), input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,), classes=("dark", "bright"), name="lamp",
        reading=Reading(resize="squash"),
    )  # fmt: skip


def test_a_model_takes_paths_pictures_and_pixels_alike(model: Model, tmp_path: Path) -> None:
    rows = torch.arange(12 * 20, dtype=torch.uint8).reshape(12, 20)
    picture = Image.fromarray(rows.numpy())
    picture.save(tmp_path / "a.png")
    of_file = upcycle.predict(model, tmp_path / "a.png").scores
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), picture, [picture], [tmp_path / "a.png"]):
        assert torch.equal(model(given).scores, of_file)
    assert model([picture, str(tmp_path / "a.png")]).paths == ["image 1", "a.png"]
    assert torch.equal(model(picture.convert("RGB")).scores, of_file)

    batch = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = Brightness()((batch / 255 - 0.5) / 0.25).softmax(1)
    assert torch.allclose(model(batch).scores, expected, atol=1e-6)
    assert torch.allclose(model(batch / 255).scores, expected, atol=1e-6)
    assert torch.allclose(model(batch[0]).scores, expected[:1], atol=1e-6)
    assert model(torch.zeros(1, 3, 30, 30)).predicted == ["dark"]


def test_a_model_reads_a_folder_and_keeps_its_modes(model: Model, tmp_path: Path) -> None:
    model.module.train()
    found = model(picture_folder(tmp_path / "p", n=2))
    assert len(found.paths) == 6 and model.module.training


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.full((1, 1, 8, 8), 1.5), "uint8, or floating in \\[0, 1\\]"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.long), "uint8, or floating"),
        (torch.zeros(8, 8), r"\(n, c, h, w\) or \(c, h, w\) with 1 or 3 channels, not \(8, 8\)"),
        ([], "the list is empty"),
        ([3], "Image 1 is a int: give paths"),
        (Image.new("L", (2, 2)), "image 1 cannot be used: 2 x 2 pixels, too small"),
        ("no/such.png", "There is no folder or image no/such.png"),
        (["no/such.png"], "such.png"),
    ],
)
def test_what_is_no_image_is_refused(model: Model, given: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        model(given)


def test_a_network_of_something_else_says_what_to_call() -> None:
    graphs = Model(module=nn.Identity(), inputs=GraphTakes(features=3), name="gnn")
    with pytest.raises(UserError, match=r"gnn takes graphs .*; call its module: model.module\(inputs\)"):
        graphs("x.png")
