"""Images that stay on disk: they stand in place of the pixels of a split, and are decoded when a batch asks for them.

Reading runs ahead. Who knows what will be asked for says so (:meth:`OnDisk.ahead`), and threads decode it meanwhile:
Pillow leaves Python's lock alone while it works. That decides when an image is decoded and never what comes out, so any
number of threads gives the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.data.collection import listed
from upcycle.data.decode import cores, problem_of, readable
from upcycle.data.memory import require_memory
from upcycle.data.pixels import Form
from upcycle.data.shares import digests_of

AHEAD = 2
"""Batches that are read ahead of the one that is asked for."""
AT_ONCE = 8
"""Images that a thread decodes before it reports: fewer cost more in Python than they gain in evenness."""
LARGE = 2**30
"""Bytes of a batch from which the memory is asked whether it fits."""
MOST = 8
"""Threads at most, where it is not said otherwise."""

Asked = tuple[Tensor, Tensor | None]
"""Images that are asked for, int64 (b,), and the numbers that choose a window of each, (b, m), or none."""


class Source(Protocol):
    """Images where they come from; any thread may ask for any of them."""

    def where(self, i: int) -> str:
        """Give what errors call image i."""
        ...

    def decode(self, i: int, form: Form, draws: np.ndarray | None) -> np.ndarray:
        """The pixels of image i in a form: as they lie in a split in memory; raises what decoders raise."""
        ...


@dataclass(frozen=True)
class Held:
    """Pixels in memory, to stand beside images on disk."""

    pixels: Tensor

    def where(self, i: int) -> str:
        """Its number."""
        return f"image {i}"

    def decode(self, i: int, form: Form, draws: np.ndarray | None) -> np.ndarray:
        """As they are; there is no more of them that a window could be cut out of."""
        if draws is not None:
            raise ValueError("it is in memory, and a window is cut out of a whole photograph")
        return self.pixels[i].numpy()


@dataclass(frozen=True, kw_only=True, eq=False)
class OnDisk:
    """Images on disk, as much like the tensor of their pixels as a split needs.

    Args:
        sources: where they come from, and the form that those are brought to, with its number of channels and white.
        places: int64 (n, 2), the source of each and its place in there.
        digests: uint8 (n, 16), of what each is decoded from.
        one: the shape of one as it lies in memory: (h, w, c) of uint8, (c, h, w) of float32.
        dtype: uint8 or float32.
        num_workers: threads that decode; 0: the one that asks.
    """

    sources: tuple[tuple[Source, Form], ...]
    places: Tensor
    digests: Tensor
    one: tuple[int, int, int]
    dtype: torch.dtype = torch.uint8
    num_workers: int = 0
    _plans: list[_Plan] = field(default_factory=list, init=False)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> torch.Size:
        """The number of images, and the shape of one."""
        return torch.Size((len(self), *self.one))

    def __getitem__(self, index: Tensor | slice) -> OnDisk:
        """Some of them, which stay on disk."""
        return replace(self, places=self.places[index], digests=self.digests[index])

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The pixels of the images ``index``, int64 (b,), in memory; as of a tensor, with dim 0."""
        assert dim == 0
        return self.read(index)

    def read(self, index: Tensor, draws: Tensor | None = None) -> Tensor:
        """The pixels of the images ``index``, int64 (b,).

        Args:
            draws: numbers that choose a window of each, see :func:`upcycle.data.augment.window_draws`; ``None`` for
                the images as the form has them.

        Raises:
            UserError: naming those that cannot be decoded.
        """
        for plan in self._plans:
            if (found := plan.take(index, draws)) is not None:
                return found
        return _Piece(self, index, draws).pixels()

    @contextlib.contextmanager
    def ahead(self, asked: Iterable[Asked]) -> Iterator[None]:
        """Decode what will be asked for, in this order, a few batches before it is; meanwhile.

        What is asked for out of order is decoded then. Whatever is not asked for by the end is let go.
        """
        if not self.num_workers:
            yield
            return
        plan = _Plan(self, asked)
        self._plans.append(plan)
        try:
            yield
        finally:
            self._plans.remove(plan)
            plan.close()

    def pieces(self, size: int) -> Iterator[Tensor]:
        """All pixels in order, ``size`` images at a time."""
        parts = torch.arange(len(self)).split(size)
        with self.ahead((part, None) for part in parts):
            for part in parts:
                yield self.read(part)

    def in_memory(self) -> Tensor:
        """All pixels at once.

        Raises:
            UserError: they do not fit.
        """
        return self.read(torch.arange(len(self)))


def concatenated(images: Sequence[Tensor | OnDisk]) -> Tensor | OnDisk:
    """The images of several splits after one another; on disk if some of them are."""
    if all(isinstance(part, Tensor) for part in images):
        return torch.cat([part for part in images if isinstance(part, Tensor)])
    first = next(part for part in images if isinstance(part, OnDisk))
    sources: list[tuple[Source, Form]] = []
    places, digests = [], []
    for part in images:
        require(
            part.shape[1:] == first.shape[1:] and part.dtype == first.dtype,
            f"Images of {tuple(part.shape[1:])} and of {tuple(first.shape[1:])} do not go together; --size brings them "
            "to one size.",
        )
        if isinstance(part, Tensor):
            part = replace(
                first,
                sources=((Held(part), first.sources[0][1]),),
                places=torch.stack([torch.zeros(len(part), dtype=torch.int64), torch.arange(len(part))], 1),
                digests=digests_of(pixels.numpy().tobytes() for pixels in part),
            )
        places.append(part.places + torch.tensor([len(sources), 0]))
        digests.append(part.digests)
        sources += part.sources
    return replace(first, sources=tuple(sources), places=torch.cat(places), digests=torch.cat(digests))


def usual_workers() -> int:
    """Threads that decode where it is not said: one a processor, 8 at most, shared among processes of one machine."""
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, min(MOST, cores() // (int(beside) if beside.isdecimal() and int(beside) else 1)))


@functools.cache
def _threads(number: int, process: int) -> ThreadPoolExecutor:
    """The threads of this process, which a forked one does not have."""
    return ThreadPoolExecutor(number, thread_name_prefix="decode")


class _Piece:
    """Images on their way into memory."""

    def __init__(self, images: OnDisk, index: Tensor, draws: Tensor | None) -> None:
        self.index, self.draws = index, draws
        self._images, self._places = images, images.places.index_select(0, index).tolist()
        size = len(index) * int(np.prod(images.one)) * images.dtype.itemsize
        if size > LARGE:
            require_memory(size, f"{len(index):,} images of {' x '.join(map(str, images.one))}")
        self._pixels = torch.empty(len(index), *images.one, dtype=images.dtype)
        self._futures: list[Future[list[str]]] = []

    def __len__(self) -> int:
        return len(self.index)

    def start(self) -> _Piece:
        """Let threads decode it."""
        threads, n = self._images.num_workers, len(self)
        each = max(1, min(AT_ONCE, -(-n // threads)))
        pool = _threads(threads, os.getpid())
        self._futures = [pool.submit(self._fill, range(n)[i : i + each]) for i in range(0, n, each)]
        return self

    def pixels(self) -> Tensor:
        """Give the pixels, when all are there.

        Raises:
            UserError: naming the images that cannot be decoded.
        """
        if not self._futures:
            if self._images.num_workers and len(self) > 1:
                self.start()
            else:
                self._refuse(self._fill(range(len(self))))
        self._refuse([problem for future in self._futures for problem in future.result()])
        return self._pixels

    def cancel(self) -> None:
        """Leave undone what no thread has begun."""
        for future in self._futures:
            future.cancel()

    def _fill(self, rows: range) -> list[str]:
        """Decode some of the images; returns what is wrong with those that cannot be."""
        images, pixels, problems = self._images, self._pixels.numpy(), []
        draws = None if self.draws is None else self.draws.numpy()
        for row in rows:
            number, place = self._places[row]
            source, form = images.sources[number]
            try:
                found = source.decode(place, form, None if draws is None else draws[row])
                if found.shape != images.one:
                    raise ValueError(f"its pixels are {found.shape} now, and were {images.one}")
                pixels[row] = found
            except Exception as error:  # decoders raise whatever they like on damaged files
                problems.append(f"{readable(source.where(place))} ({problem_of(error)})")
        return problems

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            many = len(problems) > 1
            raise UserError(
                f"{len(problems):,} image{'s' * many} cannot be read: {listed(problems, 'images')}. "
                f"Mend or remove {'them' if many else 'it'}."
            )


class _Plan:
    """Images that will be asked for, and the first pieces of them on their way."""

    def __init__(self, images: OnDisk, asked: Iterable[Asked]) -> None:
        self._images, self._asked = images, iter(asked)
        self._pieces: deque[_Piece] = deque()
        self._used = 0  # images of the first piece that were handed out
        self._fill(AHEAD)

    def take(self, index: Tensor, draws: Tensor | None) -> Tensor | None:
        """Hand out the next images where they are these; otherwise ``None``."""
        count, pieces = 0, 0
        while count < self._used + len(index):
            self._fill(pieces + 1)
            if pieces == len(self._pieces):
                return None
            count += len(self._pieces[pieces])
            pieces += 1
        if not pieces or not self._are_next(index, draws, pieces):
            return None
        self._fill(pieces + AHEAD)
        first, last = self._used, self._used + len(index)
        found = [self._pieces[i].pixels() for i in range(pieces)]
        whole = found[0] if pieces == 1 else torch.cat(found)
        self._used = last
        while self._pieces and self._used >= len(self._pieces[0]):
            self._used -= len(self._pieces.popleft())
        return whole if (first, last) == (0, len(whole)) else whole[first:last]

    def close(self) -> None:
        """Let go of what was not asked for."""
        for piece in self._pieces:
            piece.cancel()
        self._pieces.clear()

    def _are_next(self, index: Tensor, draws: Tensor | None, pieces: int) -> bool:
        some = [self._pieces[i] for i in range(pieces)]
        part = slice(self._used, self._used + len(index))
        if not torch.equal(torch.cat([piece.index for piece in some])[part], index):
            return False
        theirs = [piece.draws for piece in some if piece.draws is not None]
        if draws is None or not theirs:
            return draws is None and not theirs
        return len(theirs) == pieces and torch.equal(torch.cat(theirs)[part], draws)

    def _fill(self, pieces: int) -> None:
        while len(self._pieces) < pieces and (asked := next(self._asked, None)) is not None:
            self._pieces.append(_Piece(self._images, *asked).start())
