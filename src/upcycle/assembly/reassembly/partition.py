"""Networks cut into interchangeable blocks: the cover set of Deep Model Reassembly (arXiv:2210.17409, section 3.2).

A block is a run of consecutive nodes of a network. Two blocks are functionally similar where they give alike outputs
and take alike inputs, S(B, B') = s(out, out') + s(in, in'), in [0, 2]. All that is needed of the networks is one table
of the similarities s between the outputs of their nodes (:mod:`upcycle.measure.similarity`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upcycle.core.errors import require

Places = NDArray[np.intp]
Numbers = NDArray[np.float64]

GAIN = 1e-12
"""A change must gain more than this: less is rounding, which could turn in circles."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Networks in blocks, and blocks in equivalence sets.

    Args:
        cuts: K + 1 numbers a network, from 0 to its nodes: block k holds the nodes cuts[k] to cuts[k + 1] - 1.
        sets: the equivalence set of each block; sets are numbered by the mean stage of their blocks.
        anchors: network, first node and end of the block at the centre of each set. An anchor stays when its network
            is cut otherwise, so it need not be a block of the partition.
        fit: S of each block with the anchor of its set.
        history: J = the sum of all ``fit``, at the start of the winning run and after each of its iterations that
            raised it.
    """

    cuts: tuple[tuple[int, ...], ...]
    sets: tuple[tuple[int, ...], ...]
    anchors: tuple[tuple[int, int, int], ...]
    fit: tuple[tuple[float, ...], ...]
    history: tuple[float, ...]

    @property
    def score(self) -> float:
        """J."""
        return self.history[-1]


def partition(
    similarity: ArrayLike,
    lengths: Sequence[int],
    K: int = 4,
    eps: float = 0.2,
    *,
    runs: int = 200,
    iterations: int = 200,
    stage_rule: bool = False,
    seed: int = 0,
) -> Partition:
    """Cut each network into K blocks and put the blocks into K sets, so that J = sum of S(block, anchor) is large.

    From random cuts and anchors, coordinate ascent in three steps (:class:`Ascent`): repartition, re-anchor, reassign;
    none lowers J, and a run ends when none raises it. The best of ``runs`` counts; first those count from which a
    network can be assembled, where each set can be given a stage of its own, at which it has a block.

    The first block of a network takes the image: s = 1 between two images, 0 between an image and a feature.
    Negative similarities count as 0, and s(X, X) as 1.

    Departures: the authors' patience of 20 iterations is not needed, since J cannot fall and a run that does not rise
    stands still; they rank runs by the pairwise S inside the sets, we by J; a set that loses its last block
    starts again from the block that fits its anchor worst, since an assembled network needs a block of each set.

    Args:
        similarity: s between the outputs of all nodes, those of one network after another, (L, L).
        lengths: nodes of each network; their sum is L.
        K: blocks of each network, and sets.
        eps: slack in the size of blocks: one of network i has less than (1 + eps) |M_i| / K nodes, or as many as an
            even cut needs.
        runs: R, how many random starts there are.
        iterations: T, the most iterations in a run.
        stage_rule: never take blocks of different stage for similar, so that set k holds the blocks k (the authors'
            code).
        seed: of the random starts.

    Raises:
        UserError: a network with fewer than K nodes, a table of another shape or with NaN, numbers out of range.
    """
    for name, value in (("blocks", K), ("runs", runs), ("iterations", iterations)):
        require(value >= 1, f"{name} must be at least 1, not {value}.")
    require(eps >= 0, f"eps must be 0 or more, not {eps}.")
    require(len(lengths) > 0, "There are no networks to cut.")
    short = next((i for i, n in enumerate(lengths) if n < K), 0)
    require(
        lengths[short] >= K,
        f"Network {short} has {lengths[short]} nodes, too few for {K} blocks; use fewer blocks or leave it out.",
    )
    start = Ascent(*_table(similarity, lengths), lengths, K, eps, runs, stage_rule, np.random.default_rng(seed))
    history = [start.score()]
    for _ in range(iterations):
        start.repartition()
        start.reanchor()
        start.reassign()
        history.append(start.score())
        if not (history[-1] > history[-2] + GAIN).any():
            break
    order = np.argsort(-history[-1], kind="stable")
    best = next((r for r in order if assembles(start.sets[r])), order[0])
    return start.partition(int(best), history)


def size_limit(n: int, K: int, eps: float) -> int:
    """Find the most nodes in a block of a network of n: the largest below (1 + eps) n / K, or that of an even cut.

    >>> size_limit(27, 4, 0.2), size_limit(9, 4, 0.2)
    (8, 3)
    """
    # Rounded, so that 1.1 * 10 is 11 and a block of 11 is not below it.
    return max(math.ceil(round((1 + eps) * n / K, 9)) - 1, -(-n // K))


def block_values(similarity: ArrayLike, lengths: Sequence[int], made: Partition) -> tuple[Numbers, Numbers]:
    """Look up what the search adds up (:mod:`upcycle.assembly.reassembly.search`), for blocks network by network.

    Args:
        similarity: s between the outputs of all nodes, (L, L), as in :func:`partition`.
        lengths: nodes of each network.
        made: the partition.

    Returns:
        unary, (blocks,): S of each block with its anchor; and pairwise, (blocks, blocks): s between what block i
        gives and what block j was trained to take, so 1 for neighbours of one network.
    """
    table, starts = _table(similarity, lengths)
    cuts = np.array(made.cuts) + starts[:, None]
    return np.array(made.fit).ravel(), table[cuts[:, 1:].reshape(-1, 1), cuts[:, :-1].ravel()]


def assembles(sets: Places) -> bool:
    """Whether each set can be given a stage of its own at which it has a block; sets of each block, (networks, K)."""
    K = sets.shape[1]
    stages = [np.flatnonzero((sets == c).any(0)).tolist() for c in range(K)]
    owner: dict[int, int] = {}

    def place(c: int, tried: set[int]) -> bool:
        """An augmenting path of the bipartite matching."""
        for k in stages[c]:
            if k not in tried:
                tried.add(k)
                if k not in owner or place(owner[k], tried):
                    owner[k] = c
                    return True
        return False

    return all(place(c, set()) for c in range(K))


class Ascent:
    """All runs of the coordinate ascent side by side.

    A place is an index of the table: the image of each network, then the output of each of its nodes. With cuts as
    places, block k of a network takes ``cuts[k]`` and gives ``cuts[k + 1]``.

    Args:
        table: s between places.
        starts: the place of each network's image.
        lengths: nodes of each network.
        K: blocks of each network, and sets.
        eps: slack in the size of blocks, as in :func:`partition`.
        runs: R, how many runs there are.
        stage_rule: keep blocks of different stage from sharing a set.
        random: source of the starting points.
    """

    def __init__(
        self,
        table: Numbers,
        starts: Places,
        lengths: Sequence[int],
        K: int,
        eps: float,
        runs: int,
        stage_rule: bool,
        random: np.random.Generator,
    ) -> None:
        N = len(lengths)
        self.table, self.starts, self.K, self.stage_rule = table, starts, K, stage_rule
        self.limits = np.array([size_limit(n, K, eps) for n in lengths])
        sizes = [_random_sizes(n, K, m, runs, random) for n, m in zip(lengths, self.limits.tolist(), strict=True)]
        self.cuts = np.zeros((runs, N, K + 1), dtype=np.intp)
        self.cuts[:, :, 1:] = np.stack(sizes, axis=1).cumsum(2)
        self.cuts += starts[:, None]
        if stage_rule:
            chosen = random.integers(N, size=(runs, K)) * K + np.arange(K)
        else:
            chosen = random.random((runs, N * K)).argsort(1)[:, :K]
        self.anchors = self._blocks()[np.arange(runs)[:, None], chosen]
        self.sets = np.zeros((runs, N, K), dtype=np.intp)
        self.sets[:] = np.arange(K)
        if not stage_rule:
            self.reassign()

    def fit(self) -> Numbers:
        """S of each block with the anchor of its set, (runs, networks, K)."""
        anchor = self.anchors[np.arange(len(self.sets))[:, None, None], self.sets]
        return self.table[self.cuts[:, :, :-1], anchor[..., 0]] + self.table[self.cuts[:, :, 1:], anchor[..., 1]]

    def score(self) -> Numbers:
        """J of each run."""
        return self.fit().sum((1, 2))

    def repartition(self) -> None:
        """(i) Move each boundary one node forward or backward where that raises S of the two blocks beside it."""
        run = np.arange(len(self.sets))[:, None]
        for k in range(1, self.K):
            before, after = self.anchors[run, self.sets[:, :, k - 1]], self.anchors[run, self.sets[:, :, k]]
            at = self.cuts[:, :, k] + np.array([0, 1, -1])[:, None, None]
            sizes = np.stack([at - self.cuts[:, :, k - 1], self.cuts[:, :, k + 1] - at])
            allowed = ((sizes >= 1) & (sizes <= self.limits)).all(0)
            at = np.where(allowed, at, self.cuts[:, :, k])
            # The outer ends of the two blocks do not move, so only these two terms differ.
            gain = self.table[at, before[..., 1]] + self.table[at, after[..., 0]]
            gain[1:] -= GAIN
            self.cuts[:, :, k] = np.take_along_axis(at, gain.argmax(0)[None], 0)[0]

    def reanchor(self) -> None:
        """(ii) In each set, the block with the largest summed S to its members, or the old anchor."""
        blocks, sets = self._blocks(), self.sets.reshape(len(self.sets), -1)
        similarity = self._similarity(blocks, blocks)
        totals = np.where(sets[:, :, None] == sets[:, None, :], similarity, 0.0).sum(1)
        old = np.where(sets[:, :, None] == np.arange(self.K), self._similarity(blocks, self.anchors), 0.0).sum(1)
        for c in range(self.K):
            candidates = np.where(sets == c, totals, -np.inf)
            run = np.flatnonzero(candidates.max(1) > old[:, c] + GAIN)
            self.anchors[run, c] = blocks[run, candidates[run].argmax(1)]

    def reassign(self) -> None:
        """(iii) Each block goes to the set whose anchor is most similar to it; no set stays empty."""
        if self.stage_rule:
            return
        shape, blocks, sets = self.sets.shape, self._blocks(), self.sets.reshape(len(self.sets), -1)
        similarity = self._similarity(blocks, self.anchors)
        stay = np.take_along_axis(similarity, sets[:, :, None], 2)[..., 0]
        sets = np.where(similarity.max(2) > stay + GAIN, similarity.argmax(2), sets)
        members = (sets[:, :, None] == np.arange(self.K)).sum(1)
        for r, c in np.argwhere(members == 0):
            fit = np.where(members[r, sets[r]] > 1, similarity[r, np.arange(len(sets[r])), sets[r]], np.inf)
            worst = int(fit.argmin())
            members[r, sets[r, worst]] -= 1
            members[r, c] += 1
            self.anchors[r, c], sets[r, worst] = blocks[r, worst], c
            similarity[r, worst, c] = 2.0
        self.sets = sets.reshape(shape)

    def partition(self, run: int, history: Sequence[Numbers]) -> Partition:
        """One run in plain numbers."""
        sets, cuts = self.sets[run], self.cuts[run] - self.starts[:, None]
        stage = np.broadcast_to(np.arange(self.K), sets.shape)
        order = np.argsort([stage[sets == c].mean() for c in range(self.K)], kind="stable")
        anchors = []
        for first, end in self.anchors[run, order].tolist():
            network = int(np.searchsorted(self.starts, first, side="right")) - 1
            anchors.append((network, first - int(self.starts[network]), end - int(self.starts[network])))
        return Partition(
            cuts=tuple(map(tuple, cuts.tolist())),
            sets=tuple(map(tuple, np.argsort(order)[sets].tolist())),
            anchors=tuple(anchors),
            fit=tuple(map(tuple, self.fit()[run].tolist())),
            history=tuple(dict.fromkeys(float(scores[run]) for scores in history)),
        )

    def _blocks(self) -> Places:
        """The places that each block takes and gives, (runs, networks * K, 2)."""
        return np.stack([self.cuts[:, :, :-1], self.cuts[:, :, 1:]], axis=-1).reshape(len(self.cuts), -1, 2)

    def _similarity(self, blocks: Places, others: Places) -> Numbers:
        """S of each block with each other one of its run, (runs, blocks, others)."""
        return (
            self.table[blocks[:, :, None, 0], others[:, None, :, 0]]
            + self.table[blocks[:, :, None, 1], others[:, None, :, 1]]
        )


def _table(similarity: ArrayLike, lengths: Sequence[int]) -> tuple[Numbers, Places]:
    """s between places, and the place of each network's image."""
    s, total = np.asarray(similarity, dtype=np.float64), sum(lengths)
    require(
        s.shape == (total, total),
        f"Networks of {', '.join(map(str, lengths))} nodes need a table of {total} x {total} similarities, "
        f"not one of shape {s.shape}.",
    )
    require(bool(np.isfinite(s).all()), "The table of similarities holds NaN or infinite numbers.")
    starts = np.cumsum([0, *(n + 1 for n in lengths[:-1])])
    table = np.zeros((total + len(lengths), total + len(lengths)))
    outputs = np.setdiff1d(np.arange(len(table)), starts)
    table[np.ix_(outputs, outputs)] = s.clip(0, 1)
    table[np.ix_(starts, starts)] = 1
    np.fill_diagonal(table, 1)
    return table, starts


def _random_sizes(n: int, K: int, limit: int, runs: int, random: np.random.Generator) -> Places:
    """Sizes of K blocks of n nodes, each way within the limit as likely as any other, (runs, K)."""
    # ways[k][r]: in how many ways r nodes make k blocks.
    ways = np.zeros((K + 1, n + 1))
    ways[0, 0] = 1
    for k in range(1, K + 1):
        for r in range(k, n + 1):
            ways[k, r] = ways[k - 1, max(0, r - limit) : r].sum()
    sizes, left = np.zeros((runs, K), dtype=np.intp), np.full(runs, n)
    for k in range(K):
        rest = left[:, None] - np.arange(1, limit + 1)
        weight = np.where(rest >= 0, ways[K - k - 1, np.maximum(rest, 0)], 0.0).cumsum(1)
        sizes[:, k] = 1 + (random.random((runs, 1)) * weight[:, -1:] >= weight).sum(1)
        left -= sizes[:, k]
    return sizes
