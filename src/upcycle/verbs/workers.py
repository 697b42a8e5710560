"""Several seeds of one command side by side: each worker is the same command again, in a process of its own.

The runs of a command, one for each arm and seed, are divided in their order. The command itself makes the first part,
and a worker each of the others, in the directories where the command would have put them. A run that is finished is
recalled and not made again: so the command goes through all of them as if they were its own that it resumes. What a
worker did not finish, it finishes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upcycle.core.errors import require
from upcycle.data.decode import cores
from upcycle.verbs import options

VARIABLE = "UPCYCLE_WORKER"
"""Says to a command which worker it is, as 1/3."""


@dataclass(frozen=True)
class Share:
    """The part of the runs that one process makes.

    Args:
        number: of the process; 0 is the command itself.
        among: how many there are.
    """

    number: int = 0
    among: int = 1

    def of(self, runs: int) -> range:
        """Its runs, of so many."""
        return range(runs * self.number // self.among, runs * (self.number + 1) // self.among)


def worker() -> Share | None:
    """The share of this process, if it is a worker."""
    number, _, among = os.environ.get(VARIABLE, "").partition("/")
    return Share(int(number), int(among)) if number.isdecimal() and among.isdecimal() else None


class Workers:
    """Processes that make a part of the runs."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes = processes

    def wait(self) -> None:
        """Wait until all are done, whatever came of it."""
        for process in self._processes:
            process.wait()

    def end(self) -> None:
        """Let those that still work save, and end."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        self.wait()


def require_names(given: Iterable[Any]) -> None:
    """Raise :class:`UserError` where networks or data are objects of this process, or an endpoint with a budget."""
    every = [one for value in given for one in (value if isinstance(value, list) else [value])]
    require(
        all(one is None or isinstance(one, str | Path) for one in every),
        "Workers are processes of their own and take networks and data by name: give references, or leave out workers.",
    )
    require(not any("://" in str(one) for one in every), "An endpoint is asked by one process; leave out workers.")


def unrecorded(setting: Any, out: Path) -> dict[str, Any]:
    """The options of a worker that stand in no configuration, by name."""
    found = {name: options.plain(getattr(setting, name)) for name in options.UNRECORDED if hasattr(setting, name)}
    return {**found, "out": str(out), "resume": False, "workers": 1}


@contextlib.contextmanager
def begun(words: Callable[[], Sequence[str]], among: int) -> Iterator[Workers]:
    """Start workers, and end those that still work when the block is left.

    Args:
        words: gives those of the command, behind ``upcycle``.
        among: how many processes there shall be, this one too; each gets its part of the cores.
    """
    if among == 1:
        yield Workers([])
        return
    command = [sys.executable, "-m", "upcycle", *words()]
    threads = max(1, cores() // among)
    torch.set_num_threads(threads)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    workers = Workers(
        [
            subprocess.Popen(
                command,
                env={**env, VARIABLE: f"{number}/{among}"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # the command meets the same mistake, and says it
            )
            for number in range(1, among)
        ]
    )
    try:
        yield workers
    finally:
        workers.end()
