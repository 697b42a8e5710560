"""A zoo of networks as tables: how alike their nodes are, what their blocks cost, how networks of blocks score."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from upcycle.assembly.reassembly.naswot import naswot, score_paths
from upcycle.assembly.reassembly.partition import Partition
from upcycle.assembly.reassembly.search import Block, Passage, Size
from upcycle.measure.similarity import Kind, Similarity
from upcycle.surgery.blocks import Chain, node_features
from upcycle.surgery.signals import Signal
from upcycle.surgery.stitch import pieces, plan

if TYPE_CHECKING:
    from upcycle.data.images import ImageSplit


BATCH = 256
"""Images of the probe in one batch of the debiased similarity."""


SCORED = 32
"""Images in a batch of the training-free score."""


Choice = tuple[int, int, int]
"""A block: the network's number, first and last node."""


@dataclass(frozen=True)
class Mix:
    """A network that can be put together of blocks.

    Args:
        blocks: in the order of the new network.
        params: its parameters, stitches and head included.
        macs: its multiply-adds for one image.
        fit: how well its blocks fit their sets and each other, summed.
    """

    blocks: tuple[Choice, ...]
    params: int
    macs: int
    fit: float


def similarities(chains: Sequence[Chain], split: ImageSplit, kind: Kind, device: torch.device | str = "cpu") -> Tensor:
    """Compare every node of the zoo with every other: float64 (L, L), those of one network after another.

    Args:
        chains: the zoo.
        split: the probe, at least four images; each network runs once over it.
        kind: measure of similarity, see :class:`~upcycle.measure.similarity.Similarity`.
        device: where the networks run.
    """
    gathered = Similarity(kind)
    for rows in zip(*(node_features(c, split, BATCH, device) for c in chains), strict=True):
        gathered.add([x for row in rows for x in row])
    return gathered.map().cpu()


def block_table(chains: Sequence[Chain], made: Partition) -> tuple[list[Choice], list[Block]]:
    """List every block of a partition, and beside it what the search must know of it."""
    choices, table = [], []
    for n, (own, cuts, sets) in enumerate(zip(chains, made.cuts, made.sets, strict=True)):
        for k, (first, end) in enumerate(itertools.pairwise(cuts)):
            takes, gives = own.nodes[first].takes, own.nodes[end - 1].gives
            choices.append((n, first, end - 1))
            table.append(
                Block(
                    network=n,
                    stage=k,
                    equivalence=sets[k],
                    inputs=takes.channels,
                    outputs=gives.channels,
                    size=takes.size,
                    cost=functools.partial(_passage, own, first, end - 1),
                    takes=takes.kind,
                    gives=gives.kind,
                )
            )
    return choices, table


def _passage(own: Chain, first: int, last: int, size: Size) -> Passage | None:
    """The cost of a block on an input of that size; ``None`` where it cannot take it."""
    signal = _placed(size, own.nodes[first].takes)
    spent = own.cost(first, last, signal) if signal else None
    return Passage(spent.params, spent.macs, _size(spent.gives)) if spent else None


def _size(signal: Signal) -> Size:
    """The size of a signal as the search has it: (h, w), or the number of tokens where some have no place in it."""
    return (signal.extra + math.prod(signal.size),) if signal.extra else signal.size


def _placed(size: Size, native: Signal) -> Signal | None:
    """The signal of that size for a block that was trained on ``native``."""
    if len(size) == 2:
        return Signal(native.layout, native.channels, (size[0], size[1]))
    tokens, extra = size[0], size[0] - math.prod(native.size)
    if native.layout == "tokens" and extra >= 0:
        return Signal(native.layout, native.channels, native.size, extra)
    side = math.isqrt(tokens)
    return Signal(native.layout, native.channels, (side, side), 0 if native.layout == "grid" else tokens - side**2)


def used_chains(chains: Sequence[Chain], choices: Sequence[Choice]) -> tuple[list[Chain], list[Choice]]:
    """Pick the networks that a choice of blocks uses, and number the choice by them."""
    used = list(dict.fromkeys(n for n, _, _ in choices))
    return [chains[n] for n in used], [(used.index(n), first, last) for n, first, last in choices]


def score_zoo(
    chains: Sequence[Chain], split: ImageSplit, batches: int, device: torch.device | str = "cpu"
) -> list[float]:
    """Score the networks of the zoo themselves, without training (:mod:`upcycle.assembly.reassembly.naswot`).

    Args:
        chains: the zoo.
        split: images, of which the first ``batches`` x 32 are taken, normalised as each network expects.
        batches: how many batches of 32 images.
        device: where the networks run, and stay.
    """
    found = []
    for own in chains:
        seen = split.normalised(own.model.mean, own.model.std)
        found.append(naswot(own.root.to(device), _batches(seen, batches, device)))
    return found


def score_candidates(
    chains: Sequence[Chain],
    candidates: Sequence[Sequence[Choice]],
    classes: int,
    split: ImageSplit,
    seed: int,
    batches: int,
    device: torch.device | str = "cpu",
) -> list[float]:
    """Score stitched, untuned networks without training (:mod:`upcycle.assembly.reassembly.naswot`).

    Args:
        chains: the zoo.
        candidates: the blocks of each.
        classes: outputs of the new heads.
        split: images, of which the first ``batches`` x 32 are taken.
        seed: of the new weights, as in :func:`~upcycle.surgery.stitch.stitched`.
        batches: how many batches of 32 images.
        device: where the networks run.
    """
    found = [0.0] * len(candidates)
    by_first: dict[int, list[int]] = {}
    for i, blocks in enumerate(candidates):
        by_first.setdefault(blocks[0][0], []).append(i)
    for n, members in by_first.items():  # one normalisation each
        images = list(_batches(split.normalised(chains[n].model.mean, chains[n].model.std), batches, device))
        makers: dict[Any, Callable[[], nn.Module]] = {}
        paths = []
        for i in members:
            own, blocks = used_chains(chains, candidates[i])
            parts = pieces(plan(own, blocks, classes), own, seed)
            makers.update(parts)
            paths.append([key for key, _ in parts])
        made = score_paths(paths, functools.partial(_made, makers, device), images)
        for i, value in zip(members, made, strict=True):
            found[i] = value
    return found


def _made(makers: dict[Any, Callable[[], nn.Module]], device: torch.device | str, key: Any) -> nn.Module:
    """Build the piece of that key."""
    return makers[key]().to(device)


def _batches(split: ImageSplit, batches: int, device: torch.device | str) -> Iterator[Tensor]:
    """The first images of a split in whole batches; all as one batch where there are fewer than that takes."""
    for index in torch.arange(min(batches * SCORED, len(split))).split(SCORED):
        if len(index) == SCORED or len(split) < SCORED:
            yield split.batch(index, device=torch.device(device)).images
