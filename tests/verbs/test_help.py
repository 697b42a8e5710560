"""Help on the command line: at once, by importance, in plain words, and never out of date."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.verbs.test_remedies import accepted
from upcycle import cli, commands, described
from upcycle.arguments import value_of
from upcycle.commands import EXAMPLES, KINDS, SUMMARY
from upcycle.verbs.methods import all_methods

HEAVY = "{'torch', 'numpy', 'jsonargparse', 'PIL', 'sklearn', 'yaml', 'msgspec', 'docstring_parser'}"
PLUGIN = '''
from dataclasses import dataclass

from upcycle.distillation import KD


@dataclass(kw_only=True, eq=False, repr=False)
class Patient(KD):
    """KD that waits.

    Args:
        patience: how many epochs it waits before it begins.
    """

    card = KD.card.__class__(**{**KD.card.__dict__, "name": "patient", "summary": "A student that waits."})
    patience: int = 7
'''


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(words) == 0
    return capsys.readouterr().out


def spent() -> float:
    """Seconds of processor time of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_table_of_options_is_fresh() -> None:
    """``python -m scripts.docs`` writes it again."""
    assert json.loads(commands.TABLE.read_text()) == described.table()


def test_help_is_at_once_and_imports_nothing_heavy(tmp_path: Path) -> None:
    for statement in (
        "import upcycle",
        "from upcycle import UserError",
        "from upcycle import cli; cli.main(['--help'])",
        "from upcycle import cli; cli.main(['distill', '--help'])",
        "from upcycle import cli; cli.main(['evaluate', '--help'])",
    ):
        words = [sys.executable, "-c", f"import sys; {statement}; print(sorted({HEAVY} & set(sys.modules)))"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == "[]", statement
    took = []
    for _ in range(3):  # of processor time, since others may want the machine too
        start = spent()
        subprocess.run([sys.executable, "-m", "upcycle", "distill", "--help"], check=True, stdout=subprocess.DEVNULL)
        took.append(spent() - start)
    assert min(took) < 0.5


def test_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        said = shown(words, capsys)
        assert all(name in said and text in said for name, text in SUMMARY.items())
    assert sorted(verb for verbs in KINDS.values() for verb in verbs) == sorted(SUMMARY)


@pytest.mark.parametrize("verb", SUMMARY)
def test_every_command_shows_its_options_with_two_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown([verb, "--help"], capsys)
    assert said.startswith(f"usage: upcycle {verb}") and SUMMARY[verb] in said
    assert shown(["help", verb], capsys) == said == shown([verb.upper(), "-h"], capsys)
    words = said.split()
    for name in accepted(verb) - {"help", "option", "method", "config", "plugin", "debug", "resume", "json", "name"}:
        if verb not in cli.MAKERS:
            assert f"--{name}" in words or name.upper() in words, name
    assert len(EXAMPLES[verb]) == 2 and all(command.split()[-1] in said for command, _ in EXAMPLES[verb])
    for python in ("tuple[", "Literal", "Union", "Optional", "NoneType", "class '", "null"):
        assert python not in said, python
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize("verb", SUMMARY)
def test_an_example_can_be_typed(verb: str) -> None:
    for command, _ in EXAMPLES[verb]:
        program, typed, *words = shlex.split(command)
        assert (program, typed) == ("upcycle", verb)
        if verb in cli.MAKERS:
            cli.arguments_of(verb, words)  # which refuses what cannot be
        else:
            options = {word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")}
            assert options <= accepted(verb)


def test_the_options_of_the_method_stand_under_a_heading_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for method, option in (("tfkd", "--student_temperature"), ("NetGraft", "--epochs_chain"), ("vam", "--gamma")):
        said = shown(["distill", "--method", method, "--help"], capsys)
        inside = said.partition(f"Options of {method.lower()}:")[2].partition("\n\n")[0]
        assert option in inside
    said = shown(["distill", "--help"], capsys)
    headings = ["Examples:", "What goes in", "Options of kd:", "Training with kd", "More of distill:", "The run:"]
    places = [said.index(heading) for heading in headings]
    assert places == sorted(places)
    first = said[places[1] : places[2]]
    assert all(f"--{name}" in first for name in ("teacher", "student", "data", "method", "out"))
    assert "--epochs N" in said and "--dry_run" in said.split()
    assert cli.main(["distill", "--method=kdd", "--help"]) == 2
    assert "Did you mean 'kd'?" in capsys.readouterr().err


@pytest.mark.parametrize("method", all_methods(), ids=lambda method: method.card.name)
def test_every_method_has_its_page(method: type, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown([method.card.verb, f"--method={method.card.name}", "-h"], capsys).split()  # type: ignore[attr-defined]
    for name in method.options():  # type: ignore[attr-defined]
        assert name == "recipe" or any(word.startswith(f"--{name}") for word in said), name


def test_a_plugin_and_a_file_are_shown_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    said = shown(["distill", "--plugin", str(tmp_path / "mine.py"), "--method", "patient", "--help"], capsys)
    assert "Options of patient:" in said and "--patience N" in said and "A student that waits." in said
    (tmp_path / "c.yaml").write_text("method: tfkd\n")
    assert "Options of tfkd:" in shown(["distill", "--config", str(tmp_path / "c.yaml"), "--help"], capsys)
    (tmp_path / "d.yaml").write_text(f"method: patient\nplugin: {tmp_path / 'mine.py'}\n")
    assert cli.main(["distill", "--config", str(tmp_path / "d.yaml"), "--help"]) == 2
    assert "--trust" in capsys.readouterr().err
    assert value_of(["--plugin"], "plugin") is None
