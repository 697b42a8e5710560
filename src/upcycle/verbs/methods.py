"""Which methods there are: the lists of the packages, and the files a person names with ``--plugin``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from upcycle import adaptation, assembly, continual, diagnosis, distillation
from upcycle.core import models
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.method import Method

_plugins: dict[type[Method], str] = {}  # with the file that each comes from


def all_methods() -> tuple[type[Method], ...]:
    """Every method, in the order of the docs; those of plugins last."""
    packages = (distillation, assembly, diagnosis, adaptation, continual)
    return (*(method for package in packages for method in package.METHODS), *_plugins)


def find_method(name: str, verb: str) -> type[Method]:
    """A method of a verb by its command-line name or as ``package.module:Class``."""
    if ":" in name:
        found = models.import_object(name)
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise UserError(f"{name} is not a Method class.")
    else:
        known = {m.card.name: m for m in all_methods()}
        if name not in known:
            raise unknown("method", name, [n for n, m in known.items() if m.card.verb == verb])
        found = known[name]
    require(found.card.verb == verb, f"{found.card.name} is run by upcycle {found.card.verb}, not {verb}.")
    return found


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
    found = tuple(item for item in vars(module).values() if isinstance(item, type) and issubclass(item, Method)
                  and item.__module__ == name and hasattr(item, "card"))  # fmt: skip
    if not found:
        raise UserError(f"{file} defines no method: a class derived from upcycle.Method with a card.")
    for method in found:
        for older in [m for m in _plugins if m.card.name == method.card.name]:
            del _plugins[older]
        _plugins[method] = str(file)
    return found


def plugin_of(method: type[Method]) -> str | None:
    """The file that a method was plugged in from."""
    return _plugins.get(method)
