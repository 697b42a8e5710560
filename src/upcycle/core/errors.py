"""Errors that are the user's to mend: one sentence that says what, where and what to do."""

import re
from collections.abc import Iterable

from upcycle.core.printable import printable
from upcycle.core.spoken import spoken
from upcycle.core.synonyms import meant

_ADDRESS = re.compile(r"(?i)[a-z][a-z0-9+.-]*://\S+")
_QUERY = re.compile(r"(?<=\S)\?[^\s?]*=\S*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class UserError(Exception):
    """A mistake that the person at the keyboard can mend. The command line prints it and exits with 2.

    Names in it come from files that others wrote, and addresses carry secrets, so it shows none of either's power.
    Options in it stand as on the command line; as a text it has them in the words of its reader.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(without_secrets(printable(text, keep="\n")))

    def __str__(self) -> str:
        return spoken(super().__str__())


def shown(url: str) -> str:
    """The address of an endpoint as it may be shown: scheme, host, port and path.

    >>> shown("https://me:secret@host:8000/path?token=secret#place")
    'https://host:8000/path'
    """
    scheme, slashes, rest = re.split("[?#;]", url, maxsplit=1)[0].partition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"


def without_secrets(text: str) -> str:
    """``text`` with each address in it as it may be shown."""
    if "?" not in text and "://" not in text:
        return text
    return _QUERY.sub("", _ADDRESS.sub(lambda found: shown(found[0]), text))


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not among the known ones, with the nearest of them, by meaning and then by letters.

    >>> str(unknown("method", "kdd", ["kd", "vam"]))
    "There is no method 'kdd'. Did you mean 'kd'? Known: kd, vam."
    """
    names = list(known)
    near = meant(str(name), names)
    hint = f" Did you mean '{near}'?" if near else ""
    # A long list hides the one name that was meant.
    known_names = f" Known: {', '.join(names)}." if not near or len(names) <= 12 else ""
    shown = str(name) if len(str(name)) <= 200 else f"{str(name)[:200]}..."
    return UserError(f"There is no {kind} '{shown}'.{hint}{known_names}")


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def require_names(names: Iterable[str], of: str) -> None:
    """Refuse names with line ends and other control characters, which would be commands where they are shown.

    Args:
        of: what has these names.

    Raises:
        UserError: naming the first.
    """
    for name in names:
        if _CONTROL.search(str(name)):
            raise UserError(f"{of} has a name with a line end or another control character: {printable(str(name))}.")


MEMORY = "memory ran out. Choose smaller batches or smaller images."
"""The sentence where that is what happened, whatever was being done."""
_NO_MEMORY = re.compile(r"can't allocate memory|[Ff]ailed to allocate memory|bad_alloc|bad allocation")


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python, torch, Arrow or onnxruntime."""
    own = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return own or (isinstance(error, Exception) and _NO_MEMORY.search(str(error)) is not None)


def one_line(error: BaseException) -> str:
    """The first line of an exception with its type, for a sentence about something that is not ours.

    Raises:
        UserError: memory ran out, of which any other sentence would say something else.
    """
    if is_memory(error):
        raise UserError(f"{MEMORY[0].upper()}{MEMORY[1:]}") from error
    text = next((line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}".rstrip(": .")


def first_cause(error: BaseException) -> BaseException:
    """The exception that the others were raised from: what went wrong, and not where."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
