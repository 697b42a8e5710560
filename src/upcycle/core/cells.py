"""Views of results in a notebook: a line of text, or a small table. What others wrote is text alone in them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from upcycle.core.printable import printable
from upcycle.core.spoken import spoken

_LEFT, _RIGHT = "text-align:left", "text-align:right"


def line(thing: Any, sentence: str) -> str:
    """Show a result in one line: its kind and a sentence."""
    return f"<{type(thing).__name__}: {spoken(printable(sentence))}>"


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]], notes: Iterable[str] = ()) -> str:
    """Make an HTML table whose first column is names.

    Args:
        title: a sentence above it; none if empty.
        heads: of the columns; none where a row is a name and what belongs to it.
        rows: their cells, as many as there are columns.
        notes: sentences below it.
    """
    parts = [f"<p><b>{_text(title)}</b></p>"] if title else []
    cells = [_row("th", heads)] if heads else []
    parts.append(f"<table>{''.join([*cells, *(_row('td', row) for row in rows)])}</table>")
    return f"<div>{''.join([*parts, *(f'<p>{_text(note)}</p>' for note in notes)])}</div>"


def block(text: str) -> str:
    """Make HTML of what a terminal shows, in its lines."""
    return f"<pre>{html.escape(spoken(printable(text, keep=chr(10))))}</pre>"


def _row(tag: str, cells: Sequence[Any]) -> str:
    styles = (_LEFT if i == 0 else _RIGHT for i in range(len(cells)))
    return f"<tr>{''.join(f'<{tag} style={s!r}>{_text(c)}</{tag}>' for s, c in zip(styles, cells, strict=True))}</tr>"


def _text(value: Any) -> str:
    return html.escape(spoken(printable(str(value))))
