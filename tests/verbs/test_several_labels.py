"""Commands where a sample has several labels: F1 in place of the accuracy, and factors in the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import upcycle
from tests.settings_factors import factor_model, tiny_factors
from tests.settings_graphs import tiny_graphs
from upcycle import cli
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.task import CLASSIFICATION, MULTILABEL

RECIPE = Recipe(epochs=2, batch_size=32, optimizer="adam", lr=0.01)
BRIEF: dict[str, Any] = {"recipe": RECIPE, "say": lambda text: None}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("labels") / "run"
    return upcycle.distill(
        method="factorgcn", student="zoo:factorgcn", data=tiny_factors(), alone=True, seeds=2, out=out, **BRIEF
    )


def test_the_figure_is_f1_in_the_table_the_result_and_the_report(made: Any) -> None:
    assert made.sentence.startswith("On the 50 test graphs of factors:4 the F1 is: factorgcn alone ")
    assert [row["role"] for row in made.rows] == ["alone", "student"] and len(made.rows[-1]["accuracy"]) == 2
    record = json.loads((made.directory / "result.json").read_text())
    assert record["figure"] == "test F1" and "C-Score" in record["rows"][-1]["shown"]
    page = made.report.read_text()
    assert "Test F1" in page and "Validation F1" in page and "accuracy" not in page.partition("<main")[2].lower()
    assert "Which factor stands for which relation" in page and "The factors of test graph 0" in page
    assert "cannot be drawn" not in page


def test_a_saved_network_of_labels_is_measured_by_f1(made: Any) -> None:
    found = upcycle.evaluate(str(made.directory), tiny_factors())
    assert found.score == pytest.approx(made.rows[-1]["accuracy"][0]) and found.count == 50
    text, record = found.text(), found.record()
    assert "  F1                 " in text and "accuracy" not in text and "    Turán  " in text
    assert record["F1"] == found.score and record["task"] == "multilabel" and len(record["per_class"]) == 4
    assert json.loads(json.dumps(record)) == record


def test_a_network_without_factors_learns_labels_plainly_and_guides_factors(tmp_path: Path) -> None:
    plain = upcycle.distill(
        method="plain", student=factor_model(tiny_factors()), data=tiny_factors(), out=tmp_path / "plain", **BRIEF
    )
    assert plain.student.task == MULTILABEL and "the F1 is" in plain.sentence
    taught = upcycle.distill(
        method="factorgcn",
        teacher=str(tmp_path / "plain"),
        student="zoo:factorgcn",
        factors=2,
        terms={"w_kd": 1.0},
        data=tiny_factors(),
        out=tmp_path / "taught",
        **BRIEF,
    )
    assert [row["role"] for row in taught.rows] == ["teacher", "student"]
    assert taught.student.options["factors"] == 2


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"method": "kd", "teacher": "labels"}, "it is for classification, and multilabel is the task of these graphs"),
        ({"method": "factorgcn", "factors": 5}, "32 features cannot be divided among 5 factors"),
        ({"method": "factorgcn", "test_data": tiny_graphs()}, "features a node, and the data have|is not like"),
        ({"method": "factorgcn", "labels": 3}, "no classes to draw graphs of"),
        ({"method": "factorgcn", "student": "zoo:convnet_small"}, "graphs"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(tmp_path: Path, options: dict[str, Any], part: str) -> None:
    given = {"student": "zoo:factorgcn", "data": tiny_factors(), **BRIEF, **options}
    if given.get("teacher") == "labels":
        given["teacher"] = factor_model(tiny_factors(), 7, "teacher")
    with pytest.raises(UserError, match=part):
        upcycle.distill(out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_classes_are_not_looked_into_where_there_are_labels(made: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diagnose looks at classes, and the task of factors:4 is multilabel"):
        upcycle.diagnose(str(made.directory), data=tiny_factors(), out=tmp_path / "d")
    with pytest.raises(UserError, match="student is for classification, and multilabel is the task of the graphs"):
        upcycle.evaluate(dataclasses.replace(factor_model(tiny_factors()), task=CLASSIFICATION), tiny_factors())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--data", "factors:9"), "has 2 to 6 relations, not 9"),
        (("--data", "factors:4", "--factors", "5"), "32 features cannot be divided among 5 factors"),
        (("--data", "factors:4", "--factors", "-1"), "factors must not be negative"),
        (("--data", "factors:4", "--terms.w_kd", "1"), "terms.w_kd is for the answers of a teacher"),
    ],
)
def test_bad_words_end_in_one_sentence(
    words: tuple[str, ...], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    asked = ["distill", "--method", "factorgcn", "--student", "zoo:factorgcn", "--out", str(out), *words]
    assert cli.main(asked) == 2 and part in capsys.readouterr().err and not out.exists()
