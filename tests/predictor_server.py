"""A real endpoint for tests: any predictor behind a socket on 127.0.0.1, with faults when they are asked for.

    with serve(model, faults=[None, 503, "nan"]) as url:
        answers = Http(url, wait=0.0).predict(split)
        assert url.images == len(split) ...

``url`` is the address, and counts: ``url.requests`` POSTs and ``url.images`` in them, all that came and however they
were answered; ``url.seen`` holds the bytes of each decoded image.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from upcycle.core.models import Model
from upcycle.data import ImageSplit
from upcycle.predictors import Answers, Predictor
from upcycle.predictors.local import Local

Fault = None | int | tuple[int, str] | str | bytes | Callable[[BaseHTTPRequestHandler], None]
"""What goes wrong with one request:

* ``None``: nothing;
* a status, for example 503, or with its Retry-After, ``(429, "0.01")``;
* bytes: they are the body in place of JSON;
* a function of the handler, which writes to ``handler.wfile`` what it likes;
* ``slow``: no answer before the server ends; ``drop``: the connection closes; ``half``: in the middle of the body;
  ``stop``: from now on nobody is there;
* ``json`` (cut off), ``count`` (a prediction too few), ``nan``, ``negative``, ``sum`` (too high), ``label`` (out of
  range), ``twice`` (one class), ``classes`` (one pair more an image), ``mixed`` (the first image without
  probability).
"""


class Url(str):
    """An address that counts what comes to it."""

    requests = 0
    images = 0
    seen: list[bytes]


@contextlib.contextmanager
def serve(
    answerer: Model | Predictor | Callable[[ImageSplit], Answers],
    faults: Sequence[Fault] = (),
    *,
    opening: Sequence[Fault] = (),
    classes: Sequence[str] | None = None,
    top: int | None = None,
    labels_only: bool = False,
) -> Iterator[Url]:
    """An endpoint that answers as ``answerer`` does.

    Args:
        answerer: a network, a predictor, or a function from a split (plain pixels in [0, 1]) to answers.
        faults: of the POSTs, in their order; then none.
        opening: of the GETs, in their order; then none.
        classes: their names; of a function they must be given.
        top: answers are cut to so many classes, and said to have them; ``None``: all.
        labels_only: null in place of every probability; ``top`` is 1.
    """
    predictor: Any = Local(answerer) if isinstance(answerer, Model) else answerer
    ask = predictor.predict if isinstance(predictor, Predictor) else predictor
    names = list(classes if classes is not None else predictor.classes)
    top = 1 if labels_only else top
    gets, posts = iter(opening), iter(faults)
    ended, lock = threading.Event(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            with lock:
                fault = next(gets, None)
            self.reply({"classes": names, "top": top}, fault)

        def do_POST(self) -> None:
            images = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["images"]
            pixels = [_decoded(image) for image in images]
            with lock:  # networks are asked by one thread at a time
                url.requests += 1
                url.images += len(images)
                url.seen += [p.tobytes() for p in pixels]
                fault = next(posts, None)
                n = len(pixels)
                batch = torch.from_numpy(np.stack(pixels))
                split = ImageSplit.plain(batch, torch.full((n,), -1), torch.arange(n))
                answers = ask(split)
            pairs = [[[c, None if labels_only else p] for c, p in zip(*row, strict=True)][:top]
                     for row in zip(answers.classes.tolist(), answers.probabilities.tolist(), strict=True)]  # fmt: skip
            self.reply({"predictions": pairs}, fault)

        def reply(self, value: dict[str, Any], fault: Fault) -> None:
            if isinstance(fault, int | tuple):
                status, after = fault if isinstance(fault, tuple) else (fault, None)
                self.send(status, b"not now", {"Retry-After": after} if after is not None else {})
            elif callable(fault):
                fault(self)
            elif fault == "slow":
                ended.wait(30)
            elif fault == "stop":
                server.shutdown()
                server.server_close()
                self.connection.shutdown(socket.SHUT_RDWR)
            elif fault == "drop":
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                body = fault if isinstance(fault, bytes) else json.dumps(_broken(value, fault, len(names))).encode()
                body = body[: len(body) // 2] if fault == "json" else body
                self.send(200, body, {"Content-Length": str(len(body) * 2)} if fault == "half" else {})

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, text in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, text)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client is gone
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = Url(f"http://127.0.0.1:{server.server_port}/")
    url.seen = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        with mock.patch.dict(os.environ, {"no_proxy": "127.0.0.1"}):
            yield url
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _decoded(image: str) -> np.ndarray:
    """uint8 (h, w, c) of a PNG in base64."""
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(image, validate=True)), formats=["PNG"]))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _broken(value: dict[str, Any], fault: Any, k: int) -> dict[str, Any]:
    """An answer with one of the faults that JSON can carry."""
    if fault not in ("count", "nan", "negative", "sum", "label", "twice", "classes", "mixed"):
        assert fault in (None, "json", "half") or isinstance(fault, bytes), fault
        return value
    rows = json.loads(json.dumps(value))["predictions"]
    last = rows[-1][-1]
    if fault == "count":
        rows.pop()
    elif fault == "label":
        last[0] = k
    elif fault == "twice":
        last[0] = rows[-1][0][0]
    elif fault == "classes":
        rows = [[*row, [k, 0.0]] for row in rows]
    elif fault == "mixed":
        rows[0][0][1] = None
    else:
        last[1] = {"nan": float("nan"), "negative": -0.1, "sum": 1.0}[fault]
    return {"predictions": rows}
