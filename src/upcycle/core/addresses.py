"""Addresses of endpoints: how they may be shown, and the keys that go to them.

What follows a ``?`` or stands before an ``@`` may be a secret. It is sent, and nothing else is done with it.
"""

from __future__ import annotations

import os
import re
import urllib.parse

from upcycle.core.errors import UserError, require, shown

KEYS = "UPCYCLE_API_HEADER"
"""The environment variable with headers that carry keys: HOST NAME: VALUE, one a line."""

SHORTEST = 4
"""Characters of a secret; fewer stand in any text."""


def check_url(url: str) -> None:
    """Raise UserError for what is no address of an endpoint."""
    try:
        parts = urllib.parse.urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        secret = parts.username is not None or parts.password is not None
    except ValueError:
        whole = secret = False
    plain = url.isascii() and url.isprintable() and " " not in url
    require(whole and plain, f"{shown(url)!r} is no address of an endpoint; it should read http://HOST:PORT/PATH.")
    require(
        not secret,
        f"An address carries no name and password: leave out what stands before the @ in {shown(url)}, and give the "
        f"key in the environment variable {KEYS}: HOST NAME: VALUE.",
    )


def key_header(url: str) -> dict[str, str]:
    """The header with the key of an endpoint, from the environment, where that has one for its host.

    Raises:
        UserError: the environment variable cannot be read; nothing of it is shown.
    """
    found: dict[str, str] = {}
    parts = urllib.parse.urlsplit(url)
    for line in filter(None, map(str.strip, os.environ.get(KEYS, "").splitlines())):
        said = re.fullmatch(r"(\S+)\s+([\w!#$%&'*+.^`|~-]+):\s*(\S.*)", line)
        if said is None or not (line.isascii() and line.isprintable()):
            raise UserError(f"The environment variable {KEYS} must hold lines of the form HOST NAME: VALUE.")
        host, name, value = said.groups()
        if host.lower() in (str(parts.hostname), parts.netloc.lower()):
            found[name] = value
    return found


def hidden(said: str, url: str) -> str:
    """Take out of what an endpoint says the secrets that it was sent: many repeat what they refuse."""
    query = urllib.parse.urlsplit(url).query
    values = [value for _, value in urllib.parse.parse_qsl(query)]
    keys = [part for value in key_header(url).values() for part in (value, value.rpartition(" ")[2])]
    for secret in sorted({query, *values, *keys}, key=len, reverse=True):
        said = said.replace(secret, "...") if len(secret) >= SHORTEST else said
    return said
