"""Errors that are the user's to mend: one sentence that says what, where and what to do."""

import re
from collections.abc import Iterable

from upcycle.core.synonyms import meant

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class UserError(Exception):
    """A mistake that the person at the keyboard can mend. The command line prints it and exits with 2."""


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
    return UserError(f"There is no {kind} '{name}'.{hint}{known_names}")


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def one_line(error: BaseException) -> str:
    """The first line of an exception with its type, for a sentence about something that is not ours."""
    text = next((line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}".rstrip(": .")


def first_cause(error: BaseException) -> BaseException:
    """The exception that the others were raised from: what went wrong, and not where."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
