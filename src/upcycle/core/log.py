"""The visible side of a run: figures, pictures and notes in its directory, TensorBoard, progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from upcycle.core import store
from upcycle.core.journal import Journal
from upcycle.core.printable import file_name
from upcycle.core.progress import Progress, on_terminal


class Log:
    """Figures, pictures and notes of one process of a run.

    Args:
        journal: keeps rows and notes.
        quiet: no progress on the terminal, nor lines elsewhere.
        share: of the innermost loop that is done, from 0 to below 1.
    """

    def __init__(self, journal: Journal, quiet: bool, share: Callable[[], float] = lambda: 0.0) -> None:
        self._journal, where = journal, journal.directory
        self._writer: Any = None
        live = not quiet and on_terminal()
        lines = not quiet and where is not None  # a run that leaves nothing is a part of something else
        label = where.name if where is not None and where.parent.name == "more" else ""
        self._progress = Progress(label, share, bar=live, lines=lines, transcript=journal.transcript)

    def add(self, path: str, epoch: int, updates: int, values: dict[str, float]) -> None:
        """Record figures by name, of the stage ``path``."""
        for name, value in values.items():
            self._journal.rows.append([path, epoch, updates, name, repr(value)])
            if self._journal.writes:
                self._tensorboard(updates).add_scalar(f"{path}/{name}", value, updates)
        self._progress.figures(values)

    def show(self, path: str, epoch: int, n: int) -> None:
        """Show that a loop of ``n`` epochs is at ``epoch``."""
        self._progress.begin(path, epoch, n)

    def end_epoch(self, epoch: int, n: int) -> None:
        """Show that ``epoch`` of ``n`` epochs are over."""
        self._progress.end(epoch, n)

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
        self._progress.rest()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _tensorboard(self, updates: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._journal.directory / "events"), purge_step=updates)  # type: ignore[operator]
        return self._writer
