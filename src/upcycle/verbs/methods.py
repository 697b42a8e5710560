"""The methods that there are, from the packages and from files named with ``--plugin``, and tables of them."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

from upcycle import adaptation, assembly, continual, diagnosis, distillation
from upcycle.core import building
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.method import Card, Method

_plugins: dict[type[Method], str] = {}  # with the file that each comes from


def all_methods() -> tuple[type[Method], ...]:
    """Every method, in the order of the docs; those of plugins last."""
    packages = (distillation, assembly, diagnosis, adaptation, continual)
    return (*(method for package in packages for method in package.METHODS), *_plugins)


def find_method(name: str, verb: str) -> type[Method]:
    """A method of a verb by its command-line name or as ``package.module:Class``."""
    if ":" in name:
        found = building.import_object(name)
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


def methods_table(cards: Iterable[Card] | None = None) -> str:
    """The table of methods as text for a terminal of 80 columns or more.

    Args:
        cards: of the methods to show; all methods, plugins included, if not given.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cards = [m.card for m in all_methods()] if cards is None else list(cards)
    table = Table(box=SIMPLE_HEAD, show_lines=True, pad_edge=False)
    table.add_column("method (verb): what you get, for which networks,\nat what cost, and what was published", ratio=1)
    for heading in ("needs\ndata", "needs of\nteacher"):
        table.add_column(heading, no_wrap=True)
    for card in cards:
        facts = (
            f"{card.name} ({card.verb}): {card.summary}\nfor: {card.needs.architectures}\ncost: {card.cost}\n"
            f"published: {card.published}"
        )
        table.add_row(*map(Text, (facts, card.needs.data, card.needs.teacher)))
    width = min(120, max(80, shutil.get_terminal_size((100, 24)).columns))
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())


def methods_table_markdown(cards: Iterable[Card]) -> str:
    """The table of methods as Markdown, one row a card, for the README and the docs."""
    headings = (
        "method",
        "paper",
        "you get",
        "needs data",
        "needs of the teacher",
        "networks",
        "cost",
        "published",
    )
    lines = [_row(headings), "|" + " --- |" * len(headings)]
    for c in cards:
        lines.append(
            _row(
                (
                    f"`{c.name}`",
                    _paper_link(c),
                    c.summary,
                    c.needs.data,
                    c.needs.teacher,
                    c.needs.architectures,
                    c.cost,
                    c.published,
                )
            )
        )
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"


def _paper_link(card: Card) -> str:
    found = re.search(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})", card.paper)
    return f"[{card.title}](https://arxiv.org/abs/{found.group(1)})" if found else card.title


def command(plugin: Path | None = None, markdown: bool = False) -> int:
    """List the methods, and the needs of each.

    Args:
        plugin: a Python file with methods of one's own, listed too.
        markdown: as the table of the documentation.
    """
    if plugin is not None:
        add_plugin(plugin)
    cards = [m.card for m in all_methods()]
    print(methods_table_markdown(cards) if markdown else methods_table(cards))
    return 0
