"""Augmentation: the random numbers, crop, flip and colour against loops, and independence of the batch."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from upcycle.data import augment
from upcycle.data.images import ImageSplit

CPU = torch.device("cpu")


def split(n: int = 40, c: int = 3, size: int = 32, operations: tuple[str, ...] = ("crop", "flip")) -> ImageSplit:
    pixels = torch.randint(0, 256, (n, size, size, c), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = ImageSplit.plain(pixels, torch.arange(n) % 10, torch.arange(n) * 3 + 1)
    plain.augment = operations
    return plain.normalised((0.4,) * c, (0.25,) * c)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("h", "w", "c"), [(32, 32, 3), (8, 8, 1), (28, 28, 1), (16, 24, 3), (5, 5, 2)])
def test_crop_and_flip_equal_a_loop(h: int, w: int, c: int, dtype: torch.dtype) -> None:
    b, ids = 60, torch.arange(60)
    pixels = torch.randint(1, 256, (b, h, w, c), generator=torch.Generator().manual_seed(0)).to(dtype)
    offsets, mirrored = augment.crop_offsets((3, 1), ids, h, w), augment.flipped((3, 1), ids)
    top, left = h // 8, w // 8
    assert set(offsets[:, 0].tolist()) == set(range(2 * top + 1)) and 0 < mirrored.sum() < b
    expected = []
    for image, (y, x), mirror in zip(pixels.numpy(), offsets.tolist(), mirrored.tolist(), strict=True):
        padded = np.pad(image, ((top, top), (left, left), (0, 0)))[y : y + h, x : x + w]
        expected.append(padded[:, ::-1] if mirror else padded)
    found = augment.flip(augment.crop(pixels, offsets), mirrored)
    assert found.dtype == dtype and np.array_equal(found.numpy(), np.stack(expected))


def test_the_central_crop_changes_nothing() -> None:
    pixels = split().images
    assert torch.equal(augment.crop(pixels, torch.full((len(pixels), 2), 4)), pixels)
    assert torch.equal(augment.flip(pixels, torch.zeros(len(pixels), dtype=torch.bool)), pixels)


def test_color_leaves_its_input_alone() -> None:
    for c in (1, 3):
        floats = split(4, c).images.float() / 255
        before = floats.clone()
        found = augment.color(floats, torch.full((4, 3), 0.7))
        assert torch.equal(floats, before) and found.shape == floats.shape and not torch.equal(found, before)


def test_color_follows_pillow_and_leaves_factor_one_alone() -> None:
    """Pillow's enhancers, a pixel of whose rounding each of the three steps may be off."""
    pixels = split(12).images
    floats = pixels.float() / 255
    assert torch.allclose(augment.color(floats, torch.ones(12, 3)), floats, atol=1e-6)
    factors = augment.color_factors((0, 0), torch.arange(12))
    assert factors.min() >= 0.6 and factors.max() <= 1.4 and factors.std(0).min() > 0.1
    for image, row, found in zip(pixels.numpy(), factors.tolist(), augment.color(floats, factors), strict=True):
        picture = Image.fromarray(image)
        for enhancer, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), row, strict=True
        ):
            picture = enhancer(picture).enhance(factor)
        assert np.abs(np.asarray(picture) - found.numpy() * 255).max() < 4


@pytest.mark.parametrize("operations", [("crop", "flip"), ("color",), ("crop", "flip", "color")])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_sample_is_the_same_bits_in_any_batch(operations: tuple[str, ...], threads: int) -> None:
    data = split(80, operations=operations)
    before = torch.get_num_threads()
    whole = data.batch(torch.arange(80), device=CPU, view=(1, 2)).images
    try:
        torch.set_num_threads(threads)
        for size in (1, 7, 33, 64):
            order = torch.randperm(80, generator=torch.Generator().manual_seed(size))[:size]
            assert torch.equal(data.batch(order, device=CPU, view=(1, 2)).images, whole[order])
    finally:
        torch.set_num_threads(before)
    # Keyed by the sample's id, not by its position in the split.
    part = data.subset(torch.tensor([70, 3, 20]))
    assert torch.equal(part.batch(torch.arange(3), device=CPU, view=(1, 2)).images, whole[[70, 3, 20]])


def test_epochs_seeds_and_samples_differ_and_no_view_means_no_augmentation() -> None:
    data = split(64)
    index = torch.arange(64)
    images = [data.batch(index, device=CPU, view=view).images for view in ((0, 0), (0, 1), (1, 0))]
    for a, b in itertools.combinations(images, 2):
        assert (a != b).flatten(1).any(1).float().mean() > 0.9
    expected = (data.images.permute(0, 3, 1, 2).double() / 255 - 0.4) / 0.25
    assert torch.allclose(data.batch(index, device=CPU).images.double(), expected, atol=1e-6)
    same = ImageSplit.plain(data.images[:1].expand(64, -1, -1, -1), data.labels, data.ids)
    same.augment = ("crop", "flip")
    kinds = same.batch(index, device=CPU, view=(0, 0)).images.flatten(1).unique(dim=0)
    assert len(kinds) > 40  # of 162 possible crops and flips


@pytest.mark.parametrize("c", [1, 3])
def test_color_is_the_same_in_pieces(c: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(256, (9, 12, 10, c), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    factors = augment.color_factors((0, 3), torch.arange(9))
    whole = augment.color(pixels, factors, 255.0)
    assert torch.equal(whole, augment.color(pixels.float().div(255), factors)) and 0 <= whole.min() < whole.max() <= 1
    monkeypatch.setattr(augment, "CHUNK", 2 * 12 * 10 * c)
    assert torch.equal(augment.color(pixels, factors, 255.0), whole)
    assert augment.color(pixels[:0], factors[:0], 255.0).shape == (0, 12, 10, c)
