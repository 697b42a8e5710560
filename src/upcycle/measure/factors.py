"""How well factor graphs stand for the relations that graphs are made of: GED_E and the C-Score.

Yang, Feng, Song, Wang (FactorGCN); arXiv:2010.05421. b graphs of up to s nodes, F relations, L factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TRUTH = "relations"
"""The column of data with the graph of each relation, bool (n, F, s, s), where that is known."""


@dataclass(frozen=True, kw_only=True)
class Disentanglement:
    """How well factors stand for relations.

    Args:
        c_score: consistency: of each relation the share of graphs in which its most frequent factor is matched with it,
            mean over relations. Far above 1/L by chance too, as the best of several matches is taken.
        ged: GED_E: mean edit distance of a relation from its factor, in entries of the adjacency matrix.
        spread: standard deviation of GED_E over the graphs.
        shares: for each relation and factor, the share of graphs with the relation in which they are matched, (F, L).
    """

    c_score: float
    ged: float
    spread: float
    shares: list[list[float]]


def matrices(weight: Tensor, source: Tensor, target: Tensor, batch: Tensor, n: int, size: int) -> Tensor:
    """The weights of edges as symmetric matrices without a diagonal, (E + E^T) / 2, of several graphs that lie as one.

    Args:
        weight: of each edge in each factor, (M, L).
        source, target: int64 (M,), each loop among them or not.
        batch: the graph of each node, int64 (N,), ascending.
        n: graphs.
        size: s, as many nodes as the largest has.

    Returns:
        (n, L, s, s); zeros where there is no edge.
    """
    first = torch.searchsorted(batch, torch.arange(n, device=batch.device))
    own, real = batch[target], source != target
    made = weight.new_zeros(n, size, size, weight.shape[1])
    made[own[real], (source - first[own])[real], (target - first[own])[real]] = weight[real]
    made = made.permute(0, 3, 1, 2)
    return (made + made.transpose(2, 3)) / 2


def edit_distances(truth: Tensor, predicted: Tensor) -> Tensor:
    """The edit distance of each relation from each factor, nodes fixed: entries in which the two matrices differ.

    A factor becomes as many edges as the relation has, those with the largest weights; of equal ones the first. An edge
    counts as two entries.

    Args:
        truth: bool (b, F, s, s), symmetric.
        predicted: (b, L, s, s), symmetric.

    Returns:
        int64 (b, F, L).
    """
    size = truth.shape[-1]
    i, j = torch.triu_indices(size, size, offset=1, device=truth.device)
    edges, weights = truth[..., i, j], predicted[..., i, j]
    rank = weights.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    count = edges.sum(-1)
    chosen = rank[:, None] < count[:, :, None, None]
    right = (chosen & edges[:, :, None]).sum(-1)
    return 4 * (count[..., None] - right)


def match(distances: Tensor, present: Tensor) -> Tensor:
    """Give each relation of each graph a factor of its own, so that distances are least in all (Hungarian method).

    Args:
        distances: (b, F, L).
        present: bool (b, F), which relations a graph has; at most L.

    Returns:
        int64 (b, F), the factor; -1 where the graph has not got the relation.

    Raises:
        ValueError: a graph with more relations than factors.
    """
    from scipy.optimize import linear_sum_assignment

    if int(present.sum(1).max()) > distances.shape[2]:
        raise ValueError(f"{distances.shape[2]} factors cannot stand for {int(present.sum(1).max())} relations")
    found = torch.full(present.shape, -1)
    for row, costs, there in zip(found, distances.numpy(), present, strict=True):
        which = there.nonzero()[:, 0]
        rows, columns = linear_sum_assignment(costs[which.numpy()])
        row[which[rows]] = torch.from_numpy(columns)
    return found


def disentanglement(truth: Tensor, predicted: Tensor) -> Disentanglement:
    """Measure how well factors stand for relations.

    Args:
        truth: the graph of each relation, bool (b, F, s, s); without an edge where a graph has not got it.
        predicted: weights of edges in each factor, see :func:`matrices`; (b, L, s, s).
    """
    present = truth.flatten(2).any(2)
    distances = edit_distances(truth, predicted)
    factor = match(distances, present)
    each = distances.gather(2, factor.clamp_min(0)[..., None])[..., 0] * present
    ged = each.sum(1).double() / present.sum(1).clamp_min(1)
    counts = torch.nn.functional.one_hot(factor.clamp_min(0), predicted.shape[1]) * present[..., None]
    shares = counts.sum(0).double() / present.sum(0).clamp_min(1)[:, None]
    known = present.any(0)
    return Disentanglement(
        c_score=float(shares[known].amax(1).mean()),
        ged=float(ged.mean()),
        spread=float(ged.std(correction=0)),
        shares=shares.tolist(),
    )


def random_factors(like: Tensor, generator: torch.Generator) -> Tensor:
    """Weights drawn from U(0, 1) in place of those that a network gives: what has to be beaten.

    Args:
        like: (b, L, s, s), zeros where there is no edge.
    """
    drawn = torch.rand(like.shape, generator=generator)
    return (drawn + drawn.transpose(2, 3)) / 2 * (like != 0)
