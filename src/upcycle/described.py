"""Describes every command and its options from the signatures, for help that need not import them.

``scripts/docs.py`` writes the description to ``options.json``, which :func:`upcycle.commands.table` reads; here torch
is imported.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import types
import typing
from pathlib import Path
from typing import Any

import docstring_parser

from upcycle.arguments import hints_of
from upcycle.commands import SUMMARY
from upcycle.core.recipe import Recipe
from upcycle.signatures import MAKERS, NAMED, SEVERAL, function_of, options_for
from upcycle.verbs import DEFAULT_METHOD, naming, options
from upcycle.verbs.methods import all_methods

FIRST = ("data", "stream", "classes", "out")
"""Options of a setting that are as important as the networks."""
JSON = {
    "name": "--json",
    "value": "",
    "kind": "a switch",
    "default": "false",
    "help": "print results as JSON, and all else to standard error",
}
"""The option of every command, which no function has."""


def table() -> dict[str, Any]:
    """All commands and methods, as :mod:`upcycle.help` shows them."""
    defaults = {f.name: f.default for f in dataclasses.fields(Recipe)}
    hints = typing.get_type_hints(Recipe)
    recipe = [_entry(f"--recipe.{name}", hints[name], defaults[name], _told(Recipe)[name]) for name in defaults]
    verbs = {verb: _of_maker(verb) if verb in MAKERS else _of_function(verb) for verb in SUMMARY}
    methods: dict[str, dict[str, Any]] = {}
    for method in all_methods():
        methods.setdefault(method.card.verb, {})[method.card.name] = of_method(method)
    return {"verbs": verbs, "methods": methods, "recipe": recipe}


def of_method(method: Any) -> dict[str, Any]:
    """A method: what one gets, its options, and its own defaults of the recipe, if it has one."""
    own = method.options()
    recipe = own.pop("recipe", None)
    made = {} if recipe is None else dataclasses.asdict(recipe.default_factory())
    fields = [(name, hints_of(method)[name], _default(f)) for name, f in own.items()]
    return {
        "summary": method.card.summary,
        "title": method.card.title,
        "options": [entry for field in fields for entry in _entries(*field, _told(method))],
        "recipe": {name: _shown(value) for name, value in made.items()} if recipe is not None else None,
    }


def _of_maker(verb: str) -> dict[str, Any]:
    """A command that makes a model: its networks, and the options that it has with every method."""
    setting = importlib.import_module(MAKERS[verb].module).Setting
    hints, told = typing.get_type_hints(setting), _told(setting)
    entries = {
        f.name: (_home(setting, f.name), _entries(f.name, hints[f.name], _default(f), told))
        for f in dataclasses.fields(setting)
    }
    groups: dict[str, list[dict[str, str]]] = {"first": [], "own": [], "run": [], "networks": []}
    for name, (kind, _, text) in MAKERS[verb].networks.items():
        groups["first"].append({**_entry(name, kind, None, text), "value": "REFERENCE", "kind": ""})
    for name in (*FIRST, *(name for name in entries if name not in FIRST)):
        if name in entries:
            home, made = entries[name]
            groups["first" if name in FIRST else home] += made
    method = _entry("--method", str, DEFAULT_METHOD[verb], "a name of upcycle methods, or package.module:Class")
    groups["first"].insert(len(groups["first"]) - 1, {**method, "value": "NAME", "kind": ""})
    groups["run"].append(JSON)
    return groups


def _home(setting: type, name: str) -> str:
    """The group of an option: by the class that has it first, and by its name where it is about one of two networks."""
    said = ("weights", "weights_key", "mean", "std", "classes", "label_map", "precision")
    first = next(base for base in reversed(setting.__mro__) if name in inspect.get_annotations(base))
    if issubclass(naming.Naming, first) or (name.partition("_")[2] in said and "_" in name) or name == "label_map":
        return "networks"
    return "run" if first is options.RunSetting else "own"


def _of_function(verb: str) -> dict[str, Any]:
    """A command that makes no model: the arguments of its function, and those that name its network."""
    module, name = function_of(verb)
    function = getattr(module, name)
    own, *others = options_for(verb)
    told = _told(function) | ({} if not hasattr(module, verb) else _told(getattr(module, verb)) | _told(function))
    groups: dict[str, list[dict[str, str]]] = {"first": [], "networks": []}
    for group, kind in zip(groups, (own, *others), strict=False):
        words = told if kind is own else _told(naming.Naming)
        for f in dataclasses.fields(kind):
            required = f.default is dataclasses.MISSING
            name = f.name if required or (verb in NAMED and f.name == "name") else f"--{f.name}"
            name = f"{name} ..." if SEVERAL.get(verb) == f.name else name
            default = None if required else f.default
            groups[group].append(_entry(name, typing.get_type_hints(kind)[f.name], default, words[f.name]))
    if all(entry["name"] != "--json" for entry in groups["first"]):
        groups["first"].append(JSON)
    return groups


def _default(f: Any) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


@functools.cache
def _told(thing: Any) -> dict[str, str]:
    """The help line of each argument, by a docstring and those of the classes that a class comes from."""
    lines: dict[str, str] = {}
    for base in reversed(thing.__mro__) if isinstance(thing, type) else [thing]:
        if base is thing or dataclasses.is_dataclass(base):
            for param in docstring_parser.parse(inspect.cleandoc(base.__doc__ or "")).params:
                for name in param.arg_name.split(", "):
                    lines[name] = " ".join((param.description or "").split()).replace("``", "")
    return lines


def _entries(name: str, hint: Any, default: Any, told: dict[str, str]) -> list[dict[str, str]]:
    """An option, or each of a group of them."""
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        kind = type(default)
        hints = typing.get_type_hints(kind)
        fields = [(f.name, hints[f.name], getattr(default, f.name)) for f in dataclasses.fields(kind)]
        return [_entry(f"--{name}.{inner}", of, value, _told(kind)[inner]) for inner, of, value in fields]
    return [_entry(f"--{name}", hint, default, told[name])]


def _entry(name: str, hint: Any, default: Any, help: str) -> dict[str, str]:
    """An option as help shows it: its name, what stands for its value, what kind of value that is, its default."""
    value, kind = in_words(hint)
    return {"name": name, "value": value, "kind": kind, "default": _shown(default), "help": help.rstrip(".")}


def _shown(value: Any) -> str:
    """A default as it is typed; nothing for what has none."""
    if isinstance(value, tuple | list):
        return ",".join(map(_shown, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or value == {} else f"{value:g}" if isinstance(value, float) else str(value)


_WORDS = {
    str: ("TEXT", "text"),
    int: ("N", "a whole number"),
    float: ("X", "a number"),
    Path: ("PATH", "a path"),
    bool: ("", "a switch"),
}
_SEVERAL = {str: "a list such as a,b", int: "a list such as 1,2", float: "a list such as 0.5,0.5"}


def in_words(hint: Any) -> tuple[str, str]:
    """Give what stands for the value of an option, and what kind of value that is in plain words.

    >>> from typing import Literal
    >>> in_words(Literal["sgd", "adam"] | None), in_words(tuple[int, ...] | int)
    (('sgd|adam', ''), ('A,B', 'a list such as 1,2, or a whole number'))
    """
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is typing.Literal:
        joined = "|".join(map(str, inside))
        return (joined, "") if len(joined) <= 40 else ("NAME", f"one of {', '.join(map(str, inside))}")
    if origin is tuple:
        if typing.get_origin(inside[0]) is typing.Literal:
            return "A,B", f"a list of {', '.join(map(str, typing.get_args(inside[0])))}"
        return "A,B", _SEVERAL.get(inside[0], "a list such as a,b")
    if origin in (typing.Union, types.UnionType):
        found = [in_words(one) for one in inside if one is not type(None)]
        return found[0][0], ", or ".join(kind for _, kind in found if kind)
    return ("VALUE", "a value for each name, as --name.KEY VALUE") if origin is dict else ("VALUE", "text")
