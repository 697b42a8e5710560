"""From encoded images to uint8 pixels in memory."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from upcycle.core.errors import UserError, is_memory
from upcycle.core.printable import printable
from upcycle.core.reading import Reading
from upcycle.data import cache
from upcycle.data import pixels as of_one
from upcycle.data.collection import listed
from upcycle.data.memory import require_memory
from upcycle.data.pixels import Decoded, Deep, Form, Pixels, Size, brightest, decode_one, opened, sides_of, white_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
LARGE = 20_000
"""Encoded bytes of an image, in the mean of some, from which decoding them in threads pays."""

# One image: its row in the result, what to call it in an error, its bytes or file.
Item = tuple[int, str, bytes | Path]


def read_images(
    files: Sequence[Path], *, size: Size | None = None, channels: int | None = None, reading: Reading | None = None
) -> Tensor:
    """The pixels of image files, in order: uint8 (n, h, w, c). See :func:`decode`."""
    form = Form(size=size, channels=channels, reading=reading or Reading())
    return decode(lambda: ((i, str(p), p) for i, p in enumerate(files)), len(files), form).images


def decode(items: Callable[[], Iterable[Item]], n: int, form: Form | None = None, *, trained: int = 0) -> Pixels:
    """Decode ``n`` images into one tensor, or find them decoded in the cache.

    EXIF orientation is applied; of animations the first frame is taken; transparency is dropped; more bits are rounded
    to 8, see :class:`~upcycle.core.reading.Reading`.

    Args:
        items: gives the images anew at each call.
        n: how many rows the result has.
        form: what they are brought to.
        trained: the first rows, which are trained on: they say what is white, where nothing else does.

    Raises:
        UserError: naming the images that cannot be read (after having tried them all), sizes that differ, or
            a result that would not fit the memory.
    """
    form = form or Form()
    name = _name(items, n, form, trained)
    if (kept := cache.find(name)) is not None:
        pixels, facts = kept
        found = form.white(facts["white"])
        return Pixels(images=torch.from_numpy(pixels), reading=found.reading, reshaped=facts["reshaped"])
    start = time.process_time()
    decoded = _decode(items, n, form, trained)
    if time.process_time() - start > cache.WORTH:
        facts = {"white": decoded.reading.white, "reshaped": decoded.reshaped}
        cache.keep(name, decoded.images.numpy(), facts)
    return decoded


def _name(items: Callable[[], Iterable[Item]], n: int, form: Form, trained: int) -> str:
    """The name that the pixels have in the cache; empty where they are too many to be kept."""
    if form.size is not None and n * math.prod(sides_of(form.size)) * (form.channels or 1) > cache.LIMIT:
        return ""
    settings = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    facts = repr((form, trained, settings, PIL.__version__, _own_source()))
    return cache.name_of(((row, content) for row, _, content in items()), facts)


@functools.cache
def _own_source() -> str:
    """A digest of the decoder: another makes other pixels."""
    return hashlib.sha256(Path(__file__).read_bytes() + Path(of_one.__file__).read_bytes()).hexdigest()


def _decode(items: Callable[[], Iterable[Item]], n: int, form: Form, trained: int) -> Pixels:
    pixels: np.ndarray | None = None
    broken: list[str] = []
    reshaped = 0
    sizes: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], str] = {}
    for (row, name, _), found in _decoded(items(), form):
        if isinstance(found, Deep):
            return _decode(items, n, form.white(_white(items(), trained)), trained)
        if isinstance(found, str):
            broken.append(f"{readable(name)} ({found})")
            continue
        image, changed = found
        reshaped += changed
        shape = image.shape[:2]
        sizes[shape] += 1
        examples.setdefault(shape, name)
        if pixels is None:
            require_memory(n * image.size, f"{n:,} images of {shape[1]} x {shape[0]} pixels")
            pixels = np.empty((n, *image.shape), np.uint8)
        if image.shape[2] > pixels.shape[3]:  # grey so far, and now a coloured one
            del pixels
            return _decode(items, n, replace(form, channels=3), trained)
        if shape == pixels.shape[1:3]:
            pixels[row] = image
    refuse_broken(broken, n)
    refuse_sizes(sizes, examples)
    assert pixels is not None  # n is at least 1, and every image was either decoded or broken
    return Pixels(images=torch.from_numpy(pixels), reading=form.reading, reshaped=reshaped)


def refuse_broken(broken: Sequence[str], n: int) -> None:
    """Raise :class:`UserError` where some of ``n`` images cannot be used: their names, with the reasons."""
    if broken:
        raise UserError(
            f"{len(broken):,} of {n:,} images cannot be used: {listed(list(broken), 'images')}. Mend or remove them."
        )


def refuse_sizes(sizes: Counter[tuple[int, int]], examples: Mapping[tuple[int, int], str]) -> None:
    """Raise :class:`UserError` where images are of several sizes, (height, width), with an example of each."""
    if len(sizes) > 1:
        kinds = [f"{w} x {h} ({readable(examples[h, w])})" for (h, w), _ in sizes.most_common()]
        raise UserError(
            f"The images differ in size: {listed(kinds, 'sizes')}. Say to what size they shall be brought, "
            f"for example --size {min(sizes.most_common()[0][0])}."
        )


def problem_of(error: Exception) -> str:
    """The reason why an image cannot be decoded, from what a decoder raised."""
    if isinstance(error, UnidentifiedImageError):
        return "damaged header"
    return str(error).rstrip(".") or type(error).__name__


def readable(name: str) -> str:
    """A name from a file system as text: bytes that are no UTF-8 are written out, as what a terminal obeys is."""
    return printable(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def _decoded(items: Iterable[Item], form: Form) -> Iterator[tuple[Item, Decoded | Deep | str]]:
    """Each item with its pixels, or with the reason why it has none."""

    def work(item: Item) -> Decoded | Deep | str:
        try:
            return decode_one(item[2], form)
        except Deep as deep:
            return deep
        except Exception as error:  # decoders raise whatever they like on damaged files
            if is_memory(error):
                raise
            return problem_of(error)

    iterator, number = iter(items), cores()
    with ThreadPoolExecutor(min(8, number)) as pool:  # starts no thread before there is work for one
        while chunk := list(itertools.islice(iterator, 256)):
            # Decoding large images leaves Python's lock alone for long enough for threads to pay; small ones do not.
            large = sum(_encoded_size(content) for _, _, content in chunk) >= LARGE * len(chunk)
            yield from zip(chunk, (pool.map if large and number > 1 else map)(work, chunk), strict=True)


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _white(items: Iterable[Item], trained: int) -> int:
    """Give what is white in the images of more than 8 bits among the first rows, the training images."""
    largest = 0
    for row, _, content in items:
        if row >= trained:
            continue
        try:
            with opened(content) as image:
                largest = max(largest, brightest(image))
        except Exception:  # named when it is decoded
            continue
    return white_of(largest)


def _encoded_size(content: bytes | Path) -> int:
    try:
        return content.stat().st_size if isinstance(content, Path) else len(content)
    except OSError:
        return 0
