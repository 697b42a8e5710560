"""How image files become the pixels that a network takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from upcycle.core.errors import require

Resize = Literal["crop", "squash", "pad"]
RESIZES: dict[str, str] = {  # what was done, in words
    "crop": "scaled to cover this size and cropped to it",
    "squash": "squashed to this size",
    "pad": "scaled to fit into this size and padded with black",
}
WHITE = 2**16 - 1
"""White of the whole range of 16 bits."""


class Read(TypedDict):
    """A :class:`Reading` in a file, as far as it is not as usual."""

    resize: NotRequired[Resize]
    white: NotRequired[Annotated[int, Meta(ge=1, lt=2**31)]]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The way in which image files become pixels. Data are read in one, and a network is used in the same.

    Args:
        resize: what happens to an image that is not of the size asked for. ``crop``: it is made just large enough to
            cover that size, and its centre is taken. ``squash``: each side is brought to its length alone. ``pad``: it
            is made just small enough to fit, and black fills the rest.
        white: the value that is white in images of more than 8 bits. 0: no such image was seen. Then a training split
            with such images says it: the largest value in them, where their highest bit is never used, or else the
            whole range of 16 bits.

    Raises:
        UserError: another way to resize, or a negative value.
    """

    resize: Resize = "crop"
    white: int = 0

    def __post_init__(self) -> None:
        require(self.resize in RESIZES, f"resize must be one of {', '.join(RESIZES)}, not '{self.resize}'.")
        require(0 <= self.white < 2**31, f"white must be a value of a pixel, 1 or more, not {self.white}.")

    def record(self) -> dict[str, Any]:
        """Give what is not as usual, as JSON data; empty where all is."""
        return {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default}
