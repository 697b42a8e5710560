"""Sentences as their reader writes options: ``--seeds 3`` on a command line, ``seeds=3`` in Python.

A sentence is written once, with options as the command line has them. Where it is shown, :func:`spoken` puts them
into the words of the reader: who called a function from Python reads arguments. Commands (``upcycle distill ...``)
stay commands.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_typed = False

_NAME = r"--[a-z][a-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)*"
_VALUE = r"'[^']*'|[^\s,;:.()'\"]+(?:[,:./][^\s,;:.()'\"]+)*"
_OPTION = re.compile(rf"(?<![\w-])({_NAME})(?:(=| )({_VALUE}))?")
# A command and what follows it, as far as that is options with their values, placeholders, or words before an option.
_COMMAND = re.compile(
    rf"\b(?:upcycle [a-z]+|pip install|xcode-select)(?: (?:{_NAME}(?:[= ](?:{_VALUE}))?|[A-Z][^\s.;]*|\S+(?= --)))*"
)
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@contextlib.contextmanager
def reader(*, types: bool) -> Iterator[None]:
    """Show sentences, while this lasts, to somebody who types commands, or else to somebody who writes Python."""
    global _typed
    before, _typed = _typed, types
    try:
        yield
    finally:
        _typed = before


def spoken(text: str) -> str:
    """A sentence in the words of who reads it.

    >>> with reader(types=False):
    ...     print(spoken("add --resume, choose another --out, or give --size 3,32,32 and --recipe.epochs 5."))
    add resume=True, choose another out=, or give size=(3, 32, 32) and recipe={'epochs': 5}.
    """
    if _typed or "--" not in text:
        return text
    parts, end = [], 0
    for command in _COMMAND.finditer(text):
        parts += [_OPTION.sub(_argument, text[end : command.start()]), command[0]]
        end = command.end()
    return "".join([*parts, _OPTION.sub(_argument, text[end:])])


def _argument(found: re.Match[str]) -> str:
    """Write an option as a keyword argument; a word behind it is its value, or else the next one of the sentence."""
    option, between, value = found.groups()
    name, _, field = option.removeprefix("--").partition(".")
    kinds = _kinds().get(option, frozenset())
    last = found.end() == len(found.string) or found.string[found.end()] in ".,;:)"
    if value is not None and between == " " and not (last or _is_value(value, kinds)):
        return f"{_assigned(name, field, _alone(kinds, found))} {value}"
    return _assigned(name, field, _alone(kinds, found) if value is None else _literal(value.strip("'"), kinds))


def _assigned(name: str, field: str, value: str) -> str:
    """Write an argument, or a field of one that is a group of options."""
    return f"{name}={{{field!r}: {value or '...'}}}" if field else f"{name}={value}"


def _alone(kinds: frozenset[str], found: re.Match[str]) -> str:
    """Give the value of an option that stands without one: a switch is on, unless it is to be left out."""
    left_out = re.search(r"(?:leave out|drop|no) $", found.string[: found.start()])
    return "True" if "a switch" in kinds and not left_out else ""


def _is_value(word: str, kinds: frozenset[str]) -> bool:
    """Whether a word inside of a sentence looks like the value of an option of these kinds."""
    plain = word.replace("_", "").replace(",", "")
    return word in kinds or word[0] in "'-0123456789" or plain.isupper() or any(mark in word for mark in ":/")


def _literal(value: str, kinds: frozenset[str]) -> str:
    """Write a value as Python does."""
    if value in ("true", "false"):
        return value.title()
    items = value.split(",")
    several = any(kind.startswith("a list") for kind in kinds)
    if len(items) == 1 and not several:
        return _item(value)
    if not several and not all(_NUMBER.fullmatch(item) or _PLACEHOLDER.fullmatch(item) for item in items):
        return repr(value)
    return f"({', '.join(map(_item, items))}{',' if len(items) == 1 else ''})"


def _item(value: str) -> str:
    return value if _NUMBER.fullmatch(value) or _PLACEHOLDER.fullmatch(value) else repr(value)


@functools.cache
def _kinds() -> dict[str, frozenset[str]]:
    """For each option the kinds that it has in some command, and the words that it takes where these are few."""
    found: dict[str, frozenset[str]] = {}

    def walk(node: Any) -> None:
        if isinstance(node, dict) and "kind" in node:
            words = re.split(r"[|]|, ", node["value"] + "|" + re.sub(r"^(one|a list) of ", "", node["kind"]))
            kinds = {word for word in words if word.islower() or word[:1].isdigit()} | {node["kind"]}
            if node["kind"] == "a switch":
                kinds |= {"true", "false"}
            found[node["name"]] = found.get(node["name"], frozenset()) | kinds
        for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(inner)

    table = json.loads((Path(__file__).parents[1] / "options.json").read_text())
    walk(table)
    methods = {name for of_verb in table["methods"].values() for name in of_verb}
    return found | {"--method": frozenset(methods)}
