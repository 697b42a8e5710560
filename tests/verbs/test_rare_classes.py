"""Long tails and rare classes in the commands: what goes in, what is shown, what is found, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import upcycle
from upcycle import cli
from upcycle.core.errors import UserError
from upcycle.data import load
from upcycle.diagnosis import ModelDoctor
from upcycle.diagnosis.errors.frequency import Following
from upcycle.verbs.frequency import recall_by_count, sentence

TAIL = ["--data=digits", "--long_tail=20"]
PLAIN = [
    "distill",
    "--method=plain",
    "--student=zoo:convnet_small",
    *TAIL,
    "--recipe.epochs=12",
    "--recipe.batch_size=32",
    "--quiet",
]
TEACHER = "zoo:digits_teacher"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that learnt from a long tail of digits."""
    place = tmp_path_factory.mktemp("tail") / "run"
    assert cli.main([*PLAIN, "--out", str(place)]) == 0
    return place


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_a_run_says_which_images_it_had(trained: Path) -> None:
    data, command = read(trained / "result.json")["data"], read(trained / "result.json")["command"]
    whole = load("digits")
    made = whole.long_tailed(20, 0)
    assert data["name"] == "digits_lt20" and "--long_tail 20" in command
    assert (data["train"], data["test"]) == (len(made.train), len(whole.test))
    assert data["chosen"]["long_tailed"]["ids"] == made.train.ids.tolist()
    assert any("A long tail of digits" in note for note in data["notes"])


def test_it_resumes_with_the_same_tail_and_no_other(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (trained / "model" / "weights.safetensors").read_bytes()
    assert cli.main([*PLAIN, "--out", str(trained), "--resume"]) == 0
    assert (trained / "model" / "weights.safetensors").read_bytes() == weights
    capsys.readouterr()
    assert cli.main([*PLAIN, "--out", str(trained), "--resume", "--long_tail=10"]) == 2
    assert "long_tail" in capsys.readouterr().err


def test_hidden_labels_come_after_it(tmp_path: Path) -> None:
    words = [*PLAIN, "--recipe.epochs=1", "--labels=4", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    data = read(tmp_path / "run" / "result.json")["data"]
    assert "long_tailed" in data["chosen"]


def test_a_few_of_each_class_are_no_tail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*PLAIN, "--shots=4", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert (
        "shots keep equally many training images of each class, so nothing is left of long_tail; leave one out." in said
    )
    assert not (tmp_path / "run").exists()


def test_every_seed_sees_the_same_tail(tmp_path: Path) -> None:
    assert cli.main([*PLAIN, "--recipe.epochs=1", "--seed=5", "--out", str(tmp_path / "run")]) == 0
    data = read(tmp_path / "run" / "result.json")["data"]
    assert data["chosen"]["long_tailed"]["ids"] == load("digits").long_tailed(20, 0).train.ids.tolist()


# -- groups -----------------------------------------------------------------------------------------------------


def test_evaluate_shows_groups_by_training_counts(trained: Path) -> None:
    found = upcycle.evaluate(trained, "digits", long_tail=20)
    assert found.groups is not None and found.data == "digits_lt20"
    text, record = found.text(), found.record()
    assert text.index("by number of training images") < text.index("by class")
    recall = [r for r in found.per_class if r is not None]
    assert record["groups"]["all"] == pytest.approx(sum(recall) / 10)
    assert record["groups"]["few"] < record["groups"]["many"]
    assert record["counts"][0] > record["borders"][1] > record["borders"][0] > record["counts"][-1]
    again = upcycle.evaluate(trained, "digits", long_tail=20, borders=(6, 40))
    assert again.accuracy == found.accuracy
    assert again.groups is not None and again.groups.borders == (6, 40) and "few (fewer than 6)" in again.text()


def test_balanced_data_look_as_before(trained: Path) -> None:
    found = upcycle.evaluate(trained, "digits")
    assert found.groups is None and "by number of training" not in found.text()
    assert not {"groups", "borders", "counts"} & set(found.record())
    assert upcycle.evaluate(trained, "digits", borders=(99, 101)).groups is not None


def test_a_treatment_shows_groups_and_recall_before_and_after(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["treat", str(trained), *TAIL, "--borders=6,40", "--recipe.epochs=1", "--recipe.batch_size=64"]
    assert cli.main([*words, "--quiet", "--out", str(out)]) == 0
    result, picture = read(out / "result.json"), read(out / "pictures" / "recall-by-count.json")
    assert result["borders"] == [6, 40] and "--borders '[6,40]'" in result["command"]
    for row in result["rows"]:
        assert {"many", "medium", "few", "all"} == set(row["groups"]) == set(row["shown"])
        assert row["shown"]["few"] == f"{100 * row['groups']['few'][0]:.1f} %"
    assert {item["group"] for item in picture["items"]} == {"before", "after"} and len(picture["items"]) == 20
    page = (out / "report.html").read_text()
    assert "cannot be drawn" not in page and "Recall by number of training images" in page and "20 classes" not in page


def test_a_treatment_of_balanced_data_shows_none(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert cli.main(["treat", TEACHER, "--recipe.epochs=1", "--quiet", "--control=false", "--out", str(out)]) == 0
    result = read(out / "result.json")
    assert not any({"groups", "shown"} & set(row) for row in result["rows"]) and "borders" not in result
    assert not (out / "pictures" / "recall-by-count.json").exists()


class ForRare(ModelDoctor):
    """A method for rare classes."""

    card = dataclasses.replace(ModelDoctor.card, name="forrare", rare=True)


def test_where_nothing_is_rare_a_method_for_rare_classes_says_so_first(trained: Path, tmp_path: Path) -> None:
    said: list[str] = []
    options: dict[str, Any] = {"method": ForRare, "recipe": {"epochs": 1}, "control": False, "say": said.append}
    upcycle.treat(TEACHER, data="digits", out=tmp_path / "balanced", **options)
    assert said[0].startswith("note     Nothing is rare in digits, whose classes have from")
    assert any("Nothing is rare" in note for note in read(tmp_path / "balanced" / "result.json")["notes"])
    said.clear()
    upcycle.treat(str(trained), data="digits", long_tail=20, out=tmp_path / "tail", **options)
    assert not any("Nothing is rare" in text for text in said)


# -- what diagnose finds ----------------------------------------------------------------------------------------


def test_a_diagnosis_of_a_long_tail(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["diagnose", str(trained), *TAIL, "--images=2", "--methods=gradcam", "--out", str(out)]
    assert cli.main(words) == 0
    said, found = capsys.readouterr().out, read(out / "diagnosis.json")["frequency"]
    assert found["recall"] > 0.6 and found["norms"] > 0.6
    told = f"Recall follows the number of training images (rho {found['recall']:.2f})"
    assert told in said and f"by {found['norms']:.2f}" in said
    assert f"upcycle treat {trained} --data digits --long_tail 20 --method crt." in said
    assert told in read(out / "result.json")["sentence"] and "few (fewer than" in said
    assert set(read(out / "result.json")["rows"][0]["groups"]) == {"many", "medium", "few", "all"}
    page = (out / "report.html").read_text()
    assert "cannot be drawn" not in page and "Recall by number of training images" in page


def test_a_diagnosis_of_balanced_data_says_nothing_of_it(tmp_path: Path) -> None:
    made = upcycle.diagnose(TEACHER, data="digits", images=2, methods=("gradcam",), out=tmp_path, say=lambda text: None)
    assert "number of training images" not in made.sentence
    assert "frequency" not in read(tmp_path / "diagnosis.json")
    assert not list(tmp_path.glob("pictures/*recall*"))


def test_the_sentence() -> None:
    follows = sentence(Following(0.91, 0.8), "upcycle treat m")
    assert follows.startswith(" Recall follows the number of training images (rho 0.91)")
    assert follows.endswith("by 0.80. To mend the rare classes: upcycle treat m.")
    weak = sentence(Following(0.6, None), "upcycle treat m")
    assert weak == " Recall does not follow the number of training images (rho 0.60)."
    assert "cannot be told" in sentence(Following(None, None), "upcycle treat m")


def test_the_picture_leaves_out_what_has_no_images() -> None:
    made = recall_by_count(["a", "b", "c"], [10, 0, 5], {"": [0.5, 0.5, None]})
    assert [item["name"] for item in made["items"]] == ["a"] and "group" not in made["items"][0]


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([*PLAIN, "--long_tail=0.5"], "long_tail must be more than 1"),
        ([*PLAIN, "--long_tail=.nan"], "long_tail must be more than 1"),
        ([*PLAIN, "--long_tail=steep"], "--long_tail must be a number"),
        ([*PLAIN, "--long_tail=1000"], "leaves '7' of digits without a training image"),
        (
            ["distill", "--method=cmi", "--teacher", TEACHER, "--student=zoo:convnet_small", "--long_tail=9"],
            "takes no data",
        ),
        (["evaluate", TEACHER, "--data=digits", "--borders=300"], "two numbers"),
        (["evaluate", TEACHER, "--data=digits", "--borders=300,20"], "must ascend"),
        (["evaluate", TEACHER, "--data=digits", "--borders=300,1500"], "leave no class in 'many'"),
        (["diagnose", TEACHER, "--data=digits", "--borders=1,2"], "leave no class in 'medium'"),
        (["treat", TEACHER, "--data=digits", "--borders=1500,300"], "must ascend"),
        (["treat", TEACHER, "--data=digits", "--long_tail=0.5"], "long_tail must be more than 1"),
        (["assemble", TEACHER, TEACHER, "--long_tail=10"], "no data for --long_tail"),
        (["extend", "zoo:convnet_small", "--stream=folders:.", "--long_tail=10"], "leave out long_tail"),
        (["predict", TEACHER, ".", "--long_tail=10"], "leave out --long_tail"),
        (["explain", TEACHER, ".", "--long_tail=10"], "leave out --long_tail"),
        (["export", TEACHER, "a.onnx", "--long_tail=10"], "leave out --long_tail"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task" / "a").mkdir(parents=True)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert part in said and said.count("\n") == 1 and "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["task"]


def test_borders_are_for_images_where_a_diagnosis_is_of_graphs() -> None:
    from tests.settings_graphs import networks, tiny_graphs

    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra graphs)")
    with pytest.raises(UserError, match="--borders is about images"):
        upcycle.diagnose(networks("graph")["teacher"], data=tiny_graphs(), borders=(1, 2), say=lambda text: None)
