"""Image files without classes, ready for one network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.core.models import Model
from upcycle.data.decode import SUFFIXES, Size, image_files, read_images
from upcycle.data.images import ImageSplit


def read_pictures(place: Path, *, size: Size | None = None, channels: int | None = None) -> tuple[Tensor, list[str]]:
    """An image file, or every image below a folder, in order.

    Args:
        size, channels: see :func:`upcycle.data.decode.decode`.

    Returns:
        the pixels, uint8 (n, h, w, c), and the paths relative to the folder.

    Raises:
        UserError: if there is none, or some are broken (named).
    """
    if place.is_file():
        files, names = [place], [place.name]
    else:
        files = image_files(place) if place.is_dir() else []
        names = [str(p.relative_to(place)) for p in files]
    if not place.exists():
        raise UserError(f"There is no folder or image {place}.")
    require(bool(files), f"{place} holds no image ({', '.join(SUFFIXES)}).")
    return read_images(files, size=size, channels=channels), names


def as_split(pixels: Tensor, model: Model) -> ImageSplit:
    """Images without labels, in the normalisation that ``model`` expects."""
    n = len(pixels)
    return ImageSplit(images=pixels, labels=torch.full((n,), -1), ids=torch.arange(n), mean=model.mean, std=model.std)
