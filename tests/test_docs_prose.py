"""Words of the pages against the records: the verdict, and every figure; every record is shown."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from benchmarks import code, quick
from scripts import benchmark_table
from scripts import docs as script

ROOT = Path(__file__).parents[1]
SAYS = re.compile(r"^## What this says\n\n(.*)", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"(?<![\w.,])\d+\.\d+")
SAYING = sorted(f.stem for f in (ROOT / "docs" / "methods").glob("*.md") if SAYS.search(f.read_text()))


def said(name: str) -> str:
    """The last words of a method's page."""
    found = SAYS.search((ROOT / "docs" / "methods" / f"{name}.md").read_text())
    assert found is not None
    return found.group(1)


def recorded(record: dict[str, Any]) -> list[float]:
    """Every figure that follows from a record: arms, their differences, seed by seed and on average, and conditions."""
    arms = list(record["measured"].values())
    means = [statistics.fmean(arm) for arm in arms]
    found = [*means, *itertools.chain(*arms), *(check["value"] for check in record["checks"])]
    found += [a - b for a, b in itertools.permutations(means, 2)]
    found += [x - y for a, b in itertools.combinations(arms, 2) for x, y in zip(a, b, strict=False)]
    found += [verdict["gain"] for verdict in record["verdicts"].values()]
    return [abs(value) for value in found]


@pytest.mark.parametrize("name", SAYING)
def test_what_a_page_says_begins_with_the_verdict(name: str) -> None:
    decided = script.verdicts().get(name)
    word = decided["verdict"] if decided is not None else "not measured yet"
    assert said(name).startswith(f"**{word.capitalize()}")


@pytest.mark.parametrize("name", SAYING)
def test_every_figure_in_words_is_one_of_the_record(name: str) -> None:
    claim = script.verdicts().get(name, {"claim": name})["claim"]  # perhaps another method's, which covers this one
    known = recorded(json.loads((ROOT / "benchmarks" / "results" / f"prove_{claim}.json").read_text()))
    for figure in FIGURE.findall(said(name)):
        half = 0.5 * 10 ** -len(figure.partition(".")[2])
        assert any(abs(value - float(figure)) <= half + 1e-6 for value in known), f"{figure} is not in the record"


# -- benchmarks -------------------------------------------------------------------------------------------------


def test_every_record_has_its_place() -> None:
    elsewhere = {
        "faults",
        "quickstart",
        "continual_baselines",
        "architectures",
        "tutorial",
        "ingredients",
    }  # other blocks
    names = {file.stem for file in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert {name for name in names if not name.startswith("prove_")} <= {*script.BENCHMARKS, *elsewhere}
    pages = "".join(file.read_text() for file in (ROOT / "docs").rglob("*.md"))
    assert not [name for name in script.BENCHMARKS if f"<!-- begin: {name.replace('_', '-')} -->" not in pages]


def test_every_job_of_the_table_has_its_code() -> None:
    assert {job.record for job in benchmark_table.JOBS} <= set(code.MEASURED)
    places = {place for places in code.MEASURED.values() for place in places}
    assert not [place for place in places if not (ROOT / place).exists()]


def test_the_table_has_ratio_and_floor_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {
        "arms": {"upcycle": {"seconds": 10.0}, "tuned script": {"seconds": 25.0}},
        "floor": 4.0,
        "ratios": {"tuned script": {"seconds": 2.5}},
    }
    record: dict[str, Any] = {"date": "2026-01-02 10:00 UTC", "commit": "abc", "figures": figures}
    record["machine"] = {"cpu": benchmark_table.USUAL}
    now = {**record, "code": code.here("whole_command_jpeg")}
    elsewhere = {**record, "machine": {"cpu": "another"}}
    found = {"whole_command_cifar-5000": record, "whole_command_jpeg": now, "whole_command_cifar-kept": elsewhere}
    lines = benchmark_table.benchmark_table(found.get).splitlines()
    old, new, missing = (next(line for line in lines if text in line) for text in ("5,000", "JPEGs", "45,000"))
    assert "**2.5 ×** (10.0 s, not 25.0 s) | 2.5 × a bf16 matrix product | 2026-01-02&nbsp;† |" in old
    assert "2026-01-02 |" in new and "not measured yet | not measured yet |" in missing
    assert "(2 of" in lines[-1] and lines[-1].endswith("‡ On another.")


def test_only_what_code_does_makes_a_record_old() -> None:
    source = 'def f(x):\n    """Doc."""\n    return x + 1  # why\n'
    assert code.essence(source) == code.essence("def f(\n    x,\n):\n    # other\n    return x + 1\n")
    assert code.essence(source) != code.essence(source.replace("+ 1", "+ 2"))
    assert code.essence("s = 'a'\n") != code.essence("s = 'b'\n")


@pytest.mark.parametrize(
    ("found", "committed", "word"),
    [(2.0, 2.0, "as before"), (1.5, 2.0, "worse"), (2.5, 2.0, "better"), (1.7, 2.0, "as before")],
)
def test_a_ratio_is_worse_only_beyond_its_band(found: float, committed: float, word: str) -> None:
    assert quick.judged(found, committed, 0.2) == word


@pytest.mark.parametrize("found", [1.0, 10.0])
def test_the_quick_benchmark_fails_where_a_ratio_is_worse(
    found: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cifar10").mkdir()
    for name, cpu in (("kept", "this"), ("elsewhere", "that")):
        record = {"figures": {"ratio": 2.0 if cpu == "this" else 99.0}, "machine": {"cpu": cpu}}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    monkeypatch.setenv("UPCYCLE_DATA", str(tmp_path))
    monkeypatch.setattr(quick, "RESULTS", tmp_path)
    monkeypatch.setattr(quick.os, "getloadavg", lambda: (0.1, 0.1, 0.1))
    one = quick.Ratio("a job", "kept", lambda f: f["ratio"], lambda: found, 0.2)
    other = quick.Ratio("a job without a record", "none", lambda f: f["ratio"], lambda: found, 0.2)
    third = quick.Ratio("a job of another processor", "elsewhere", lambda f: f["ratio"], lambda: found, 0.2)
    monkeypatch.setattr(quick, "machine", lambda: {"cpu": "this"})
    monkeypatch.setattr(quick, "RATIOS", (one, other, third))
    assert quick.main([]) == (1 if found < 2 else 0)
    said = capsys.readouterr().out
    assert "none was committed" in said and "99.00 on that, which this is not compared with" in said
    monkeypatch.setattr(quick.os, "getloadavg", lambda: (3.0, 3.0, 3.0))
    assert quick.main([]) == 2 and "busy (load 3.0)" in capsys.readouterr().err
    monkeypatch.setenv("UPCYCLE_DATA", str(tmp_path / "nothing"))
    assert quick.main([]) == 2
