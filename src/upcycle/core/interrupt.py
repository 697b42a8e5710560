"""Ctrl-C and termination signals: the state is saved before the run ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Interrupted(Exception):
    """Ctrl-C or a termination signal, after the state was saved; the command line exits with 128 + signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


@contextlib.contextmanager
def catching(take: Callable[[int], None]) -> Iterator[None]:
    """Hand Ctrl-C and SIGTERM to ``take`` within the block; a second one kills. Other threads catch nothing."""

    def on_signal(signum: int, frame: Any) -> None:
        take(signum)
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
