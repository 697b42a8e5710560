"""The picture of SnapMix for a report: some images, their percent maps, and what was mixed of them."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

    from upcycle.training.boxes import Box

ROWS = 6
"""Images that are shown."""
SIDE = 96
"""Pixels that a shown image is high, at least."""
EDGE = (230, 60, 30)


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
        a, b, m = (_pixels(image, normalisation) for image in (shown.x[i], shown.partners[i], shown.mixed[i]))
        parts = [
            _framed(a, shown.target),
            _framed(_heated(a, shown.S[i])),
            _framed(b, shown.source),
            _framed(_heated(b, shown.S_partners[i])),
            _framed(m, shown.target),
        ]
        shares = [(classes[c] if classes else f"class {c}", float(shown.T[i, c])) for c in range(shown.T.shape[1])]
        label = " + ".join(f"{share:.2f} {name}" for name, share in shares if share) or "no label"
        items.append({"png": _strip(parts), "label": label, "alt": f"an image, its partner and their mixture: {label}"})
    return {
        "kind": "images",
        "layout": "rows",
        "title": "What SnapMix mixed",
        "caption": "An image and where its class is seen in it, its partner and the same, and the mixture, in the last "
        "epoch. What lies in the second frame takes the place of what lay in the first. Beside each row stand the "
        "shares of the target: evidence that is left, and evidence that came. They need not sum to 1.",
        "items": items,
    }


def _pixels(image: Tensor, normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None) -> Tensor:
    """An image (c, h, w) in [0, 1] as (h, w, 3)."""
    image = image.detach().float().cpu()
    if normalisation is None:
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-6)
    else:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in normalisation)
        image = image * std + mean
    return (image if len(image) == 3 else image[:1].expand(3, -1, -1)).clamp(0, 1).permute(1, 2, 0)


def _heated(pixels: Tensor, S: Tensor) -> Tensor:
    """An image under its map, which is red where there is evidence and yellow where most of it is."""
    strength = S.detach().float().cpu().nan_to_num(0)
    strength = (strength / strength.max().clamp_min(1e-12))[..., None]
    heat = torch.cat([torch.ones_like(strength), 0.9 * strength**2, torch.zeros_like(strength)], 2)
    return torch.lerp(pixels, heat, 0.75 * strength)


def _framed(pixels: Tensor, frame: Box | None = None) -> Image.Image:
    """An image (h, w, 3) as a picture, enlarged, with a box in it framed."""
    from PIL import Image, ImageDraw

    h, w = pixels.shape[:2]
    scale = max(1, -(-SIDE // h))
    large = Image.fromarray((pixels * 255).round().to(torch.uint8).contiguous().numpy())
    large = large.resize((w * scale, h * scale), Image.Resampling.NEAREST)
    if frame is not None and frame.area:
        corners = [frame.left, frame.top, frame.right, frame.bottom]
        left, top, right, bottom = (scale * c for c in corners)
        ImageDraw.Draw(large).rectangle((left, top, right - 1, bottom - 1), outline=EDGE, width=2)
    return large


def _strip(parts: list[Image.Image]) -> str:
    """Pictures side by side as one PNG, in base64."""
    from PIL import Image

    width, height, gap = parts[0].width, parts[0].height, 4
    whole = Image.new("RGB", (len(parts) * (width + gap) - gap, height), "white")
    for i, part in enumerate(parts):
        whole.paste(part, (i * (width + gap), 0))
    file = io.BytesIO()
    whole.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
