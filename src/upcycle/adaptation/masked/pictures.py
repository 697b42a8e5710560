"""The picture of a masked autoencoder for a report: images, what was left of them, and what was made of that."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from upcycle.adaptation.masked.parts import Grid, hidden_places, images_of, patches_of, standardised
from upcycle.training.strips import framed, pixels_of, strip

ROWS = 6
"""Images that are shown."""
GREY = 0.5
"""The grey in the place of hidden pixels, from black to white."""


def rebuilt(
    images: Float[Tensor, "b c h w"], pred: Float[Tensor, "b n p"], keep: Int[Tensor, "b v"], grid: Grid
) -> Float[Tensor, "b c h w"]:
    """Put what a decoder made of hidden patches beside the visible ones, which are as they were.

    A decoder answers with standardised pixels; mean and spread of each patch are the image's own.

    Args:
        images: what the encoder saw a part of.
        pred: what its decoder gave.
        keep: the visible places.
        grid: rows and columns of the patches.
    """
    own = patches_of(images, grid)
    _, mean, divisor = standardised(own)
    hidden = hidden_places(keep, own.shape[1])[..., None].expand(-1, -1, own.shape[2])
    made = own.scatter(1, hidden, (pred.to(own) * divisor + mean).gather(1, hidden))
    return images_of(made, grid, images.shape[1:])  # type: ignore[arg-type]


def picture(
    images: Float[Tensor, "b c h w"],
    pred: Float[Tensor, "b n p"],
    keep: Int[Tensor, "b v"],
    grid: Grid,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
) -> dict[str, Any]:
    """Make a picture of the kind ``images``, a row for each image: as it is, what was visible, what was made of it.

    Args:
        images, pred, keep, grid: see :func:`rebuilt`.
        normalisation: mean and standard deviation of the images.
    """
    patches = patches_of(images, grid)
    hidden = hidden_places(keep, patches.shape[1])[..., None].expand(-1, -1, patches.shape[2])
    blank = torch.cat(
        [
            torch.full_like(images[:1, i : i + 1], (GREY - m) / s)
            for i, (m, s) in enumerate(zip(*normalisation, strict=True))
        ],
        1,
    )
    empty = patches_of(blank.expand(len(images), -1, -1, -1), grid)
    left = images_of(patches.scatter(1, hidden, empty.gather(1, hidden)), grid, images.shape[1:])  # type: ignore[arg-type]
    made, items = rebuilt(images, pred, keep, grid), []
    for i in range(min(ROWS, len(images))):
        parts = [framed(pixels_of(x[i], normalisation)) for x in (images, left, made)]
        items.append({"png": strip(parts), "label": "", "alt": "an image, its visible patches, and its reconstruction"})
    return {
        "kind": "images",
        "layout": "rows",
        "title": "What is made of the visible patches",
        "caption": f"An image, the {keep.shape[1]} of its {patches.shape[1]} patches that the encoder sees, and what "
        "the decoder makes of the others after the last epoch. Brightness and contrast of each patch are the image's "
        "own, since it does not give them.",
        "items": items,
    }
