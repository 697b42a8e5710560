"""One exchange with an endpoint, which ends: at a deadline for all of it, and at a number of bytes.

urllib3, requests and httpx limit each wait for bytes, so that an endpoint which sends one now and then, or ``100
Continue`` for ever, holds them as long as it likes (urllib3 says so of its ``Timeout``). Here every wait, from the
look-up of the host to the last byte of an error's text, gets what is left of one limit. All else is the standard
library's: proxies, TLS, the reading of HTTP.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import json
import math
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from typing import Any

from upcycle.core.addresses import hidden, key_header
from upcycle.core.errors import one_line, shown

PASSING = (429, 500, 502, 503, 504)
"""Statuses that are worth another try."""
REFUSING = (429, 503)
"""Those of them with which nothing was answered, and so nothing billed."""
PATIENCE = 600.0  # seconds: an endpoint that wants more is left


class Fault(Exception):
    """A try that failed.

    Args:
        reason: what the endpoint did, to follow its name in a sentence.
        billed: whether images that were sent may have been billed.
        after: seconds that the endpoint asks to wait.
        bad: an answer came, and made no sense.
        final: another try would not help.
    """

    def __init__(
        self, reason: str, *, billed: bool = True, after: float = 0.0, bad: bool = False, final: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.billed, self.after, self.bad, self.final = reason, billed, after, bad, final


def exchange(url: str, body: bytes | None, timeout: float, limit: int) -> Any:
    """Ask an endpoint for JSON.

    Args:
        body: JSON of a POST; ``None`` for a GET.
        timeout: seconds for all of it.
        limit: the most bytes that the answer may have.

    Raises:
        Fault: no such answer.
    """
    headers = {"Accept": "application/json", "User-Agent": "upcycle", **key_header(url)}
    if body is not None:
        headers["Content-Type"] = "application/json"
    request, clock = urllib.request.Request(url, body, headers), Clock(timeout)
    try:
        with urllib.request.build_opener(_Stay, _Timed(clock)).open(request) as response:
            content = _content(response, limit)
    except urllib.error.HTTPError as error:
        with error:
            raise _status(error) from None
    except urllib.error.URLError as error:  # before the request was out as a whole
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Fault(
                f"has a certificate that cannot be trusted ({text(error.reason)})", billed=False, final=True
            ) from None
        late = isinstance(error.reason, TimeoutError)
        how = f"within {timeout:g} seconds" if late else f"({text(error.reason)})"
        raise Fault(f"cannot be reached {how}", billed=False) from None
    except TimeoutError:
        raise Fault(f"gives no whole answer within {timeout:g} seconds") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Fault(f"breaks the connection ({text(error)})") from None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Fault(f"gives an answer that is no JSON ({text(error)})", bad=True) from None


def text(said: object) -> str:
    """A short piece of one line of what a stranger said."""
    if isinstance(said, OSError) and said.strerror:
        said = said.strerror
    line = one_line(said) if isinstance(said, BaseException) else str(said)
    clean = "".join(c if c.isprintable() else " " for c in line)
    return " ".join(clean.split())[:200].rstrip(". ")


def _content(response: Any, limit: int) -> bytes:
    parts, size = [], 0
    while part := response.read1(65536):  # what is there
        parts.append(part)
        size += len(part)
        if size > limit:
            raise Fault(f"gives an answer of more than {limit:,} bytes", bad=True)
    if response.length:  # of the bytes that it had announced
        raise ConnectionError(f"{response.length:,} bytes short")
    return b"".join(parts)


def _status(error: urllib.error.HTTPError) -> Fault:
    """The fault that a status other than 2xx is."""
    status = f"{error.code} {text(hidden(error.reason or '', error.url))}".strip()
    if error.code in PASSING:
        billed, after = error.code not in REFUSING, _seconds(error.headers.get("Retry-After"))
        long = after > PATIENCE
        asks = f" and asks to wait {after:,.0f} seconds" if long else ""
        return Fault(f"answers with {status}{asks}", billed=billed, after=after, final=long)
    if 300 <= error.code < 400:
        place = shown(text(error.headers.get("Location") or "another address"))
        return Fault(f"points to {place} ({status}); give the address that answers", billed=False, final=True)
    try:
        said = text(hidden(error.read(300).decode(errors="replace"), error.url))
    except (OSError, http.client.HTTPException, ValueError):
        said = ""
    return Fault(f"refuses with {status}" + (f" ({said})" if said else ""), billed=error.code >= 500, final=True)


def _seconds(after: str | None) -> float:
    """How long a ``Retry-After`` (seconds or a date) asks to wait; 0 for one that makes no sense."""
    if after is None:
        return 0.0
    try:
        seconds = float(after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


# -- what waits, and how long ----------------------------------------------------------------------------------


class Clock:
    """A limit on the time of all that uses it together.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left.

        Raises:
            TimeoutError: none are.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

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
                found.append(OSError(text(error)))

        thread = threading.Thread(target=look_up, daemon=True)
        thread.start()
        thread.join(self.left())
        self.left()
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


class _Timed(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(_Connection, clock=self.clock), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(_Encrypted, clock=self.clock), request)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: a POST would become a GET, and images would go where nobody said."""

    def redirect_request(self, *args: Any) -> None:
        return None
