"""Every verb that makes a model runs with several seeds: what it makes, shows and records."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

import upcycle
from tests.settings import tiny_data
from upcycle import cli
from upcycle.core.errors import UserError
from upcycle.core.store import read_json, tensor_digest
from upcycle.verbs.methods import all_methods

TEACHER, SMALL = "zoo:digits_teacher", "zoo:convnet_small"
SHORT = ["--recipe.epochs=1", "--recipe.batch_size=64", "--quiet"]
ANSWERS = ["--method=dine", f"--student={SMALL}", "--epochs_tune=1", "--bottleneck.width=16"]
DOMAINS = [
    "--method=ba3us",
    f"--student={SMALL}",
    "--source_data=digits",
    "--iterations=10",
    "--batch_size=16",
    "--bottleneck.width=16",
    "--hidden=16",
]
STITCH = ["--blocks=2", "--probe=32", "--runs=3", "--candidates=2", "--score_batches=1"]
COMMANDS: dict[str, tuple[list[str], list[str], bool]] = {
    # a command, the arms whose runs stand in more/, and whether the seed changes what comes out
    "distill": (["distill", f"--teacher={TEACHER}", f"--student={SMALL}", "--alone", *SHORT], ["alone"], True),
    "disassemble": (["disassemble", TEACHER, "--classes=0,1", "--quiet"], [], False),
    "assemble": (["assemble", "low", "high", "--data=digits", "--tune", *SHORT], [], True),
    "reassemble": (["reassemble", f"--zoo={TEACHER},low", *STITCH, *SHORT], [], True),
    "adapt": (["adapt", TEACHER, "--data=digits", *SHORT], ["linear-probe"], True),
    "answers": (["adapt", TEACHER, "--data=digits", *ANSWERS, *SHORT], ["oracle"], True),
    "domains": (["adapt", "--data=digits", *DOMAINS, "--quiet"], ["source-only", "oracle"], True),
    "extend": (
        ["extend", SMALL, "--stream=splits:digits/5", "--few=8", "--replay.images=20", *SHORT],
        ["finetune", "joint"],
        True,
    ),
    "treat": (["treat", TEACHER, "--data=digits", *SHORT], ["control"], True),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two components of the shipped network."""
    folder = tmp_path_factory.mktemp("seeds")
    for name, classes in (("low", "0,1,2"), ("high", "7,8,9")):
        words = ["disassemble", TEACHER, f"--classes={classes}", f"--out={folder / name}", "--quiet"]
        assert cli.main(words) == 0
    return folder


def digest(run: Path) -> str:
    return tensor_digest(upcycle.load(run).module.state_dict())


@pytest.mark.parametrize("name", COMMANDS)
def test_three_seeds(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words, beside, random = COMMANDS[name]
    words = [*words, "--seed=4"]
    assert cli.main([*words, f"--out={name}-one"]) == 0
    assert cli.main([*words, f"--out={name}-three", "--seeds=3"]) == 0
    one, three = Path(f"{name}-one"), Path(f"{name}-three")
    assert digest(three) == digest(one)
    lone, found = (read_json(run / "result.json") for run in (one, three))
    assert (lone["seeds"], found["seeds"]) == ([4], [4, 5, 6])
    assert [(line["name"], line["role"]) for line in found["rows"]] == [
        (line["name"], line["role"]) for line in lone["rows"]
    ]
    trained = {"product", "student", "alone", "control", "lower bound", "upper bound", "oracle"}
    for before, line in zip(lone["rows"], found["rows"], strict=True):
        again = line["role"] in trained or "source only" in line["name"]
        assert len(line["accuracy"]) == (3 if again else len(before["accuracy"])), line["name"]
        assert line["accuracy"][:1] == before["accuracy"]
    accuracy = found["rows"][-1]["accuracy"]
    assert f"± {100 * statistics.stdev(accuracy):.1f}" in found["sentence"] and "±" not in lone["sentence"]
    first = "student" if name == "distill" else "product"
    runs = {f"{first}-5", f"{first}-6"} | {f"{arm}-{seed}" for arm in beside for seed in (4, 5, 6)}
    assert {run.name for run in three.glob("more/*")} == runs
    page = (three / "report.html").read_text()
    assert ("Dots are seeds" in page) == any(len(set(line["accuracy"])) > 1 for line in found["rows"])
    assert "cannot be drawn" not in page and f"{100 * statistics.fmean(accuracy):.1f} ±" in page
    # A further seed's configuration makes that run again; a finished command comes to itself.
    logs = [(run / "metrics.csv").read_text() for run in (three, three / "more" / f"{first}-5")]
    assert (logs[0] != logs[1]) == random
    config = yaml.safe_load((three / "more" / f"{first}-5" / "config.yaml").read_text())
    assert (config["seed"], config["seeds"]) == (5, 1)
    assert cli.main([*words, f"--out={name}-three", "--seeds=3", "--resume"]) == 0
    assert digest(three) == digest(one) and read_json(three / "result.json")["rows"][-1]["accuracy"] == accuracy
    assert cli.main([*words, f"--out={name}-three", "--seeds=2", "--resume"]) == 2


def test_the_run_of_a_further_seed_is_made_again_from_its_configuration(place: Path) -> None:
    words = ["treat", TEACHER, "--data=digits", *SHORT, f"--out={place / 'treated'}", "--seeds=2"]
    assert cli.main(words) == 0
    config = place / "treated" / "more" / "product-1" / "config.yaml"
    assert cli.main(["treat", f"--config={config}", f"--out={place / 'again'}", "--quiet"]) == 0
    rows = [read_json(place / run / "result.json")["rows"][-1]["accuracy"] for run in ("treated", "again")]
    assert rows[0][1:] == rows[1] and not (place / "again" / "more").exists()


def test_an_interrupted_seed_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["adapt", TEACHER, "--data=digits", *SHORT, "--save_every=0", "--seeds=2"]
    assert cli.main([*words, f"--out={place / 'whole'}"]) == 0
    updated, left = upcycle.Run.update, 20  # of 16 a run: in the second seed

    def stop(self: upcycle.Run, *args: Any, **kwargs: Any) -> None:
        nonlocal left
        updated(self, *args, **kwargs)
        left -= 1
        if not left:
            raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(upcycle.Run, "update", stop)
        assert cli.main([*words, f"--out={place / 'stopped'}"]) == 2
    assert not (place / "stopped" / "model").exists() and (place / "stopped" / "more" / "product-1").exists()
    assert cli.main([*words, f"--out={place / 'stopped'}", "--resume"]) == 0
    rows = [read_json(place / run / "result.json")["rows"] for run in ("whole", "stopped")]
    assert [line["accuracy"] for line in rows[0]] == [line["accuracy"] for line in rows[1]]


def test_seeds_are_estimated_and_must_be_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["treat", TEACHER, f"--out={tmp_path / 'run'}"]
    assert cli.main([*words, "--seeds=3", "--dry-run"]) == 0
    assert "6 run(s) of" in capsys.readouterr().out and not (tmp_path / "run").exists()
    assert cli.main([*words, "--seeds=0"]) == 2
    assert "seeds must be at least 1, not 0" in capsys.readouterr().err


def test_a_network_that_is_given_stays_as_it_is(tmp_path: Path) -> None:
    source = upcycle.resolve(TEACHER)
    before = tensor_digest(source.module.state_dict())
    result = upcycle.treat(source, data=tiny_data(), seeds=2, out=tmp_path, quiet=True, recipe={"epochs": 1})
    assert tensor_digest(source.module.state_dict()) == before != tensor_digest(result.model.module.state_dict())


@pytest.mark.parametrize("method", all_methods(), ids=lambda m: m.card.name)
def test_options_are_checked_with_what_a_method_says_stands_in(method: Any) -> None:
    given = method.stand_ins()
    assert set(given) == {*method.roles, *method.given}
    without_default = {"swap": {"block": "se", "at": ("block1",)}}
    made = method(**given, **without_default.get(method.card.name, {}))
    assert all(hasattr(made, name) for name in method.options())


def test_no_verb_names_a_method() -> None:
    """Methods say all that a verb must know of them."""
    classes = {m.__name__ for m in all_methods()}
    names = {m.card.name for m in all_methods()}
    package = Path(upcycle.__file__).parent
    for file in (*sorted((package / "verbs").glob("*.py")), package / "cli.py"):
        if file.name == "__init__.py":  # the defaults
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            found = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None)
            assert found not in classes, (file.name, found)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said = {node.value, *re.findall(r"--method[ =](\w+)", node.value)}
                assert not names & said, (file.name, node.value)
