"""Images with heat maps over them, for a report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from upcycle.core.errors import UserError, require, unknown
from upcycle.core.models import Model
from upcycle.data import ImageSplit
from upcycle.diagnosis.attribution import EXPLAINERS, Attribution, explain

STRONGEST = 0.55
"""Opacity of a map where it is highest; the image shows through."""
STAND_IN = "occlusion"
"""The method where no other of those that are taken by default serves a network."""


def maps_of(
    net: Model, split: ImageSplit, methods: Sequence[str], target: int | None = None, *, strict: bool = True
) -> tuple[Tensor, dict[str, Attribution], list[str]]:
    """The images of a split as the network sees them, (b, c, h, w), their heat maps by each method, and notes.

    Args:
        target: the class that is asked for; that of each answer if not given.
        strict: raise where a method cannot serve the network. If not, it is left out with a note, and where no method
            is left, occlusion stands in, which needs answers alone.
    """
    x = split.batch(torch.arange(len(split)), device=torch.device("cpu")).images
    found: dict[str, Attribution] = {}
    notes = []
    for method in methods:
        try:
            found[method] = explain(net, x, target, method=method)
        except UserError as error:
            if strict:
                raise
            notes.append(f"No map by {_words(method)}. {error}")
    if not found:
        found[STAND_IN] = explain(net, x, target, method=STAND_IN)
        notes.append(f"Maps are by {STAND_IN} in their place.")
    return x, found, notes


def known(methods: Sequence[str]) -> None:
    """Raise :class:`~upcycle.core.errors.UserError` unless these are methods of heat maps."""
    require(bool(methods), "methods must name at least one method.")
    for method in methods:
        if method not in EXPLAINERS:
            raise unknown("attribution method", method, EXPLAINERS)


def overlay(
    title: str,
    caption: str,
    net: Model,
    split: ImageSplit,
    x: Tensor,
    found: dict[str, Attribution],
    left: Sequence[str] = (),
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """A picture of the kind ``overlay``.

    Args:
        x, found, left: images, maps and notes that :func:`maps_of` made of ``split``.
        names: what the images are called; their numbers if not given.
    """
    pixels, items = as_pixels(x, net), []
    for i, answer in enumerate(next(iter(found.values())).target.tolist()):
        label, text = int(split.labels[i]), net.classes[answer]
        if label >= 0 and label != answer:
            text = f"{net.classes[label]}, taken for {text}"
        name = names[i] if names else f"image {int(split.ids[i])}"
        items.append({"png": encoded(as_image(pixels[i])), "label": text, "alt": f"{name}: {text}",
                      "maps": {_words(m): encoded(as_heat(a.maps[i])) for m, a in found.items()}})  # fmt: skip
    area = [
        f"By {_words(m)}, half of what speaks for an answer lies on {held_by_half(a.maps):.0%} of an image, on average"
        for m, a in found.items()
    ]
    notes = dict.fromkeys([*area, *left, *(note for a in found.values() for note in a.notes)])
    return {"kind": "overlay", "title": title, "caption": caption, "notes": list(notes),
            "methods": [_words(m) for m in found], "items": items}  # fmt: skip


def as_pixels(x: Tensor, net: Model) -> Tensor:
    """Normalised images back as uint8 (b, h, w, c), with three channels or one."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (net.mean, net.std))
    pixels = ((x * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return (pixels if pixels.shape[1] in (1, 3) else pixels[:, :1]).permute(0, 2, 3, 1)


def as_image(pixels: Tensor) -> Image.Image:
    """uint8 (h, w, c) as a picture."""
    array = pixels.contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def as_heat(m: Tensor) -> Image.Image:
    """A map (h, w) in [0, 1] as colour to lay over an image: red where it begins to count, yellow at its highest."""
    m = m.clamp(0, 1)
    rgba = torch.stack([torch.ones_like(m), 0.9 * m**2, torch.zeros_like(m), STRONGEST * m], dim=-1)
    return Image.fromarray((rgba * 255).round().to(torch.uint8).numpy(), "RGBA")


def held_by_half(maps: Tensor) -> float:
    """The least share of an image's pixels that holds half of its map, on average over maps (n, h, w)."""
    heat = maps.clamp_min(0).flatten(1).sort(dim=1, descending=True).values
    reached = heat.cumsum(1) >= heat.sum(1, keepdim=True) / 2
    return float((reached.int().argmax(1) + 1).double().mean()) / heat.shape[1]


def encoded(image: Image.Image) -> str:
    """A picture as PNG, in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _words(method: str) -> str:
    return method.replace("_", " ")
