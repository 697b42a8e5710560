"""From encoded images to uint8 pixels in memory."""

from __future__ import annotations

import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from upcycle.core.errors import UserError, require
from upcycle.core.reading import WHITE, Reading
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


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form that images are brought to.

    Args:
        size: by bilinear resampling, as ``reading`` says; ``None`` for what the images have.
        channels: 1 (grey) or 3 (RGB); ``None``: grey if all images are.
        reading: how files become pixels.
    """

    size: Size | None = None
    channels: int | None = None
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        require(self.channels in (None, 1, 3), f"Images have 1 or 3 channels, not {self.channels}.")
        if self.size is not None:
            sides_of(self.size)

    def white(self, value: int) -> Form:
        """The same form with what is white in images of more than 8 bits."""
        return replace(self, reading=replace(self.reading, white=value))


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images in memory.

    Args:
        images: uint8 (n, h, w, c), or float32 (n, c, h, w).
        reading: the one that they were read in.
        reshaped: how many had other proportions than the size that they were brought to.
    """

    images: Tensor
    reading: Reading
    reshaped: int = 0


class Deep(ValueError):
    """An image has more than 8 bits, and it is not known what is white in it."""

    def __init__(self) -> None:
        super().__init__("more than 8 bits, and nothing says what is white")


def read_images(
    files: Sequence[Path], *, size: Size | None = None, channels: int | None = None, reading: Reading | None = None
) -> Tensor:
    """The pixels of image files, in order: uint8 (n, h, w, c). See :func:`decode`."""
    form = Form(size=size, channels=channels, reading=reading or Reading())
    return decode(lambda: ((i, str(p), p) for i, p in enumerate(files)), len(files), form).images


def decode(items: Callable[[], Iterable[Item]], n: int, form: Form | None = None, *, trained: int = 0) -> Pixels:
    """Decode ``n`` images into one tensor.

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
    pixels: np.ndarray | None = None
    broken: list[str] = []
    reshaped = 0
    sizes: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], str] = {}
    for (row, name, _), found in _decoded(items(), form):
        if isinstance(found, Deep):
            return decode(items, n, form.white(_white(items(), trained)), trained=trained)
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
            return decode(items, n, replace(form, channels=3), trained=trained)
        if shape == pixels.shape[1:3]:
            pixels[row] = image
    if broken:
        raise UserError(
            f"{len(broken):,} of {n:,} images cannot be used: {listed(broken, 'images')}. Mend or remove them."
        )
    if len(sizes) > 1:
        kinds = [f"{w} x {h} ({readable(examples[h, w])})" for (h, w), _ in sizes.most_common()]
        raise UserError(
            f"The images differ in size: {listed(kinds, 'sizes')}. Say to what size they shall be brought, "
            f"for example --size {min(sizes.most_common()[0][0])}."
        )
    assert pixels is not None  # n is at least 1, and every image was either decoded or broken
    return Pixels(images=torch.from_numpy(pixels), reading=form.reading, reshaped=reshaped)


def readable(name: str) -> str:
    """A name from a file system as text: bytes that are no UTF-8 are written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


Decoded = tuple[np.ndarray, bool]
"""The pixels of one image, uint8 (h, w, c), and whether its proportions were others."""


def _decoded(items: Iterable[Item], form: Form) -> Iterator[tuple[Item, Decoded | Deep | str]]:
    """Each item with its pixels, or with the reason why it has none."""

    def work(item: Item) -> Decoded | Deep | str:
        try:
            return decode_one(item[2], form)
        except Deep as deep:
            return deep
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


def _white(items: Iterable[Item], trained: int) -> int:
    """What is white in the images of more than 8 bits among the first rows, the training images."""
    largest = 0
    for row, _, content in items:
        if row >= trained:
            continue
        try:
            with _opened(content) as image:
                largest = max(largest, brightest(image))
        except Exception:  # named when it is decoded
            continue
    return white_of(largest)


def white_of(largest: int) -> int:
    """What is white where ``largest`` is the largest value in training images of more than 8 bits."""
    return largest if 0 < largest <= WHITE // 2 else WHITE


def brightest(image: Image.Image) -> int:
    """The largest value of an image of more than 8 bits; 0 for others."""
    return int(np.asarray(image).max()) if image.mode.startswith("I") else 0


def _encoded_size(content: bytes | Path) -> int:
    try:
        return content.stat().st_size if isinstance(content, Path) else len(content)
    except OSError:
        return 0


def decode_one(content: bytes | Path, form: Form) -> Decoded:
    """Decode one encoded image.

    Raises:
        Deep: see there.
        ValueError, OSError, or what else Pillow raises for a damaged image.
    """
    with _opened(content) as image:
        return pixels_of(image, form)


def _opened(content: bytes | Path) -> Image.Image:
    data = content.read_bytes() if isinstance(content, Path) else content
    if not data:
        raise ValueError("0 bytes")
    kind = next((name for start, name in _FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError("not a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM image")
    return Image.open(io.BytesIO(data), formats=(kind,))


def pixels_of(image: Image.Image, form: Form) -> Decoded:
    """The pixels of a PIL image; errors as :func:`decode_one`."""
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{image.width} x {image.height} pixels, too small")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image = _eight_bit(image, form.channels, form.reading.white)
    changed = False
    if form.size is not None:
        high, wide = sides_of(form.size)
        changed = reshapes((image.height, image.width), (high, wide))
        image = _fit(image, high, wide, form.reading.resize)
    array = np.asarray(image)
    return array.reshape(*array.shape[:2], -1), changed


def _eight_bit(image: Image.Image, channels: int | None, white: int) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode.startswith("I"):
        if not white:
            raise Deep
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > WHITE:
            raise ValueError("32-bit pixels; save it with 8 or 16 bits")
        image = Image.fromarray(eight_bits(values, white))
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    grey = image.mode in ("1", "L", "LA", "La")
    mode = "L" if channels == 1 or (channels is None and grey) else "RGB"
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def eight_bits(values: np.ndarray, white: int) -> np.ndarray:
    """Values from 0 to ``white``, rounded to 0 to 255 and cut off there; int64 in, uint8 out."""
    return ((np.minimum(values, white) * 510 + white) // (2 * white)).astype(np.uint8)


def sides_of(size: Size) -> tuple[int, int]:
    """Height and width of a size, which show something."""
    height, width = (size, size) if isinstance(size, int) else size
    require(min(height, width) >= MIN_SIDE, f"size must be at least {MIN_SIDE} pixels, not {min(height, width)}.")
    return height, width


def reshapes(have: tuple[int, int], sides: tuple[int, int]) -> bool:
    """Whether bringing images of one (height, width) to another cuts, distorts or pads them."""
    return _scaled(have, sides, "crop") != sides


def _scaled(have: tuple[int, int], sides: tuple[int, int], resize: str) -> tuple[int, int]:
    """Height and width of an image that is scaled to cover ``sides``, to fit into them, or to be of them."""
    (height, width), (high, wide) = have, sides
    if resize == "squash":
        return sides
    by_width = wide * height >= high * width if resize == "crop" else wide * height <= high * width
    of, to = (width, wide) if by_width else (height, high)
    bound = max if resize == "crop" else min
    return max(1, bound(high, round(height * to / of))), max(1, bound(wide, round(width * to / of)))


def _fit(image: Image.Image, high: int, wide: int, resize: str) -> Image.Image:
    """An image brought to a size by bilinear resampling; see :class:`~upcycle.core.reading.Reading`."""
    height, width = _scaled((image.height, image.width), (high, wide), resize)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if (height, width) == (high, wide):
        return image
    if resize == "crop":
        left, top = (width - wide) // 2, (height - high) // 2
        return image.crop((left, top, left + wide, top + high))
    around = Image.new(image.mode, (wide, high))
    around.paste(image, ((wide - width) // 2, (high - height) // 2))
    return around


def fit(images: Tensor, form: Form) -> Pixels:
    """Bring pixels in memory to a size and a number of channels, as :func:`decode` does with files.

    Args:
        images: uint8 (n, h, w, c) or float32 (n, c, h, w); comes back in the same layout.
    """
    whole, channels = images.dtype == torch.uint8, form.channels
    planes = images.permute(0, 3, 1, 2) if whole else images
    have, height, width = planes.shape[1:]
    if channels not in (None, have):
        if (have, channels) not in ((1, 3), (3, 1)):
            raise UserError(f"Cannot make {channels} channels of {have}; only 1 and 3 turn into each other.")
        planes = planes.expand(-1, 3, -1, -1) if channels == 3 else _luma(planes)
    high, wide = sides = (height, width) if form.size is None else sides_of(form.size)
    changed = reshapes((height, width), sides)
    if (height, width) != sides:
        require_memory(len(planes) * planes.shape[1] * high * wide * images.element_size(), f"{len(planes):,} images")
        resize = form.reading.resize
        down, across = _scaled((height, width), sides, resize)
        scaled = (
            F.interpolate(part.contiguous(), (down, across), mode="bilinear", antialias=True)
            for part in planes.split(1024)
        )
        if resize == "crop":
            left, top = (across - wide) // 2, (down - high) // 2
            planes = torch.cat([part[:, :, top : top + high, left : left + wide] for part in scaled])
        else:
            left, top = (wide - across) // 2, (high - down) // 2
            black = (left, wide - across - left, top, high - down - top)
            planes = torch.cat([F.pad(part, black) for part in scaled])
    found = (planes.permute(0, 2, 3, 1) if whole else planes).contiguous()
    return Pixels(images=found, reading=form.reading, reshaped=len(found) if changed else 0)


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
