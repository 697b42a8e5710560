"""Graphs as inputs, what networks take of them, and how these are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.graph_inputs import Graphs, dropout, sorted_by_target, table
from upcycle.core.graphs import GraphTakes, OnGraphs

GRAPH, NODE = GraphTakes(5, nodes=(4, 9)), GraphTakes(5, nodes=(4, 9), level="node")
BOTH = pytest.mark.parametrize("takes", [GRAPH, NODE], ids=["graph", "node"])


def sums(values: Tensor, to: Tensor, n: int) -> Tensor:
    return values.new_zeros(n, values.shape[1]).index_add_(0, to, values)


class Net(nn.Module):
    """One sum over neighbours and a linear layer; pools where it is asked to."""

    def __init__(self, pool: bool, features: int = 5) -> None:
        super().__init__()
        self.linear, self.pool = nn.Linear(features, 3), pool

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        z = self.linear(x)
        z = z + sums(z[edge_index[0]], edge_index[1], len(z))
        return sums(z, batch, int(batch.max()) + 1) if self.pool and batch is not None else z


# -- inputs -----------------------------------------------------------------------------------------------------------


@BOTH
def test_an_example_is_the_same_each_time_sorted_and_has_an_isolated_node(takes: GraphTakes) -> None:
    one, two = takes.example(3), takes.example(3)
    assert len(one) == 3 and one.ndim == 2 and one.dtype == torch.float32 and not one.is_cuda
    assert all(
        torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True) if isinstance(a, Tensor)
    )
    assert not (one.edge_index == 0).any()
    assert (one.edge_index[1].diff() >= 0).all() and (one.batch.diff() >= 0).all()
    assert one.edge_index.shape[1] > 0 and int(one.edge_index.max()) < len(one.x)
    assert torch.equal(one.edge_index.flip(0).unique(dim=1), one.edge_index.unique(dim=1))  # both directions


@BOTH
def test_whole_numbers_stay_whole_whatever_the_rest_becomes(takes: GraphTakes) -> None:
    graphs = GraphTakes(5, 2, takes.nodes, takes.level).example(3)
    for made in (graphs.double(), graphs.to(torch.float64), graphs.to(torch.zeros(1, dtype=torch.float64))):
        assert made.dtype == torch.float64 and made.edge_attr is not None and made.edge_attr.dtype == torch.float64
        assert made.edge_index.dtype == made.batch.dtype == torch.int64
        assert made.at is None or made.at.dtype == torch.int64
        assert len(made) == 3
    assert graphs.double().float().dtype == torch.float32 and graphs.to("cpu") is graphs
    meta = graphs.to("meta")
    assert meta.device.type == meta.edge_index.device.type == meta.batch.device.type == "meta"
    with pytest.raises(UserError, match="cannot become whole"):
        graphs.to(torch.int64)


def test_a_clone_shares_nothing() -> None:
    graphs = NODE.example(2)
    copy = graphs.clone()
    copy.x.zero_()
    copy.edge_index.zero_()
    assert graphs.x.abs().sum() > 0 and graphs.edge_index.sum() > 0


@pytest.mark.parametrize("rows", [slice(0, 2), slice(1, 3), torch.tensor([2, 0]), torch.tensor([1, 1])], ids=str)
def test_graphs_are_taken_out_whole(rows: slice | Tensor) -> None:
    graphs = GraphTakes(5, 2, (1, 9)).example(3)
    made, chosen = graphs[rows], torch.arange(3)[rows].tolist()
    assert len(made) == made.n == len(chosen)
    for place, i in enumerate(chosen):
        ours, theirs = (graphs.batch == i).nonzero()[:, 0], (made.batch == place).nonzero()[:, 0]
        assert torch.equal(graphs.x[ours], made.x[theirs])
        edges, others = (torch.isin(g.edge_index[1], n) for g, n in ((graphs, ours), (made, theirs)))
        assert torch.equal(graphs.edge_index[:, edges] - ours[0], made.edge_index[:, others] - theirs[0])
        assert graphs.edge_attr is not None and made.edge_attr is not None
        assert torch.equal(graphs.edge_attr[edges], made.edge_attr[others])
    assert (made.edge_index[1].diff() >= 0).all()


def test_fewer_nodes_are_asked_for_of_the_same_graph() -> None:
    graphs = NODE.example(4)
    for rows in (slice(0, 2), torch.tensor([3, 1])):
        made = graphs[rows]
        assert made.x is graphs.x and made.edge_index is graphs.edge_index and len(made) == 2
        assert graphs.at is not None and torch.equal(made.at, graphs.at[rows])  # type: ignore[arg-type]


def test_edges_come_by_target_and_then_by_source_with_what_belongs_to_them() -> None:
    edge_index = torch.tensor([[2, 0, 1, 0], [1, 2, 0, 1]])
    made, attr = sorted_by_target(edge_index, edge_index[0, :, None].float())
    assert made.tolist() == [[1, 0, 2, 0], [0, 1, 1, 2]] and attr is not None
    assert attr[:, 0].tolist() == [1, 0, 2, 0]


# -- sparse features --------------------------------------------------------------------------------------------------


def test_sparse_features_answer_to_the_same_words() -> None:
    graphs = NODE.example(3)
    graphs.x *= graphs.x > 0.7
    sparse = Graphs(table(graphs.x), graphs.edge_index, graphs.batch, n=1, at=graphs.at)
    assert sparse.sparse and not graphs.sparse and torch.equal(sparse.dense().x, graphs.x)
    assert sparse.double().sparse and sparse.double().dtype == torch.float64
    assert torch.equal(sparse.double().x.to_dense(), graphs.x.double())
    assert sparse.clone().sparse and len(sparse[:2]) == 2
    assert bool(sparse.values.isfinite().all()) and len(sparse.values) == int((graphs.x != 0).sum())


def test_dropout_of_sparse_features_is_that_of_their_values() -> None:
    x = torch.rand(40, 50) * (torch.rand(40, 50) > 0.9)
    sparse = table(x)
    assert dropout(sparse, 0.5, False) is sparse and dropout(sparse, 0.0, True) is sparse
    torch.manual_seed(0)
    dropped = dropout(sparse, 0.5, True)
    torch.manual_seed(0)
    assert torch.equal(dropped.values(), nn.functional.dropout(sparse.values(), 0.5))
    dense = dropped.to_dense()
    assert torch.equal(dense[dense != 0], 2 * x[dense != 0]) and 0 < int((dense != 0).sum()) < int((x != 0).sum())


def test_under_autocast_sparse_features_become_a_table() -> None:
    graphs = NODE.example(3)
    sparse = Graphs(table(graphs.x), graphs.edge_index, graphs.batch, n=1, at=graphs.at)
    made = NODE.adapted(Net(False))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(sparse), made(graphs))


class Dropping(Net):
    """Drops features out as a person would, which sparse tensors do not take."""

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5, self.training), edge_index, batch)


def test_a_network_that_cannot_take_sparse_features_gets_a_table() -> None:
    graphs = NODE.example(3)
    sparse = Graphs(table(graphs.x), graphs.edge_index, graphs.batch, n=1, at=graphs.at)
    able, unable = NODE.adapted(Net(False)), NODE.adapted(Dropping(False))
    assert not able.dense and unable.dense and able.training and unable.training
    assert torch.allclose(able(sparse), able(graphs), atol=1e-6)
    unable(sparse).sum().backward()
    assert torch.equal(unable.eval()(sparse), unable(graphs))
    state = torch.random.get_rng_state()
    NODE.adapted(unable.network)
    assert torch.equal(state, torch.random.get_rng_state())
    assert next(unable.parameters()).grad is not None


# -- what is taken ----------------------------------------------------------------------------------------------------


@BOTH
def test_takes_come_back_from_plain_data(takes: GraphTakes) -> None:
    takes.check()
    assert GraphTakes(**takes.plain()) == takes and takes.kind == "graphs"
    assert "features a node" in str(takes)


@pytest.mark.parametrize(
    ("takes", "said"),
    [
        (GraphTakes(0), "1 or more features"),
        (GraphTakes(2, -1), "0 or more an edge"),
        (GraphTakes(2, nodes=(5, 4)), "fewest and the most"),
        (GraphTakes(2, nodes=(0, 4)), "fewest and the most"),
        (GraphTakes(2, level="edge"), "graph or node"),  # type: ignore[arg-type]
    ],
)
def test_a_description_that_is_wrong_is_refused(takes: GraphTakes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        takes.check()


def test_data_that_do_not_fit_are_described() -> None:
    class Pictures:
        kind = "images"

        def __str__(self) -> str:
            return "3 x 32 x 32 images"

    assert GRAPH.problems(GRAPH) == [] and GRAPH.problems(GraphTakes(5, 3)) == []
    assert GRAPH.problems(Pictures()) == ["it takes graphs with 5 features a node, and not 3 x 32 x 32 images"]
    (features,) = GRAPH.problems(GraphTakes(7))
    (edges,) = GraphTakes(5, 3).problems(GRAPH)
    (level,) = GRAPH.problems(NODE)
    assert "5 features a node" in features and "7" in features
    assert "3 features an edge" in edges and "whole graphs" in level


# -- how networks are called ------------------------------------------------------------------------------------------


@BOTH
def test_the_rows_that_are_asked_for_come_back(takes: GraphTakes) -> None:
    torch.manual_seed(0)
    net, graphs = Net(takes.level == "graph"), takes.example(3)
    made = takes.adapted(net)
    answer = made(graphs)
    assert answer.shape == (3, 3) and made.network is net and takes.adapted(made) is made
    whole = net(graphs.x, graphs.edge_index, graphs.batch)
    assert torch.equal(answer, whole if graphs.at is None else whole[graphs.at])
    assert torch.allclose(made(graphs[1:]), answer[1:], atol=1e-6)


class Named(nn.Module):
    """Remembers what it was called with."""

    seen: dict[str, Any]


def test_arguments_go_by_their_names() -> None:
    class Weighted(Named):
        def forward(
            self, edge_index: Tensor, x: Tensor, edge_weight: Tensor, *, batch_size: int = 0, hops: int = 2
        ) -> Tensor:
            self.seen = {"weight": edge_weight, "n": batch_size, "hops": hops}
            return x[:batch_size]

    class Attributes(Named):
        def forward(
            self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None, *args: Any, **more: Any
        ) -> Tensor:
            self.seen = {"attr": edge_attr, **more}
            return x

    graphs = GraphTakes(5, 1).example(3)
    net = Weighted()
    OnGraphs(net)(graphs)
    assert torch.equal(net.seen["weight"], graphs.edge_attr[:, 0]) and net.seen["n"] == 3  # type: ignore[index]
    assert net.seen["hops"] == 2
    with pytest.raises(UserError, match="Weighted needs edge_weight"):
        OnGraphs(net)(GRAPH.example(3))
    other, nodes = Attributes(), GraphTakes(5, 2, level="node").example(3)
    OnGraphs(other)(nodes)
    assert other.seen == {"attr": nodes.edge_attr}
    OnGraphs(other)(NODE.example(3))
    assert other.seen == {"attr": None}


def test_parameters_that_graphs_do_not_have_are_named() -> None:
    class Molecules(nn.Module):
        def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
            return z

    class Images(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(UserError, match=r"Molecules asks for 'z' and 'pos'; .* x, edge_index, .* one 'data'\."):
        GRAPH.adapted(Molecules())
    with pytest.raises(UserError, match="takes no 'x' and 'edge_index'"):
        GRAPH.adapted(Images())


def test_a_network_that_takes_graphs_itself_stays_as_it_is() -> None:
    class Own(nn.Module):
        def forward(self, graphs: Graphs) -> Tensor:
            return graphs.x[: len(graphs)]

    net = Own()
    assert GRAPH.adapted(net) is net


@pytest.mark.parametrize("form", ["tuple", "dict", "object"])
def test_logits_are_the_first_part_of_an_answer(form: str) -> None:
    class Parts(Net):
        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Any:
            z = super().forward(x, edge_index, batch)
            made = type("Answer", (), {"logits": z})
            return {"tuple": (z, x), "dict": {"logits": z, "x": x}, "object": made}[form]

    assert NODE.adapted(Parts(False))(NODE.example(3)).shape == (3, 3)


def test_pooling_is_decided_by_the_answer_and_a_mismatch_is_named() -> None:
    with pytest.raises(UserError, match=r"answers about each of \d+ nodes, .* 3 graphs: it has to pool"):
        GRAPH.adapted(Net(False))(GRAPH.example(3))
    with pytest.raises(UserError, match=r"about a graph as a whole, .* must not pool"):
        NODE.adapted(Net(True))(NODE.example(3))

    class Odd(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return x[:2]

    with pytest.raises(UserError, match="gives 2 rows for 3 graphs"):
        GRAPH.adapted(Odd())(GRAPH.example(3))


def test_a_network_that_takes_one_data_gets_one() -> None:
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")

    class Whole(Net):
        def forward(self, data: Any) -> Tensor:  # type: ignore[override]
            return super().forward(data.x, data.edge_index, data.batch)

    graphs = GRAPH.example(3)
    assert GRAPH.adapted(Whole(True))(graphs).shape == (3, 3)
    data = NODE.example(2).data()
    assert data.num_nodes == len(NODE.example(2).x) and data.at.tolist() == [0, 1]
