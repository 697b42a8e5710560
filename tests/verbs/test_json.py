"""``--json`` on every command that prints results: one line of JSON, and all else on standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import picture_folder
from tests.verbs.test_bad_input import here
from upcycle import cli
from upcycle.arguments import switch
from upcycle.commands import SUMMARY
from upcycle.core import saved
from upcycle.core.references import resolve
from upcycle.verbs import doctor, export, prove

__all__ = ["here"]  # a fixture

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "prove_kd.json"
TEACHER = "zoo:digits_teacher"
BRIEF = ["--recipe.epochs=1", "--recipe.batch_size=500", "--control=false"]
COMMANDS: dict[str, tuple[list[str], Any]] = {  # what follows the command, and a key of what it prints
    "distill": ([f"--teacher={TEACHER}", "--student=zoo:convnet_small", *BRIEF[:2], "--out=run"], "rows"),
    "treat": ([TEACHER, *BRIEF, "--out=treated"], "sentence"),
    "adapt": ([TEACHER, "--data=digits", *BRIEF, "--out=adapted"], "rows"),
    "extend": (["zoo:convnet_small", "--stream=splits:digits/2", *BRIEF, "--out=extended"], "model"),
    "disassemble": ([TEACHER, "--data=digits", "--classes=3,5", "--samples=4", "--out=part"], "report"),
    "assemble": (["part", "part2", "--out=whole"], "directory"),
    "reassemble": (
        [f"--source={TEACHER}", "--method=swap", "--block=se", "--at=block1", "--data=digits", *BRIEF, "--out=swapped"],
        "rows",
    ),
    "diagnose": ([TEACHER, "--data=digits", "--images=1", "--methods=saliency", "--samples=2", "--out=seen"], "report"),
    "explain": ([TEACHER, "pictures", "--methods=saliency", "--size=8", "--out=why"], "probability"),
    "blocks": (["--shape=8,8,8"], "name"),
    "methods": (["--verb=treat"], "name"),
    "advise": (["--data=few"], "choices"),
    "prove": ([], "holds"),
    "evaluate": ([TEACHER], "accuracy"),
    "compare": (["run"], "boards"),
    "predict": ([TEACHER, "pictures", "--size=8"], "images"),
    "report": (["run"], "file"),
    "lineage": (["run"], "parents"),
    "push": (["run", "ORG/NAME", "--dry_run"], "address"),
    "export": ([TEACHER, "net.pt2", "--format=torch"], "file"),
    "doctor": ([], "checks"),
    "completion": (["bash"], "script"),
}
SLOW = {"prove", "doctor", "export"}


def test_every_command_is_here() -> None:
    assert COMMANDS.keys() == SUMMARY.keys()


def test_what_each_prints(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture_folder(here / "pictures", n=2)
    saved.save(resolve(TEACHER, classes=tuple("abcdefghij")), here / "part2")
    for verb, (words, key) in COMMANDS.items():
        if verb in SLOW:
            continue
        assert cli.main([verb, *words, "--json"]) == 0, verb
        said = capsys.readouterr().out
        assert said.count("\n") == 1, (verb, said)
        found = json.loads(said)
        found = found[0] if isinstance(found, list) else found
        assert key in found, (verb, list(found))


def test_progress_and_notes_go_to_standard_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["distill", *COMMANDS["distill"][0], "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"][-1]["role"] == "student"
    assert "teacher  digits_teacher" in said.err and "epoch 1/1" in said.err
    assert "json" not in Path("run/config.yaml").read_text()


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor.Report((doctor.Check("disk", "broken", "full", "empty it"),))
    monkeypatch.setattr(doctor, "doctor", lambda: found)
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "checks": [{"name": "disk", "status": "broken", "found": "full", "mend": "empty it"}],
    }


def test_export(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "write_export", lambda *given, **options: 1e-7)
    assert cli.main(["export", *COMMANDS["export"][0], "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"file": "net.pt2"} and "on a held batch" in said.err


def test_a_claim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arms = json.loads(RECORD.read_text())["measured"]

    def measured(name: str, seed: int, quick: bool) -> tuple[int, dict[str, float], float]:
        return seed, {arm: values[seed] for arm, values in arms.items()}, 0.1

    monkeypatch.setattr(prove, "_measured", measured)
    monkeypatch.setattr("upcycle.data.load", lambda name: None)  # which takes longer than all the rest
    code = cli.main(["prove", "kd", "--quick", "--seeds=2", "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["method"] == "kd" and code == (0 if found["holds"] else 1) and "seed 1: " in said.err


def test_a_switch_is_taken_from_the_line() -> None:
    assert switch(["--json", "a"], "json") == (True, ["a"])
    assert switch(["a", "--json", "false", "b"], "json") == (False, ["a", "b"])
    assert switch(["--json=true", "true"], "json") == (True, ["true"])
    assert switch(["--jso", "--json=maybe"], "json") == (False, ["--jso", "--json=maybe"])
