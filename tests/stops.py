"""A run that dies, as a process does that is killed."""

from __future__ import annotations

from typing import Any

from upcycle.core.run import Run


class Killed(Exception):
    pass


class StopsAfter(Run):
    """A run that dies after so many updates and stages, as if the process were killed."""

    due = done = 0

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)
        self._count()

    def _finish_stage(self, *args: Any) -> None:
        super()._finish_stage(*args)
        self._count()

    def _count(self) -> None:
        self.due -= 1
        self.done += 1
        if self.due == 0:
            raise Killed
