"""The visible side of a run: figures, pictures and notes in its directory, TensorBoard, one line on a terminal."""

from __future__ import annotations

import os
import sys
from typing import Any

from upcycle.core import store
from upcycle.core.journal import Journal
from upcycle.core.printable import file_name, printable


class Log:
    """Figures, pictures and notes of one process of a run.

    Args:
        journal: keeps rows and notes.
        quiet: no progress on the terminal; there is none off a terminal anyway.
    """

    def __init__(self, journal: Journal, quiet: bool) -> None:
        self._journal = journal
        self._writer: Any = None
        self._live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._where = self._values = ""

    def add(self, path: str, epoch: int, updates: int, values: dict[str, float]) -> None:
        """Record figures by name, of the stage ``path``."""
        for name, value in values.items():
            self._journal.rows.append([path, epoch, updates, name, repr(value)])
            if self._journal.writes:
                self._tensorboard(updates).add_scalar(f"{path}/{name}", value, updates)
        self._values = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._draw()

    def show(self, path: str, epoch: int, n: int) -> None:
        """Say on the terminal that a loop of ``n`` epochs is at ``epoch``."""
        self._where = f"{path.removeprefix('main/')}  {epoch + 1}/{n}"
        self._draw()

    def picture(self, name: str, data: dict[str, Any]) -> None:
        """Leave a picture as JSON."""
        if self._journal.writes:
            assert self._journal.directory is not None
            store.write_json(self._journal.directory / "pictures" / f"{file_name(name)}.json", data)

    def note(self, text: str) -> None:
        """Record a sentence, once."""
        if text not in self._journal.notes:
            self._journal.notes.append(text)

    def close(self) -> None:
        """Write what is not written yet."""
        self._journal.write_metrics()
        if self._live:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _tensorboard(self, updates: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._journal.directory / "events"), purge_step=updates)  # type: ignore[operator]
        return self._writer

    def _draw(self) -> None:
        if self._live:
            sys.stderr.write("\r\033[K" + printable(f"{self._where}  {self._values}")[:115])
            sys.stderr.flush()
