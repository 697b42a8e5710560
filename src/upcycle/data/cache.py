"""Decoded images on disk, so that the same files are decoded once and not by every command.

An entry is named by a digest of all that decides its pixels: the bytes of every encoded image, their order, the form,
and the decoder. A changed file is another entry; no date is trusted. A cache is never a reason to fail: what cannot be
read is decoded, and what cannot be written is left.

The file of an entry: a header of 4,096 bytes, JSON filled up with spaces, and the pixels as they lie in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from upcycle.core.errors import UserError
from upcycle.core.fetching import place
from upcycle.core.read import bytes_of

LIMIT = 4 * 2**30
"""Bytes of all entries together; those that were not used for longest make way."""
WORTH = 0.5
"""CPU seconds of decoding above which the pixels are kept."""
_HEADER = 4096
_NAME = re.compile(r"[0-9a-f]{64}(\.\d+\.tmp)?")


def name_of(contents: Iterable[tuple[int, bytes | Path]], facts: str) -> str:
    """The name of an entry; empty where nothing can be kept: no cache, too much, or a file that cannot be read.

    Args:
        contents: the row of each image and its encoded bytes, or its file.
        facts: what else decides the pixels.
    """
    if place() is None:
        return ""
    digest, total = hashlib.sha256(facts.encode()), 0
    for row, content in contents:
        try:
            content = bytes_of(content) if isinstance(content, Path) else content
        except OSError:  # named with all other broken images when it is decoded
            return ""
        total += len(content)
        if total > LIMIT:
            return ""
        digest.update(b"%d %d " % (row, len(content)))
        digest.update(content)
    return digest.hexdigest()


def find(name: str) -> tuple[np.ndarray, dict[str, int]] | None:
    """The pixels of an entry, uint8, and the numbers beside them; ``None`` where it is not there or damaged.

    The pixels are mapped, so that processes share them. What is written into them stays in this process.
    """
    folder = place()
    if folder is None or not name:
        return None
    path = folder / name
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(_HEADER))
        shape, facts = tuple(header["shape"]), header["facts"]
        whole = path.stat().st_size == _HEADER + int(np.prod(shape))
        pixels = np.memmap(path, np.uint8, "c", _HEADER, shape) if whole else np.empty(0, np.uint8)
        if not whole or header["crc"] != _crc(name, pixels, facts):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # damaged
        return None
    with contextlib.suppress(OSError):  # used just now
        os.utime(path)
    return np.asarray(pixels), facts


def keep(name: str, pixels: np.ndarray, facts: dict[str, int]) -> None:
    """Keep pixels, uint8 and contiguous, and numbers beside them, if there is room.

    Room is what the limit leaves, and a tenth of what is free on the disk: runs need it more.
    """
    folder = place()
    if folder is None or not name:
        return
    header = json.dumps({"shape": pixels.shape, "facts": facts, "crc": _crc(name, pixels, facts)})
    temporary = folder / f"{name}.{os.getpid()}.tmp"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if pixels.nbytes > min(LIMIT, shutil.disk_usage(folder).free // 10):
            return
        _make_room(pixels.nbytes + _HEADER)
        try:
            with open(temporary, "wb") as file:
                file.write(header.encode().ljust(_HEADER))
                file.write(pixels.data)
            os.replace(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)


def scratch(size: int = 0) -> IO[bytes]:
    """A file without a name in the folder of the cache, or else among temporary files; it goes when it is closed.

    Args:
        size: bytes that there must be room for.

    Raises:
        UserError: there is no room, or nobody may write there.
    """
    folder = place()
    try:
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # the caller's
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise no_room(error) from error
    return file


def no_room(error: OSError) -> UserError:
    """The error where a file of :func:`scratch` cannot be written."""
    return UserError(
        f"Images that do not stay in memory are written to {place() or tempfile.gettempdir()}, and that failed: "
        f"{error.strerror or error}. Make room there, or let UPCYCLE_CACHE name another folder."
    )


def entries() -> list[Path]:
    """The files of the cache, those that were not used for longest first; also what a killed process left.

    Raises:
        OSError: nobody may look there.
    """
    folder, found = place(), []
    if folder is not None and folder.is_dir():
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process took it away
                if _NAME.fullmatch(path.name):
                    found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def size() -> int:
    """Bytes of all entries; errors as :func:`entries`."""
    return sum(_bytes(path) for path in entries())


def clear() -> None:
    """Take all entries away, and nothing else that lies in their folder.

    Raises:
        UserError: nobody may.
    """
    try:
        for path in entries():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot clear the cache in {place()}: {error.strerror or error}. Delete the folder yourself."
        ) from error


def _make_room(wanted: int) -> None:
    there = [(path, _bytes(path)) for path in entries()]
    over = wanted + sum(count for _, count in there) - LIMIT
    for path, count in there:
        if over <= 0:
            return
        path.unlink(missing_ok=True)
        over -= count


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _crc(name: str, pixels: np.ndarray, facts: dict[str, int]) -> int:
    """A checksum of all that an entry says, its name included."""
    return zlib.crc32(pixels.data, zlib.crc32(json.dumps([name, pixels.shape, facts], sort_keys=True).encode()))
