"""``distill`` without data, and measured on other data than it learns from, with a stub of a data-free method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import upcycle
from tests.corpus import picture_folder
from upcycle import cli
from upcycle.core import references, saved, store
from upcycle.core.checks import same_classes
from upcycle.core.errors import UserError
from upcycle.core.losses import kd_loss
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data import Images, Pool, describe, load_pool, pool_lineage, save_pool
from upcycle.verbs import methods as known


@dataclass(kw_only=True, eq=False, repr=False)
class Noise(Method):
    """KD on uniform noise, kept in a pool.

    Args:
        teacher: a trained classifier.
        student: any network with the same classes.
        images: how many to draw.
        recipe: ordinary training.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    images: int = 96
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=2, batch_size=32))

    card = Card(name="noise", title="Noise", paper="nobody", verb="distill",
                needs=Needs(data="none", teacher="weights"), summary="A student of noise.", cost="low",
                published="nowhere")  # fmt: skip

    def check(self, data: Images) -> list[str]:
        return same_classes(self.model("teacher", data), self.model("student", data))

    def steps(self, n: int) -> int:
        return self.recipe.steps(self.images)

    def fit(self, run: Run, data: Images) -> nn.Module:
        whole, student = self.model("teacher", data), self.model("student", data)
        assert len(data.train) == 0 and data.shape == whole.input_shape == student.input_shape
        pool = Pool(self.images, data.shape, whole.mean, whole.std, data.train.augment)
        random = torch.Generator().manual_seed(run.seed)
        pool.append(torch.rand(self.images, *data.shape, generator=random), torch.arange(self.images) % 10)
        teacher = run.frozen(whole, None)
        network, optimizer = run.setup(student.module, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            network.train()
            for batch in run.batches(pool, self.recipe.batch_size, save_within=True):
                run.backward(kd_loss(network(batch.images), teacher(batch.images), 4.0))
                run.update(optimizer)
            if len(data.validation):
                run.evaluate(network, data.validation)
        run.note(f"Synthesis took no time; augmented by {' '.join(data.train.augment) or 'nothing'}.")
        if run.directory is not None and run.rank == 0:
            tree = pool_lineage(pool, whole, name="noise images", method=self.card.name)
            save_pool(pool, run.directory / "pool", classes=data.classes, name="Noise", lineage=tree)
        return run.plain(network)


class Rigid(nn.Module):
    """Takes 8 x 8 grey images and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.conv(x)).relu().flatten(1))


METHOD = "--method=tests.test_without_data:Noise"
WORDS = ["distill", METHOD, "--teacher=zoo:digits_teacher", "--student=zoo:convnet_small"]
ORDINARY = ["distill", "--teacher=zoo:digits_teacher", "--student=zoo:convnet_small", "--recipe.epochs=1"]
Refused = Callable[..., None]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused in one line, with these parts, before anything is written."""

    def check(words: list[str], *parts: str) -> None:
        before = sorted(here.rglob("*"))
        assert cli.main([*words, "--out=run"]) == 2, words
        said = capsys.readouterr().err
        assert said.startswith("upcycle: ") and said.count("\n") == 1 and "Error(" not in said, said
        for part in parts:
            assert part in said, said
        assert sorted(here.rglob("*")) == before

    return check


# -- no images --------------------------------------------------------------------------------------------------


def test_no_images_are_a_data_set() -> None:
    data = Images.none((3, 32, 32), ("a", "b"), (0.5,) * 3, (0.2,) * 3)
    assert data.shape == (3, 32, 32) and data.classes == ("a", "b") and data.licence == "unknown"
    assert [len(s) for s in (data.train, data.validation, data.test)] == [0, 0, 0]
    assert data.train.mean == (0.5,) * 3 and data.train.std == (0.2,) * 3
    changed = data.augmented(("crop",)).normalised((0.1,) * 3, (0.3,) * 3)
    assert changed.train.augment == ("crop",) and changed.test.std == (0.3,) * 3
    assert describe(data) == "none; 2 classes, 3 x 32 x 32" and len(data.digest) == 64


def test_a_run_without_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--out=run"]) == 0
    said = capsys.readouterr().out
    for part in ("data     none; 10 classes, 1 x 8 x 8", "student, seed 0: agreement ",
                 "this is agreement and no accuracy", "note     Synthesis took no time; augmented by crop.",
                 "note     Every figure is agreement"):  # fmt: skip
        assert part in said, said
    assert "test accuracy" not in said
    config, result = yaml.safe_load(Path("run/config.yaml").read_text()), store.read_json(Path("run/result.json"))
    assert config["data"] == "none" and config["test_data"] is None
    assert "--data none" in result["command"] and "--test_data" not in result["command"]
    assert result["rows"][0]["accuracy"] == [1.0] and 0 <= result["rows"][1]["accuracy"][0] <= 1
    assert result["data"]["train"] == 0 and any("which is no accuracy" in note for note in result["notes"])
    pool, tree = load_pool("run"), saved.load("run").lineage
    assert len(pool.train) == 96 and tree is not None and tree["data"] is None
    assert list(tree["metrics"]) == ["agreement"] and [p["role"] for p in tree["parents"]] == ["teacher"]
    # The student's figure is its agreement on the pool's test images.
    teacher, student = references.resolve("zoo:digits_teacher"), saved.load("run")
    x = pool.normalised(teacher.mean, teacher.std).test.batch(torch.arange(len(pool.test)), device=torch.device("cpu"))
    with torch.no_grad():
        same = teacher.module(x.images).argmax(1) == student.module(x.images).argmax(1)
    assert result["rows"][1]["accuracy"][0] == pytest.approx(float(same.float().mean()))
    # The pool serves the next student.
    assert cli.main([*ORDINARY, "--data=pool:run", "--test-data=digits", "--quiet", "--out=second"]) == 0


def test_a_run_is_re_made_from_its_configuration(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_plugins", {})
    plugin = Path("plugin.py")
    plugin.write_text(Path(__file__).read_text())
    words = ["distill", "--plugin=plugin.py", "--method=noise", *WORDS[2:], "--quiet", "--test_data=digits"]
    assert cli.main([*words, "--out=first"]) == 0
    assert cli.main(["distill", "--config=first/config.yaml", "--out=second", "--quiet", "--trust=plugin"]) == 0
    assert cli.main([*words, "--data=none", "--out=third"]) == 0
    digests = {store.tensor_digest(saved.load(d).module.state_dict()) for d in ("first", "second", "third")}
    assert len(digests) == 1
    assert (
        cli.main(["distill", "--config=first/config.yaml", "--out=first", "--quiet", "--resume", "--trust=plugin"]) == 0
    )


def test_measured_on_real_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--test-data", "digits", "--out=run"]) == 0
    said = capsys.readouterr().out
    assert "digits, only to measure: 0 train, 297 validation, 500 test images" in said and "test accuracy" in said
    assert "on the 500 test images of digits" in said and "teacher  digits_teacher: 9" in said
    result = store.read_json(Path("run/result.json"))
    assert result["rows"][0]["accuracy"][0] == pytest.approx(0.992) and result["config"]["test_data"] == "digits"
    assert not any("agreement" in note for note in result["notes"])
    card = (here / "run" / "model" / "README.md").read_text()
    assert "Measured on digits." in card and "The data none" not in card
    assert "test accuracy" in saved.load("run").lineage["metrics"]  # type: ignore[index]


def test_every_seed_has_its_pool(here: Path) -> None:
    assert cli.main([*WORDS, "--seeds=2", "--quiet", "--out=run"]) == 0
    first, second = load_pool("run"), load_pool("run/more/student-1")
    assert first.digest != second.digest
    assert len(store.read_json(Path("run/result.json"))["rows"][1]["accuracy"]) == 2


def test_size_and_augmentation(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--size=12", "--augment=none", "--out=run"]) == 0
    assert "augmented by nothing" in capsys.readouterr().out and load_pool("run").shape == (1, 12, 12)
    assert saved.load("run").input_shape == (1, 12, 12)
    torch.manual_seed(0)
    colour = references.resolve("zoo:convnet_small", pretrained=False, input_shape=(3, 8, 8))
    said: list[str] = []
    upcycle.distill(teacher=colour, student="zoo:convnet_small", method=Noise, out=here / "colour", say=said.append)
    assert any("augmented by crop flip" in line for line in said)


def test_bare_modules(here: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match="does not say what images it takes: give --size CHANNELS,HEIGHT,WIDTH"):
        upcycle.distill(teacher=Rigid(), student=Rigid(), method=Noise, out=here / "run", quiet=True)
    normalisation: dict[str, Any] = {"teacher_mean": (0.3,), "teacher_std": (0.4,)}
    made = upcycle.distill(teacher=Rigid(), student=Rigid(), method=Noise, out=here / "a", size=8, quiet=True,
                           **normalisation)  # fmt: skip
    assert made.student.input_shape == (1, 8, 8) and (here / "a" / "pool").is_dir()
    made = upcycle.distill(teacher=Rigid(), student=Rigid(), method=Noise, out=here / "b", test_data="digits",
                           quiet=True)  # fmt: skip
    assert made.student.classes == tuple("0123456789")


def test_a_dry_run_estimates_the_methods_own_work(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []

    def work(self: Noise, n: int, teacher: int, student: int) -> float:
        asked.append((n, teacher, student))
        return 1e15

    assert cli.main([*WORDS, "--dry-run"]) == 0
    before = capsys.readouterr().out
    monkeypatch.setattr(Noise, "work", work)
    assert cli.main([*WORDS, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "6 updates" in said and said != before and not list(here.iterdir())
    ((n, teacher, student),) = asked
    assert n == 0 and teacher > 10 * student > 0


def test_the_work_of_ordinary_methods() -> None:
    from upcycle.distillation import KD

    method = KD(teacher=nn.Identity(), student=nn.Identity(), recipe=Recipe(epochs=3, batch_size=50))
    assert method.work(120, 1000, 10) == 3 * 3 * 50 * (1000 + 30)


# -- refusals ---------------------------------------------------------------------------------------------------


def test_data_that_a_method_does_not_take(refused: Refused) -> None:
    refused([*WORDS, "--data=digits"], "noise makes its own images and takes no --data", "--test_data digits")
    refused([*ORDINARY, "--data=none"], "kd needs images", "upcycle advise --data none")
    refused([*ORDINARY, "--data=None"], "kd needs images")
    refused([*WORDS, "--shots=5"], "nothing for --shots, --labels and --long_tail")
    refused([*WORDS, "--labels=0"], "nothing for --shots, --labels and --long_tail")
    refused([*WORDS, "--alone"], "cannot be trained alone without labels")
    refused([*WORDS, "--alone", "--test_data=digits"], "cannot be trained alone without labels")
    refused([*WORDS, "--label_map=map.csv"], "--label_map has nothing to map")
    refused([WORDS[0], METHOD, WORDS[3]], "noise needs a teacher")
    with pytest.raises(UserError, match="takes no --data; to measure on real ones, give --test_data DATA"):
        upcycle.distill(teacher=Rigid(), student=Rigid(), method=Noise, data=upcycle.load_data("digits"), quiet=True)


def test_sizes_that_a_teacher_does_not_take(here: Path, refused: Refused) -> None:
    teacher = references.resolve(Rigid(), input_shape=(1, 8, 8))
    with pytest.raises(UserError, match=r"Rigid takes no images of 1 x 12 x 12 .*leave out --size for its own 8 x 8"):
        upcycle.distill(teacher=teacher, student=Rigid(), method=Noise, out=here / "run", size=12, quiet=True)
    refused([*WORDS, "--size=2"], "takes no images of 1 x 2 x 2 (channels, height, width)")


@pytest.mark.parametrize("words", [WORDS, [*ORDINARY, "--data=digits"]])
def test_test_data_that_do_not_fit(here: Path, refused: Refused, words: list[str]) -> None:
    refused([*words, "--test_data=digit"], "'digit'", "Did you mean 'digits'")
    refused([*words, "--test_data="], "--test_data names nothing")
    refused([*words, "--test_data=no/such"], "There is no folder no/such")
    refused([*words, "--test_data=none"], "'none'")
    refused([*words, f"--test_data={picture_folder(here / 'three')}"], "cannot measure here", "3 classes", "the 10 of")


def test_test_data_of_another_size(refused: Refused, cifar10: Path) -> None:
    refused([*WORDS, "--test_data=cifar10"], "images of 3 x 32 x 32", "1 x 8 x 8 are needed here")


# -- measured elsewhere -----------------------------------------------------------------------------------------


def _relabelled(data: Images, order: list[int]) -> Images:
    """The same images, their classes listed in another order."""
    place = torch.tensor(order).argsort()
    splits = {s: dataclasses.replace(getattr(data, s), labels=place[getattr(data, s).labels])
              for s in ("train", "validation", "test")}  # fmt: skip
    return dataclasses.replace(data, classes=tuple(data.classes[i] for i in order), name="shuffled", **splits)


@pytest.mark.parametrize("method", [Noise, "kd"])
def test_classes_of_test_data_are_matched_by_name(here: Path, method: Any) -> None:
    options: dict[str, Any] = {"teacher": "zoo:digits_teacher", "student": "zoo:convnet_small", "quiet": True}
    options |= {"method": method, "recipe": {"epochs": 1, "batch_size": 32}}
    digits = upcycle.load_data("digits")
    shuffled = _relabelled(digits, [3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    plain = upcycle.distill(**options, test_data=digits, out=here / "a")
    other = upcycle.distill(**options, test_data=shuffled, out=here / "b")
    assert plain.rows[0]["confusion"] == other.rows[0]["confusion"]
    assert plain.rows[-1]["confusion"] == other.rows[-1]["confusion"]
    assert plain.rows[0]["accuracy"][0] == pytest.approx(0.992)


def test_test_data_without_labels_measure_agreement(here: Path) -> None:
    from PIL import Image

    (here / "images").mkdir()
    for i, pixels in enumerate(upcycle.load_data("digits").test.images[:40, :, :, 0].numpy()):
        Image.fromarray(pixels).save(here / "images" / f"{i:02d}.png")
    made = upcycle.distill(teacher="zoo:digits_teacher", student="zoo:convnet_small", method=Noise, out=here / "run",
                           test_data=str(here / "images"), quiet=True)  # fmt: skip
    notes = store.read_json(here / "run" / "result.json")["notes"]
    assert any("images has no labels to measure with" in note for note in notes)
    assert made.rows[0]["accuracy"] == [1.0] and not (here / "run" / "data").exists()
