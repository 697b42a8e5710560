"""Answers kept on disk, so that no image is paid for twice."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.core.errors import UserError
from upcycle.core.read import parse

FACTS = b"facts"  # the key of what all answers share; no SHA-256 is so short
PATIENCE = 60.0  # seconds to wait for another process that writes


@dataclass(frozen=True)
class Answer:
    """What was said of one image.

    Args:
        classes: int32 (t,), the most probable first.
        probabilities: float32 (t,); NaN where a label alone was given.
    """

    classes: np.ndarray
    probabilities: np.ndarray

    @property
    def labels_only(self) -> bool:
        return bool(np.isnan(self.probabilities[0]))


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
        self.path = path
        content = json.dumps(facts).encode()
        with self._opened() as database:
            found = self._get(database, FACTS)
            if found is None:
                self._put(database, {FACTS: content})
            elif found != content:
                raise UserError(
                    f"{name} has changed: it says {_brief(facts)}, and its answers in {path} were given with "
                    f"{_brief(parse(found, dict[str, Any], path))}; move that file away to ask anew."
                )

    def read(self, keys: Iterable[bytes]) -> dict[bytes, Answer]:
        """Those answers that are there."""
        with self._opened() as database:
            found = {key: self._get(database, key) for key in dict.fromkeys(keys)}
        return {key: _decoded(content) for key, content in found.items() if content is not None}

    def write(self, answers: dict[bytes, Answer]) -> None:
        """Add answers; on return they are on the disk, whatever comes."""
        with self._opened() as database:
            self._put(database, {key: _encoded(answer) for key, answer in answers.items()})

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self.path, timeout=PATIENCE)) as database:
                database.text_factory = bytes  # no text is here, unless by damage
                database.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, content BLOB, checksum INTEGER)"
                )
                yield database
        except (OSError, sqlite3.OperationalError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"The answers in {self.path} cannot be read or written: {reason}.") from error
        except sqlite3.Error as error:
            raise self._damaged(str(error)) from error

    def _get(self, database: sqlite3.Connection, key: bytes) -> bytes | None:
        row = database.execute("SELECT content, checksum FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if not isinstance(row[0], bytes) or zlib.crc32(key + row[0]) != row[1]:
            raise self._damaged("an answer does not match its checksum")
        return row[0]

    def _put(self, database: sqlite3.Connection, contents: dict[bytes, bytes]) -> None:
        rows = [(key, content, zlib.crc32(key + content)) for key, content in contents.items()]
        with database:  # one transaction
            database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self.path} is damaged ({reason}); restore it from a copy, or move it away to ask anew for "
                         "what it held.")  # fmt: skip


def _encoded(answer: Answer) -> bytes:
    return answer.classes.astype("<i4").tobytes() + answer.probabilities.astype("<f4").tobytes()


def _decoded(content: bytes) -> Answer:
    half = len(content) // 2
    return Answer(np.frombuffer(content[:half], "<i4"), np.frombuffer(content[half:], "<f4"))


def _brief(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}..."
