"""The visible side of a run: figures, pictures and notes in its directory, a logger, progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from upcycle.core import loggers, store
from upcycle.core.journal import Journal
from upcycle.core.loggers import LoggerName
from upcycle.core.printable import file_name
from upcycle.core.progress import Progress, on_terminal


class Log:
    """Figures, pictures and notes of one process of a run.

    Args:
        journal: keeps rows and notes.
        quiet: no progress on the terminal, nor lines elsewhere.
        share: of the innermost loop that is done, from 0 to below 1.
        logger: what else gets figures and pictures.
        config: the options of the run, for it.
    """

    def __init__(
        self,
        journal: Journal,
        quiet: bool,
        share: Callable[[], float] = lambda: 0.0,
        logger: LoggerName = "none",
        config: dict[str, Any] | None = None,
    ) -> None:
        self._journal, where = journal, journal.directory
        self._named, self._config = logger, config or {}
        self._logger: loggers.Logger | None = None
        live = not quiet and on_terminal()
        lines = not quiet and where is not None  # a run that leaves nothing is a part of something else
        label = where.name if where is not None and where.parent.name == "more" else ""
        self._progress = Progress(label, share, bar=live, lines=lines, transcript=journal.transcript)

    def begin(self) -> None:
        """Begin the logger, if the first figures have not: one that does not begin ends the run before its work."""
        if self._journal.writes and self._logger is None and self._named != "none":
            assert self._journal.directory is not None
            self._logger = loggers.begin(self._named, self._journal.directory, self._config)
            self._named = self._named if self._logger is not None else "none"

    def add(self, path: str, epoch: int, updates: int, values: dict[str, float]) -> None:
        """Record figures by name, of the stage ``path``."""
        for name, value in values.items():
            self._journal.rows.append([path, epoch, updates, name, repr(value)])
        self.begin()
        if self._logger is not None:
            self._logger.figures({f"{path}/{name}": value for name, value in values.items()}, updates)
        self._progress.figures(values)

    def show(self, path: str, epoch: int, n: int) -> None:
        """Show that a loop of ``n`` epochs is at ``epoch``."""
        self._progress.begin(path, epoch, n)

    def end_epoch(self, epoch: int, n: int) -> None:
        """Show that ``epoch`` of ``n`` epochs are over."""
        self._progress.end(epoch, n)

    def picture(self, name: str, data: dict[str, Any], updates: int) -> None:
        """Leave a picture as JSON, and its images with the logger."""
        if self._journal.writes:
            assert self._journal.directory is not None
            store.write_json(self._journal.directory / "pictures" / f"{file_name(name)}.json", data)
        self.begin()
        if self._logger is not None:
            for each, image in loggers.images_of(file_name(name), data):
                self._logger.image(each, image, updates)

    def note(self, text: str) -> None:
        """Record a sentence, once."""
        if text not in self._journal.notes:
            self._journal.notes.append(text)

    def close(self) -> None:
        """Write what is not written yet, and log no more."""
        self._journal.write_metrics()
        self._progress.rest()
        if self._logger is not None:
            self._logger.close()
            self._logger, self._named = None, "none"
