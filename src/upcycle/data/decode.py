"""From encoded images to uint8 pixels in memory."""

from __future__ import annotations

import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from upcycle.core.errors import UserError, require
from upcycle.data.images import listed

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
MIN_SIDE = 4  # pixels; anything smaller shows nothing and is a damaged or a placeholder file

# Found by their first bytes and opened as just that: faster than letting Pillow try every format that it
# knows, and none of those that run other programs.
_FORMATS = {b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", b"RIFF": "WEBP", b"BM": "BMP", b"GIF8": "GIF",
            b"II*\0": "TIFF", b"MM\0*": "TIFF", **{b"P%d" % n: "PPM" for n in range(1, 7)}}  # fmt: skip
_ORIENTATION = 0x0112  # the EXIF tag

Size = int | tuple[int, int]
"""The size that images are brought to: the side of a square, or (height, width), in pixels."""

# One image: its row in the result, what to call it in an error, its bytes or file.
Item = tuple[int, str, bytes | Path]


def read_images(files: Sequence[Path], *, size: Size | None = None, channels: int | None = None) -> Tensor:
    """The pixels of image files, in order: uint8 (n, h, w, c). See :func:`decode`."""
    return decode(lambda: ((i, str(p), p) for i, p in enumerate(files)), len(files), size=size, channels=channels)


def image_files(folder: Path) -> list[Path]:
    """The files below ``folder`` that are images by their names, hidden ones left out, in order."""
    return sorted(
        p for p in folder.rglob("*")
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )  # fmt: skip


def decode(
    items: Callable[[], Iterable[Item]], n: int, *, size: Size | None = None, channels: int | None = None
) -> Tensor:
    """Decode ``n`` images into one tensor.

    EXIF orientation is applied; of animations the first frame is taken; transparency is dropped; 16 bits are
    rounded to 8.

    Args:
        items: gives the images anew at each call.
        n: how many rows the result has.
        size: bring every image to this size by bilinear resampling, so that it just covers it, and then take the
            centre.
        channels: 1 (grey) or 3 (RGB); ``None``: grey if all images are.

    Returns:
        uint8 (n, h, w, c).

    Raises:
        UserError: naming the images that cannot be read (after having tried them all), sizes that differ, or
            a result that would not fit the memory.
    """
    require(channels in (None, 1, 3), f"Images have 1 or 3 channels, not {channels}.")
    if size is not None:
        _sides(size)  # refused before anything is read
    pixels: np.ndarray | None = None
    broken: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], str] = {}
    for (row, name, _), image in _decoded(items(), size, channels):
        if isinstance(image, str):
            broken.append(f"{name} ({image})")
            continue
        shape = image.shape[:2]
        sizes[shape] += 1
        examples.setdefault(shape, name)
        if pixels is None:
            require_memory(n * image.size, f"{n:,} images of {shape[1]} x {shape[0]} pixels")
            pixels = np.empty((n, *image.shape), np.uint8)
        if image.shape[2] > pixels.shape[3]:  # grey so far, and now a coloured one
            del pixels
            return decode(items, n, size=size, channels=3)
        if shape == pixels.shape[1:3]:
            pixels[row] = image
    if broken:
        raise UserError(
            f"{len(broken):,} of {n:,} images cannot be used: {listed(broken, 'images')}. Mend or remove them."
        )
    if len(sizes) > 1:
        kinds = [f"{w} x {h} ({examples[h, w]})" for (h, w), _ in sizes.most_common()]
        raise UserError(
            f"The images differ in size: {listed(kinds, 'sizes')}. Say to what size they shall be brought, "
            f"for example --size {min(sizes.most_common()[0][0])}."
        )
    assert pixels is not None  # n is at least 1, and every image was either decoded or broken
    return torch.from_numpy(pixels)


def _decoded(items: Iterable[Item], size: Size | None, channels: int | None) -> Iterator[tuple[Item, np.ndarray | str]]:
    """Each item with its pixels, or with the reason why it has none."""

    def work(item: Item) -> np.ndarray | str:
        try:
            return decode_one(item[2], size, channels)
        except UnidentifiedImageError:
            return "damaged header"
        except Exception as error:  # decoders raise whatever they like on damaged files
            return str(error).rstrip(".") or type(error).__name__

    iterator = iter(items)
    head = list(itertools.islice(iterator, 1))
    iterator = itertools.chain(head, iterator)
    # Decoding large images leaves Python's lock alone for long enough for threads to pay; small ones do not.
    if not head or _encoded_size(head[0][2]) < 20_000:
        yield from ((item, work(item)) for item in iterator)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while chunk := list(itertools.islice(iterator, 256)):
            yield from zip(chunk, pool.map(work, chunk), strict=True)


def _encoded_size(content: bytes | Path) -> int:
    try:
        return content.stat().st_size if isinstance(content, Path) else len(content)
    except OSError:
        return 0


def decode_one(content: bytes | Path, size: Size | None = None, channels: int | None = None) -> np.ndarray:
    """The pixels of one encoded image, uint8 (h, w, c); arguments as :func:`decode`.

    Raises:
        ValueError, OSError, or what else Pillow raises for a damaged image.
    """
    data = content.read_bytes() if isinstance(content, Path) else content
    if not data:
        raise ValueError("0 bytes")
    kind = next((name for start, name in _FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError("not a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM image")
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        return pixels_of(image, size, channels)


def pixels_of(image: Image.Image, size: Size | None = None, channels: int | None = None) -> np.ndarray:
    """The pixels of a PIL image, uint8 (h, w, c); arguments and errors as :func:`decode_one`."""
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{image.width} x {image.height} pixels, too small")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image = _eight_bit(image, channels)
    if size is not None:
        image = _fit(image, size)
    array = np.asarray(image)
    return array.reshape(*array.shape[:2], -1)


def _eight_bit(image: Image.Image, channels: int | None) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels; save it with 8 or 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    grey = image.mode in ("1", "L", "LA", "La")
    mode = "L" if channels == 1 or (channels is None and grey) else "RGB"
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _sides(size: Size) -> tuple[int, int]:
    """Height and width of a size, which show something."""
    height, width = (size, size) if isinstance(size, int) else size
    require(min(height, width) >= MIN_SIDE, f"size must be at least {MIN_SIDE} pixels, not {min(height, width)}.")
    return height, width


def _fit(image: Image.Image, size: Size) -> Image.Image:
    """The centre of an image that was made just large enough to cover ``size``, by bilinear resampling."""
    high, wide = _sides(size)
    width, height = _covering(image.width, image.height, wide, high)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - wide) // 2, (height - high) // 2
    return image if (width, height) == (wide, high) else image.crop((left, top, left + wide, top + high))


def _covering(width: int, height: int, wide: int, high: int) -> tuple[int, int]:
    """Width and height of the smallest image of the same proportions that covers ``wide`` x ``high``."""
    of, to = (width, wide) if wide * height >= high * width else (height, high)
    return max(wide, round(width * to / of)), max(high, round(height * to / of))


def fit(images: Tensor, size: Size | None, channels: int | None) -> Tensor:
    """As :func:`decode` does with files, bring pixels to a size and a number of channels.

    Args:
        images: uint8 (n, h, w, c) or float32 (n, c, h, w); comes back in the same layout.
    """
    whole = images.dtype == torch.uint8
    planes = images.permute(0, 3, 1, 2) if whole else images
    have, height, width = planes.shape[1:]
    if channels not in (None, have):
        if (have, channels) not in ((1, 3), (3, 1)):
            raise UserError(f"Cannot make {channels} channels of {have}; only 1 and 3 turn into each other.")
        planes = planes.expand(-1, 3, -1, -1) if channels == 3 else _luma(planes)
    high, wide = (height, width) if size is None else _sides(size)
    if (height, width) != (high, wide):
        require_memory(len(planes) * planes.shape[1] * high * wide * images.element_size(), f"{len(planes):,} images")
        across, down = _covering(width, height, wide, high)
        left, top = (across - wide) // 2, (down - high) // 2
        parts = [
            F.interpolate(part.contiguous(), (down, across), mode="bilinear", antialias=True)[
                :, :, top : top + high, left : left + wide
            ]
            for part in planes.split(1024)
        ]
        planes = torch.cat(parts)
    return (planes.permute(0, 2, 3, 1) if whole else planes).contiguous()


def _luma(planes: Tensor) -> Tensor:
    red, green, blue = planes.split(1, 1)
    if planes.dtype != torch.uint8:
        return red * 0.299 + green * 0.587 + blue * 0.114
    # ITU-R BT.601 in 16-bit fixed point, as Pillow has it.
    return ((red.int() * 19595 + green.int() * 38470 + blue.int() * 7471 + 0x8000) >> 16).to(torch.uint8)


def require_memory(needed: int, what: str) -> None:
    """Raise :class:`UserError` if ``needed`` bytes are more than 80 % of the free memory."""
    free = free_memory()
    if needed > 0.8 * free:
        raise UserError(
            f"{what} need {needed / 1e9:,.1f} GB in memory, of which {free / 1e9:,.1f} GB are free. "
            "Load them with a smaller size, or fewer of them."
        )


def free_memory() -> int:
    """Bytes of memory that can be had: what the system says, or less if this container has a limit."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{k}").read_text()) for k in ("max", "current"))
        counters = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        return free
    return min(free, limit - used + int(counters.get("inactive_file", 0)))  # cached files make way
