"""All that the code knows of one method, as Markdown: for ``upcycle methods NAME`` and its page in the docs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from upcycle.claims.found import found, short
from upcycle.core.method import Method
from upcycle.core.recipe import Recipe

ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
APART = ("Departures", "Reconstructed", "Chosen here", "Decisions")
"""How paragraphs begin that say where a method is not the authors' code."""


def page(method: type[Method]) -> str:
    """The page of one method."""
    parts = [f"# {method.card.name}: {method.card.title}", method.card.summary, verdict(method), facts(method)]
    how, departures = described(method)
    parts += ["## How it works", how]
    if departures:
        parts += ["## Where it is not the authors' code", departures]
    return "\n\n".join([*parts, "## Options", options(method)]) + "\n"


def verdict(method: type[Method]) -> str:
    """Give what was found when its claim was measured, in a sentence."""
    entry = found().get(method.card.name)
    if entry is None:
        return "**Verdict here:** none; it is what others are compared with, or nothing was measured for it yet."
    when = f"`upcycle prove {entry['claim']}`, {entry['date']}, commit {entry['commit']}"
    return f"**Verdict here:** {short(entry)}, {entry['says']} ({when})."


def facts(method: type[Method]) -> str:
    """Give what it needs and costs, and what was published, as a table."""
    card = method.card
    rows = {
        "paper": card.paper,
        "command": f"`upcycle {card.verb} --method {card.name}`",
        "data, at least": card.needs.data,
        "access to the teacher, at least": card.needs.teacher,
        "networks": card.needs.architectures,
        "inputs": "" if card.needs.inputs == ("images",) else " and ".join(card.needs.inputs),
        "tasks": "" if card.needs.tasks == ("classification",) else " and ".join(card.needs.tasks),
        "cost": card.cost,
        "published": card.published,
    }
    lines = ["| | |", "| --- | --- |"] + [f"| {name} | {_cell(text)} |" for name, text in rows.items() if text]
    return "\n".join(lines)


def described(method: type[Method]) -> tuple[str, str]:
    """How it works, from the class' docstring, and the paragraphs of that which say where it departs."""
    text = inspect.cleandoc(method.__doc__ or "").split("\nArgs:")[0]
    paragraphs = [_plain(p) for p in re.split(r"\n\s*\n(?=\S)", text.strip())]
    apart = [p for p in paragraphs if p.startswith(APART)]
    return "\n\n".join(p for p in paragraphs if p not in apart), "\n\n".join(apart)


def options(method: type[Method]) -> str:
    """Its options with their types, defaults and meanings, as a table."""
    help_lines, rows = _arguments(method), []
    for field in dataclasses.fields(method):  # type: ignore[arg-type]  # every method is a dataclass
        if field.name in (*method.roles, *method.given):
            continue
        if field.default is not dataclasses.MISSING:
            default = str(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            default = _changed(field.default_factory())
        else:
            default = "needed"
        rows.append(f"| `--{field.name}` | {_cell(default)} | {_cell(help_lines.get(field.name, ''))} |")
    return "\n".join(["| option | default | |", "| --- | --- | --- |", *rows])


def _changed(group: Any) -> str:
    """A group of options: all of them, and of a recipe those that are not its own defaults."""
    if not dataclasses.is_dataclass(group):
        return str(group)
    every = not isinstance(group, Recipe)
    fields = [f for f in dataclasses.fields(group) if every or getattr(group, f.name) != f.default]
    return ", ".join(f"{f.name} {getattr(group, f.name)}" for f in fields) or "its own defaults"


def _arguments(method: type[Method]) -> dict[str, str]:
    """The lines below ``Args:`` of the class' docstring, by name."""
    _, _, below = inspect.cleandoc(method.__doc__ or "").partition("\nArgs:\n")
    entries = re.split(r"\n(?=\w[\w, ]*:)", textwrap.dedent(below.split("\n\n")[0]))
    texts: dict[str, str] = {}
    for entry in entries:
        names, _, text = entry.partition(":")
        texts |= {name.strip(): _plain(" ".join(text.split())) for name in names.split(",")}
    return texts


def _plain(text: str) -> str:
    """Docstring markup as Markdown; indented formulas are a block."""
    return ROLE.sub(r"`\1`", text).replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
