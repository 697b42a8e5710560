"""A network for one graph alone: paths through that graph, kept with the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.graphs import Graphs, GraphTakes
from upcycle.core.models import Model
from upcycle.core.outputs import called

REFERENCE = "assembly:one_graph"


class OnOneGraph(nn.Module):
    """A network that attends along kept paths of the one graph that it was made for, and refuses any other.

    Paths are kept, and not found anew by a forward: then the network is the same function on every machine, where the
    last bit of a cost could decide between two paths, it needs no search to answer, and it can be exported.

    Args:
        network: its forward takes (graphs, paths).
        nodes: N, of the graph.
        edge_index: its edges, int64 (2, E).
        paths: of each length, int64 (c, P_c), the centre in row 0.
    """

    edge_index: Tensor

    def __init__(self, network: nn.Module, nodes: int, edge_index: Tensor, paths: Sequence[Tensor]) -> None:
        super().__init__()
        self.network, self.nodes = network, nodes
        self.register_buffer("edge_index", edge_index.clone())
        self._names = [f"paths{p.shape[0]}" for p in paths]
        for name, p in zip(self._names, paths, strict=True):
            self.register_buffer(name, p.clone())

    @property
    def paths(self) -> tuple[Tensor, ...]:
        """The paths of each length."""
        return tuple(getattr(self, name) for name in self._names)

    def forward(self, graphs: Graphs) -> Tensor:
        """Logits (len(graphs), k).

        Raises:
            UserError: another graph.
        """
        self.require_own(graphs)
        return self.network(graphs, self.paths)

    def require_own(self, graphs: Graphs) -> None:
        """Refuse another graph: another number of nodes, or other edges. In a program of torch.export nothing is asked.

        Raises:
            UserError: another graph.
        """
        if torch.compiler.is_compiling() or same_graph(graphs, self.nodes, self.edge_index):
            return
        own, theirs = (
            f"{n:,} nodes and {edges.shape[1]:,} edges"
            for n, edges in ((self.nodes, self.edge_index), (graphs.x.shape[0], graphs.edge_index))
        )
        raise UserError(
            f"This {called(self.network)} attends along paths of the one graph that it was made for, with {own}, and "
            f"this is another graph, with {theirs}: make one for it by upcycle distill --method spagan."
        )

    def own_example(self, takes: GraphTakes, n: int) -> Graphs:
        """Its graph with fixed pseudo-random features, and the first ``n`` nodes asked for; see :class:`Model`."""
        x = torch.rand(self.nodes, takes.features, generator=torch.Generator().manual_seed(0))
        edges = self.edge_index.cpu()
        return Graphs(x, edges, torch.zeros(self.nodes, dtype=torch.long), n=1, at=torch.arange(min(n, self.nodes)))


def same_graph(graphs: Graphs, nodes: int, edge_index: Tensor) -> bool:
    """Whether graphs are the one graph of so many nodes and these edges, in this order."""
    return graphs.x.shape[0] == nodes and torch.equal(graphs.edge_index, edge_index.to(graphs.edge_index.device))


def rebuild_one_graph(
    *, source: dict[str, Any], nodes: int, edges: int, paths: list[list[int]], rebuild: Callable[[Any], Model]
) -> nn.Module:
    """A network on a graph of zeros again; its weights, edges and paths come after.

    Args:
        source: of the network that attends.
        nodes, edges: how many the graph has.
        paths: for each length the nodes of a path, and how many there are.
    """
    sizes = [nodes, edges, *(number for shape in paths for number in shape)]
    if not all(isinstance(size, int) and 0 <= size < 2**40 for size in sizes):
        raise ValueError("numbers of nodes, edges and paths cannot be such")
    kept = [torch.zeros(*shape, dtype=torch.long) for shape in paths]
    return OnOneGraph(rebuild(source).module, nodes, torch.zeros(2, edges, dtype=torch.long), kept)
