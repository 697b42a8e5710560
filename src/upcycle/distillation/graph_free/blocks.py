"""Edges as dense blocks: a graph of n nodes as a table (n, n), and networks whose messages are products with it.

A batch of small, dense graphs goes through matrix products about three times as fast as through lists of edges. Node j
of graph g hears node k where ``A[g, j, k]`` is 1. Nodes themselves lie one after the other (N, d), as in
:class:`upcycle.core.graphs.Graphs`, so that only messages pass through the padded blocks.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.graphs import Graphs
from upcycle.core.patterns import Values
from upcycle.core.undisturbed import undisturbed

ALIKE = 1e-4
"""Largest difference of logits, over their largest value, at which a network of blocks counts as the network."""


class Places:
    """Where the nodes of b graphs lie: one after the other, and in blocks of n, the most nodes of a graph.

    Args:
        sizes: the number of nodes of each graph.

    Attributes:
        n: nodes of the largest.
        batch: int64 (N,), the graph of each node.
        rows: int64 (N,), its place among b n places of the blocks.
        first: int64 (b,), the first node of each graph.
        pairs: 1 for two different nodes of a graph, else 0; (b, n, n).
    """

    def __init__(self, sizes: Int[Tensor, " b"]) -> None:
        self.n = int(sizes.max())
        there = torch.arange(self.n, device=sizes.device) < sizes[:, None]
        self.sizes, self.rows = sizes, there.flatten().nonzero()[:, 0]
        self.batch = self.rows // self.n
        self.first = sizes.cumsum(0) - sizes
        self.pairs = (there[:, :, None] & there[:, None, :]).float() * (1 - torch.eye(self.n, device=sizes.device))

    def graphs(self, x: Float[Tensor, "m d"], edge_index: Int[Tensor, "2 e"]) -> Graphs:
        """Graphs of these nodes."""
        return Graphs(x=x, edge_index=edge_index, batch=self.batch.to(x.device), n=len(self.sizes))

    def pattern(self, d: int) -> dict[str, Any]:
        """The pattern of features and edges of such graphs; see :mod:`upcycle.core.patterns`."""
        return {"x": Values((len(self.rows), d)), "edge_index": Values((2, None), 0, len(self.rows) - 1, whole=True)}

    def edges(self, A: Float[Tensor, "b n n"]) -> Int[Tensor, "2 e"]:
        """The edges of blocks as source and target of each, sorted by target."""
        graph, target, source = A.nonzero().unbind(1)
        return torch.stack([self.first[graph] + source, self.first[graph] + target])


class Blocks:
    """The edges of a batch as blocks, to stand where a network is given its list of edges.

    Args:
        A: 1 where node j of graph g hears node k, else 0, also for nodes that are not there.
        places: of the nodes.
    """

    def __init__(self, A: Float[Tensor, "b n n"], places: Places) -> None:
        self.A, self.places = A, places

    def sum(self, h: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
        """Σ_k A[j, k] h_k for each node j: what its neighbours say."""
        return self._product(self.A, h)

    def mean(self, h: Float[Tensor, "m c"], loops: bool) -> Float[Tensor, "m c"]:
        """D^-1/2 (A + I) D^-1/2 h, where D counts the nodes that each node hears; without ``loops`` there is no I."""
        return self._product(self._scaled_with_loops if loops else self._scaled, h)

    def _product(self, A: Tensor, h: Tensor) -> Tensor:
        b, n, _ = A.shape
        spread = h.new_zeros(b * n, h.shape[1]).index_copy(0, self.places.rows, h)
        heard = torch.bmm(A.to(h), spread.view(b, n, -1)).flatten(0, 1)
        return heard.index_select(0, self.places.rows)

    # The table is scaled once for all layers, which is less work than to scale messages before and after each.
    @cached_property
    def _scaled(self) -> Tensor:
        return _scaled(self.A)

    @cached_property
    def _scaled_with_loops(self) -> Tensor:
        return _scaled(self.A + torch.eye(self.places.n).to(self.A))


def _scaled(A: Float[Tensor, "b n n"]) -> Float[Tensor, "b n n"]:
    degrees = A.sum(2)
    scale = torch.where(degrees > 0, degrees.rsqrt(), 0)
    return scale[:, :, None] * A * scale[:, None, :]


def blocked(network: nn.Module, example: Any) -> nn.Module | None:
    """A copy of a network over graphs whose layers take :class:`Blocks` in place of lists of edges.

    The copy shares no weights. Knows PyTorch Geometric's ``GCNConv`` and ``GINConv``.

    Args:
        network: in evaluation mode; its forward takes :class:`~upcycle.core.graphs.Graphs`.
        example: graphs that both are tried on.

    Returns:
        ``None`` where a layer is of another kind, or where both do not answer alike.
    """
    from torch_geometric.nn import GCNConv, GINConv, MessagePassing

    made = copy.deepcopy(network)
    for name, layer in list(made.named_modules()):
        if type(layer) is GCNConv and layer.normalize and not layer.improved and not layer.cached:
            made.set_submodule(name, _GCN(layer))
        elif type(layer) is GINConv:
            made.set_submodule(name, _GIN(layer))
        elif isinstance(layer, MessagePassing):
            return None
    with undisturbed(network), undisturbed(made):
        try:
            expected, found = network(example), made(as_blocks(example))
        except Exception:  # whatever else its forward does with edges
            return None
    near = (found - expected).abs().max() <= ALIKE * expected.abs().max().clamp_min(1e-12)
    return made if bool(near) else None


def as_blocks(graphs: Any) -> Any:
    """The same graphs with their edges as :class:`Blocks`.

    Args:
        graphs: :class:`~upcycle.core.graphs.Graphs` in which no edge stands twice and none is a loop.
    """
    places = Places(torch.bincount(graphs.batch, minlength=graphs.n))
    source, target = graphs.edge_index
    g = graphs.batch[target]
    A = torch.zeros_like(places.pairs)
    A[g, target - places.first[g], source - places.first[g]] = 1
    return type(graphs)(x=graphs.x, edge_index=Blocks(A, places), batch=graphs.batch, n=graphs.n)


class _GCN(nn.Module):
    """Kipf and Welling's layer, D^-1/2 (A + I) D^-1/2 X W + b, where D counts the nodes that each node hears."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.lin, self.bias, self.loops = layer.lin, layer.bias, layer.add_self_loops

    def forward(self, x: Tensor, edges: Blocks, edge_weight: None = None) -> Tensor:
        narrow = self.lin.in_channels < self.lin.out_channels  # messages are as wide as the narrower side
        h = self.lin(edges.mean(x, self.loops)) if narrow else edges.mean(self.lin(x), self.loops)
        return h if self.bias is None else h + self.bias


class _GIN(nn.Module):
    """Xu et al.'s layer, nn((1 + ε) x_j + Σ_k x_k)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.nn, self.eps = layer.nn, layer.eps

    def forward(self, x: Tensor, edges: Blocks, size: None = None) -> Tensor:
        return self.nn((1 + self.eps) * x + edges.sum(x))
