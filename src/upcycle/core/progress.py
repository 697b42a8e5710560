"""What a person sees of a run while it runs."""

from __future__ import annotations

import os
import sys


class Progress:
    """One line on a terminal, nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._where = ""
        self._values = ""

    def show(self, path: str, epoch: int, n: int) -> None:
        self._where = f"{path.removeprefix('main/')}  {epoch + 1}/{n}"
        self._draw()

    def values(self, values: dict[str, float]) -> None:
        self._values = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._draw()

    def _draw(self) -> None:
        if self._live:
            sys.stderr.write(f"\r\033[K{self._where}  {self._values}"[:120])
            sys.stderr.flush()

    def close(self) -> None:
        if self._live:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
