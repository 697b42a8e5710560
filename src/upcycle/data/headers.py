"""A first look at encoded images that stay on disk: all that their headers say, in one pass and without decoding.

What is wrong with many images is said before work begins, as it is of images in memory. Damage that only decoding finds
is named when the image is asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from upcycle.core.read import bytes_of
from upcycle.core.reading import Reading
from upcycle.data import cache
from upcycle.data.decode import problem_of, refuse_broken, refuse_sizes
from upcycle.data.on_disk import OnDisk, usual_workers
from upcycle.data.pixels import (
    Form,
    Header,
    brightest,
    decode_one,
    header_of,
    opened,
    reshapes,
    sides_of,
    white_of,
)
from upcycle.data.shares import READ_FIRST, as_table, digest, of_digests

CHUNK = 256  # images in memory at a time, encoded

Content = bytes | Path


class Encoded:
    """Encoded images that any thread can have one by one: files where they lie, and others in a temporary file.

    The rows of a table cannot be had one by one without unpacking hundreds of others. Their bytes are copied to a file
    of their own, which has no name and goes with the process.

    Args:
        where: what to call image i in an error.
    """

    def __init__(self, where: Callable[[int], str]) -> None:
        self.where = where
        self._paths: list[Path | None] = []
        self._ends: list[int] = []  # of each image in the temporary file
        self._file: IO[bytes] | None = None

    def add(self, content: Content) -> None:
        """Add the next image.

        Raises:
            UserError: there is no room on the disk.
        """
        end = self._ends[-1] if self._ends else 0
        if isinstance(content, Path):
            self._paths.append(content)
        else:
            self._paths.append(None)
            end += self._write(content)
        self._ends.append(end)

    def content(self, i: int) -> Content:
        """Image i, encoded, or its file."""
        if (path := self._paths[i]) is not None:
            return path
        start = self._ends[i - 1] if i else 0
        if self._file is None:  # nothing but empty ones
            return b""
        return os.pread(self._file.fileno(), self._ends[i] - start, start)

    def decode(self, i: int, form: Form, draws: np.ndarray | None) -> np.ndarray:
        """See :class:`upcycle.data.on_disk.Source`."""
        return decode_one(self.content(i), form, draws)[0]

    def _write(self, content: bytes) -> int:
        if not content:
            return 0
        self._file = self._file or cache.scratch()
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise cache.no_room(error) from error
        return len(content)


@dataclass(frozen=True)
class Headers:
    """Encoded images of one split, looked at.

    Args:
        source: the images.
        headers: of each, or what is wrong with it.
        digests: uint8 (n, 16), of each.
        whole: the digests are those of all bytes of each.
    """

    source: Encoded
    headers: list[Header | str]
    digests: Tensor
    whole: bool

    @property
    def shares(self) -> Tensor | None:
        """The numbers that draw splits, see :mod:`upcycle.data.shares`, where images were read for their digests."""
        return of_digests(self.digests) if self.whole else None

    def read(self, order: Tensor, form: Form, trained: int, num_workers: int | None) -> tuple[OnDisk, Reading, int]:
        """The images ``order``, of which the first ``trained`` are trained on; see :func:`upcycle.data.decode.decode`.

        Returns:
            the images, how they are read, and how many had other proportions than the size that they are brought to.

        Raises:
            UserError: naming the images whose headers are damaged, or sizes that differ.
        """
        order_list = order.tolist()
        broken = [f"{self.source.where(i)} ({h})" for i in order_list if isinstance(h := self.headers[i], str)]
        refuse_broken(broken, len(order))
        found = [(i, h) for i in order_list if not isinstance(h := self.headers[i], str)]
        if any(h.deep for _, h in found) and not form.reading.white:
            form = form.white(self._white([i for i, h in found[:trained] if h.deep]))
        if form.channels is None:
            form = replace(form, channels=1 if all(h.grey for _, h in found) else 3)
        reshaped = 0
        if form.size is None:
            sizes = Counter(h.size for _, h in found)
            refuse_sizes(sizes, {h.size: self.source.where(i) for i, h in reversed(found)})
            sides = next(iter(sizes))
        else:
            sides = sides_of(form.size)
            reshaped = sum(reshapes(h.size, sides) for _, h in found)
        images = OnDisk(
            sources=((self.source, form),),
            places=torch.stack([torch.zeros_like(order), order], 1),
            digests=self.digests[order],
            one=(*sides, form.channels or 3),
            num_workers=usual_workers() if num_workers is None else num_workers,
        )
        return images, form.reading, reshaped

    def _white(self, deep: Iterable[int]) -> int:
        largest = 0
        for i in deep:
            with contextlib.suppress(Exception), opened(self.source.content(i)) as image:  # named when it is decoded
                largest = max(largest, brightest(image))
        return white_of(largest)


def look(contents: Iterable[Content], where: Callable[[int], str]) -> Headers:
    """Look at encoded images.

    Above :data:`upcycle.data.shares.READ_FIRST` bytes files are no longer read whole: the digest of a file is then that
    of its name, size and date.
    """
    source, headers, digests, total = Encoded(where), [], [], 0
    iterator = iter(contents)
    with ThreadPoolExecutor(usual_workers()) as pool:
        while chunk := list(itertools.islice(iterator, CHUNK)):
            for content in chunk:
                source.add(content)
            for header, found, size in pool.map(_read if total <= READ_FIRST else _glance, chunk):
                headers.append(header)
                digests.append(found)
                total += size
    return Headers(source, headers, as_table(digests), total <= READ_FIRST)


def _read(content: Content) -> tuple[Header | str, bytes, int]:
    """The header of an image, the digest of its bytes, and their number."""
    try:
        data = bytes_of(content) if isinstance(content, Path) else content
    except OSError as error:
        return problem_of(error), digest(b""), 0
    return _header(data), digest(data), len(data)


def _glance(content: Content) -> tuple[Header | str, bytes, int]:
    """The same without reading a file whole."""
    if isinstance(content, bytes):
        return _read(content)
    try:
        about = content.stat()
    except OSError as error:
        return problem_of(error), digest(b""), 0
    name = f"{content.name} {about.st_size} {about.st_mtime_ns}"
    return _header(content), digest(os.fsencode(name)), about.st_size


def _header(content: Content) -> Header | str:
    try:
        return header_of(content)
    except Exception as error:  # decoders raise whatever they like on damaged files
        return problem_of(error)
