"""A line from every process of a run to the first one, over which they learn that another has ended.

In a collective operation a process waits for all others, perhaps for ever. So each says how it ends, and who ends
without a word is missed at once: its connection closes, whatever killed it. Then the first process says the first cause
in one sentence, and all end.

What goes over the line is JSON, a line each, of limited length; who does not know the run's word is not listened to.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from typing import Any

LENGTH = 16_384
"""Characters of a message at most."""
PATIENCE = 120.0
"""Seconds to wait for a process to join."""
GRACE = 1.0
"""Seconds that the first process has to say itself what another one said: mistakes mostly come to all at once."""
SILENT = "ended without a word, as a process does that is killed or runs out of memory"
CODE = 2
"""The exit code after a silent end."""

_line: Line | None = None


class Line:
    """One process' end of the line.

    Args:
        rank: its number.
        world: how many there are.
        peers: connections, by the number of the process at the other end: all others, or the first one alone.
    """

    def __init__(self, rank: int, world: int, peers: dict[int, socket.socket]) -> None:
        self.rank, self.world, self._peers = rank, world, peers
        self._lock = threading.Lock()
        self._over = False  # this process has said how it ends, or ends because of another
        self.left: set[int] = set()  # processes that have done their work
        self._listener = threading.Thread(target=self._listen, daemon=True, name="line")
        self._listener.start()

    def end(self, cause: str | None, code: int = 0) -> bool:
        """Say how this process ends, and let the first one tell the person before it does.

        Args:
            cause: in a sentence; ``None`` if it has done its work.
            code: the exit code.

        Returns:
            whether it is this process that is to tell the person.
        """
        with self._lock:
            first, self._over = not self._over, True
        if not first:
            return False
        reached = [self._send(peer, cause, code, self.rank) for peer in self._peers]
        if self.rank == 0 or 0 in self.left or not any(reached):
            return True
        if cause is not None:  # who started this process may end the first one at once, when this one is gone
            self._listener.join(GRACE + 4)
        return False

    def wait(self, seconds: float) -> None:
        """Wait so long whether another process is the cause, for then this one ends meanwhile."""
        self._listener.join(seconds)

    def _send(self, peer: int, cause: str | None, code: int, rank: int) -> bool:
        message = {"rank": rank, "cause": None if cause is None else cause[:1000], "code": code}
        try:
            self._peers[peer].sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer, connection in self._peers.items():
                selector.register(connection, selectors.EVENT_READ, peer)
            while selector.get_map():
                for key, _ in selector.select():
                    text = _receive(self._peers[key.data])
                    found = _parsed(text)
                    if found is not None and found["cause"] is None:  # it has done its work
                        self.left.add(key.data)
                        selector.unregister(key.fileobj)
                    elif found is not None:
                        return self._stop(found["rank"], found["cause"], found["code"])
                    else:
                        return self._stop(key.data, None, CODE)
        return None

    def _stop(self, rank: int, cause: str | None, code: int) -> None:
        """End this process, because another one did."""
        if self.rank == 0 and cause is not None:
            time.sleep(GRACE)
        with self._lock:
            if self._over:
                return
            self._over = True
        if self.rank == 0 or (rank == 0 and cause is None and self.rank == 1):
            said = f"process {rank + 1} of {self.world} " + (f"stopped: {cause}" if cause else f"{SILENT}.")
            print(f"upcycle: {said}", file=sys.stderr, flush=True)
        if self.rank == 0:
            for peer in self._peers:
                self._send(peer, cause or SILENT, code, rank)
        sys.stdout.flush()
        os._exit(code)  # the main thread may wait in a collective operation, out of Python's reach


def _receive(connection: socket.socket) -> str:
    """The next line; empty if there is none to come."""
    found = b""
    with contextlib.suppress(OSError):
        while not found.endswith(b"\n") and len(found) < LENGTH:
            part = connection.recv(1)
            if not part:
                return ""
            found += part
    return found.decode(errors="replace")


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
        cause = found["cause"]
        return {"rank": int(found["rank"]), "cause": None if cause is None else str(cause), "code": int(found["code"])}
    except (ValueError, KeyError, TypeError):
        return None


class Desk:
    """Where the first process waits for the others.

    Args:
        host: the address by which they find it.
        world: how many processes there are.

    Attributes:
        place: its host, port and the word, for the others.
    """

    def __init__(self, host: str, world: int) -> None:
        self._world = world
        try:
            self._server = socket.create_server((host, 0))
        except OSError:  # a name that leads here by way of another address
            self._server = socket.create_server(("", 0))
        self.place = (host, self._server.getsockname()[1], secrets.token_hex(16))

    def open(self) -> Line:
        """Wait until all have joined."""
        peers: dict[int, socket.socket] = {}
        until = time.monotonic() + PATIENCE
        with self._server:
            while len(peers) < self._world - 1:
                self._server.settimeout(max(0.1, until - time.monotonic()))
                connection, _ = self._server.accept()
                connection.settimeout(5.0)
                word, _, rank = _receive(connection).strip().partition(" ")
                if secrets.compare_digest(word.encode(), self.place[2].encode()) and rank.isdecimal():
                    connection.settimeout(None)
                    peers[int(rank)] = connection
                else:
                    connection.close()
        return _kept(Line(0, self._world, peers))


def join(place: tuple[str, int, str], rank: int, world: int) -> Line:
    """Join the line at the first process' desk."""
    host, port, word = place
    connection = socket.create_connection((host, port), timeout=PATIENCE)
    connection.settimeout(None)
    connection.sendall(f"{word} {rank}\n".encode())
    return _kept(Line(rank, world, {0: connection}))


def _kept(line: Line) -> Line:
    global _line
    _line = line
    atexit.register(_at_exit)
    return line


def is_open() -> bool:
    """Whether this process is on a line."""
    return _line is not None


def _at_exit() -> None:
    """Say how the process ends, where nothing has said it yet; the interpreter keeps an error that nobody caught."""
    error = getattr(sys, "last_value", None)
    if error is None:
        end(None)
    else:
        wait(2 * GRACE)
        end(f"{type(error).__name__}: {error}", 1)


def end(cause: str | None, code: int = 0) -> bool:
    """Say how this process ends, see :meth:`Line.end`; alone, it is always the one that tells the person."""
    return True if _line is None else _line.end(cause, code)


def wait(seconds: float = 5.0) -> None:
    """Let another process be the cause of an error here, which its end may have brought about."""
    if _line is not None:
        _line.wait(seconds)
