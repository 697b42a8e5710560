"""Answers kept on disk, so that no image is paid for twice, and what was paid."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from upcycle.core.errors import UserError
from upcycle.core.read import parse
from upcycle.predictors.wire import Answer, unfit

FACTS = b"facts"  # the key of what all answers share; no SHA-256 is so short
BILLED = b"billed"  # the key of the number of images that may have been billed
PATIENCE = 60.0  # seconds to wait for another process that writes
TABLE = "CREATE TABLE answers (key BLOB PRIMARY KEY, content BLOB, checksum INTEGER)"
SPARE = 2**16  # bytes of a row of ours beside facts or an answer


class AnswerFile:
    """The answers of one endpoint in an SQLite file.

    Each row has a checksum over key and content, so that damage which SQLite does not see is seen here.

    Args:
        path: made when it is not there; its directory too.
        name: of the endpoint.
        facts: JSON data; answers are good for no other.

    Raises:
        UserError: the file is damaged, cannot be used, or was made with other facts; so do the methods.
    """

    def __init__(self, path: Path, name: str, facts: dict[str, Any]) -> None:
        self.path, self.name = path, name
        self._k, self._top = len(facts["classes"]), facts["top"]
        content = json.dumps(facts).encode()
        self._largest = max(len(content), 8 * self._top) + SPARE
        with self._opened() as database:
            found = self._get(database, FACTS)
        if found is None:
            with self._writing() as database:
                found = self._get(database, FACTS)  # another process may have been here
                if found is None:
                    self._put(database, {FACTS: content})
        if found not in (None, content):
            raise UserError(
                f"{name} has changed: it says {_brief(facts)}, and its answers in {path} were given with "
                f"{_brief(parse(found, dict[str, Any], path))}; move that file away to ask anew."
            )

    def read(self, keys: Iterable[bytes]) -> dict[bytes, Answer]:
        """Those answers that are there, as good as fresh ones: of these classes, with probabilities that can be."""
        with self._opened() as database:
            found = {key: self._get(database, key) for key in dict.fromkeys(keys)}
        return {key: self._decoded(content) for key, content in found.items() if content is not None}

    def write(self, answers: dict[bytes, Answer]) -> None:
        """Add answers; on return they are on the disk, whatever comes."""
        with self._writing() as database:
            self._put(database, {key: _encoded(answer) for key, answer in answers.items()})

    def billed(self) -> int:
        """How many images may have been billed, by all who share this file."""
        with self._opened() as database:
            return self._billed(database)

    def reserve(self, images: int, budget: int | None) -> bool:
        """Count images as billed before they are sent; ``False``, and nothing counted, where that exceeds ``budget``.

        On return it is on the disk: who is killed before the answer has paid for it.
        """
        with self._writing() as database:
            billed = self._billed(database) + images
            if budget is not None and billed > budget:
                return False
            self._put(database, {BILLED: billed.to_bytes(8, "little")})
            return True

    def release(self, images: int) -> None:
        """Take back what was reserved for images that were refused or never sent."""
        with self._writing() as database:
            self._put(database, {BILLED: max(0, self._billed(database) - images).to_bytes(8, "little")})

    @contextlib.contextmanager
    def turn(self, patience: float) -> Iterator[None]:
        """Be the one process that asks. Who waits comes before who has just been; a turn ends with its process.

        Raises:
            UserError: another process asks for more than ``patience`` seconds.
        """
        queue, asking = (FileLock(f"{self.path}.{name}", timeout=patience) for name in ("queue", "asking"))
        try:
            with queue:
                asking.acquire()
        except Timeout:
            raise UserError(
                f"Another command has been asking {self.name} for {patience:,.0f} seconds; end it, or wait for its end."
            ) from None
        except (OSError, NotImplementedError) as error:
            raise self._unusable(error) from error
        try:
            yield
        finally:
            asking.release()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self.path, PATIENCE, isolation_level=None)) as database:
                database.text_factory = bytes  # no text is here, unless by damage
                database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._largest)
                parts = "SELECT type, sql FROM sqlite_master WHERE sql IS NOT NULL"
                if not (found := database.execute(parts).fetchall()):
                    database.execute(TABLE.replace("TABLE", "TABLE IF NOT EXISTS", 1))
                elif found != [(b"table", TABLE.encode())]:  # a view or a trigger would be a program of a stranger's
                    raise self.damaged("it has other tables than one of answers")
                yield database
        except (OSError, sqlite3.OperationalError) as error:
            raise self._unusable(error) from error
        except sqlite3.Error as error:
            raise self.damaged(str(error)) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, in which nobody else writes."""
        with self._opened() as database, database:
            database.execute("BEGIN IMMEDIATE")
            yield database

    def _get(self, database: sqlite3.Connection, key: bytes) -> bytes | None:
        row = database.execute("SELECT content, checksum FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if not isinstance(row[0], bytes) or zlib.crc32(key + row[0]) != row[1]:
            raise self.damaged("an answer does not match its checksum")
        return row[0]

    def _put(self, database: sqlite3.Connection, contents: dict[bytes, bytes]) -> None:
        rows = [(key, content, zlib.crc32(key + content)) for key, content in contents.items()]
        database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    def _billed(self, database: sqlite3.Connection) -> int:
        content = self._get(database, BILLED)
        if content is None:  # a file without that: as many as were answered
            return int(database.execute("SELECT count(*) FROM answers WHERE length(key) = 32").fetchone()[0])
        if len(content) != 8 or (billed := int.from_bytes(content, "little")) > 2**53:
            raise self.damaged("the number of images billed makes no sense")
        return billed

    def _decoded(self, content: bytes) -> Answer:
        if len(content) != 8 * self._top:
            raise self.damaged(f"an answer of {len(content):,} bytes instead of {8 * self._top:,}")
        half = len(content) // 2
        answer = Answer(np.frombuffer(content[:half], "<i4"), np.frombuffer(content[half:], "<f4"))
        if problem := unfit(answer, self._k, self._top):
            raise self.damaged(f"an answer in it makes no sense: {problem}")
        return answer

    def _unusable(self, error: Exception) -> UserError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return UserError(f"The answers in {self.path} cannot be read or written: {reason}.")

    def damaged(self, reason: str) -> UserError:
        """The error for a file that does not hold what was written."""
        return UserError(f"{self.path} is damaged ({reason}); restore it from a copy, or move it away to ask anew for "
                         "what it held.")  # fmt: skip


def _encoded(answer: Answer) -> bytes:
    return answer.classes.astype("<i4").tobytes() + answer.probabilities.astype("<f4").tobytes()


def _brief(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}..."
