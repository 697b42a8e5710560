"""Sets of graphs made of parts, each of which is refused by its name where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.core.graph_inputs import Graphs, sorted_by_target
from upcycle.core.limits import require_classes

DEGREES = 512
"""The most degrees that are told apart where degrees are the features."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """Graphs laid one after the other, whose edges still count the nodes of their own graph.

    Args:
        x: features of all nodes, (N, d).
        edge_index: (2, E), numbers of nodes within each edge's graph.
        sizes: nodes of each graph, int64 (n,).
        edges: edges of each graph, int64 (n,).
        edge_attr: features of all edges, (E, k).
    """

    x: Tensor
    edge_index: Tensor
    sizes: Tensor
    edges: Tensor
    edge_attr: Tensor | None = None


def of_parts(name: str, parts: Parts) -> Graphs:
    """Check parts and join them to one.

    Args:
        name: of the set, for errors.
        parts: see :class:`Parts`.

    Raises:
        UserError: a graph without nodes, an edge that leads nowhere, or a feature that is no finite number.
    """
    n = len(parts.sizes)
    require(n > 0, f"{name} has no graphs.")
    if (empty := (parts.sizes == 0).nonzero().flatten()).numel():
        raise UserError(f"{_graph(name, int(empty[0]), n)} has no nodes.")
    require(
        not parts.edge_index.is_floating_point() and parts.edge_index.dtype != torch.bool,
        f"The edges of {name} are {_kind(parts.edge_index)} numbers; edge_index holds the whole numbers of nodes.",
    )
    owners = torch.repeat_interleave(torch.arange(n), parts.edges)
    edge_index = parts.edge_index.long()
    wrong = ((edge_index < 0) | (edge_index >= parts.sizes[owners])).any(0).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        i, (source, target) = int(owners[first]), edge_index[:, first].tolist()
        size = int(parts.sizes[i])
        raise UserError(
            f"An edge of {_graph(name, i, n)} goes from node {source} to node {target}, and there are 0 to {size - 1}."
        )
    _require_finite(name, parts.x, torch.repeat_interleave(torch.arange(n), parts.sizes), n, "node")
    if parts.edge_attr is not None:
        require(
            parts.edge_attr.ndim == 2 and len(parts.edge_attr) == edge_index.shape[1],
            f"{name} has {edge_index.shape[1]:,} edges and features for {len(parts.edge_attr):,} of them.",
        )
        _require_finite(name, parts.edge_attr, owners, n, "edge")
    before = parts.sizes.cumsum(0) - parts.sizes
    edge_index, edge_attr = sorted_by_target(edge_index + before[owners], parts.edge_attr)
    batch = torch.repeat_interleave(torch.arange(n), parts.sizes)
    x = parts.x if parts.x.layout == torch.sparse_csr else parts.x.float().contiguous()
    return Graphs(x, edge_index, batch, n=n, edge_attr=None if edge_attr is None else edge_attr.float())


def _require_finite(name: str, features: Tensor, owners: Tensor, n: int, noun: str) -> None:
    values = features.values() if features.layout == torch.sparse_csr else features
    if bool(values.isfinite().all()):
        return
    dense = features.to_dense()
    row = int((~dense.isfinite()).any(1).nonzero()[0])
    i = int(owners[row])
    within = row - int((owners < i).sum())
    bad = dense[row][~dense[row].isfinite()][0].item()
    raise UserError(f"A feature of {noun} {within} of {_graph(name, i, n)} is {bad}; features are finite numbers.")


def _graph(name: str, i: int, n: int) -> str:
    return name if n == 1 else f"graph {i} of {name}"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def require_labels(
    name: str, y: Tensor | None, n: int, classes: Sequence[str] | None, noun: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Check labels, int64 (n,) with -1 where unknown, and name their classes.

    Args:
        name: of the set, for errors.
        y: labels; ``None`` for none.
        n: graphs or nodes.
        classes: class names; the numbers 0, 1, ... when not given.
        noun: ``graph`` or ``node``.

    Raises:
        UserError: labels that are no class numbers, or out of range.
    """
    if y is None:
        return torch.full((n,), -1), tuple(classes or ())
    if y.is_floating_point() and len(odd := y[y != y.round()]):
        raise UserError(
            f"The labels of {name} are not whole numbers ({float(odd[0])}); a classifier needs that of a class."
        )
    y = y.long()
    k = len(classes) if classes is not None else max(int(y.max()) + 1, 0)
    if classes is None:
        require_classes(k - 1, n, name)
    wrong = ((y < -1) | (y >= k)).nonzero().flatten()
    if len(wrong):
        i = int(wrong[0])
        raise UserError(
            f"Labels of {name} must lie between 0 and {k - 1} (-1: unknown), and {noun} {i} has {int(y[i])}."
        )
    require(k == 0 or k >= 2, f"{name} has {k} class; a classifier needs at least 2.")
    return y, tuple(classes) if classes is not None else tuple(map(str, range(k)))


def degrees(edge_index: Tensor, sizes: Tensor, edges: Tensor) -> Tensor:
    """The degree of each node as a one-hot row, for graphs whose nodes have no features.

    The largest degree that occurs has the last place, at most :data:`DEGREES`.

    Args:
        edge_index: int64 (2, E), numbers of nodes within each edge's graph.
        sizes, edges: nodes and edges of each graph, int64 (n,).
    """
    before = torch.repeat_interleave(sizes.cumsum(0) - sizes, edges)
    into = torch.bincount(edge_index[1].long() + before, minlength=int(sizes.sum())).clamp_max(DEGREES)
    return torch.zeros(len(into), int(into.max()) + 1).scatter_(1, into[:, None], 1.0)


def degree_note(name: str, x: Tensor) -> str:
    """Say that degrees stand in the place of features.

    Args:
        name: of the set.
        x: what :func:`degrees` gave.
    """
    return f"The nodes of {name} have no features; in their place each has its degree, of up to {x.shape[1] - 1}."
