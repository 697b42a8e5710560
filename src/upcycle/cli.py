"""The command line: the verbs as commands, their options from the signatures.

Nothing heavy is imported before a command is known, so that ``upcycle --help`` answers at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from upcycle.core.errors import UserError, unknown

SUMMARY = {
    "distill": "train a smaller or different student from a trained teacher",
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
        print(f"upcycle: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("upcycle: interrupted. The same command with --resume goes on.", file=sys.stderr)
        return 130
    except MemoryError:
        print("upcycle: memory ran out. Choose a smaller --recipe.batch_size or --size.", file=sys.stderr)
        return 2
    except Exception as error:
        if not debug and (told := _translate(error)):
            print(f"upcycle: {told[1]}", file=sys.stderr)
            return told[0]
        raise


def _translate(error: Exception) -> tuple[int, str] | None:
    """Exit code and sentence for the failures that are nobody's programming mistake."""
    if type(error).__name__ == "Interrupted":
        return 128 + error.signum, f"{error}, and saved. The same command with --resume goes on."  # type: ignore[attr-defined]
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return 2, "memory ran out. Choose a smaller --recipe.batch_size or --size."
    if isinstance(error, OSError) and error.filename:
        return 2, f"{error.strerror}: {error.filename}."
    return None


def _help() -> str:
    width = max(map(len, SUMMARY))
    lines = ["upcycle: make new models from trained ones", "", "usage: upcycle COMMAND [options]", ""]
    lines += [f"  {name.ljust(width)}  {text}" for name, text in SUMMARY.items()]
    return "\n".join([*lines, "", "upcycle COMMAND --help shows a command's options; --debug shows tracebacks."])


# -- parsing ----------------------------------------------------------------------------------------------------


def _parse(parser: Any, words: list[str]) -> Any:
    """Parse, turning the parser's complaints into one sentence with the nearest name."""
    import jsonargparse

    known = [a.option_strings[0] for a in parser._actions if a.option_strings]
    for word in words:  # before the parser guesses at prefixes
        name = word.split("=")[0]
        if name.startswith("--") and name not in known and name != "--help":
            raise unknown("option", name, known)
    try:
        return parser.parse_args(words)
    except (jsonargparse.ArgumentError, ValueError, TypeError, OSError) as error:
        raise UserError(_complaint(str(error), known)) from error


def _complaint(text: str, known: list[str]) -> str:
    """A parser's error in one sentence."""
    if found := re.search(r"[Kk]ey '?([\w.]+)'? is not expected|Option '?([\w.]+)'? is not accepted", text):
        key = found.group(1) or found.group(2)
        return str(unknown("key", key, [k.removeprefix("--") for k in known]))
    if isinstance_of_user := re.search(r"UserError: (.*)", text):
        return isinstance_of_user.group(1)
    text = " ".join(line.strip() for line in text.splitlines() if line.strip())
    text = re.sub(r"Parser key \"?([\w.]+)\"?:", r"\1:", text)
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


def distill_arguments(words: list[str]) -> tuple[dict[str, Any], type]:
    """Parse ``upcycle distill``: the keyword arguments of :func:`upcycle.distill`, and the method's class."""
    import yaml

    from upcycle.verbs.distill import Setting, find_method
    from upcycle.verbs.methods import add_plugin

    words = list(words)
    while (plugin := _value_of(words, "plugin")) is not None:
        add_plugin(plugin)
        i = next(i for i, w in enumerate(words) if w == "--plugin" or w.startswith("--plugin="))
        del words[i : i + (1 if "=" in words[i] else 2)]
    name = _value_of(words, "method")
    if name is None and (config := _value_of(words, "config")) is not None:
        try:
            content = yaml.safe_load(Path(config).read_text())
        except OSError as error:
            raise UserError(f"Cannot read {config}: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{config} is not YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(content, dict):
            raise UserError(f"{config} holds no options: it must be a YAML mapping.")
        name = content.get("method")
    cls = find_method(str(name or "kd"))
    parser = _parser("distill")
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument("--teacher", type=str | None, default=None, help="reference of the trained network")
    parser.add_argument("--student", type=str | None, default=None, help="reference of the network to train")
    parser.add_argument("--method", type=str, default=cls.card.name, help="see upcycle methods")
    parser.add_argument("--plugin", type=str, help="a Python file with methods of one's own")
    parser.add_argument("--machine", type=dict | None, default=None, help="written by a run; ignored")
    parser.add_class_arguments(Setting, fail_untyped=True)
    parser.add_class_arguments(cls, skip={"teacher", "student"}, fail_untyped=False)
    parsed = parser.instantiate_classes(_parse(parser, words))
    values = dict(vars(parsed))
    for key in ("config", "plugin", "machine", "__path__"):
        values.pop(key, None)
    if values["student"] is None:
        raise UserError("distill needs a student: give --student REFERENCE, for example zoo:convnet_small.")
    values["method"] = cls
    return values, cls


# -- commands ---------------------------------------------------------------------------------------------------


def _distill(words: list[str]) -> int:
    values, _ = distill_arguments(words)
    from upcycle.verbs.distill import distill

    distill(**values)
    return 0


def _simple(verb: str) -> Callable[[list[str]], int]:
    """A command whose options are the arguments of one function in ``upcycle.verbs.commands``."""

    def run(words: list[str]) -> int:
        from upcycle.verbs import commands

        function = getattr(commands, verb)
        parser = _parser(verb)
        parser.add_function_arguments(function, as_positional=True, fail_untyped=True)
        parsed = _parse(parser, words)
        return int(function(**vars(parser.instantiate_classes(parsed))) or 0)

    return run


_COMMANDS: dict[str, Callable[[list[str]], int]] = {"distill": _distill, **{v: _simple(v) for v in SUMMARY if v != "distill"}}


if __name__ == "__main__":
    sys.exit(main())
