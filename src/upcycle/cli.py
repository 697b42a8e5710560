"""The command line: the verbs as commands, their options from the signatures.

Nothing heavy is imported before a command is known, so that ``upcycle --help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import inspect
import json
import math
import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from upcycle import help
from upcycle.arguments import (
    hints_of,
    options_of,
    packages_trusted,
    parse,
    read_config,
    recipe_fields,
    recipe_words,
    require_trust,
    switch,
    value_of,
    values_of,
    words_of,
)
from upcycle.commands import SUMMARY, command_named
from upcycle.core.errors import MEMORY, UserError, first_cause, is_memory, without_secrets
from upcycle.core.printable import printable
from upcycle.core.spoken import reader
from upcycle.core.world import first_process
from upcycle.signatures import MAKERS, NAMED, SEVERAL, function_of, options_for
from upcycle.verbs import DEFAULT_METHOD


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (a claim does not hold), 2 (a mistake), 130 (interrupted)."""
    with reader(types=True):
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    if words[:1] == ["help"]:  # of a command, if one follows
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(help.commands())
        return 0
    if words[0] in ("-V", "--version"):
        from upcycle import __version__

        print(f"upcycle {__version__}")
        return 0
    try:
        words[0] = command_named(words[0])
        if {"-h", "--help"} & {*words}:
            return _help(words[0], words[1:])
        return _COMMANDS[words[0]](words[1:])
    except UserError as error:
        if debug:
            raise
        return _fail(MEMORY if is_memory(first_cause(error)) else str(error))  # whatever else was made of that
    except KeyboardInterrupt:
        again = " The same command with --resume goes on." if words[0] in MAKERS else ""
        return _fail(f"interrupted.{again}", 130)
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except MemoryError:
        return _fail(MEMORY)
    except Exception as error:
        if isinstance(error, RuntimeError) and (line := sys.modules.get(_LINE)) is not None:
            line.wait()  # of several processes, another one may be the cause
        if not debug and (told := _translate(error)):
            return _fail(told[1], told[0])
        raise


_LINE = "upcycle.core.line"
"""The module by which several processes learn of each other's end; a process that is alone has not imported it."""


def _fail(text: str, code: int = 2) -> int:
    """Complain, unless another process of this command does; returns the exit code."""
    if (line := sys.modules.get(_LINE)) is None or line.end(text, code):
        _complain(text)
    return code


def _complain(text: str) -> None:
    """One line on standard error, however long a name in it is."""
    line = printable(without_secrets(" ".join(text.split())))
    print(f"upcycle: {line if len(line) <= 1000 else line[:1000] + ' ...'}", file=sys.stderr)


def _translate(error: Exception) -> tuple[int, str] | None:
    """Exit code and sentence for the failures that are nobody's programming mistake."""
    if type(error).__name__ == "Interrupted":
        return 128 + error.signum, f"{error}, and saved. The same command with --resume goes on."  # type: ignore[attr-defined]
    if is_memory(error):
        return 2, MEMORY
    if isinstance(error, OSError) and error.filename:
        return 2, f"{error.strerror}: {error.filename}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return 2, f"{error.strerror}. Free some space, or choose another place."
    return None


# -- verbs that make a model --------------------------------------------------------------------------------------


def _parser(verb: str) -> Any:
    import jsonargparse

    return jsonargparse.ArgumentParser(
        prog=f"upcycle {verb}", description=SUMMARY[verb], exit_on_error=False, default_env=False
    )


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The method of a command, and what had to be read to know it.

    Args:
        words: the command line without its plugins.
        config: the file with options that is named last, and ``content``, what it holds.
        trusted: the packages that the command line trusts.
    """

    cls: Any
    words: list[str]
    config: str | None
    content: dict[str, Any]
    trusted: tuple[str, ...]


def _chosen(verb: str, words: list[str]) -> Chosen:
    """The method that a command names, with plugins added; a file may name code only if the command line trusts it."""
    from upcycle.verbs.methods import add_plugin, find_method

    maker, words = MAKERS[verb], list(words)
    config = value_of(words, "config")
    content = read_config(config) if config is not None else {}
    trusted = packages_trusted(words)
    for file in values_of(words, "config"):  # each counts for the parser, not the last alone
        require_trust(file, read_config(file), [key.removeprefix("--") for key in maker.networks], trusted)
    if (plugin := content.get("plugin")) is not None:
        add_plugin(str(plugin))
    while (plugin := value_of(words, "plugin")) is not None:
        add_plugin(plugin)
        i = next(i for i, w in enumerate(words) if w == "--plugin" or w.startswith("--plugin="))
        del words[i : i + (1 if "=" in words[i] else 2)]
    name = value_of(words, "method")
    cls = find_method(str(content.get("method", DEFAULT_METHOD[verb])) if name is None else name, verb)
    return Chosen(cls, words, config, content, trusted)


def _help(verb: str, words: list[str]) -> int:
    """Print the options of a command; torch is imported only for a method that is not in the table of them."""
    name, own = value_of(words, "method"), None
    if verb in MAKERS and (":" in (name or "") or any(value_of(words, option) for option in ("plugin", "config"))):
        from upcycle.described import of_method

        cls = _chosen(verb, words).cls
        name, own = cls.card.name, of_method(cls)
    print(help.page(verb, name, own))
    return 0


def arguments_of(verb: str, words: list[str]) -> tuple[dict[str, Any], type]:
    """Parse a command that makes a model: the keyword arguments of its function, and the method's class."""
    from upcycle.verbs.options import require_recipe

    maker, setting = MAKERS[verb], importlib.import_module(MAKERS[verb].module).Setting
    chosen = _chosen(verb, words)
    cls, content, config = chosen.cls, chosen.content, chosen.config
    words = recipe_words(chosen.words, [*(f.name for f in dataclasses.fields(setting)), *cls.options()])
    for field in recipe_fields(words, content):
        require_recipe(cls, field)
    parser, hints = parser_of(verb, cls)
    for key, (_, number, _) in maker.networks.items():
        if number == "*" and isinstance(content.get(key), str):
            raise UserError(f"{key} in {config} must be a list: {key}: [{content[key]}].")
    parsed = parser.instantiate(parse(parser, words, hints, maker.networks))
    values = dict(vars(parsed)) | {"trust": chosen.trusted}
    for key in ("config", "plugin", "machine", "__path__"):
        values.pop(key, None)
    for key in [key for key in maker.networks if not key.startswith("--") and not values[key]]:
        values[key] = words_of(content.get(key), key)  # the parser looks for positional ones on the command line alone
    if not all(values[key.removeprefix("--")] for key in maker.networks if key not in maker.optional):
        raise UserError(maker.example)
    values["method"] = cls
    return values, cls


def parser_of(verb: str, method: Any) -> tuple[Any, dict[str, Any]]:
    """The parser of a command that makes a model with a method, and the types of its options."""
    maker, setting = MAKERS[verb], importlib.import_module(MAKERS[verb].module).Setting
    parser = _parser(verb)
    parser.add_argument("--config", action="config")
    for network, (kind, number, _) in maker.networks.items():
        default: list[str] | None = [] if number == "*" else None
        parser.add_argument(network, type=kind, default=default, **({"nargs": number} if number else {}))
    parser.add_argument("--method", type=str, default=method.card.name)
    parser.add_argument("--plugin", type=str)
    parser.add_argument("--machine", type=dict | None, default=None)  # written by a run, for those who read it
    parser.add_class_arguments(options_of(setting), fail_untyped=True)
    parser.add_class_arguments(options_of(method), fail_untyped=True)
    hints = typing.get_type_hints(setting) | hints_of(method)
    grouped = {name: typing.get_type_hints(kind) for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    return parser, hints | {f"{name}.{field}": kind for name, of in grouped.items() for field, kind in of.items()}


# -- commands ---------------------------------------------------------------------------------------------------


def _making(verb: str) -> Callable[[list[str]], int]:
    """A command that makes a model with a method."""

    def run(words: list[str]) -> int:
        as_json, words = switch(words, "json")
        values, _ = arguments_of(verb, words)
        if as_json:
            values["say"] = _aside
        found = getattr(importlib.import_module(MAKERS[verb].module), verb)(**values)
        if as_json and first_process():
            _print_json(found)
        return 0

    return run


def _aside(text: str) -> None:
    """Say something where results are read by a program."""
    print(printable(text, keep="\n"), file=sys.stderr)


def _print_json(found: Any) -> None:
    """Print what a command found as JSON, in one line; numbers that are none are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    record = {"file": found} if isinstance(found, Path) else found if isinstance(found, dict) else found.record()
    print(json.dumps(plain(record), default=str))


def _simple(verb: str) -> Callable[[list[str]], int]:
    """A command whose options are the arguments of one function, and which prints what that returns."""

    def run(words: list[str]) -> int:
        module, name = function_of(verb)
        taken = inspect.signature(getattr(module, name)).parameters
        as_json = False
        if "json" not in taken:
            as_json, words = switch(words, "json")
        parser, several = _parser(verb), SEVERAL.get(verb)
        hints: dict[str, Any] = {}
        for kind in options_for(verb):
            skip = {"name"} if verb in NAMED else {several} if several else set()
            parser.add_class_arguments(kind, as_positional=True, fail_untyped=True, skip=skip)
            hints |= typing.get_type_hints(kind)
        if verb in NAMED:
            parser.add_argument("name", type=str, nargs="?", default="")
        if several:
            parser.add_argument(several, type=str, nargs="*")
        if verb == "predict":
            parser.set_defaults(out=Path("predictions.csv"))
        parsed = parse(parser, words, hints)
        values = dict(vars(parser.instantiate(parsed)))
        if as_json and "say" in taken:
            values["say"] = _aside
        found = getattr(module, name)(**values)
        if isinstance(found, int):
            return found
        if as_json:
            _print_json(found)
        elif isinstance(found, dict):
            from upcycle.core.lineage import tree

            print(tree(found))
        elif hasattr(found, "text"):
            print(printable(found.text(), keep="\n"))
        elif "say" not in taken:
            print(printable(str(found), keep="\n"))
        return 0 if getattr(found, "ok", True) else 1

    return run


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    **{verb: _making(verb) for verb in MAKERS},
    **{verb: _simple(verb) for verb in SUMMARY if verb not in MAKERS},
}


if __name__ == "__main__":
    sys.exit(main())
