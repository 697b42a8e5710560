"""Image files without classes, ready for one network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.core.models import Model
from upcycle.core.reading import WHITE
from upcycle.data.decode import SUFFIXES, decode, problem_of, readable
from upcycle.data.images import ImageSplit
from upcycle.data.listing import Left, image_files
from upcycle.data.pixels import Form, Pixels, decode_one, fit, pixels_of


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


def pixels_for(model: Model, given: Any) -> tuple[Tensor, list[str]]:
    """The pixels of images in memory or in files, as a network takes them, with the names of the images.

    Args:
        given: a PIL image, a list of PIL images and paths, or a tensor (n, c, h, w) or (c, h, w), uint8 or in [0, 1].

    Raises:
        UserError: something else, no image, or one that cannot be used (named).
    """
    channels, height, width = model.input_shape
    white = replace(model.reading, white=model.reading.white or WHITE)
    form = Form(size=(height, width), channels=channels, reading=white)
    if isinstance(given, Tensor):
        pixels = _planes(given)
        return fit(pixels, form).images, [f"image {i}" for i in range(1, len(pixels) + 1)]
    images = list(given) if isinstance(given, list | tuple) else [given]
    require(bool(images), "There is no image to answer to: the list is empty.")
    found, names = [], []
    for i, image in enumerate(images, 1):
        path = image if isinstance(image, str | Path) else getattr(image, "filename", "")
        names.append(readable(Path(path).name) if path else f"image {i}")
        if not isinstance(image, str | Path | Image.Image):
            raise UserError(
                f"Image {i} is a {type(image).__name__}: give paths, PIL images (PIL.Image.fromarray makes one of an "
                "array), or one tensor of shape (n, c, h, w)."
            )
        try:
            read = pixels_of(image, form) if isinstance(image, Image.Image) else decode_one(Path(image), form)
            found.append(torch.from_numpy(read[0].copy()))
        except (ValueError, OSError) as error:
            raise UserError(f"{names[-1]} cannot be used: {problem_of(error)}.") from error
    return torch.stack(found), names


def _planes(given: Tensor) -> Tensor:
    """Pixels as splits hold them: uint8 (n, h, w, c), or float32 (n, c, h, w) in [0, 1]."""
    batch = given.detach().cpu()
    batch = batch[None] if batch.ndim == 3 else batch
    require(
        batch.ndim == 4 and batch.shape[1] in (1, 3) and len(batch) > 0,
        f"Images as a tensor are (n, c, h, w) or (c, h, w) with 1 or 3 channels, not {tuple(given.shape)}.",
    )
    if batch.dtype == torch.uint8:
        return batch.permute(0, 2, 3, 1).contiguous()
    require(
        batch.is_floating_point() and bool(((batch >= 0) & (batch <= 1)).all()),
        f"Pixels as a tensor are uint8, or floating in [0, 1], not {given.dtype} from {given.min():g} to "
        f"{given.max():g}; what is normalised already goes to model.module.",
    )
    return batch.float()


def as_split(pixels: Tensor, model: Model) -> ImageSplit:
    """Images without labels, in the normalisation that ``model`` expects."""
    n = len(pixels)
    return ImageSplit(images=pixels, labels=torch.full((n,), -1), ids=torch.arange(n), mean=model.mean, std=model.std)
