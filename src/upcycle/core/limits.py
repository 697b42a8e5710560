"""Limits before memory: what a file announces is compared with what it holds.

A file of some kilobytes can announce any number of pixels, rows, classes or bytes. Whoever makes room for what a file
says asks here first, and where it is honest but large, :mod:`upcycle.data.memory`; the answer is one sentence.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from upcycle.core.errors import UserError

SMALL = 2**26
"""Bytes that anything may unfold to."""
UNFOLDS = 100
"""How many times its size a larger file may unfold to: images of white paper and sparse tables do tens of times."""
MOST_CLASSES = 100_000
"""The most classes that numbers alone may announce; of more there have to be as many samples."""
PLAIN, MADE = (4, SMALL), (16, 2**30)
"""For networks as a builder makes them, and for those cut from others: times the bytes of the weights, and bytes beside
these, that may be given to tensors while one is rebuilt."""


def most_from(held: int) -> int:
    """The most bytes that ``held`` bytes may unfold to."""
    return max(SMALL, UNFOLDS * held)


def gunzip(content: bytes, path: Path) -> bytes:
    """Unpack gzip.

    Raises:
        UserError: it unfolds to more than such a file should.
        OSError, EOFError, zlib.error: it is damaged, as of :func:`gzip.decompress`.
    """
    most = most_from(len(content))
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise UserError(
            f"{path} has {len(content):,} bytes and unfolds to more than {most:,}; if that is meant, unpack it with "
            "gunzip first."
        )
    return found


def require_archive(content: bytes, path: Path) -> None:
    """Raise :class:`UserError` if a zip archive announces more than it should hold, by its directory.

    Raises:
        zipfile.BadZipFile: its directory cannot be read.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        announced = sum(item.file_size for item in archive.infolist())
    if announced > most_from(len(content)):
        raise UserError(
            f"{path} is refused: it has {len(content):,} bytes and unfolds to {announced:,}, which weights do not."
        )


def require_classes(largest: int, samples: int, where: str) -> None:
    """Raise :class:`UserError` if the largest class number is out of all proportion to the samples."""
    if largest >= max(MOST_CLASSES, samples):
        raise UserError(
            f"{where} has the class number {largest:,} among {samples:,} samples; classes are numbered from 0 on: "
            "number them anew, or give their names in place of numbers."
        )


_MAKERS = (
    torch.empty,
    torch.zeros,
    torch.ones,
    torch.full,
    torch.rand,
    torch.randn,
    torch.arange,
    torch.linspace,
    torch.eye,
    torch.randperm,
    torch.empty_strided,
)


class Allocations(TorchFunctionMode):
    """Refuses, before they are made, new tensors that come to more than ``most`` bytes together.

    A context around the building of a network whose options are a stranger's: a layer of three million classes, or a
    thousand blocks, is known from the shapes of its tensors before there is memory for them.

    Args:
        most: bytes.
        sentence: of the error.
    """

    def __init__(self, most: int, sentence: str) -> None:
        super().__init__()
        self.most, self.sentence, self.taken = most, sentence, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS:
            self._count(func, args, kwargs)
        return func(*args, **kwargs)

    def _count(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = {key: value for key, value in kwargs.items() if key not in ("device", "out", "pin_memory", "generator")}
        try:
            like: Tensor = func(*args, **named, device="meta")  # which has a shape, and no memory
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return  # what is wrong with it is said by the call itself
        self.taken += like.numel() * like.element_size()
        if self.taken > self.most:
            raise UserError(self.sentence)
