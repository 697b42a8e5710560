"""One limit of time around all that an endpoint can do with it, and one of bytes that it has no say in."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hostile_answers import ENDLESS, FACTS, HEAD, TO_GET, TO_POST, Talk, drip, peer, said
from tests.predictor_server import serve
from upcycle.core.clock import Clock
from upcycle.core.errors import UserError
from upcycle.data import ImageSplit, load
from upcycle.predictors import Answers, exchange, wire
from upcycle.predictors.exchange import Fault
from upcycle.predictors.http import Http

LIMIT = 0.4  # seconds


@pytest.mark.parametrize("talk", ENDLESS.values(), ids=ENDLESS.keys())
def test_every_wait_has_what_is_left_of_one_limit(talk: Talk, tmp_path: Path) -> None:
    with peer(talk) as place:
        begun = time.monotonic()
        with pytest.raises(UserError) as caught:
            Http(f"http://{place}", timeout=LIMIT, retries=0, cache=tmp_path)
        assert time.monotonic() - begun < 2 * LIMIT, caught.value
        assert place in str(caught.value) and "\n" not in str(caught.value)


SHORT = {name: (talk, None) for name, talk in TO_GET.items() if not name.startswith("without an end")}
SHORT |= {name: (said(FACTS), talk) for name, talk in TO_POST.items()}


@pytest.mark.parametrize(("get", "post"), SHORT.values(), ids=SHORT.keys())
def test_what_means_harm_is_one_sentence(get: Talk, post: Talk | None, tmp_path: Path) -> None:
    with peer(get, post) as place, pytest.raises(UserError) as caught:
        box = Http(f"http://{place}", timeout=5.0, retries=0, cache=tmp_path)
        box.predict(load("digits").test.subset(torch.arange(2)))
    text = str(caught.value)
    assert place in text and text.isprintable() and len(text) < 600 and "Traceback" not in text


def test_a_handshake_without_an_end_and_one_who_does_not_listen(tmp_path: Path) -> None:
    with peer(drip(b"\x16"), reads=False) as place, pytest.raises(Fault, match="cannot be reached"):
        exchange.exchange(f"https://{place}", None, LIMIT, 1000)
    begun = time.monotonic()
    with (
        peer(lambda _: time.sleep(5 * LIMIT), reads=False) as place,
        pytest.raises(Fault, match=r"cannot be reached within 0\.4 s") as caught,
    ):
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
    with pytest.raises(Fault, match="names 1,000,000 classes, and at most 100,000 are taken"):
        wire.read_facts({"classes": ["a"] * 1_000_000})
    names = ('{"classes": [' + ",".join('""' for _ in range(100_000)) + "]}").encode()
    split = load("digits").test.subset(torch.arange(8))
    with serve(
        lambda s: Answers(torch.zeros(len(s), 1).long(), torch.ones(len(s), 1)),
        classes=["a"],
        opening=[names],
        faults=[b" " * (wire.LARGEST + 2)] * 3,
    ) as url:
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
        check=True,
        capture_output=True,
    )
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
