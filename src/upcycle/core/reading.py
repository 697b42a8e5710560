"""How image files become the pixels that a network takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict, get_args

from msgspec import Meta

from upcycle.core.errors import require

Resize = Literal["crop", "squash", "pad", "center"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
RESIZES: dict[str, str] = {  # what was done, in words
    "crop": "scaled to cover this size and cropped to it",
    "squash": "squashed to this size",
    "pad": "scaled to fit into this size and padded with black",
    "center": "scaled by the shorter side and cropped to the centre",
}
WHITE = 2**16 - 1
"""White of the whole range of 16 bits."""


class Read(TypedDict):
    """A :class:`Reading` in a file, as far as it is not as usual."""

    resize: NotRequired[Resize]
    interpolation: NotRequired[Interpolation]
    crop_pct: NotRequired[Annotated[float, Meta(ge=0.25, le=1)]]
    white: NotRequired[Annotated[int, Meta(ge=1, lt=2**31)]]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The way in which image files become pixels. Data are read in one, and a network is used in the same.

    Args:
        resize: what happens to an image that is not of the size asked for. ``crop``: it is made just large enough to
            cover that size, and its centre is taken. ``squash``: each side is brought to its length alone. ``pad``: it
            is made just small enough to fit, and black fills the rest. ``center``: its shorter side is brought to that
            of the size over ``crop_pct``, and the centre is taken; to the pixel as timm and torchvision do.
        interpolation: how pixels are resampled, by Pillow's name in small letters.
        crop_pct: the share of each side that is kept, with ``center`` and ``squash``; timm's name for it.
        white: the value that is white in images of more than 8 bits. 0: no such image was seen. Then a training split
            with such images says it: the largest value in them, where their highest bit is never used, or else the
            whole range of 16 bits.

    Raises:
        UserError: another way to resize or to resample, or a value out of its range.
    """

    resize: Resize = "crop"
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0
    white: int = 0

    def __post_init__(self) -> None:
        require(self.resize in RESIZES, f"resize must be one of {', '.join(RESIZES)}, not '{self.resize}'.")
        known = get_args(Interpolation)
        require(
            self.interpolation in known,
            f"interpolation must be one of {', '.join(known)}, not '{self.interpolation}'.",
        )
        require(0.25 <= self.crop_pct <= 1, f"crop_pct must be a share from 0.25 to 1, not {self.crop_pct:g}.")
        require(
            self.crop_pct == 1 or self.resize in ("center", "squash"),
            f"crop_pct goes with resize center or squash, and resize is {self.resize}.",
        )
        require(0 <= self.white < 2**31, f"white must be a value of a pixel, 1 or more, not {self.white}.")

    @property
    def drafts(self) -> bool:
        """Whether large JPEG images may be decoded at a fraction of their size, which moves pixels by a level.

        Not where a network's own configuration is followed to the pixel.
        """
        return self.resize != "center" and self.interpolation == "bilinear" and self.crop_pct == 1

    def record(self) -> dict[str, Any]:
        """Give what is not as usual, as JSON data; empty where all is."""
        return {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default}
