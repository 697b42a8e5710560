"""A part of an image: what CutMix and SnapMix cut out and paste."""

from __future__ import annotations

from typing import NamedTuple


class Box(NamedTuple):
    """A part of an image: rows ``top`` to ``bottom`` and columns ``left`` to ``right``, the latter of each excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def part(self) -> tuple[slice, slice]:
        """It, as an index of rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def size(self) -> tuple[int, int]:
        """Its height and width."""
        return self.bottom - self.top, self.right - self.left

    @property
    def area(self) -> int:
        """Its pixels."""
        return self.size[0] * self.size[1]
