"""One process at a time writes a directory: a lock that ends with its process."""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from upcycle.core.errors import UserError

NAME = ".lock"
"""The file in a directory that is locked; empty, and left there, since taking it away would let two in."""

_held: dict[Path, Hold] = {}


class Hold:
    """A directory that this process may write, until :meth:`release` or its end.

    Within one process the newest hold counts: what went before it, such as a run that an exception ended, is over.

    Args:
        directory: made where it is not there.

    Raises:
        UserError: another process writes there, or nobody can.
    """

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._place = directory.resolve()
            before = _held.pop(self._place, None)
            if before is not None and (directory / NAME).exists():
                self._lock: BaseFileLock = before._lock
            else:
                self._lock = FileLock(str(self._place / NAME), timeout=0)
                self._lock.acquire()
        except Timeout:
            raise UserError(
                f"Another command is writing to {directory}; wait for its end, or choose another place."
            ) from None
        except OSError as error:
            raise UserError(f"Cannot write to {directory}: {error.strerror or error}. Choose another --out.") from error
        _held[self._place] = self

    def release(self) -> None:
        """Let others in, unless a newer hold of this process has taken over."""
        if _held.get(self._place) is self:
            del _held[self._place]
            self._lock.release()


def check(directory: Path) -> None:
    """Raise :class:`UserError` where another process writes ``directory`` now; nothing is left there."""
    if (directory / NAME).is_file() and directory.resolve() not in _held:
        Hold(directory).release()
