"""The choice of blocks under a budget (Deep Model Reassembly, arXiv:2210.17409, section 3.3): exact, from tables.

What a block or a stitch costs depends only on what stands before it through the size of the tensor that comes in.
So all networks that can be assembled are the paths of a small layered graph, in which score, parameters and
multiply-adds add up along the edges, and no network need be built to be judged.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from upcycle.core.errors import UserError, require
from upcycle.measure.cost import UNLIMITED, Budget

SignalKind = Literal["map", "tokens"]
Size = tuple[int, ...]
"""Height and width of a map; of tokens, their grid, or any numbers whose product is how many there are."""

UNIT = 2**30
"""Scores are whole multiples of 1/UNIT, so that their sums do not depend on the order, and ties are ties."""


class Passage(NamedTuple):
    """The cost of a block on an input of one size, and the size of its output."""

    params: int
    macs: int
    size: Size


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block to choose from.

    Args:
        network: which network it comes from.
        stage: k, its place in that network; stage 0 takes the image.
        equivalence: the equivalence set that it belongs to.
        inputs: channels that it takes.
        outputs: channels that it gives.
        size: of the input that it was trained on: height and width, for tokens those of their grid.
        cost: from the size of an input to a :class:`Passage`, or None where it cannot take that size; the ``get`` of
            a table will do.
        takes: what it takes.
        gives: what it gives.
    """

    network: int
    stage: int
    equivalence: int
    inputs: int
    outputs: int
    size: Size
    cost: Callable[[Size], Passage | None]
    takes: SignalKind = "map"
    gives: SignalKind = "map"


@dataclass(frozen=True)
class StitchCost:
    """A layer between two blocks: its stride t (0 for none at all), its cost, and the size of what it gives."""

    stride: int
    params: int
    macs: int
    size: Size

    @property
    def identity(self) -> bool:
        """Neighbours of one network need no layer between them."""
        return self.stride == 0


def stitch_cost(before: Block, after: Block, size: Size) -> StitchCost | None:
    """Find the cost of the layer between two blocks, or None where ``after`` cannot follow.

    From a map: BatchNorm(a), then a convolution a -> b without bias whose kernel and stride are t. From tokens to
    tokens: LayerNorm(a), then Linear(a, b) without bias. t is the largest stride after which the map is no smaller
    than what ``after`` was trained on, and at least 1. A block that takes a map does not follow one that takes or
    gives tokens. Normalisation and activation count no multiply-adds, as in :func:`upcycle.measure.cost.count`.

    Args:
        before: the block that gives.
        after: the block that takes.
        size: of what ``before`` gives.
    """
    if before.network == after.network and before.stage + 1 == after.stage:
        return StitchCost(0, 0, 0, size)
    if after.takes == "map" and "tokens" in (before.takes, before.gives):
        return None
    stride = 1
    if before.gives == "map":
        stride = max(1, min(have // want for have, want in zip(size, after.size, strict=True)))
        size = tuple(have // stride for have in size)
    weights = before.outputs * after.inputs * stride**2
    return StitchCost(stride, 2 * before.outputs + weights, weights * math.prod(size), size)


@dataclass(frozen=True)
class Candidate:
    """A network that can be assembled.

    Args:
        blocks: one block a stage, as places in the list of blocks.
        stitches: the layers between them, one fewer.
        sizes: of what each block takes.
        params: parameters of blocks, stitches and head.
        macs: their multiply-adds.
        score: sum of the unary values of its blocks and the pairwise values of neighbours.
    """

    blocks: tuple[int, ...]
    stitches: tuple[StitchCost, ...]
    sizes: tuple[Size, ...]
    params: int
    macs: int
    score: float


class _Edge(NamedTuple):
    """A block with the stitch before it (and the head behind the last one)."""

    block: int
    stitch: StitchCost
    params: int
    macs: int
    size: Size  # of what the block gives
    value: int  # score in units of 1/UNIT


class _Reach(NamedTuple):
    """The range of what completions of a beginning can add to it."""

    ways: int
    value: int
    params: tuple[int, int]  # fewest, most
    macs: tuple[int, int]


class _Path(NamedTuple):
    """The beginning of a network."""

    edges: tuple[_Edge, ...] = ()
    used: frozenset[int] = frozenset()  # equivalence sets
    networks: frozenset[int] = frozenset()
    params: int = 0
    macs: int = 0


class Search:
    """All networks of one block per stage and per equivalence set, in the order of the stages.

    The first block takes the image, neighbours fit (:func:`stitch_cost`), and the blocks come from at least
    ``min_sources`` networks. The head is global average pooling and a linear layer with bias.

    :meth:`best` is branch and bound, best first. The bound of a beginning is its score plus the best score of any
    completion that keeps all rules but the budget and ``min_sources``; beginnings whose cheapest (or dearest)
    completion misses a bound of the budget are dropped. Neither ever cuts off an answer, so the n best are exact; the
    paper's non-linear objective is left to a second ranking of them, which has to build the networks.

    Args:
        blocks: to choose from.
        unary: value of each block.
        pairwise: value of block i followed by block j, (blocks, blocks).
        input_size: height and width of the image.
        classes: of the new head.
        min_sources: fewest different networks in the mix.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        unary: ArrayLike,
        pairwise: ArrayLike,
        *,
        input_size: Size,
        classes: int,
        min_sources: int = 2,
    ) -> None:
        self.blocks = tuple(blocks)
        n = len(self.blocks)
        one, two = np.asarray(unary, dtype=np.float64), np.asarray(pairwise, dtype=np.float64)
        require(n > 0, "There are no blocks to choose from.")
        require(
            one.shape == (n,) and two.shape == (n, n),
            f"{n} blocks need unary values of shape ({n},) and pairwise ones of ({n}, {n}), "
            f"not {one.shape} and {two.shape}.",
        )
        require(bool(np.isfinite(one).all() and np.isfinite(two).all()), "Values of blocks must be finite numbers.")
        self._unary = [round(v * UNIT) for v in one.tolist()]
        self._pairwise = [[round(v * UNIT) for v in row] for row in two.tolist()]
        self.input_size, self.classes, self.min_sources = tuple(input_size), classes, min_sources
        self.sets = frozenset(b.equivalence for b in self.blocks)
        self.stages = [
            [i for i, b in enumerate(self.blocks) if b.stage == k] for k in range(1 + max(b.stage for b in self.blocks))
        ]
        require(
            1 <= min_sources <= len(self.stages),
            f"{len(self.stages)} blocks come from 1 to {len(self.stages)} networks, not from {min_sources}.",
        )
        self._edges = functools.cache(self._edges_after)
        self._reach = functools.cache(self._reach_from)

    def best(self, n: int = 1, budget: Budget = UNLIMITED) -> list[Candidate]:
        """The n networks of the highest score within the budget, or all if there are fewer; ties by block numbers.

        Raises:
            UserError: there is none; the sentence says what there is.
        """
        paths = self._ordered(budget, lambda e: e.value, lambda r: r.value)
        return [self._candidate(p) for p in itertools.islice(paths, n)] or self._nothing(budget)

    def sample(self, n: int, seed: int, budget: Budget = UNLIMITED) -> list[Candidate]:
        """n different networks within the budget, each set of n as likely as any other; all if there are fewer.

        Networks are drawn uniformly without regard to the budget, and those within are kept; where they are too rare,
        or there are few networks altogether, all within the budget are enumerated and drawn from.

        Raises:
            UserError: there is none; the sentence says what there is.
        """
        draw, found = random.Random(seed), dict[tuple[int, ...], Candidate]()
        tries = 1000 + 20 * n
        for _ in range(tries if tries < self.count else 0):
            path = self._drawn(draw)
            if len(path.networks) >= self.min_sources and budget.allows(path.params, path.macs):
                candidate = self._candidate(path)
                found.setdefault(candidate.blocks, candidate)
                if len(found) == n:
                    return list(found.values())
        everything = list(self._ordered(budget, lambda _: 0, lambda _: 0)) or self._nothing(budget)
        return [self._candidate(p) for p in draw.sample(everything, min(n, len(everything)))]

    def smallest(self, by: Literal["params", "macs"] = "params") -> Candidate:
        """The network with the fewest parameters, or multiply-adds, whatever the budget.

        Raises:
            UserError: no network can be assembled at all.
        """
        return self._extreme(by, 1)

    def judge(self, blocks: Sequence[int]) -> Candidate | None:
        """Score and cost of one given choice, one block a stage, or None where it breaks a rule."""
        path = _Path()
        for block in blocks:
            edge = next((e for e in self._next(path) if e.block == block), None)
            if edge is None:
                return None
            path = self._extended(path, edge)
        complete = len(path.edges) == len(self.stages) and path.used == self.sets
        return self._candidate(path) if complete and len(path.networks) >= self.min_sources else None

    @property
    def count(self) -> int:
        """How many networks there are, ``min_sources`` and budget aside."""
        start = self._reach(-1, self.input_size, frozenset())
        return start.ways if start else 0

    def _edges_after(self, i: int, size: Size) -> tuple[_Edge, ...]:
        """The blocks that can follow block ``i`` where that gives ``size``; -1 is the image."""
        edges = []
        stage = self.blocks[i].stage + 1 if i >= 0 else 0
        for j in self.stages[stage] if stage < len(self.stages) else ():
            after = self.blocks[j]
            if i >= 0:
                layer = stitch_cost(self.blocks[i], after, size)
            else:
                layer = StitchCost(0, 0, 0, size) if after.takes == "map" else None
            passage = after.cost(layer.size) if layer else None
            if layer is None or passage is None:
                continue
            classes = self.classes if stage + 1 == len(self.stages) else 0
            params = layer.params + passage.params + (after.outputs + 1) * classes
            macs = layer.macs + passage.macs + after.outputs * classes
            value = self._unary[j] + (self._pairwise[i][j] if i >= 0 else 0)
            edges.append(_Edge(j, layer, params, macs, passage.size, value))
        return tuple(edges)

    def _reach_from(self, i: int, size: Size, used: frozenset[int]) -> _Reach | None:
        """The range of the completions behind block ``i``, budget and ``min_sources`` aside, or None without any."""
        if i >= 0 and self.blocks[i].stage + 1 == len(self.stages):
            return _Reach(1, 0, (0, 0), (0, 0)) if used == self.sets else None
        found = []
        for e in self._edges(i, size):
            equivalence = self.blocks[e.block].equivalence
            r = self._reach(e.block, e.size, used | {equivalence}) if equivalence not in used else None
            if r:
                found.append((e, r))
        if not found:
            return None
        return _Reach(
            ways=sum(r.ways for _, r in found),
            value=max(e.value + r.value for e, r in found),
            params=(min(e.params + r.params[0] for e, r in found), max(e.params + r.params[1] for e, r in found)),
            macs=(min(e.macs + r.macs[0] for e, r in found), max(e.macs + r.macs[1] for e, r in found)),
        )

    def _next(self, path: _Path) -> Iterator[_Edge]:
        """The blocks that can follow a beginning."""
        i, size = (path.edges[-1].block, path.edges[-1].size) if path.edges else (-1, self.input_size)
        return (e for e in self._edges(i, size) if self.blocks[e.block].equivalence not in path.used)

    def _extended(self, path: _Path, edge: _Edge) -> _Path:
        block = self.blocks[edge.block]
        return _Path(
            (*path.edges, edge),
            path.used | {block.equivalence},
            path.networks | {block.network},
            path.params + edge.params,
            path.macs + edge.macs,
        )

    def _ordered(
        self, budget: Budget, value: Callable[[_Edge], int], bound: Callable[[_Reach], int]
    ) -> Iterator[_Path]:
        """All networks within the budget by falling value, then by block numbers.

        Args:
            value: of an edge.
            bound: the most that completions add to it.
        """
        # A beginning sorts before what it begins, so equal values come out in the order of their block numbers.
        heap: list[tuple[int, tuple[int, ...], int, _Path]] = [(0, (), 0, _Path())]
        while heap:
            _, chosen, gained, path = heapq.heappop(heap)
            if len(chosen) == len(self.stages):
                yield path
                continue
            for edge in self._next(path):
                longer = self._extended(path, edge)
                reach = self._reach(edge.block, edge.size, longer.used)
                if reach is None or len(longer.networks) + len(self.stages) - len(longer.edges) < self.min_sources:
                    continue
                least, most = ((longer.params + reach.params[e], longer.macs + reach.macs[e]) for e in (0, 1))
                if (
                    least[0] <= budget.params
                    and least[1] <= budget.macs
                    and most[0] >= budget.params_min
                    and most[1] >= budget.macs_min
                ):
                    worth = gained + value(edge)
                    heapq.heappush(heap, (-worth - bound(reach), (*chosen, edge.block), worth, longer))

    def _drawn(self, draw: random.Random) -> _Path:
        """A network, each as likely as any other, budget and ``min_sources`` aside."""
        path = _Path()
        while len(path.edges) < len(self.stages):
            ways = []
            for edge in self._next(path):
                longer = self._extended(path, edge)
                if reach := self._reach(edge.block, edge.size, longer.used):
                    ways.append((reach.ways, longer))
            at = draw.randrange(sum(count for count, _ in ways))
            for count, longer in ways:
                at -= count
                if at < 0:
                    path = longer
                    break
        return path

    def _candidate(self, path: _Path) -> Candidate:
        return Candidate(
            blocks=tuple(e.block for e in path.edges),
            stitches=tuple(e.stitch for e in path.edges[1:]),
            sizes=tuple(e.stitch.size for e in path.edges),
            params=path.params,
            macs=path.macs,
            score=sum(e.value for e in path.edges) / UNIT,
        )

    def _extreme(self, by: Literal["params", "macs"], sign: Literal[1, -1]) -> Candidate:
        """The network with the least (sign 1) or most (-1) of a cost."""
        end = 0 if sign == 1 else 1
        paths = self._ordered(
            UNLIMITED,
            lambda e: -sign * (e.params if by == "params" else e.macs),
            lambda r: -sign * (r.params if by == "params" else r.macs)[end],
        )
        path = next(paths, None)
        if path is None:
            raise UserError(
                f"No network can be assembled: no {len(self.stages)} blocks from at least {self.min_sources} networks, "
                f"one of each stage and of each of the {len(self.sets)} equivalence sets, can follow one another; "
                "use fewer blocks a network, the stage rule, or other networks."
            )
        return self._candidate(path)

    def _nothing(self, budget: Budget) -> NoReturn:
        """The error where nothing fits the budget."""
        least, most = ([self._extreme("params", s).params, self._extreme("macs", s).macs] for s in (1, -1))
        raise UserError(
            f"No network can be assembled with {budget}: the smallest feasible one has {least[0]:,} parameters, the "
            f"cheapest {least[1]:,} multiply-adds, the largest {most[0]:,} and {most[1]:,}; change the budget."
        )
