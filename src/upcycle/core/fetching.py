"""Whether something may be fetched over the network: one try with a deadline, and none where nothing shall be fetched.

Libraries that fetch weights repeat what fails for a minute. So builders ask here first, and where the answer is no they
use what is on this machine.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from upcycle.core.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

DEADLINE = 5.0  # seconds, name look-up included
KEPT = 60.0  # seconds: so long an answer counts, so that several networks are one try

_forbidden: ContextVar[str] = ContextVar("forbidden", default="")


@contextlib.contextmanager
def nothing_fetched(why: str) -> Iterator[None]:
    """Let nothing be fetched in this thread.

    Args:
        why: such as "a dry run downloads nothing"; the end of a sentence.
    """
    token = _forbidden.set(why)
    try:
        yield
    finally:
        _forbidden.reset(token)


def dry(verb: Callable[P, T]) -> Callable[P, T]:
    """Make a verb that has an option ``dry_run`` fetch nothing where it is set."""

    @functools.wraps(verb)
    def run(*given: P.args, **options: P.kwargs) -> T:
        with nothing_fetched("a dry run downloads nothing") if options.get("dry_run") else contextlib.nullcontext():
            return verb(*given, **options)

    run.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
    return run


def may_fetch(address: str) -> bool:
    """Whether something may be fetched from an address, and whoever is there answers at all."""
    return not _forbids(address) and _answers(_server(address), int(time.monotonic() / KEPT))


def not_here(what: str, address: str, remedy: str) -> UserError:
    """The error for something that is not on this machine and is not fetched from ``address``.

    Args:
        what: such as "hf:org/name"; the subject of a sentence.
        remedy: a sentence.
    """
    host = urllib.parse.urlsplit(address).netloc
    why = _forbids(address) or f"{host} does not answer within {DEADLINE:g} seconds"
    return UserError(f"{what} is not kept on this machine, and {why}. {remedy}")


def _forbids(address: str) -> str:
    """Why nothing shall be fetched from an address, in words; empty where it may be."""
    hub = sys.modules.get("huggingface_hub.constants")
    off = hub is not None and address == hub.ENDPOINT and hub.HF_HUB_OFFLINE
    return _forbidden.get() or ("HF_HUB_OFFLINE is set" if off else "")


def _server(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}/"


@functools.lru_cache(maxsize=32)
def _answers(server: str, minute: int) -> bool:
    """Whether a server answers, whatever, before the deadline.

    Args:
        minute: which minute it is, so that what was found out does not count for ever.
    """
    found: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=DEADLINE).close()
            found.append(True)
        except urllib.error.HTTPError as error:
            error.close()
            found.append(True)
        except (OSError, ValueError):
            found.append(False)
        except Exception:  # of http.client: what answers speaks no HTTP
            found.append(False)

    # A look-up of a name has no timeout of its own, so it is left behind where it takes too long.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    return bool(found and found[0])
