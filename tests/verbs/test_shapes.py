"""A network for images of 16 x 48 pixels is measured and trained on those pixels in every verb."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import upcycle
from upcycle import UserError
from upcycle.core import saved
from upcycle.core.models import Model
from upcycle.core.reading import Reading
from upcycle.core.references import resolve

CLASSES = ("left", "middle", "right")


class Columns(nn.Module):
    """Tells in which third of an image of 16 x 48 pixels the light is; answers to images of any size."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1, bias=False)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d((1, num_classes))
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * num_classes, num_classes)
        with torch.no_grad():
            self.conv.weight.fill_(1.0)
            self.linear.weight.copy_(20 * torch.eye(num_classes).repeat(1, 4))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flatten(self.pool(self.relu(self.conv(x)))))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``wide`` of images, and the network saved in ``net``."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (root / "wide" / name).mkdir(parents=True)
        for i in range(16):
            pixels = rng.integers(0, 100, (16, 48)).astype(np.uint8)
            pixels[:, 16 * k : 16 * k + 16] += 100
            Image.fromarray(pixels).save(root / "wide" / name / f"{i:02d}.png")
    model = resolve(Columns(), input_shape=(1, 16, 48), classes=CLASSES)
    options = {"num_classes": 3}
    model = Model(**{**vars(model), "reference": "tests.verbs.test_shapes:Columns", "options": options})
    saved.save(model, root / "net")
    return root


@pytest.fixture(params=["by name", "as a Model", "as a module"])
def named(request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """The network, and what must be said about it."""
    monkeypatch.chdir(place)
    if request.param == "by name":
        return "net", {"trust": ("tests",)}
    if request.param == "as a Model":
        return saved.load("net", trust=("tests",)), {}
    return Columns(), {"size": (16, 48)}


BRIEF: dict[str, Any] = {"data": "wide", "quiet": True, "recipe": {"epochs": 1, "lr": 1e-6, "batch_size": 8}}


def distilled(net: Any, said: dict[str, Any], out: Path) -> upcycle.Model:
    made = upcycle.distill(teacher=net, student="zoo:convnet_small", out=out, **said, **BRIEF)
    assert made.rows[0]["accuracy"] == [1.0]
    return made.model


def adapted(net: Any, said: dict[str, Any], out: Path) -> upcycle.Model:
    given = {"classes": CLASSES} if isinstance(net, Columns) else {}
    return accurate(upcycle.adapt(net, method="ssf", out=out, **said, **given, **BRIEF))


def treated(net: Any, said: dict[str, Any], out: Path) -> upcycle.Model:
    return accurate(upcycle.treat(net, out=out, control=False, **said, **BRIEF))


def taken_apart(net: Any, said: dict[str, Any], out: Path) -> upcycle.Model:
    brief = {key: value for key, value in BRIEF.items() if key != "recipe"}
    made = upcycle.disassemble(net, classes=("left", "right"), samples=4, out=out, **said, **brief)
    assert made.rows[0]["accuracy"] == [1.0]
    return made.model


def extended(net: Any, said: dict[str, Any], out: Path) -> upcycle.Model:
    given = {"classes": CLASSES} if isinstance(net, Columns) else {}
    brief = {key: value for key, value in BRIEF.items() if key != "data"}
    made = upcycle.extend(
        net, stream="parts:wide/2", method="er", control=False, augment=("none",), out=out, **said, **given, **brief
    )
    return accurate(made)


def accurate(made: Any) -> upcycle.Model:
    assert made.rows[-1]["accuracy"] == [1.0]
    return made.model


@pytest.mark.parametrize("verb", [distilled, adapted, treated, taken_apart, extended])
def test_verbs_that_make_a_network(
    verb: Callable[..., upcycle.Model], named: tuple[Any, dict[str, Any]], tmp_path: Path
) -> None:
    assert verb(*named, tmp_path / "run").input_shape == (1, 16, 48)


def test_verbs_that_look(named: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    net, said = named
    found = upcycle.evaluate(net, "wide", **said)
    assert found.accuracy == 1.0 and found.model.input_shape == (1, 16, 48)
    own = {"classes": CLASSES} if isinstance(net, Columns) else {}
    answers = upcycle.predict(net, "wide", **said, **own)
    assert answers.predicted == [Path(path).parent.name for path in answers.paths]
    quiet: Any = lambda text: None  # noqa: E731
    looked = upcycle.diagnose(net, data="wide", methods=("gradcam",), out=tmp_path / "seen", say=quiet, **said)
    assert looked.evaluation.accuracy == 1.0
    seen = upcycle.explain_images(
        net, "wide/right", methods=("saliency",), out=tmp_path / "why", say=quiet, **said, **own
    )
    assert seen.maps["saliency"].maps.shape[1:] == (16, 48)


def test_images_in_memory_are_as_they_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that takes them is used at their size; one that does not is refused in a sentence."""
    monkeypatch.chdir(place)
    net, wide = saved.load("net", trust=("tests",)), upcycle.load_data("wide", size=(16, 48))
    assert upcycle.evaluate(net, wide).accuracy == 1.0
    other = upcycle.evaluate(net, upcycle.load_data("wide", size=(8, 24)))
    assert other.model.input_shape == (1, 8, 24) and other.accuracy == 1.0

    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16 * 48, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1))

    strict = resolve(Strict(), input_shape=(1, 16, 48), classes=CLASSES)
    assert upcycle.evaluate(strict, "wide").count == len(wide.test)
    with pytest.raises(UserError, match=r"Strict takes no images of 1 x 16 x 16 .*load them at its own 16 x 48"):
        upcycle.evaluate(strict, upcycle.load_data("wide", size=16))


def test_named_sets_come_at_the_size_that_is_said() -> None:
    torch.manual_seed(0)
    net = resolve("zoo:convnet_small", pretrained=False, num_classes=10, input_shape=(1, 16, 48))
    with pytest.raises(UserError, match="takes images of 16 x 48 pixels, and those of digits have 8 x 8: give --size"):
        upcycle.evaluate(net, "digits")
    found = upcycle.evaluate(net, "digits", size=(16, 48))
    pixels = upcycle.load_data("digits", size=(16, 48))
    assert found.accuracy == upcycle.evaluate(net, pixels).accuracy and found.model.input_shape == (1, 16, 48)


def test_what_resizing_does_is_said_saved_and_the_same_everywhere(place: Path, tmp_path: Path) -> None:
    """Wide images through a square network: the crop loses two of three classes, the others do not."""
    for resize, whole in (("crop", False), ("squash", True), ("pad", True)):
        images = upcycle.load_data(place / "wide", size=(24, 24), reading=Reading(resize=resize))
        assert upcycle.data.describe(images).endswith("(--resize)") and images.reshaped == 48
        light = images.test.images[..., 0].float().mean(1).argmax(1)
        told = [len(set((light[images.test.labels == k] // 8).tolist()) - {1}) > 0 for k in (0, 2)]
        assert all(told) == whole
        torch.manual_seed(0)
        fresh = resolve("zoo:convnet_small", pretrained=False, num_classes=3, input_shape=(1, 24, 24), classes=CLASSES)
        made = upcycle.distill(
            teacher=fresh,
            student="zoo:convnet_small",
            resize=resize,
            out=tmp_path / resize,
            **{**BRIEF, "data": str(place / "wide")},
        )
        again = saved.load(tmp_path / resize)
        assert again.reading == Reading(resize=resize) == made.model.reading
        text = (tmp_path / resize / "model" / "architecture.json").read_text()
        assert ('"reading"' in text) == (resize != "crop")  # a file of the usual kind is as it always was
        found = upcycle.evaluate(tmp_path / resize, place / "wide")
        assert found.accuracy == upcycle.evaluate(again, images).accuracy == made.rows[-1]["accuracy"][0]
        upcycle.export(again, tmp_path / f"{resize}.pt2", format="torch", say=lambda text: None)
        facts = json.loads((tmp_path / f"{resize}.pt2.json").read_text())
        assert facts.get("reading", {}) == again.reading.record()
        answers = upcycle.predict(tmp_path / resize, place / "wide")
        assert any("48 images were" in note for note in answers.model.notes)
        other = upcycle.predict(tmp_path / resize, place / "wide", resize="squash")
        assert torch.equal(answers.probabilities, other.probabilities) == (resize == "squash")
    with pytest.raises(UserError, match="resize must be one of crop, squash, pad, center, not 'stretch'"):
        upcycle.evaluate(fresh, place / "wide", resize="stretch")


def test_a_student_that_says_what_it_takes_is_trained_on_that(place: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = resolve("zoo:convnet_small", pretrained=False, num_classes=3, input_shape=(1, 8, 24), classes=CLASSES)
    brief = {**BRIEF, "data": str(place / "wide")}
    made = upcycle.distill(student=own, method="tfkd", out=tmp_path / "run", **brief)
    assert made.model.input_shape == (1, 8, 24)
    assert upcycle.evaluate(tmp_path / "run", place / "wide").accuracy == made.rows[-1]["accuracy"][0]


def test_images_that_were_read_otherwise_are_noted(place: Path) -> None:
    torch.manual_seed(0)
    net = resolve("zoo:convnet_small", pretrained=False, num_classes=3, input_shape=(1, 24, 24), classes=CLASSES)
    net = dataclasses.replace(net, reading=Reading(resize="pad"))
    cut, padded = (upcycle.load_data(place / "wide", size=24, reading=Reading(resize=r)) for r in ("crop", "pad"))
    words = "read with resize crop, and not pad, as convnet_small would have them"
    assert any(words in note for note in upcycle.evaluate(net, cut).notes)
    assert not any("read with" in note for note in upcycle.evaluate(net, padded).notes)
    with pytest.raises(UserError, match="loaded already"):
        upcycle.evaluate(net, cut, resize="squash")
