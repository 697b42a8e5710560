"""Networks of dense blocks answer as those over lists of edges do, and so do their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upcycle.core.graphs import Graphs, GraphTakes, OnGraphs
from upcycle.distillation.graph_free.blocks import Blocks, Places, as_blocks, blocked

pytest.importorskip("torch_geometric")
TAKES = GraphTakes(features=7, nodes=(3, 12))


def zoo(name: str, level: str = "graph") -> nn.Module:
    from upcycle.zoo.gnn import make

    torch.manual_seed(0)
    network = OnGraphs(make(name, 7, 3, level))  # type: ignore[arg-type]
    for m in network.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.running_mean.normal_()  # type: ignore[union-attr,operator]
            m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
    return network.eval()


def drawn(directed: bool = True) -> tuple[Graphs, Graphs]:
    """The same dense graphs as a list of edges and as blocks; one has a single node."""
    random = torch.Generator().manual_seed(1)
    places = Places(torch.tensor([5, 1, 9, 12]))
    A = (torch.rand(4, 12, 12, generator=random) < 0.4).float() * places.pairs
    A = A if directed else A.maximum(A.mT)
    x = torch.randn(27, 7, generator=random)
    graphs = places.graphs(x, places.edges(A))
    return graphs, Graphs(x=x, edge_index=Blocks(A, places), batch=places.batch, n=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize("name", ["gcn_5_64", "gcn_3_32", "gin_5_64", "gin_3_32"])
def test_blocks_answer_as_lists_of_edges(name: str, directed: bool) -> None:
    network = zoo(name)
    dense = blocked(network, TAKES.example(4))
    assert dense is not None
    sparse_graphs, dense_graphs = drawn(directed)
    answers = []
    for made, graphs in ((network, sparse_graphs), (dense, dense_graphs)):
        x = graphs.x.clone().requires_grad_()
        z = made(Graphs(x=x, edge_index=graphs.edge_index, batch=graphs.batch, n=4))
        (gradient,) = torch.autograd.grad(z.square().sum(), x)
        answers.append((z.detach(), gradient))
    (z, g), (z_dense, g_dense) = answers
    assert torch.allclose(z, z_dense, atol=1e-5, rtol=1e-5) and torch.allclose(g, g_dense, atol=1e-4, rtol=1e-4)
    assert not any(a is b for a, b in zip(network.parameters(), dense.parameters(), strict=True))


def test_a_list_of_edges_becomes_blocks() -> None:
    sparse_graphs, dense_graphs = drawn()
    assert torch.equal(as_blocks(sparse_graphs).edge_index.A, dense_graphs.edge_index.A)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["gat", "sage"])
def test_other_layers_keep_their_lists_of_edges(name: str) -> None:
    assert blocked(zoo(name), TAKES.example(4)) is None


class Counts(nn.Module):
    """Looks at the list itself, which blocks are not."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.conv = GCNConv(7, 3)

    def forward(self, x, edge_index, batch, batch_size):  # type: ignore[no-untyped-def]
        from torch_geometric.nn import global_add_pool

        return global_add_pool(self.conv(x, edge_index), batch, batch_size) * edge_index.shape[1]


def test_a_network_that_looks_at_the_list_keeps_it() -> None:
    assert blocked(OnGraphs(Counts()).eval(), TAKES.example(4)) is None
