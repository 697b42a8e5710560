"""Photographs as people have them, generated: of many sizes, some grey, some of 16 bits, some with four channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("apple", "bird", "car")
DEEP = 4095  # white of the images of 16 bits: a camera's 12


def photograph(i: int, kind: int) -> Image.Image:
    """Number ``i`` of class ``kind``: a patch whose place and colour tell the class, on noise, of a size of its own."""
    rng = np.random.default_rng(1000 * kind + i)
    height, width = (int(n) for n in rng.integers(16, 40, 2))
    pixels = rng.uniform(0, 0.5, (height, width, 3))
    top, left = (kind % 2) * height // 2, (kind // 2) * width // 2
    pixels[top : top + height // 2, left : left + width // 2, kind] += 0.5
    if i % 10 == 1:
        return Image.fromarray((pixels.mean(2) * 255).astype(np.uint8))
    if i % 10 == 2:
        return Image.fromarray((pixels.mean(2) / pixels.mean(2).max() * DEEP).astype(np.uint16))
    whole = (pixels * 255).astype(np.uint8)
    if i % 10 == 3:
        return Image.fromarray(np.concatenate([whole, np.full((height, width, 1), 200, np.uint8)], 2))
    return Image.fromarray(whole)


LAYOUTS: dict[str, tuple[str, ...]] = {
    "classes": ("",),
    "usual": ("train", "val", "test"),
    "Training and Testing": ("Training", "Testing"),
    "archive": ("seg_train/seg_train", "seg_test/seg_test"),
    "Train and Valid": ("Train", "Valid"),
    "dev and test": ("dev", "test"),
}
"""Where the images of a class go, in turn: the first gets three of five, and the others share the rest."""


def photographs(root: Path, layout: str, images: range) -> Path:
    """Photographs of all classes in a layout; the same numbers always give the same files."""
    first, *others = LAYOUTS[layout]
    for kind, name in enumerate(CLASSES):
        for i in images:
            place = first if i % 5 < 3 or not others else others[i // 5 % len(others)]
            folder = root / place / name
            folder.mkdir(parents=True, exist_ok=True)
            photograph(i, kind).save(folder / f"{i:03d}.{'png' if i % 10 in (2, 3) else 'bmp'}")
    return root
