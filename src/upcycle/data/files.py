"""A folder of image files without classes, ready for one network."""

from __future__ import annotations

from pathlib import Path

import torch

from upcycle.core.errors import require
from upcycle.core.models import Model
from upcycle.data.decode import SUFFIXES, read_images
from upcycle.data.images import ImageSplit


def read_folder(folder: Path, model: Model) -> tuple[ImageSplit, list[str]]:
    """Every image below ``folder``, in the size, channels and normalisation that ``model`` expects.

    Returns:
        the images (without labels) and their paths relative to ``folder``, in order.

    Raises:
        UserError: if there is none, or some are broken (named).
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    require(bool(files), f"{folder} holds no image ({', '.join(SUFFIXES)}).")
    pixels = read_images(files, size=model.input_shape[1], channels=model.input_shape[0])
    split = ImageSplit(images=pixels, labels=torch.full((len(files),), -1), ids=torch.arange(len(files)),
                       mean=model.mean, std=model.std)  # fmt: skip
    return split, [str(p.relative_to(folder)) for p in files]
