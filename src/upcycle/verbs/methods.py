"""The methods that there are, from the packages and from files named with ``--plugin``, and tables of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterable
from json import dumps
from pathlib import Path
from typing import Any

from upcycle.claims.found import found
from upcycle.core import building
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.ingredients import INGREDIENTS, PARTS
from upcycle.core.method import ANY, Method, built_in
from upcycle.core.synonyms import same_name
from upcycle.verbs import BASELINE
from upcycle.verbs.method_page import page

_plugins: dict[type[Method], str] = {}  # with the file that each comes from


def all_methods() -> tuple[type[Method], ...]:
    """Every method, in the order of the docs; those of plugins last."""
    return (*built_in(), *_plugins)


def find_method(name: str, verb: str) -> type[Method]:
    """A method of a verb by its command-line name or as ``package.module:Class``."""
    if ":" in name:
        found = building.import_object(name)
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise UserError(f"{name} is not a Method class.")
    else:
        known = {m.card.name: m for m in all_methods()}
        spelled = same_name(name, known)
        if spelled is None:
            raise unknown("method", name, [n for n, m in known.items() if m.card.verb == verb])
        found = known[spelled]
    require(found.card.verb == verb, f"{found.card.name} is run by upcycle {found.card.verb}, not {verb}.")
    return found


def baseline() -> Any:
    """The method that learns from labels alone, to stand beside one that takes more; no plugin takes its place."""
    return next(method for method in all_methods() if method.card.name == BASELINE)


def add_plugin(file: str | Path) -> tuple[type[Method], ...]:
    """Import a Python file of one's own and add the methods that it defines.

    Raises:
        UserError: if the file is missing, does not import, or defines no :class:`~upcycle.core.method.Method`.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f"There is no file {file}.")
    name = f"upcycle_plugin_{path.stem}"  # a plugin called json.py must not stand in for json
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{file} does not import: {type(error).__name__}: {error}.") from error
    found = tuple(
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == name and hasattr(item, "card")
    )
    if not found:
        raise UserError(f"{file} defines no method: a class derived from upcycle.Method with a card.")
    for method in found:
        for older in [m for m in _plugins if m.card.name == method.card.name]:
            del _plugins[older]
        _plugins[method] = str(file)
    return found


def name_of(method: type[Method]) -> str:
    """Name a method as the command line does: by its name, or by its place if no list has it."""
    return method.card.name if method in all_methods() else f"{method.__module__}:{method.__qualname__}"


def plugin_of(method: type[Method]) -> str | None:
    """The file that a method was plugged in from."""
    return _plugins.get(method)


def methods_list(methods: Iterable[type[Method]] | None = None) -> str:
    """A line a method, by verb: its name, what was found when its claim was measured, and what one gets.

    Args:
        methods: those to list; all, plugins included, if not given.
    """
    methods = all_methods() if methods is None else list(methods)
    names = max((len(m.card.name) for m in methods), default=0)
    words = {m.card.name: found()[m.card.name]["verdict"] if m.card.name in found() else "" for m in methods}
    width = max(map(len, words.values()), default=0)
    lines: list[str] = []
    for verb in dict.fromkeys(m.card.verb for m in methods):
        lines += ["", verb] if lines else [verb]
        lines += [
            f"  {m.card.name.ljust(names)}  {words[m.card.name].ljust(width)}  {m.card.summary}{_beyond_images(m)}"
            for m in methods
            if m.card.verb == verb
        ]
    return "\n".join(lines)


def _beyond_images(method: type[Method]) -> str:
    """Say what a method works on, where that is not images alone."""
    inputs = method.card.needs.inputs
    if inputs == ("images",):
        return ""
    return f" ({'any inputs' if inputs == ANY else ' and '.join(inputs)})"


def ingredients_list(methods: Iterable[type[Method]] | None = None) -> str:
    """A line a method, by verb: the ingredients of a recipe that it takes, and why not the others.

    Args:
        methods: those to list; all, plugins included, if not given.
    """
    methods = all_methods() if methods is None else list(methods)
    takes = {m: ", ".join(what for what in INGREDIENTS if what in m.admits) or "none" for m in methods}
    names = max((len(m.card.name) for m in methods), default=0)
    width = max(map(len, takes.values()), default=0)
    lines: list[str] = []
    for verb in dict.fromkeys(m.card.verb for m in methods):
        lines += ["", verb] if lines else [verb]
        lines += [
            f"  {m.card.name.ljust(names)}  {takes[m].ljust(width)}  {why_not(m)}".rstrip()
            for m in methods
            if m.card.verb == verb
        ]
    return "\n".join(lines)


def why_not(method: type[Method]) -> str:
    """Why a method does not take the ingredients that it does not, in words."""
    if "recipe" not in method.options():
        return "it has no recipe"
    reasons: dict[str, list[str]] = {}
    for what in INGREDIENTS:
        if what not in method.admits and (what not in PARTS or "sharpness" in method.admits):
            why = method.refuses.get(what) or method.refuses.get("any", "it does not say that it does")
            reasons.setdefault(why, []).append(what)
    if len(reasons) == 1 and not method.admits:
        return next(iter(reasons))
    return "; ".join(f"no {' or '.join(whats)}: {why}" for why, whats in reasons.items())


def _as_data(method: type[Method]) -> dict[str, Any]:
    verdict = found().get(method.card.name)
    return {**dataclasses.asdict(method.card), "admits": sorted(method.admits), "verdict": verdict}


def command(
    name: str = "", verb: str = "", plugin: Path | None = None, ingredients: bool = False, json: bool = False
) -> int:
    """List the methods, with the verdict on each, or show all that is known of one.

    Args:
        name: the method to show; all are listed, a line each, if not given.
        verb: list the methods of this verb alone.
        plugin: a Python file with methods of one's own, listed too.
        ingredients: list which ingredients of a recipe each method takes, such as sharpness, and why not the others.
        json: print JSON.
    """
    if plugin is not None:
        add_plugin(plugin)
    methods = {m.card.name: m for m in all_methods()}
    name = same_name(name, methods) or name
    if name and name not in methods:
        raise unknown("method", name, methods)
    if verb and verb not in (verbs := sorted({m.card.verb for m in methods.values()})):
        raise unknown("verb with methods", verb, verbs)
    shown = [m for m in methods.values() if name in ("", m.card.name) and verb in ("", m.card.verb)]
    if json:
        print(dumps([_as_data(m) for m in shown]))
    elif ingredients:
        what = "\n".join(f"  {ingredient.ljust(9)}  {asks}" for ingredient, asks in INGREDIENTS.items())
        print(f"{ingredients_list(shown)}\n\nWhat each asks of a method:\n{what}")
    elif name:
        print("\n\n".join(map(page, shown)))
    else:
        print(
            methods_list(shown) + "\n\nupcycle methods NAME shows all of one: what it needs, how it works, its options."
        )
    return 0
