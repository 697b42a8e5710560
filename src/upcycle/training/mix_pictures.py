"""The picture of SnapMix for a report: some images, their percent maps, and what was mixed of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from upcycle.training.strips import framed, pixels_of, strip

if TYPE_CHECKING:
    from upcycle.training.boxes import Box

ROWS = 6
"""Images that are shown."""


class Shown(NamedTuple):
    """Some images that SnapMix mixed.

    Args:
        x, S: the images (n, c, h, w) and their percent maps (n, h, w).
        partners, S_partners: the same of their partners.
        mixed, T: what became of them, and the targets (n, k).
        target, source: the boxes that were pasted over and cut out.
    """

    x: Tensor
    S: Tensor
    partners: Tensor
    S_partners: Tensor
    mixed: Tensor
    T: Tensor
    target: Box
    source: Box


def picture(
    shown: Shown, normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None, classes: tuple[str, ...]
) -> dict[str, Any]:
    """A picture of the kind ``images``, a row for each image.

    Args:
        shown: what was mixed.
        normalisation: mean and standard deviation of the images; ``None``: they are shown between their extremes.
        classes: their names; their numbers if there are none.
    """
    items = []
    for i in range(len(shown.x)):
        a, b, m = (pixels_of(image, normalisation) for image in (shown.x[i], shown.partners[i], shown.mixed[i]))
        parts = [
            framed(a, shown.target),
            framed(_heated(a, shown.S[i])),
            framed(b, shown.source),
            framed(_heated(b, shown.S_partners[i])),
            framed(m, shown.target),
        ]
        shares = [(classes[c] if classes else f"class {c}", float(shown.T[i, c])) for c in range(shown.T.shape[1])]
        label = " + ".join(f"{share:.2f} {name}" for name, share in shares if share) or "no label"
        items.append({"png": strip(parts), "label": label, "alt": f"an image, its partner and their mixture: {label}"})
    return {
        "kind": "images",
        "layout": "rows",
        "title": "What SnapMix mixed",
        "caption": "An image and where its class is seen in it, its partner and the same, and the mixture, in the last "
        "epoch. What lies in the second frame takes the place of what lay in the first. Beside each row stand the "
        "shares of the target: evidence that is left, and evidence that came. They need not sum to 1.",
        "items": items,
    }


def _heated(pixels: Tensor, S: Tensor) -> Tensor:
    """An image under its map, which is red where there is evidence and yellow where most of it is."""
    strength = S.detach().float().cpu().nan_to_num(0)
    strength = (strength / strength.max().clamp_min(1e-12))[..., None]
    heat = torch.cat([torch.ones_like(strength), 0.9 * strength**2, torch.zeros_like(strength)], 2)
    return torch.lerp(pixels, heat, 0.75 * strength)
