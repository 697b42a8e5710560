"""A classifier behind an HTTP endpoint.

The wire protocol is our own and small, so that a few lines put it before any API:

``GET URL`` answers with what there is to ask::

    {"classes": ["cat", "dog", "bird"], "top": 2}

``classes`` are the names of the k classes, ``top`` is how many of them an answer has, or null for all.

``POST URL`` with images as PNG files in base64, grey or RGB, 8 bits::

    {"images": ["iVBORw0KGgo...", "iVBORw0KGgo..."]}

answers with as many lists of ``top`` pairs [class index, probability]::

    {"predictions": [[[1, 0.9], [0, 0.07]], [[2, 0.5], [1, 0.4]]]}

Pairs come in any order. Where the API gives labels only, ``top`` is 1 and the probability null. An adapter that cannot
answer now says so with status 429 or 503, and ``Retry-After`` if it knows when it will; with any other status of 4xx it
refuses, and its text is shown.

A whole adapter, with ``ask`` (a PNG file in; pairs out) and ``NAMES`` for the API::

    import base64, http.server, json

    class Adapter(http.server.BaseHTTPRequestHandler):
        def answer(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer({"classes": NAMES, "top": 1})

        def do_POST(self):
            images = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["images"]
            self.answer({"predictions": [ask(base64.b64decode(image)) for image in images]})

    http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Adapter).serve_forever()
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import http.client
import io
import itertools
import json
import math
import os
import random
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from upcycle.core.errors import UserError, one_line, require
from upcycle.data import ImageSplit
from upcycle.predictors.answers import Answers, require_shape
from upcycle.predictors.cache import Answer, AnswerFile

T = TypeVar("T")

PASSING = (429, 500, 502, 503, 504)
"""Statuses that are worth another try."""
REFUSING = (429, 503)
"""Those of them with which nothing was answered, and so nothing billed."""
BAD_ANSWERS = 3  # so many in a row are no accident
LONGEST = 60.0  # seconds: no back-off is longer
PATIENCE = 600.0  # seconds: an endpoint that wants more is left
TOLERANCE = 1e-2  # by how much probabilities may miss a sum of 1: APIs round
EXACT = 1e-5  # what misses 1 by no more is left as it is


class Http:
    """An HTTP endpoint as a black box; the module says what it must speak.

    Each different image is asked for once, ever: answers are kept on disk, batch by batch, so that a command which was
    stopped goes on where it was, and a second one asks nothing. A failed try is repeated after ``wait`` seconds, then
    twice that and so on, at most 60, with a jitter, and not before the endpoint's ``Retry-After``.

    The budget counts images that may have been billed: those that were answered, also badly, or whose connection broke
    or timed out after they were sent; not those refused (status 4xx or 503) or never sent. It is never exceeded: where
    the images that are still to ask are more than what is left of it, nothing is sent. It counts from the making of
    this object, and not what earlier ones have used.

    Args:
        url: ``http://`` or ``https://``. What follows a ``?`` is sent and never shown.
        batch_size: images a request.
        budget: the most images that may be billed; ``None``: no limit.
        cache: the directory of the answers; ``None``: ``upcycle/answers`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. One
            SQLite file an endpoint, which keeps no image, only its hash.
        timeout: seconds for a request and its answer.
        retries: how often a request is repeated; for answers that can be read but are wrong, twice at the most.
        wait: seconds before the first repetition, less up to half of them at random.

    Attributes:
        name: the address without what follows its ``?``.
        classes: what the endpoint said they are.
        top: classes an answer, k for all.
        queries: images sent that may have been billed.
        cached: images that were not sent, because the disk or an equal image knew the answer.
        retried: requests that were repeated.

    Raises:
        UserError: a wrong address or option, an endpoint that does not answer, answers that make no sense, or other
            classes than the cache was made with.
    """

    def __init__(
        self,
        url: str,
        *,
        batch_size: int = 32,
        budget: int | None = None,
        cache: Path | None = None,
        timeout: float = 30.0,
        retries: int = 5,
        wait: float = 0.5,
    ) -> None:
        check_url(url)
        require(batch_size >= 1, f"batch_size must be at least 1, not {batch_size}.")
        require(budget is None or budget >= 0, f"budget must be a number of images, not {budget}.")
        require(0 < timeout < math.inf, f"timeout must be a positive number of seconds, not {timeout}.")
        require(retries >= 0, f"retries must be 0 or more, not {retries}.")
        require(0 <= wait < math.inf, f"wait must be a number of seconds, not {wait}.")
        self.url, self.name = url, shown(url)
        self.batch_size, self.budget, self.timeout, self.retries, self.wait = batch_size, budget, timeout, retries, wait
        self.queries = self.cached = self.retried = 0
        self._random = random.Random(0)
        self.classes, self.top = self._request(None, _read_facts)
        directory = Path(cache) if cache is not None else _home()
        file = f"{urllib.parse.urlsplit(url).hostname}-{hashlib.sha256(url.encode()).hexdigest()[:16]}.sqlite"
        self._answers = AnswerFile(directory / file, self.name, {"classes": list(self.classes), "top": self.top})

    def report(self) -> dict[str, int]:
        """``queries``, ``cached`` and ``retries`` so far."""
        return {"queries": self.queries, "cached": self.cached, "retries": self.retried}

    def predict(self, split: ImageSplit) -> Answers:
        """See :class:`upcycle.predictors.Predictor`. Float images are rounded to 8 bits, which is what is sent."""
        require_shape(split, (None, None, None), self.name)
        require(split.shape[0] in (1, 3), f"{self.name} takes images with 1 or 3 channels, not {split.shape[0]}.")
        keys, images = as_keys(split)
        known = self._answers.read(keys)
        todo = [(key, p) for key, p in images.items() if key not in known]
        self.cached += len(keys) - len(todo)
        self._afford(len(todo))
        for first in range(0, len(todo), self.batch_size):
            batch = dict(todo[first : first + self.batch_size])
            fresh = self._ask(list(batch.values()), len(todo) - first, next(iter(known.values()), None))
            found = dict(zip(batch, fresh, strict=True))
            self._answers.write(found)
            known |= found
        classes = np.stack([known[key].classes for key in keys])
        probabilities = np.stack([known[key].probabilities for key in keys])
        return Answers(torch.from_numpy(classes).long(), torch.from_numpy(probabilities).nan_to_num(nan=1.0))

    def require_budget(self, *splits: ImageSplit) -> None:
        """Raise :class:`UserError` where the budget does not allow to ask for all images of ``splits``."""
        images = {key for split in splits for key in as_keys(split)[1]}
        self._afford(len(images) - len(self._answers.read(images)))

    def _ask(self, pixels: Sequence[np.ndarray], left: int, like: Answer | None) -> list[Answer]:
        body = json.dumps({"images": [as_png(p) for p in pixels]}).encode()
        k, top = len(self.classes), self.top
        return self._request(body, lambda said: _read_answers(said, len(pixels), k, top, like), len(pixels), left)

    def _afford(self, left: int) -> None:
        """Raise UserError if the images that are left to ask are more than what is left of the budget."""
        if self.budget is None or left <= self.budget - self.queries:
            return
        used = f", of which {self.queries:,} are used" if self.queries else ""
        more = " with a larger budget" if left > self.budget else ""  # what is kept costs nothing the next time
        raise UserError(
            f"{self.name} is still to be asked for {left:,} images, more than the budget of {self.budget:,} "
            f"allows{used}; nothing more was sent, and what was answered is kept: the same command{more} goes on "
            "from there."
        )

    def _request(self, body: bytes | None, read: Callable[[Any], T], images: int = 0, left: int = 0) -> T:
        """What ``read`` makes of the endpoint's answer, after as many tries as it takes or is allowed.

        Args:
            body: of a POST; ``None`` for a GET.
            images: how many are in it.
            left: how many are still to ask, these included.
        """
        limit = 2**22 + (100 * images * self.top if images else 0)  # bytes of an answer, generously
        bad = 0
        for attempt in itertools.count():
            self.queries += images  # before anything else can happen to it
            try:
                return read(_exchange(self.url, body, self.timeout, limit))
            except _Fault as fault:
                if not fault.billed:
                    self.queries -= images
                bad = bad + 1 if fault.bad else 0
                if fault.final or attempt == self.retries or bad == BAD_ANSWERS:
                    raise UserError(self._failure(fault, attempt + 1, bool(images))) from None
                self._afford(left)
                self.retried += 1
                backoff = min(self.wait * 2.0 ** min(attempt, 60), LONGEST) * (0.5 + 0.5 * self._random.random())
                time.sleep(max(backoff, fault.after))
        raise AssertionError  # the loop has no other end

    def _failure(self, fault: _Fault, tries: int, asked: bool) -> str:
        tried = "" if fault.final else f", and is given up after {tries} {'try' if tries == 1 else 'tries'}"
        kept = "; what was answered is kept: the same command goes on from there" if asked else ""
        return f"{self.name} {fault.reason}{tried}{kept}."


def check_url(url: str) -> None:
    """Raise UserError for what is no address of an endpoint."""
    try:
        parts = urllib.parse.urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        secret = parts.username is not None or parts.password is not None
    except ValueError:
        whole = secret = False
    plain = url.isascii() and url.isprintable() and " " not in url
    require(whole and plain, f"{shown(url)!r} is no address of an endpoint; it should read http://HOST:PORT/PATH.")
    require(not secret, f"An address carries no name and password: leave out what stands before the @ in {shown(url)} "
            "and let an adapter add it.")  # fmt: skip


def shown(url: str) -> str:
    """The address as it may be shown: without what follows a ``?`` or ``#``, or stands before an ``@``."""
    address = url.partition("?")[0].partition("#")[0]
    scheme, slashes, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"


# -- images ----------------------------------------------------------------------------------------------------


def as_bytes(split: ImageSplit) -> np.ndarray:
    """The images as what is sent: uint8 (n, h, w, c)."""
    pixels = split.pixels()
    if pixels.dtype == torch.uint8:
        return pixels.contiguous().numpy()
    return pixels.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def as_keys(split: ImageSplit) -> tuple[list[bytes], dict[bytes, np.ndarray]]:
    """What answers are kept under, for each image; and the pixels of each different one."""
    pixels = as_bytes(split)
    keys = [hashlib.sha256(f"{p.shape}".encode() + p.tobytes()).digest() for p in pixels]
    return keys, dict(zip(keys, pixels, strict=True))


def as_png(pixels: np.ndarray) -> str:
    """uint8 (h, w, c) as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# -- one exchange ----------------------------------------------------------------------------------------------


class _Fault(Exception):
    """A try that failed.

    Args:
        reason: what the endpoint did, to follow its name in a sentence.
        billed: whether images that were sent may have been billed.
        after: seconds that the endpoint asks to wait.
        bad: an answer came, and made no sense.
        final: another try would not help.
    """

    def __init__(
        self, reason: str, *, billed: bool = True, after: float = 0.0, bad: bool = False, final: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.billed, self.after, self.bad, self.final = reason, billed, after, bad, final


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: a POST would become a GET, and images would go where nobody said."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _exchange(url: str, body: bytes | None, timeout: float, limit: int) -> Any:
    """The JSON that a request is answered with, of at most ``limit`` bytes."""
    headers = {"Accept": "application/json", "User-Agent": "upcycle"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url, body, headers)
    deadline = time.monotonic() + timeout
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=timeout) as response:
            content = _content(response, limit, deadline)
    except urllib.error.HTTPError as error:
        with error:
            raise _status(error) from None
    except urllib.error.URLError as error:  # before the request was out as a whole
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise _Fault(f"has a certificate that cannot be trusted ({_text(error.reason)})", billed=False,
                         final=True) from None  # fmt: skip
        raise _Fault(f"cannot be reached ({_text(error.reason)})", billed=False) from None
    except TimeoutError:
        raise _Fault(f"gives no whole answer within {timeout:g} seconds") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Fault(f"breaks the connection ({_text(error)})") from None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Fault(f"gives an answer that is no JSON ({_text(error)})", bad=True) from None


def _content(response: Any, limit: int, deadline: float) -> bytes:
    parts, size = [], 0
    while part := response.read1(65536):  # what is there, so that an endpoint that drips meets the deadline
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _Fault(f"gives an answer of more than {limit:,} bytes", bad=True)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:  # of the bytes that it had announced
        raise ConnectionError(f"{response.length:,} bytes short")
    return b"".join(parts)


def _status(error: urllib.error.HTTPError) -> _Fault:
    """The fault that a status other than 2xx is."""
    status = f"{error.code} {_text(error.reason or '')}".strip()
    if error.code in PASSING:
        billed, after = error.code not in REFUSING, _seconds(error.headers.get("Retry-After"))
        long = after > PATIENCE
        asks = f" and asks to wait {after:,.0f} seconds" if long else ""
        return _Fault(f"answers with {status}{asks}", billed=billed, after=after, final=long)
    if 300 <= error.code < 400:
        place = shown(_text(error.headers.get("Location") or "another address"))
        return _Fault(f"points to {place} ({status}); give the address that answers", billed=False, final=True)
    try:
        said = _text(error.read(300).decode(errors="replace"))
    except (OSError, http.client.HTTPException, ValueError):
        said = ""
    return _Fault(f"refuses with {status}" + (f" ({said})" if said else ""), billed=error.code >= 500, final=True)


def _seconds(after: str | None) -> float:
    """How long a ``Retry-After`` (seconds or a date) asks to wait; 0 for one that makes no sense."""
    if after is None:
        return 0.0
    try:
        seconds = float(after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _text(said: object) -> str:
    """A short piece of one line of what a stranger said."""
    if isinstance(said, OSError) and said.strerror:
        said = said.strerror
    text = one_line(said) if isinstance(said, BaseException) else str(said)
    clean = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(clean.split())[:200].rstrip(". ")


# -- what was said ---------------------------------------------------------------------------------------------


def _bad(reason: str) -> _Fault:
    return _Fault(f"gives an answer that makes no sense: {reason}", bad=True)


def _read_facts(said: Any) -> tuple[tuple[str, ...], int]:
    """Class names and how many an answer has, from the answer to a GET."""
    classes = said.get("classes") if isinstance(said, dict) else None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise _bad('a GET should give {"classes": [names], "top": number or null}')
    if not all(name.isprintable() for name in classes):
        raise _bad("the name of a class has characters that cannot be printed")
    top = said.get("top")
    top = len(classes) if top is None else top
    if type(top) is not int or not 1 <= top <= len(classes):
        raise _bad(f"top is {_brief(top)} of {len(classes)} classes")
    return tuple(classes), top


def _read_answers(said: Any, n: int, k: int, top: int, like: Answer | None) -> list[Answer]:
    """The answer to each of ``n`` images, in probabilities or labels only as ``like`` was, and all others are."""
    rows = said.get("predictions") if isinstance(said, dict) else None
    if not isinstance(rows, list):
        raise _bad('a POST should give {"predictions": [...]}')
    if len(rows) != n:
        raise _bad(f"{len(rows):,} predictions for {n:,} images")
    answers = [_read_answer(row, k, top) for row in rows]
    if len({answer.labels_only for answer in (*answers, *([like] if like is not None else []))}) > 1:
        raise _bad("probabilities for some images, and labels only for others")
    return answers


def _read_answer(row: Any, k: int, top: int) -> Answer:
    if not isinstance(row, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in row):
        raise _bad("a prediction is no list of pairs [class index, probability]")
    if len(row) != top:
        raise _bad(f"{len(row):,} classes for an image instead of {top:,}")
    classes = [c for c, _ in row]
    for c in classes:
        if type(c) is not int or not 0 <= c < k:
            raise _bad(f"class {_brief(c)}, and the {k:,} classes are 0 to {k - 1:,}")
    if len(set(classes)) < top:
        raise _bad("an image has one class twice")
    if top == 1 and row[0][1] is None:
        return Answer(np.array(classes, np.int32), np.array([np.nan], np.float32))
    for _, p in row:
        if type(p) not in (int, float) or not 0 <= p <= 1 + TOLERANCE:  # NaN is not, either
            raise _bad(f"probability {_brief(p)}")
    p = np.array([float(p) for _, p in row])
    total = float(p.sum())
    if total > 1 + TOLERANCE or (top == k and total < 1 - TOLERANCE):
        raise _bad(f"the {top:,} probabilities of an image sum to {total:.4g}")
    if total > 1 + EXACT or (top == k and total < 1 - EXACT):
        p /= total
    best = np.argsort(-p, kind="stable")
    return Answer(np.array(classes, np.int32)[best], p[best].astype(np.float32))


def _brief(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else json.dumps(value)[:60]


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upcycle" / "answers"
