"""One exchange with an endpoint, which ends: at a deadline for all of it, and at a number of bytes.

Every wait, from the look-up of the host to the last byte of an error's text, gets what is left of one limit, see
:mod:`upcycle.core.clock`.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import math
import ssl
import time
import urllib.error
import urllib.request
from typing import Any

from upcycle.core.addresses import hidden, key_header
from upcycle.core.clock import Clock, Timed
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
        with urllib.request.build_opener(_Stay, Timed(clock)).open(request) as response:
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


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: a POST would become a GET, and images would go where nobody said."""

    def redirect_request(self, *args: Any) -> None:
        return None
