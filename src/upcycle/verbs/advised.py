"""What ``upcycle advise`` answers, and how it reads on a terminal."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from upcycle.core import cells

PLACEHOLDERS = (
    "TEACHER, STUDENT, MODEL, PART and ZOO stand for a reference: zoo:NAME, timm:NAME, torchvision:NAME, hf:ORG/NAME, "
    "pyg:NAME, package.module:callable or a saved model; to be asked, MODEL may also be http://HOST:PORT/PATH or "
    "FILE.onnx. DATA and SOURCE stand for a data set's name, a folder of images, a Parquet folder, pool:PATH, "
    "hub:ORG/NAME or graphs:PATH. STREAM stands for splits:DATA/5 (its classes in 5 tasks), permuted:DATA/10, "
    "rotated:DATA/10, parts:DATA/5, drifting:DATA, folders:PATH (TASK/CLASS/IMAGE in it) or tasks:PATH (a set of "
    "graphs a task)."
)
SHOWN = 3
"""The choices that are shown unless all are asked for."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method that can work.

    Args:
        method: its name.
        reason: why it stands where it stands.
        command: to run.
        verdict: what was found when its claim was measured, and against what; empty where nothing was.
        student: the suggested network to train, with its size; empty where none is to be chosen.
        time: what it takes on this machine, as a dry run reckons it; empty where it was not tried.
        notes: what else one must know before it is run.
    """

    method: str
    reason: str
    command: str
    verdict: str = ""
    student: str = ""
    time: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A method that cannot work, and why."""

    method: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What :func:`advise` answers.

    Args:
        have: what was said to be at hand and wanted, in words.
        choices: the methods that can work, best first.
        refused: those that cannot.
        missing: when nothing can work, what would be needed; else empty.
        seen: sentences on the network, the data and the machine, where these were looked at.
        all: show every choice and every refusal, and not three choices alone.
    """

    have: str
    choices: tuple[Choice, ...]
    refused: tuple[Refusal, ...]
    missing: str = ""
    seen: tuple[str, ...] = ()
    all: bool = False

    def __repr__(self) -> str:
        names = ", ".join(choice.method for choice in self.choices)
        return cells.line(self, f"take {names}" if names else "nothing here can work")

    def _repr_html_(self) -> str:
        return cells.block(self.text())

    def record(self) -> dict[str, Any]:
        """The advice as JSON data."""
        return asdict(self)

    def text(self) -> str:
        """The advice for a terminal; commands are on lines of their own, unbroken."""
        lines = [line for fact in self.seen for line in _wrapped(fact, "- ", "  ")]
        lines += [*([""] if lines else []), *_wrapped(self.have), ""]
        shown = self.choices if self.all else self.choices[:SHOWN]
        for i, choice in enumerate(shown, 1):
            lines += _of_choice(i, choice)
        if not self.choices:
            lines += [*_wrapped(self.missing, "Nothing here can work. ", ""), ""]
        if self.all or not self.choices:
            lines += self._refusals()
        elif rest := self._rest():
            lines += [*_wrapped(rest), ""]
        unfilled = [choice for choice in shown if not choice.time]
        return "\n".join(lines + (_wrapped(PLACEHOLDERS) if unfilled and not self.seen else [])).rstrip()

    def _refusals(self) -> list[str]:
        """The methods that cannot work, with their reasons."""
        named: dict[str, list[str]] = {}  # methods that one reason rules out stand together
        for r in self.refused:
            named.setdefault(r.reason, []).append(r.method)
        lines = ["Cannot work here:"] if named else []
        for reason, methods in named.items():
            lines += _wrapped(f"{', '.join(methods)}: {reason}", "   ", "     ")
        return [*lines, ""]

    def _rest(self) -> str:
        """A sentence on what is not shown; empty where that is nothing."""
        more = len(self.choices) - SHOWN
        others = f"{more} more that {'may' if self.seen else 'can'} work" if more > 0 else ""
        refused = f"why {len(self.refused)} cannot" if self.refused else ""
        found = " and ".join(filter(None, (others, refused)))
        return f"With --all: {found}." if found else ""


def _of_choice(number: int, choice: Choice) -> list[str]:
    """The lines of one choice."""
    lines = _wrapped(choice.reason, f"{number}. {choice.method}: ")
    for word in filter(None, (choice.verdict, choice.student, choice.time, *choice.notes)):
        lines += _wrapped(word, "     ", "     ")
    return [*lines, f"     {choice.command}", ""]


def _wrapped(text: str, first: str = "", rest: str = "   ") -> list[str]:
    rest = rest if first else ""
    return textwrap.wrap(
        text, 88, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )
