"""The form of the code: open loops, independent rooms, facts where they belong, help for every option."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

import upcycle
from upcycle.cli import MAKERS
from upcycle.core.method import Method
from upcycle.verbs.methods import all_methods

SRC = Path(upcycle.__file__).parent
ROOMS = ("distillation", "assembly", "adaptation", "continual", "diagnosis")
METHODS = [pytest.param(method, id=method.card.name) for method in all_methods()]
LINES = 450  # of a file
FIT = 60  # lines of a fit


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def functions(node: ast.AST) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef) and n is not node]


@pytest.mark.parametrize("method", METHODS)
def test_the_loops_of_a_fit_stand_open(method: type[Method]) -> None:
    source = textwrap.dedent(inspect.getsource(method.fit))
    (fit,) = ast.parse(source).body
    assert not functions(fit), f"{[n.name for n in functions(fit)]} in the fit of {method.card.name}"
    assert len(source.rstrip().splitlines()) <= FIT


@pytest.mark.parametrize("method", METHODS)
def test_a_method_leaves_save_points_and_order_to_the_run(method: type[Method]) -> None:
    source = inspect.getsource(inspect.getmodule(method))  # type: ignore[arg-type]
    assert "save_within" not in source and "shuffle=" not in source


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_a_list_of_methods(room: str) -> None:
    package = importlib.import_module(f"upcycle.{room}")
    homes = {method.__module__ for method in package.METHODS}
    assert {f"upcycle.{room}.{file.stem}" for file in (SRC / room).glob("*.py") if file.stem != "__init__"} == homes


def test_every_room_says_when_to_use_which() -> None:
    rooms = {file.parent for file in SRC.rglob("*.py")} - {SRC}
    assert not [str(room) for room in rooms if not (room / "README.md").is_file()]


def test_no_file_is_several_things() -> None:
    long = {
        str(file.relative_to(SRC)): n for file in SRC.rglob("*.py") if (n := len(file.read_text().splitlines())) > LINES
    }
    assert not long


def test_a_verb_knows_no_method() -> None:
    """Neither its class nor its name; what a verb runs by default stands in one table of the command line."""
    cards = {method.card.name for method in all_methods()}
    classes = {method.__name__ for method in all_methods()}
    table = SRC / "verbs" / "__init__.py"
    found = []
    for file in {*(SRC / "verbs").rglob("*.py"), SRC / "cli.py"} - {table}:
        for node in ast.walk(tree(file)):
            name = node.id if isinstance(node, ast.Name) else node.name if isinstance(node, ast.alias) else None
            text = node.value if isinstance(node, ast.Constant) else None
            if name in classes or (isinstance(text, str) and text in cards):
                found.append(f"{file.name}: {name or text}")
    assert not found


def test_formatter_off_is_no_habit() -> None:
    """The number only falls."""
    count = sum(len(re.findall(r"# fmt: skip", file.read_text())) for file in SRC.rglob("*.py"))
    assert count <= 152


# -- help -------------------------------------------------------------------------------------------------------


def groups() -> dict[str, tuple[type, list[str]]]:
    """Every class whose fields are options: methods, settings of verbs, and the groups that these have as options."""
    found: dict[str, tuple[type, list[str]]] = {}

    def add(cls: Any, options: dict[str, dataclasses.Field[Any]]) -> None:
        found[f"{cls.__module__}.{cls.__qualname__}"] = (cls, list(options))
        for option in options.values():
            made = option.default_factory
            if made is not dataclasses.MISSING and dataclasses.is_dataclass(group := made()):
                add(type(group), {f.name: f for f in dataclasses.fields(group)})

    for method in all_methods():
        add(method, method.options())
    for maker in MAKERS.values():
        setting = importlib.import_module(maker.module).Setting
        add(setting, {f.name: f for f in dataclasses.fields(setting)})
    return found


def helped(cls: type) -> dict[str, str]:
    """The help line of each option: of the class's docstring, or of that of the class that the option comes from."""
    lines: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            parsed = docstring_parser.parse(inspect.cleandoc(base.__doc__ or ""))
            lines |= {param.arg_name: param.description or "" for param in parsed.params}
    return lines


@pytest.mark.parametrize("name", groups())
def test_every_option_has_a_help_line_of_its_own(name: str) -> None:
    cls, options = groups()[name]
    lines = helped(cls)
    poor = {option: lines.get(option, "") for option in options if len(lines.get(option, "").split()) < 3}
    assert not poor, f"{name}: {poor}"
    assert not [option for option in options if re.search(r"\bsee (above|below)\b", lines[option])]
