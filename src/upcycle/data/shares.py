"""Splits of data that a person brings: an image stays where it is when data grow.

What an image holds decides alone, and not how many others there are: its bytes are hashed to two numbers in [0, 1). An
image is a test image where the first lies below the share of these, and a validation image where the second does. So
copies of an image come into one split, and the counts are only nearly even.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from upcycle.core.errors import UserError
from upcycle.core.read import bytes_of

TEST, VALIDATION = 1 / 5, 1 / 10
"""The shares of all images that are drawn for a split that is lacking."""
READ_FIRST = 2**35
"""Bytes of files above which the paths of images are hashed in their place: reading them all takes too long."""


def of_contents(contents: Iterable[bytes | Path]) -> Tensor:
    """Two numbers in [0, 1) for each image, float64 (n, 2), from its bytes or its file's: BLAKE2b, 64 bits each."""
    return _numbers(digest(_content(content)) for content in contents)


def digest(content: bytes) -> bytes:
    """The digest of an image's bytes, of 16: BLAKE2b."""
    return hashlib.blake2b(content, digest_size=16).digest()


def digests_of(contents: Iterable[bytes]) -> Tensor:
    """The digest of each content, uint8 (n, 16)."""
    return as_table(map(digest, contents))


def as_table(digests: Iterable[bytes]) -> Tensor:
    """Digests as uint8 (n, 16)."""
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(-1, 16)


def of_digests(digests: Tensor) -> Tensor:
    """The same numbers, from the digests of the images, uint8 (n, 16)."""
    return _numbers(bytes(row) for row in digests.numpy())


def _numbers(digests: Iterable[bytes]) -> Tensor:
    numbers = [[int.from_bytes(d[:8], "big") / 2**64, int.from_bytes(d[8:], "big") / 2**64] for d in digests]
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 2)


def of_paths(folder: Path, files: Iterable[Path]) -> Tensor:
    """The numbers of image files, from their paths below ``folder``; see :func:`of_contents`."""
    return of_contents(os.fsencode(file.relative_to(folder).as_posix()) for file in files)


def _content(image: bytes | Path) -> bytes:
    try:
        return bytes_of(image) if isinstance(image, Path) else image
    except OSError:  # named with all other broken images when it is decoded
        return b""


def drawn(name: str, shares: Tensor, lacking: list[str], limit: int, noun: str = "images") -> dict[str, Tensor]:
    """Positions of the samples of each split in ascending order: train first, then those that are lacking.

    A split that would get none gets the image with the least number, which no further image can bring anybody into.

    Args:
        shares: see :func:`of_contents`.
        lacking: which of test and validation are to be drawn.
        limit: the most validation samples, nearly; above it their share falls, and never a test sample with it.
        noun: what samples are called, in the plural.

    Raises:
        UserError: there are too few samples.
    """
    rest = torch.arange(len(shares))
    orders: dict[str, Tensor] = {}
    test = TEST if "test" in lacking else 0.0
    most = limit / (len(shares) * (1 - test))
    for split, column, share in (("test", 0, test), ("validation", 1, min(VALIDATION / (1 - test), most))):
        if split not in lacking:
            continue
        if len(rest) < 2:
            raise UserError(
                f"{name} has {len(shares)} training {noun}, too few to set some aside for {split}; add {noun}, or a "
                f"{split} split."
            )
        own = shares[rest, column]
        below = own < share
        if not below.any():
            below[own.argmin()] = True
        orders[split], rest = rest[below], rest[~below]
    if not len(rest):
        raise UserError(
            f"All {len(shares)} {noun} of {name} fell to test and validation, none is left to train on; add {noun}, "
            "or bring these splits."
        )
    return {"train": rest, **orders}
