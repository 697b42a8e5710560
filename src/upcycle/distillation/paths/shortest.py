"""Shortest paths of two and three nodes from every node of a graph, cheap where attention is strong.

Which path is the shortest to its end: the one of least cost; of equal ones that with fewer nodes, and then that whose
nodes have lower numbers. So runs agree on ties, which a search by a heap would break by its inner order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

LEAST = 1e-9
"""Of a cost: an edge that costs nothing would vanish from a sparse matrix."""
PART = 2**21
"""Ways of two steps, or distances, that are looked at at a time."""


def costs_of(edge_index: Int[Tensor, "2 e"], attention: Float[Tensor, " e"], nodes: int) -> csr_array:
    """w_ij = 1 - ā_ij / max ā of each centre i and neighbour j ≠ i: a matrix with a row for each centre.

    The maximum is over edges between two nodes. Of several edges between the same two the cheapest counts.

    Args:
        edge_index: source j and target i of each edge.
        attention: ā of each edge, 0 or more.
        nodes: N.
    """
    j, i = edge_index.numpy()
    a, apart = attention.double().numpy(), i != j
    i, j, a = i[apart], j[apart], a[apart]
    w = np.maximum(1 - a / max(a.max(initial=0.0), np.finfo(np.float64).tiny), LEAST)
    order = np.lexsort((w, j, i))
    i, j, w = i[order], j[order], w[order]
    once = _firsts(i, j)
    return csr_array((w[once], (i[once], j[once])), shape=(nodes, nodes))


def shortest_paths(
    w: csr_array, r: float, depth_limit: bool = False
) -> tuple[Int[Tensor, "2 direct"], Int[Tensor, "3 long"]]:
    """P_2 and P_3: of each centre i the nodes whose shortest path is the edge to them, and i → k → j.

    P_2 is kept whole; of P_3(i) the cheapest floor(min(r |P_2(i)|, |P_3(i)|)). The search goes over all ways of up to
    two steps, and Dijkstra's distances then say which of these is beaten by a longer way. So memory is that of the ways
    within two steps of some centres at a time.

    Args:
        w: costs, a row for each centre; positive.
        r: how many paths of three nodes there may be for each of two.
        depth_limit: let no longer way beat one of up to two steps: without Dijkstra, whose time grows with N².

    Returns:
        int64, the centre in the first row, sorted by it; those of three nodes from the cheapest on.
    """
    degree = np.diff(w.indptr)
    steps = np.zeros(w.shape[0], dtype=np.int64)
    np.add.at(steps, np.repeat(np.arange(w.shape[0]), degree), degree[w.indices])
    load = np.maximum(steps + degree, 1 if depth_limit else w.shape[0])
    found = [_from(w, first, last, r, depth_limit) for first, last in _parts(load)]
    pairs, triples = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
    return torch.from_numpy(pairs), torch.from_numpy(triples)


def _parts(load: Any) -> Iterator[tuple[int, int]]:
    """Ranges of centres whose loads add up to :data:`PART` at most, or of one centre; of no node one empty range."""
    ends = load.cumsum()
    first = 0
    while first < len(load) or not first:
        done = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, done + PART, "right")), first + 1)
        yield first, min(last, len(load))
        first = last


def _from(w: csr_array, first: int, last: int, r: float, depth_limit: bool) -> tuple[Any, Any]:
    """P_2 and P_3 of the centres from ``first`` to before ``last``."""
    starts, degree = w.indptr, np.diff(w.indptr)
    one = slice(starts[first], starts[last])
    i, k, c = np.repeat(np.arange(first, last), degree[first:last]), w.indices[one].astype(np.int64), w.data[one]
    # Each edge i → k goes on by the edges of k.
    count = degree[k]
    edge = np.repeat(np.arange(len(k)), count)
    on = np.arange(len(edge)) + np.repeat(starts[k] - (count.cumsum() - count), count)
    on, edge = on[w.indices[on] != i[edge]], edge[w.indices[on] != i[edge]]
    centre, end = np.concatenate([i, i[edge]]), np.concatenate([k, w.indices[on]])
    between = np.concatenate([np.full(len(k), -1), k[edge]])  # -1, so that of equal costs an edge comes first
    cost = np.concatenate([c, c[edge] + w.data[on]])
    order = np.lexsort((between, cost, end, centre))
    order = order[_firsts(centre[order], end[order])]
    centre, end, between, cost = centre[order], end[order], between[order], cost[order]
    if not depth_limit and len(cost):
        # Nothing costs more than the dearest of these ways; a hair more, since the limit itself may be left out.
        distance = dijkstra(w, indices=np.arange(first, last), limit=cost.max() * (1 + 1e-12))
        best = cost <= distance[centre - first, end]
        centre, end, between, cost = centre[best], end[best], between[best], cost[best]
    direct = between < 0
    pairs = np.stack([centre[direct], end[direct]])
    centre, end, between, cost = centre[~direct], end[~direct], between[~direct], cost[~direct]
    order = np.lexsort((end, cost, centre))
    centre, end, between = centre[order], end[order], between[order]
    rank = np.arange(len(centre)) - np.searchsorted(centre, centre)
    kept = rank < np.floor(r * np.bincount(pairs[0] - first, minlength=last - first))[centre - first]
    return pairs, np.stack([centre, between, end])[:, kept]


def _firsts(a: Any, b: Any) -> Any:
    """Where a pair stands for the first time in sorted columns."""
    return np.concatenate([np.ones(min(len(a), 1), dtype=bool), (a[1:] != a[:-1]) | (b[1:] != b[:-1])])
