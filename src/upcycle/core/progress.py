"""Progress as a person follows it: a bar on a terminal, lines elsewhere; and the ``log.txt`` of a run."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from upcycle.core.printable import printable

SHARES = ("accuracy", "agreement")
"""How figures end that are shown in per cent."""
PAUSE = 10.0
"""Seconds between two lines of a :class:`Count`, where no bar is drawn."""


def on_terminal() -> bool:
    """Whether a bar can be drawn on standard error."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Transcript:
    """``log.txt``: what was said and how each epoch went, with the time; a run that goes on adds to it.

    Args:
        directory: of the run; ``None`` keeps nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._file = None if directory is None else directory / "log.txt"
        self._held: list[str] | None = None

    def hold(self) -> None:
        """Keep what is added from here on until :meth:`release`: a command that is refused leaves nothing."""
        self._held = []

    def release(self) -> None:
        """Write what was kept, and all that comes."""
        held, self._held = self._held or [], None
        for text in held:
            self.write(text)

    def write(self, text: str) -> None:
        """Add lines; a link that somebody put there is not followed."""
        if self._file is None:
            return
        if self._held is not None:
            self._held.append(text)
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = [f"{stamp}  {printable(line)}".rstrip() + "\n" for line in text.splitlines()]
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with open(self._file, "a", encoding="utf-8", errors="replace", opener=lambda p, _: os.open(p, how, 0o644)) as f:
            f.writelines(lines)


class Progress:
    """Where the loops of a run are.

    Args:
        label: of the run among others, such as ``alone-1``; empty for the first.
        share: of the innermost loop that is done, from 0 to below 1.
        bar: draw on the terminal.
        lines: write a line when an epoch ends, where nothing is drawn.
        transcript: gets these lines too.
    """

    def __init__(
        self, label: str, share: Callable[[], float], *, bar: bool, lines: bool, transcript: Transcript
    ) -> None:
        self._label, self._share, self._transcript = label, share, transcript
        self._draws, self._lines = bar, lines and not bar
        self._bar: Any = None
        self._where, self._first, self._begun = "", 0, 0.0
        self._figures: dict[str, float] = {}

    def begin(self, path: str, epoch: int, n: int) -> None:
        """A loop of ``n`` epochs, in the stage ``path``, is at ``epoch``, counted from 0."""
        where = ", ".join(filter(None, (self._label, path.removeprefix("main").removeprefix("/"))))
        if epoch == 0 or where != self._where or not self._begun:
            self._where, self._first, self._begun = where, epoch, time.monotonic()
        if self._draws:
            self._bar = self._bar or bar(self._share)
            self._bar.show(f"{self._where}  epoch {epoch + 1}/{n}".strip(), figures_in_words(self._figures))

    def figures(self, values: dict[str, float]) -> None:
        """The newest figures of the innermost loop."""
        self._figures |= values

    def end(self, epoch: int, n: int) -> None:
        """The epoch before ``epoch`` of ``n`` is over; after the last one the bar is cleared."""
        if self._begun and self._figures:
            done = epoch - self._first
            rest = (time.monotonic() - self._begun) / max(done, 1) * (n - epoch)
            parts = [self._where, f"epoch {epoch}/{n}", f"{100 * epoch / n:.0f} %", figures_in_words(self._figures)]
            line = "  ".join(filter(None, [*parts, f"{clock(rest)} left" if epoch < n else ""]))
            self._transcript.write(line)
            if self._lines:
                print(printable(line), file=sys.stderr, flush=True)
        if epoch >= n:
            self.rest()

    def rest(self) -> None:
        """Clear the bar until the next loop begins."""
        self._figures, self._begun = {}, 0.0
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Count:
    """Where a command is that works through so many things: a bar on a terminal, a line now and then elsewhere.

    >>> with Count("images", 3, bar=False, pause=0) as progress:  # doctest: +SKIP
    ...     progress.at(1)
    images 1/3  33 %  2 s left

    Args:
        label: what is counted.
        n: how many there are.
        bar: draw on the terminal; where that is possible, if not given.
        pause: seconds between two lines at least, where nothing is drawn; ``None`` writes none.
    """

    def __init__(self, label: str, n: int, *, bar: bool | None = None, pause: float | None = PAUSE) -> None:
        self._label, self._n, self._pause = label, n, pause
        self._draws = on_terminal() if bar is None else bar
        self._bar: Any = None
        self._done, self._begun = 0, time.monotonic()
        self._said = self._begun

    def __enter__(self) -> Self:
        self.at(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.rest()

    def at(self, done: int) -> None:
        """``done`` of them are over."""
        self._done = done
        where = f"{self._label} {done:,}/{self._n:,}"
        if self._draws and done < self._n:
            self._bar = self._bar or bar(lambda: self._done / self._n)
            self._bar.show(where, "")
        now = time.monotonic()
        if not self._draws and self._pause is not None and 0 < done < self._n and now - self._said >= self._pause:
            self._said = now
            line = f"{where}  {100 * done / self._n:.0f} %  {self.left(done)} left"
            print(printable(line), file=sys.stderr, flush=True)

    def left(self, done: int) -> str:
        """The time that the others will take, roughly, at the pace of the ``done`` ones that are over."""
        return clock((time.monotonic() - self._begun) / max(done, 1) * (self._n - done))

    def rest(self) -> None:
        """Clear the bar until the next step, so that something can be printed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def figures_in_words(values: dict[str, float]) -> str:
    """The loss and the validation figure, or else the first two of what there is.

    >>> figures_in_words({"w": 1.0, "validation_accuracy": 0.9213, "validation_loss": 0.5, "loss": 0.25})
    'loss 0.25  validation accuracy 92.1 %'
    """
    known = [name for name in values if name == "loss" or (name.startswith("validation_") and name.endswith(SHARES))]
    names = sorted(known, key=lambda name: name != "loss") or list(values)[:2]
    shown = {name: f"{100 * values[name]:.1f} %" if name.endswith(SHARES) else f"{values[name]:.4g}" for name in names}
    return "  ".join(f"{name.replace('_', ' ')} {text}" for name, text in shown.items())


def clock(seconds: float) -> str:
    """A time that is still to go, roughly.

    >>> clock(3.2), clock(75), clock(7260)
    ('3 s', '1 min 15 s', '2 h 1 min')
    """
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def bar(share: Callable[[], float]) -> Any:
    """A bar; what draws it is imported when it is first seen.

    Args:
        share: of the whole that is done, from 0 to 1, asked whenever it is drawn.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Drawn

    class Bar(Drawn):
        """One bar, which asks how far the loop is whenever it is drawn."""

        def get_renderables(self) -> Any:
            for task in self.task_ids:
                self.update(task, completed=min(share(), 1.0))
            yield from super().get_renderables()

        def show(self, where: str, figures: str) -> None:
            """Say where the loop is, and its newest figures."""
            for task in self.task_ids or [self.add_task("", total=1.0, figures="")]:
                self.update(task, description=printable(where), figures=printable(figures))
            self.start()

    drawn = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[figures]}", markup=False),
        console=Console(file=sys.stderr),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        refresh_per_second=5,
    )
    atexit.register(drawn.stop)  # a loop that an exception left shows the cursor again
    return drawn
