"""Layers of factors: equal to an ordinary convolution where there is one factor of all edges, and blind to order."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch
from torch import Tensor, nn

from tests.settings_factors import factor_model
from tests.settings_graphs import tiny_graphs, tiny_nodes
from upcycle import zoo
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.graph_inputs import Graphs
from upcycle.core.graphs import GraphTakes
from upcycle.core.references import resolve
from upcycle.distillation.factorgcn import Discriminated
from upcycle.zoo import factor_messages
from upcycle.zoo.factor_messages import Blocks, Listed, messages_over, send
from upcycle.zoo.factorgcn import FactorConv, Factors, layers_of, seen_factors

TAKES = GraphTakes(6, nodes=(5, 12))


def some(n: int = 4) -> Graphs:
    return TAKES.example(n)


def conv(d_in: int = 6, d_out: int = 8, factors: int = 4) -> FactorConv:
    torch.manual_seed(0)
    return FactorConv(d_in, d_out, factors).double()


def factors_of(layer: FactorConv, x: Tensor, edge_index: Tensor) -> Factors:
    return layer.disentangle(x, edge_index)


def test_one_factor_of_all_edges_is_a_one_sided_graph_convolution() -> None:
    layer, graphs = conv(factors=1), some().double()
    with torch.no_grad():
        for scorer in (layer.disentangle.of_source, layer.disentangle.of_target):
            scorer.weight.zero_()
            scorer.bias.fill_(40.0)  # σ of which is 1
    n = len(graphs.x)
    adjacency = torch.zeros(n, n, dtype=torch.float64)
    adjacency[graphs.edge_index[1], graphs.edge_index[0]] = 1
    adjacency += torch.eye(n)
    project = layer.disentangle.project
    expected = adjacency @ torch.diag(adjacency.sum(1) ** -0.5) @ (graphs.x @ project.weight.T + project.bias)
    assert (layer(graphs.x, graphs.edge_index) - expected).abs().max() < 1e-6


def test_all_factors_in_one_pass_are_each_by_itself() -> None:
    layer, graphs = conv(), some().double()
    found = factors_of(layer, graphs.x, graphs.edge_index)
    out = layer(graphs.x, graphs.edge_index)
    for e in range(4):
        alone = send(found.sent[:, e : e + 1], found.h[:, None], found.edge_index)
        assert torch.allclose(out[:, 2 * e : 2 * e + 2], alone[:, 0], atol=1e-12)


def test_weights_lie_between_nought_and_one_and_scores_are_as_published() -> None:
    layer, graphs = conv(), some().double()
    found = factors_of(layer, graphs.x, graphs.edge_index)
    assert found.weight.shape == (graphs.edge_index.shape[1] + len(graphs.x), 4)
    assert found.weight.min() > 0 and found.weight.max() < 1
    parts = layer.disentangle
    j, i = graphs.edge_index[:, 5]
    score = parts.of_source(found.h[j]) + parts.of_target(found.h[i])
    assert torch.allclose(found.weight[5], torch.sigmoid(6 * score))


@pytest.mark.parametrize("reference", ["zoo:factorgcn", "zoo:factorgcn_5_64"])
def test_permuting_nodes_permutes_factors_and_changes_no_answer(reference: str) -> None:
    data = tiny_graphs()
    net = factor_model(data, reference=reference).module.double().eval()
    graphs = data.test.batch(torch.arange(6), device=torch.device("cpu")).inputs.double()
    order = torch.cat([torch.randperm(int(n), generator=torch.Generator().manual_seed(1)) + a for a, n in
                       zip(graphs.starts[0][:-1].tolist(), graphs.starts[0].diff().tolist(), strict=True)])  # fmt: skip
    to = order.argsort()
    moved = dataclasses.replace(graphs, x=graphs.x[order], edge_index=to[graphs.edge_index])
    with seen_factors(net) as before:
        answer = net(graphs)
    with seen_factors(net) as after:
        again = net(moved)
    assert (answer - again).abs().max() < 1e-10
    first = layers_of(net)[0]
    assert torch.allclose(before[first].h[order], after[first].h)
    edges = graphs.edge_index.shape[1]
    assert torch.allclose(before[first].weight[:edges], after[first].weight[:edges])
    assert torch.allclose(before[first].weight[edges:][order], after[first].weight[edges:])


@pytest.mark.parametrize("reference", ["zoo:factorgcn", "zoo:factorgcn_5_64"])
def test_a_batch_is_its_graphs_one_by_one(reference: str) -> None:
    data = tiny_graphs()
    net = factor_model(data, reference=reference).module.double().eval()
    graphs = data.test.batch(torch.arange(5), device=torch.device("cpu")).inputs.double()
    alone = torch.cat([net(graphs[i : i + 1]) for i in range(5)])
    assert (net(graphs) - alone).abs().max() < 1e-12


@pytest.mark.parametrize("reference", ["zoo:factorgcn", "zoo:factorgcn_5_64"])
def test_nodes_without_edges_give_finite_answers_and_gradients(reference: str) -> None:
    model = resolve(reference, pretrained=False, num_classes=2, takes=TAKES)
    x = torch.ones(3, 6)
    lonely = Graphs(x, torch.empty(2, 0, dtype=torch.long), torch.tensor([0, 0, 1]), n=2)
    out = model.module.train()(lonely)
    out.sum().backward()
    assert out.shape == (2, 2) and out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.module.parameters())


def test_loops_of_the_data_change_nothing() -> None:
    layer, graphs = conv(), some().double()
    loops = torch.cat([graphs.edge_index, torch.arange(3).repeat(2, 1)], 1)
    assert torch.allclose(layer(graphs.x, graphs.edge_index), layer(graphs.x, loops), atol=1e-12)


def test_it_answers_about_nodes_too() -> None:
    data = tiny_nodes()
    for reference in ("zoo:factorgcn", "zoo:factorgcn_5_64"):
        model = factor_model(data, reference=reference)
        nodes = data.test.batch(torch.arange(7), device=torch.device("cpu")).inputs
        assert model.module.eval()(nodes).shape == (7, 3)


def test_sparse_features_give_what_dense_ones_do() -> None:
    data = tiny_nodes()
    for reference in ("zoo:factorgcn", "zoo:factorgcn_5_64"):
        net = factor_model(data, reference=reference).module.eval()
        nodes = data.test.batch(torch.arange(7), device=torch.device("cpu")).inputs
        sparse = dataclasses.replace(nodes, x=nodes.x.to_sparse_csr())
        assert torch.allclose(net(nodes), net(sparse), atol=1e-5)


def test_hooks_are_gone_when_the_block_ends() -> None:
    net = nn.Sequential(conv())
    with pytest.raises(RuntimeError), seen_factors(net):
        raise RuntimeError
    assert not layers_of(net)[0]._forward_hooks


@pytest.mark.parametrize(
    ("width", "factors", "part"),
    [(32, 5, "32 features cannot be divided among 5 factors"), (32, 0, "has 1 or more factors, not 0")],
)
def test_a_width_that_factors_do_not_divide_is_refused(width: int, factors: int, part: str) -> None:
    with pytest.raises(UserError, match=part):
        FactorConv(4, width, factors)


def test_the_zoo_builds_and_reloads_them_with_any_number_of_factors(tmp_path: object) -> None:
    made = zoo.build("factorgcn_5_64", pretrained=False, num_classes=3, takes=TAKES, factors=8)
    assert [layer.factors for layer in layers_of(made.module)] == [8, 8, 4, 4, 2]
    model = resolve(made)
    saved.save(model, tmp_path / "m")  # type: ignore[operator]
    again = saved.load(tmp_path / "m")  # type: ignore[operator]
    assert torch.equal(again.module(some()), model.module.eval()(some())) and again.options["factors"] == 8
    small = zoo.build("factorgcn", pretrained=False, takes=TAKES, factors=1)
    assert [layer.factors for layer in layers_of(small.module)] == [1, 1]
    others = ("gcn_3_32",) if importlib.util.find_spec("torch_geometric") else ()  # which need the library
    for name in ("resnet20", *others):
        with pytest.raises(UserError, match=f"zoo:{name} has no factors"):
            zoo.build(name, pretrained=False, takes=TAKES, factors=2)


def test_no_library_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_geometric" else find(name))
    zoo.check("factorgcn")
    assert resolve("zoo:factorgcn", pretrained=False, takes=TAKES).classes == ("0", "1")


# -- matrices in place of edges ---------------------------------------------------------------------------------------


def unlike() -> Graphs:
    """Graphs of 1 to 7 nodes, sorted by target: nodes without edges, a loop, an edge twice, and edges one way."""
    edges = torch.tensor([[1, 0, 2, 2, 5, 4, 7, 7, 9], [0, 1, 1, 2, 4, 5, 6, 6, 8]])
    batch = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3])
    x = torch.rand(13, 6, generator=torch.Generator().manual_seed(2)).double()
    return Graphs(x, edges, batch, n=4)


def both(graphs: Graphs) -> tuple[Listed, Blocks]:
    N, first = len(graphs.x), graphs.starts[0]
    size = int(first.diff().max())
    return (
        Listed(graphs.edge_index, N, torch.float64),
        Blocks(graphs.edge_index, first, size, N, torch.float64),
    )


@pytest.mark.parametrize("graphs", [unlike(), unlike()[torch.tensor([2, 2, 2])], some().double()])
@pytest.mark.parametrize("factors", [1, 4])
def test_matrices_send_what_edges_send(graphs: Graphs, factors: int) -> None:
    layer = conv(factors=factors).disentangle
    listed, blocks = (layer(graphs.x, over) for over in both(graphs))
    N, L = len(graphs.x), factors
    table = blocks.over.listed(blocks.weight)
    assert table.shape == (graphs.edge_index.shape[1] + N, L) and torch.allclose(table, listed.weight, atol=1e-14)
    assert (blocks.over.nodes(blocks.z) - listed.z).abs().max() < 1e-12
    own = torch.rand(N, L, 3, generator=torch.Generator().manual_seed(3)).double()
    n, size = blocks.over.shape
    padded = own.new_zeros(n * size, L, 3).index_copy(0, blocks.over.place, own).view(n, size, L, 3).transpose(1, 2)
    sent = blocks.over.nodes(blocks.over.send(blocks.sent, padded))
    assert (sent - listed.over.send(listed.sent, own)).abs().max() < 1e-12
    beyond = torch.ones(n * size, dtype=torch.bool).index_fill(0, blocks.over.place, False).view(n, 1, size, 1)
    assert not (blocks.z * beyond).any() and not (blocks.sent * beyond).any()


@pytest.mark.parametrize("reference", ["zoo:factorgcn", "zoo:factorgcn_5_64"])
@pytest.mark.parametrize("graphs", [unlike(), some().double()])
def test_training_on_matrices_is_training_on_edges(
    reference: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resolve(reference, pretrained=False, num_classes=3, takes=TAKES)
    torch.manual_seed(0)
    net = Discriminated(model.module).double().train()
    found = []
    for fullest in (0, 10**9):
        monkeypatch.setattr(factor_messages, "FULLEST", fullest)
        net.zero_grad()
        torch.manual_seed(1)  # of dropout
        with seen_factors(net) as seen:
            z, L_d = net(graphs)
        forms = {type(factors.over) for factors in seen.values()}
        (z.square().sum() + L_d).backward()
        found.append((forms, z, L_d, [p.grad for p in net.parameters()]))
    (edges, z, L_d, gradients), (matrices, again, L_d_again, others) = found
    assert edges == {Listed} and matrices == {Blocks}
    assert (z - again).abs().max() < 1e-12 and (L_d - L_d_again).abs() < 1e-12
    for a, b in zip(gradients, others, strict=True):
        assert a is not None and b is not None and (a - b).abs().max() < 1e-10 * max(1.0, float(a.abs().max()))


def test_matrices_are_for_training_on_graphs_that_are_small_and_alike() -> None:
    def form(net: nn.Module, graphs: Graphs) -> type:
        with seen_factors(net) as seen:
            net(graphs)
        (found,) = {type(factors.over) for factors in seen.values()}
        return found

    graphs = some()
    net = resolve("zoo:factorgcn", pretrained=False, num_classes=2, takes=TAKES).module
    assert form(net.train(), graphs) is Blocks and form(net.eval(), graphs) is Listed
    long = Graphs(torch.ones(40, 6), torch.empty(2, 0, dtype=torch.long), torch.zeros(40, dtype=torch.long), n=1)
    assert form(net.train(), long) is Listed  # 1,600 entries for 40 loops
    nodes = factor_model(tiny_nodes()).module.train()
    assert form(nodes, tiny_nodes().train.batch(torch.arange(7), device=torch.device("cpu")).inputs) is Listed


def test_a_batch_of_no_node_and_graphs_that_are_not_counted() -> None:
    none = torch.empty(2, 0, dtype=torch.long)
    assert isinstance(messages_over(torch.empty(0, 6), none, none[0], 0), Listed)
    over = messages_over(torch.ones(5, 6), none, torch.tensor([0, 0, 1, 1, 1]))
    assert isinstance(over, Blocks) and over.shape == (2, 3) and over.place.tolist() == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("nodes", [(5, 5), (3, 7)])  # with padding, and without
def test_two_convolutions_over_matrices_are_those_over_edges_and_so_are_their_gradients(nodes: tuple[int, int]) -> None:
    graphs = GraphTakes(6, nodes=nodes).example(4).double()
    layer, first, second = conv(), nn.Linear(2, 3).double(), nn.Linear(3, 2).double()
    found = []
    for over in (
        Listed(graphs.edge_index, len(graphs.x), torch.float64),
        Blocks(graphs.edge_index, graphs.starts[0], nodes[1], len(graphs.x), torch.float64),
    ):
        factors = layer.disentangle(graphs.x, over)
        out = over.convolved_twice(factors.z, factors.sent, first, second, graphs.batch, graphs.n)
        parameters = (*layer.parameters(), *first.parameters(), *second.parameters())
        found.append((out, *torch.autograd.grad(out.pow(3).sum(), parameters)))
    assert found[0][0].shape == (4, 4, 2)
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() < 1e-12
