"""Graph networks: what they compute, and that no order of nodes and no layout of features changes it."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from upcycle import zoo
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.graph_inputs import Graphs, sorted_by_target, table
from upcycle.core.graphs import GraphTakes
from upcycle.core.references import resolve

pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra graphs)")

from upcycle.zoo import from_pyg, gnn

TAKES = {level: GraphTakes(6, nodes=(5, 12), level=level) for level in ("graph", "node")}  # type: ignore[arg-type]
LEVELS = pytest.mark.parametrize("level", ["graph", "node"])
NETWORKS = pytest.mark.parametrize("name", ["gcn_5_64", "gcn_2_16", "gin_3_32", "gat", "sage"])


def made(name: str, level: str, k: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return TAKES[level].adapted(gnn.make(name, 6, k, level)).eval()  # type: ignore[arg-type]


def permuted(graphs: Graphs, seed: int = 0) -> tuple[Graphs, Tensor]:
    """The same graphs with the nodes of each in another order, and where each node went."""
    order = torch.rand(len(graphs.x), generator=torch.Generator().manual_seed(seed)).argsort()
    order = order[graphs.batch[order].argsort(stable=True)]
    went = torch.empty_like(order)
    went[order] = torch.arange(len(order))
    edge_index, _ = sorted_by_target(went[graphs.edge_index])
    at = None if graphs.at is None else went[graphs.at]
    return replace(graphs, x=graphs.x[order], edge_index=edge_index, at=at), went


@NETWORKS
@LEVELS
def test_the_order_of_nodes_changes_no_answer(name: str, level: str) -> None:
    net, graphs = made(name, level), TAKES[level].example(5)
    other, went = permuted(graphs)
    assert not torch.equal(went, torch.arange(len(went)))
    answer = net(graphs)
    assert answer.shape == (5, 3) and bool(answer.isfinite().all())  # the first node has no edge
    assert (net(other) - answer).abs().max() < 1e-5


@NETWORKS
def test_a_graph_is_answered_alike_alone_and_among_others(name: str) -> None:
    net, graphs = made(name, "graph").double(), TAKES["graph"].example(4).double()
    together = net(graphs)
    alone = torch.cat([net(graphs[i : i + 1]) for i in range(4)])
    assert (together - alone).abs().max() < 1e-10


@NETWORKS
def test_nodes_without_any_edge_are_answered(name: str) -> None:
    graphs = TAKES["node"].example(4)
    net = made(name, "node")
    assert bool(net(replace(graphs, edge_index=graphs.edge_index[:, :0])).isfinite().all())


@NETWORKS
def test_sparse_features_give_the_same_answers_and_gradients(name: str) -> None:
    graphs = TAKES["node"].example(5)
    graphs.x *= graphs.x > 0.5
    net, found = made(name, "node").double(), []
    for inputs in (graphs.double(), replace(graphs, x=table(graphs.x)).double()):
        net.zero_grad()
        answer = net(inputs)
        answer.square().sum().backward()
        found.append([answer.detach(), *(p.grad.clone() for p in net.parameters())])
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(*found, strict=True))
    assert net.dense is (name == "gin_3_32")  # its sum comes before its product  # type: ignore[comparison-overlap]


@NETWORKS
@LEVELS
def test_networks_train(name: str, level: str) -> None:
    net, graphs = made(name, level).train(), TAKES[level].example(5)
    net(graphs).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


def propagation(graphs: Graphs) -> Tensor:
    """A + I as a dense matrix, rows are targets."""
    a = torch.eye(len(graphs.x), dtype=graphs.dtype)
    a[graphs.edge_index[1], graphs.edge_index[0]] += 1
    return a


def weight(layer: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.linear(x, layer.weight)  # type: ignore[arg-type]


@LEVELS
def test_gcn_is_that_of_the_paper(level: str) -> None:
    net, graphs = made("gcn_3_32", level).double(), TAKES[level].example(4).double()
    network: gnn.Residual = net.network  # type: ignore[assignment]
    for norm in network.norms:  # so that it is no identity
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    a = propagation(graphs)
    scale = a.sum(1).rsqrt()
    a = scale[:, None] * a * scale
    x = graphs.x
    for i, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
        h = torch.relu(norm(a @ weight(conv.lin, x) + conv.bias))  # type: ignore[operator, arg-type]
        x = x + h if i else h
    if level == "graph":
        x = torch.stack([x[graphs.batch == i].sum(0) for i in range(graphs.n)])
    expected = network.linear(x)
    assert (net(graphs) - (expected if level == "graph" else expected[graphs.at])).abs().max() < 1e-10
    assert len(network.convs) == 2 and network.linear.in_features == 32


def test_gin_sums_and_does_not_learn_epsilon() -> None:
    net, graphs = made("gin_3_32", "graph").double(), TAKES["graph"].example(4).double()
    network: gnn.Residual = net.network  # type: ignore[assignment]
    a, x = propagation(graphs), graphs.x
    for i, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
        h = torch.relu(norm(conv.nn(a @ x)))  # type: ignore[operator]
        x = x + h if i else h
    expected = network.linear(torch.stack([x[graphs.batch == i].sum(0) for i in range(graphs.n)]))
    assert (net(graphs) - expected).abs().max() < 1e-10
    assert not any("eps" in key for key, _ in net.named_parameters())
    assert [type(m).__name__ for m in network.convs[0].nn] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]  # type: ignore


def test_dropout_stands_before_the_linear_layer_and_not_behind_it() -> None:
    net, graphs = made("gcn_3_32", "graph").train(), TAKES["graph"].example(200)
    seen: list[Tensor] = []
    net.network.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[union-attr]
    torch.manual_seed(0)
    answer = net(graphs)
    assert float((seen[0] == 0).float().mean()) > 0.45 and not bool((answer == 0).any())


def test_gat_has_eight_heads_of_eight() -> None:
    network = gnn.make("gat", 1433, 7, "node")
    assert sum(p.numel() for p in network.parameters()) == 1433 * 64 + 2 * 64 + 64 + 64 * 7 + 2 * 7 + 7
    assert network.p == 0.6 and network.conv1.dropout == network.conv2.dropout == 0.6  # type: ignore[union-attr]


@pytest.mark.parametrize("name", from_pyg.MODELS)
def test_models_of_pyg_answer_about_nodes(name: str) -> None:
    model = from_pyg.build(name, pretrained=False, num_classes=3, takes=TAKES["node"])
    assert model.reference == f"pyg:{name}" and model.takes == TAKES["node"]
    net = TAKES["node"].adapted(model.module)
    assert net(TAKES["node"].example(4)).shape == (4, 3)
    with pytest.raises(UserError, match="answers about nodes, and not about graphs"):
        from_pyg.build(name, pretrained=False, takes=TAKES["graph"])


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(UserError, match="no model of PyTorch Geometric"):
        from_pyg.check("GATT")
    with pytest.raises(UserError, match="has no trained weights"):
        zoo.build("gcn_3_32", pretrained=True, takes=TAKES["graph"])
    with pytest.raises(UserError, match="zoo:gcn_3_32 is a network over graphs: it needs data that are graphs"):
        zoo.build("gcn_3_32", pretrained=False)
    with pytest.raises(UserError, match="Did you mean 'gcn_3_32'"):
        zoo.check("gcn_3_33")


def test_without_the_library_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_geometric" else find(name))
    for check in (lambda: zoo.check("gat"), lambda: from_pyg.check("GAT"), from_pyg.torch_geometric):
        with pytest.raises(UserError, match=r'pip install "upcycle\[graphs\]"'):
            check()
    zoo.check("resnet20")


def test_every_graph_network_of_the_zoo_is_made() -> None:
    for name in zoo.GRAPH_NETWORKS:
        model = zoo.build(name, pretrained=False, num_classes=3, takes=GraphTakes(6, 2, (5, 12)))
        assert model.takes == TAKES["graph"] and model.options == {"num_classes": 3}  # features of edges are not used
        assert name in zoo.names()


# -- as models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["zoo:gcn_3_32", "zoo:gat", "pyg:GIN"])
def test_a_saved_network_reloads_by_itself(reference: str, tmp_path: Path) -> None:
    level = "node" if reference.startswith("pyg") else "graph"
    torch.manual_seed(0)
    model = resolve(reference, pretrained=False, num_classes=3, takes=TAKES[level], classes=("a", "b", "c"))
    graphs = TAKES[level].example(4)
    saved.save(model, tmp_path / "m")
    again = saved.load(tmp_path / "m")
    assert again.takes == TAKES[level] and again.classes == ("a", "b", "c") and again.reference == reference
    assert torch.equal(again.module(graphs), model.module.eval()(graphs)) and not again.module.training
    fresh = resolve(tmp_path / "m", pretrained=False)
    assert fresh.takes == TAKES[level] and not torch.equal(fresh.module(graphs), again.module(graphs))
    assert '"format": 2' in (tmp_path / "m" / "architecture.json").read_text()


OWN = """
import torch
from torch_geometric.nn import GCNConv, global_mean_pool

class Own(torch.nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv, self.last = GCNConv(6, 8), torch.nn.Linear(8, num_classes)

    def forward(self, x, edge_index, batch):
        return self.last(global_mean_pool(self.conv(x, edge_index).relu(), batch))
"""


def test_a_network_of_ones_own_reloads_with_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_gnn.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    model = resolve("own_gnn:Own", num_classes=4, takes=TAKES["graph"])
    assert len(model.classes) == 4
    saved.save(model, tmp_path / "m")
    with pytest.raises(UserError, match="--trust own_gnn"):
        saved.load(tmp_path / "m")
    again, graphs = saved.load(tmp_path / "m", trust=("own_gnn",)), TAKES["graph"].example(3)
    assert torch.equal(again.module(graphs), model.module.eval()(graphs)) and again.takes == TAKES["graph"]
    with pytest.raises(UserError, match="about a graph as a whole"):
        resolve("own_gnn:Own", takes=TAKES["node"])
    with pytest.raises(UserError, match="Own does not take graphs with 7 features a node"):
        resolve("own_gnn:Own", takes=GraphTakes(7))


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    model = resolve("zoo:gcn_2_16", pretrained=False, num_classes=3, takes=TAKES["graph"])
    saved.save(replace(model, inputs=replace(TAKES["graph"], features=7)), tmp_path / "m")
    with pytest.raises(UserError, match=r"do not fit|shape|size"):
        saved.load(tmp_path / "m")
