"""Blocks of different networks joined by stitches into one network, built from a recipe of plain data."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError, require
from upcycle.core.models import Model, source_of
from upcycle.core.seeds import seed_of
from upcycle.surgery.blocks import Chain, chain
from upcycle.surgery.signals import Layout, Signal, global_pool

SLOPE = 0.1
"""Of the LeakyReLU that ends a stitch."""
LARGEST = 2**28
"""Weights in one fresh layer; a recipe that asks for more is damaged."""
MOST = 100
"""Blocks in a network."""


class Stitch(nn.Module):
    """A layer with new weights from what one block gives to what another takes.

    - map to map: BatchNorm(a), t x t convolution a -> b with stride t and no bias, LeakyReLU(0.1);
    - map to tokens: the same, then (b, c, h, w) to (b, h w, c);
    - tokens to tokens: LayerNorm(a), Linear(a, b) without bias, LeakyReLU(0.1), on all tokens;
    - tokens to map: those of the patches go back to their places (h, w), then as map to map.

    Args:
        takes: the signal that comes in.
        gives: the signal that goes out.
        stride: t, of the convolution, whose kernel is t x t.

    Yang et al., arXiv:2210.17409, and its code. Where a class token has no place to go, it is dropped.
    """

    def __init__(self, takes: Signal, gives: Signal, stride: int = 1) -> None:
        super().__init__()
        a, b = takes.channels, gives.channels
        self.takes, self.gives = takes, gives
        self.tokens = "map" not in (takes.layout, gives.layout)
        norm: nn.Module = nn.LayerNorm(a) if self.tokens else nn.BatchNorm2d(a)
        weights = nn.Linear(a, b, bias=False) if self.tokens else nn.Conv2d(a, b, stride, stride, bias=False)
        self.layers = nn.Sequential(norm, weights, nn.LeakyReLU(SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens:
            x = self.layers(x.flatten(1, 2) if self.takes.layout == "grid" else x)
            return x[:, self.takes.extra :].unflatten(1, self.gives.size) if self.gives.layout == "grid" else x
        if self.takes.layout == "grid":
            x = x.permute(0, 3, 1, 2)
        elif self.takes.layout == "tokens":
            x = x[:, self.takes.extra :].transpose(1, 2).unflatten(2, self.takes.size)
        x = self.layers(x)
        if self.gives.layout == "grid":
            return x.permute(0, 2, 3, 1)
        return x.flatten(2).transpose(1, 2) if self.gives.layout == "tokens" else x


class PoolingHead(nn.Module):
    """Global average pooling (over all tokens, where there are tokens) and a linear layer."""

    def __init__(self, channels: int, layout: Layout, classes: int) -> None:
        super().__init__()
        self.layout: Layout = layout
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(global_pool(x, self.layout))


def stem(channels: int, to: int, stride: int) -> nn.Sequential:
    """Make a new stem.

    It is the paper's for images four times as large as what the first block takes, or larger: 7x7 convolution with
    stride 2, BatchNorm, ReLU, 3x3 max-pooling with stride 2. Below that it is a 3x3 convolution with ``stride``, which
    the paper does not have: on images of 32 x 32 pixels its own would leave too little.

    Args:
        channels: of the images.
        to: channels that the first block takes.
        stride: how much larger the images are than what it takes.
    """
    if stride >= 4:
        convolution = nn.Conv2d(channels, to, 7, 2, 3, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(to), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(nn.Conv2d(channels, to, 3, stride, 1, bias=False), nn.BatchNorm2d(to), nn.ReLU())


class Stitched(nn.Module):
    """A network of blocks, stem -> block -> stitch -> block -> ... -> head; images (b, c, h, w) to logits (b, k).

    Args:
        stem: in front of the first block; new, or an identity.
        blocks: from trained networks.
        stitches: between them, one fewer; new, or identities.
        head: behind the last block; new, but for a network that was put together again as it was.
        recipe: plain data that it is built from.
    """

    def __init__(
        self, stem: nn.Module, blocks: Sequence[nn.Module], stitches: Sequence[nn.Module], head: nn.Module, recipe: Any
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.stitches = stem, nn.ModuleList(blocks), nn.ModuleList(stitches)
        self.head = head
        self.recipe: dict[str, Any] = recipe

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(images))
        for stitch, block in zip(self.stitches, self.blocks[1:], strict=True):
            x = block(stitch(x))
        return self.head(x)


# -- recipes ----------------------------------------------------------------------------------------------------


def plan(chains: Sequence[Chain], blocks: Sequence[tuple[int, int, int]], classes: int | None) -> dict[str, Any]:
    """Write the recipe of a network from blocks: plain data, from which :func:`stitched` builds it.

    Blocks that are neighbours in their network meet without a stitch. t is the largest stride after which a map is
    no smaller than what the next block was trained on, and at least 1. A new stem is made only where the first block
    is not the beginning of its network, since our first blocks bring their stem along (the paper always draws one).

    The new network's images are normalised as the first block's network expects.

    Args:
        chains: the networks.
        blocks: (network, first node, last node), in the order of the new network.
        classes: outputs of the new head; ``None`` takes the head of the last block's network.

    Raises:
        UserError: a block cannot follow the one before it.
    """
    require(len(blocks) > 0, "A network needs at least one block.")
    signal = Signal("map", chains[blocks[0][0]].model.input_shape[0], chains[blocks[0][0]].model.input_shape[1:])
    new_stem: dict[str, Any] | None = None
    stitches: list[dict[str, Any] | None] = []
    for i, (source, first, last) in enumerate(blocks):
        own = chains[source]
        native = own.nodes[first].takes
        if i == 0 and first > 0:
            require(native.layout == "map", f"{_name(own, first, last)} takes tokens, so no new stem can precede it.")
            stride = max(1, min(have // want for have, want in zip(signal.size, native.size, strict=True)))
            new_stem = {"channels": signal.channels, "to": native.channels, "stride": stride}
            h, w = (-(-n // min(stride, 4)) for n in signal.size)
            signal = Signal("map", native.channels, (h, w))
        elif i > 0 and (source, first) == (blocks[i - 1][0], blocks[i - 1][2] + 1):
            stitches.append(None)
        elif i > 0:
            made = _between(signal, native)
            stitches.append(made)
            signal = Signal.from_record(made["gives"])
        cost = own.cost(first, last, signal)
        if cost is None:
            before = _name(chains[blocks[i - 1][0]], *blocks[i - 1][1:]) if i else "the stem"
            size = " x ".join(map(str, signal.size))
            raise UserError(f"{_name(own, first, last)} cannot follow {before}: it does not take {size}.")
        signal = cost.gives
    source, _, last = blocks[-1]
    require(
        classes is not None or last == len(chains[source]) - 1,
        f"{_name(chains[source], *blocks[-1][1:])} is not the end of its network, so it has no head of its own.",
    )
    start = chains[blocks[0][0]].model
    return {
        "names": [c.model.name for c in chains],
        "mean": list(start.mean),
        "std": list(start.std),
        "sources": [source_of(c.model) for c in chains],
        "blocks": [{"source": s, "first": a, "last": b} for s, a, b in blocks],
        "stem": new_stem,
        "stitches": stitches,
        "head": {"source": source} if classes is None else {"classes": classes},
    }


def _between(takes: Signal, native: Signal) -> dict[str, Any]:
    """A stitch from ``takes`` to a block that was trained on ``native``."""
    stride, size, extra = 1, takes.size, 0
    if takes.layout != "map" and native.layout != "map":
        extra = takes.extra if native.layout == "tokens" else 0
    else:
        stride = max(1, min(have // want for have, want in zip(takes.size, native.size, strict=True)))
        size = (takes.size[0] // stride, takes.size[1] // stride)
    gives = Signal(native.layout, native.channels, size, extra)
    return {"takes": takes.record(), "gives": gives.record(), "stride": stride}


Piece = tuple[tuple[Any, ...], Callable[[], nn.Module]]


def pieces(recipe: dict[str, Any], chains: Sequence[Chain], seed: int) -> list[Piece]:
    """Stem, first block, stitch, second block, ..., head: a key for each, and the function that makes it.

    Equal keys make equal modules, so networks whose keys begin alike compute alike so far. New weights are drawn from
    the seed and the key.

    Args:
        recipe: of :func:`plan`, perhaps from a file that somebody has changed.
        chains: the recipe's sources.

    Raises:
        KeyError, TypeError, ValueError, IndexError, UserError: the recipe is damaged.
    """
    blocks = [(int(b["source"]), int(b["first"]), int(b["last"])) for b in recipe["blocks"]]
    if not 0 < len(blocks) <= MOST or len(recipe["stitches"]) != len(blocks) - 1:
        raise ValueError("a recipe has some blocks and one stitch fewer")
    if any(not 0 <= s < len(chains) or not 0 <= a <= b < len(chains[s]) for s, a, b in blocks):
        raise ValueError("a block that its network does not have")

    def fresh(key: tuple[Any, ...], make: Callable[[], nn.Module]) -> Piece:
        def drawn() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(seed, *key))
                return make()

        return key, drawn

    def cut(source: int, first: int, last: int) -> Piece:
        own = chains[source]
        return ("block", own.model.name, id(own), first, last), functools.partial(own.block, first, last)

    (source, first, _), new = blocks[0], recipe["stem"]
    made: list[Piece] = [(("stem",), nn.Identity)]
    if new is not None:
        sizes = _sizes(new["channels"], new["to"], new["stride"], kernel=7)
        if sizes[1] != chains[source].nodes[first].takes.channels:
            raise ValueError("a stem that does not fit the first block")
        made = [fresh(("stem", chains[source].model.name, first, *sizes), functools.partial(stem, *sizes))]
    made.append(cut(*blocks[0]))
    for (s, _, last), after, joint in zip(blocks, blocks[1:], recipe["stitches"], strict=False):
        if joint is None:
            made.append((("stitch", None), nn.Identity))
        else:
            ends = chains[s].model.name, last, chains[after[0]].model.name, after[1]
            make = _stitch(joint, chains[s], last, chains[after[0]], after[1])
            made.append(fresh(("stitch", *ends, json.dumps(joint, sort_keys=True)), make))
        made.append(cut(*after))
    source, _, last = blocks[-1]
    ending = recipe["head"]
    if "source" in ending:
        own = chains[source]
        if ending["source"] != source or last != len(own) - 1:
            raise ValueError("a head that does not fit the last block")
        made.append((("head", own.model.name, id(own)), own.head))
    else:
        gives = chains[source].nodes[last].gives
        _sizes(gives.channels, ending["classes"])
        linear = functools.partial(PoolingHead, gives.channels, gives.layout, ending["classes"])
        made.append(fresh(("head", chains[source].model.name, last, ending["classes"]), linear))
    return made


def _stitch(joint: dict[str, Any], before: Chain, last: int, after: Chain, first: int) -> Callable[[], nn.Module]:
    takes, gives = Signal.from_record(joint["takes"]), Signal.from_record(joint["gives"])
    stride = joint["stride"]
    given, needed = before.nodes[last].gives, after.nodes[first].takes
    if (takes.layout, takes.channels, gives.layout, gives.channels) != (
        given.layout,
        given.channels,
        needed.layout,
        needed.channels,
    ):
        raise ValueError("a stitch that does not fit its blocks")
    _sizes(takes.channels, gives.channels, stride, kernel=stride)
    return functools.partial(Stitch, takes, gives, stride)


def _sizes(*numbers: Any, kernel: int = 1) -> tuple[int, ...]:
    """Positive numbers that make a layer of sane size."""
    if not all(type(n) is int and n > 0 for n in (*numbers, kernel)) or math.prod(numbers[:2]) * kernel**2 > LARGEST:
        raise ValueError(f"a layer of {numbers}")
    return numbers


def stitched(recipe: dict[str, Any], chains: Sequence[Chain], seed: int = 0) -> Stitched:
    """Build the network of a recipe, in evaluation mode: blocks with the weights of ``chains``, all else from ``seed``.

    Raises:
        KeyError, TypeError, ValueError, IndexError, UserError: the recipe is damaged.
    """
    made = [make() for _, make in pieces(recipe, chains, seed)]
    return Stitched(made[0], made[1:-1:2], made[2:-1:2], made[-1], recipe).eval()


def rebuild_stitched(recipe: dict[str, Any], rebuild: Callable[[Any], Model]) -> nn.Module:
    """The architecture of a saved network of that kind, with fresh weights; see :mod:`upcycle.core.models`.

    Args:
        recipe: of :func:`plan`.
        rebuild: builds one of its sources.
    """
    if len(recipe["sources"]) > MOST:
        raise ValueError("a recipe of too many networks")
    return stitched(recipe, [chain(rebuild(source)) for source in recipe["sources"]])


def _name(own: Chain, first: int, last: int) -> str:
    names = dict.fromkeys((own.nodes[first].name, own.nodes[last].name))
    return f"{own.model.name} [{' to '.join(names)}]"
