"""The command line: the verbs as commands, their options from the signatures.

Nothing heavy is imported before a command is known, so that ``upcycle --help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from upcycle.core.errors import UserError, unknown

SUMMARY = {
    "distill": "train a smaller or different student from a trained teacher",
    "disassemble": "cut the part that knows chosen classes out of a classifier",
    "assemble": "join the parts of several classifiers into one",
    "reassemble": "build a network within a budget from blocks of several",
    "diagnose": "where a network errs, what it looks at, which channels decide",
    "explain": "which pixels of your images speak for a class",
    "adapt": "tune a network to a new task, or to a domain of which there are only answers",
    "extend": "teach a network one task after another, so that it does not forget the first ones",
    "treat": "mend a network's errors, beside plain further training",
    "methods": "what there is, and what each method needs",
    "advise": "given what you have, which method, and the command to run",
    "prove": "run a method's published claim here and show both numbers",
    "evaluate": "measure a model on a data set",
    "predict": "apply a saved model to a folder of images, to CSV",
    "report": "write report.html of a run again",
    "lineage": "draw the family tree of a saved model",
    "export": "write a model as ONNX or torch.export, both sides compared",
    "doctor": "what this installation can and cannot do",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (a claim does not hold), 2 (a mistake), 130 (interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from upcycle import __version__

        print(f"upcycle {__version__}")
        return 0
    try:
        if words[0] not in SUMMARY:
            raise unknown("command", words[0], SUMMARY)
        return _COMMANDS[words[0]](words[1:])
    except UserError as error:
        if debug:
            raise
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        again = " The same command with --resume goes on." if words[0] in MAKING else ""
        _complain(f"interrupted.{again}")
        return 130
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except MemoryError:
        _complain("memory ran out. Choose a smaller --recipe.batch_size or --size.")
        return 2
    except Exception as error:
        if not debug and (told := _translate(error)):
            _complain(told[1])
            return told[0]
        raise


def _complain(text: str) -> None:
    """One line on standard error, however long a name in it is."""
    line = " ".join(text.split())
    print(f"upcycle: {line if len(line) <= 1000 else line[:1000] + ' ...'}", file=sys.stderr)


def _translate(error: Exception) -> tuple[int, str] | None:
    """Exit code and sentence for the failures that are nobody's programming mistake."""
    if type(error).__name__ == "Interrupted":
        return 128 + error.signum, f"{error}, and saved. The same command with --resume goes on."  # type: ignore[attr-defined]
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return 2, "memory ran out. Choose a smaller --recipe.batch_size or --size."
    if isinstance(error, OSError) and error.filename:
        return 2, f"{error.strerror}: {error.filename}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return 2, f"{error.strerror}. Free some space, or choose another --out."
    return None


def _help() -> str:
    width = max(map(len, SUMMARY))
    lines = ["upcycle: make new models from trained ones", "", "usage: upcycle COMMAND [options]", ""]
    lines += [f"  {name.ljust(width)}  {text}" for name, text in SUMMARY.items()]
    return "\n".join([*lines, "", "upcycle COMMAND --help shows a command's options; --debug shows tracebacks."])


# -- parsing ----------------------------------------------------------------------------------------------------


def _parse(parser: Any, words: list[str], hints: dict[str, Any], networks: Iterable[str] = ()) -> Any:
    """Parse, turning the parser's complaints into one sentence with the nearest name.

    ``--dry-run`` is ``--dry_run``; a switch needs no value: ``--resume`` is ``--resume true``; a list needs no
    brackets: ``--cuts layer1,layer2`` is ``--cuts [layer1,layer2]``.

    Args:
        hints: the type of each option, to know switches and lists by.
        networks: options that name networks, as text whatever the hints say.
    """
    import jsonargparse

    known = [f"--{key}" for key in _keys(parser)]
    words = [re.sub("^--[^=]+", lambda m: m.group().replace("-", "_").replace("__", "--", 1), w) for w in words]
    for i, word in enumerate(words):
        name = word.split("=")[0]
        if name.startswith("--") and name not in known and name not in ("--help", "--config", "--print_config"):
            raise unknown("option", name, known)
        hint, following = hints.get(name.removeprefix("--")), words[i + 1] if i + 1 < len(words) else ""
        if hint is bool and "=" not in word and following.lower() not in ("true", "false"):
            words[i] = f"{word}=true"
        elif name not in networks and tuple in (typing.get_origin(t) for t in (hint, *typing.get_args(hint))):
            value = word.partition("=")[2] if "=" in word else following
            if value and value[0] not in "[(-" and value != "null":
                text = hint in (tuple[str, ...], tuple[str, ...] | None)  # or YAML would read numbers
                value = json.dumps([item.strip() for item in value.split(",")]) if text else f"[{value}]"
                words[i if "=" in word else i + 1] = f"{name}={value}" if "=" in word else value
    try:
        parsed = parser.parse_args(words)
    except OverflowError as error:
        raise UserError("A number in the options is beyond all bounds (1e308).") from error
    except (jsonargparse.ArgumentError, ValueError, TypeError, OSError) as error:
        raise UserError(_complaint(str(error), known)) from error
    _check_filled(parsed, parser.get_defaults())
    return parsed


def _check_filled(parsed: Any, defaults: Any, prefix: str = "") -> None:
    """Refuse what the parser lets pass in a YAML file: null where there is a default, a group that is no mapping."""
    for key, default in vars(defaults).items():
        value = getattr(parsed, key, default)
        if type(default).__name__ == "Namespace":
            if type(value) is not type(default):
                raise UserError(f"--{prefix}{key} must be a mapping of its options, not '{value}'.")
            _check_filled(value, default, f"{prefix}{key}.")
        elif value is None and default is not None:
            raise UserError(f"--{prefix}{key} must not be null; leave it out for its default, {default}.")


def _keys(parser: Any) -> list[str]:
    """Every option of a parser, nested ones with dots, by its public face."""

    def walk(value: Any, prefix: str) -> list[str]:
        keys = []
        for key, item in vars(value).items():
            keys.append(prefix + key)
            if hasattr(item, "__dict__") and type(item).__name__ == "Namespace":
                keys += walk(item, f"{prefix}{key}.")
        return keys

    return walk(parser.get_defaults(), "")


_KINDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list such as [a,b]",
    "Path": "a path",
    "dict": "a mapping",
}


def _complaint(text: str, known: list[str]) -> str:
    """A parser's error in one sentence."""
    if found := re.search(r"[Kk]ey '?([\w.]+)'? is not expected|Option '?([\w.]+)'? is not accepted", text):
        key = found.group(1) or found.group(2)
        return str(unknown("key", key, [k.removeprefix("--") for k in known]))
    if found := re.search(r"Group '([\w.]+)' does not accept option '(.+?)'", text):
        group, key = found.groups()
        inside = [k.removeprefix(f"--{group}.") for k in known if k.startswith(f"--{group}.")]
        return str(unknown(f"key of {group}", key, inside))
    text = " ".join(line.strip() for line in text.splitlines() if line.strip())
    text = re.sub(r"Parser key \"?([\w.]+)\"?:", r"\1:", text)
    if found := re.match(r"([\w.]+): Expected an? (.+?)\. Got value: (.*?)\.?$", text):
        key, kind, value = found.groups()
        name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
        choices = re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", name)
        wanted = f"one of {choices.group(1)}" if choices else _KINDS.get(name.split("[")[0], name)
        return f"--{key} must be {wanted}, not '{value}'."
    if found := re.match(r"([\w.]+): Does not validate .* Subtypes: \[(.*)\] Errors: .* Given value: (.*?)\.?$", text):
        key, kinds, value = found.groups()
        names = re.findall(r"<class '(?:\w+\.)*(\w+)'>|\b(tuple|dict)\[", kinds)
        choices = re.search(r"Literal\[(.*?)\]", kinds)
        wanted = " or ".join(_KINDS[name] for name in map("".join, names) if name in _KINDS)
        wanted = f"one of {choices.group(1)}" if choices else wanted
        wanted = wanted.replace("[a,b]", "[1,2]") if re.search(r"tuple\[(int|float)", kinds) else wanted
        return f"--{key} must be {wanted}, not '{value}'."
    if found := re.match(r"([\w.]+): Unable to load config '(.*?)'", text):
        return f"--{found.group(1)} must be a mapping of its options, not '{found.group(2)}'."
    return text[:1].upper() + text[1:300] + ("" if text.endswith(".") else ".")


def _parser(verb: str) -> Any:
    import jsonargparse

    return jsonargparse.ArgumentParser(
        prog=f"upcycle {verb}", description=SUMMARY[verb], exit_on_error=False, default_env=False
    )


def _value_of(words: Sequence[str], option: str) -> str | None:
    """The last value of ``--option`` on a command line that is not parsed yet."""
    found = None
    for i, word in enumerate(words):
        if word == f"--{option}" and i + 1 < len(words):
            found = words[i + 1]
        elif word.startswith(f"--{option}="):
            found = word.split("=", 1)[1]
    return found


@dataclasses.dataclass(frozen=True)
class Making:
    """A verb that makes a model with a method: where it lives and what networks it takes.

    Args:
        module: of the verb's function and its ``Setting``.
        method: the default one.
        networks: option or positional argument -> its type, how many words it takes, and its help.
        example: what to write when a network is missing.
        optional: networks that some methods do without; the verb itself looks whether its method does.
    """

    module: str
    method: str
    networks: dict[str, tuple[Any, str | None, str]]
    example: str
    optional: tuple[str, ...] = ()


MAKING = {
    "distill": Making(
        "upcycle.verbs.distill",
        "kd",
        {
            "--teacher": (str | None, None, "reference of the trained network"),
            "--student": (str | None, None, "reference of the network to train"),
        },
        "distill needs a student: give --student REFERENCE, for example zoo:convnet_small.",
        optional=("--teacher",),
    ),
    "disassemble": Making(
        "upcycle.verbs.assemble",
        "mda",
        {"model": (str, "?", "reference of a trained classifier")},
        "disassemble needs a classifier: upcycle disassemble MODEL --classes A,B.",
    ),
    "assemble": Making(
        "upcycle.verbs.assemble",
        "mdaassembly",
        {"parts": (str, "*", "references of two classifiers or more")},
        "assemble needs two parts or more: upcycle assemble PART1 PART2.",
    ),
    "reassemble": Making(
        "upcycle.verbs.assemble",
        "dery",
        {"--zoo": (str | None, None, "references with commas between them, or a folder of saved models")},
        "reassemble needs networks to take blocks from: give --zoo DIR or --zoo REFERENCE,REFERENCE.",
    ),
    "adapt": Making(
        "upcycle.verbs.adapt",
        "ssf",
        {
            "model": (str, "*", "reference of a trained network; or whom to ask: http://..., FILE.onnx, references"),
            "--student": (str | None, None, "reference of the network to train, where a method trains one"),
        },
        "adapt needs a network: upcycle adapt MODEL --data DATA, or --student REFERENCE.",
        optional=("model", "--student"),
    ),
    "extend": Making(
        "upcycle.verbs.extend",
        "derpp",
        {"model": (str, "?", "reference of a network, trained or not; or the directory of an earlier extend")},
        "extend needs a network: upcycle extend MODEL --stream splits:DATA/5.",
    ),
    "treat": Making(
        "upcycle.verbs.treat",
        "modeldoctor",
        {"model": (str, "?", "reference of a trained classifier")},
        "treat needs a classifier: upcycle treat MODEL --data DATA.",
    ),
}


def arguments_of(verb: str, words: list[str]) -> tuple[dict[str, Any], type]:
    """Parse a command that makes a model: the keyword arguments of its function, and the method's class."""
    from upcycle.verbs.methods import add_plugin, find_method

    making, words = MAKING[verb], list(words)
    setting = importlib.import_module(making.module).Setting
    config = _value_of(words, "config")
    content = _read_config(config) if config is not None else {}
    if (plugin := content.get("plugin")) is not None:
        add_plugin(str(plugin))
    while (plugin := _value_of(words, "plugin")) is not None:
        add_plugin(plugin)
        i = next(i for i, w in enumerate(words) if w == "--plugin" or w.startswith("--plugin="))
        del words[i : i + (1 if "=" in words[i] else 2)]
    name = _value_of(words, "method")
    cls = find_method(str(content.get("method", making.method)) if name is None else name, verb)
    helped = bool({"-h", "--help"} & set(words))  # reading docstrings takes time
    parser = _parser(verb)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    for network, (kind, number, text) in making.networks.items():
        default: list[str] | None = [] if number == "*" else None
        parser.add_argument(network, type=kind, default=default, help=text, **({"nargs": number} if number else {}))
    parser.add_argument("--method", type=str, default=cls.card.name, help="see upcycle methods")
    parser.add_argument("--plugin", type=str, help="a Python file with methods of one's own")
    parser.add_argument("--machine", type=dict | None, default=None, help="written by a run; ignored")
    parser.add_class_arguments(setting if helped else _options_of(setting, helped), fail_untyped=True)
    parser.add_class_arguments(_options_of(cls, helped), fail_untyped=True)
    hints = typing.get_type_hints(setting) | _hints_of(cls)
    for key, (_, number, _) in making.networks.items():
        if number == "*" and isinstance(content.get(key), str):
            raise UserError(f"{key} in {config} must be a list: {key}: [{content[key]}].")
    parsed = parser.instantiate(_parse(parser, words, hints, making.networks))
    values = dict(vars(parsed))
    for key in ("config", "plugin", "machine", "__path__"):
        values.pop(key, None)
    for key in [key for key in making.networks if not key.startswith("--") and not values[key]]:
        values[key] = _words_of(content.get(key), key)  # the parser looks for positional ones on the command line alone
    if not all(values[key.removeprefix("--")] for key in making.networks if key not in making.optional):
        raise UserError(making.example)
    values["method"] = cls
    return values, cls


def _words_of(value: Any, key: str) -> Any:
    """A reference, or a list of references, in a YAML file."""
    if value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        return value
    raise UserError(f"--{key} must be text, not '{value}'.")


def _read_config(file: str) -> dict[str, Any]:
    """The mapping in a YAML file, before it is known which options it may hold."""
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no options: it must be a YAML mapping.")
    return content


def _hints_of(method: Any) -> dict[str, Any]:
    """The types of a method's options; what its other fields are need not be imported."""
    hints: dict[str, Any] = {}
    for name in method.options():
        home = next(c for c in method.__mro__ if name in inspect.get_annotations(c))
        alone = types.SimpleNamespace(__annotations__={name: inspect.get_annotations(home)[name]})
        hints |= typing.get_type_hints(alone, vars(sys.modules[home.__module__]))
    return hints


def _options_of(cls: type, helped: bool) -> type:
    """A plain dataclass of the options of a method or a setting, its types resolved, which the parser can read.

    Args:
        helped: with the docstring, which help is made from.
    """
    hints = _hints_of(cls) if hasattr(cls, "options") else typing.get_type_hints(cls)
    options = cls.options() if hasattr(cls, "options") else {f.name: f for f in dataclasses.fields(cls)}
    fields: list[Any] = []
    for name, f in options.items():
        made = f.default_factory is not dataclasses.MISSING
        default = {"default_factory": f.default_factory} if made else {"default": f.default}
        fields.append((name, hints[name], dataclasses.field(**default)))
    text = cls.__doc__ if helped else ""
    return dataclasses.make_dataclass(cls.__name__, fields, kw_only=True, namespace={"__doc__": text})


# -- commands ---------------------------------------------------------------------------------------------------


def _making(verb: str) -> Callable[[list[str]], int]:
    """A command that makes a model with a method."""

    def run(words: list[str]) -> int:
        values, _ = arguments_of(verb, words)
        getattr(importlib.import_module(MAKING[verb].module), verb)(**values)
        return 0

    return run


def _simple(verb: str) -> Callable[[list[str]], int]:
    """A command whose options are the arguments of one function in ``upcycle.verbs.commands``."""

    def run(words: list[str]) -> int:
        from upcycle.verbs import commands

        function = getattr(commands, verb)
        parser = _parser(verb)
        parser.add_function_arguments(function, as_positional=verb != "advise", fail_untyped=True)
        parsed = _parse(parser, words, typing.get_type_hints(function))
        return int(function(**vars(parser.instantiate(parsed))) or 0)

    return run


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    **{verb: _making(verb) for verb in MAKING},
    **{verb: _simple(verb) for verb in SUMMARY if verb not in MAKING},
}


if __name__ == "__main__":
    sys.exit(main())
