"""A remedy exists: every option and every keyword that a message names is accepted where the message is raised."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import upcycle
from upcycle import cli
from upcycle.verbs.methods import all_methods

SRC = Path(upcycle.__file__).parent
OPTION = re.compile(r"(?<![\w-])--([a-z]\w*(?:\.\w+)*)")
KEYWORD = re.compile(r"(?<![\w.-])([a-z]\w*)=(?=[\w'\"(\[.])")
RAISE = ("UserError", "require")
FOREIGN = ("pip install", "xcode-select", "rev-parse", "--short=12")  # the options of other programs

LOOKERS = ("evaluate", "predict", "diagnose", "explain", "export")
MODEL_VERBS = (*cli.MAKERS, *LOOKERS)
# Code that several verbs share, and those that can come to its messages; all that take a model where none is named.
RECIPES = ("distill", "assemble", "reassemble", "treat", "adapt", "extend")
"""Verbs with methods that have a recipe."""
SHARED = {
    "adaptation": ("adapt",),
    "core/checks.py": ("distill",),  # of a teacher and a student
    "core/devices.py": (*cli.MAKERS, "evaluate", "predict", "diagnose"),
    "core/ingredients.py": RECIPES,
    "core/journal.py": tuple(cli.MAKERS),
    "core/lock.py": tuple(cli.MAKERS),
    "core/run.py": tuple(cli.MAKERS),
    "core/stage.py": tuple(cli.MAKERS),
    "core/store.py": ("predict", "prove", "export"),  # of the files that they write
    "core/world.py": tuple(cli.MAKERS),
    "data/buffer.py": ("extend",),
    "data/pool_files.py": ("distill",),
    "data/folder_streams.py": ("extend",),
    "data/graph_streams.py": ("extend",),
    "data/stream_kinds.py": ("extend",),
    "data/streams.py": ("extend",),
    # assemble, reassemble and extend ask for no labels by a map, and say what they need themselves
    "data/labels.py": ("distill", "disassemble", "treat", "adapt", *LOOKERS),
    "diagnosis/errors": ("treat", "diagnose"),
    "distillation": ("distill",),
    "continual": ("extend",),
    "measure/export.py": ("export",),
    "surgery/logits.py": ("assemble",),
    "training": RECIPES,
    "verbs/directory.py": (*cli.MAKERS, "diagnose", "explain"),
    "verbs/figures.py": (*cli.MAKERS, "diagnose"),
    "verbs/pairing.py": ("distill",),
    "verbs/session.py": tuple(cli.MAKERS),
}
GENERAL = {"help", "debug", "config", "plugin", "method", "resume", "option"}


@cache
def accepted(verb: str) -> frozenset[str]:
    """Every option of a verb, those of all its methods included, nested ones with dots."""
    found = set(GENERAL)
    if verb in cli.MAKERS:
        maker = cli.MAKERS[verb]
        found |= {name.removeprefix("--") for name in maker.networks}
        found |= {f.name for f in dataclasses.fields(import_module(maker.module).Setting)}
        for method in all_methods():
            if method.card.verb == verb:
                found |= own(method)
        return frozenset(found)
    kinds = cli.options_for(verb)
    return frozenset(found | {f.name for kind in kinds for f in dataclasses.fields(kind)} | {"json"})


def own(method: Any) -> set[str]:
    """The options of one method."""
    names = set()
    for name, f in method.options().items():
        names.add(name)
        made = f.default_factory() if f.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(made):
            names |= {f"{name}.{inner.name}" for inner in dataclasses.fields(made)}
    return names


PYTHON = {name for f in (upcycle.load, upcycle.resolve) for name in inspect.signature(f).parameters}
"""The keywords of functions for Python alone."""
OTHERS = {
    ("core/probe.py", "precision"),  # of what trains; the makers alone ask whether a network can
    ("training/simultaneous.py", "form"),  # a keyword of its function
    ("core/ingredients.py", "cache"),  # of a method that has it, as is asked before
    ("surgery/ratio.py", "block"),  # in a command that is written out
    *(("verbs/blocks.py", name) for name in ("source", "block", "at", "settings.NAME")),  # likewise
}
METHODS = {Path(inspect.getfile(m)).relative_to(SRC).as_posix(): m for m in all_methods()}


def can_raise(file: str) -> tuple[str, ...]:
    """The verbs that can come to a message in ``file``, a path below the package."""
    if file in METHODS:
        return (METHODS[file].card.verb,)
    name = Path(file).stem
    if file.startswith("verbs/") and name in cli.SUMMARY:
        return (name,)
    return next((verbs for start, verbs in SHARED.items() if file.startswith(start)), MODEL_VERBS)


def advice(file: str, tree: ast.AST) -> set[int]:
    """The lines that are said by ``advise``: its own, and what methods tell it in their ``serves``."""
    whole = file.startswith("verbs/advi") or file.endswith("/advice.py")
    said = [tree] if whole else [n for n in ast.walk(tree) if getattr(n, "name", "") == "serves"]
    return {inner.lineno for n in said for inner in ast.walk(n) if hasattr(inner, "lineno")}


def texts(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Every text in the code but docstrings: its line, and whether it stands in an error."""
    raised = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") in RAISE]
    errors = {id(inner) for call in raised for inner in ast.walk(call)}
    documented = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for n in ast.walk(tree):
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in documented:
            yield n.lineno, n.value, id(n) in errors


def lacking(file: str) -> list[str]:
    """List the options that messages in ``file`` name and a verb that raises them does not accept."""
    found, tree = [], ast.parse((SRC / file).read_text())
    advised = advice(file, tree)
    for line, text, error in texts(tree):
        if any(word in text for word in FOREIGN):
            continue
        names = [(name, f"--{name}") for name in OPTION.findall(text)]
        names += [(name, f"{name}=") for name in KEYWORD.findall(text)] if error else []
        for name, shown in names:
            wanting = [verb for verb in can_raise(file) if name not in accepted(verb)]
            if line in advised:  # it also writes commands of others
                wanting = [] if any(name in accepted(verb) for verb in ("advise", *cli.MAKERS)) else ["advise"]
            if shown.endswith("=") and file.startswith("core/") and name in PYTHON:
                wanting = []
            if (file, name) in OTHERS:
                wanting = []
            if wanting:
                found.append(f"{file}:{line}: {shown} of {', '.join(wanting)}")
    return found


SKIPPED = (
    *("cli.py", "commands.py", "described.py", "help.py", "signatures.py", "arguments.py"),
    *("claims/", "reports/", "verbs/doctor.py", "verbs/stock.py", "verbs/completion.py"),
)  # they speak of options in general


@pytest.mark.parametrize(
    "room", sorted({p.relative_to(SRC).parts[0] for p in SRC.rglob("*.py")} - {"claims", "reports"})
)
def test_every_remedy_that_a_message_names_exists(room: str) -> None:
    files = [SRC / room] if room.endswith(".py") else sorted((SRC / room).rglob("*.py"))
    names = [file.relative_to(SRC).as_posix() for file in files]
    found = [line for name in names if not name.startswith(SKIPPED) for line in lacking(name)]
    assert not found, "\n".join(found)


def test_the_walk_finds_an_option_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "verbs").mkdir()
    (tmp_path / "verbs" / "predict.py").write_text('raise UserError("Give --colour, or colour=3; or --size.")')
    monkeypatch.setattr("tests.verbs.test_remedies.SRC", tmp_path)
    said = lacking("verbs/predict.py")
    assert said == ["verbs/predict.py:1: --colour of predict", "verbs/predict.py:1: colour= of predict"]


def test_one_group_names_a_network_in_every_verb() -> None:
    """The same names everywhere: plain for one network, with the role before them for several."""
    group = {"weights", "mean", "std", "size", "trust"}
    for verb in MODEL_VERBS:
        if verb != "distill":
            assert group <= accepted(verb), verb
            assert {"classes", "model_classes"} & accepted(verb), verb
    for role in ("teacher", "student"):
        assert {f"{role}_{name}" for name in ("weights", "mean", "std")} | {"size", "trust"} <= accepted("distill")
    assert {"student_weights", "student_mean", "student_std", "student_classes"} <= accepted("adapt")
    assert all("label_map" in accepted(verb) for verb in SHARED["data/labels.py"])
