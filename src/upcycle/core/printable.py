"""Names as text: what others wrote reaches a terminal, a table or a file name without any power over it."""

from __future__ import annotations

import re
import unicodedata

JOINERS = "\u200c\u200d"  # scripts and emoji are written with them
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How cells begin that spreadsheets compute."""


def printable(text: str, keep: str = "") -> str:
    r"""Write out, as Python would, what a terminal obeys or does not show: escape sequences, line ends, reversed text.

    Args:
        keep: what is left, such as the line ends of a text of several lines.

    >>> printable("cat\x1b[2J")
    'cat\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) or c in keep else c.encode("unicode_escape").decode() for c in text)


def _harmless(c: str) -> bool:
    return c.isprintable() or c in JOINERS or unicodedata.category(c) == "Zs"


def file_name(name: str) -> str:
    """A name for a file or folder that stays where it is put.

    >>> file_name("../../resnet 20")
    'resnet-20'
    """
    return re.sub(r"[^\w.+,=-]+", "-", name).strip("-.")[:100] or "unnamed"


def cell(text: str) -> str:
    """A cell of a table that no spreadsheet computes: behind an apostrophe, unless it is a number.

    >>> [cell(text) for text in ("cat", "-1.5", "=1+1")]
    ['cat', '-1.5', "'=1+1"]
    """
    if not text.startswith(FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def path_cell(path: str) -> str:
    """A relative path as a cell of a table that no spreadsheet computes, and that still leads there."""
    return f"./{path}" if path.startswith(FORMULA) else path


def markdown(text: str) -> str:
    """A text inside Markdown, which shows it as it is: no HTML, no links, no columns of its own.

    >>> markdown("<b>[cat](x)|")
    '&lt;b>\\\\[cat\\\\](x)\\\\|'
    """
    text = re.sub(r"([\\`\[\]|])", r"\\\1", printable(text))
    return text.replace("&", "&amp;").replace("<", "&lt;")
