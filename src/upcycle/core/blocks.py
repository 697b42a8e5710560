"""Large tensors of a save point in blocks of rows, so that a block that has not changed is not written again."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

BLOCK = 16 * 2**20
"""Bytes of a block; smaller tensors stay whole and together."""


def split_off(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide tensors into small ones, and blocks of the large ones by ``NAME#NUMBER``.

    Blocks are cut at the same rows however many there are: of a store that grows, only the last one changes.
    """
    small: dict[str, Tensor] = {}
    blocks: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size < BLOCK or tensor.ndim == 0:
            small[name] = tensor
            continue
        rows = max(1, BLOCK * len(tensor) // size)
        blocks |= {f"{name}#{number}": part for number, part in enumerate(tensor.split(rows))}
    return small, blocks


def put_together(blocks: dict[str, Tensor]) -> dict[str, Tensor]:
    """The large tensors that :func:`split_off` has divided."""
    found: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, part in blocks.items():
        tensor, _, number = name.rpartition("#")
        found[tensor][int(number)] = part
    return {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in found.items()}
