"""Networks over graphs as programs of tensors, for deployment without upcycle."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from upcycle.core.graph_inputs import Graphs
from upcycle.core.graphs import GraphTakes


class OfTensors(nn.Module):
    """A network over graphs that is called with tensors, as PyTorch Geometric's batches have them.

    About graphs it takes ``x``, ``edge_index``, ``batch`` and ``first``, int64 (n,), the first node of each graph
    (``ptr`` of PyTorch Geometric without its last number). About nodes it takes ``x`` and ``edge_index``, and answers
    about every node. Features of edges come last, where there are any.

    Args:
        network: takes :class:`Graphs`.
        takes: what these are like.
    """

    def __init__(self, network: nn.Module, takes: GraphTakes) -> None:
        super().__init__()
        self.network, self.takes = network, takes

    def forward(self, *parts: Tensor) -> Tensor:
        x, edge_index, *more = parts
        edge_attr = more[-1] if self.takes.edges else None
        if self.takes.level == "node":
            n = x.shape[0]  # the number of a program, which len(x) is not
            batch, at = edge_index.new_zeros(n), torch.arange(n, device=x.device)
            return self.network(Graphs(x, edge_index, batch, n=1, edge_attr=edge_attr, at=at))
        batch, first, *_ = more
        return self.network(Graphs(x, edge_index, batch, n=first.shape[0], edge_attr=edge_attr))


def names(takes: GraphTakes) -> tuple[str, ...]:
    """Give the tensors that the program is called with, in order."""
    of_graphs = ("batch", "first") if takes.level == "graph" else ()
    return ("x", "edge_index", *of_graphs, *(("edge_attr",) if takes.edges else ()))


def tensors(graphs: Graphs, takes: GraphTakes) -> tuple[Tensor, ...]:
    """The tensors of graphs, as :func:`names` has them."""
    found = {
        "x": graphs.x,
        "edge_index": graphs.edge_index,
        "batch": graphs.batch,
        "first": graphs.starts[0][:-1],
        "edge_attr": graphs.edge_attr,
    }
    return tuple(t for name in names(takes) if (t := found[name]) is not None)


def write_program(network: nn.Module, example: Graphs, held: Graphs, file: Path, takes: GraphTakes) -> Tensor:
    """Write a program for any number of nodes, edges and graphs, and give its answers to ``held``.

    Args:
        network: takes :class:`Graphs`; one for a single graph (``own_example``) gets a program for these numbers alone.
        example: what it is traced with.
        held: other graphs.
        file: a ``.pt2``.
        takes: what the graphs are like.
    """
    nodes, edges, several = (torch.export.Dim(name) for name in ("nodes", "edges", "graphs"))
    free = {
        "x": {0: nodes},
        "edge_index": {1: edges},
        "batch": {0: nodes},
        "first": {0: several},
        "edge_attr": {0: edges},
    }
    shapes = (tuple(free[name] for name in names(takes)),)
    module, dynamic = OfTensors(network, takes), None if hasattr(network, "own_example") else shapes
    with torch.no_grad():
        program = torch.export.export(module, tensors(example, takes), dynamic_shapes=dynamic, strict=False)
        torch.export.save(program, file)
        answer: Tensor = torch.export.load(file).module()(*tensors(held, takes))
    return answer
