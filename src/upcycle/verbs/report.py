"""``upcycle report``: the report of a run, written again."""

from __future__ import annotations

from pathlib import Path

from upcycle.core import lock
from upcycle.core.errors import require
from upcycle.reports import write_report


def report(run: Path | str) -> Path:
    """Write report.html of a run again.

    Args:
        run: a run directory.

    Returns:
        the page.

    Raises:
        UserError: no finished run is there, or what it left is damaged.
    """
    directory = Path(run)
    require((directory / "result.json").is_file(), f"{directory} holds no finished run (no result.json).")
    lock.check(directory)
    return write_report(directory)
