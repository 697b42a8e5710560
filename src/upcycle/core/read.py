"""JSON and YAML from disk, checked before anything uses it: size, nesting, then the shape that its writer states.

A digest says that a file is as it was written, not that it makes sense: a stranger can write both. So what a file says
goes through :func:`read` or :func:`parse`, with a shape: a ``TypedDict`` beside the code that writes the file, whose
types may have ranges (``Annotated[int, Meta(ge=1)]``). Any fault is a :class:`UserError` with the file and the place.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from msgspec import Meta

from upcycle.core.errors import UserError, one_line

Shape = TypeVar("Shape")

PlainName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\\\x00]+$")]
"""A name of a file that stays in its folder."""
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, hex."""
Count = Annotated[int, Meta(ge=0, le=2**53)]
"""A number of things."""
Positive = Annotated[int, Meta(ge=1, le=2**53)]
"""A number of things, of which there is one at least."""

SIZES = {".json": 2**28, ".yaml": 2**20, ".yml": 2**20}  # bytes; reading YAML takes seconds a megabyte
DEPTH = 200  # of nesting: a lineage has two levels a generation
ITEMS = 20_000_000  # of a file; each takes some 60 bytes of memory
ALIASED = 1_000_000  # what aliases in YAML may unfold to


def read(path: Path, shape: type[Shape]) -> Shape:
    """Read a JSON or YAML file (by its suffix).

    Args:
        shape: what it must be, see this module's docstring.

    Raises:
        UserError: no such file, or not of this shape, naming the file and the place in it.
    """
    return checked(parsed(contents(path), path), shape, path)


def require_file(path: Path) -> None:
    """Refuse a pipe, a device or a socket, of which reading may never end; one that is missing its reader names.

    Raises:
        UserError: it is one, whatever links lead to it.
    """
    with contextlib.suppress(OSError, ValueError):
        if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{path} is no file that can be read, but a pipe or a device.")


def bytes_of(path: Path) -> bytes:
    """The bytes of a regular file; all that is read from disk comes this way.

    Raises:
        UserError: it is a pipe, a device or a socket.
        OSError: it is missing, or cannot be read.
    """
    require_file(path)
    return path.read_bytes()


def contents(path: Path) -> bytes:
    """The bytes of a file that is not too large to be one of ours."""
    limit = SIZES.get(path.suffix, SIZES[".json"])
    try:
        if (size := path.stat().st_size) > limit:
            raise UserError(f"{path} is damaged: it has {size:,} bytes, and such a file has at most {limit:,}.")
        return bytes_of(path)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def parsed(content: bytes, path: Path, kind: Literal["json", "yaml"] | None = None) -> Any:
    """The value in the bytes of a JSON or YAML file, which is not nested too deep.

    Args:
        kind: what it is, if not by its suffix.
    """
    yaml = kind == "yaml" if kind else path.suffix in (".yaml", ".yml")
    if not yaml and sum(map(content.count, (b",", b"[", b"{"))) > ITEMS:
        raise UserError(f"{path} is damaged: it holds more than {ITEMS:,} items.")
    try:
        value = _yaml(content) if yaml else json.loads(content)
    except RecursionError:
        raise UserError(f"{path} is damaged: it is nested too deep.") from None
    except ValueError as error:
        what = "is not YAML" if yaml else "is damaged: it is not JSON"
        raise UserError(f"{path} {what}: {' '.join(str(error).split()).rstrip('.')}.") from error
    if problem := _unfit(value):
        raise UserError(f"{path} is damaged: {problem}.")
    return value


def parse(content: bytes | str, shape: type[Shape], path: Path, place: str = "$") -> Shape:
    """The value in JSON that was read already, such as the metadata of a file at ``path``; see :func:`read`."""
    return checked(parsed(content.encode() if isinstance(content, str) else content, path, "json"), shape, path, place)


def checked(value: Any, shape: type[Shape], path: Path, place: str = "$") -> Shape:
    """``value`` as ``shape``.

    Args:
        path: of the file that it comes from.
        place: where it stands in that file; ``$`` is the whole.

    Raises:
        UserError: it is not of that shape.
    """
    try:
        return cast(Shape, msgspec.convert(value, shape, strict=True))
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is damaged: {_sentence(str(error), place)}.") from error


def _yaml(content: bytes) -> Any:
    import yaml

    try:
        loader = yaml.SafeLoader(content.decode())
        try:
            node = loader.get_single_node()
            if _unfolded(node) > ALIASED:
                raise ValueError(f"its aliases unfold to more than {ALIASED:,} items")
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:  # of tags that do not fit their values
        raise ValueError(one_line(error)) from error


def _unfolded(node: Any) -> int:
    """How many nodes of YAML there are where every alias stands for what it names; more than any where that is endless.

    Each is counted once: a file of a kilobyte can name more than a memory holds.
    """
    counts: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack = [(node, False)]
    while stack:
        node, done = stack.pop()
        inside: list[Any] = [] if node is None or isinstance(node.value, str) else node.value
        parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        if done:
            open_nodes.discard(id(node))
            counts[id(node)] = 1 + sum(counts[id(part)] for part in parts)
        elif id(node) in open_nodes:
            raise RecursionError  # it holds itself
        elif id(node) not in counts:
            open_nodes.add(id(node))
            stack.append((node, True))
            stack += [(part, False) for part in parts]
    return counts[id(node)]


def _unfit(value: Any) -> str:
    """Say why a value is unfit whatever its shape, in words; empty where it is fit."""
    level, items = [value], 0
    for _ in range(DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            if items + len(below) > ITEMS:
                return f"it unfolds to more than {ITEMS:,} items"
        items += len(below)
        if not below:
            return ""
        level = below
    return "it is nested too deep"


_KINDS = {
    "object": "a mapping",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}


def _sentence(text: str, place: str) -> str:
    """A complaint of msgspec as the end of a sentence."""
    text, _, where = text.partition(" - at `")
    named = "a name in " if where.startswith("key` in `") else ""
    place = named + place + where.rstrip("`").removeprefix("key` in `").removeprefix("$").replace("[...]", "[]")
    if found := re.fullmatch(r"Object missing required field `(.*)`", text):
        return f"{place} lacks {found[1]}"
    if found := re.fullmatch(r"Expected (.*?)(?:, got (.*))?", text):
        wanted, got = (re.sub(r"`(\w+)( \| \w+)*`", _words, part or "") for part in found.groups())
        wanted = wanted.replace("matching regex", "of the form")
        return f"{place} must be {wanted}" + (f", not {got}" if got else "")
    return f"{place}: {text[:1].lower()}{text[1:]}"


def _words(found: re.Match[str]) -> str:
    return " or ".join(_KINDS.get(kind, kind) for kind in found[0].strip("`").split(" | "))
