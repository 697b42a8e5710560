"""Image files without classes, ready for one network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.core.models import Model
from upcycle.core.reading import WHITE
from upcycle.data.decode import SUFFIXES, decode, readable
from upcycle.data.images import ImageSplit
from upcycle.data.listing import Left, image_files
from upcycle.data.pixels import Form, Pixels


def read_pictures(place: Path, form: Form) -> tuple[Pixels, list[str], list[str]]:
    """An image file, or every image below a folder, in order; as :func:`upcycle.data.load` reads them.

    White in images of more than 8 bits is that of the form, or that of the whole range: what is white in an image must
    not depend on the others.

    Returns:
        the pixels; the paths relative to the folder; and what was left out or done to images, in sentences.

    Raises:
        UserError: if there is none, or some are broken (named).
    """
    left = Left()
    if place.is_file():
        files, names = [place], [place.name]
    else:
        files = image_files(place, left) if place.is_dir() else []
        names = [str(p.relative_to(place)) for p in files]
    if not place.exists():
        raise UserError(f"There is no folder or image {readable(str(place))}.")
    require(bool(files), f"{readable(str(place))} holds no image ({', '.join(SUFFIXES)}).")
    found = decode(lambda: ((i, str(p), p) for i, p in enumerate(files)), len(files), form)
    notes = left.notes(readable(place.name))
    if found.reading.white == WHITE and not form.reading.white:
        notes.append(
            f"There are images of more than 8 bits, and the network does not say what is white in them: {WHITE:,} is "
            "taken for it, the end of their range (--white)."
        )
    return found, [readable(name) for name in names], notes


def as_split(pixels: Tensor, model: Model) -> ImageSplit:
    """Images without labels, in the normalisation that ``model`` expects."""
    n = len(pixels)
    return ImageSplit(images=pixels, labels=torch.full((n,), -1), ids=torch.arange(n), mean=model.mean, std=model.std)
