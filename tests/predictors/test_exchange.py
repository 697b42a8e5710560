"""One limit of time around all that an endpoint can do with it, and one of bytes that it has no say in."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.predictor_server import serve
from upcycle.core.errors import UserError
from upcycle.data import ImageSplit, load
from upcycle.predictors import Answers, exchange, wire
from upcycle.predictors.exchange import Clock, Fault
from upcycle.predictors.http import Http

LIMIT = 0.4  # seconds
HEAD = b"HTTP/1.1 %d Some\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@contextlib.contextmanager
def peer(talk: Callable[[socket.socket], None], *, reads: bool = True) -> Iterator[str]:
    """Whoever connects gets what ``talk`` writes, until it goes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def one() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        if reads:
                            connection.recv(2**20)
                        talk(connection)

        threading.Thread(target=one, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}/"
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # which ends the wait for another


def drip(piece: bytes, first: bytes = b"", pause: float = 0.02) -> Callable[[socket.socket], None]:
    """Write ``first``, then ``piece`` now and then for ever."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return talk


def silence(connection: socket.socket) -> None:
    """Say nothing."""
    time.sleep(10 * LIMIT)


ENDLESS = {
    "nothing": silence,
    "a status that drips": drip(b" ", b"HTTP/1.1 "),
    "headers that drip": drip(b"X", b"HTTP/1.1 200 OK\r\nX-Y: "),
    "100 Continue for ever": drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "100 Continue as fast as it goes": drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, pause=0.0),
    "a body that drips": drip(b" ", HEAD % 200 + b"Content-Length: 10000\r\n\r\n"),
    "chunks that drip": drip(b"1\r\n \r\n", HEAD % 200 + CHUNKED),
    "the size of a chunk that drips": drip(b"0", HEAD % 200 + CHUNKED),
    "trailers for ever": drip(b"X: y\r\n", HEAD % 200 + CHUNKED + b"0\r\n", pause=0.0),
    "an error's body that drips": drip(b" ", HEAD % 400 + b"Content-Length: 10000\r\n\r\n"),
    "a busy one's body that drips": drip(b" ", HEAD % 503 + CHUNKED),
    "an error's body without an end": drip(b"x" * 65536, HEAD % 404 + b"\r\n", pause=0.0),
    "a redirection that drips": drip(b" ", HEAD % 302 + b"Location: http://elsewhere/\r\nContent-Length: 9999\r\n\r\n"),
}


@pytest.mark.parametrize("talk", ENDLESS.values(), ids=ENDLESS.keys())
def test_every_wait_has_what_is_left_of_one_limit(talk: Callable[[socket.socket], None], tmp_path: Path) -> None:
    with peer(talk) as place:
        begun = time.monotonic()
        with pytest.raises(UserError) as caught:
            Http(f"http://{place}", timeout=LIMIT, retries=0, cache=tmp_path)
        assert time.monotonic() - begun < 2 * LIMIT, caught.value
        assert place in str(caught.value) and "\n" not in str(caught.value)


def test_a_handshake_without_an_end_and_one_who_does_not_listen(tmp_path: Path) -> None:
    with peer(drip(b"\x16"), reads=False) as place, pytest.raises(Fault, match="cannot be reached"):
        exchange.exchange(f"https://{place}", None, LIMIT, 1000)
    begun = time.monotonic()
    with peer(silence, reads=False) as place, pytest.raises(Fault, match=r"cannot be reached within 0\.4 s") as caught:
        exchange.exchange(f"http://{place}", b"x" * 2**25, LIMIT, 1000)
    assert not caught.value.billed  # not all of it was out
    assert time.monotonic() - begun < 2 * LIMIT


def test_the_look_up_of_a_host_and_its_many_addresses_are_in_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # more than it lets wait
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", full.getsockname())] * 50
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(TimeoutError):
            Clock(LIMIT).connect("many", 9)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5 * LIMIT))
    with pytest.raises(TimeoutError):
        Clock(LIMIT).connect("slow", 9)
    assert time.monotonic() - begun < 3 * LIMIT
    monkeypatch.undo()
    with pytest.raises(OSError, match=r"\w"):
        Clock(5.0).connect("nobody.invalid", 9)


def test_the_limit_of_bytes_is_not_the_endpoints_to_choose() -> None:
    assert wire.answer_size(32, 10) < 100_000
    full = 2 + 32 * (2 + 1000 * len("[999, 0.00012345678901234567], "))  # 32 images with all of 1,000 classes
    assert full < wire.answer_size(32, 1000) < 10 * full
    assert wire.answer_size(32, 10**9) == wire.answer_size(10**9, 1) == wire.LARGEST
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(HEAD % 200 + b"Content-Length: 99999999999\r\n\r\n")
        while True:
            sent += connection.send(b" " * 65536)

    with peer(flood) as place, pytest.raises(Fault, match="more than 100,000 bytes"):
        exchange.exchange(f"http://{place}", None, 30.0, 100_000)
    assert sent < 2**24  # what sockets hold


def test_a_million_classes_are_no_reason_to_take_memory(tmp_path: Path) -> None:
    names = ('{"classes": [' + ",".join('""' for _ in range(1_200_000)) + "]}").encode()
    split = load("digits").test.subset(torch.arange(8))
    with serve(lambda s: Answers(torch.zeros(len(s), 1).long(), torch.ones(len(s), 1)), classes=["a"],
               opening=[names], faults=[b" " * (wire.LARGEST + 2)] * 3) as url:  # fmt: skip
        box = Http(url, cache=tmp_path, wait=0.0)
        with pytest.raises(UserError, match=f"more than {wire.LARGEST:,} bytes"):
            box.predict(split)


def test_a_proxy_is_used_where_the_environment_names_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def flat(split: ImageSplit) -> Answers:
        return Answers(torch.zeros(len(split), 1).long(), torch.ones(len(split), 1))

    with serve(flat, classes=["a"]) as url:
        monkeypatch.setenv("http_proxy", url)
        Http("http://nobody.invalid/ask", cache=tmp_path).predict(load("digits").test.subset(torch.arange(2)))
        assert url.images == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command, to make a certificate")
def test_over_tls_straight_and_through_a_tunnel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        ["openssl", *words.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    body = b'{"classes": ["a"], "top": 1}'
    tunnelled = itertools.count()

    def talk(connection: socket.socket) -> None:
        if connection.recv(7, socket.MSG_PEEK) == b"CONNECT":
            connection.recv(4096)
            next(tunnelled)
            connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(4096)
            secure.sendall(HEAD % 200 + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    with peer(talk, reads=False) as place:
        port = place.rpartition(":")[2]
        monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
        with pytest.raises(Fault, match="certificate that cannot be trusted") as caught:
            exchange.exchange(f"https://localhost:{port}", None, 5.0, 1000)
        assert caught.value.final
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        said: list[Any] = [exchange.exchange(f"https://localhost:{port}", None, 5.0, 1000)]
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("https_proxy", f"http://{place}")
        said.append(exchange.exchange("https://localhost:1/", None, 5.0, 1000))
        assert said == [{"classes": ["a"], "top": 1}] * 2 and next(tunnelled) == 1
