"""One limit on the time of an exchange over HTTP, from the look-up of the host to the last byte.

urllib3, requests and httpx limit each wait for bytes, so that a server which sends one now and then, or ``100
Continue`` for ever, holds them as long as it likes (urllib3 says so of its ``Timeout``). Here every wait gets what is
left of one limit. All else is the standard library's: proxies, TLS, the reading of HTTP.
"""

from __future__ import annotations

import http.client
import io
import math
import socket
import ssl
import threading
import time
import urllib.request
from functools import partial
from typing import Any

from upcycle.core.errors import one_line


class Clock:
    """A limit on the time of all that uses it together.

    Args:
        seconds: from now.
        patience: seconds of one wait at most.
    """

    def __init__(self, seconds: float, patience: float = math.inf) -> None:
        self._end, self._patience = time.monotonic() + seconds, patience

    def left(self) -> float:
        """Seconds that are left for the next wait.

        Raises:
            TimeoutError: none are.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return min(left, self._patience)

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection to the first address of ``host`` that takes one; each may use its share of the time."""
        addresses = self._addresses(host, port)
        fault = OSError(f"no address of {host}")
        for i, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(self.left() / (len(addresses) - i))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            except OSError as error:
                sock.close()
                fault = error
        raise fault

    def _addresses(self, host: str, port: int) -> list[Any]:
        """The look-up, in a thread, since nothing else ends it."""
        found: list[Any] = []

        def look_up() -> None:
            try:
                found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                found.append(OSError(getattr(error, "strerror", None) or one_line(error)))

        thread = threading.Thread(target=look_up, daemon=True)
        thread.start()
        thread.join(self.left())
        self.left()
        if not found:
            raise TimeoutError("timed out")
        if isinstance(found[0], OSError):
            raise found[0]
        return list(found[0])


class _Socket:
    """As much of a socket as ``http.client`` uses, whose every wait is the clock's."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._sock, self._clock = sock, clock

    def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        """Turn to TLS."""
        self._sock.settimeout(self._clock.left())
        self._sock = context.wrap_socket(self._sock, server_hostname=host)

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # here, since over TLS Python gives each piece the whole time
            self._sock.settimeout(self._clock.left())
            rest = rest[self._sock.send(rest) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Received(self._sock, self._clock))

    def close(self) -> None:
        self._sock.close()


class _Received(io.RawIOBase):
    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._sock, self._clock = sock, clock
        self._file = sock.makefile("rb", buffering=0)  # which keeps the socket open as long as it is itself

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._clock.left())
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, clock: Clock, **options: Any) -> None:
        super().__init__(host, **options)
        self.clock = clock

    def connect(self) -> None:
        self.sock: Any = _Socket(self.clock.connect(self.host, self.port), self.clock)
        if self._tunnel_host:  # type: ignore[attr-defined]  # of a proxy
            self._tunnel()  # type: ignore[attr-defined]


class _Encrypted(_Connection):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock.encrypt(ssl.create_default_context(), self._tunnel_host or self.host)  # type: ignore[attr-defined]


class Timed(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """A handler for ``urllib.request.build_opener`` whose every wait is the clock's.

    Args:
        clock: of all that is opened with it.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(_Connection, clock=self.clock), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(_Encrypted, clock=self.clock), request)
