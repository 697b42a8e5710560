"""Whether something may be fetched over the network, and fetching a file: one try with a deadline.

Libraries that fetch weights repeat what fails for a minute. So builders ask here first, and where the answer is no they
use what is on this machine. What is fetched is kept in the folder of caches, whole and checked, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import http.client
import inspect
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock

from upcycle.core import progress, store
from upcycle.core.clock import Clock, Timed
from upcycle.core.errors import UserError, one_line

P = ParamSpec("P")
T = TypeVar("T")

DEADLINE = 5.0  # seconds, name look-up included
KEPT = 60.0  # seconds: so long an answer counts, so that several networks are one try
PATIENCE = 30.0  # seconds: so long a file that is being fetched may stand still
SLOWEST = 100e3  # bytes a second, on the whole: a file that comes more slowly is given up

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
    return UserError(f"{what} is not kept on this machine, and {why_not(address)}. {remedy}")


def why_not(address: str) -> str:
    """Why nothing is fetched from an address, in words to follow "and", where :func:`may_fetch` says no."""
    return _forbids(address) or f"{_host(address)} does not answer within {DEADLINE:g} seconds"


def _forbids(address: str) -> str:
    """Why nothing shall be fetched from an address, in words; empty where it may be."""
    hub = sys.modules.get("huggingface_hub.constants")
    asked = {
        "HF_HUB_OFFLINE": hub is not None and address == hub.ENDPOINT and hub.HF_HUB_OFFLINE,
        "UPCYCLE_OFFLINE": os.environ.get("UPCYCLE_OFFLINE", "0") not in ("", "0"),
    }
    return _forbidden.get() or next((f"{name} is set" for name, holds in asked.items() if holds), "")


def _host(address: str) -> str:
    return urllib.parse.urlsplit(address).netloc


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


# -- files --------------------------------------------------------------------------------------------------------


def place() -> Path | None:
    """The folder of what is kept between commands: ``$UPCYCLE_CACHE``, or ``upcycle`` in the user's folder of caches.

    ``None`` where there is none: the variable is empty or 0, or nobody knows the user's home.
    """
    own = os.environ.get("UPCYCLE_CACHE")
    if own in ("", "0"):
        return None
    try:
        return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "upcycle").expanduser()
    except RuntimeError:
        return None


def fetched(name: str) -> Path | None:
    """Where a thing lies when it was fetched, whether it was or not; ``None`` where nothing is kept."""
    folder = place()
    return None if folder is None else folder / "fetched" / name


def keep(name: str, fill: Callable[[Path], None]) -> Path:
    """A folder of fetched files, once for all processes.

    Args:
        name: of the thing, see :func:`fetched`.
        fill: puts all that belongs to it into an empty folder; called where the thing is not there yet.

    Raises:
        UserError: nobody may write there, or whatever ``fill`` raises; nothing is left then.
    """
    folder = fetched(name)
    assert folder is not None
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = FileLock(str(folder.with_name(f".{folder.name}.lock"))).acquire()
    except OSError as error:
        raise UserError(
            f"What is fetched is kept in {folder}, and that failed: {error.strerror or error}. Make room there, or let "
            "UPCYCLE_CACHE name another folder."
        ) from error
    with held:
        if not folder.is_dir():
            store.clear_temporary(folder.parent, [folder.name])
            with store.new_directory(folder, "fetched files", lambda path: True) as fresh:
                fill(fresh)
    return folder


def first_that_answers(addresses: Sequence[str]) -> str | None:
    """The first of several homes of one file that may be fetched from, if any."""
    return next((address for address in addresses if may_fetch(address)), None)


def fetch(address: str, file: Path, *, most: float, md5: str | None = None) -> None:
    """Fetch a file, with a bar on a terminal: one try.

    Args:
        address: of the file, which :func:`may_fetch` has allowed.
        file: where it goes, in a folder of :func:`keep`.
        most: bytes that it has at most.
        md5: its MD5 in hex, where one is known.

    Raises:
        UserError: it does not come within the time, is larger, or is another file.
    """
    limit = 2 * DEADLINE + most / SLOWEST
    clock, digest, seen = Clock(limit, PATIENCE), hashlib.md5(usedforsecurity=False), 0
    request = urllib.request.Request(address, headers={"User-Agent": "upcycle"})
    try:
        with (
            urllib.request.build_opener(Timed(clock)).open(request) as response,
            open(file, "wb") as written,
            _bar(file.name, lambda: seen / (float(response.headers.get("Content-Length") or 0) or most)),
        ):
            while part := response.read1(2**16):
                seen += len(part)
                if seen > most:
                    raise _failed(address, f"it is larger than {most / 1e6:,.0f} MB")
                digest.update(part)
                written.write(part)
            if response.length:  # of the bytes that were announced
                raise ConnectionError(f"{response.length:,} bytes short")
    except urllib.error.HTTPError as error:
        error.close()
        raise _failed(address, f"the answer is {error.code}") from None
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # of the disk, not of the network
            raise
        reason = getattr(error, "reason", error)
        late = isinstance(reason, TimeoutError)
        why = f"it stood still for {PATIENCE:g} seconds or took more than {limit:,.0f}" if late else one_line(reason)
        raise _failed(address, why) from None
    if md5 is not None and digest.hexdigest() != md5:
        raise _failed(address, "it is not the file that was published (its MD5 differs)")


def _failed(address: str, why: str) -> UserError:
    name = urllib.parse.urlsplit(address).path.rpartition("/")[2]
    return UserError(
        f"{name} was not fetched from {_host(address)}: {why.rstrip('.')}. Try later, or fetch it by hand."
    )


@contextlib.contextmanager
def _bar(name: str, share: Callable[[], float]) -> Iterator[None]:
    """A bar on a terminal while a file comes, and a line elsewhere."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        print(f"fetching {name}", file=sys.stderr, flush=True)
        yield
        return
    drawn: Any = progress.bar(share)
    drawn.show(f"fetching {name}", "")
    try:
        yield
    finally:
        drawn.stop()
