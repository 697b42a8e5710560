"""The layer of attention over paths: a layer of GAT where paths are edges, and what holds for any paths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.test_gnn import permuted
from upcycle.core.graph_inputs import table
from upcycle.core.graphs import GraphTakes
from upcycle.zoo.spagan import SLOPE, SPAGAN, PathAttention

TAKES = GraphTakes(6, nodes=(8, 12), level="node")


def layer(lengths: int = 2, p: float = 0.0) -> PathAttention:
    torch.manual_seed(0)
    made = PathAttention(6, 4, 3, lengths, p).double()
    torch.nn.init.normal_(made.bias)
    return made


def network(layers: int = 2) -> SPAGAN:
    torch.manual_seed(0)
    return SPAGAN(6, 3, layers=layers).double().eval()


def paths(seed: int = 0, n: int = 12) -> tuple[Tensor, Tensor]:
    """Some paths of two nodes and of three, and those that stay."""
    chance = torch.Generator().manual_seed(seed)
    stay = torch.arange(n)
    drawn = (torch.randint(n, (c, 3 * n), generator=chance) for c in (2, 3))
    two, three = (torch.cat([p, stay.expand(len(p), -1)], 1) for p in drawn)
    return two, three


def test_with_edges_and_self_loops_it_is_a_layer_of_gat() -> None:
    """W_p, b_p, and a_2 with its halves swapped, in a layer that is written out node by node."""
    x, made, (edges, _) = torch.rand(12, 6).double(), layer(lengths=1), paths()
    edges = edges.unique(dim=1)
    h = (x @ made.weight.T + made.bias).view(12, 3, 4)
    expected = []
    for i in range(12):
        near = edges[1, edges[0] == i]
        e = F.leaky_relu((h[i] * made.of_paths[0, 1]).sum(-1) + (h[near] * made.of_paths[0, 0]).sum(-1), SLOPE)
        expected.append((e.softmax(0)[..., None] * h[near]).sum(0).flatten())
    assert (made(x, (edges,)) - torch.stack(expected)).abs().max() < 1e-12


def test_it_is_that_of_pytorch_geometric_to_one_in_a_million() -> None:
    nn = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed (extra graphs)")
    graphs, made = TAKES.example(5), layer(lengths=1).float()
    torch.nn.init.zeros_(made.bias)  # attention of the other one looks at features without it
    theirs = nn.GATConv(6, 4, heads=3)
    with torch.no_grad():
        theirs.lin.weight.copy_(made.weight)
        theirs.att_src.copy_(made.of_paths[0, :1])
        theirs.att_dst.copy_(made.of_paths[0, 1:])
    stay = torch.arange(12).expand(2, -1)
    over = torch.cat([graphs.edge_index.flip(0), stay], 1)
    assert (made(graphs.x, (over,)) - theirs(graphs.x, graphs.edge_index)).abs().max() < 1e-6


def test_features_of_a_path_are_the_largest_behind_its_centre() -> None:
    made = layer()
    x = torch.rand(4, 6).double()
    h = (x @ made.weight.T + made.bias).view(4, 3, 4)
    two, three = torch.arange(4).expand(2, -1), torch.tensor([[0, 1, 2, 3], [1, 1, 2, 3], [2, 1, 2, 3]])
    out, alphas, beta = made.attend(x, (two, three))
    assert all(torch.allclose(a, torch.ones_like(a)) for a in alphas)  # one path of each length
    phi = torch.maximum(h[1], h[2])
    assert torch.allclose(out.view(4, 3, 4)[0], beta[0, 0][:, None] * h[0] + beta[1, 0][:, None] * phi)
    assert torch.allclose(out.view(4, 3, 4)[1], h[1])  # whatever β is


def test_attention_over_paths_of_a_length_and_over_lengths_sums_to_one() -> None:
    over = paths()
    _, alphas, beta = layer().attend(100 * torch.randn(12, 6).double(), over)
    for p, alpha in zip(over, alphas, strict=True):
        assert torch.allclose(torch.zeros(12, 3).double().index_add(0, p[0], alpha), torch.ones(12, 3).double())
    assert torch.allclose(beta.sum(0), torch.ones(12, 3).double())


def test_weights_of_all_paths_of_a_node_sum_to_one() -> None:
    graphs = TAKES.example(5).double()
    found = network().attended(graphs, tuple(p[:, :-12] for p in paths()))
    assert [len(p) for p, _ in found] == [2, 3]
    total = sum(torch.zeros(12).double().index_add(0, p[0], weight) for p, weight in found)
    assert torch.allclose(total, torch.ones(12).double())  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [1, 2])
def test_the_order_of_nodes_and_of_paths_changes_no_answer(layers: int) -> None:
    net, graphs, over = network(layers), TAKES.example(5).double(), paths()
    other, went = permuted(graphs)
    shuffled = tuple(went[p[:, torch.randperm(p.shape[1])]] for p in over)
    assert (net(other, shuffled) - net(graphs, over)).abs().max() < 1e-12
    assert (net(graphs, over) - net(graphs)).abs().max() > 1e-3


@pytest.mark.parametrize("layers", [1, 2])
def test_a_node_without_paths_depends_on_itself_alone(layers: int) -> None:
    net, graphs = network(layers), TAKES.example(5).double()
    none = tuple(torch.empty(c, 0, dtype=torch.long) for c in (2, 3))
    alone = replace(graphs, edge_index=graphs.edge_index[:, :0], at=None, n=1)
    alone = replace(alone, at=torch.arange(12))
    answer = net(alone, none)
    assert bool(answer.isfinite().all())
    changed = replace(alone, x=torch.cat([alone.x[:1], torch.rand(11, 6).double()]))
    assert torch.equal(net(changed, none)[0], answer[0]) and not torch.allclose(net(changed, none), answer)


@pytest.mark.parametrize("layers", [1, 2])
def test_sparse_features_give_the_same_answers(layers: int) -> None:
    net, graphs = network(layers), TAKES.example(5).double()
    graphs.x *= graphs.x > 0.5
    assert torch.allclose(net(replace(graphs, x=table(graphs.x)), paths()), net(graphs, paths()))


def test_it_has_eight_heads_of_eight_and_drops_out_six_tenths() -> None:
    made = SPAGAN(1433, 7)
    first = 1433 * 64 + 64 + 2 * 2 * 64 + 2 * 64
    assert sum(p.numel() for p in made.parameters()) == first + 64 * 7 + 7 + 2 * 7
    assert made.p == made.attention.p == 0.6
    assert abs(float(made.attention.weight.detach().std()) - 1.414 * (2 / (1433 + 8)) ** 0.5) < 1e-3


def test_every_parameter_gets_a_gradient() -> None:
    made = layer()
    made(torch.rand(12, 6).double(), paths()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in made.parameters())
