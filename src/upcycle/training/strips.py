"""Images side by side as one PNG, for the pictures of a report."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

    from upcycle.training.boxes import Box

SIDE = 96
"""Pixels that a shown image is high, at least."""
EDGE = (230, 60, 30)


def pixels_of(image: Tensor, normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None) -> Tensor:
    """An image (c, h, w) in [0, 1] as (h, w, 3).

    Args:
        normalisation: mean and standard deviation of the image; ``None``: it is shown between its extremes.
    """
    image = image.detach().float().cpu()
    if normalisation is None:
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-6)
    else:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in normalisation)
        image = image * std + mean
    return (image if len(image) == 3 else image[:1].expand(3, -1, -1)).clamp(0, 1).permute(1, 2, 0)


def framed(pixels: Tensor, frame: Box | None = None) -> Image.Image:
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


def strip(parts: list[Image.Image]) -> str:
    """Pictures side by side as one PNG, in base64."""
    from PIL import Image

    width, height, gap = parts[0].width, parts[0].height, 4
    whole = Image.new("RGB", (len(parts) * (width + gap) - gap, height), "white")
    for i, part in enumerate(parts):
        whole.paste(part, (i * (width + gap), 0))
    file = io.BytesIO()
    whole.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
