"""``advise`` on real networks and data: what it sees, the commands it gives, and that these run."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from tests.predictor_server import serve
from upcycle import cli
from upcycle.adaptation import SSF, LinearProbe
from upcycle.core import references
from upcycle.core.errors import UserError
from upcycle.verbs import advise_tries
from upcycle.verbs.advise import advise
from upcycle.verbs.advise_looks import architecture_of, unsupported
from upcycle.verbs.advised import Advice
from upcycle.verbs.methods import all_methods

TEACHER = "zoo:digits_teacher"
NAMES = ("zero", "one", "two")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photos(root: Path, names: tuple[str, ...], each: int) -> str:
    """A folder with so many digits a class; without class folders where a class has no name."""
    found = load_digits()
    for label, name in enumerate(names):
        (root / "photos" / name).mkdir(parents=True, exist_ok=True)
        for i in np.flatnonzero(found.target == label)[:each]:
            Image.fromarray((found.images[i] * 15.9).astype("uint8")).save(root / "photos" / name / f"{label}-{i}.png")
    return "photos"


def first(advice: Advice) -> str:
    """The first command, which must be tried and be ready to run."""
    choice = advice.choices[0]
    assert "on this machine" in choice.time and "Fill in" not in " ".join(choice.notes)
    return choice.command


def test_a_network_and_its_own_kind_of_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["advise", "--model", TEACHER, "--data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = found["choices"][0]
    assert (
        best["command"] == f"upcycle distill --teacher {TEACHER} --student zoo:convnet_small --data digits --method kd"
    )
    assert best["verdict"].startswith("works") and "zoo:convnet_small, " in best["student"]
    assert "classes of the network and of the data are the same" in " ".join(found["seen"])
    assert sum(bool(choice["time"]) for choice in found["choices"]) == 3
    assert cli.main([*shlex.split(best["command"])[1:], "--epochs=1", "--out=run", "--quiet"]) == 0
    assert cli.main(["advise", "--model", TEACHER, "--data", "digits"]) == 0
    said = capsys.readouterr().out
    assert said.count("upcycle distill") + said.count("upcycle disassemble") == 3 and "With --all: " in said
    assert "Cannot work here" not in said and "stand for a reference" not in said


def test_other_classes_are_a_task_to_adapt_to(here: Path) -> None:
    quick = [method for method in all_methods() if method.card.name not in ("lora", "ia3")]  # whose library is large
    advice = advise(model=TEACHER, data=photos(here, NAMES, 150), methods=quick)
    assert first(advice) == f"upcycle adapt {TEACHER} --data photos --method ssf --recipe.batch_size 32"
    assert advice.choices[0].notes == ("With 306 images, batches of 32 give more updates.",)
    assert "the network knows none" in " ".join(advice.seen) and "other classes apart" in advice.have


def test_images_without_labels(here: Path) -> None:
    advice = advise(model=TEACHER, data=photos(here, ("", "", "", ""), 170))
    command = (
        f"upcycle distill --teacher {TEACHER} --student zoo:convnet_small --data photos --method kd --terms.w_ce 0"
    )
    assert first(advice).startswith(command) and "without labels" in " ".join(advice.seen)


def test_a_few_images(here: Path) -> None:
    advice = advise(model=TEACHER, data=photos(here, tuple("0123456789"), 8), goal="task")
    assert "probe" in first(advice) and not any("if your few images" in c.reason for c in advice.choices)


def test_no_data(here: Path) -> None:
    advice = advise(model=TEACHER, data="none")
    assert first(advice).startswith(f"upcycle distill --teacher {TEACHER} --student zoo:convnet_small --method ")
    advice = advise(model="zoo:cifar10_vit", data="none")
    assert not advice.choices and "a transformer with 10 classes" in advice.seen[0]
    assert "Cannot work here" in advice.text()


def test_answers_alone(here: Path) -> None:
    data = photos(here, tuple("0123456789"), 110)
    with serve(references.resolve(TEACHER)) as url:
        advice = advise(model=str(url), data=data)
        assert not url.images  # nothing was asked that might be billed
    assert shlex.split(first(advice))[:4] == ["upcycle", "adapt", str(url), "--student"]
    assert len(advice.choices) == 2 and not any("distill" in choice.command for choice in advice.choices)


def test_real_images_of_some_classes_and_a_network_without_batchnorm(here: Path, cifar10: Path) -> None:
    """Three classes of CIFAR-10, whose network knows ten."""
    table = pq.read_table(cifar10 / "cifar10" / "test.parquet").slice(0, 1000).to_pylist()
    for row in table:
        name = ("airplane", "automobile", "bird", *"3456789")[row["label"]]
        if len(name) > 1:
            (here / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.open(io.BytesIO(row["img"]["bytes"])).save(here / "photos" / name / f"{len(name)}-{id(row)}.png")
    advice = advise(model="zoo:cifar10_resnet20", data="photos", methods=[SSF, LinearProbe])
    assert "All 3 classes of the data are among the 10" in " ".join(advice.seen)
    assert first(advice).startswith("upcycle adapt zoo:cifar10_resnet20 --data photos")
    advice = advise(model="zoo:cifar10_lenet_captum", data="none")
    assert not advice.choices and "no BatchNorm" in advice.seen[0] and "was tried on your network" in advice.missing
    assert any("BatchNorm" in r.reason for r in advice.refused if r.method == "deepinversion")


def test_a_better_network_is_built_like_the_first(here: Path) -> None:
    choice = advise(model=TEACHER, data="digits", goal="better").choices[0]
    assert f"--student {TEACHER}" in choice.command and "built like your network" in choice.student


def test_too_little_memory_makes_batches_smaller(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advise_tries, "free_memory", lambda: 2e6)
    choice = advise(model=TEACHER, data="digits").choices[0]
    size = int(choice.command.rpartition("--recipe.batch_size ")[2])
    assert size in (2, 4, 8, 16, 32, 64) and f"batches of {size} take less" in choice.notes[-1]


def test_a_network_of_ones_own_is_named_whole(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "own_nets.py").write_text(
        "from torch import nn\n\ndef net(num_classes=3, width=64):\n"
        "    body = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()\n"
        "    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(here))
    advice = advise(model="own_nets:net", data=photos(here, NAMES, 150), size=(3, 16, 16))
    words = shlex.split(first(advice))
    assert "--size" in words and words[words.index("--teacher") + 1] == "own_nets:net"
    assert cli.main([*words[1:], "--dry_run", "--quiet"]) == 0


class FasterRCNN(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        return [{"boxes": x, "labels": x}]


def test_what_is_not_supported_is_said_once_by_kind(here: Path) -> None:
    (here / "boxes" / "Annotations").mkdir(parents=True)
    (here / "boxes" / "Annotations" / "1.xml").write_text("<annotation/>")
    with pytest.raises(UserError, match="data set for object detection"):
        advise(model=TEACHER, data="boxes")
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").write_text("words")
    with pytest.raises(UserError, match="texts holds text"):
        advise(model=TEACHER, data="texts")
    with pytest.raises(UserError, match=r"fasterrcnn_resnet50_fpn is an object detector"):
        advise(model="torchvision:fasterrcnn_resnet50_fpn", data="digits")
    with pytest.raises(UserError, match="FasterRCNN is an object detector"):
        advise(model=FasterRCNN(), data="digits")
    assert unsupported("hf:some/model", "hf:x is no image classifier of transformers, but 'bert'.") == "a text model"
    assert not unsupported("zoo:resnet20", "no weights")


def test_mistakes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, part in (
        (["--model", TEACHER], "--data DATA, or --data none"),
        (["--data", "photos"], "--model REFERENCE"),
        (["--data", "few", "--size", "8"], "give --model REFERENCE"),
        (["--model", TEACHER, "--data", "nowhere"], "no data set or folder"),
        (["--model", "zoo:digits_techer", "--data", "digits"], "Did you mean"),
    ):
        assert cli.main(["advise", *words]) == 2, words
        assert part in capsys.readouterr().err, words


def test_kinds_of_networks() -> None:
    for name, kind in (("zoo:vit_small", "transformer"), ("zoo:mobilenetv2_ca", "conv"), ("zoo:mlp_small", "any")):
        assert architecture_of(references.resolve(name, pretrained=False).module) == kind
