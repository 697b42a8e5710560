"""Shortest paths: equal to brute force, ties by the numbers of nodes, and memory for what is near."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upcycle.distillation.paths import shortest
from upcycle.distillation.paths.shortest import costs_of, shortest_paths


def all_ways(w: np.ndarray, i: int) -> Iterator[tuple[float, int, tuple[int, ...]]]:
    """Every way from i that meets no node twice: its cost, how many nodes it has, and which."""
    others = [v for v in range(len(w)) if v != i]
    for length in range(1, len(w)):
        for rest in itertools.permutations(others, length):
            way, cost = (i, *rest), 0.0
            for a, b in itertools.pairwise(way):
                cost += w[a, b] if w[a, b] else math.inf
            if cost < math.inf:
                yield cost, len(way), way


def brute(w: np.ndarray, r: float, depth_limit: bool = False) -> tuple[list[list[int]], list[list[int]]]:
    pairs, triples = [], []
    for i in range(len(w)):
        best: dict[int, tuple[float, int, tuple[int, ...]]] = {}
        for found in all_ways(w, i):
            if not depth_limit or found[1] <= 3:
                best[found[2][-1]] = min(best.get(found[2][-1], found), found)
        two = sorted(way for _, n, way in best.values() if n == 2)
        three = sorted((cost, way[-1], way) for cost, n, way in best.values() if n == 3)
        pairs += [list(way) for way in two]
        triples += [list(way) for _, _, way in three[: math.floor(min(r * len(two), len(three)))]]
    return pairs, triples


def drawn(n: int, seed: int, *, levels: int = 0) -> tuple[Tensor, Tensor]:
    """A random directed graph with attention, of a few levels where there are to be ties, some edges twice."""
    chance = torch.Generator().manual_seed(seed)
    edges = torch.randint(n, (2, 3 * n), generator=chance)
    a = torch.rand(3 * n, generator=chance, dtype=torch.float64)
    return edges, (a * levels).ceil() / levels if levels else a


@pytest.mark.parametrize("part", [2**21, 7])
@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize(("r", "depth_limit"), [(0.5, False), (1.0, False), (10.0, False), (1.0, True)])
def test_paths_are_those_of_brute_force(
    r: float, depth_limit: bool, levels: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortest, "PART", part)
    for seed in range(12):
        w = costs_of(*drawn(6, seed, levels=levels), 6)
        pairs, triples = shortest_paths(w, r, depth_limit)
        expected = brute(w.toarray(), r, depth_limit)
        assert (pairs.T.tolist(), triples.T.tolist()) == expected, seed


def test_a_graph_drawn_by_hand() -> None:
    """0 – 1 is dear, and cheap over 2; 3 hangs on 1; 4 stands alone."""
    there = torch.tensor([[0, 0, 2, 1], [1, 2, 1, 3]])
    edges = torch.cat([there, there.flip(0)], 1)
    a = torch.tensor([0.1, 0.9, 0.8, 0.5] * 2, dtype=torch.float64)
    pairs, triples = shortest_paths(costs_of(edges, a, 5), 1.0)
    assert pairs.T.tolist() == [[0, 2], [1, 2], [1, 3], [2, 0], [2, 1], [3, 1]]
    assert triples.T.tolist() == [[0, 2, 1], [1, 2, 0], [2, 1, 3], [3, 1, 2]]
    assert shortest_paths(costs_of(edges, a, 5), 0.0)[1].shape == (3, 0)
    assert shortest_paths(costs_of(edges, a, 5), 0.5)[1].T.tolist() == [[1, 2, 0], [2, 1, 3]]


def test_costs_are_low_where_attention_is_high_and_never_nothing() -> None:
    edges = torch.tensor([[1, 2, 0, 2, 2], [0, 0, 0, 1, 1]])  # a self-loop, and an edge twice
    w = costs_of(edges, torch.tensor([0.4, 0.2, 0.9, 0.1, 0.3], dtype=torch.float64), 3).toarray()
    expected = [[0, shortest.LEAST, 0.5], [0, 0, 0.25], [0, 0, 0]]
    assert np.allclose(w, expected, atol=0, rtol=1e-12)


def test_equal_attention_gives_neighbours_and_nodes_at_two_steps() -> None:
    chance = torch.Generator().manual_seed(3)
    there = torch.randint(30, (2, 45), generator=chance)
    edges = torch.cat([there, there.flip(0)], 1)
    pairs, triples = shortest_paths(costs_of(edges, torch.ones(90), 30), 1e9)
    near = torch.zeros(30, 30, dtype=torch.bool)
    near[edges[1], edges[0]] = True
    near.fill_diagonal_(False)
    far = (near.float() @ near.float() > 0) & ~near
    far.fill_diagonal_(False)
    assert pairs.T.tolist() == near.nonzero().tolist()
    assert sorted((i, j) for i, _, j in triples.T.tolist()) == [tuple(ij) for ij in far.nonzero().tolist()]
    first = {(i, j): min(k for k in range(30) if near[i, k] and near[k, j]) for i, _, j in triples.T.tolist()}
    assert all(first[i, j] == k for i, k, j in triples.T.tolist()), "ties go to the lower number"


@given(st.integers(0, 10**6), st.integers(2, 40), st.floats(0, 4))
@settings(max_examples=40)
def test_what_holds_for_every_graph(seed: int, n: int, r: float) -> None:
    edges, a = drawn(n, seed)
    w = costs_of(edges, a, n)
    pairs, triples = shortest_paths(w, r)
    dense = w.toarray()
    assert (dense[pairs[0], pairs[1]] > 0).all() and (dense[triples[1], triples[2]] > 0).all()
    assert all(len(set(path)) == 3 for path in triples.T.tolist())
    assert len({(i, j) for i, *_, j in [*pairs.T.tolist(), *triples.T.tolist()]}) == pairs.shape[1] + triples.shape[1]
    for i in range(n):
        assert int((triples[0] == i).sum()) <= r * int((pairs[0] == i).sum())
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    moved = shortest_paths(costs_of(order[edges], a, n), r)
    for found, other in zip((pairs, triples), moved, strict=True):  # ties have no chance
        assert sorted(order[found].T.tolist()) == sorted(other.T.tolist())


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_graph_without_edges_has_no_paths(nodes: int) -> None:
    none = torch.empty(2, 0, dtype=torch.long)
    pairs, triples = shortest_paths(costs_of(none, torch.empty(0, dtype=torch.float64), nodes), 1.0)
    assert pairs.shape == (2, 0) and triples.shape == (3, 0) and pairs.dtype == torch.int64
