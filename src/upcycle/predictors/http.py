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

import hashlib
import itertools
import json
import math
import os
import random
import time
import urllib.parse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from upcycle.core.addresses import check_url
from upcycle.core.errors import UserError, require, shown
from upcycle.data import ImageSplit
from upcycle.predictors import wire
from upcycle.predictors.answers import Answers, require_shape
from upcycle.predictors.cache import AnswerFile
from upcycle.predictors.exchange import PATIENCE, Fault, exchange
from upcycle.predictors.wire import Answer, as_keys, as_png

T = TypeVar("T")

BAD_ANSWERS = 3  # so many in a row are no accident
LONGEST = 60.0  # seconds: no back-off is longer


class Http:
    """An HTTP endpoint as a black box; the module says what it must speak.

    Each different image is asked for once, ever: answers are kept on disk, batch by batch, so that a command which was
    stopped goes on where it was, and a second one asks nothing; of two at a time one waits, and takes what the other
    was told. A failed try is repeated after ``wait`` seconds, then twice that and so on, at most 60, with a jitter, and
    not before the endpoint's ``Retry-After``.

    The budget counts images that may have been billed: those that were answered, also badly, or whose connection broke
    or timed out after they were sent; not those refused (status 4xx or 503) or never sent. It counts all that was ever
    sent to this address, by whatever process, as the cache has it: images are written down there before they leave, so
    that those of a process that was killed while it waited are counted, too. It is never exceeded: where the images
    that are still to ask are more than what is left of it, nothing is sent.

    Args:
        url: ``http://`` or ``https://``. What follows a ``?`` is sent and never shown. A key that goes in a header
            stands in the environment variable ``UPCYCLE_API_HEADER``, for example ``api.example.org Authorization:
            Bearer KEY``: the host that gets it, and the header; one a line.
        batch_size: images a request.
        budget: the most images that may be billed, over all commands with this cache; ``None``: no limit.
        cache: the directory of the answers; ``None``: ``upcycle/answers`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. One
            SQLite file an endpoint, which keeps no image, only its hash.
        timeout: seconds for a request and its answer, from the look-up of the host to the last byte.
        retries: how often a request is repeated; for answers that can be read but are wrong, twice at the most.
        wait: seconds before the first repetition, less up to half of them at random.

    Attributes:
        name: the address without what follows its ``?``.
        digest: of what follows the ``?``, so that a run notices another one; ``None`` where nothing does.
        classes: what the endpoint said they are.
        top: classes an answer, k for all.
        queries: images that this object sent and that may have been billed.
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
        hidden = url.removeprefix(self.name)
        self.digest = hashlib.sha256(hidden.encode()).hexdigest() if hidden else None
        self.batch_size, self.budget, self.timeout, self.retries, self.wait = batch_size, budget, timeout, retries, wait
        self.queries = self.cached = self.retried = 0
        self._random = random.Random(0)
        self.classes, self.top = self._repeated(self._facts, asked=False)
        directory = Path(cache) if cache is not None else _home()
        file = f"{urllib.parse.urlsplit(url).hostname}-{hashlib.sha256(url.encode()).hexdigest()[:16]}.sqlite"
        self._answers = AnswerFile(directory / file, self.name, {"classes": list(self.classes), "top": self.top})

    def report(self) -> dict[str, int]:
        """``queries``, ``cached`` and ``retries`` so far, and what was ``billed`` over all commands with this cache."""
        billed = self._answers.billed()
        return {"queries": self.queries, "cached": self.cached, "retries": self.retried, "billed": billed}

    def predict(self, split: ImageSplit) -> Answers:
        """See :class:`upcycle.predictors.Predictor`. Float images are rounded to 8 bits, which is what is sent."""
        require_shape(split, (None, None, None), self.name)
        require(split.shape[0] in (1, 3), f"{self.name} takes images with 1 or 3 channels, not {split.shape[0]}.")
        keys, images = as_keys(split)
        known = self._answers.read(keys)
        todo = [key for key in images if key not in known]
        self.cached += len(keys) - len(todo)
        self._afford(todo)
        # Cut once: who goes on, or asks beside, has the same batches.
        for first in range(0, len(todo), self.batch_size):
            batch = {key: images[key] for key in todo[first : first + self.batch_size]}
            like = next(iter(known.values()), None)
            known |= self._repeated(partial(self._turn, batch, todo[first:], like), todo[first:])
        if problem := wire.mixed(known.values()):
            raise self._answers.damaged(problem)
        classes = np.stack([known[key].classes for key in keys])
        probabilities = np.stack([known[key].probabilities for key in keys])
        return Answers(torch.from_numpy(classes).long(), torch.from_numpy(probabilities).nan_to_num(nan=1.0))

    def require_budget(self, *splits: ImageSplit) -> None:
        """Raise :class:`UserError` where the budget does not allow to ask for all images of ``splits``."""
        self._afford(list({key: None for split in splits for key in as_keys(split)[1]}))

    def _facts(self) -> tuple[tuple[str, ...], int]:
        return wire.read_facts(exchange(self.url, None, self.timeout, wire.FACTS_SIZE))

    def _turn(self, batch: dict[bytes, np.ndarray], left: Sequence[bytes], like: Answer | None) -> dict[bytes, Answer]:
        """One try to get the answers to ``batch``, of ``left`` which are still to ask; nobody else asks meanwhile."""
        with self._answers.turn(PATIENCE + self.timeout):
            known = self._answers.read(batch)  # another process may have asked by now
            images = {key: pixels for key, pixels in batch.items() if key not in known}
            self.cached += len(known)
            if not images:
                return known
            self._check_budget(left)
            body = json.dumps({"images": [as_png(p) for p in images.values()]}).encode()
            n, k, top = len(images), len(self.classes), self.top
            if not self._answers.reserve(n, self.budget):
                raise self._too_few(n)
            self.queries += n
            try:
                said = exchange(self.url, body, self.timeout, wire.answer_size(n, top))
                fresh = dict(zip(images, wire.read_answers(said, n, k, top, like), strict=True))
            except Fault as fault:
                if not fault.billed:
                    self._answers.release(n)
                    self.queries -= n
                raise
            self._answers.write(fresh)
            return known | fresh

    def _afford(self, left: Sequence[bytes]) -> None:
        """Raise UserError if the images that are left to ask are more than what is left of the budget."""
        if self.budget is None or not left or len(left) <= self.budget - self._answers.billed():
            return
        with self._answers.turn(PATIENCE + self.timeout):  # what another process waits for now may be of these
            self._check_budget(left)

    def _check_budget(self, left: Sequence[bytes]) -> None:
        """:meth:`_afford` in a turn, when no answer is awaited."""
        if self.budget is None or len(left) <= self.budget - self._answers.billed():
            return
        n = len(left) - len(self._answers.read(left))
        if n > max(0, self.budget - self._answers.billed()):
            raise self._too_few(n)

    def _too_few(self, left: int) -> UserError:
        billed = self._answers.billed()
        used = f", of which {billed:,} are used, by all commands with this cache together" if billed else ""
        return UserError(
            f"{self.name} is still to be asked for {left:,} images, more than the budget of {self.budget:,} "
            f"allows{used}; nothing more was sent, and what was answered is kept: the same command with a budget of "
            f"{billed + left:,} goes on from there."
        )

    def _repeated(self, once: Callable[[], T], left: Sequence[bytes] = (), *, asked: bool = True) -> T:
        """Give what ``once`` gives, after as many tries as it takes or is allowed.

        Args:
            left: images that are still to ask.
            asked: whether images are in it, so that something is kept.
        """
        bad = 0
        for attempt in itertools.count():
            try:
                return once()
            except Fault as fault:
                bad = bad + 1 if fault.bad else 0
                if fault.final or attempt == self.retries or bad == BAD_ANSWERS:
                    raise UserError(self._failure(fault, attempt + 1, asked)) from None
                if asked:
                    self._afford(left)
                self.retried += 1
                backoff = min(self.wait * 2.0 ** min(attempt, 60), LONGEST) * (0.5 + 0.5 * self._random.random())
                time.sleep(max(backoff, fault.after))
        raise AssertionError  # the loop has no other end

    def _failure(self, fault: Fault, tries: int, asked: bool) -> str:
        tried = "" if fault.final else f", and is given up after {tries} {'try' if tries == 1 else 'tries'}"
        kept = "; what was answered is kept: the same command goes on from there" if asked else ""
        return f"{self.name} {fault.reason}{tried}{kept}."


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upcycle" / "answers"
