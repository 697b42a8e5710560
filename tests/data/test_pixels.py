"""JPEG images are decoded at a part of their size where that is enough: near to the pixels of the whole image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from upcycle.core.reading import Reading
from upcycle.data import pixels
from upcycle.data.pixels import Form, decode_one, pixels_of


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Shapes with edges on a smooth ground, with a little noise, as lenses leave them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    image = np.stack([128 + 60 * np.sin(x / 90 + c) + 40 * np.cos(y / 70 - c) for c in range(3)], 2)
    for _ in range(40):
        top, left, side = rng.integers(0, height), rng.integers(0, width), rng.integers(10, 90)
        image[top : top + side, left : left + side] += rng.uniform(-60, 60, 3)
    noisy = (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy).filter(ImageFilter.GaussianBlur(0.7)).convert(mode)


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize(
    ("shape", "size", "mode", "orientation"),
    [
        ((500, 400), 112, "RGB", 1),
        ((501, 403), (112, 64), "RGB", 6),
        ((403, 501), 64, "L", 3),
        ((1003, 777), 32, "RGB", 8),
        ((640, 480), 150, "CMYK", 1),
    ],
)
def test_a_jpeg_is_near_to_the_whole_of_it(
    shape: tuple[int, int], size: int | tuple[int, int], mode: str, orientation: int, resize: str
) -> None:
    content, form = jpeg(photo(*shape, mode), orientation), Form(size=size, reading=Reading(resize=resize))
    found, changed = decode_one(content, form)
    whole, as_whole = pixels_of(Image.open(io.BytesIO(content)), form)
    assert found.shape == whole.shape and changed == as_whole
    assert np.abs(found.astype(int) - whole).mean() < 1


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_a_photograph_is_near_to_the_whole_of_it_and_no_lighter(name: str) -> None:
    from sklearn.datasets import load_sample_image

    content = jpeg(Image.fromarray(load_sample_image(name)))
    for size in (142, 107, 71, 64, 30):
        form = Form(size=size)
        whole, _ = pixels_of(Image.open(io.BytesIO(content)), form)
        apart = decode_one(content, form)[0].astype(int) - whole
        assert 0 < np.abs(apart).mean() < 1.5 and abs(apart.mean()) < 0.15


def test_only_as_far_as_it_stays_half_as_large_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, drafted = [], pixels._drafted

    def noted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        found = drafted(image, size)
        sizes.append(image.size)
        return found

    monkeypatch.setattr(pixels, "_drafted", noted)
    content = jpeg(photo(500, 400))
    for size in (32, 64, 112, 134, 200, 400):
        decode_one(content, Form(size=size))
    assert sizes == [(63, 50), (125, 100), (250, 200), (500, 400), (500, 400), (500, 400)]
    decode_one(content, Form())
    png = io.BytesIO()
    photo(500, 400).save(png, "PNG")
    decode_one(png.getvalue(), Form(size=32))
    assert len(sizes) == 6


def test_proportions_are_those_of_the_file() -> None:
    """501 x 401 pixels at a half are 251 x 201, whose proportions are others."""
    for shape in ((501, 401), (1000, 502), (333, 1001)):
        content, square = jpeg(photo(*shape)), jpeg(photo(shape[0], shape[0]))
        form = Form(size=(round(shape[1] / 10), round(shape[0] / 10)))
        assert decode_one(content, form)[1] == pixels.reshapes(shape[::-1], form.size)  # type: ignore[arg-type]
        assert not decode_one(square, Form(size=32))[1]


def test_a_jpeg_that_ends_too_soon_is_refused_at_any_size() -> None:
    content = jpeg(photo(500, 400))
    for size in (None, 32, 112):
        with pytest.raises(OSError, match="truncated"):
            decode_one(content[: len(content) * 2 // 3], Form(size=size))
