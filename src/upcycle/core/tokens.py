"""Where a vision transformer has its tokens: the blocks that they pass, the grid that they lie in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.taps import observed

PREFIX = 8
"""Tokens at most that stand before those of the image: of a class, registers."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The blocks of a vision transformer, through which its tokens (b, n, d) pass.

    Args:
        names: of the blocks, in the order in which they run.
        prefix: how many tokens stand before those of the image.
        grid: rows and columns that the image's tokens lie in, row by row.
        width: d.
    """

    names: tuple[str, ...]
    prefix: int
    grid: tuple[int, int]
    width: int

    @property
    def places(self) -> int:
        """The number of the image's tokens."""
        return self.grid[0] * self.grid[1]


def blocks_of(model: Model) -> Blocks:
    """Find the blocks of a vision transformer by one forward of two images.

    They are the children of a submodule ``blocks`` that pass on tokens of one shape, as in ``zoo:vit``,
    ``zoo:vit_plain`` and timm; the grid is that of the last convolution before them.

    Raises:
        UserError: there are none.
    """
    network, calls = model.module, observed(model)
    for name, found in network.named_modules():
        if name.rpartition(".")[2] != "blocks" or not isinstance(found, nn.Sequential | nn.ModuleList):
            continue
        names = tuple(f"{name}.{child}" for child, _ in found.named_children())
        passed = [call for call in calls if call.name in names]
        shapes = {t.shape if isinstance(t, Tensor) else None for call in passed for t in (call.input, call.output)}
        if [call.name for call in passed] != list(names) or len(shapes) != 1:
            continue
        shape = shapes.pop()
        if shape is None or len(shape) != 3 or shape[0] != 2:
            continue
        first = next(i for i, call in enumerate(calls) if call.name == names[0])
        for call in reversed([c for c in calls[:first] if isinstance(c.module, nn.Conv2d) and c.output.ndim == 4]):
            rows, columns = call.output.shape[2:]
            if 0 <= (prefix := shape[1] - rows * columns) <= PREFIX:
                return Blocks(names=names, prefix=prefix, grid=(rows, columns), width=shape[2])
    raise UserError(
        f"{model.name} is no vision transformer whose blocks are known: it needs a submodule 'blocks' which tokens of "
        "one number and width pass, behind a convolution, as zoo:vit_plain, zoo:vit and those of timm have."
    )
