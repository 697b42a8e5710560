"""``upcycle completion``: what a shell has to know, so that it completes commands, options and names.

It is made from the table of options, see :func:`upcycle.commands.table`; no signature is looked at.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from upcycle.commands import FILES, SUMMARY, table
from upcycle.core.errors import require

SHELLS = ("bash", "zsh")


@dataclass(frozen=True)
class Completion:
    """A script for a shell.

    Args:
        shell: which one.
        script: to be sourced.
    """

    shell: str
    script: str

    def text(self) -> str:
        """The script, and nothing else: it is piped into a file."""
        return self.script

    def record(self) -> dict[str, Any]:
        """Shell and script, as JSON data."""
        return {"shell": self.shell, "script": self.script}


def completion(shell: Literal["bash", "zsh"]) -> Completion:
    """Give the script with which a shell completes commands of upcycle, their options and what these may be.

    Args:
        shell: bash or zsh. For bash: ``upcycle completion bash > ~/.local/share/bash-completion/completions/upcycle``;
            for zsh a file ``_upcycle`` in a folder of ``$fpath``.

    Raises:
        UserError: it is another shell.
    """
    require(shell in SHELLS, f"completion is for {' or '.join(SHELLS)}, not '{shell}'.")
    import shtab

    return Completion(shell, shtab.complete(_parser(), shell=shell))


def _parser() -> argparse.ArgumentParser:
    """All commands with all options that each has with any method; it is looked at and parses nothing."""
    found = table()
    parser = argparse.ArgumentParser(prog="upcycle")
    parser.add_argument("-V", "--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command")
    for verb, groups in found["verbs"].items():
        command = commands.add_parser(verb, help=SUMMARY[verb])
        methods = found["methods"].get(verb, {})
        own = itertools.chain.from_iterable(method["options"] for method in methods.values())
        recipe = [{**one, "name": one["name"].replace("--recipe.", "--")} for one in found["recipe"]] if methods else []
        files = [_file(option, text) for option, text in FILES.items() if methods or option == "--debug"]
        _add(command, [*itertools.chain.from_iterable(groups.values()), *own, *recipe, *files], tuple(methods))
    return parser


def _add(command: argparse.ArgumentParser, entries: Iterable[dict[str, str]], methods: tuple[str, ...]) -> None:
    """Add options, of which the first of a name counts, and what stands without one, of which the last may repeat."""
    import shtab

    seen: set[str] = set()
    entries = list(entries)
    *_, last = [None, *(entry["name"] for entry in entries if not entry["name"].startswith("-"))]
    for entry in entries:
        name = entry["name"].removesuffix(" ...")
        if name in seen:
            continue
        seen.add(name)
        choices = methods if name == "--method" else tuple(entry["value"].split("|")) if "|" in entry["value"] else None
        more: dict[str, Any] = {"help": entry["help"].replace("%", "%%")}
        if entry["kind"] == "a switch":
            more["action"] = "store_true"
        elif choices:
            more["choices"] = choices
        if not name.startswith("-"):
            more["nargs"] = "*" if entry["name"] == last else "?"
        added: Any = command.add_argument(name, **more)
        if not choices and entry["kind"] != "a switch" and _names_a_file(entry):
            added.complete = shtab.FILE


def _names_a_file(entry: dict[str, str]) -> bool:
    """Whether a path can stand there: a path, a reference, or data."""
    bare = entry["name"].lstrip("-")
    return entry["value"] in ("PATH", "REFERENCE", "FILE") or not entry["name"].startswith("-") or bare == "data"


def _file(option: str, text: str) -> dict[str, str]:
    """An option of the parser itself, as the table would have it."""
    name, _, value = option.partition(" ")
    return {"name": name, "value": value, "kind": "" if value else "a switch", "help": text}
