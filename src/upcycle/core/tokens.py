"""Where a vision transformer has its tokens: the blocks that they pass, the grid that they lie in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.taps import Taps, observed

PREFIX = 8
"""Tokens at most that stand before those of the image: of a class, registers."""
CLOSE = 1e-5
"""How far a token may move, over the largest value of all, and count as the same."""


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


def alike(tokens: Float[Tensor, "2 n d"]) -> tuple[int, ...]:
    """The tokens that are the same for two images, if they are fewer than half: those know nothing of an image."""
    a, b = tokens
    rows = ((a - b).abs().amax(1) <= 1e-6 * a.abs().amax(1)).nonzero().flatten().tolist()
    return tuple(rows) if 2 * len(rows) < len(a) else ()


def last_of(model: Model, blocks: Blocks) -> str:
    """Name the module that gives the tokens as they are used: the LayerNorm behind the blocks, or the last of them.

    Args:
        blocks: those of the model.
    """
    calls = observed(model)
    at = next(i for i, call in enumerate(calls) if call.name == blocks.names[-1])
    shape = calls[at].output.shape
    for call in calls[at + 1 :]:
        if isinstance(call.module, nn.LayerNorm) and call.output.shape == shape:
            return call.name
    return blocks.names[-1]


def leaking(model: Model, blocks: Blocks) -> int:
    """Count the tokens beside its own that the pixels of one patch reach before the first block.

    Found by images of which one patch is changed: the first one, and one in the middle. The larger number of both.

    Args:
        blocks: those of the model.
    """
    _, h, w = model.input_shape
    rows, columns = blocks.grid
    changed = [(0, 0), (rows // 2, columns // 2)]
    images = model.example(1).to(next(model.module.parameters())).repeat(3, 1, 1, 1)
    for image, (row, column) in zip(images[1:], changed, strict=True):
        image[:, row * h // rows : (row + 1) * h // rows, column * w // columns : (column + 1) * w // columns] += 1
    first = next(call for call in observed(model, images) if call.name == blocks.names[0]).input
    apart = (first[1:] - first[0]).abs().amax(2) > CLOSE * first.abs().max()
    for moved, (row, column) in zip(apart, changed, strict=True):
        moved[blocks.prefix + row * columns + column] = False
    return int(apart.sum(1).max())


def encode(
    network: nn.Module, images: Tensor, blocks: Blocks, last: str, keep: Int[Tensor, "b v"] | None = None
) -> Float[Tensor, "b t d"]:
    """Give the tokens of a network behind its blocks, which only some of an image's pass.

    Those left out are dropped before the first block, positions added, so that they cost nothing. What follows the
    tokens, such as a classifier, runs too, on what is left of them.

    Args:
        network: the one that blocks were found in.
        images: a batch for it.
        blocks: its blocks.
        last: the module that gives the tokens, see :func:`last_of`.
        keep: places of the tokens that stay, v of each image; ``None``: all. Those before the image's always do.
    """

    def visible(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if keep is None:
            return None
        x = args[0]
        places = keep[..., None].expand(-1, -1, x.shape[2])
        return (torch.cat([x[:, : blocks.prefix], x[:, blocks.prefix :].gather(1, places)], 1), *args[1:])

    handle = network.get_submodule(blocks.names[0]).register_forward_pre_hook(visible)
    try:
        with Taps(network, [last]) as taps:
            network(images)
    finally:
        handle.remove()
    tokens = taps[last]
    if keep is not None and tokens.shape[1] != blocks.prefix + keep.shape[1]:  # a compiled network has no hooks
        raise RuntimeError(f"{tokens.shape[1]} tokens came where {blocks.prefix + keep.shape[1]} were let through")
    return tokens
