"""From one encoded image, or from pixels in memory, to uint8 pixels in a form."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from upcycle.core.errors import UserError, require
from upcycle.core.limits import most_from
from upcycle.core.read import bytes_of, require_file
from upcycle.core.reading import WHITE, Interpolation, Reading
from upcycle.data.augment import resized_window
from upcycle.data.memory import require_memory

MIN_SIDE = 4  # pixels; anything smaller shows nothing and is a damaged or a placeholder file

# Found by their first bytes and opened as just that: faster than letting Pillow try every format that it
# knows, and none of those that run other programs.
_FORMATS = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"RIFF": "WEBP",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    **{b"P%d" % n: "PPM" for n in range(1, 7)},
}
_ORIENTATION = 0x0112  # the EXIF tag
_GREY = ("1", "L", "LA", "La")
_LYING = (5, 6, 7, 8)  # its values for images that are turned by a quarter

_USUAL = Reading()
_RESAMPLING = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}

Size = int | tuple[int, int]
"""The size that images are brought to: the side of a square, or (height, width), in pixels."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form that images are brought to.

    Args:
        size: by resampling, as ``reading`` says; ``None`` for what the images have.
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


Decoded = tuple[np.ndarray, bool]
"""The pixels of one image, uint8 (h, w, c), and whether its proportions were others."""


def decode_one(content: bytes | Path, form: Form, draws: np.ndarray | None = None) -> Decoded:
    """Decode one encoded image.

    Args:
        draws: numbers that choose a window, see :func:`upcycle.data.augment.resized_window`; the window is brought to
            the size of the form. ``None``: the image as the form has it.

    Raises:
        Deep: see there.
        ValueError, OSError, or what else Pillow raises for a damaged image.
    """
    with opened(content) as image:
        return _pixels(image, form, draft=True, draws=draws)


def opened(content: bytes | Path) -> Image.Image:
    """A PIL image that is not decoded yet; errors as :func:`decode_one`."""
    data = bytes_of(content) if isinstance(content, Path) else content
    return _in_proportion(Image.open(io.BytesIO(data), formats=(_kind(data),)), len(data))


def opened_lazily(file: Path) -> Image.Image:
    """The same of a file of which only the header is read."""
    require_file(file)
    with open(file, "rb") as start:
        kind = _kind(start.read(16))
    return _in_proportion(Image.open(file, formats=(kind,)), file.stat().st_size)


def _in_proportion(image: Image.Image, size: int) -> Image.Image:
    """An image whose header announces no more pixels than its ``size`` bytes can hold."""
    if image.width * image.height * len(image.getbands()) > most_from(size):
        image.close()
        sides = f"{image.width:,} x {image.height:,}"
        raise ValueError(f"{sides} pixels in {size:,} bytes, and no picture shrinks so far")
    return image


def _kind(data: bytes) -> str:
    """The format of an image, by its first bytes."""
    if not data:
        raise ValueError("0 bytes")
    kind = next((name for start, name in _FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError("not a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM image")
    return kind


class Header(NamedTuple):
    """Facts in the header of an image.

    Args:
        size: (height, width), as it is shown.
        grey: it has one channel.
        deep: it has more than 8 bits.
    """

    size: tuple[int, int]
    grey: bool
    deep: bool


def header_of(content: bytes | Path) -> Header:
    """The header of an encoded image; errors as :func:`decode_one`, as far as a header shows them.

    Of a file only the header is read.
    """
    with opened(content) if isinstance(content, bytes) else opened_lazily(content) as image:
        _require_usable(image)
        lying = image.getexif().get(_ORIENTATION, 1) in _LYING
        size = image.size if lying else (image.height, image.width)
        deep = image.mode.startswith("I")
        return Header(size, deep or image.mode in _GREY, deep)


def _require_usable(image: Image.Image) -> None:
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{image.width} x {image.height} pixels, too small")
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")


def pixels_of(image: Image.Image, form: Form, draws: np.ndarray | None = None) -> Decoded:
    """The pixels of a PIL image; see :func:`decode_one`, errors too."""
    return _pixels(image, form, draft=False, draws=draws)


def _pixels(image: Image.Image, form: Form, *, draft: bool, draws: np.ndarray | None = None) -> Decoded:
    """See :func:`pixels_of`.

    Args:
        draft: the image is not decoded yet, and nobody else's.
        draws: see :func:`decode_one`.
    """
    _require_usable(image)
    orientation = image.getexif().get(_ORIENTATION, 1)
    have: tuple[int, int] | None = None
    if draft and draws is None and form.reading.drafts and form.size is not None and image.format in ("JPEG", "MPO"):
        lying = orientation in _LYING
        have = image.size if lying else (image.height, image.width)
        height, width = _scaled(have, sides_of(form.size), form.reading)
        image = _drafted(image, (height, width) if lying else (width, height))
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
    have = have or (image.height, image.width)
    image = _eight_bit(image, form.channels, form.reading.white)
    changed = False
    if form.size is not None:
        sides = sides_of(form.size)
        changed = reshapes(have, sides)
        image = _fit(image, have, sides, form.reading) if draws is None else _window(image, sides, form.reading, draws)
    array = np.asarray(image)
    return array.reshape(*array.shape[:2], -1), changed


def _drafted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A JPEG image that is decoded at a half, a quarter or an eighth, and scaled: in about half the time.

    It is decoded at no less than one and a half times the size. Then its pixels differ from those of the whole image
    by about a level in the mean: 0.3 to 1.4 on two photographs. Where that is the whole image, it comes back as it is.

    Args:
        size: (width, height) that it is scaled to.
    """
    whole, (width, height) = image.size, size
    found = image.draft(None, (math.ceil(1.5 * width), math.ceil(1.5 * height)))
    if found is None or image.size == whole:
        return image
    return image.resize(size, Image.Resampling.BILINEAR, box=found[1])  # of the last pixel there may be only a part


def _eight_bit(image: Image.Image, channels: int | None, white: int) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode.startswith("I"):
        if not white:
            raise Deep
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > WHITE:
            raise ValueError("32-bit pixels; save it with 8 or 16 bits")
        image = Image.fromarray(eight_bits(values, white))
    grey = image.mode in _GREY
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
    return _scaled(have, sides, _USUAL) != sides


def _scaled(have: tuple[int, int], sides: tuple[int, int], reading: Reading) -> tuple[int, int]:
    """Height and width of an image that is scaled to cover ``sides``, to fit into them, or to be of them."""
    (height, width), (high, wide), resize = have, sides, reading.resize
    if resize in ("center", "squash"):  # rounded as timm does: down, the longer side of an image too
        high, wide = math.floor(high / reading.crop_pct), math.floor(wide / reading.crop_pct)
        if resize == "squash":
            return high, wide
        if high == wide:
            short = min(height, width)
            return high * height // short, wide * width // short
        ratio = min(height / high, width / wide)
        return round(height / ratio), round(width / ratio)
    by_width = wide * height >= high * width if resize == "crop" else wide * height <= high * width
    of, to = (width, wide) if by_width else (height, high)
    bound = max if resize == "crop" else min
    return max(1, bound(high, round(height * to / of))), max(1, bound(wide, round(width * to / of)))


def _window(image: Image.Image, sides: tuple[int, int], reading: Reading, draws: np.ndarray) -> Image.Image:
    """A random window of an image, brought to a size."""
    top, left, height, width = resized_window(image.height, image.width, draws)
    cut = image.crop((left, top, left + width, top + height))
    return cut.resize((sides[1], sides[0]), _RESAMPLING[reading.interpolation])


def _fit(image: Image.Image, have: tuple[int, int], sides: tuple[int, int], reading: Reading) -> Image.Image:
    """An image brought to a size; see :class:`~upcycle.core.reading.Reading`.

    Args:
        have: its height and width before it was drafted.
    """
    (high, wide), (height, width) = sides, _scaled(have, sides, reading)
    if (width, height) != image.size:
        image = image.resize((width, height), _RESAMPLING[reading.interpolation])
    if (height, width) == (high, wide):
        return image
    if reading.resize in ("center", "squash"):
        left, top = round((width - wide) / 2), round((height - high) / 2)  # halves to the even number, as there
        return image.crop((left, top, left + wide, top + high))
    if reading.resize == "crop":
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
        down, across = _scaled((height, width), sides, form.reading)
        mode = "bicubic" if form.reading.interpolation == "bicubic" else "bilinear"  # there is no other with antialias
        scaled = (
            F.interpolate(part.contiguous(), (down, across), mode=mode, antialias=True) for part in planes.split(1024)
        )
        if form.reading.resize != "pad":
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


def white_of(largest: int) -> int:
    """Give what is white where ``largest`` is the largest value in training images of more than 8 bits."""
    return largest if 0 < largest <= WHITE // 2 else WHITE


def brightest(image: Image.Image) -> int:
    """The largest value of an image of more than 8 bits; 0 for others."""
    return int(np.asarray(image).max()) if image.mode.startswith("I") else 0
