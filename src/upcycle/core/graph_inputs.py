"""Graphs as inputs of networks: plain tensors.

Nothing here imports PyTorch Geometric, which takes seconds. Its conventions are kept: ``edge_index[0]`` is the source
of an edge and ``edge_index[1]`` its target, and ``batch`` says for each node which graph it belongs to.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.errors import require


@dataclass(eq=False)
class Graphs:
    """Graphs as one: what a network takes at once, and how many answers it owes.

    Implements the words of tensors that runs use of inputs: ``dtype``, ``device``, ``to``, ``double``, ``len`` and so
        on.

    Args:
        x: features of the nodes, floating, (N, d); dense, or sparse in CSR layout.
        edge_index: int64 (2, E), source and target of each edge; edges lie sorted by target.
        batch: int64 (N,), ascending: the graph that each node belongs to.
        n: the number of graphs.
        edge_attr: features of the edges, (E, k), or ``None``.
        at: int64, the nodes that are asked for; ``None`` where graphs are.
    """

    x: Tensor
    edge_index: Tensor
    batch: Tensor
    n: int
    edge_attr: Tensor | None = None
    at: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the features."""
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.x.device

    @property
    def is_cuda(self) -> bool:
        """Whether they are on an NVIDIA GPU."""
        return self.x.is_cuda

    @property
    def ndim(self) -> int:
        """2: features are a table, and no images."""
        return 2

    @property
    def values(self) -> Tensor:
        """The features that are stored: all of a dense table, those that are not zero of a sparse one."""
        return self.x.values() if self.sparse else self.x

    @property
    def sparse(self) -> bool:
        """Whether the features are in CSR layout."""
        return self.x.layout == torch.sparse_csr

    @cached_property
    def starts(self) -> tuple[Tensor, Tensor]:
        """The first node and the first edge of each graph, and behind the last ones their numbers; int64 (n + 1,)."""
        nodes = torch.searchsorted(self.batch, torch.arange(self.n + 1, device=self.device))
        return nodes, torch.searchsorted(self.edge_index[1].contiguous(), nodes)

    def __len__(self) -> int:
        return self.n if self.at is None else len(self.at)

    def __getitem__(self, rows: slice | Tensor) -> Graphs:
        """Fewer of what is asked for: some graphs, or the same graph and fewer of its nodes.

        Args:
            rows: a slice, or int64 positions.
        """
        if self.at is not None:
            return replace(self, at=self.at[rows])
        if isinstance(rows, slice):
            rows = torch.arange(self.n, device=self.device)[rows]
        node_starts, edge_starts = self.starts
        nodes, owners, shifts = _spans(node_starts, rows)
        edges, edge_owners, _ = _spans(edge_starts, rows)
        x = self.x.to_dense() if self.sparse else self.x  # rows of CSR tensors cannot be selected
        return Graphs(
            x=x.index_select(0, nodes),
            edge_index=self.edge_index.index_select(1, edges) + shifts[edge_owners],
            batch=owners,
            n=len(rows),
            edge_attr=None if self.edge_attr is None else self.edge_attr.index_select(0, edges),
        )

    def to(self, *args: Any, **kwargs: Any) -> Graphs:
        """The same elsewhere or in another number format; as that of tensors, but whole numbers keep theirs.

        Args:
            args, kwargs: a device, a number format or a tensor that has both, and ``non_blocking``.
        """
        values = self.values.to(*args, **kwargs)
        require(values.is_floating_point(), "Features of graphs are floating numbers and cannot become whole ones.")
        if values is self.values:
            return self
        there, wait = values.device, bool(kwargs.get("non_blocking", False))
        edge_attr = self.edge_attr
        if edge_attr is not None:
            floating = edge_attr.is_floating_point()
            edge_attr = edge_attr.to(values.dtype if floating else edge_attr.dtype).to(there, non_blocking=wait)
        return Graphs(
            x=self._like_x(values, wait) if self.sparse else values,
            edge_index=self.edge_index.to(there, non_blocking=wait),
            batch=self.batch.to(there, non_blocking=wait),
            n=self.n,
            edge_attr=edge_attr,
            at=None if self.at is None else self.at.to(there, non_blocking=wait),
        )

    def double(self) -> Graphs:
        """The same in float64."""
        return self.to(torch.float64)

    def float(self) -> Graphs:
        """The same in float32."""
        return self.to(torch.float32)

    def clone(self) -> Graphs:
        """The same with tensors of its own."""
        tensors: dict[str, Any] = {k: value.clone() for k, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def detach(self) -> Graphs:
        """The same with features that no gradient goes through."""
        return replace(self, x=self.x.detach())

    def requires_grad_(self, requires_grad: bool = True) -> Graphs:
        """These graphs, whose features are what a gradient may be asked for."""
        self.x.requires_grad_(requires_grad)
        return self

    def dense(self) -> Graphs:
        """The same with features in an ordinary table."""
        return replace(self, x=self.x.to_dense()) if self.sparse else self

    def data(self) -> Any:
        """These graphs as a ``torch_geometric.data.Data``, with ``batch`` and, where nodes are asked for, ``at``."""
        from torch_geometric.data import Data

        more = {"edge_attr": self.edge_attr, "at": self.at}
        return Data(
            x=self.x, edge_index=self.edge_index, batch=self.batch, **{k: v for k, v in more.items() if v is not None}
        )

    def _like_x(self, values: Tensor, wait: bool) -> Tensor:
        """The sparse features with other values."""
        there = values.device
        crow, col = (t.to(there, non_blocking=wait) for t in (self.x.crow_indices(), self.x.col_indices()))
        return torch.sparse_csr_tensor(crow, col, values, self.x.shape, check_invariants=False)


def table(x: Tensor) -> Tensor:
    """Features in CSR layout, without the remark of torch that this layout is young.

    Args:
        x: (N, d).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return x.to_sparse_csr()


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of dense or sparse (CSR) features: a zero stays zero either way, so only stored values are drawn.

    Args:
        x: (N, d).
        p: the share that becomes zero.
        training: whether anything is dropped.
    """
    if not training or p == 0:
        return x
    if x.layout != torch.sparse_csr:
        return nn.functional.dropout(x, p)
    values = nn.functional.dropout(x.values(), p)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False)


def _spans(starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The members of some graphs among those of all, laid one after the other.

    Args:
        starts: the first member of each graph, int64 (n + 1,).
        rows: the graphs, int64 (b,).

    Returns:
        the place of each member before, which of ``rows`` it belongs to, and how far each of these was shifted.
    """
    first = starts[rows]
    lengths = starts[rows + 1] - first
    shifts = lengths.cumsum(0) - lengths - first
    owners = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), lengths)
    return torch.arange(len(owners), device=rows.device) - shifts[owners], owners, shifts


def sorted_by_target(edge_index: Tensor, edge_attr: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Edges by target, and among those of a target by source, so that sums over neighbours go through memory in order.

    Args:
        edge_index: int64 (2, E).
        edge_attr: their features, (E, k), or ``None``.
    """
    source, target = edge_index
    order = source.argsort(stable=True)
    order = order[target[order].argsort(stable=True)]
    return edge_index[:, order].contiguous(), None if edge_attr is None else edge_attr[order]
