"""Words of an endpoint that could do harm: bytes in the place of its answer to a GET, or to the first POST."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

Talk = Callable[[socket.socket], None]
"""Writes whatever it likes to who has asked."""

HEAD = b"HTTP/1.1 %d Some\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
FACTS = b'{"classes": ["a", "b", "c"], "top": 2}'


def said(content: bytes, head: bytes = HEAD % 200) -> Talk:
    """Write a whole answer."""
    return lambda connection: connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)


def raw(content: bytes) -> Talk:
    """Write bytes and go."""
    return lambda connection: connection.sendall(content)


def drip(piece: bytes, first: bytes = b"", pause: float = 0.02) -> Talk:
    """Write ``first``, then ``piece`` now and then for ever."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return talk


def silence(connection: socket.socket) -> None:
    """Say nothing, until who has asked goes."""
    while connection.recv(65536):
        pass


@contextlib.contextmanager
def peer(get: Talk, post: Talk | None = None, *, reads: bool = True) -> Iterator[str]:
    """Host and port of somebody who answers as these do.

    Args:
        get: to a GET, and to all where there is no ``post``.
        reads: hears what is asked before it answers.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def one(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                talk = post if reads and _heard(connection) == b"POST" else None
                (talk or get)(connection)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=one, args=server.accept()[:1], daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}/"
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # which ends the wait for another


def _heard(connection: socket.socket) -> bytes:
    """Read one request; its method."""
    head = b""
    while b"\r\n\r\n" not in head and (part := connection.recv(65536)):
        head += part
    head, _, body = head.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    left = length - len(body)
    while left > 0 and (part := connection.recv(65536)):
        left -= len(part)
    return head.partition(b" ")[0]


ENDLESS: dict[str, Talk] = {
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
    "a body without an end": drip(b" " * 65536, HEAD % 200 + b"\r\n", pause=0.0),
    "chunks without an end": drip(b"10000\r\n" + b" " * 65536 + b"\r\n", HEAD % 200 + CHUNKED, pause=0.0),
}
_NAMES = {
    "no JSON": b"<html>",
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "no end of lists": b"[" * 100_000,
    "bytes that are no text": b"\xff\xfe\x00\x01",
    "a number of a million digits": b'{"classes": ["a"], "top": ' + b"9" * 1_000_000 + b"}",
    "no classes": b'{"classes": []}',
    "classes that are null": b'{"classes": null}',
    "classes that are numbers": b'{"classes": [1, 2]}',
    "classes in a mapping": b'{"classes": {"a": 1}}',
    "a million classes": b'{"classes": [' + b'"",' * 1_000_000 + b'""]}',
    "a name with an escape sequence": json.dumps({"classes": ["\x1b]0;x\x07", "b"]}).encode(),
    "a name of half a character": b'{"classes": ["\\ud800", "b"]}',
    "top of 0": b'{"classes": ["a", "b"], "top": 0}',
    "top beyond all": b'{"classes": ["a", "b"], "top": 1000000000000}',
    "top that is true": b'{"classes": ["a", "b"], "top": true}',
    "top that is no whole number": b'{"classes": ["a", "b"], "top": 1.5}',
    "five megabytes": b" " * 5_000_000,
}
_STATUS = {
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "a status of text": b"HTTP/1.1 OK fine\r\n\r\n",
    "a status beyond all": b"HTTP/1.1 99999 OK\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "a header of a megabyte": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
    "ten thousand headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    "a length below 0": HEAD % 200 + b"Content-Length: -5\r\n\r\n{}",
    "a length of text": HEAD % 200 + b"Content-Length: all\r\n\r\n{}",
    "a length beyond all": HEAD % 200 + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    "a chunk beyond all": HEAD % 200 + CHUNKED + b"ffffffffffffffff\r\n{}",
    "a chunk of text": HEAD % 200 + CHUNKED + b"zz\r\n{}",
    "a redirection to a file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    "a redirection to nowhere": b"HTTP/1.1 301 Moved\r\n\r\n",
    "a refusal with an escape sequence": b"HTTP/1.1 401 No\x1b[31m\r\n\r\n\x1b]0;pwned\x07\x1b[2J",
    "a wait of a year": b"HTTP/1.1 429 Wait\r\nRetry-After: 31536000\r\n\r\n",
    "a wait without an end": b"HTTP/1.1 503 Wait\r\nRetry-After: 1e309\r\n\r\n",
    "a bomb of gzip": HEAD % 200 + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(2**20)) * 100,
}
_PREDICTIONS = {
    "no predictions": b"{}",
    "predictions that are null": b'{"predictions": null}',
    "fewer than images": b'{"predictions": []}',
    "no end of lists": b'{"predictions": ' + b"[" * 50_000,
    "no pairs": b'{"predictions": [[1, 2], [1, 2]]}',
    "triples": b'{"predictions": [[[0, 0.5, 1], [1, 0.5, 1]], [[0, 0.5], [1, 0.5]]]}',
    **{
        name: b'{"predictions": [[[%s, %s], [1, 0.1]], [[0, 0.5], [1, 0.5]]]}' % pair
        for name, pair in {
            "a class below 0": (b"-1", b"0.5"),
            "a class beyond all": (b"99999999999999999999", b"0.5"),
            "a class that is text": (b'"a"', b"0.5"),
            "a class that is true": (b"true", b"0.5"),
            "a class that is no whole number": (b"0.5", b"0.5"),
            "one class twice": (b"1", b"0.5"),
            "a probability below 0": (b"0", b"-0.5"),
            "a probability that is NaN": (b"0", b"NaN"),
            "a probability beyond all": (b"0", b"1e999"),
            "a probability that is text": (b"0", b'"1"'),
            "a probability that is null": (b"0", b"null"),
            "a sum of more than 1": (b"0", b"1.0"),
        }.items()
    },
}
TO_GET: dict[str, Talk] = {
    **{f"classes: {name}": said(content) for name, content in _NAMES.items()},
    **{f"HTTP: {name}": raw(content) for name, content in _STATUS.items()},
    **{f"without an end: {name}": talk for name, talk in ENDLESS.items()},
}
TO_POST: dict[str, Talk] = {
    **{f"answers: {name}": said(content) for name, content in _PREDICTIONS.items()},
    "answers: a hundred megabytes": drip(b" " * 65536, HEAD % 200 + b"Content-Length: 100000000\r\n\r\n", pause=0.0),
}
