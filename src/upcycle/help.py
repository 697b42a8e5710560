"""Help on the command line, from a table of all options that is made beforehand: it imports nothing that takes time."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from upcycle.commands import EXAMPLES, FILES, KINDS, SUMMARY, table
from upcycle.core.errors import unknown
from upcycle.core.synonyms import same_name
from upcycle.verbs import DEFAULT_METHOD

INGREDIENTS = "sharpness"
"""The first field of the recipe that is none of ordinary training."""


def commands() -> str:
    """All commands, by what they are for."""
    width = max(map(len, SUMMARY))
    lines = ["upcycle: make new models from trained ones", "", "usage: upcycle COMMAND [options]"]
    for heading, verbs in KINDS.items():
        lines += ["", f"{heading}:", *(f"  {verb.ljust(width)}  {SUMMARY[verb]}" for verb in verbs)]
    lines += ["", "For example:", *(f"  {EXAMPLES[verb][0][0]}" for verb in ("distill", "advise"))]
    return "\n".join([*lines, "", "upcycle COMMAND --help shows a command's options; --debug shows tracebacks."])


def page(verb: str, method: str | None = None, own: dict[str, Any] | None = None) -> str:
    """The options of a command, the most important first.

    Args:
        method: the name of the method whose options are shown, for a command that makes a model.
        own: that method, if it is none of the table's; see :func:`upcycle.described.of_method`.

    Raises:
        UserError: there is no such method.
    """
    groups, methods = table()["verbs"][verb], table()["methods"].get(verb, {})
    lines = [_usage(verb, groups["first"]), "", SUMMARY[verb], "", "Examples:"]
    for command, why in EXAMPLES[verb]:
        lines += [*_wrapped(command, "  ", "      "), *_wrapped(why, "      ", "      ")]
    lines += _section("What goes in, and where it goes" if methods else "Options", groups["first"])
    if methods:
        name = method or DEFAULT_METHOD[verb]
        if own is None:
            spelled = same_name(name, methods)
            if spelled is None:
                raise unknown("method", name, methods)
            name, own = spelled, methods[spelled]
        lines += _of_method(name, own)
    for heading, key in ((f"More of {verb}", "own"), ("The run", "run"), ("Networks and images", "networks")):
        lines += _section(heading, groups.get(key, ()))
    lines += ["", "Files and help:"]
    for option, text in FILES.items():
        if methods or option == "--debug":
            lines += _line(option, text)
    if methods:
        others = [other for other in methods if other != name]
        more = f"upcycle {verb} --method NAME --help shows the options of another method"
        lines += ["", *_wrapped(f"{more}: {', '.join(others)}." if others else f"{more}, such as one of your own.")]
    return "\n".join(lines)


def _of_method(name: str, own: dict[str, Any]) -> list[str]:
    """The options of a method under a heading of their own, and those of its training."""
    lines = ["", f"Options of {name}:", *_wrapped(own["summary"], "  ", "  ")]
    lines += [line for entry in own["options"] for line in _option(entry)]
    if not own["options"]:
        lines += ["  It has none."]
    if own["recipe"] is None:
        return lines
    lines += ["", f"Training with {name} (in a file, epochs is recipe.epochs, and so on):"]
    taken = {entry["name"] for entry in own["options"]}
    for entry in table()["recipe"]:
        field = entry["name"].removeprefix("--recipe.")
        short = entry["name"] if f"--{field}" in taken else f"--{field}"
        if field == INGREDIENTS:
            lines += ["", "Ingredients of training (upcycle methods --ingredients says which method takes which):"]
        lines += _option({**entry, "name": short, "default": own["recipe"][field]})
    return lines


def _usage(verb: str, first: Iterable[dict[str, str]]) -> str:
    """The first line: what stands without a name, and that there are options."""
    positional = [entry["name"].upper() for entry in first if not entry["name"].startswith("--")]
    return " ".join(["usage: upcycle", verb, *positional, "[options]"])


def _section(heading: str, entries: Iterable[dict[str, str]]) -> list[str]:
    """Options under a heading, and nothing where there are none."""
    lines = [line for entry in entries for line in _option(entry)]
    return ["", f"{heading}:", *lines] if lines else []


def _option(entry: dict[str, str]) -> list[str]:
    """One option: how it is typed, what it does, and its kind and default in plain words."""
    named = entry["name"].startswith("--")
    typed = f"{entry['name']} {entry['value']}".strip() if named else entry["name"].upper()
    default = f"default {entry['default']}" if entry["default"] else ""
    if entry["kind"] == "a switch":
        default = f"on, unless {entry['name']} false" if entry["default"] == "true" else "off"
    kind = "; ".join(filter(None, (entry["kind"], default)))
    return _line(typed, f"{entry['help']} ({kind})" if named and kind else entry["help"])


def _line(typed: str, text: str) -> list[str]:
    """An option and its help, beside it where there is room."""
    indent, space = 26, " "
    wrapped = _wrapped(text, space * indent, space * indent)
    if len(typed) + 4 <= indent:
        return [f"  {typed}".ljust(indent) + wrapped[0].lstrip(), *wrapped[1:]]
    return [f"  {typed}", *wrapped]


def _wrapped(text: str, first: str = "", others: str = "") -> list[str]:
    """Text in lines as wide as the terminal, within what reads well."""
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
