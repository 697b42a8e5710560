"""The network is tried once, for seconds, and never where nothing shall be fetched."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from upcycle.core import fetching
from upcycle.core.errors import UserError
from upcycle.core.fetching import dry, may_fetch, not_here, nothing_fetched
from upcycle.core.read import bytes_of, require_file

SRC = Path(fetching.__file__).parents[1]


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("UPCYCLE_OFFLINE")
    fetching._answers.cache_clear()
    yield
    fetching._answers.cache_clear()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Attempts to reach anybody, all of which fail."""
    tried: list[Any] = []

    def refuse(*given: Any, **options: Any) -> None:
        tried.append(given)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def test_who_does_not_answer_is_waited_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "DEADLINE", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        start = time.monotonic()
        assert not may_fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/a/file")
        assert time.monotonic() - start < 5


def test_a_variable_forbids_it(monkeypatch: pytest.MonkeyPatch, connections: list[Any]) -> None:
    monkeypatch.setenv("UPCYCLE_OFFLINE", "1")
    assert not may_fetch("https://example.org") and not connections
    assert fetching.why_not("https://example.org") == "UPCYCLE_OFFLINE is set"


def test_several_things_are_one_try(connections: list[Any]) -> None:
    assert not may_fetch("https://host/a") and not may_fetch("https://host/b")
    assert len(connections) == 1
    assert "host does not answer within 5 seconds. Give it." in str(not_here("It", "https://host/a", "Give it."))


def test_where_nothing_shall_be_fetched_nobody_is_asked(connections: list[Any]) -> None:
    with nothing_fetched("a dry run downloads nothing"):
        assert not may_fetch("https://host/a")
        assert "and a dry run downloads nothing. Give it." in str(not_here("It", "https://host/a", "Give it."))
    assert not connections

    @dry
    def verb(*, dry_run: bool = False) -> bool:
        return may_fetch("https://host/a")

    assert not verb(dry_run=True) and not connections
    assert not verb() and connections


def test_a_file_that_stands_still_or_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            for body in (b"x" * 10, b"x" * 2000, b"x" * 50):
                talk, _ = server.accept()
                talk.recv(4096)
                talk.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + body if len(body) < 100 else
                             b"HTTP/1.1 200 OK\r\n\r\n" + body)  # fmt: skip
                kept.append(talk)
                if len(body) == 50:
                    talk.close()

        kept: list[socket.socket] = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a/file"
        start = time.monotonic()
        for said in ("stood still for 0.2 seconds", "larger than 0 MB", "50 bytes short"):
            with pytest.raises(UserError, match=f"^file was not fetched from 127.*{said}"):
                fetching.fetch(address, tmp_path / "file", most=1000)
        assert time.monotonic() - start < 10
        thread.join()
        for talk in kept:
            talk.close()


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_never_ends_is_not_read(kind: str, link: bool, tmp_path: Path) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    with closing(socket.socket(socket.AF_UNIX)) as server:
        if kind == "socket":
            server.bind(str(path))
        if link:
            (tmp_path / "link").symlink_to(path)
            path = tmp_path / "link"
        for read in (require_file, bytes_of):
            with pytest.raises(UserError, match="is no file that can be read, but a pipe or a device"):
                read(path)


def test_all_files_are_read_in_one_place() -> None:
    """Or a pipe or a device in place of one would hold the reader for ever."""
    own = (
        "core/read.py",
        "data/memory.py",
        "measure/machine.py",
        "core/frozen.py",
        "core/memory.py",
        "core/spoken.py",
        "data/decode.py",
        "commands.py",
    )
    found = [
        f"{file.relative_to(SRC)}: {line.strip()}"
        for file in SRC.rglob("*.py")
        if str(file.relative_to(SRC)) not in own
        for line in file.read_text().splitlines()
        if ".read_bytes()" in line or ".read_text(" in line
    ]
    assert not found
