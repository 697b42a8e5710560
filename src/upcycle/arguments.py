"""Parsing of command lines: options from signatures, and complaints in one sentence.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from upcycle.core.errors import UserError, unknown


def values_of(words: Sequence[str], option: str) -> list[str]:
    """Every value of ``--option`` on a command line that is not parsed yet, in order."""
    found = []
    for i, word in enumerate(words):
        if word == f"--{option}" and i + 1 < len(words):
            found.append(words[i + 1])
        elif word.startswith(f"--{option}="):
            found.append(word.split("=", 1)[1])
    return found


def value_of(words: Sequence[str], option: str) -> str | None:
    """The last value of ``--option`` on a command line that is not parsed yet."""
    return next(reversed(values_of(words, option)), None)


def switch(words: Sequence[str], option: str) -> tuple[bool, list[str]]:
    """Whether ``--option`` is on in a command line that is not parsed yet, and the words without it."""
    found, rest, waiting = False, [], False
    for word in words:
        name, equals, value = word.partition("=")
        if waiting and word.lower() in ("true", "false"):
            found, waiting = word.lower() == "true", False
        elif name == f"--{option}" and value.lower() in ("", "true", "false"):
            found, waiting = value.lower() != "false", not equals
        else:
            waiting = False
            rest.append(word)
    return found, rest


def packages_trusted(words: Sequence[str]) -> tuple[str, ...]:
    """The packages that a command line trusts; those that a file names count for nothing."""
    named = value_of(words, "trust") or ""
    return tuple(part for text in named.split(",") if (part := text.strip(" []'\"")))


def recipe_words(words: Sequence[str], own: Iterable[str]) -> list[str]:
    """A command line on which a field of the recipe may stand alone: ``--epochs`` is ``--recipe.epochs``.

    Args:
        own: the options of the verb and of the method, which come first where they have the same name.
    """
    from upcycle.core.recipe import Recipe

    fields = {f.name for f in dataclasses.fields(Recipe)} - {*own}

    def whole(word: str) -> str:
        name, equals, value = word.partition("=")
        field = name.removeprefix("--").replace("-", "_").lower()
        return f"--recipe.{field}{equals}{value}" if name.startswith("--") and field in fields else word

    return [whole(word) for word in words]


def recipe_fields(words: Sequence[str], content: dict[str, Any]) -> list[str]:
    """The fields of a recipe that a command line or its file sets; "" for the whole."""
    found = [m.group(1) or "" for word in words if (m := re.match(r"--recipe(?:\.([\w-]+))?(?:=|$)", word))]
    there = content.get("recipe")
    return [*found, *(there if isinstance(there, dict) and there else [""] if "recipe" in content else [])]


def parse(parser: Any, words: list[str], hints: dict[str, Any], networks: Iterable[str] = ()) -> Any:
    """Parse, turning the parser's complaints into one sentence with the nearest name.

    ``--dry-run`` is ``--dry_run``; a switch needs no value: ``--resume`` is ``--resume true``; a list needs no
    brackets: ``--cuts layer1,layer2`` is ``--cuts [layer1,layer2]``; a mapping takes one key at a time: ``--settings.b0
    0``.

    Args:
        hints: the type of each option, to know switches and lists by.
        networks: options that name networks, as text whatever the hints say.
    """
    import jsonargparse

    known = [f"--{key}" for key in _keys(parser)]
    mappings = tuple(f"--{key}." for key, hint in hints.items() if typing.get_origin(hint) is dict)  # of any keys
    words = [re.sub("^--[^=]+", lambda m: m.group().replace("-", "_").replace("__", "--", 1), w) for w in words]
    for i, word in enumerate(words):
        name = word.split("=")[0]
        given = name in ("--help", "--config", "--print_config", *known) or name.startswith(mappings)
        if name.startswith("--") and not given:
            raise unknown("option", name, known)
        hint, following = hints.get(name.removeprefix("--")), words[i + 1] if i + 1 < len(words) else ""
        if hint is bool and "=" not in word and following.lower() not in ("true", "false"):
            words[i] = f"{word}=true"
        elif name not in networks and tuple in (typing.get_origin(t) for t in (hint, *typing.get_args(hint))):
            value = word.partition("=")[2] if "=" in word else following
            either = typing.get_origin(hint) is not tuple and int in typing.get_args(hint)  # a number or a list
            single = either and "," not in value
            if value and value[0] not in "[(-" and value != "null" and not single:
                text = hint in (tuple[str, ...], tuple[str, ...] | None)  # or YAML would read numbers
                value = json.dumps([item.strip() for item in value.split(",")]) if text else f"[{value}]"
                words[i if "=" in word else i + 1] = f"{name}={value}" if "=" in word else value
    try:
        parsed = parser.parse_args(words)
    except OverflowError as error:
        raise UserError("A number in the options is beyond all bounds (1e308).") from error
    except (jsonargparse.ArgumentError, ValueError, TypeError, OSError) as error:
        raise UserError(_complaint(str(error), known)) from error
    _check_filled(parsed, parser.get_defaults(), hints)
    return parsed


def _check_filled(parsed: Any, defaults: Any, hints: dict[str, Any], prefix: str = "") -> None:
    """Refuse what the parser lets pass in a YAML file: null that means nothing there, a group that is no mapping."""
    for key, default in vars(defaults).items():
        value = getattr(parsed, key, default)
        if type(default).__name__ == "Namespace":
            if type(value) is not type(default):
                raise UserError(f"--{prefix}{key} must be a mapping of its options, not '{value}'.")
            _check_filled(value, default, {}, f"{prefix}{key}.")
        elif value is None and default is not None and type(None) not in typing.get_args(hints.get(key)):
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
        return f"--{key} must be {wanted}, not {value if value[:1] == '[' else repr(value)}."
    if found := re.match(r"([\w.]+): Unable to load config '(.*?)'", text):
        return f"--{found.group(1)} must be a mapping of its options, not '{found.group(2)}'."
    return text[:1].upper() + text[1:300] + ("" if text.endswith(".") else ".")


def require_trust(file: str, content: dict[str, Any], networks: Iterable[str], trusted: Iterable[str]) -> None:
    """Refuse a file that names code to run, unless the package was trusted on the command line.

    What a person types is meant; a file may come from somebody else. So what the file itself trusts counts for nothing.

    Args:
        file: its name.
        content: its options.
        networks: those that name networks.
        trusted: packages, as the command line names them.

    Raises:
        UserError: naming the code, and what to type if it is trusted.
    """
    from upcycle.core.building import BUILDERS, MADE, OBJECT

    values = [content.get(key) for key in networks]
    references = [one for value in values for one in (value if isinstance(value, list) else str(value).split(","))]
    found = {}
    for one in (str(named).strip() for named in (*references, content.get("method", ""))):
        if OBJECT.fullmatch(one) and one.partition(":")[0] not in (*BUILDERS, *MADE) and not Path(one).exists():
            found[one] = re.split(r"[.:]", one)[0]
    if (plugin := content.get("plugin")) is not None:
        found[str(plugin)] = Path(str(plugin)).stem
    for code, package in found.items():
        if package not in trusted:
            raise UserError(
                f"{file} names code to run, {code}: if you trust it, add --trust {package} on the command line."
            )


def words_of(value: Any, key: str) -> Any:
    """A reference, or a list of references, in a YAML file."""
    if value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        return value
    raise UserError(f"--{key} must be text, not '{value}'.")


def read_config(file: str) -> dict[str, Any]:
    """The mapping in a YAML file, before it is known which options it may hold."""
    from upcycle.core.read import contents, parsed

    content = parsed(contents(Path(file)), Path(file), "yaml")
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no options: it must be a YAML mapping.")
    return content


def hints_of(method: Any) -> dict[str, Any]:
    """The types of a method's options; what its other fields are need not be imported."""
    hints: dict[str, Any] = {}
    for name in method.options():
        home = next(c for c in method.__mro__ if name in inspect.get_annotations(c))
        alone = types.SimpleNamespace(__annotations__={name: inspect.get_annotations(home)[name]})
        hints |= typing.get_type_hints(alone, vars(sys.modules[home.__module__]))
    return hints


def arguments_as(function: Any) -> type:
    """A plain dataclass of the arguments of a function, which the parser can read; those taken by ``**`` left out.

    What only Python can give, such as a module or a dataset, is text on the command line: its reference.
    """
    fields: list[Any] = []
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        hint, default = hints[name], parameter.default
        if name == "say" or parameter.kind is parameter.VAR_KEYWORD or "Method" in str(hint):
            continue
        if hint is Any or any(getattr(t, "__module__", "").startswith("torch") for t in typing.get_args(hint)):
            hint = str | None if default is None else str
        field = dataclasses.field() if default is parameter.empty else dataclasses.field(default=default)
        fields.append((name, hint, field))
    return dataclasses.make_dataclass(function.__name__, fields, namespace={"__doc__": function.__doc__})


def options_of(cls: type) -> type:
    """A plain dataclass of the options of a method or a setting, its types resolved, which the parser can read."""
    hints = hints_of(cls) if hasattr(cls, "options") else typing.get_type_hints(cls)
    options = cls.options() if hasattr(cls, "options") else {f.name: f for f in dataclasses.fields(cls)}
    fields: list[Any] = []
    for name, f in options.items():
        made = f.default_factory is not dataclasses.MISSING
        default = {"default_factory": f.default_factory} if made else {"default": f.default}
        fields.append((name, hints[name], dataclasses.field(**default)))
    return dataclasses.make_dataclass(cls.__name__, fields, kw_only=True, namespace={"__doc__": ""})
