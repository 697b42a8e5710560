"""``upcycle compare``: a leaderboard over runs, which says what a figure of one seed is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import upcycle
from upcycle import cli
from upcycle.core.errors import UserError

ARMS = {  # accuracies of the seeds, and the size of what a run made
    "kd": ([0.90, 0.92, 0.91], 30_000),
    "features": ([0.95], 60_000),
    "worse": ([0.80, 0.81], 90_000),
}


def leave(place: Path, name: str, seeds: list[float], parameters: int, **more: Any) -> Path:
    """Leave what a run leaves, as far as it is compared."""
    row = {"accuracy": seeds, "parameters": parameters, "macs": 10 * parameters, "latency": 1e-3, "memory": 1e6}
    teacher = {**row, "name": "big", "role": "teacher", "accuracy": [0.97], "parameters": 900_000, "macs": 9_000_000}
    result = {
        "format": 1,
        "verb": "distill",
        "method": name,
        "figure": "test accuracy",
        "data": {"name": "digits", "test": 500},
        "rows": [teacher, {**row, "name": "small alone", "role": "alone"}, {**row, "name": "small", "role": "student"}],
        "seconds": 75.0,
        "machine": {"cpu": "one"},
        **more,
    }
    (place / name).mkdir(parents=True)
    (place / name / "result.json").write_text(json.dumps(result))
    return place / name


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, (seeds, parameters) in ARMS.items():
        leave(tmp_path / "runs", name, seeds, parameters)
    return tmp_path / "runs"


def test_the_best_comes_first_and_one_seed_says_so(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *(str(runs / name) for name in ARMS)]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0] == "test accuracy on digits, 500 samples"
    order = [line.split()[0] for line in lines[4:8]]
    assert order == ["features", "kd", "worse", "(teacher)"]
    assert "95.0 %" in said and "one seed" in said and "91.0 ± 1.0 %" in said and "3 seeds" in said
    assert "30.0 k" in said and "1 min 15 s" in said
    assert "features comes first on digits with 95.0 % (one seed), 4.0 points above kd. features is of one seed" in said
    assert "three or more do" in said and said.count("big") == 1


def test_a_difference_is_put_beside_its_error(tmp_path: Path) -> None:
    near, far = [0.90, 0.92, 0.91], [0.80, 0.82, 0.81]
    for name, seeds in (("a", near), ("b", [x - 0.004 for x in near])):
        leave(tmp_path / "near", name, seeds, 1000)
    assert "no more than two standard errors" in upcycle.compare(tmp_path / "near").text()
    for name, seeds in (("a", near), ("b", far)):
        leave(tmp_path / "far", name, seeds, 1000)
    assert ", more than two standard errors" in upcycle.compare(tmp_path / "far").text()


def test_a_folder_stands_for_the_runs_in_it(runs: Path) -> None:
    board = upcycle.compare(runs).boards[0]
    assert [line.run for line in board.lines] == ["features", "kd", "worse"]
    assert [line.name for line in board.given] == ["big"]
    assert upcycle.compare([runs, runs / "kd"]).boards == upcycle.compare(str(runs)).boards  # none counts twice
    (runs / "kd").rename(runs.parent / "kd")
    twice = leave(runs, "kd", [0.5], 1000)
    names = [line.run for line in upcycle.compare([runs.parent / "kd", twice]).boards[0].lines]
    assert names == [str(runs.parent / "kd"), str(twice)]


def test_other_data_and_other_machines_are_kept_apart(runs: Path) -> None:
    leave(runs, "other", [0.99], 1000, data={"name": "mnist", "test": 10_000})
    leave(runs, "elsewhere", [0.5], 1000, machine={"cpu": "two"})
    found = upcycle.compare(runs)
    assert [board.data for board in found.boards] == ["digits", "mnist"]
    assert "not compared with each other" in found.text()
    assert "not comparable: one, two" in found.text()


def test_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(runs), "--json"]) == 0
    (board,) = json.loads(capsys.readouterr().out)["boards"]
    assert [line["run"] for line in board["lines"]] == ["features", "kd", "worse"]
    assert board["lines"][1]["accuracy"] == ARMS["kd"][0] and board["lines"][1]["parameters"] == 30_000
    assert board["figure"] == "test accuracy" and "one seed" in board["sentence"]


def test_the_page_shows_accuracy_over_cost(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(runs, "<b>bold", [0.7], 1000)
    out = tmp_path / "board.html"
    assert cli.main(["compare", str(runs), f"--out={out}"]) == 0
    assert f"Page: {out}" in capsys.readouterr().out
    page = out.read_text()
    assert page.count("<svg") == 2 and "over parameters" in page and "over multiply-adds" in page
    assert "&lt;b&gt;bold" in page and "<b>bold" not in page and "default-src 'none'" in page
    assert "4 runs compared" in page and "(one seed)" in page
    assert "features: 95.0 % (one seed), 60.0 k parameters" in page
    assert cli.main(["compare", str(runs), f"--out={out}"]) == 2
    assert cli.main(["compare", str(runs), f"--out={out}", "--overwrite"]) == 0


def test_a_real_run(tmp_path: Path) -> None:
    words = ["distill", "--teacher=zoo:digits_teacher", "--student=zoo:convnet_small", "--data=digits", "--epochs=1"]
    assert cli.main([*words, "--quiet", f"--out={tmp_path / 'run'}"]) == 0
    (line,) = (board := upcycle.compare(tmp_path / "run").boards[0]).lines
    assert (line.run, line.name, line.method) == ("run", "convnet_small by kd", "distill kd")
    assert line.parameters and line.macs and line.latency and len(line.accuracy) == 1
    assert [given.name for given in board.given] == ["digits_teacher"]


def test_mistakes(runs: Path, tmp_path: Path) -> None:
    for given, said in (
        ([], "nothing to compare"),
        ([tmp_path / "none"], "There is no run"),
        ([tmp_path / "empty"], "holds no finished run"),
        ([tmp_path / "seen"], "made no network"),
        ([tmp_path / "bad"], "no result that this version"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        for name, content in (("seen", {"format": 1, "verb": "explain", "rows": []}), ("bad", {"format": 9})):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "result.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            upcycle.compare(given)
    with pytest.raises(UserError, match=r"ends in \.html"):
        upcycle.compare(runs, out=tmp_path / "page.txt")


def test_a_run_without_data_stands_on_the_board_of_what_it_was_measured_on(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = {"name": "digits, only to measure", "measured": "digits", "test": 500}
    made = leave(runs.parent / "more", "free", [0.7], 30_000, data=free)
    assert cli.main(["compare", str(runs / "kd"), str(made)]) == 0
    said = capsys.readouterr().out
    assert "kd comes first on digits with 91.0 ± 1.0 % (3 seeds), 21.0 points above free" in said
    assert "different data" not in said
